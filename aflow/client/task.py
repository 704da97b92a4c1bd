"""A task: one execution of a step, with its artifacts, logs, state and metadata."""

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

# The metadata of a task under Metaflow's names, derived from its records.


_FROM_TAGS = ("runtime", "python_version", "aflow_version", "user")


class Fact(NamedTuple):
    """A named text value about a task; `at` is in seconds since the epoch."""

    name: str
    value: str
    at: float
    type: str


def of_task(source: RunSource, view: TaskView, attempt: int | None) -> list[Fact]:
    """Return the facts about all attempts, or about one of them, oldest first.

    Args:
        source: The run of the task.
        view: The task, with the requested attempt.
        attempt: The number of the attempt; None for all attempts.
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
    """Return the task whose result was reused: the one that actually ran. None if no result was
    reused, or if the run of that task no longer exists."""
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
    """Return the values of the system tags runtime, python_version, aflow_version and user.

    Args:
        source: The run.
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
    # The path names the first step inside each foreach, not the step that opened it.
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


# The input tasks of a task, and the tasks that have it as an input.
#
# The record of a task names its parents. Children are searched among the tasks of the next steps;
# inside of a foreach only among those of the same item.


def parents(source: RunSource, view: TaskView, light: bool = False) -> Iterator[TaskView]:
    """Yield the input tasks: of branches in the order of the split, of a foreach by index.

    Args:
        source: The run of the task.
        view: The task whose inputs are read.
        light: Whether to read the tasks without manifests and logs.
    """
    inputs = decode_inputs(view.task.inputs)
    if isinstance(inputs, FromForeach):
        all_views = source.metadata.tasks(
            source.key, split=inputs.split, steps=inputs.steps, light=light
        )
        # A loop of a switch creates several tasks for one item; the last one reached the join.
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
    """Yield the started tasks that have this one as an input.

    Args:
        source: The run of the task.
        view: The task whose children are read.
        manifest: The manifest of the task.
        light: Whether to read the tasks without manifests and logs.
    """
    for step in manifest.transition[0]:
        for each in _candidates(source, view, manifest, step, light):
            if _reads(each, view):
                yield each


def _candidates(
    source: RunSource, view: TaskView, manifest: Manifest, step: str, light: bool
) -> Iterator[TaskView]:
    """Yield the tasks of a step that may have this one as an input: as few as possible."""
    tasks, key = source.metadata.tasks, source.key
    split, index = view.task.split, view.task.index
    _, foreach, count = manifest.transition
    if foreach is not None or count is not None:  # a growing foreach has no count yet
        return tasks(key, split=view.task.task, steps=(step,), light=light)
    if split is None or index is None or _closes_foreach(source, step):
        return tasks(key, step=step, light=light)
    from_here = tasks(key, split=split, steps=(step,), after=index - 1, light=light)
    return takewhile(lambda each: each.task.index == index, from_here)


def _closes_foreach(source: RunSource, step: str) -> bool:
    """Return whether the step is the join of a foreach, and thus outside of the foreach itself."""
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


# The output of an attempt: in its record if it is small, otherwise in chunks in the store.


def size(source: RunSource, view: TaskView, stream: str) -> int:
    """Return how many bytes the attempt has written to the stream. Reads the log while it runs.

    Args:
        source: The run of the task.
        view: The task, with the attempt.
        stream: `stdout` or `stderr`; not checked.
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
    """Yield the time, in seconds since the epoch, and the bytes of each line of the stream, in
    order. A line that was stored in pieces is joined, and has the time of its first piece.

    Args:
        source: The run of the task.
        view: The task, with the attempt.
        stream: `stdout` or `stderr`; not checked.
    """
    pieces: list[LogRecord] = []
    for record in _records(source, view):
        if record.stream == stream:
            pieces.append(record)
            if record.whole:
                yield pieces[0].at, b"".join(piece.text for piece in pieces)
                pieces.clear()
    if pieces:  # the attempt still runs, or its log is truncated
        yield pieces[0].at, b"".join(piece.text for piece in pieces)


def owner(source: RunSource, view: TaskView) -> tuple[RunSource, TaskView]:
    """Return the task whose log this one shows: itself, or the task whose result it reuses, if
    that still exists.

    Args:
        source: The run of the task.
        view: The task; if it reuses a result, it has no log itself.
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
    if not attempt.log_chunks:  # avoids opening the datastore
        return iter(())
    record, task = source.record, view.task
    names = (record.flow, record.run, task.step, task.task, attempt.attempt)
    return read_log(read_chunks(source.blobs.store, *names, attempt.log_chunks))


_OVER = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})


class Metadatum(NamedTuple):
    """A fact about a task. `value` is a text; `created_at` is in this machine's time zone."""

    name: str
    value: str
    created_at: datetime
    type: str
    task: Task


class Task(PartOfRun):
    """A task: `Task("Flow/run/step/task")`, or an earlier attempt of it with `attempt=`, counted
    from 0. Its parts are its artifacts, set or inherited, sorted by name; private ones (`_x`) are
    included.

    The state is read again at each access until it can no longer change.
    """

    _depth = 4
    _view: TaskView
    _settled: bool
    _page: Sequence[TaskView] = ()
    _decoded: Manifest | None = None
    _inherited: Mapping[str, int] = MappingProxyType({})  # by artifact: the task that set it

    def _find(self) -> None:
        flow, run, _, task = self.path_components
        self._read(RunSource.find(self._place, flow, run), int(task))

    @classmethod
    def _of(
        cls, source: RunSource, view: TaskView, *, settled: bool, page: Sequence[TaskView] = ()
    ) -> Self:
        """Return the task of a view. `settled` means that the run had ended before the view was
        read. `page` are the views of the same query: their artifacts are likely to be read too."""
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

    # ------------------------------------------------------------ state

    @property
    def _now(self) -> TaskView:
        """The task in its current state; read again unless it can no longer change."""
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
        """Whether the attempt has succeeded; False if it failed and @catch handled the error."""
        return self._now.state is TaskState.SUCCEEDED and self._manifest.error is None

    @property
    def finished(self) -> bool:
        """Whether the attempt has ended, successfully or not. A failed attempt may be followed by
        another while the run continues."""
        return self._now.state in _OVER

    @property
    def current_attempt(self) -> int:
        """The number of the attempt that this object shows, from 0."""
        attempt = self._now.attempt
        return 0 if attempt is None else attempt.attempt

    @property
    def exception(self) -> ExceptionWrapper | None:
        """The error of the attempt: type, message, traceback. If its process was lost or stopped,
        the type is the attempt's state. None if @catch handled the error; see `caught`."""
        attempt, error = self._now.attempt, self._manifest.error
        if error is not None:
            return None if error.get("caught") else _record(error)
        if attempt is None or not attempt.reason:
            return None
        return ExceptionWrapper(attempt.state.value, attempt.reason, attempt.reason)

    @property
    def caught(self) -> ExceptionWrapper | None:
        """The exception that @catch handled; None if there is none."""
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
        """The task's index in the innermost foreach around it; None outside of any."""
        return self._view.task.index

    @property
    def origin_pathspec(self) -> str | None:
        """The pathspec of the task whose result this one reuses, from a resumed run or the cache;
        None if this task ran itself."""
        origin = self._view.task.origin
        return f"{self._spec.flow}/{origin}" if origin else None

    # ------------------------------------------------------------ artifacts

    @property
    def data(self) -> TaskData:
        """The artifacts as attributes: `task.data.x` is a value."""
        return TaskData(self)

    @property
    def artifacts(self) -> Any:
        """The artifacts, except private ones, as a named tuple: `task.artifacts.x` is a
        DataArtifact, which has the size and type without loading the value."""
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
        """Return the entry of an artifact, set or inherited; None if it does not exist."""
        manifest = self._manifest
        own = manifest.artifacts.get(name)
        origin = self._inherited.get(name)
        if own is not None or origin is None:
            return own
        return self._source.manifest(origin, lambda: self._origins(name)).artifacts.get(name)

    def _origins(self, name: str) -> set[int]:
        """Return the tasks from which this task, and those of its page, have inherited an
        artifact."""
        manifests = (view.attempt.manifest for view in self._page if view.attempt is not None)
        found = (
            Manifest.decode(data).origins().get(name) for data in manifests if data is not None
        )
        return {origin for origin in found if origin is not None}

    def _no_artifact(self, name: str) -> str:
        return artifact_sentence(self.pathspec, self._view.state.value, name, self._names())

    # ------------------------------------------------------------ logs

    @property
    def stdout(self) -> str:
        """The text that the attempt has written to stdout; invalid UTF-8 is replaced."""
        return as_text(_records(self._source, self._now), "stdout")

    @property
    def stderr(self) -> str:
        """The text that the attempt has written to stderr; invalid UTF-8 is replaced."""
        return as_text(_records(self._source, self._now), "stderr")

    @property
    def stdout_size(self) -> int:
        """The number of bytes that the attempt has written to stdout."""
        return size(self._source, self._now, "stdout")

    @property
    def stderr_size(self) -> int:
        """The number of bytes that the attempt has written to stderr."""
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
        """Yield the time (in this machine's time zone) and the text of each line of a stream,
        without its newline.

        Args:
            stream: `stdout` or `stderr`.
            as_unicode: Whether lines are text instead of bytes.

        Raises:
            InvalidInput: If there is no such stream.
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
        """The facts about the task's attempts, oldest first."""
        found = of_task(self._source, self._now, self._attempt)
        return [Metadatum(f.name, f.value, local_time(f.at), f.type, self) for f in found]

    @property
    def metadata_dict(self) -> dict[str, str]:
        """The facts by name; if several attempts have one, the value of the latest."""
        found = of_task(self._source, self._now, self._attempt)
        return {fact.name: fact.value for fact in found}

    @property
    def runtime_name(self) -> str | None:
        """The runtime that started the run: `dev` for `aflow run`; None if it was not recorded."""
        return from_tags(self._source).get("runtime")

    @property
    def code(self) -> RunCode | None:
        """The code of the task's run; see Run.code."""
        return code_of(self._source)

    @property
    def environment_info(self) -> dict[str, Any]:
        """The environment of the task: flow_name, script, username, host, runtime, versions."""
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

    # ------------------------------------------------------------ parents and children

    @property
    def parent_tasks(self) -> Iterator[Task]:
        """The input tasks of this one; those of a foreach sorted by index."""
        return self._tasks(parents(self._source, self._view))

    @property
    def child_tasks(self) -> Iterator[Task]:
        """The started tasks that have this one as an input."""
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
    """Return a named tuple class, cached because the tasks of a step share it."""
    return namedtuple("Artifacts", names, rename=True)
