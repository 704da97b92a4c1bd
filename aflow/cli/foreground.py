"""Run a flow in the foreground, for `aflow run` and `python flow.py run`.

The zygote of its tasks is started before all else (executors/local/zygote_start.py), and starts up
while this process checks the flow and imports asyncio, in parallel.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from aflow.errors import MetadataUnavailable, StoreUnavailable
from aflow.executors.local import zygote_start

if TYPE_CHECKING:
    from aflow._core.settings import RunOptions, Settings
    from aflow.coordinator import RunHandle
    from aflow.executors.local.zygote_start import EarlyZygote
    from aflow.flow.definition import FlowDefinition
    from aflow.runs.events import RunEnded, RunEvent

# Imports are inside functions: asyncio and the modules that need it are imported while the zygote
# imports its own modules.

LOOK_AHEAD = 0.1  # seconds after the start of the first task until `ending.look_ahead` is called


def run(
    definition: FlowDefinition,
    options: RunOptions,
    settings: Settings,
    watch: Callable[[Sequence[RunEvent]], None],
    announce: Callable[[str], None] | None,
    recover: str | None,
) -> tuple[RunEnded, int | None]:
    """Run a flow, or continue its run `recover`, and wait until the run has ended. Raises the error
    of the storage or of the metadata if the run could not continue.

    Args:
        definition: The flow, read from the file that this program runs.
        options: The options of the run.
        settings: The settings of this program: metadata, datastore and user.
        watch: Called with the events of the run, in order.
        announce: Called in a thread with the id of the run, once it is recorded; None for nothing.
        recover: The id of the run to recover; None to start a new one.

    Returns:
        The last event of the run, and the number of the signal that stopped it, if any.
    """
    has_local_steps = _has_local_steps(definition, options)
    if has_local_steps:
        zygote_start.have_zygote()
    zygote = zygote_start.take_zygote()
    if zygote is not None and not has_local_steps:
        zygote.close()
    try:
        import asyncio

        from aflow._core.process import fastest_loop, outer_loop_paused

        # Forking a process for each task costs so much more than its messages that importing
        # the fastest loop would only pay off after some hundred tasks.
        factory = None if _forks_each(definition, options) else fastest_loop()
        with outer_loop_paused(), asyncio.Runner(loop_factory=factory) as runner:
            given = zygote if has_local_steps else None
            work = _run(definition, options, settings, watch, announce, given, recover)
            return runner.run(work)
    finally:
        if zygote is not None:
            zygote.close()


def _has_local_steps(definition: FlowDefinition, options: RunOptions) -> bool:
    """Return whether processes of this machine run tasks."""
    marked = any(step.decorator("batch") for step in definition.steps.values())
    if options.queue is None and options.executor == "local" and not marked:
        return True
    from aflow.executors.factory import locations, needs_processes

    return needs_processes(definition, locations(definition, options))


def _forks_each(definition: FlowDefinition, options: RunOptions) -> bool:
    """Return whether each task of the run has its own process on this machine."""
    is_here = options.executor == "local" and options.queue is None
    some_wait = any(step.is_async for step in definition.steps.values())
    return is_here and options.isolation == "task" and not some_wait


async def _run(
    definition: FlowDefinition,
    options: RunOptions,
    settings: Settings,
    watch: Callable[[Sequence[RunEvent]], None],
    announce: Callable[[str], None] | None,
    zygote: EarlyZygote | None,
    recover: str | None,
) -> tuple[RunEnded, int | None]:
    from aflow._core.threads import in_daemon_thread
    from aflow.coordinator import Coordinator

    async with Coordinator(
        storage=settings.storage_url,
        metadata=settings.metadata_url,
        durability=settings.durability,
        user=settings.user,
        holder_kind=settings.holder_kind,
    ) as coordinator:
        first = None if zygote is None else zygote.lend()
        given: Any = {"options": options, "zygote": first, "watch": _ahead(watch)}
        if recover is None:
            handle = await coordinator.start(definition, **given)
        else:
            handle = await coordinator.recover(definition, recover, **given)
        if announce is not None:
            # A pipe that nobody reads blocks the thread, for which Ctrl-C must not wait.
            await in_daemon_thread(announce, handle.id)
        stopped_by = _stop_on_signals(handle, leave_on_signal=settings.holder_kind != "run")
        try:
            return await handle.wait(), stopped_by[0] if stopped_by else None
        except (MetadataUnavailable, StoreUnavailable) as error:
            raise type(error)(
                f"{error} What the run has finished is kept: then resume the run, or go on with it "
                f"(aflow recover {handle.pathspec})."
            ) from error


def _ahead(
    watch: Callable[[Sequence[RunEvent]], None],
) -> Callable[[Sequence[RunEvent]], None]:
    """Return `watch`, extended to do a part of the work of the exit early, while this process waits
    for tasks: once the second task starts, or LOOK_AHEAD seconds after the first one. Not earlier,
    because this process is still busy when the first task starts."""
    import asyncio

    from aflow._core import ending
    from aflow.runs.events import TaskStarting

    starts = 0
    timer: asyncio.TimerHandle

    def receive(events: Sequence[RunEvent]) -> None:
        nonlocal starts, timer
        watch(events)
        if starts < 2 and any(type(each) is TaskStarting for each in events):
            starts += 1
            if starts == 1:
                timer = asyncio.get_running_loop().call_later(LOOK_AHEAD, look_ahead)
            else:
                timer.cancel()
                asyncio.get_running_loop().call_soon(look_ahead)

    def look_ahead() -> None:
        nonlocal starts
        starts = 2
        ending.look_ahead()

    return receive


def _stop_on_signals(handle: RunHandle, *, leave_on_signal: bool) -> list[int]:
    """Let SIGINT and SIGTERM cancel the run, and SIGHUP leave it. Returns the received signals, in
    order. Ignored signals remain ignored, except SIGHUP if `leave_on_signal`."""
    import asyncio

    from aflow._core.process import on_signal

    came: list[int] = []

    def stop(signum: signal.Signals) -> None:
        came.append(signum.value)
        handle.cancel(f"The run was stopped by {signum.name}.")

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        on_signal(loop, signum, stop, signum)
    if leave_on_signal and threading.current_thread() is threading.main_thread():
        loop.add_signal_handler(signal.SIGHUP, handle.leave)
    else:
        on_signal(loop, signal.SIGHUP, handle.leave)
    return came
