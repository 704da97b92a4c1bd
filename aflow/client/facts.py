"""The facts of a task under the names that people look for, put together from its records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow.flow.caught import ExceptionWrapper
from aflow.scheduler.states import TERMINAL_ATTEMPT_STATES, AttemptState
from aflow.storage.manifest import ForeachFrame, Manifest

if TYPE_CHECKING:
    from aflow.client.source import RunSource
    from aflow.metadata.base import AttemptRecord, TaskView

_FROM_TAGS = ("runtime", "python_version", "aflow_version", "user")


class Fact(NamedTuple):
    """A named text about a task; `at` is in seconds since the epoch."""

    name: str
    value: str
    at: float
    type: str


def of_task(source: RunSource, view: TaskView, attempt: int | None) -> list[Fact]:
    """The facts of all attempts, or of the one asked for, oldest first."""
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
        found += [fact for fact in _of_origin(source, view.task.origin) if fact.name not in known]
    return sorted(found, key=lambda fact: fact.at)


def _of_origin(source: RunSource, origin: str) -> list[Fact]:
    """The facts of the task that this one was taken over from: where it ran, and what its step has
    noted; none where its run is not there any more."""
    run, _, task = origin.split("/")
    theirs = source.of_run(run)
    view = None if theirs is None else theirs.metadata.task(theirs.key, int(task))
    return [] if theirs is None or view is None else of_task(theirs, view, None)


def _of_attempt(source: RunSource, view: TaskView, attempt: AttemptRecord) -> Iterator[Fact]:
    began = view.task.created_at if attempt.started_at is None else attempt.started_at
    values = {"attempt": str(attempt.attempt), **from_tags(source), **_where(source)}
    values |= {"host": attempt.host, "pid": str(attempt.pid or "")}
    if view.task.origin:
        values |= _origin(view.task.origin)
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
    """What the system tags say: runtime, python_version, aflow_version, user."""
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


def _origin(origin: str) -> dict[str, str]:
    run, _, task = origin.split("/")
    return {"origin-run-id": run, "origin-task-id": task}


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


def environment(source: RunSource, view: TaskView) -> dict[str, Any]:
    """What a task ran with."""
    known = from_tags(source)
    return {
        "environment_type": "local",
        "flow_name": source.record.flow,
        "script": source.setting("script"),
        "username": source.record.user,
        "runtime": known.get("runtime"),
        "python_version": known.get("python_version"),
        "aflow_version": known.get("aflow_version"),
        "host": view.attempt.host if view.attempt else None,
    }


def exception(view: TaskView, manifest: Manifest) -> ExceptionWrapper | None:
    """What the attempt ended with; None if it ended well, was settled, or has not ended."""
    error, attempt = manifest.error, view.attempt
    if error is not None:
        return None if error.get("caught") else _record(error)
    if attempt is None or not attempt.reason:
        return None
    return ExceptionWrapper(attempt.state.value, attempt.reason, attempt.reason)


def caught(manifest: Manifest) -> ExceptionWrapper | None:
    """What @catch has settled."""
    error = manifest.error
    return _record(error) if error is not None and error.get("caught") else None


def _record(error: Mapping[str, Any]) -> ExceptionWrapper:
    module, kind = error.get("module") or "builtins", error["type"]
    return ExceptionWrapper(f"{module}.{kind}", error["message"], error["traceback"])
