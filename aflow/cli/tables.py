"""Tables for the terminal: in colours on a terminal, as plain text otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from aflow._core.clock import duration, shown_time
from aflow._core.process import is_terminal
from aflow.cli.errors import printable
from aflow.runs.liveness import is_left

if TYPE_CHECKING:
    from aflow.metadata.base import RunRecord

_COLOURS = {"succeeded": "green", "failed": "red", "running": "cyan", "orphaned": "yellow"}


def show(
    head: Sequence[str], rows: Sequence[Sequence[str]], colours: Mapping[str, str] = _COLOURS
) -> None:
    """Write a table to stdout. On a terminal the last column is wrapped if necessary.

    Args:
        head: The titles of the columns.
        rows: The cells of each row, as many as titles; control characters are escaped.
        colours: The colours of cells, by their text; other cells are not coloured.
    """
    if not is_terminal(sys.stdout):
        for line in table([head, *rows]):
            click.echo(line)
        return
    # Imported here, since it takes longer than all the rest of the command.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in head:  # only the last column may wrap, so that ids can be copied
        made.add_column(name, no_wrap=name != head[-1])
    for row in rows:
        made.add_row(*(Text(printable(each, lines=False), colours.get(each, "")) for each in row))
    Console().print(made)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines, each column as wide as its widest cell.

    Args:
        rows: The cells of each row, all of the same number; control characters are escaped.
    """
    rows = [[printable(cell, lines=False) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


LEFT = "orphaned"


def state(run: RunRecord) -> str:
    """Return the run's state; `orphaned` if it has no coordinator. May send a request to AWS for a
    run of a deployed flow, so call it once per run.

    Args:
        run: The run.
    """
    return LEFT if is_left(run) else run.state.value


def orphaned(where: str) -> str:
    """Return the sentence about an orphaned run.

    Args:
        where: The pathspec of the run.
    """
    return (
        f"{where}  orphaned: no coordinator drives it; `aflow recover {where}` recovers it, "
        f"`aflow cancel {where}` ends it"
    )


def local(at: float) -> str:
    """Return a time as text, in this machine's time zone, to the second.

    Args:
        at: The time, in seconds since the epoch.
    """
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(shown_time(at)))


def took(run: RunRecord, state: str, now: float) -> str:
    """Return the duration of the run so far; `?` for an orphaned run.

    Args:
        run: The run.
        state: The state that `state` has returned.
        now: The current time, in seconds since the epoch.
    """
    if state == LEFT:
        return "?"
    return duration((run.finished_at or now) - run.created_at)
