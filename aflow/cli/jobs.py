"""`batch` and `kubernetes`: list and end the jobs that runs have submitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from aflow import aws
from aflow.cli.options import Subcommand, flag, option
from aflow.cli.selection import own_latest
from aflow.cli.tables import local, show
from aflow.errors import InvalidInput
from aflow.executors import jobs as job_systems

if TYPE_CHECKING:
    from aflow._core.settings import Settings
    from aflow.cli.session import Session
    from aflow.executors.jobs.base import JobSystem, SubmittedJob


class _JobFilter(NamedTuple):
    """A filter of jobs; None matches all users, flows or runs."""

    user: str | None = None
    flow: str | None = None
    run: str | None = None


# The job system, and the matching jobs.
Found = tuple["JobSystem[Any]", list["SubmittedJob"]]
Find = Callable[["Session", _JobFilter], Found]


def _job_commands(system: str, find: Find) -> dict[str, Subcommand]:

    def found(session: Session, whose: Mapping[str, Any]) -> Found:
        asked, jobs = find(session, _job_filter(session, session.settings(), **whose))
        if not jobs:
            session.note("There are no jobs that have not ended.")
        return asked, jobs

    def list_(session: Session, **whose: Any) -> None:
        asked, jobs = found(session, whose)
        asked.close()
        rows = [(job.path, job.state, local(job.created_at), job.user, job.shown) for job in jobs]
        if rows:
            show(("step", "state", "submitted", "user", "job"), rows)

    def kill(session: Session, **whose: Any) -> None:
        by = session.settings().user
        asked, jobs = found(session, whose)
        with closing(asked):
            for job in jobs:
                asked.terminate([job.id], f"It was ended by {by} ({system} kill).")
                click.echo(f"Ended the job {job.shown} of {job.path}.")

    return {
        "list": Subcommand("List the jobs that have not ended.", _owner_options(), list_),
        "kill": Subcommand("End the jobs that have not ended.", _owner_options(), kill),
    }


def _owner_options() -> list[click.Parameter]:
    return [
        flag("--my-runs", help="Jobs of all your runs."),
        option("--user", metavar="NAME", help="Jobs of all runs of this user."),
        option("--run-id", metavar="RUN", help="Jobs of this run.  [default: your latest one]"),
    ]


def _job_filter(
    session: Session, settings: Settings, my_runs: bool, user: str | None, run_id: str | None
) -> _JobFilter:
    """Return the filter for these options. Raises InvalidInput, and NotFound if there is no run
    yet."""
    if my_runs and (user is not None or run_id is not None):
        other = "--user" if user is not None else "--run-id"
        raise InvalidInput(f"Give either --my-runs or {other}.")
    if session.flow is None:
        return _JobFilter(
            user if user is not None or run_id is not None else settings.user, run=run_id
        )
    flow = session.flow.__name__
    if run_id is not None:
        return _JobFilter(user, flow, run_id.removeprefix(f"{flow}/"))
    if my_runs or user is not None:
        return _JobFilter(user or settings.user, flow)
    return _JobFilter(
        settings.user, flow, own_latest(flow, settings, "--run-id RUN or --user NAME").run
    )


def _of_steps(session: Session, decorator: str, option: str) -> Iterator[str]:
    """Yield the values of an option in the decorators of the flow's steps."""
    if session.flow is None:
        return
    for step in session.define().steps.values():
        found: Any = step.decorator(decorator)
        if found is not None and getattr(found, option):
            yield str(getattr(found, option))


# ------------------------------------------------------------------ systems


def _on_batch(session: Session, chosen: _JobFilter) -> Found:
    settings = aws.settings.AwsSettings.load()
    common = filter(None, (settings.queue, settings.gpu_queue))
    queues = {*_of_steps(session, "batch", "queue"), *common}
    if not queues:
        settings.needed("queue", "The job queue of AWS Batch")  # raises
    batch, calls = job_systems.batch, aws.client.AwsClient()
    found = batch.definitions.unfinished(calls, sorted(queues), *chosen)
    return batch.job_system.BatchSystem(calls), found


def _on_kubernetes(session: Session, chosen: _JobFilter) -> Found:
    kubernetes = job_systems.kubernetes
    cluster = kubernetes.access.KubernetesCluster()
    common = kubernetes.settings.KubernetesSettings.load().namespace or cluster.namespace
    namespaces = sorted({common, *_of_steps(session, "kubernetes", "namespace")})
    found = kubernetes.job_system.unfinished(cluster, namespaces, *chosen)
    return kubernetes.job_system.KubernetesSystem(cluster), found


# The functions that return the subcommands of `batch` and `kubernetes`, by name.
batch_commands = partial(_job_commands, "batch", _on_batch)
kubernetes_commands = partial(_job_commands, "kubernetes", _on_kubernetes)
