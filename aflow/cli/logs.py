"""`logs`: what tasks have printed, as they printed it."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

import click

from aflow.cli.asking import of_a_server
from aflow.cli.options import flag, option
from aflow.cli.selection import pathspec, pathspec_argument, tasks_of
from aflow.cli.session import Session
from aflow.errors import NotFound
from aflow.standard_streams import binary, flush

if TYPE_CHECKING:
    from aflow.client import Task

Commands = dict[str, tuple[str, list[click.Parameter], Callable[..., object]]]
_STREAMS = {"stdout": ("stdout",), "stderr": ("stderr",), "both": ("stdout", "stderr")}


def logs_commands() -> Commands:
    """The commands below `logs`, by name: help, parameters, body."""
    scrub_help = "Put a line that says so in the place of what tasks have printed, for good."
    return {
        "show": ("Show what tasks have printed.", _show_parameters(), show),
        "scrub": (scrub_help, _scrub_parameters(), scrub),
    }


def _show_parameters() -> list[click.Parameter]:
    return [
        pathspec_argument(),
        option("--stdout", "stream", flag_value="stdout", help="What was printed to stdout."),
        option("--stderr", "stream", flag_value="stderr", help="What was printed to stderr."),
        option(
            "--both",
            "stream",
            flag_value="both",
            default="both",
            help="Both, by time.  [default]",
        ),
        option(
            "--timestamps/--no-timestamps", default=False, help="Begin each line with its time."
        ),
        option(
            "--attempt",
            type=click.IntRange(min=0),
            metavar="N",
            help="That of this attempt, counted from 0.  [default: the latest]",
        ),
        flag("-f", "--follow", help="Go on with what is printed, until the run has ended."),
        of_a_server(),
    ]


def _scrub_parameters() -> list[click.Parameter]:
    return [
        pathspec_argument(),
        option("--stdout", "stream", flag_value="stdout", help="What was printed to stdout."),
        option("--stderr", "stream", flag_value="stderr", help="What was printed to stderr."),
        option("--both", "stream", flag_value="both", default="both", help="Both.  [default]"),
        option(
            "--attempt",
            type=click.IntRange(min=0),
            metavar="N",
            help="That of this attempt, counted from 0.",
        ),
        option(
            "--latest/--all",
            default=True,
            help="That of the latest attempt, or of all.  [default: latest]",
        ),
        flag("--include-not-done", help="Of tasks that have not ended, too."),
    ]


def scrub(
    session: Session,
    path: str,
    stream: str,
    attempt: int | None,
    latest: bool,
    include_not_done: bool,
) -> None:
    """Redact the logs of each task."""
    from aflow.client import redact  # few programs do

    every = not latest and attempt is None
    count = 0
    for task in tasks_of(session, path, attempt):
        if not (include_not_done or task.finished):
            continue
        for each in redact.scrub(task, _STREAMS[stream], every_attempt=every):
            count += 1
            session.note(f"Logs have been scrubbed for {each}")
    if count == 0:
        raise NotFound(
            f"There is nothing to redact of {path}: its tasks have printed nothing there, or are "
            "not over yet (--include-not-done redacts what they have printed so far)."
        )


def show(
    session: Session,
    path: str,
    stream: str,
    timestamps: bool,
    attempt: int | None,
    follow: bool,
    server: str | None,
) -> int:
    """Write the log of each task to stdout, byte for byte; or follow a run: its exit code then."""
    if follow or server is not None:
        if attempt is not None:
            raise click.UsageError("--attempt is of what is over: leave --follow and --server out.")
        from aflow.cli.following import follow_here, follow_there

        spec = pathspec(session, path)
        if server is not None:
            return follow_there(server, spec, _STREAMS[stream], follow=follow)
        return follow_here(spec, session.settings(), _STREAMS[stream])
    _look_for(session, path)
    for task in tasks_of(session, path, attempt):
        session.note(f"Dumping logs of {task.pathspec}")
        _write(task, _STREAMS[stream], timestamps)
    return 0


def _look_for(session: Session, path: str) -> None:
    """Say why a run has failed that has no tasks, and so no logs."""
    from aflow import client
    from aflow.deploy.unrecorded import look

    spec, settings = pathspec(session, path), session.settings()
    if str(spec.run).startswith("sfn-"):
        look(settings, spec.flow)
    if spec.step is not None:
        return
    client.metadata(settings.place)
    run = client.Run(str(spec), _namespace_check=False)
    if not any(run.steps()) and run.status == "failed":
        session.note(f"{spec} has no tasks. {run._source.record.reason}")


def _write(task: Task, streams: tuple[str, ...], timestamps: bool) -> None:
    flush(sys.stdout)
    out = binary(sys.stdout)
    lines = heapq.merge(
        *(task.loglines(stream, as_unicode=False) for stream in streams), key=lambda line: line[0]
    )
    for at, text in lines:
        if timestamps:
            out.write(_stamp(at))
        out.write(text + b"\n")
    out.flush()


def _stamp(at: datetime) -> bytes:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3].encode() + b" "
