"""aflow's metadata beside a service of Metaflow's own, which knows no journals.

The runs are kept in a file, as always, or in the object store, where jobs record them, and are
registered: the service, its clients, and what shows its database tell of them. What is registered
is what has been committed before. A program that dies between the two leaves a run of which some is
not registered. What tasks leave is copied in Metaflow's format as they end, since its client reads
values, logs and cards from the datastore itself.
"""

from __future__ import annotations

import http.client
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core import ids
from aflow.errors import MetadataUnavailable, NotFound, StorageError
from aflow.interop import records
from aflow.interop.copies import Copies
from aflow.metadata.base import AttemptRecord, Batch, Hold, RunRecord, TaskRecord
from aflow.metadata.http import Caller
from aflow.metadata.object_store import StoreMetadata
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import TERMINAL_ATTEMPT_STATES, AttemptState

if TYPE_CHECKING:
    from pathlib import Path

    from aflow.storage.base import ObjectStore

_log = logging.getLogger(__name__)
_AT_ONCE = 8  # requests


OWN = "AFLOW_METADATA"
"""The header with which aflow's service says that it keeps all that aflow records."""


class _Run(NamedTuple):
    """A run that is registered. `steps` of it are, too; of `tasks` the step is known."""

    key: int
    flow: str
    name: str
    who: dict[str, Any]
    steps: set[str]
    tasks: dict[int, str]
    record: RunRecord

    @property
    def path(self) -> str:
        return f"/flows/{self.flow}/runs/{self.name}"


class Registry(Caller):
    """A service of Metaflow's own. Waits for one that is away, as any caller does."""

    not_there = "what this would belong to is not registered"

    def is_one(self) -> bool:
        """Whether such a service is there, and not one of aflow's."""
        try:
            response, _ = self._ask("GET", "/ping", b"")
        except (OSError, http.client.HTTPException):
            return False  # whoever calls it waits for it, and says what is wrong
        return "METADATA_SERVICE_VERSION" in response.headers and OWN not in response.headers

    def register(self, path: str, body: object, method: str = "POST") -> None:
        """Say something; fine if it was said before. Raises MetadataUnavailable."""
        self.patiently(lambda _: self._say(method, path, body))

    def beat(self, path: str) -> None:
        """Say that something is alive."""
        try:
            self._say("POST", path, {})
        except (OSError, http.client.HTTPException, MetadataUnavailable):
            pass  # the next one tells; who beats has no time to wait

    def _say(self, method: str, path: str, body: object) -> None:
        response, said = self._ask(method, path, json.dumps(body).encode())
        if response.status >= 300 and response.status != 409:
            self._turned_down(response, said)

    def _ask(self, method: str, path: str, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self._connection()
        usable = False
        try:
            headers = {**self._headers, "Content-Type": "application/json"}
            connection.request(method, self._path + path, body, headers)
            response = connection.getresponse()
            said = response.read()
            usable = not response.will_close
        finally:
            self._give_back(connection, usable)
        return response, said


class _Registering(SqliteMetadata):
    """A store whose runs are registered. Where that is not `_needed`, a service that is away is
    logged, and keeps no run from going on. `_open_store` opens the object store of a run, for
    copies; None where none are to be made."""

    _registry: Registry
    _needed = True
    _open_store: Callable[[str], ObjectStore | None] | None = None

    def _begin(self, registry: Registry) -> None:
        self._registry = registry
        self._registrars = ThreadPoolExecutor(_AT_ONCE, "registering")
        self._runs: dict[int, _Run] = {}
        self._copies: dict[str, Copies | None] = {}
        self._is_away = False

    def _tell(self, path: str, body: object, method: str = "POST") -> None:
        if self._is_away:
            return
        try:
            self._registry.register(path, body, method)
        except MetadataUnavailable as error:
            if self._needed:
                raise
            self._is_away = True
            _log.warning("The run is not registered any more: %s", error)

    def _copies_of(self, run: RunRecord) -> Copies | None:
        url = str(run.settings.get("storage") or "")
        if url not in self._copies:
            store = None if self._open_store is None else self._open_store(url)
            names = records.run_name, records.task_name
            self._copies[url] = None if store is None else Copies(store, self, *names)
        return self._copies[url]

    def create_run(
        self, run: RunRecord, parameters: bytes, owner: str = "", seconds: float = 0.0
    ) -> RunRecord:
        """Record a new run, and register it; see the port."""
        made = super().create_run(run, parameters, owner, seconds)
        # A step that is spun is nobody else's concern, and what was Metaflow's is registered.
        if not made.kind and "imported_from" not in made.settings:
            registered = self._runs[made.key] = _registered(made)
            self._tell(f"/flows/{made.flow}", registered.who)
            self._tell(f"/flows/{made.flow}/run", records.run_body(made))
            task = TaskRecord(ids.PARAMETERS_TASK, ids.PARAMETERS_STEP, made.created_at)
            ended = AttemptRecord(task.task, 0, AttemptState.SUCCEEDED, manifest=parameters)
            self._register(registered, Batch(tasks=[task], attempts=[ended]))
            self._registry.beat(f"{registered.path}/heartbeat")
        return made

    def commit(self, run_key: int, version: int, batch: Batch, mark: str = "") -> int:
        """Write the batch, and register what is in it; see the port."""
        written = super().commit(run_key, version, batch, mark)
        run = self._known(run_key)
        if run is not None:
            self._register(run, batch)
        return written

    def hold(self, run_key: int, owner: str, seconds: float, at: float) -> Hold:
        """Become, or stay, the run's owner, and tell of it; see the port."""
        held = super().hold(run_key, owner, seconds, at)
        run = self._known(run_key) if held.mine else None
        if run is not None:
            self._registry.beat(f"{run.path}/heartbeat")
        return held

    def change_tags(
        self, run_key: int, add: Sequence[str], remove: Sequence[str]
    ) -> tuple[str, ...]:
        """Remove, then add user tags, here and there; see the port."""
        tags = super().change_tags(run_key, add, remove)
        run = self._known(run_key)
        if run is not None:
            changes = {
                "tags_to_add": [*map(records.plain, add)],
                "tags_to_remove": [*map(records.plain, remove)],
            }
            self._tell(f"{run.path}/tag/mutate", changes, "PATCH")
        return tags

    def _known(self, run_key: int) -> _Run | None:
        """The run, if it is one that is registered."""
        if run_key not in self._runs:
            found = self._of_key(run_key)
            if found.kind or "imported_from" in found.settings:
                return None
            self._runs[run_key] = _registered(found)
        return self._runs[run_key]

    def _of_key(self, run_key: int) -> RunRecord:
        for (flow,) in self._all("flow_of_run", run_key=run_key):
            for kind in ("", "spin"):
                for run in self.runs(flow, kind=kind):
                    if run.key == run_key:
                        return self.run(run.flow, run.run) or run
        raise NotFound("The run that was to be registered is not there any more.")

    def _register(self, run: _Run, batch: Batch) -> None:
        """Steps first, then tasks, side by side, each with what is said of it."""
        for step in sorted({task.step for task in batch.tasks} - run.steps):
            self._tell(f"{run.path}/steps/{step}/step", run.who)
            run.steps.add(step)
        run.tasks.update((task.task, task.step) for task in batch.tasks)
        said: dict[int, list[AttemptRecord]] = defaultdict(list)
        more: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for attempt in batch.attempts:
            said[attempt.task].append(attempt)
        for each in batch.metadata:
            more[each.task].append(records.fact(each.attempt, each.field, each.value, each.type))
        new = {task.task for task in batch.tasks}
        jobs = [
            self._registrars.submit(
                self._register_task, run, task, task in new, said[task], more[task]
            )
            for task in sorted(new | said.keys() | more.keys())
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
        if task not in run.tasks:  # it began before somebody else drove the run
            view = self.task(run.key, task)
            if view is None:
                return  # facts of nothing: they are kept, and there is nowhere to register them
            run.tasks[task] = view.task.step
        tasks = f"{run.path}/steps/{run.tasks[task]}/task"
        if is_new:
            self._tell(tasks, {"task_id": records.task_name(task), **run.who})
        path = f"{tasks}s/{records.task_name(task)}"
        said = [fact for attempt in attempts for fact in records.facts_of(attempt)]
        left: list[dict[str, Any]] = []
        for attempt in attempts:
            told, readable = self._copied(run, task, attempt)
            said += told
            named = {each["name"] for each in readable}
            others = (each for each in records.artifacts_of(attempt) if each["name"] not in named)
            left += [*readable, *others]
        if said or more:
            self._tell(f"{path}/metadata", [*said, *more])
        if left:
            self._tell(f"{path}/artifact", left)

    def _copied(
        self, run: _Run, task: int, attempt: AttemptRecord
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Write what an attempt that has ended has left in Metaflow's format; what is said of
        where it is, and the artifacts that can be read there."""
        copies = self._copies_of(run.record)
        if copies is None or attempt.state not in TERMINAL_ATTEMPT_STATES:
            return [], []
        view = self.task(run.key, task, attempt.attempt)
        if view is None:
            return [], []
        around = dict(records.surroundings(run.record, view))
        around |= {"ds-type": copies.kind, "ds-root": copies.root}
        if "origin-task-id" in around:
            around["origin-run-id"] = records.run_name(around["origin-run-id"])
            around["origin-task-id"] = records.task_name(int(around["origin-task-id"]))
        try:
            left = copies.artifacts(run.record, view)
            copies.write(run.record, view, left)
            copies.write_logs(run.record, view)
            copies.write_cards(run.record, view)
        except StorageError as error:
            _log.warning("%s/%s: no copies for Metaflow: %s", run.path, task, error)
            left = []
        told = [records.fact(attempt.attempt, name, each, name) for name, each in around.items()]
        return told, records.copies_told(attempt, copies, left)

    def close(self) -> None:
        """Let go of file, threads and connections. May be called twice."""
        self._registrars.shutdown()
        self._registry.close()
        super().close()


class RegisteringMetadata(_Registering):
    """The metadata store of one file, whose runs are registered in a service of Metaflow's."""

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
    """Metadata in an object store, whose runs are registered in a service of Metaflow's."""

    _needed = False

    def __init__(self, store: ObjectStore, registry: Registry) -> None:
        StoreMetadata.__init__(self, store)
        self._open_store = lambda url: store if url == store.url else None
        self._begin(registry)

    @property
    def address(self) -> str:
        """The URL that opens it in another process."""
        return f"{super().address}#{self._registry.url}"

    def _of_key(self, run_key: int) -> RunRecord:
        return StoreMetadata._of_key(self, run_key)


def _registered(run: RunRecord) -> _Run:
    who = {"user_name": records.plain(run.user), "tags": [], "system_tags": []}
    return _Run(run.key, run.flow, records.run_name(run.run), who, set(), {}, run)
