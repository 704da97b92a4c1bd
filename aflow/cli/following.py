"""`logs --follow`: what a run prints, as it prints it; of a run here, or of one of a server."""

from __future__ import annotations

import re
import sys
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import click

from aflow.cli.asking import events
from aflow.cli.problems import printable
from aflow.clock import shown_time
from aflow.ids import Pathspec
from aflow.standard_streams import binary, flush, is_terminal

if TYPE_CHECKING:
    from aflow.config import Settings

BOTH = ("stdout", "stderr")
LOOK = 0.5  # seconds between looks


def follow_here(spec: Pathspec, settings: Settings, streams: tuple[str, ...]) -> int:
    """Print what the tasks that `spec` names print, until their run has ended: the exit code, which
    is 0 if it did well. Raises NotFound."""
    from threading import Event

    from aflow import backends
    from aflow.errors import NotFound
    from aflow.following import Following

    metadata = backends.open_metadata(settings.metadata_url, settings.durability, read_only=True)
    try:
        run = metadata.run(spec.flow, spec.run or "")
        if run is None:
            raise NotFound(f"There is no run {spec.flow}/{spec.run} in {metadata.url}.")
        store = backends.open_recorded_store(run.settings["storage"])
        task = None if spec.task is None else int(spec.task)
        following = Following(metadata, store, run, spec.step, task)
        pause, over = Event(), False
        while not over:
            over = following.has_ended()
            for line in following.poll():
                if line.stream in streams:
                    _print(run.run, line.step, line.task, line.at, line.stream, line.text)
            if not over:
                pause.wait(LOOK)
        now = metadata.run(spec.flow, run.run)
        return 0 if now is None else _ended(f"{spec.flow}/{run.run}", now.state.value, now.reason)
    finally:
        metadata.close()


def follow_there(
    server: str, spec: Pathspec, streams: tuple[str, ...], *, follow: bool, known: bool = False
) -> int:
    """The same of a run of a server; without `follow` what there is now. A run that is `known` to
    the server is followed though that is away at this moment."""
    which = {"step": spec.step, "task": spec.task, "follow": int(follow)}
    query = urlencode({name: value for name, value in which.items() if value is not None})
    path = f"/v1/runs/{spec.flow}/{spec.run}/logs?{query}"
    for kind, data in events(server, path, there=known):
        if kind == "line" and data["stream"] in streams:
            text = data["text"].encode("utf-8", "surrogateescape")
            _print(spec.run or "", data["step"], data["task"], data["at"], data["stream"], text)
        elif kind == "end" and follow:
            return _ended(f"{spec.flow}/{spec.run}", data["state"], data["reason"])
    return 0


_NO_COLOURS = re.compile(rb"\x1b(?!\[[0-9;:]*m)")


def _print(run: str, step: str, task: int, at: float, stream: str, text: bytes) -> None:
    """A line as `aflow run` prints it, where its task printed it to."""
    when = datetime.fromtimestamp(shown_time(at)).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    out = sys.stdout if stream == "stdout" else sys.stderr
    head = f"{when} [{run}/{step}/{task}] ".encode()
    if is_terminal(out):  # colours are the task's own; all else may come from anybody's run
        text = _NO_COLOURS.sub(lambda found: found[0].replace(b"\x1b", b"\\x1b"), text)
        text = text.replace(b"\x07", b"\\x07")
    flush(out)
    raw = binary(out)
    raw.write(head + text + b"\n")
    raw.flush()


def _ended(name: str, state: str, reason: str) -> int:
    click.echo(printable(f"{name} has {state}. {reason}".strip()), err=True)
    return 0 if state == "succeeded" else 1
