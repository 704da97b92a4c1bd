"""The errors about missing objects: their names, similar names, and where to look."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aflow.errors import InvalidName, NamespaceMismatch, NotFound
from aflow.flow.names import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aflow.client.source import RunSource
    from aflow.client.where import ClientStores

_RUNS_COMPARED = 500


class MissingObject(NotFound, KeyError):
    """The flow, run, step, task or artifact does not exist. A KeyError, because most lookups have
    the form `run["step"]`."""

    __str__ = Exception.__str__  # KeyError.__str__ returns a repr


class MissingArtifact(NotFound, AttributeError):
    """The task has no artifact of this name; an AttributeError, so that hasattr() works."""


def checked(what: str, check: Callable[[str], object], name: str) -> None:
    """Raise MissingObject if the name is not valid for this kind of object.

    Args:
        what: The kind of object, for the error.
        check: Raises InvalidName if the name is not valid.
        name: The name to check.
    """
    try:
        check(name)
    except InvalidName as error:
        raise MissingObject(f"There is no {what} {name!r}: {error}") from error


def missing_flow(place: ClientStores, flow: str) -> MissingObject:
    """Return the error for a flow that has never run.

    Args:
        place: The stores that were searched.
        flow: The name that was not found.
    """
    known = [name for name, _ in place.metadata.flows()]
    there = f" These have: {_listed(known)}." if known else ""
    return MissingObject(f"Flow {flow!r} has never run here.{did_you_mean(flow, known)}{there}")


def missing_run(place: ClientStores, flow: str, run: str) -> MissingObject:
    """Return the error for a run, or its flow, that does not exist.

    Args:
        place: The stores that were searched.
        flow: The name of the flow.
        run: The id that was not found.
    """
    if flow not in (name for name, _ in place.metadata.flows()):
        return missing_flow(place, flow)
    known = [each.run for each in place.metadata.runs(flow, limit=_RUNS_COMPARED)]
    latest = f" Its latest run is {known[0]!r}; Flow({flow!r}) lists all." if known else ""
    return MissingObject(f"Flow {flow!r} has no run {run!r}.{did_you_mean(run, known)}{latest}")


def missing_step(source: RunSource, step: str) -> MissingObject:
    """Return the error for a step that has no task yet, or does not exist.

    Args:
        source: The run that was searched.
        step: The name that was not found.
    """
    where = f"Run {source.pathspec!r}"
    if step in source.graph.nodes:
        return MissingObject(f"{where} has not come to step {step!r} ({source.record.state}).")
    known = list(source.graph.nodes)
    return MissingObject(
        f"{where} has no step {step!r}.{did_you_mean(step, known)} It has: {_listed(known)}."
    )


def missing_task(source: RunSource, step: str, task: int, attempt: int | None) -> MissingObject:
    """Return the error for a task of another step, or a task or attempt that does not exist.

    Args:
        source: The run that was searched.
        step: The name of the step in the pathspec.
        task: The number of the task within its run.
        attempt: The number of the attempt that was requested; None for the latest.
    """
    there = source.metadata.task(source.key, task)
    if there is None:
        hint = f"Step('{source.pathspec}/{step}') lists those of the step."
        return MissingObject(f"Run {source.pathspec!r} has no task {task}. {hint}")
    if there.task.step != step:
        right = f"{source.pathspec}/{there.task.step}/{task}"
        return MissingObject(
            f"Task {task} belongs to step {there.task.step!r}, not to {step!r}: Task({right!r})."
        )
    made = len(source.metadata.attempts(source.key, task))
    return MissingObject(
        f"Task '{source.pathspec}/{step}/{task}' has no attempt {attempt}: {made} "
        f"{'was' if made == 1 else 'were'} made, counted from 0."
    )


def artifact_sentence(pathspec: str, state: str, name: str, known: Iterable[str]) -> str:
    """Return the message for a task that has no artifact with this name.

    Args:
        pathspec: The pathspec of the task: `flow/run/step/task`.
        state: The state of the task.
        name: The name that was not found.
        known: The names of the task's artifacts.
    """
    names = sorted(known)
    if not names and state != "succeeded":
        return f"Task {pathspec!r} has no artifact {name!r}: it is {state} and has left none."
    return (
        f"Task {pathspec!r} has no artifact {name!r}.{did_you_mean(name, names)} "
        f"It has: {_listed(names) or 'none'}."
    )


def not_in_namespace(what: str, namespace: str | None, tags: Iterable[str]) -> NamespaceMismatch:
    """Return the error for an object that is not in the namespace.

    Args:
        what: The object, for the error.
        namespace: The namespace: a tag such as `user:ada`; None for all runs.
        tags: The tags of the object, user tags and system tags.
    """
    owners = sorted(tag for tag in tags if tag.startswith("user:"))
    of = f" It has {owners[0]!r}." if owners else ""
    return NamespaceMismatch(
        f"{what} is not in the namespace {namespace!r}.{of} Call namespace(None) to see "
        "everybody's runs, or namespace(...) with a tag that it has."
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown
