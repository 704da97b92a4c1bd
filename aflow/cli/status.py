"""`aflow status`: the flows that have run here, and how their latest runs went."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from aflow.clock import SystemClock
from aflow.config import Settings

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore, RunRecord

_COLUMNS = ("FLOW", "LATEST RUN", "STATE", "STARTED", "TOOK", "USER")


def status(words: Sequence[str]) -> int:
    """Print a table with a line a flow, the latest first; raises a usage error for any word."""
    if words:
        raise click.UsageError(f"aflow status takes no {words[0]!r}.")
    from aflow import backends

    settings = Settings.load()
    if not (settings.root / "metadata.db").exists():
        click.echo(f"Nothing has run here yet: there is no datastore {settings.root}.")
        return 0
    metadata = backends.open_metadata(settings.metadata_url, settings.durability, read_only=True)
    try:
        runs = latest_runs(metadata)
    finally:
        metadata.close()
    click.echo(f"Datastore: {settings.root}\n")
    now = SystemClock.now()
    for line in table([_COLUMNS, *(_row(run, now) for run in runs)]):
        click.echo(line)
    return 0


def latest_runs(metadata: MetadataStore) -> list[RunRecord]:
    """The latest run of each flow, the latest of all first."""
    runs = [run for flow, _ in metadata.flows() for run in metadata.runs(flow, limit=1)]
    return sorted(runs, key=lambda run: run.created_at, reverse=True)


def _row(run: RunRecord, now: float) -> tuple[str, ...]:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.created_at))
    took = duration((run.finished_at or now) - run.created_at)
    return (run.flow, run.run, run.state.value, started, took, run.user)


def duration(seconds: float) -> str:
    """A time in the two largest of its units, as `1m 05s`."""
    if seconds < 60:
        return f"{max(seconds, 0.0):.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h {minutes:02}m"
    days, hours = divmod(hours, 24)
    return f"{days}d {hours:02}h"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines, each column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
