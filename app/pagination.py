"""Pages by keyset: `after` names the last item seen, so that new items never shift a page.

That item may be gone when the next page is asked for: clients delete while they list, and files expire. So lists whose
items can be deleted remember for a day where those stood.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, Protocol, TypedDict, TypeVar

from fastapi import Query
from pydantic import BaseModel
from sqlalchemy import ColumnElement, Select, and_, delete, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.db import Database, db_now
from app.errors import InvalidRequestError
from app.models import DeletedItem

REMEMBERED_SECONDS = 86_400.0

T = TypeVar("T")
Order = Literal["asc", "desc"]
After = Annotated[str | None, Query(max_length=256, description="Id of the last item of the page before.")]


class ListOf(BaseModel, Generic[T]):
    """A page of objects, as it is sent."""

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool


class Ends(TypedDict):
    """Ids of a page's first and last objects; None where it has none."""

    first_id: str | None
    last_id: str | None


class ListWithEnds(ListOf[T]):
    """A page that names its ends, which some of OpenAI's lists do."""

    first_id: str | None
    last_id: str | None


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


def ends(data: Sequence[_Identified]) -> Ends:
    """For ListWithEnds."""
    return Ends(first_id=data[0].id, last_id=data[-1].id) if data else Ends(first_id=None, last_id=None)


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some items in order, and whether more follow."""

    items: list[T]
    has_more: bool


def fetch_page(
    session: Session,
    query: Select[T],
    sort_by: tuple[InstrumentedAttribute[Any], ...],
    *,
    identity: InstrumentedAttribute[str],
    after: str | None,
    limit: int,
    order: Order = "desc",
    owner_id: str | None = None,
    still: ColumnElement[bool] | None = None,
) -> Page[T]:
    """A page of `query`, which already holds every filter. `sort_by` is a total order, the most significant column
    first, e.g. (created_at, id); `identity` is the column that `after` is a value of. Where `owner_id` is given, which
    is for lists that are sorted by (created_at, id), `after` may be an item of this owner's that `remember_place` was
    told of. `still` is a filter that the item named by `after` need not pass any more.

    Raises:
        InvalidRequestError: `after` is not among the rows that `query` selects, and was not lately.
    """
    if after is not None:
        place = session.execute(query.with_only_columns(*sort_by).where(identity == after)).first()
        if place is None and owner_id is not None:
            gone = select(DeletedItem.created_at, DeletedItem.id)
            place = session.execute(gone.where(DeletedItem.id == after, DeletedItem.owner_id == owner_id)).first()
        if place is None:
            raise InvalidRequestError(f"No item {after!r} to continue after.", param="after")
        query = query.where(_beyond(sort_by, tuple(place), order))
    if still is not None:
        query = query.where(still)
    query = query.order_by(*(column.asc() if order == "asc" else column.desc() for column in sort_by))
    found = list(session.scalars(query.limit(limit + 1)))
    return Page(found[:limit], has_more=len(found) > limit)


def remember_place(session: Session, owner_id: str, item_id: str, created_at: float) -> None:
    """Of something that is deleted in this transaction."""
    session.add(DeletedItem(id=item_id, owner_id=owner_id, created_at=created_at))


def sweep_places(database: Database) -> None:
    """Forgets where things stood that are gone for more than a day."""
    with database.transaction() as session:
        session.execute(delete(DeletedItem).where(DeletedItem.deleted_at < db_now() - REMEMBERED_SECONDS))


def _beyond(columns: tuple[InstrumentedAttribute[Any], ...], place: tuple[Any, ...], order: Order) -> Any:
    """(a, b) > (x, y), spelled out: row values compare the same on both databases only when they are equal types."""
    alternatives = []
    for index, column in enumerate(columns):
        equal = [columns[i] == place[i] for i in range(index)]
        step = column > place[index] if order == "asc" else column < place[index]
        alternatives.append(and_(*equal, step))
    # Said once more for the first column alone: databases do not find the place in an index through an OR, and would
    # walk to a late page over all before it.
    bound = columns[0] >= place[0] if order == "asc" else columns[0] <= place[0]
    return and_(bound, or_(*alternatives))
