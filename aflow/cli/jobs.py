"""`batch` and `kubernetes`: the jobs that runs have submitted there, listed and ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from aflow import aws
from aflow.cli.options import flag, option
from aflow.cli.selection import own_latest
from aflow.cli.tables import show
from aflow.errors import InvalidInput
from aflow.executors import jobs as job_systems

if TYPE_CHECKING:
    from aflow._core.settings import Settings
    from aflow.cli.session import Session

Commands = dict[str, tuple[str, list[click.Parameter], Callable[..., object]]]


class _WantedJobs(NamedTuple):
    """Whose jobs are meant; None is everybody's, of every flow, of every run."""

    user: str | None = None
    flow: str | None = None
    run: str | None = None


class _ListedJob(NamedTuple):
    """A job that has not ended, as it is shown; `id` is how its system is asked to end it."""

    id: str
    shown: str
    path: str
    state: str
    submitted: str
    user: str


class _ListedJobs(NamedTuple):
    """What was found. `end` ends jobs of these ids for a reason; `close` releases connections.
    `clock` names the time zone of `submitted`, if that is not the one of here."""

    found: Sequence[_ListedJob]
    end: Callable[[str, str], object]
    close: Callable[[], object]
    clock: str = ""


Find = Callable[["Session", "_WantedJobs"], _ListedJobs]


def batch_commands() -> Commands:
    """Return the commands below `batch`, by name: help, parameters, body."""
    return _job_commands("batch", _on_batch)


def kubernetes_commands() -> Commands:
    """Return the commands below `kubernetes`, by name: help, parameters, body."""
    return _job_commands("kubernetes", _on_kubernetes)


def _job_commands(system: str, find: Find) -> Commands:

    def list_(session: Session, my_runs: bool, user: str | None, run_id: str | None) -> None:
        jobs = find(session, _wanted(session, session.settings(), my_runs, user, run_id))
        jobs.close()
        if not jobs.found:
            session.note("There are no jobs that have not ended.")
            return
        rows = [(job.path, job.state, job.submitted, job.user, job.shown) for job in jobs.found]
        show(("step", "state", f"submitted{jobs.clock}", "user", "job"), rows)

    def kill(session: Session, my_runs: bool, user: str | None, run_id: str | None) -> None:
        jobs = find(session, _wanted(session, session.settings(), my_runs, user, run_id))
        by = session.settings().user
        for job in jobs.found:
            jobs.end(job.id, f"It was ended by {by} ({system} kill)")
            click.echo(f"Ended the job {job.shown} of {job.path}.")
        jobs.close()
        if not jobs.found:
            session.note("There are no jobs that have not ended.")

    return {
        "list": ("List the jobs that have not ended.", _owner_options(), list_),
        "kill": ("End the jobs that have not ended.", _owner_options(), kill),
    }


def _owner_options() -> list[click.Parameter]:
    return [
        flag("--my-runs", help="Jobs of all your runs."),
        option("--user", metavar="NAME", help="Jobs of all runs of this user."),
        option("--run-id", metavar="RUN", help="Jobs of this run.  [default: your latest one]"),
    ]


def _wanted(
    session: Session, settings: Settings, my_runs: bool, user: str | None, run_id: str | None
) -> _WantedJobs:
    """Whose jobs are meant by these options. Raises InvalidInput, and NotFound where there is no
    run yet."""
    if my_runs and (user is not None or run_id is not None):
        other = "--user" if user is not None else "--run-id"
        raise InvalidInput(f"Give either --my-runs or {other}.")
    if session.flow is None:
        return _WantedJobs(
            user if user is not None or run_id is not None else settings.user, run=run_id
        )
    flow = session.flow.__name__
    if run_id is not None:
        return _WantedJobs(user, flow, run_id.removeprefix(f"{flow}/"))
    if my_runs or user is not None:
        return _WantedJobs(user or settings.user, flow)
    return _WantedJobs(
        settings.user, flow, own_latest(flow, settings, "--run-id RUN or --user NAME").run
    )


def _counted(states: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _of_steps(session: Session, decorator: str, option: str) -> Iterator[str]:
    """What the decorators of the flow's steps say by this option."""
    if session.flow is None:
        return
    for step in session.define().steps.values():
        found: Any = step.decorator(decorator)
        if found is not None and getattr(found, option):
            yield str(getattr(found, option))


# ------------------------------------------------------------------ systems


def _on_batch(session: Session, wanted: _WantedJobs) -> _ListedJobs:
    settings = aws.settings.AwsSettings.load()
    queues = {*_of_steps(session, "batch", "queue")}
    if settings.queue is not None or not queues:
        queues.add(settings.needed("queue", "The job queue of AWS Batch"))
    calls = aws.client.AwsClient()
    found = [
        _ListedJob(
            id=job.id,
            shown=job.id,
            path=f"{job.flow}/{job.run}/{job.step}",
            state=_counted({state.lower(): job.states[state] for state in sorted(job.states)})
            or job.status.lower(),
            submitted=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created_at)),
            user=job.user,
        )
        for job in job_systems.batch.definitions.unfinished(calls, sorted(queues), *wanted)
    ]
    return _ListedJobs(found, lambda id, why: calls.terminate(id, f"{why}."), calls.close)


def _on_kubernetes(session: Session, wanted: _WantedJobs) -> _ListedJobs:
    kubernetes = job_systems.kubernetes
    cluster = kubernetes.access.KubernetesCluster()
    common = kubernetes.settings.KubernetesSettings.load().namespace or cluster.namespace
    namespaces = sorted({common, *_of_steps(session, "kubernetes", "namespace")})
    found = [
        _ListedJob(
            id=job.id,
            shown=f"{job.namespace}/{job.name}",
            path=f"{job.flow}/{job.run}/{job.step}",
            state=_counted(job.states),
            submitted=job.created.rstrip("Z").replace("T", " ")[:19],
            user=job.user,
        )
        for job in kubernetes.job_system.unfinished(cluster, namespaces, *wanted)
    ]
    system = kubernetes.job_system.KubernetesSystem(cluster)
    return _ListedJobs(found, lambda id, why: system.terminate([id], why), system.close, " (UTC)")
