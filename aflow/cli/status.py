"""`aflow status`: show all flows, the active runs, and the latest failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import click

from aflow._core.clock import SystemClock
from aflow._core.settings import Settings
from aflow.cli import tables
from aflow.cli.errors import printable
from aflow.cli.options import SectionedCommand
from aflow.cli.server_requests import of_a_server
from aflow.metadata.base import failed_task, why
from aflow.metadata.factory import has_runs, open_to_read
from aflow.scheduler.states import RunState, TaskState
from aflow.step_functions.unrecorded import look

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore, RunRecord

_COLUMNS = ("FLOW", "LATEST RUN", "STATE", "STARTED", "TOOK", "USER")
_RUNNING = 20  # maximum number of active runs that are shown per flow


def status() -> click.Command:
    """Return the command `status`."""
    return SectionedCommand(
        "status",
        params=[of_a_server()],
        callback=_status,
        help="Show all flows, active runs, and the latest failures.",
    )


def _status(server: str | None) -> None:
    """Print a table with one line per flow, the latest first, then active and failed runs."""
    settings = Settings.load(metadata=server)
    look(settings)
    if not has_runs(settings.metadata_url):
        click.echo(f"Nothing has run here yet: there is no datastore {settings.root}.")
        return
    with closing(open_to_read(settings.metadata_url, settings.durability)) as metadata:
        _show(settings, metadata)


def _show(settings: Settings, metadata: MetadataStore) -> None:
    """Show the latest run of each flow, the newest first; then active and failed runs."""
    now = SystemClock.now()
    latest = (run for flow, _ in metadata.flows() for run in metadata.runs(flow, limit=1))
    runs = sorted(latest, key=lambda run: run.created_at, reverse=True)
    where = settings.root if settings.metadata == "local" else metadata.url
    click.echo(f"Datastore: {where}\n")
    running = [run for each in runs for run in _running(metadata, each.flow)]
    states = {run.key: tables.state(run) for run in (*runs, *running)}
    tables.show(_COLUMNS, [_row(run, states[run.key], now) for run in runs])
    failed = [run for run in runs if run.state is RunState.FAILED]
    for title, lines in (
        ("Running:", [_goes_on(metadata, run, states[run.key], now) for run in running]),
        ("Failed:", [_failed(metadata, run) for run in failed]),
    ):
        if lines:
            click.echo(f"\n{title}")
            for line in lines:
                click.echo(f"  {printable(line)}")


def _running(metadata: MetadataStore, flow: str) -> list[RunRecord]:
    return metadata.runs(flow, states=[RunState.PENDING, RunState.RUNNING], limit=_RUNNING)


def _row(run: RunRecord, state: str, now: float) -> tuple[str, ...]:
    started, took = tables.local(run.created_at), tables.took(run, state, now)
    return (run.flow, run.run, state, started, took, run.user)


def _goes_on(metadata: MetadataStore, run: RunRecord, state: str, now: float) -> str:
    where = f"{run.flow}/{run.run}"
    if state == tables.LEFT:
        return tables.orphaned(where)
    steps = "; ".join(_counts(metadata, run)) or "no task yet"
    return f"{where}  for {tables.took(run, state, now)}: {steps}"


def _counts(metadata: MetadataStore, run: RunRecord) -> Iterator[str]:
    """Yield the steps with unfinished or failed tasks, with the number of their tasks by state."""
    for step in metadata.progress(run.key):
        if set(step.tasks) != {TaskState.SUCCEEDED}:
            counts = (f"{count} {state.value}" for state, count in step.tasks.items())
            yield f"{step.step} {', '.join(counts)}"


def _failed(metadata: MetadataStore, run: RunRecord) -> str:
    return f"{run.flow}/{run.run}  {why(run, failed_task(metadata, run)) or 'no reason was kept'}"
