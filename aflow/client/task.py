"""One execution of a step: what it left, what it printed, how it went."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import groupby, takewhile
from pathlib import PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, assert_never, overload

from aflow._core import ids
from aflow.client.artifact import DataArtifact, TaskData
from aflow.client.base import PartOfRun, local_time
from aflow.client.code import RunCode, code_of
from aflow.client.missing import artifact_sentence, checked, missing_task
from aflow.client.source import RunSource
from aflow.errors import InvalidInput
from aflow.flow.decorators.catch import ExceptionWrapper
from aflow.flow.graph import Kind
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, NoInputs, decode_inputs
from aflow.scheduler.states import TERMINAL_ATTEMPT_STATES, AttemptState, TaskState
from aflow.storage.artifacts import ForeachFrame, Manifest
from aflow.storage.logs import STREAMS, LogRecord, as_text, read_chunks, read_log

if TYPE_CHECKING:
    from aflow.metadata.base import AttemptRecord, TaskView
    from aflow.storage.artifacts import Entry

# The facts of a task under the names that people look for, put together from its records.


_FROM_TAGS = ("runtime", "python_version", "aflow_version", "user")


class Fact(NamedTuple):
    """A named text about a task; `at` is in seconds since the epoch."""

    name: str
    value: str
    at: float
    type: str


def of_task(source: RunSource, view: TaskView, attempt: int | None) -> list[Fact]:
    """Return the facts of all attempts, or of the one asked for, oldest first.

    Args:
        source: The run, with the stores that have it.
        view: The task, with the attempt that was asked for.
        attempt: The number of the attempt; None for the latest.
    """
    task = view.task.task
    if attempt is None:
        attempts = source.metadata.attempts(source.key, task)
    else:
        attempts = [] if view.attempt is None else [view.attempt]
    found = [fact for each in attempts for fact in _of_attempt(source, view, each)]
    found += [
        Fact(record.field, record.value, record.created_at, record.type)
        for record in source.metadata.metadata(source.key, task)
        if attempt in (None, record.attempt)
    ]
    if view.task.origin:
        known = {fact.name for fact in found}
        origin = _origin_of(source, view)
        theirs = [] if origin is None else of_task(*origin, None)
        found += [fact for fact in theirs if fact.name not in known]
    return sorted(found, key=lambda fact: fact.at)


def _origin_of(source: RunSource, view: TaskView) -> tuple[RunSource, TaskView] | None:
    """The task whose result was reused, which is the one that ran and printed something; None
    without one, or where its run no longer exists."""
    if not view.task.origin:
        return None
    run, _, task = view.task.origin.split("/")
    theirs = source.of_run(run)
    found = None if theirs is None else theirs.metadata.task(theirs.key, int(task))
    return None if theirs is None or found is None else (theirs, found)


def _of_attempt(source: RunSource, view: TaskView, attempt: AttemptRecord) -> Iterator[Fact]:
    began = view.task.created_at if attempt.started_at is None else attempt.started_at
    values = {"attempt": str(attempt.attempt), **from_tags(source), **_where(source)}
    values |= {"host": attempt.host, "pid": str(attempt.pid or "")}
    if view.task.origin:
        run, _, task = view.task.origin.split("/")
        values |= {"origin-run-id": run, "origin-task-id": task}
    if attempt.manifest is not None:
        values |= _foreach(source, Manifest.decode(attempt.manifest).stack)
    for name, value in values.items():
        if value:
            yield Fact(name, value, began, name)
    if attempt.state not in TERMINAL_ATTEMPT_STATES:
        return
    ended = began if attempt.finished_at is None else attempt.finished_at
    succeeded = attempt.state is AttemptState.SUCCEEDED
    yield Fact("attempt_ok", str(succeeded), ended, "internal_attempt_status")
    if attempt.max_rss is not None:
        yield Fact("max-rss", str(attempt.max_rss), ended, "bytes")
    if attempt.cpu is not None:
        yield Fact("cpu", f"{attempt.cpu:.6g}", ended, "seconds")
    yield Fact("attempt-done", str(attempt.attempt), ended, "attempt-done")


def from_tags(source: RunSource) -> dict[str, str]:
    """Return what the system tags say: runtime, python_version, aflow_version, user.

    Args:
        source: The run, with the stores that have it.
    """
    pairs = (tag.partition(":") for tag in source.record.system_tags)
    return {name: value for name, _, value in pairs if name in _FROM_TAGS}


def _where(source: RunSource) -> dict[str, str]:
    scheme, _, rest = (source.setting("storage") or "").partition(":")
    return {
        "ds-type": "local" if scheme == "file" else scheme,
        "ds-root": rest.removeprefix("//"),
        "script-name": PurePath(source.setting("script") or "").name,
        "origin-run-id": source.record.origin_run or "",
    }


def _foreach(source: RunSource, stack: tuple[ForeachFrame, ...]) -> dict[str, str]:
    if not stack:
        return {}
    nodes = source.graph.nodes
    # The path names the step that each foreach has led into, not the one that opened it.
    entered = (nodes[each.step].next[0] for each in stack)
    return {
        "foreach-stack": json.dumps([frame._asdict() for frame in stack]),
        "foreach-execution-path": ",".join(
            f"{step}:{frame.index}" for step, frame in zip(entered, stack, strict=True)
        ),
    }


def _record(error: Mapping[str, Any]) -> ExceptionWrapper:
    module, kind = error.get("module") or "builtins", error["type"]
    return ExceptionWrapper(f"{module}.{kind}", error["message"], error["traceback"])


# Which tasks a task had as its inputs, and which had it as theirs.
#
# Parents are written in a task's record. Children are found by looking at the tasks of the steps
# that the task went to: inside of a foreach only at those of the same item.


def parents(source: RunSource, view: TaskView, light: bool = False) -> Iterator[TaskView]:
    """Yield the input tasks: of branches as the split named them, of a foreach by index. `light`
    views have no manifests.

    Args:
        source: The run, with the stores that have it.
        view: The task whose inputs are meant.
        light: Whether to leave manifests and logs out.
    """
    inputs = decode_inputs(view.task.inputs)
    if isinstance(inputs, FromForeach):
        all_views = source.metadata.tasks(
            source.key, split=inputs.split, steps=inputs.steps, light=light
        )
        # A switch that loops leaves several tasks for one item; the last one went on.
        for _, same in groupby(all_views, key=lambda each: each.task.index):
            *_, last = same
            yield last
        return
    if isinstance(inputs, FromBranches):
        tasks = inputs.tasks
    else:
        tasks = (inputs.task,) if isinstance(inputs, FromTask) else ()
    for task in tasks:
        found = source.metadata.task(source.key, task)
        if found is not None:
            yield found


def children(
    source: RunSource, view: TaskView, manifest: Manifest, light: bool = False
) -> Iterator[TaskView]:
    """Yield the tasks that have begun with this one as an input. `manifest` is the task's own.

    Args:
        source: The run, with the stores that have it.
        view: The task that the others have as an input.
        manifest: What the attempt has left: the type, size and blob of each artifact.
        light: Whether to leave manifests and logs out.
    """
    for step in manifest.transition[0]:
        for each in _candidates(source, view, manifest, step, light):
            if _reads(each, view):
                yield each


def _candidates(
    source: RunSource, view: TaskView, manifest: Manifest, step: str, light: bool
) -> Iterator[TaskView]:
    """The tasks of a step that can have this one as an input, few enough to be looked at."""
    tasks, key = source.metadata.tasks, source.key
    split, index = view.task.split, view.task.index
    if manifest.transition[2] is not None:
        return tasks(key, split=view.task.task, steps=(step,), light=light)
    if split is None or index is None or _closes_foreach(source, step):
        return tasks(key, step=step, light=light)
    from_here = tasks(key, split=split, steps=(step,), after=index - 1, light=light)
    return takewhile(lambda each: each.task.index == index, from_here)


def _closes_foreach(source: RunSource, step: str) -> bool:
    """Whether the step is the join of a foreach: then it stands outside of what it reads."""
    nodes = source.graph.nodes.values()
    return any(node.join == step and node.kind in (Kind.FOREACH, Kind.PARALLEL) for node in nodes)


def _reads(child: TaskView, parent: TaskView) -> bool:
    match decode_inputs(child.task.inputs):
        case FromTask(task):
            return task == parent.task.task
        case FromBranches(tasks):
            return parent.task.task in tasks
        case FromForeach(split, steps):
            return split == parent.task.split and parent.task.step in steps
        case NoInputs():
            return False
        case inputs:
            assert_never(inputs)


# What an attempt has printed: in its record where it is small, else in chunks in the store.


def size(source: RunSource, view: TaskView, stream: str) -> int:
    """Return how many bytes the attempt wrote to the stream. While it runs they are counted.

    Args:
        source: The run, with the stores that have it.
        view: The task, with the attempt whose output is meant.
        stream: `stdout` or `stderr`; it is not checked here.
    """
    source, view = owner(source, view)
    attempt = view.attempt
    if attempt is None:
        return 0
    if attempt.state in TERMINAL_ATTEMPT_STATES:
        return attempt.stdout_size if stream == "stdout" else attempt.stderr_size
    return sum(
        len(record.text) + record.whole
        for record in _records(source, view)
        if record.stream == stream
    )


def log_lines(source: RunSource, view: TaskView, stream: str) -> Iterator[tuple[float, bytes]]:
    """Yield the time, in seconds since the epoch, and the bytes of every line of the stream, in
    order. A line that was stored in pieces is whole again, with the time of its first piece.

    Args:
        source: The run, with the stores that have it.
        view: The task, with the attempt whose output is meant.
        stream: `stdout` or `stderr`; it is not checked here.
    """
    pieces: list[LogRecord] = []
    for record in _records(source, view):
        if record.stream == stream:
            pieces.append(record)
            if record.whole:
                yield pieces[0].at, b"".join(piece.text for piece in pieces)
                pieces.clear()
    if pieces:  # of an attempt that goes on, or that was cut off
        yield pieces[0].at, b"".join(piece.text for piece in pieces)


def owner(source: RunSource, view: TaskView) -> tuple[RunSource, TaskView]:
    """Return the task that has printed what this one shows: itself, or the one whose result it took
    over, if that is still there.

    Args:
        source: The run, with the stores that have it.
        view: The task; one whose result was reused has printed nothing itself.
    """
    while (found := _origin_of(source, view)) is not None:
        source, view = found
    return source, view


def _records(source: RunSource, view: TaskView) -> Iterator[LogRecord]:
    source, view = owner(source, view)
    attempt = view.attempt
    if attempt is None:
        return iter(())
    if attempt.log is not None:
        return read_log(attempt.log)
    if not attempt.log_chunks:  # the datastore is not opened for what is not there
        return iter(())
    record, task = source.record, view.task
    names = (record.flow, record.run, task.step, task.task, attempt.attempt)
    return read_log(read_chunks(source.blobs.store, *names, attempt.log_chunks))


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
        self._read(RunSource.find(self._place, flow, run), int(task))

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
        """The task as it is now; read again unless nothing can change."""
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
        attempt, error = self._now.attempt, self._manifest.error
        if error is not None:
            return None if error.get("caught") else _record(error)
        if attempt is None or not attempt.reason:
            return None
        return ExceptionWrapper(attempt.state.value, attempt.reason, attempt.reason)

    @property
    def caught(self) -> ExceptionWrapper | None:
        """The exception that @catch has settled; None where there was none."""
        error = self._manifest.error
        return _record(error) if error is not None and error.get("caught") else None

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
        """The task whose result this one reuses, from a resumed run or the cache; None if it
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
        """What the attempt has printed so far; bytes that are not UTF-8 are replaced."""
        return as_text(_records(self._source, self._now), "stdout")

    @property
    def stderr(self) -> str:
        """The same of what it wrote to stderr."""
        return as_text(_records(self._source, self._now), "stderr")

    @property
    def stdout_size(self) -> int:
        """Bytes of what the attempt has printed so far."""
        return size(self._source, self._now, "stdout")

    @property
    def stderr_size(self) -> int:
        """The same of what it wrote to stderr."""
        return size(self._source, self._now, "stderr")

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
        """Yield the time (with this machine's zone) and the text of every line of a stream, without
        its newline.

        Args:
            stream: `stdout` or `stderr`.
            as_unicode: Whether lines are text instead of bytes.

        Raises:
            InvalidInput: The stream is another one.
        """
        if stream not in STREAMS:
            raise InvalidInput(f"{stream!r} is not a stream: use {' or '.join(STREAMS)}.")
        lines = log_lines(self._source, self._now, stream)
        if as_unicode:
            return ((local_time(at), text.decode("utf-8", "replace")) for at, text in lines)
        return ((local_time(at), text) for at, text in lines)

    # ------------------------------------------------------------ facts

    @property
    def metadata(self) -> list[Metadatum]:
        """The facts that are known about the task's attempts, oldest first."""
        found = of_task(self._source, self._now, self._attempt)
        return [Metadatum(f.name, f.value, local_time(f.at), f.type, self) for f in found]

    @property
    def metadata_dict(self) -> dict[str, str]:
        """The same by name; the latest attempt's value where several have one."""
        found = of_task(self._source, self._now, self._attempt)
        return {fact.name: fact.value for fact in found}

    @property
    def runtime_name(self) -> str | None:
        """What drove the run: `dev` for `aflow run`; None if that was not recorded."""
        return from_tags(self._source).get("runtime")

    @property
    def code(self) -> RunCode | None:
        """The code of the task's run; see Run.code."""
        return code_of(self._source)

    @property
    def environment_info(self) -> dict[str, Any]:
        """What the task ran with: flow_name, script, username, host, runtime, versions."""
        source, attempt = self._source, self._now.attempt
        known = from_tags(source)
        return {
            "environment_type": "local",
            "flow_name": source.record.flow,
            "script": source.setting("script"),
            "username": source.record.user,
            "runtime": known.get("runtime"),
            "python_version": known.get("python_version"),
            "aflow_version": known.get("aflow_version"),
            "host": attempt.host if attempt else None,
        }

    # ------------------------------------------------------------ neighbours

    @property
    def parent_tasks(self) -> Iterator[Task]:
        """The tasks that this one had as its inputs; those of a foreach by their index."""
        return self._tasks(parents(self._source, self._view))

    @property
    def child_tasks(self) -> Iterator[Task]:
        """The tasks that had this one as their input, of those that have begun."""
        return self._tasks(children(self._source, self._view, self._manifest))

    @property
    def parent_task_pathspecs(self) -> Iterator[str]:
        """The pathspecs of `parent_tasks`."""
        views = parents(self._source, self._view, light=True)
        return map(self._pathspec_of, views)

    @property
    def child_task_pathspecs(self) -> Iterator[str]:
        """The pathspecs of `child_tasks`."""
        views = children(self._source, self._view, self._manifest, light=True)
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
