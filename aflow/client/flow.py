"""The list of all flows, and a flow with its runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aflow._core import ids
from aflow.client.base import (
    ClientObject,
    checked_limit,
    checked_tags,
    local_time,
    seconds,
    shown_in_notebook,
    statuses,
)
from aflow.client.missing import checked, missing_flow, not_in_namespace
from aflow.client.run import Run
from aflow.client.source import RunSource
from aflow.client.where import get_namespace, listed_kind, place
from aflow.errors import InvalidInput
from aflow.scheduler.states import RunState

if TYPE_CHECKING:
    from aflow.metadata.base import RunRecord

_PAGE = 500  # runs per query


class Metaflow:
    """All flows that have run, newest first: iterate over it, or get one by its name."""

    @property
    def flows(self) -> list[Flow]:
        """The flows with a run in the current namespace."""
        return list(self)

    def __iter__(self) -> Iterator[Flow]:
        here = place()
        if not here.has_begun:
            return
        for name, created_at in here.metadata.flows():
            flow = Flow._blank(ids.Pathspec(ids.flow_name(name)), here)
            flow._created_at = created_at
            if flow.is_in_namespace():
                yield flow

    def __getitem__(self, name: str) -> Flow:
        checked("flow", ids.flow_name, name)
        return Flow(name)

    def __contains__(self, name: object) -> bool:
        return any(name == flow.id for flow in self)

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook displays."""
        return shown_in_notebook(self)

    def __repr__(self) -> str:
        return "Metaflow()"


class Flow(ClientObject):
    """A flow that has run: `Flow("MyFlow")`. Its parts are the runs in the current namespace."""

    _depth = 1
    _created_at: float

    def _find(self) -> None:
        found = dict(self._place.metadata.flows()).get(self._spec.flow)
        if found is None:  # a service that does not list flows may still have runs of this one
            runs = self._place.metadata.runs(self._spec.flow)
            if not runs:
                raise missing_flow(self._place, self._spec.flow)
            found = runs[-1].created_at
        self._created_at = found

    def _check_namespace(self) -> None:
        if not self.is_in_namespace():
            latest = self._place.metadata.runs(self._spec.flow, limit=1, kind=listed_kind())
            tags = latest[0].system_tags if latest else ()
            raise not_in_namespace(repr(self), get_namespace(), tags)

    def is_in_namespace(self) -> bool:
        """Return whether a run of the flow is in the current namespace."""
        namespace = get_namespace()
        return namespace is None or bool(
            self._place.metadata.runs(
                self._spec.flow, tags=[namespace], limit=1, kind=listed_kind()
            )
        )

    @property
    def created_at(self) -> datetime:
        """When the first run of the flow started."""
        return local_time(self._created_at)

    @property
    def latest_run(self) -> Run | None:
        """The newest run in the namespace; None if there is none."""
        return next(self.runs(limit=1), None)

    @property
    def latest_successful_run(self) -> Run | None:
        """The newest run in the namespace that succeeded; None if there is none."""
        return next(self.runs(status=RunState.SUCCEEDED, limit=1), None)

    def runs(
        self,
        *tags: str,
        status: str | Iterable[str] | None = None,
        since: datetime | float | None = None,
        until: datetime | float | None = None,
        limit: int | None = None,
        after: Run | str | None = None,
    ) -> Iterator[Run]:
        """Return the runs in the namespace that have all `tags`, newest first, read lazily.

        Args:
            *tags: Tags that a run must have, all of them.
            status: One of pending, running, succeeded, failed and cancelled, or several of them;
                None for any.
            since: The earliest start of a run: a datetime (in local time if it has no zone), or
                seconds since the epoch; None for no limit.
            until: The time before which a run started, in the same form; None for no limit.
            limit: The maximum number of runs; None for all.
            after: The last run of the previous page, or its id; None for the first page.

        Raises:
            InvalidInput: If a tag, a status, a time or the limit is invalid.
            NotFound: If the run in `after` does not exist.
        """
        namespace = get_namespace()
        return self._in_pages(
            checked_limit(limit),
            None if after is None else self._record(after),
            tags=[*checked_tags(tags), *([] if namespace is None else [namespace])],
            states=statuses(RunState, status, "a run"),
            since=seconds("since", since),
            until=seconds("until", until),
            kind=listed_kind(),
        )

    def _record(self, run: Run | str) -> RunRecord:
        found = run if isinstance(run, Run) else self[run]
        if found.path_components[0] != self.id:
            raise InvalidInput(f"after={found!r} is not a run of {self!r}.")
        return found._source.record

    def _in_pages(self, limit: int | None, last: RunRecord | None, **which: Any) -> Iterator[Run]:
        size = _PAGE
        while limit is None or limit > 0:
            size = size if limit is None else min(size, limit)
            after = None if last is None else (last.created_at, last.key)
            page = self._place.metadata.runs(self._spec.flow, limit=size, after=after, **which)
            for record in page:
                yield Run._of(RunSource(self._place, record))
            if len(page) < size:
                return
            last = page[-1]
            limit = None if limit is None else limit - size

    def __iter__(self) -> Iterator[Run]:
        """Iterate over the runs in the namespace, newest first."""
        return self.runs()

    def _part(self, name: str) -> Any:
        checked("run", ids.run_id, name)
        return Run(f"{self.pathspec}/{name}", _place=self._place)
