"""`batch`: the jobs of AWS Batch that runs have submitted, listed and ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from aflow.aws.settings import AwsSettings
from aflow.cli.options import flag, option
from aflow.cli.selection import own_latest
from aflow.cli.tables import show
from aflow.errors import InvalidInput

if TYPE_CHECKING:
    from aflow._core.settings import Settings
    from aflow.aws.batch import SubmittedJob, Wanted
    from aflow.aws.client import Calls
    from aflow.cli.session import Session

Commands = dict[str, tuple[str, list[click.Parameter], Callable[..., object]]]


def batch_commands() -> Commands:
    """The commands below `batch`, by name: help, parameters, body."""
    return {
        "list": ("List the jobs that have not ended.", whose(), list_),
        "kill": ("End the jobs that have not ended.", whose(), kill),
    }


def whose() -> list[click.Parameter]:
    """The options that say whose jobs are meant."""
    return [
        flag("--my-runs", help="Jobs of all your runs."),
        option("--user", metavar="NAME", help="Jobs of all runs of this user."),
        option("--run-id", metavar="RUN", help="Jobs of this run.  [default: your latest one]"),
    ]


def list_(session: Session, my_runs: bool, user: str | None, run_id: str | None) -> None:
    """Show a line for each job."""
    found, calls = _found(session, my_runs, user, run_id)
    calls.close()
    if not found:
        session.note("There are no jobs that have not ended.")
        return
    rows = [
        (f"{job.flow}/{job.run}/{job.step}", _state(job), _when(job), job.user, job.id)
        for job in found
    ]
    show(("step", "state", "submitted", "user", "job"), rows)


def kill(session: Session, my_runs: bool, user: str | None, run_id: str | None) -> None:
    """End the jobs, and say which; the attempts that they run fail, and are not tried again."""
    found, calls = _found(session, my_runs, user, run_id)
    by = session.settings().user
    for job in found:
        calls.terminate(job.id, f"It was ended by {by} (batch kill).")
        click.echo(f"Ended the job {job.id} of {job.flow}/{job.run}/{job.step}.")
    calls.close()
    if not found:
        session.note("There are no jobs that have not ended.")


def _found(
    session: Session, my_runs: bool, user: str | None, run_id: str | None
) -> tuple[list[SubmittedJob], Calls]:
    from aflow.aws.batch import unfinished
    from aflow.aws.client import Calls

    settings = session.settings()
    wanted = wanted_jobs(session, settings, my_runs, user, run_id)
    queues = {*_queues(session, AwsSettings.load())}
    calls = Calls()
    return unfinished(calls, sorted(queues), wanted), calls


def wanted_jobs(
    session: Session, settings: Settings, my_runs: bool, user: str | None, run_id: str | None
) -> Wanted:
    """Whose jobs are meant by these options. Raises InvalidInput, and NotFound where there is no
    run yet."""
    from aflow.aws.batch import Wanted

    if my_runs and (user is not None or run_id is not None):
        other = "--user" if user is not None else "--run-id"
        raise InvalidInput(f"Give either --my-runs or {other}.")
    if session.flow is None:
        return Wanted(user if user is not None or run_id is not None else settings.user, run=run_id)
    flow = session.flow.__name__
    if run_id is not None:
        return Wanted(user, flow, run_id.removeprefix(f"{flow}/"))
    if my_runs or user is not None:
        return Wanted(user or settings.user, flow)
    return Wanted(
        settings.user, flow, own_latest(flow, settings, "--run-id RUN or --user NAME").run
    )


def _queues(session: Session, settings: AwsSettings) -> Iterator[str]:
    """The queues that runs of the flow submit jobs to."""
    own = 0
    if session.flow is not None:
        for step in session.define().steps.values():
            batch: Any = step.decorator("batch")
            if batch is not None and batch.queue:
                own += 1
                yield str(batch.queue)
    if settings.queue is not None or not own:
        yield settings.needed("queue", "The job queue of AWS Batch")


def _state(job: SubmittedJob) -> str:
    if not job.states:
        return job.status.lower()
    return ", ".join(f"{count} {state.lower()}" for state, count in sorted(job.states.items()))


def _when(job: SubmittedJob) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created_at))
