"""`aflow doctor`: check whether everything that the settings name exists and works."""

from __future__ import annotations

import json

import click

from aflow._core.clock import SystemClock
from aflow.cli.doctor.checks import findings
from aflow.cli.doctor.findings import State, worst
from aflow.cli.errors import FAILED
from aflow.cli.options import SectionedCommand, flag

_HELP = """Check this machine, the settings, and everything they name: datastore, metadata, queue,
and the services of AWS. One line each: ok, warn or fail, and what to do. The exit code is 1 if
a check fails. Nothing is changed: an object that is written to a bucket is removed again."""
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor() -> click.Command:
    """Return the command `doctor`."""
    return SectionedCommand(
        "doctor",
        help=_HELP,
        params=[flag("--json", "as_json", help="Print a JSON list.")],
        callback=_doctor,
    )


def _doctor(as_json: bool) -> int:
    found = []
    for each in findings(SystemClock()):
        found.append(each)
        if not as_json:
            click.echo(line(each.state, each.name, each.text))
    if as_json:
        click.echo(json.dumps([each._asdict() for each in found], indent=2))
    return FAILED if worst(found) is State.FAIL else 0


def line(state: str, name: str, text: str) -> str:
    """Return a finding as a line of text.

    Args:
        state: The name of a State, which determines the colour.
        name: The name of the check.
        text: The message and the advice.
    """
    return f"{click.style(f'{state:<5}', fg=_COLOURS[state])} {name:<14} {text}"
