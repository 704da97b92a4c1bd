"""Select the runs and tasks of a command: by a pathspec, or by user and namespace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import click

from aflow import client
from aflow._core.ids import Pathspec
from aflow.cli.session import Session
from aflow.errors import InvalidName, NotFound
from aflow.metadata.factory import open_metadata

if TYPE_CHECKING:
    from aflow._core.settings import Settings
    from aflow.client import Task
    from aflow.metadata.base import MetadataStore, RunRecord

HELP = "RUN[/STEP[/TASK]], or the same with the flow's name before it."


def pathspec_argument() -> click.Argument:
    """Return the argument PATHSPEC."""
    return click.Argument(["path"], metavar="PATHSPEC")


def tasks_of(session: Session, path: str, attempt: int | None = None) -> Iterator[Task]:
    """Yield the tasks of a path, in the order of their numbers step by step, in any namespace.

    Raises InvalidName if the path is not a pathspec, and NotFound if it does not exist.
    """
    spec = pathspec(session, path)
    client.metadata(session.settings().place)
    client.namespace(None)  # a pathspec selects runs of all users
    if spec.task is not None:
        yield client.Task(str(spec), attempt=attempt)
        return
    if spec.step is not None:
        steps = [client.Step(str(spec))]
    else:
        steps = sorted(client.Run(str(spec)), key=lambda step: step.created_at)
    for step in steps:
        for task in sorted(step, key=lambda task: int(task.id)):
            yield task if attempt is None else client.Task(task.pathspec, attempt=attempt)


def pathspec(session: Session, path: str) -> Pathspec:
    """Return the pathspec of a path, which must at least have a run; raises InvalidName, or a usage
    error."""
    flow = session.flow.__name__ if session.flow else None
    if flow is not None and not path.startswith(f"{flow}/"):
        path = f"{flow}/{path}"
    spec = Pathspec.parse(path)
    if spec.run is None or spec.artifact is not None:
        expected = HELP if flow else "FLOW/RUN[/STEP[/TASK]]"
        raise click.BadParameter(f"{path!r} names no run, step or task: give {expected}")
    return spec


def run_pathspec(text: str) -> Pathspec:
    """Return the pathspec of a run from `FLOW/RUN`.

    Args:
        text: The argument of the command.

    Raises:
        InvalidName: If it is not the pathspec of a run.
    """
    spec = Pathspec.parse(text)
    if spec.run is None or spec.step is not None:
        raise InvalidName(f"{text!r} names no run: give FLOW/RUN.")
    return spec


def recorded_run(metadata: MetadataStore, spec: Pathspec) -> RunRecord:
    """Return the record of the run of a pathspec.

    Args:
        metadata: The metadata store.
        spec: The pathspec of a run, or of a part of one.

    Raises:
        NotFound: If the metadata has no such run.
    """
    run = metadata.run(spec.flow, spec.run or "")
    if run is None:
        raise NotFound(f"There is no run {spec.flow}/{spec.run} in {metadata.url}.")
    return run


def own_latest(flow: str, settings: Settings, instead: str) -> RunRecord:
    """Return the user's latest run of the flow, in the namespace of the settings if there is one:
    shared metadata also has the runs of other users.

    Args:
        flow: The name of the flow.
        settings: The settings: user, namespace and metadata.
        instead: The options that select a run, for the error.

    Raises:
        NotFound: If there is no such run; the message names these options.
    """
    tags = list(dict.fromkeys((f"user:{settings.user}", settings.default_namespace)))
    if settings.has_metadata:
        with closing(open_metadata(settings.metadata_url)) as metadata:
            runs = metadata.runs(flow, tags=tags, limit=1)
        if runs:
            return runs[0]
    known = " in the namespace ".join([settings.user, *map(repr, tags[1:])])
    raise NotFound(
        f"There is no run of {flow} by {known} in {settings.place}: start one with the command "
        f"run, or name a run, whosever it is, with {instead}."
    )
