"""`aflow runs [FLOW]`: list the recorded runs, newest first."""

from __future__ import annotations

import heapq
import json
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from aflow._core import ids
from aflow._core.clock import SystemClock, shown_time, timespan
from aflow._core.settings import Settings
from aflow.cli import tables
from aflow.cli.options import SectionedCommand, count_option, flag, option, tags_option
from aflow.cli.server_requests import of_a_server
from aflow.errors import InvalidInput, NotFound
from aflow.flow.names import did_you_mean
from aflow.metadata.factory import has_runs, open_to_read
from aflow.scheduler.states import RunState
from aflow.step_functions.unrecorded import look

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore, RunRecord

_COLUMNS = ("RUN", "STATE", "STARTED", "TOOK", "USER", "TAGS")
_WHEN = "a time such as 2025-12-24, 2025-12-24T18:00 or 30m, 2h, 7d, 1w (ago)"


def runs() -> click.Command:
    """Return the command `runs`."""
    return SectionedCommand(
        "runs",
        params=[
            click.Argument(["flow"], required=False),
            option(
                "--status",
                "states",
                multiple=True,
                type=click.Choice([state.value for state in RunState]),
                help="Only runs of this status; may be given several times.",
            ),
            tags_option("Only runs that have this tag."),
            option("--since", metavar="WHEN", help=f"Only runs created since {_WHEN}."),
            option("--until", metavar="WHEN", help="Only runs created before this time."),
            count_option(
                "--limit", least=0, default=20, help="The largest number of runs; 0: all."
            ),
            flag("--json", "as_json", help="Print a JSON list."),
            of_a_server(),
        ],
        callback=_runs,
        help="List the recorded runs of one flow or of all flows, newest first.",
    )


def _runs(
    flow: str | None,
    states: tuple[str, ...],
    tags: tuple[str, ...],
    since: str | None,
    until: str | None,
    limit: int,
    as_json: bool,
    server: str | None,
) -> None:
    now = SystemClock.now()
    which: dict[str, Any] = {
        "states": [RunState(state) for state in states],
        "tags": tags,
        "since": _time("--since", since, now),
        "until": _time("--until", until, now),
        "limit": limit or None,
    }
    found = _found(flow, which, Settings.load(metadata=server))
    if as_json:
        click.echo(json.dumps([_as_json(run) for run in found], indent=2))
    elif found:
        tables.show(_COLUMNS, [_row(run, now) for run in found])
    else:
        click.echo("No such runs.")


def _found(flow: str | None, which: dict[str, Any], settings: Settings) -> list[RunRecord]:
    if flow is not None:
        ids.flow_name(flow)
    look(settings, flow)
    if not has_runs(settings.metadata_url):
        raise NotFound(f"Nothing has run here yet: there is no datastore {settings.root}.")
    url = settings.metadata_url
    with closing(open_to_read(url, settings.durability)) as metadata:
        flows = [name for name, _ in metadata.flows()] if flow is None else [_known(metadata, flow)]
        of_each = [metadata.runs(each, **which) for each in flows]
    newest_first = heapq.merge(*of_each, key=lambda run: run.created_at, reverse=True)
    return list(islice(newest_first, which["limit"]))


def _known(metadata: MetadataStore, flow: str) -> str:
    known = [name for name, _ in metadata.flows()]
    # A service that does not list flows may still have runs of them.
    if flow not in known and not metadata.runs(flow, limit=1):
        there = f" These have: {', '.join(known[:20])}." if known else ""
        raise NotFound(f"Flow {flow!r} has never run here.{did_you_mean(flow, known)}{there}")
    return flow


def _time(name: str, text: str | None, now: float) -> float | None:
    """Parse a time into seconds since the epoch; raises InvalidInput if it is not valid."""
    if text is None:
        return None
    ago = timespan(text)
    if ago is not None:
        return now - ago
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{name} {text!r} is not a time: write {_WHEN}.") from error


def _row(run: RunRecord, now: float) -> tuple[str, ...]:
    state = tables.state(run)
    started, took = tables.local(run.created_at), tables.took(run, state, now)
    where, tags = f"{run.flow}/{run.run}", ", ".join(run.tags)
    return (where, state, started, took, run.user, tags)


def _as_json(run: RunRecord) -> dict[str, Any]:
    return {
        "pathspec": f"{run.flow}/{run.run}",
        "flow": run.flow,
        "run": run.run,
        "status": run.state.value,
        "orphaned": tables.state(run) == tables.LEFT,
        "user": run.user,
        "created_at": _iso(run.created_at),
        "finished_at": None if run.finished_at is None else _iso(run.finished_at),
        "reason": run.reason,
        "origin_run": run.origin_run,
        "tags": list(run.tags),
        "system_tags": list(run.system_tags),
    }


def _iso(at: float) -> str:
    return datetime.fromtimestamp(shown_time(at), UTC).isoformat()
