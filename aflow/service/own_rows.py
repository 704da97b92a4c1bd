"""Rows of aflow's own records, by key, alone or with those of a listing of what is registered."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from aflow.service.messages import CHUNK, Listing

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore, RunRecord, TaskView
    from aflow.service.database import Row, Session
    from aflow.service.paging import Page

PER_TASK = 10_000
"""How many keys what a task has may take."""


class Own(NamedTuple):
    """A row of ours; the first field is its key, as in rows of the database."""

    key: Any
    told: Any


class Rows(Protocol):
    """Rows in the order of their keys."""

    def before(self, key: Any, limit: int) -> Iterable[Own]:
        """Those below the key (None: all), the greatest first."""

    def after(self, key: Any, limit: int) -> Iterable[Own]:
        """Those above the key (None: all), the smallest first."""


class FewRows:
    """Rows that are all there."""

    def __init__(self, rows: Iterable[Own]) -> None:
        self._rows = sorted(rows, key=operator.attrgetter("key"))

    def before(self, key: Any, limit: int) -> Iterable[Own]:
        """See Rows."""
        return islice((each for each in self._rows[::-1] if key is None or each.key < key), limit)

    def after(self, key: Any, limit: int) -> Iterable[Own]:
        """See Rows."""
        return islice((each for each in self._rows if key is None or each.key > key), limit)


@dataclass(frozen=True, slots=True)
class TaskRows:
    """What `of` says of each task of a run, or of one step of it, that passes."""

    store: MetadataStore
    run: RunRecord
    step: str | None
    of: Callable[[TaskView], list[Any]]
    passes: Callable[[Any], bool]
    light: bool = True

    def before(self, key: Any, limit: int) -> Iterable[Own]:
        """See Rows."""
        top = None if key is None else key // PER_TASK + 1
        views = self.store.newest_tasks(self.run.key, step=self.step, before=top, light=self.light)
        found = (each for view in views for each in reversed(self._of(view)))
        return islice((each for each in found if key is None or each.key < key), limit)

    def after(self, key: Any, limit: int) -> Iterable[Own]:
        """See Rows."""
        last = None if key is None else key // PER_TASK - 1
        views = self.store.tasks(self.run.key, step=self.step, after=last, light=self.light)
        found = (each for view in views for each in self._of(view))
        return islice((each for each in found if key is None or each.key > key), limit)

    def _of(self, view: TaskView) -> list[Own]:
        first = view.task.task * PER_TASK
        rows = [Own(first + place, told) for place, told in enumerate(self.of(view))]
        return [each for each in rows if self.passes(each.told)]


@dataclass(frozen=True, slots=True)
class Joined:
    """Rows of ours with those of a listing, if there is one; of two with the same key ours."""

    rows: Rows
    page: Page | None
    listing: Listing | None = None

    def first(self, session: Session) -> list[Any]:
        """The page; without one, the first rows."""
        if self.page is None:
            return self.after(session, None)
        own = list(self.rows.before(self.page.after, self.page.limit))
        others = [] if self.listing is None else self.listing.first(session)
        return self._merged(own, others, self.page.limit, newest_first=True)

    def after(self, session: Session, key: Any) -> list[Any]:
        """The next rows, at most CHUNK."""
        own = list(self.rows.after(key, CHUNK))
        others = [] if self.listing is None else self.listing.after(session, key)
        return self._merged(own, others, CHUNK, newest_first=False)

    def tell(self, row: Any) -> Any:
        """The row, for clients."""
        if isinstance(row, Own):
            return row.told
        assert self.listing is not None, "all rows are ours"
        return self.listing.tell(row)

    def _merged(
        self, own: list[Own], others: list[Row], limit: int, newest_first: bool
    ) -> list[Any]:
        keys = {each.key for each in own}
        both = [*own, *(row for row in others if row[0] not in keys)]
        return sorted(both, key=operator.itemgetter(0), reverse=newest_first)[:limit]
