"""`logs`: what tasks have printed, as they printed it."""

from __future__ import annotations

import heapq
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import click

from aflow.cli.options import option
from aflow.cli.selection import tasks_of
from aflow.cli.session import Session

if TYPE_CHECKING:
    from aflow.client import Task

_STREAMS = {"stdout": ("stdout",), "stderr": ("stderr",), "both": ("stdout", "stderr")}


def logs_parameters() -> list[click.Parameter]:
    """The arguments and the options of `logs`."""
    return [
        # `logs show PATHSPEC` is how it was written when there was more than one thing to do.
        click.Argument(["words"], nargs=-1, required=True, metavar="[show] PATHSPEC"),
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
    ]


def logs(
    session: Session, words: tuple[str, ...], stream: str, timestamps: bool, attempt: int | None
) -> None:
    """Write the log of each task to stdout, byte for byte."""
    paths = words[1:] if words[0] == "show" else words
    if len(paths) != 1:
        raise click.UsageError("Give one pathspec: logs RUN[/STEP[/TASK]]")
    for task in tasks_of(session, paths[0], attempt):
        session.note(f"Dumping logs of {task.pathspec}")
        _write(task, _STREAMS[stream], timestamps)


def _write(task: Task, streams: tuple[str, ...], timestamps: bool) -> None:
    sys.stdout.flush()
    lines = heapq.merge(
        *(task.loglines(stream, as_unicode=False) for stream in streams), key=lambda line: line[0]
    )
    for at, text in lines:
        if timestamps:
            sys.stdout.buffer.write(_stamp(at))
        sys.stdout.buffer.write(text + b"\n")
    sys.stdout.buffer.flush()


def _stamp(at: datetime) -> bytes:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3].encode() + b" "
