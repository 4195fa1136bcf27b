"""A base model that the provider offers."""

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Row
from app.models.columns import CreatedAt, Id, JsonDict, Seconds


class BaseModelRow(Row):
    __tablename__ = "base_models"

    id: Mapped[Id]
    """The name tenants use as `model`, e.g. smollm2-135m-instruct."""
    source: Mapped[str] = mapped_column(Text)
    """hf:REPO@REVISION, path:DIR or wheel:NAME==VERSION#FILE"""
    recipe: Mapped[JsonDict]
    """contracts.bases.PrepareRecipe: how it is aligned and prepared."""
    training_defaults: Mapped[JsonDict]
    """contracts.bases.TrainingDefaults: what "auto" means."""
    status: Mapped[str] = mapped_column(String(16))
    prepared_hash: Mapped[str | None] = mapped_column(String(64))
    """Content hash of the prepared artefacts: the folder's name under Settings.bases_dir."""
    renders_tools: Mapped[bool | None]
    """Whether its chat template shows tools to the model; None for a base that was prepared before this was asked."""
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[CreatedAt]
    ready_at: Mapped[Seconds | None]
