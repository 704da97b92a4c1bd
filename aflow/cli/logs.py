"""`logs`: show or redact the output of tasks."""

from __future__ import annotations

import heapq
import re
import sys
from contextlib import closing
from datetime import UTC, datetime
from threading import Event
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import click

from aflow import client
from aflow._core.clock import shown_time
from aflow._core.ids import Pathspec
from aflow._core.process import binary, flush, is_terminal
from aflow.cli import tables
from aflow.cli.errors import printable
from aflow.cli.options import Subcommand, count_option, flag, option
from aflow.cli.selection import pathspec, pathspec_argument, recorded_run, tasks_of
from aflow.cli.server_requests import events, of_a_server
from aflow.cli.session import Session
from aflow.client import redact
from aflow.errors import NotFound
from aflow.metadata.factory import open_metadata
from aflow.runs.liveness import is_left
from aflow.runs.log_tail import LogTail
from aflow.step_functions.unrecorded import look
from aflow.storage.factory import open_recorded_store

if TYPE_CHECKING:
    from aflow._core.settings import Settings
    from aflow.client import Task

_STREAMS = {"stdout": ("stdout",), "stderr": ("stderr",), "both": ("stdout", "stderr")}


def logs_commands() -> dict[str, Subcommand]:
    """Return the subcommands of `logs`, by name."""
    timestamps = option(
        "--timestamps/--no-timestamps", default=False, help="Print the time before each line."
    )
    follow = flag("-f", "--follow", help="Follow the output until the run has ended.")
    latest = option(
        "--latest/--all",
        default=True,
        help="The log of the latest attempt, or of all attempts.  [default: latest]",
    )
    not_done = flag("--include-not-done", help="Include tasks that have not ended.")
    return {
        "show": Subcommand(
            "Show what tasks have printed.",
            [*_which_logs(", by time", "the latest"), timestamps, follow, of_a_server()],
            show,
        ),
        "scrub": Subcommand(
            "Replace what tasks have printed by a line that says so; it cannot be undone.",
            [*_which_logs(), latest, not_done],
            scrub,
        ),
    }


def _which_logs(order: str = "", default: str = "see --latest") -> list[click.Parameter]:
    both = f"Both streams{order}.  [default]"
    attempt = f"The log of this attempt, counted from 0.  [default: {default}]"
    return [
        pathspec_argument(),
        option("--stdout", "stream", flag_value="stdout", help="Only stdout."),
        option("--stderr", "stream", flag_value="stderr", help="Only stderr."),
        option("--both", "stream", flag_value="both", default="both", help=both),
        count_option("--attempt", least=0, help=attempt),
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
    every = not latest and attempt is None
    tasks = (task for task in tasks_of(session, path, attempt) if include_not_done or task.finished)
    count = 0
    for each in redact.redact_tasks(tasks, _STREAMS[stream], every_attempt=every):
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
    """Write the log of each task to stdout, unchanged; or follow a run, and return its exit
    code."""
    if follow or server is not None:
        if attempt is not None:
            raise click.UsageError(
                "--attempt shows ended attempts: it cannot be used with --follow or --server."
            )

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
    """Report why a run without tasks, and thus without logs, has failed."""
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


# `logs --follow`: the output of a run as it is written; of a local run, or of a run of a server.


BOTH = ("stdout", "stderr")
LOOK = 0.5  # seconds between polls
_POLLS = 20  # polls between questions whether anyone drives the run


def follow_here(spec: Pathspec, settings: Settings, streams: tuple[str, ...]) -> int:
    """Print the output of the tasks of `spec`, until their run has ended.

    Args:
        spec: The run, step or task.
        settings: The settings, which have the metadata of the run.
        streams: `stdout`, `stderr` or both.

    Returns:
        The exit code, which is 0 if the run succeeded.

    Raises:
        NotFound: If the run or the task does not exist.
    """
    url = settings.metadata_url
    with closing(open_metadata(url, settings.durability, read_only=True)) as metadata:
        run = recorded_run(metadata, spec)
        store = open_recorded_store(run.settings["storage"])
        task = None if spec.task is None else int(spec.task)
        log_tail = LogTail(metadata, store, run, spec.step, task)
        name, pause, polls, is_noted = f"{run.flow}/{run.run}", Event(), 0, False
        while True:
            over = log_tail.has_ended()
            for line in log_tail.poll():
                if line.stream in streams:
                    _print(run.run, line.step, line.task, line.at, line.stream, line.text)
            now = metadata.run(run.flow, run.run)
            if over or now is None:
                return 0 if now is None else _ended(name, now.state.value, now.reason)
            if not is_noted and polls % _POLLS == 0 and is_left(now):
                click.echo(tables.orphaned(name), err=True)
                is_noted = True
            pause.wait(LOOK)
            polls += 1


def follow_there(
    server: str, spec: Pathspec, streams: tuple[str, ...], *, follow: bool, known: bool = False
) -> int:
    """Print the output of the tasks of a server's run, like `follow_here`; without `follow` only
    the present output.

    Args:
        server: The URL of the server.
        spec: The run, step or task.
        streams: `stdout`, `stderr` or both.
        follow: Whether to continue until the run has ended.
        known: Whether the server is known to have the run: then a first failure is retried.

    Returns:
        The exit code, which is 0 if the run succeeded.
    """
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
    """Print a line in the format of `aflow run`, to the stream that its task has written it to."""
    out = sys.stdout if stream == "stdout" else sys.stderr
    head = _stamp(datetime.fromtimestamp(shown_time(at), UTC)) + f"[{run}/{step}/{task}] ".encode()
    if is_terminal(out):  # allows colours, but no other control sequences of an untrusted run
        text = _NO_COLOURS.sub(lambda found: found[0].replace(b"\x1b", b"\\x1b"), text)
        text = text.replace(b"\x07", b"\\x07")
    flush(out)
    raw = binary(out)
    raw.write(head + text + b"\n")
    raw.flush()


def _ended(name: str, state: str, reason: str) -> int:
    click.echo(printable(f"{name} has {state}. {reason}".strip()), err=True)
    return 0 if state == "succeeded" else 1
