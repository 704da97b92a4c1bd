"""aflow's own runs in the form of Metaflow's service, merged with the registered runs.

The tasks of a run are read lazily.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from aflow._core import ids
from aflow._core.clock import shown_time
from aflow._core.records import NamedTuple, dataclass
from aflow.errors import InvalidName, RegistrationRefused, StorageError
from aflow.metadata.metaflow import records
from aflow.metadata.metaflow.copies import Copies
from aflow.server.metaflow import checks
from aflow.server.metaflow.checks import is_found
from aflow.server.metaflow.messages import (
    CHUNK,
    Asked,
    JsonResponse,
    Listing,
    PageRequest,
    RunScope,
    TaskScope,
    compared_with,
    page_of,
)

if TYPE_CHECKING:
    from aflow.metadata.base import AttemptRecord, MetadataStore, RunRecord, TaskView
    from aflow.metadata.metaflow.copies import Copy
    from aflow.server.metaflow.database import Row, Transaction
    from aflow.storage.base import ObjectStore

# Rows of aflow's own records, ordered by key, alone or merged with registered rows.


PER_TASK = 10_000
"""The maximum number of rows of a task: the keys of task n start at n * PER_TASK."""


class Own(NamedTuple):
    """A row of aflow's own records; the first field is its key, as in rows of the database."""

    key: Any
    fields: Any


Rows = Callable[[Any, bool], Iterable[Own]]
"""Rows ordered by key: a function of a key (None: all rows) and of whether the newest come first,
which yields rows starting near the key, also some on its wrong side."""


def few_rows(rows: Iterable[Own]) -> Rows:
    """Return rows that are all in memory.

    Args:
        rows: The rows, in any order.
    """
    ordered = sorted(rows, key=operator.attrgetter("key"))
    return lambda _, newest_first: reversed(ordered) if newest_first else ordered


def task_rows(
    store: MetadataStore,
    run: RunRecord,
    step: str | None,
    fields_of: Callable[[TaskView], list[Any]],
    passes: Callable[[Any], bool],
    light: bool = True,
) -> Rows:
    """Return the rows of the tasks of a run, which are read lazily.

    Args:
        store: The metadata store of the run.
        run: The run.
        step: The name of the step; None for all steps.
        fields_of: Returns the fields of each row of a task: at most PER_TASK rows.
        passes: Whether a row with these fields matches the request.
        light: Whether to read tasks without manifests and logs.
    """

    def read(key: Any, newest_first: bool) -> Iterator[Own]:
        number = None if key is None else key // PER_TASK
        if newest_first:
            before = None if number is None else number + 1
            views = store.newest_tasks(run.key, step=step, before=before, light=light)
        else:
            after = None if number is None else number - 1
            views = store.tasks(run.key, step=step, after=after, light=light)
        for view in views:
            first = view.task.task * PER_TASK
            rows = [Own(first + place, fields) for place, fields in enumerate(fields_of(view))]
            yield from (each for each in rows[:: -1 if newest_first else 1] if passes(each.fields))

    return read


@dataclass(frozen=True, slots=True)
class Joined:
    """Own rows merged with those of a listing, if any. An own row replaces one with the same
    key."""

    rows: Rows
    page: PageRequest | None
    listing: Listing | None = None

    def first(self, session: Transaction) -> list[Any]:
        """Return the requested page, or else the first rows.

        Args:
            session: The transaction in which the listing is read.
        """
        if self.page is None:
            return self.after(session, None)
        others = [] if self.listing is None else self.listing.first(session)
        return self._merged(others, self.page.after, self.page.limit, newest_first=True)

    def after(self, session: Transaction, key: Any) -> list[Any]:
        """Return the rows after a key, at most CHUNK.

        Args:
            session: The transaction in which the listing is read.
            key: The key of the last row before; None for the first rows.
        """
        others = [] if self.listing is None else self.listing.after(session, key)
        return self._merged(others, key, CHUNK, newest_first=False)

    def render(self, row: Any) -> Any:
        """Return a row in the JSON form of Metaflow's service.

        Args:
            row: A row from `after` or `first`.
        """
        if isinstance(row, Own):
            return row.fields
        assert self.listing is not None, "all rows are ours"
        return self.listing.render(row)

    def _merged(self, others: list[Row], key: Any, limit: int, newest_first: bool) -> list[Any]:
        is_beyond = operator.lt if newest_first else operator.gt
        rows = self.rows(key, newest_first)
        found = (each for each in rows if key is None or is_beyond(each.key, key))
        own = list(islice(found, limit))
        keys = {each.key for each in own}
        both = [*own, *(row for row in others if row[0] not in keys)]
        return sorted(both, key=operator.itemgetter(0), reverse=newest_first)[:limit]


Lister = Listing | Joined
"""A list of rows that is read in chunks: all rows or a page. A row starts with its key."""


# aflow's records as rows of the service, and the filters on them.


_NAMES = {"user": "user_name", "run_id": "run_number"}  # filters named unlike their fields
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge, "co": operator.contains, "sw": str.startswith,
    "ew": str.endswith,
}  # fmt: skip


def status_of(run: RunRecord) -> str:
    """Return the status of a run in the terms of Metaflow's service.

    Args:
        run: The run; a cancelled one is reported as failed, since the service has no such status.
    """
    if run.finished_at is None:
        return "running"
    return "completed" if run.state.value == "succeeded" else "failed"


def flow_row(flow: str, at: float) -> dict[str, Any]:
    """Return a flow in the JSON form of Metaflow's service.

    Args:
        flow: The name of the flow.
        at: The time of the first run of the flow, in seconds since the epoch.
    """
    times = {"ts_epoch": _milliseconds(at)}
    return {"flow_id": flow, "user_name": None, **times, "tags": [], "system_tags": []}


def scope_of(run: RunRecord) -> RunScope:
    """Return a run as the scope that the service uses.

    Args:
        run: The run.
    """
    return RunScope(
        flow=run.flow,
        number=0,  # not used: the run has a name
        name=run.run,
        user=run.user,
        ts_epoch=_milliseconds(run.created_at),
        heartbeat=None if run.heartbeat_at is None else int(run.heartbeat_at),
        tags=list(run.tags),
        system_tags=list(run.system_tags),
    )


def task_row(run: RunRecord, view: TaskView) -> dict[str, Any]:
    """Return a task in the JSON form of Metaflow's service.

    Args:
        run: The run that the task belongs to.
        view: The task; its attempt is not used.
    """
    task, at = view.task, _milliseconds(view.task.created_at)
    scope = TaskScope(
        number=task.task, name=None, step=task.step, user=run.user, ts_epoch=at, heartbeat=None
    )
    return scope.row(scope_of(run))


def metadata_rows(
    run: RunRecord,
    view: TaskView,
    attempts: Iterable[AttemptRecord],
    more: Iterable[tuple[float, dict[str, Any]]],
    copies: Copies | None = None,
) -> list[dict[str, Any]]:
    """Return the metadata records of attempts of a task, in the JSON form of Metaflow's service,
    the oldest first.

    Args:
        run: The run that the task belongs to.
        view: The task.
        attempts: The attempts, oldest first.
        more: Additional records, each with its time in seconds since the epoch.
        copies: The copies for Metaflow's client, or None.
    """
    began = view.task.created_at
    around = dict(records.surroundings(run, view))
    if copies is not None:
        around |= {"ds-type": copies.kind, "ds-root": copies.root}
    facts: list[tuple[float, dict[str, Any]]] = []
    for attempt in attempts:
        begun = began if attempt.started_at is None else attempt.started_at
        facts += [
            (begun, records.fact(attempt.attempt, name, value, name))
            for name, value in around.items()
        ]
        at = attempt.finished_at or begun
        facts += [(at, each) for each in records.facts_of(attempt)]
    first = view.task.task * PER_TASK
    return [
        {**each, **_in_task(run, view), "ts_epoch": _milliseconds(at), "id": first + place}
        for place, (at, each) in enumerate([*facts, *more])
    ]


def artifact_rows(
    run: RunRecord, view: TaskView, copies: Copies | None = None, left: Iterable[Copy] = ()
) -> list[dict[str, Any]]:
    """Return the artifacts of an attempt in the JSON form of Metaflow's service. Metaflow's client
    can read only values that have copies.

    Args:
        run: The run that the task belongs to.
        view: The task with the attempt; the result is empty before the attempt has started.
        copies: The copies for Metaflow's client, or None.
        left: The copied artifacts of the attempt.
    """
    if view.attempt is None:
        return []
    at = _milliseconds(view.attempt.finished_at or view.task.created_at)
    readable = [] if copies is None else records.copies_metadata(view.attempt, copies, left)
    named = {each["name"] for each in readable}
    others = [each for each in records.artifacts_of(view.attempt) if each["name"] not in named]
    return [{**each, **_in_task(run, view), "ts_epoch": at} for each in (*readable, *others)]


def _in_task(run: RunRecord, view: TaskView) -> dict[str, Any]:
    named = scope_of(run).in_task(view.task.step, view.task.task)
    return {**named, "user_name": run.user}


def _milliseconds(seconds: float) -> int:
    return round(shown_time(seconds) * 1000)


def passes(query: Mapping[str, str], fields: dict[str, Any], status: str = "") -> bool:
    """Return whether a row matches the filters of a query. Raises RegistrationRefused.

    Args:
        query: The parameters of the URL.
        fields: The fields of the row, by name.
        status: The status of the run in the terms of the service; empty for rows without one.
    """
    for name, value in query.items():
        what, _, how = name.partition(":")
        if name in ("_limit", "_cursor"):
            continue
        if what == "_tags":
            tags = [tag for tag in value.split(",") if tag]
            has = [tag in fields["tags"] or tag in fields["system_tags"] for tag in tags]
            passed = not has or (any(has) if how == "any" else all(has))
        elif what == "status" and status:
            passed = (status == value) is (how != "ne")
        else:
            passed = _compared(fields, what, how or "eq", value)
        if not passed:
            return False
    return True


def _compared(fields: dict[str, Any], name: str, how: str, value: str) -> bool:
    name = _NAMES.get(name, name)
    if name not in fields:
        raise RegistrationRefused.of(400, f"there is nothing to filter by {name[:80]!r}")
    wanted, found = compared_with(name, how, value), fields[name]
    if isinstance(wanted, int):
        return found is not None and _COMPARED[how](found, wanted)
    return _COMPARED[how](str(found or ""), wanted)


_log = logging.getLogger("aflow.server.metaflow")
_FIRST_RUN = 1 << 60  # keys of own runs are above those of registered runs: they are listed first


class OwnRuns:
    """The runs in a metadata store of aflow, as a source of records for Metaflow's clients.

    `open_store` opens the object store of a run by its URL, or returns None if it must not be used:
    then Metaflow's clients cannot read the values of artifacts."""

    def __init__(
        self, store: MetadataStore, open_store: Callable[[str], ObjectStore | None] | None = None
    ) -> None:
        self._store = store
        self._open_store = open_store
        self._copies: dict[str, Copies | None] = {}

    def has_flow(self, flow: str) -> bool:
        """Return whether the flow has a run.

        Args:
            flow: The name of the flow.
        """
        return bool(self._store.runs(flow, limit=1))

    def _copies_of(self, run: RunRecord) -> Copies | None:
        """Return the copies of a run's artifacts in Metaflow's format; None if there can be
        none."""
        url = str(run.settings.get("storage") or "")
        if url not in self._copies:
            store = None if self._open_store is None else self._open_store(url)
            self._copies[url] = None if store is None else Copies(store, self._store)
        return self._copies[url]

    def joined(
        self, name: str, asked: Asked, answer: JsonResponse | Lister
    ) -> JsonResponse | Lister:
        """Return the response of a route, merged with the rows of this store.

        Args:
            name: The name of the route, such as `get_runs`.
            asked: The request.
            answer: The response with the registered rows.
        """
        if isinstance(answer, Listing) and name == "get_flows":
            rows = [Own(flow, flow_row(flow, at)) for flow, at in self._store.flows()]
            passing = [each for each in rows if passes(asked.query, each.fields)]
            return Joined(few_rows(passing), answer.page, answer) if passing else answer
        if isinstance(answer, Listing) and name == "get_runs":
            found = self._runs(asked, answer.page)
            return Joined(few_rows(found), answer.page, answer) if found else answer
        if isinstance(answer, JsonResponse) and answer.body == []:
            return self._list_of_run(name, asked) or answer
        return answer

    def one(self, name: str, asked: Asked) -> JsonResponse | None:
        """Return the response of a route for an object that is not registered; None if this store
        does not have it.

        Args:
            name: The name of the route, such as `get_run`.
            asked: The request.
        """
        if name == "get_flow":
            flows = dict(self._store.flows())
            if asked.flow in flows:
                return JsonResponse(flow_row(asked.flow, flows[asked.flow]))
            return None
        run = self._run(asked) if "run_number" in asked.names else None
        if run is None:
            return None
        if name == "get_run":
            return JsonResponse(scope_of(run).row())
        if name == "get_step":
            steps = self._steps(run)
            return JsonResponse(steps[asked.step]) if asked.step in steps else None
        if name == "change_tags":
            return self._change_tags(run, asked)
        view = self._task(run, asked) if name in ("get_task", "get_artifact") else None
        if view is None:
            return None
        if name == "get_task":
            return JsonResponse(task_row(run, view))
        artifacts = {each["name"]: each for each in self._artifacts(run, view, write=True)}
        artifact = asked.names["artifact_name"]
        return JsonResponse(artifacts[artifact]) if artifact in artifacts else None

    def _list_of_run(self, name: str, asked: Asked) -> Joined | None:
        run = self._run(asked)
        if run is None:
            return None
        if name == "get_steps":
            steps = self._steps(run)
            rows = few_rows(
                Own(step, fields) for step, fields in steps.items() if passes(asked.query, fields)
            )
            return Joined(rows, page_of(asked.query, str))
        if "task_id" in asked.names:
            view = self._task(run, asked)
            fields = [] if view is None else self._metadata_of_task(name, run, view)
            rows = few_rows(
                Own(key, each) for key, each in enumerate(fields) if passes(asked.query, each)
            )
        else:
            rows = self._rows_of_tasks(name, run, asked)
        return Joined(rows, page_of(asked.query))

    def _metadata_of_task(self, name: str, run: RunRecord, view: TaskView) -> list[Any]:
        if name == "get_artifacts":
            return self._artifacts(run, view, write=True)
        if name == "get_metadata":
            self._write_beside(run, view)
        attempts = self._store.attempts(run.key, view.task.task)
        more = [
            (each.created_at, records.fact(each.attempt, each.field, each.value, each.type))
            for each in self._store.metadata(run.key, view.task.task)
        ]
        return metadata_rows(run, view, attempts, more, self._copies_of(run))

    def _artifacts(self, run: RunRecord, view: TaskView, *, write: bool = False) -> list[Any]:
        """Return the artifacts of an attempt; with `write`, also write the copies to which they
        refer."""
        copies = self._copies_of(run)
        try:
            left = [] if copies is None else copies.artifacts(run, view)
            if copies is not None and write:
                copies.write(run, view, left)
        except StorageError as error:  # the store is unreachable: list the artifacts without copies
            _log.warning("%s/%s: no copies for Metaflow: %s", run.flow, run.run, error)
            return artifact_rows(run, view)
        return artifact_rows(run, view, copies, left)

    def _write_beside(self, run: RunRecord, view: TaskView) -> None:
        """Write the copies of the logs and cards of a task: a client that requests its metadata may
        read them next."""
        copies = self._copies_of(run)
        if copies is None:
            return
        try:
            copies.write_logs(run, view)
            copies.write_cards(run, view)
        except StorageError as error:
            _log.warning("%s/%s: no logs for Metaflow: %s", run.flow, run.run, error)

    def _rows_of_tasks(self, name: str, run: RunRecord, asked: Asked) -> Rows:
        step = asked.names.get("step_name")

        def passing(fields: Any) -> bool:
            return passes(asked.query, fields)

        if name == "get_tasks":
            return task_rows(self._store, run, step, lambda view: [task_row(run, view)], passing)
        if name == "get_filtered_tasks":
            filtered = self._filtered(run, asked)
            return task_rows(self._store, run, step, filtered, lambda _: True, light=False)
        if name == "get_metadata_of_run":

            def latest(view: TaskView) -> list[dict[str, Any]]:
                return metadata_rows(run, view, filter(None, [view.attempt]), ())

            return task_rows(self._store, run, None, latest, passing)
        return task_rows(
            self._store, run, step, lambda view: self._artifacts(run, view), passing, light=False
        )

    def _filtered(self, run: RunRecord, asked: Asked) -> Callable[[TaskView], list[Any]]:
        field = asked.query.get("metadata_field_name")
        pattern = checks.pattern(asked.query.get("pattern"))

        def of(view: TaskView) -> list[Any]:
            if field is not None or pattern is not None:
                facts = self._metadata_of_task("get_filtered_tasks", run, view)
                if not any(
                    field in (None, each["field_name"])
                    and (pattern is None or is_found(pattern, each["value"]))
                    for each in facts
                ):
                    return []
            return [f"{run.flow}/{run.run}/{view.task.step}/{view.task.task}"]

        return of

    def _runs(self, asked: Asked, page: PageRequest | None) -> list[Own]:
        """Return the runs of a flow that match the query, limited to a page if possible."""
        key = None if page is None else page.after
        if key is not None and key < _FIRST_RUN:
            return []
        until = None if key is None else (key - _FIRST_RUN) / 1e6
        limit = (
            None if page is None or len(asked.query.keys() - {"_limit", "_cursor"}) else page.limit
        )
        rows = (
            (Own(_FIRST_RUN + int(shown_time(run.created_at) * 1e6), scope_of(run).row()), run)
            for run in self._store.runs(asked.flow, until=until, limit=limit)
        )
        return [row for row, run in rows if passes(asked.query, row.fields, status_of(run))]

    def _run(self, asked: Asked) -> RunRecord | None:
        try:
            return self._store.run(asked.flow, ids.run_id(asked.run))
        except InvalidName:
            return None

    def _steps(self, run: RunRecord) -> dict[str, Any]:
        begun = {name: at for name, at, _ in self._store.steps(run.key)}
        scope = scope_of(run)
        return {
            name: scope.step_row(name, run.user, _milliseconds(at))
            for name, at in ({ids.PARAMETERS_STEP: run.created_at} | begun).items()
        }

    def _task(self, run: RunRecord, asked: Asked) -> TaskView | None:
        number = checks.number(asked.task)
        if number is None or number < 0:
            return None
        attempt = asked.names.get("attempt_id")
        view = self._store.task(run.key, number, None if attempt is None else int(attempt))
        return view if view is not None and view.task.step == asked.step else None

    def _change_tags(self, run: RunRecord, asked: Asked) -> JsonResponse:
        body = checks.parsed(asked.body, dict)
        add, remove = checks.tag_list(body, "tags_to_add"), checks.tag_list(body, "tags_to_remove")
        try:
            return JsonResponse({"tags": list(self._store.change_tags(run.key, add, remove))})
        except InvalidName as error:
            raise RegistrationRefused(422, str(error)) from error
