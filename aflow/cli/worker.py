"""`aflow worker`: take tasks from a queue and run them here."""

from __future__ import annotations

import asyncio
import os
import queue as queues
import signal
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import click

from aflow.cli.options import option
from aflow.config import Settings, forget_signing_key, usable_cpus
from aflow.errors import InvalidSetting
from aflow.own_folders import make_private

_MOST_LINES = 10_000  # of the log that wait to be read
_CLOSING = 2.0  # seconds for them at the end
_HELP = """Take tasks of flows from a queue, and run them on this machine.

Flows run by workers when they are started with --executor queue and the same --queue. The datastore
of the run has to be one that this machine can reach. SIGTERM: nothing new is taken; what runs may
end within --grace, and what does not goes back to others, at no cost. A second signal ends at once.

\b
  aflow worker --queue redis://broker:6379/0 --slots 4
  aflow worker --queue sqlite:////tmp/queue.db --pool gpu --pool default
"""


def worker(words: Sequence[str]) -> object:
    """Run the command with these words."""
    command = click.Command("worker", params=_parameters(), callback=_worker, help=_HELP)
    return command.main([*words], prog_name="aflow worker", standalone_mode=False)


def _parameters() -> list[click.Parameter]:
    seconds = click.FloatRange(min=0)
    return [
        option("--queue", metavar="URL", help="The queue.  [default: AFLOW_QUEUE]"),
        option(
            "--slots",
            type=click.IntRange(min=1),
            metavar="N",
            help="Tasks at a time.  [default: one for each processor]",
        ),
        option(
            "--pool",
            "pools",
            multiple=True,
            default=["default"],
            show_default=True,
            metavar="NAME",
            help="Take tasks of this pool; the ones named first go first.",
        ),
        option(
            "--grace",
            type=seconds,
            default=30.0,
            show_default=True,
            metavar="SECONDS",
            help="How long what runs may go on after SIGTERM.",
        ),
        option(
            "--lease",
            type=click.FloatRange(min=1),
            default=30.0,
            show_default=True,
            metavar="SECONDS",
            help="After which others get the tasks of a worker that is gone.",
        ),
        option("--quiet", is_flag=True, help="Do not log each task."),
    ]


def _worker(
    queue: str | None,
    slots: int | None,
    pools: tuple[str, ...],
    grace: float,
    lease: float,
    quiet: bool,
) -> int:
    settings = Settings.load(queue=queue)
    if settings.queue is None:
        raise InvalidSetting("Which queue? Give --queue URL, or set AFLOW_QUEUE.")
    from aflow.loops import fastest_loop
    from aflow.worker import WorkerOptions

    options = WorkerOptions(
        tuple(dict.fromkeys(pools)),
        slots or usable_cpus(),
        grace,
        lease,
        settings.cache / "code",
        settings.signing_key_bytes,
        quiet,
    )
    forget_signing_key()
    options.folder.parent.mkdir(parents=True, exist_ok=True)
    make_private(options.folder)
    health_file = Path(settings.health_file) if settings.health_file else None
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        return runner.run(_run(settings.queue, options, health_file))


async def _run(url: str, options: object, health_file: Path | None) -> int:
    from aflow import backends
    from aflow.clock import SystemClock
    from aflow.loops import on_signal
    from aflow.worker import Worker, WorkerOptions

    assert isinstance(options, WorkerOptions), "made above"
    log = _Log()
    made = Worker(backends.open_queue(url), options, SystemClock(), log.say)
    loop = asyncio.get_running_loop()
    working = asyncio.current_task()
    assert working is not None, "this is one"

    def stop() -> None:
        made.drain()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signum)  # the second one ends us at once

    for signum in (signal.SIGTERM, signal.SIGINT):
        on_signal(loop, signum, stop)
    try:
        if health_file is None:
            await made.run()
        else:
            await _with_signs_of_life(made.run(), health_file)
    finally:
        log.close()
    return 0


class _Log:
    """Lines on the standard error, written by a thread: whoever reads them and stands still holds
    up no task. Lines that nobody reads for too long are dropped, and counted."""

    def __init__(self) -> None:
        self._lines: queues.Queue[str | None] = queues.Queue(_MOST_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="aflow-log", daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """Write this line, soon."""
        line = "".join(each if each.isprintable() else " " for each in text)
        try:
            if self._dropped:
                self._lines.put_nowait(f"{self._dropped} lines of the log were dropped.")
                self._dropped = 0
            self._lines.put_nowait(line)
        except queues.Full:
            self._dropped += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            data = line.encode("utf-8", "backslashreplace") + b"\n"
            try:
                while data:
                    data = data[os.write(2, data) :]
            except OSError:  # nobody reads it any more
                continue

    def close(self) -> None:
        """Write what there is, as far as somebody reads it."""
        try:
            self._lines.put(None, timeout=_CLOSING)
        except queues.Full:
            return
        self._thread.join(_CLOSING)


async def _with_signs_of_life(work: Coroutine[Any, Any, None], file: Path) -> None:
    """Work, and touch the file meanwhile; raises what either of them raises."""
    from aflow.health import beat

    working = asyncio.create_task(work)  # noqa: TID251 -- both end here
    beating = asyncio.create_task(beat(file))  # noqa: TID251 -- both end here
    try:
        await asyncio.wait([working, beating], return_when=asyncio.FIRST_COMPLETED)
    finally:
        beating.cancel()
        if not working.done():
            working.cancel()
        results = await asyncio.gather(working, beating, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
