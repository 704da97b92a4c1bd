"""`aflow cancel Flow/run`: cancel a run, locally or on a server, even without a coordinator."""

from __future__ import annotations

import time
from contextlib import closing

import click

from aflow._core.clock import SystemClock
from aflow._core.settings import Settings
from aflow.cli.selection import run_pathspec
from aflow.cli.server_requests import DEFAULT_SERVER, ask, of_a_server
from aflow.errors import InvalidInput, NotFound, ServerUnavailable
from aflow.executors.factory import keep_from_workers
from aflow.metadata.factory import open_metadata
from aflow.runs.liveness import request_end, settled

_HELP = f"""Cancel a run of this machine or of a server.

The coordinator of the run stops it. A run without a coordinator (it was killed, its
code cannot be loaded, its machine is gone) is recorded as cancelled at once.

Without --server and AFLOW_SERVER the command looks for the run in the local metadata, and then at
{DEFAULT_SERVER}.

\b
  aflow cancel MyFlow/1234
"""


def cancel() -> click.Command:
    """Return the command `cancel`."""
    return click.Command(
        "cancel",
        params=[click.Argument(["run"], metavar="FLOW/RUN"), of_a_server()],
        callback=_cancel,
        help=_HELP,
    )


def _cancel(run: str, server: str | None) -> None:
    spec = run_pathspec(run)
    ended = _cancelled_here(spec.flow, spec.run or "") if server is None else None
    if ended is None:
        try:
            answer = ask(server or DEFAULT_SERVER, "DELETE", f"/v1/runs/{spec}")
        except ServerUnavailable as error:
            if server is not None:
                raise
            raise NotFound(f"There is no run {spec} in the local metadata. {error}") from error
        ended = answer.get("state") == "cancelled"
    if ended:
        click.echo(f"{spec} is cancelled: no coordinator drove it.")
    else:
        click.echo(f"{spec} is being stopped.")


def _cancelled_here(flow: str, run: str) -> bool | None:
    """Cancel a run of the local metadata. Returns True if the run was recorded as cancelled, False
    if its coordinator was asked to cancel it, None if there is no such run."""
    settings = Settings.load()
    if not settings.has_metadata:
        return None
    with closing(open_metadata(settings.metadata_url, settings.durability)) as metadata:
        record = metadata.run(flow, run)
        if record is None:
            return None
        reason = f"The run was cancelled by {settings.user} (aflow cancel)."
        outcome = request_end(metadata, record, reason, SystemClock.now())
        if outcome == "asked":
            # Its coordinator may have crashed just now: wait until its lease shows that.
            left = settled(metadata, metadata.run(flow, run) or record, time.sleep)
            if left is None or left.finished_at is not None:
                return False
            outcome = request_end(metadata, left, reason, SystemClock.now())
        if outcome == "over":
            raise InvalidInput(f"{flow}/{run} cannot be cancelled: it has ended.")
        if outcome == "ended":
            keep_from_workers(record)
        return outcome == "ended"
