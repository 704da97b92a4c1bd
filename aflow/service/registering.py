"""aflow's metadata beside a service of Metaflow's own, which knows no journals.

The runs are kept in a file, as always, and registered: the service, whoever asks it, and what shows
its database tell of them. What is registered is what has been committed before. A program that dies
between the two leaves a run of which some is not registered.
"""

from __future__ import annotations

import http.client
import json
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow import ids
from aflow.errors import MetadataUnavailable, NotFound
from aflow.metadata.base import AttemptRecord, Batch, Hold, RunRecord, TaskRecord
from aflow.metadata.calling import Caller
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import AttemptState
from aflow.service import facts

if TYPE_CHECKING:
    from pathlib import Path

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


class RegisteringMetadata(SqliteMetadata):
    """The metadata store of one file, whose runs are registered in a service of Metaflow's."""

    def __init__(self, path: Path | str, durability: str, read_only: bool, registry: Registry):
        super().__init__(path, durability, read_only)
        self._registry = registry
        self._threads = ThreadPoolExecutor(_AT_ONCE, "registering")
        self._runs: dict[int, _Run] = {}

    def create_run(
        self, run: RunRecord, parameters: bytes, owner: str = "", seconds: float = 0.0
    ) -> RunRecord:
        """Record a new run, and register it; see the port."""
        made = super().create_run(run, parameters, owner, seconds)
        if not made.kind:  # a step that is spun is nobody else's concern
            registered = self._runs[made.key] = _registered(made)
            self._registry.register(f"/flows/{made.flow}", registered.who)
            self._registry.register(f"/flows/{made.flow}/run", facts.run_body(made))
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
                "tags_to_add": [*map(facts.plain, add)],
                "tags_to_remove": [*map(facts.plain, remove)],
            }
            self._registry.register(f"{run.path}/tag/mutate", changes, "PATCH")
        return tags

    def _known(self, run_key: int) -> _Run | None:
        """The run, if it is one that is registered."""
        if run_key not in self._runs:
            found = self._of_key(run_key)
            if found.kind:
                return None
            self._runs[run_key] = _registered(found)
        return self._runs[run_key]

    def _of_key(self, run_key: int) -> RunRecord:
        for (flow,) in self._all("flow_of_run", run_key=run_key):
            for kind in ("", "spin"):
                for run in self.runs(flow, kind=kind):
                    if run.key == run_key:
                        return run
        raise NotFound("The run that was to be registered is not there any more.")

    def _register(self, run: _Run, batch: Batch) -> None:
        """Steps first, then tasks, side by side, each with what is said of it."""
        for step in sorted({task.step for task in batch.tasks} - run.steps):
            self._registry.register(f"{run.path}/steps/{step}/step", run.who)
            run.steps.add(step)
        run.tasks.update((task.task, task.step) for task in batch.tasks)
        said: dict[int, list[AttemptRecord]] = defaultdict(list)
        more: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for attempt in batch.attempts:
            said[attempt.task].append(attempt)
        for each in batch.metadata:
            more[each.task].append(facts.fact(each.attempt, each.field, each.value, each.type))
        new = {task.task for task in batch.tasks}
        jobs = [
            self._threads.submit(
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
            self._registry.register(tasks, {"task_id": facts.task_name(task), **run.who})
        path = f"{tasks}s/{facts.task_name(task)}"
        said = [fact for attempt in attempts for fact in facts.facts_of(attempt)]
        left = [each for attempt in attempts for each in facts.artifacts_of(attempt)]
        if said or more:
            self._registry.register(f"{path}/metadata", [*said, *more])
        if left:
            self._registry.register(f"{path}/artifact", left)

    def close(self) -> None:
        """Let go of file, threads and connections. May be called twice."""
        self._threads.shutdown()
        self._registry.close()
        super().close()


def _registered(run: RunRecord) -> _Run:
    who = {"user_name": facts.plain(run.user), "tags": [], "system_tags": []}
    return _Run(run.key, run.flow, facts.run_name(run.run), who, set(), {})
