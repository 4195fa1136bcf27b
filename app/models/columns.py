"""Column types that several tables share."""

from typing import Annotated, Any

from sqlalchemy import JSON, BigInteger, Double, String
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import mapped_column

from app.db import db_now

# None is SQL's NULL, not the JSON value null: `IS NULL` must find it.
_JSON = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

Id = Annotated[str, mapped_column(String(64), primary_key=True)]
Seconds = Annotated[float, mapped_column(Double)]
CreatedAt = Annotated[float, mapped_column(Double, default=db_now(), index=True)]
Bytes = Annotated[int, mapped_column(BigInteger)]
JsonDict = Annotated[dict[str, Any], mapped_column(_JSON)]
JsonList = Annotated[list[Any], mapped_column(_JSON)]
