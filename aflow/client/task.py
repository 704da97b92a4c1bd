"""One execution of a step: what it left, what it printed, how it went."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, overload

from aflow import ids
from aflow.client import facts, lineage, logs
from aflow.client.artifact import DataArtifact, TaskData
from aflow.client.base import PartOfRun
from aflow.client.code import RunCode, code_of
from aflow.client.missing import (
    artifact_sentence,
    checked,
    missing_run,
    missing_task,
)
from aflow.client.source import RunSource
from aflow.client.times import local_time
from aflow.errors import InvalidInput
from aflow.scheduler.states import TERMINAL_ATTEMPT_STATES, AttemptState, TaskState
from aflow.storage.manifest import Manifest

if TYPE_CHECKING:
    from aflow.flow.caught import ExceptionWrapper
    from aflow.metadata.base import TaskView
    from aflow.storage.manifest import Entry

_OVER = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})


class Metadatum(NamedTuple):
    """A fact about a task. `value` is a text; `created_at` has this machine's time zone."""

    name: str
    value: str
    created_at: datetime
    type: str
    task: Task


class Task(PartOfRun):
    """A task: `Task("Flow/run/step/task")`, or an earlier attempt of it with `attempt=`, counted
    from 0. Its parts are its artifacts, its own and those that it passes on, in order of their
    names; private ones (`_x`) are among them.

    What is not over yet is read again each time that it is asked for.
    """

    _depth = 4
    _view: TaskView
    _settled: bool
    _page: Sequence[TaskView] = ()
    _decoded: Manifest | None = None
    _inherited: Mapping[str, int] = MappingProxyType({})  # by the task that set it

    def _find(self) -> None:
        flow, run, _, task = self.path_components
        source = RunSource.find(self._place, flow, run)
        if source is None:
            raise missing_run(self._place, flow, run)
        self._read(source, int(task))

    @classmethod
    def _of(
        cls, source: RunSource, view: TaskView, *, settled: bool, page: Sequence[TaskView] = ()
    ) -> Self:
        """The task of a view. `settled`: the run was over before the view was read. `page`: views
        that were read together: their tasks will likely be asked for the same."""
        record = source.record
        spec = ids.Pathspec(
            ids.FlowName(record.flow),
            ids.RunId(record.run),
            ids.StepName(view.task.step),
            ids.TaskId(view.task.task),
        )
        self = cls._blank(spec, source.place)
        self._source, self._view, self._settled, self._page = source, view, settled, page
        return self

    @classmethod
    def _found_in(cls, source: RunSource, step: ids.Pathspec, task: int) -> Self:
        self = cls._blank(step._replace(task=ids.TaskId(task)), source.place)
        self._read(source, task)
        return self

    def _read(self, source: RunSource, task: int) -> None:
        step, attempt = self._spec.step or "", self._attempt
        view = source.metadata.task(source.key, task, attempt)
        there = view is not None and (attempt is None or view.attempt is not None)
        if view is None or not there or view.task.step != step:
            raise missing_task(source, step, task, attempt)
        self._source, self._view, self._settled = source, view, source.is_over

    # ------------------------------------------------------------ how it went

    @property
    def _now(self) -> TaskView:
        """The task as it is now; read again unless nothing can change any more."""
        attempt = self._view.attempt
        state = None if attempt is None else attempt.state
        if not (
            self._settled
            or state is AttemptState.SUCCEEDED
            or (self._attempt is not None and state in TERMINAL_ATTEMPT_STATES)
        ):
            self._decoded = None
            self._read(self._source, self._view.task.task)
        return self._view

    @property
    def successful(self) -> bool:
        """Whether the attempt has ended well by itself: not where @catch has settled it."""
        return self._now.state is TaskState.SUCCEEDED and self._manifest.error is None

    @property
    def finished(self) -> bool:
        """Whether the attempt has ended, well or not. While the run goes on, another attempt may
        follow one that has failed."""
        return self._now.state in _OVER

    @property
    def current_attempt(self) -> int:
        """The number of the attempt that this object shows, from 0."""
        attempt = self._now.attempt
        return 0 if attempt is None else attempt.attempt

    @property
    def exception(self) -> ExceptionWrapper | None:
        """What the attempt has failed with: type, message, traceback. Where its process was lost or
        stopped, the type is the attempt's state. None where @catch has settled it: see `caught`."""
        return facts.exception(self._now, self._manifest)

    @property
    def caught(self) -> ExceptionWrapper | None:
        """The exception that @catch has settled; None where there was none."""
        return facts.caught(self._manifest)

    @property
    def created_at(self) -> datetime:
        """When the task was created."""
        return local_time(self._view.task.created_at)

    @property
    def finished_at(self) -> datetime | None:
        """When the attempt ended; None if it has not."""
        attempt = self._now.attempt
        return None if attempt is None else local_time(attempt.finished_at)

    @property
    def index(self) -> int | None:
        """The task's place in the innermost foreach around it; None outside of any."""
        return self._view.task.index

    @property
    def origin_pathspec(self) -> str | None:
        """The task that this one was taken over from by a resumed run, or by the cache; None if it
        ran itself."""
        origin = self._view.task.origin
        return f"{self._spec.flow}/{origin}" if origin else None

    # ------------------------------------------------------------ artifacts

    @property
    def data(self) -> TaskData:
        """The artifacts by attribute: `task.data.x` is a value."""
        return TaskData(self)

    @property
    def artifacts(self) -> Any:
        """The artifacts that are not private as a named tuple: `task.artifacts.x` is a
        DataArtifact, which tells size and type without loading the value."""
        names = tuple(sorted(name for name in self._names() if not name.startswith("_")))
        return _tuple_of(names)(*(DataArtifact._of(self, name) for name in names))

    def __iter__(self) -> Iterator[DataArtifact]:
        return (DataArtifact._of(self, name) for name in sorted(self._names()))

    def _part(self, name: str) -> Any:
        checked("artifact", ids.artifact_name, name)
        return DataArtifact._of(self, name)

    @property
    def _manifest(self) -> Manifest:
        attempt = self._now.attempt
        if self._decoded is None:
            data = None if attempt is None else attempt.manifest
            self._decoded = Manifest.decode(data) if data else Manifest()
            self._inherited = self._decoded.origins()
        return self._decoded

    def _names(self) -> set[str]:
        return self._manifest.names()

    def _entry(self, name: str) -> Entry | None:
        """The entry of an artifact, the task's own or one that it passes on; None without it."""
        manifest = self._manifest
        own = manifest.artifacts.get(name)
        origin = self._inherited.get(name)
        if own is not None or origin is None:
            return own
        return self._source.manifest(origin, lambda: self._origins(name)).artifacts.get(name)

    def _origins(self, name: str) -> set[int]:
        """The tasks that the task and those read with it have inherited an artifact from."""
        manifests = (view.attempt.manifest for view in self._page if view.attempt is not None)
        found = (Manifest.decode(data).origin(name) for data in manifests if data is not None)
        return {origin for origin in found if origin is not None}

    def _no_artifact(self, name: str) -> str:
        return artifact_sentence(self.pathspec, self._view.state.value, name, self._names())

    # ------------------------------------------------------------ logs

    @property
    def stdout(self) -> str:
        """What the attempt has printed so far; bytes that are no UTF-8 are replaced."""
        return logs.text(self._source, self._now, "stdout")

    @property
    def stderr(self) -> str:
        """The same of what it wrote to stderr."""
        return logs.text(self._source, self._now, "stderr")

    @property
    def stdout_size(self) -> int:
        """Bytes of what the attempt has printed so far."""
        return logs.size(self._source, self._now, "stdout")

    @property
    def stderr_size(self) -> int:
        """The same of what it wrote to stderr."""
        return logs.size(self._source, self._now, "stderr")

    @overload
    def loglines(
        self, stream: str, as_unicode: Literal[True] = True
    ) -> Iterator[tuple[datetime, str]]: ...
    @overload
    def loglines(
        self, stream: str, as_unicode: Literal[False]
    ) -> Iterator[tuple[datetime, bytes]]: ...
    def loglines(
        self, stream: str, as_unicode: bool = True
    ) -> Iterator[tuple[datetime, str]] | Iterator[tuple[datetime, bytes]]:
        """Time (with this machine's zone) and text (bytes unless `as_unicode`) of every line of
        "stdout" or "stderr", without its newline. Raises InvalidInput for another stream."""
        if stream not in logs.STREAMS:
            raise InvalidInput(f"{stream!r} is no stream: use {' or '.join(logs.STREAMS)}.")
        lines = logs.lines(self._source, self._now, stream)
        if as_unicode:
            return ((local_time(at), text.decode("utf-8", "replace")) for at, text in lines)
        return ((local_time(at), text) for at, text in lines)

    # ------------------------------------------------------------ facts

    @property
    def metadata(self) -> list[Metadatum]:
        """The facts that are known about the task's attempts, oldest first."""
        found = facts.of_task(self._source, self._now, self._attempt)
        return [Metadatum(f.name, f.value, local_time(f.at), f.type, self) for f in found]

    @property
    def metadata_dict(self) -> dict[str, str]:
        """The same by name; the latest attempt's value where several have one."""
        found = facts.of_task(self._source, self._now, self._attempt)
        return {fact.name: fact.value for fact in found}

    @property
    def runtime_name(self) -> str | None:
        """What drove the run: `dev` for `aflow run`; None if that was not recorded."""
        return facts.from_tags(self._source).get("runtime")

    @property
    def code(self) -> RunCode | None:
        """The code of the task's run; see Run.code."""
        return code_of(self._source)

    @property
    def environment_info(self) -> dict[str, Any]:
        """What the task ran with: flow_name, script, username, host, runtime, versions."""
        return facts.environment(self._source, self._now)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from aflow.client import notebook  # only notebooks need it

        return notebook.task(self)

    # ------------------------------------------------------------ neighbours

    @property
    def parent_tasks(self) -> Iterator[Task]:
        """The tasks that this one had as its inputs; those of a foreach by their index."""
        return self._tasks(lineage.parents(self._source, self._view))

    @property
    def child_tasks(self) -> Iterator[Task]:
        """The tasks that had this one as their input, of those that have begun."""
        return self._tasks(lineage.children(self._source, self._view, self._manifest))

    @property
    def parent_task_pathspecs(self) -> Iterator[str]:
        """The pathspecs of `parent_tasks`."""
        views = lineage.parents(self._source, self._view, light=True)
        return map(self._pathspec_of, views)

    @property
    def child_task_pathspecs(self) -> Iterator[str]:
        """The pathspecs of `child_tasks`."""
        views = lineage.children(self._source, self._view, self._manifest, light=True)
        return map(self._pathspec_of, views)

    def _tasks(self, views: Iterator[TaskView]) -> Iterator[Task]:
        settled = self._source.is_over
        return (Task._of(self._source, view, settled=settled) for view in views)

    def _pathspec_of(self, view: TaskView) -> str:
        return f"{self._source.pathspec}/{view.task.step}/{view.task.task}"


@lru_cache(maxsize=64)
def _tuple_of(names: tuple[str, ...]) -> Any:
    """The class of a named tuple: the tasks of a step share one."""
    return namedtuple("Artifacts", names, rename=True)
