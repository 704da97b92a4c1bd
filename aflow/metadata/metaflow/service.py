"""aflow's metadata together with a metadata service of Metaflow's, which cannot store journals.

The runs are stored in a file, or in the object store where jobs record them, and are also
registered with the service, so that its clients and user interfaces show them. A batch is committed
before it is registered: if the program crashes in between, a part of the run is not registered. The
results of tasks are copied to the datastore in Metaflow's format when they finish, since its client
reads values, logs and cards from the datastore itself.
"""

from __future__ import annotations

import http.client
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from aflow._core import ids
from aflow.errors import MetadataUnavailable, NotFound, StorageError
from aflow.metadata.base import AttemptRecord, Batch, LeaseState, RunRecord, TaskRecord
from aflow.metadata.http import TIMEOUT, ServiceClient
from aflow.metadata.metaflow import records
from aflow.metadata.metaflow.copies import Copies
from aflow.metadata.object_store import StoreMetadata
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import TERMINAL_ATTEMPT_STATES, AttemptState

if TYPE_CHECKING:
    from pathlib import Path

    from aflow.storage.base import ObjectStore

_log = logging.getLogger(__name__)
T = TypeVar("T")
_AT_ONCE = 8  # concurrent requests
_NEWEST = 500  # runs that are searched for a mark
_BEAT = 2.0  # timeout of a heartbeat in seconds: it delays the next renewal of the lease


OWN = "AFLOW_METADATA"
"""The response header of aflow's own service, which stores all records of aflow."""


class _Run(NamedTuple):
    """A registered run. `name` is its name in the service, `steps` are its registered steps,
    `tasks` the step of each known task, and `names` the names of tasks in the service, as far as
    known."""

    key: int
    flow: str
    name: str
    registered_by: dict[str, Any]
    steps: set[str]
    tasks: dict[int, str]
    names: dict[int, str]
    record: RunRecord

    @property
    def path(self) -> str:
        return f"/flows/{self.flow}/runs/{self.name}"

    def where(self, task: int) -> dict[str, Any]:
        """Return the fields of a row that identify the step of a task."""
        user = self.registered_by["user_name"]
        place = {"flow_id": self.flow, "run_number": self.name, "step_name": self.tasks[task]}
        return {**place, "user_name": user}


class Registry(ServiceClient):
    """The client of a metadata service of Metaflow's. Retries like any `ServiceClient`."""

    not_there = "what this would belong to is not registered"

    def is_one(self) -> bool:
        """Return whether a metadata service of Metaflow's, rather than aflow's, responds."""
        try:
            response, _ = self._exchange("GET", "/ping")
        except (OSError, http.client.HTTPException):
            return False  # the caller retries, and reports the error
        return "METADATA_SERVICE_VERSION" in response.headers and OWN not in response.headers

    def register(
        self, path: str, body: dict[str, Any] | list[dict[str, Any]], method: str = "POST"
    ) -> dict[str, Any]:
        """Send an object, or a list of objects, to the service, with the current time. Idempotent.

        Args:
            path: The path below the URL of the service, beginning with a slash.
            body: The object, or the list of objects, as JSON values.
            method: The HTTP method; only `POST` adds the current time to an object.

        Returns:
            The object in the response; empty if the response is not an object, or the object exists
            already.

        Raises:
            MetadataUnavailable: If the service does not respond in time, or rejects the request.
        """
        # Metaflow's clients send the time as well, and a service may store the body unchanged.
        at = {"ts_epoch": round(self._clock.now() * 1000)}
        if isinstance(body, list):
            body = [{**at, **each} for each in body]
        elif method == "POST":
            body = {**at, **body}
        return self.patiently(lambda _: self._request(method, path, body))[0]

    def name_of_run(self, flow: str, run: str) -> str:
        """Return the name of a run in the service: the one that aflow chose or, if the service
        numbers runs itself, that of the recent run with its mark.

        Args:
            flow: The flow's name, the first part of a pathspec.
            run: The run's id in aflow.

        Raises:
            MetadataUnavailable: If the service does not respond in time, or rejects the request.
        """
        path, wanted = f"/flows/{flow}/runs", records.run_name(run)
        if self._get(f"{path}/{wanted}")[1] is not None:
            return wanted
        mark = records.mark_of(run)
        for row in self._get(f"{path}?_limit={_NEWEST}")[1] or ():
            if mark in (row.get("system_tags") or ()):
                return str(row["run_number"])
        return wanted

    def name_of_task(self, step: str, task: int) -> str:
        """Return the name of a task in a service that numbers tasks itself.

        Args:
            step: The path of the step, below the URL of the service.
            task: The task's number in aflow.

        Raises:
            MetadataUnavailable: If the service does not respond in time, or rejects the request.
        """
        asked = f"metadata_field_name={records.TASK_MARK}&pattern=%5E{task}%24"
        found = self._get(f"{step}/filtered_tasks?{asked}")[1] or ()
        return next((str(each).rpartition("/")[2] for each in found), records.task_name(task))

    def beat(self, path: str) -> None:
        """Send a heartbeat. Failures are ignored: the next heartbeat follows soon.

        Args:
            path: The path of the heartbeat of a run or task, below the URL of the service.
        """
        try:
            self._request("POST", path, {}, _BEAT)
        except (OSError, http.client.HTTPException, MetadataUnavailable):
            pass  # not retried: the caller has no time to wait

    def _request(
        self, method: str, path: str, body: object, seconds: float = TIMEOUT
    ) -> dict[str, Any]:
        response, content = self._exchange(method, path, json.dumps(body).encode(), seconds)
        if response.status == 409:
            return {}
        if response.status >= 300:
            self._turned_down(response, content)
        try:
            answer = json.loads(content)
        except ValueError:
            return {}
        return answer if isinstance(answer, dict) else {}


class _Registering(SqliteMetadata):
    """A store whose runs are registered. If the service is not `_needed`, its failure is logged,
    and runs continue without it. `_open_store` opens the object store of a run for copies, or
    returns None to make none."""

    _registry: Registry
    _needed = True
    _open_store: Callable[[str], ObjectStore | None] | None = None

    def _begin(self, registry: Registry) -> None:
        self._registry = registry
        self._registrars = ThreadPoolExecutor(_AT_ONCE, "registering")
        self._runs: dict[int, _Run] = {}
        self._copies: dict[str, Copies | None] = {}
        self._is_away = False

    def _send(
        self, path: str, body: dict[str, Any] | list[dict[str, Any]], method: str = "POST"
    ) -> dict[str, Any]:
        return self._asked(lambda: self._registry.register(path, body, method)) or {}

    def _asked(self, call: Callable[[], T]) -> T | None:
        """Return the result of the call; None if the service has failed, and is not needed."""
        if self._is_away:
            return None
        try:
            return call()
        except MetadataUnavailable as error:
            if self._needed:
                raise
            self._is_away = True
            _log.warning("The run is no longer registered: %s", error)
            return None

    def _names_there(self, run: RunRecord, task: int) -> tuple[str, str]:
        """Return the names of the run and of one of its tasks in the service."""
        known = self._runs.get(run.key)
        if known is None:
            return records.run_name(run.run), records.task_name(task)
        return known.name, self._task_name(known, task)

    def _task_name(self, run: _Run, task: int) -> str:
        wanted = records.task_name(task)
        if task not in run.names and run.name == records.run_name(run.record.run):
            run.names[task] = wanted  # the service keeps the names that clients choose
        if task not in run.names:  # another process has registered it
            step = f"{run.path}/steps/{run.tasks[task]}"
            found = self._asked(lambda: self._registry.name_of_task(step, task))
            run.names[task] = found or wanted
        return run.names[task]

    def _copies_of(self, run: RunRecord) -> Copies | None:
        url = str(run.settings.get("storage") or "")
        if url not in self._copies:
            store = None if self._open_store is None else self._open_store(url)
            self._copies[url] = None if store is None else Copies(store, self, self._names_there)
        return self._copies[url]

    def create_run(
        self, run: RunRecord, parameters: bytes, holder: str = "", seconds: float = 0.0
    ) -> RunRecord:
        """Record a new run, and register it; see `Journal`."""
        made = super().create_run(run, parameters, holder, seconds)
        # Spun steps are not shown to others, and imported runs are registered already.
        if not made.kind and "imported_from" not in made.settings:
            self._send(f"/flows/{made.flow}", _registered(made).registered_by)
            answer = self._send(f"/flows/{made.flow}/run", records.run_body(made))
            name = _name_in(answer, records.run_name(made.run), "run_number", "run_id")
            registered = self._runs[made.key] = _registered(made, name)
            task = TaskRecord(ids.PARAMETERS_TASK, ids.PARAMETERS_STEP, made.created_at)
            ended = AttemptRecord(task.task, 0, AttemptState.SUCCEEDED, manifest=parameters)
            self._register(registered, Batch(tasks=[task], attempts=[ended]))
            self._registry.beat(f"{registered.path}/heartbeat")
        return made

    def commit(self, run_key: int, version: int, batch: Batch, mark: str = "") -> int:
        """Write the batch, and register its records; see `Journal`."""
        written = super().commit(run_key, version, batch, mark)
        run = self._known(run_key)
        if run is not None:
            self._register(run, batch)
        return written

    def acquire_lease(self, run_key: int, holder: str, seconds: float, at: float) -> LeaseState:
        """Acquire or renew the lease of a run, and send a heartbeat; see `Leases`."""
        held = super().acquire_lease(run_key, holder, seconds, at)
        run = self._known(run_key) if held.mine else None
        if run is not None:
            self._registry.beat(f"{run.path}/heartbeat")
        return held

    def change_tags(
        self, run_key: int, add: Sequence[str], remove: Sequence[str]
    ) -> tuple[str, ...]:
        """Remove and then add user tags, here and in the service; see `Records`."""
        tags = super().change_tags(run_key, add, remove)
        run = self._known(run_key)
        if run is not None:
            changes = {
                "tags_to_add": [*map(records.plain, add)],
                "tags_to_remove": [*map(records.plain, remove)],
            }
            self._send(f"{run.path}/tag/mutate", changes, "PATCH")
        return tags

    def _known(self, run_key: int) -> _Run | None:
        """Return the run; None if it is not registered."""
        if run_key not in self._runs:
            found = self._of_key(run_key)
            if found.kind or "imported_from" in found.settings:
                return None
            name = self._asked(lambda: self._registry.name_of_run(found.flow, found.run))
            self._runs[run_key] = _registered(found, name or "")
        return self._runs[run_key]

    def _of_key(self, run_key: int) -> RunRecord:
        for flow, run in self._all("name_of_run", run_key=run_key):
            found = self.run(flow, run)
            if found is not None:
                return found
        raise NotFound("The run that was to be registered no longer exists.")

    def _register(self, run: _Run, batch: Batch) -> None:
        """Register steps, and then tasks concurrently, each with its metadata."""
        for step in sorted({task.step for task in batch.tasks} - run.steps):
            self._send(f"{run.path}/steps/{step}/step", run.registered_by)
            run.steps.add(step)
        run.tasks.update((task.task, task.step) for task in batch.tasks)
        ended: dict[int, list[AttemptRecord]] = defaultdict(list)
        more: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for attempt in batch.attempts:
            ended[attempt.task].append(attempt)
        for each in batch.metadata:
            more[each.task].append(records.fact(each.attempt, each.field, each.value, each.type))
        new = {task.task for task in batch.tasks}
        jobs = [
            self._registrars.submit(
                self._register_task, run, task, task in new, ended[task], more[task]
            )
            for task in sorted(new | ended.keys() | more.keys())
        ]
        for job in jobs:
            job.result()

    def _register_task(
        self,
        run: _Run,
        task: int,
        is_new: bool,
        attempts: Sequence[AttemptRecord],
        more: Sequence[dict[str, Any]],
    ) -> None:
        if task not in run.tasks:  # it was started by a previous coordinator
            view = self.task(run.key, task)
            if view is None:
                return  # metadata of an unknown task are stored, but cannot be registered
            run.tasks[task] = view.task.step
        tasks = f"{run.path}/steps/{run.tasks[task]}/task"
        if is_new:
            wanted = records.task_name(task)
            answer = self._send(tasks, {"task_id": wanted, **run.registered_by})
            run.names[task] = _name_in(answer, wanted, "task_id", "task_name")
            if run.names[task] != wanted:
                more = [*more, records.fact(0, records.TASK_MARK, str(task), records.TASK_MARK)]
        path = f"{tasks}s/{self._task_name(run, task)}"
        facts = [fact for attempt in attempts for fact in records.facts_of(attempt)]
        left: list[dict[str, Any]] = []
        for attempt in attempts:
            metadata, readable = self._copied(run, task, attempt)
            facts += metadata
            named = {each["name"] for each in readable}
            others = (each for each in records.artifacts_of(attempt) if each["name"] not in named)
            left += [*readable, *others]
        whole = {**run.where(task), "task_id": self._task_name(run, task)}
        if facts or more:
            self._send(f"{path}/metadata", [{**whole, **each} for each in (*facts, *more)])
        if left:
            self._send(f"{path}/artifact", [{**whole, **each} for each in left])

    def _copied(
        self, run: _Run, task: int, attempt: AttemptRecord
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Copy the results of a finished attempt in Metaflow's format; return the metadata that
        locate them, and the artifacts that Metaflow's client can read."""
        copies = self._copies_of(run.record)
        if copies is None or attempt.state not in TERMINAL_ATTEMPT_STATES:
            return [], []
        view = self.task(run.key, task, attempt.attempt)
        if view is None:
            return [], []
        around = dict(records.surroundings(run.record, view))
        around |= {"ds-type": copies.kind, "ds-root": copies.root}
        if "origin-task-id" in around:
            origin = around["origin-run-id"], int(around["origin-task-id"])
            names = self._origin_names(run, view.task.step, *origin)
            around["origin-run-id"], around["origin-task-id"] = names
        try:
            left = copies.artifacts(run.record, view)
            copies.write(run.record, view, left)
            copies.write_logs(run.record, view)
            copies.write_cards(run.record, view)
        except StorageError as error:
            _log.warning("%s/%s: no copies for Metaflow: %s", run.path, task, error)
            left = []
        metadata = [
            records.fact(attempt.attempt, name, each, name) for name, each in around.items()
        ]
        return metadata, records.copies_metadata(attempt, copies, left)

    def _origin_names(self, run: _Run, step: str, origin: str, task: int) -> tuple[str, str]:
        """Return the names in the service of the run and task whose result a task reuses."""
        found = self.run(run.flow, origin)
        known = None if found is None else self._known(found.key)
        if known is None:
            return records.run_name(origin), records.task_name(task)
        known.tasks.setdefault(task, step)
        return known.name, self._task_name(known, task)

    def close(self) -> None:
        """Close file, threads and connections. Idempotent."""
        self._registrars.shutdown()
        self._registry.close()
        super().close()


class RegisteringMetadata(_Registering):
    """The metadata store in a file, whose runs are registered with a service of Metaflow's."""

    def __init__(
        self,
        path: Path | str,
        durability: str,
        read_only: bool,
        registry: Registry,
        open_store: Callable[[str], ObjectStore | None] | None = None,
    ) -> None:
        super().__init__(path, durability, read_only)
        self._open_store = open_store
        self._begin(registry)


class RegisteringStoreMetadata(_Registering, StoreMetadata):
    """The metadata store in an object store; its runs are registered with Metaflow's service."""

    _needed = False

    def __init__(self, store: ObjectStore, registry: Registry) -> None:
        StoreMetadata.__init__(self, store)
        self._open_store = lambda url: store if url == store.url else None
        self._begin(registry)

    @property
    def address(self) -> str:
        """The URL that opens the metadata in another process."""
        return f"{super().address}#{self._registry.url}"


def _registered(run: RunRecord, name: str = "") -> _Run:
    registered_by = {"user_name": records.plain(run.user), "tags": [], "system_tags": []}
    return _Run(
        key=run.key,
        flow=run.flow,
        name=name or records.run_name(run.run),
        registered_by=registered_by,
        steps=set(),
        tasks={},
        names={},
        record=run,
    )


def _name_in(answer: Mapping[str, Any], wanted: str, *keys: str) -> str:
    """Return the name that the service has given an object. Most services accept the one in the
    request; some number all objects themselves."""
    names = [str(answer[key]) for key in keys if answer.get(key) is not None]
    return wanted if not names or wanted in names else names[0]
