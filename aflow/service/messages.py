"""What goes in and out of the functions that answer requests. None of them knows HTTP's library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from aflow.service.database import Row, Session
from aflow.service.paging import Condition, Page

SPOKEN = "2.5.1"
"""The version of metaflow-service whose language this is: clients ask for it."""

CHUNK = 1000  # rows that are read at once for a list


class Asked(NamedTuple):
    """A request: the names in its path, checked; `now` in seconds since the epoch; `words` are
    those on which databases differ."""

    names: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    now: float
    words: Mapping[str, str]

    @property
    def flow(self) -> str:
        """The name of the flow."""
        return self.names["flow_id"]

    @property
    def run(self) -> str:
        """The number or name of the run."""
        return self.names["run_number"]

    @property
    def step(self) -> str:
        """The name of the step."""
        return self.names["step_name"]

    @property
    def task(self) -> str:
        """The number or name of the task."""
        return self.names["task_id"]

    @property
    def ts_epoch(self) -> int:
        """Now, in milliseconds."""
        return round(self.now * 1000)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said, as JSON."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Lister(Protocol):
    """Rows that are told one after the other, those of a page or all; a row begins with its key."""

    @property
    def page(self) -> Page | None:
        """The page that is asked for."""

    def first(self, session: Session) -> list[Row]:
        """The page; without one, the first rows."""

    def after(self, session: Session, key: Any) -> list[Row]:
        """The next rows, at most CHUNK; fewer say that these are the last."""

    @property
    def tell(self) -> Callable[[Row], Any]:
        """A row, for clients."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Rows that are told one after the other. The first column of `select` is `key`, by which they
    are ordered: the oldest first, or where a page is asked for, the newest."""

    select: str
    condition: Condition
    key: str
    tell: Callable[[Row], Any]
    page: Page | None

    def first(self, session: Session) -> list[Row]:
        """The page; without one, the first rows."""
        if self.page is None:
            return self.after(session, None)
        return self._rows(session, self.page.after, "<", "DESC", self.page.limit)

    def after(self, session: Session, key: Any) -> list[Row]:
        """The next rows, at most CHUNK; fewer say that these are the last."""
        return self._rows(session, key, ">", "ASC", CHUNK)

    def _rows(self, session: Session, key: Any, beyond: str, order: str, limit: int) -> list[Row]:
        condition = Condition([*self.condition.parts], [*self.condition.values])
        if key is not None:
            condition.add(f"{self.key} {beyond} ?", key)
        return session.rows(
            f"{self.select}{condition.sql} ORDER BY {self.key} {order} LIMIT {limit}",
            condition.values,
        )


def empty() -> Answer:
    """A list of nothing: what is told of a run or task that is not there."""
    return Answer([])
