"""One attempt in a job's container: run in a process of its own, its log and end recorded.

There is no coordinator: the job itself tells the metadata that it lives, that its attempt began,
and how it ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from aflow.executors.local.process import ProcessExecutor
from aflow.loops import on_signal
from aflow.metadata.base import AttemptRecord, Batch, TaskRecord
from aflow.runs.attempt_logs import AttemptLogs
from aflow.scheduler.states import AttemptState
from aflow.standard_streams import binary

if TYPE_CHECKING:
    from collections.abc import Callable

    from aflow.attempt.spec import AttemptReport, AttemptSpec, RunContext
    from aflow.clock import Clock
    from aflow.deploy.order import Order
    from aflow.deploy.records import Records
    from aflow.executors.base import Usage
    from aflow.executors.local.link import GroundProcess
    from aflow.runs.attempt_logs import Kept
    from aflow.storage.base import ObjectStore

BEAT = 10.0  # seconds between signs of life
LEASE = 60.0  # seconds after which a run without any is known to be nobody's
GRACE = 20.0  # seconds for a step to end when the job is to stop: Batch gives 30 in all

_STATES = {state.value: state for state in AttemptState}


class OneAttempt:
    """Runs one attempt; it is told of it as a coordinator is."""

    def __init__(
        self,
        order: Order,
        records: Records,
        store: ObjectStore,
        clock: Clock,
        start_ground: Callable[[], GroundProcess],
    ) -> None:
        self._order = order
        self._records = records
        self._store = store
        self._clock = clock
        self._start_ground = start_ground
        self._new: list[TaskRecord] = []
        self._chunks = 0
        self._told = 0  # chunks that are recorded
        self._stopped = False

    async def run(
        self, spec: AttemptSpec, context: RunContext, new: TaskRecord | None
    ) -> tuple[AttemptReport, AttemptRecord]:
        """Run it to its end, which is for the caller to record; `new` is its task, if that is not
        recorded yet. SIGTERM interrupts it."""
        loop = asyncio.get_running_loop()
        self._spec = spec
        self._new = [new] if new is not None else []
        self._ended: asyncio.Future[tuple[AttemptReport, Usage]] = loop.create_future()
        self._running = AttemptRecord(
            spec.task, spec.attempt, AttemptState.RUNNING, self._clock.now(),
            host=socket.gethostname(), pid=os.getpid(),
        )  # fmt: skip
        self._logs = AttemptLogs(
            self._store, context.flow, context.run, self._order.max_log_size, self._stored
        )
        await asyncio.to_thread(self._note_running)
        order = self._order
        executor = ProcessExecutor(
            order.needs,
            order.request,
            self._start_ground,
            self._clock,
            max_workers=1,
            grace=GRACE,
        )
        await executor.start(context, self)
        stopping = asyncio.Event()
        on_signal(loop, signal.SIGTERM, stopping.set)
        async with asyncio.TaskGroup() as group:
            others = [
                group.create_task(self._beat(stopping)),
                group.create_task(self._stop(stopping, executor)),
            ]
            executor.launch(spec)
            report, usage = await self._ended
            for each in others:
                each.cancel()
        record = await self._finished(report, usage)
        await executor.stop()
        await self._logs.close()
        return report, record

    async def _stop(self, stopping: asyncio.Event, executor: ProcessExecutor) -> None:
        await stopping.wait()
        self._stopped = True
        executor.cancel(self._spec.task, self._spec.attempt)

    async def _beat(self, stopping: asyncio.Event) -> None:
        """Say again and again that the run goes on, and stop where somebody wants it to."""
        key, owner = self._records.run.key, f"step-functions/{self._records.run.run}"
        while True:
            metadata = self._records.metadata
            hold = await asyncio.to_thread(metadata.hold, key, owner, LEASE, self._clock.now())
            if hold.cancel is not None:
                stopping.set()
            if self._chunks > self._told:
                await asyncio.to_thread(self._note_running)
            await asyncio.sleep(BEAT)

    def _note_running(self) -> None:
        chunks = self._chunks
        record = self._running._replace(log_chunks=chunks)
        self._records.commit(Batch(tasks=self._new, attempts=[record]))
        self._new, self._told = [], chunks

    # ------------------------------------------------------------ what the executor says

    def handed(self, task: int, attempt: int, handle: str, host: str = "") -> None:
        """Nobody else has to find the attempt: where the job goes away, so does it."""

    def started(self, task: int, attempt: int, pid: int | None, at: float) -> None:
        """The attempt is running: it is recorded already."""

    def logged(self, task: int, attempt: int, stream: int, at: float, chunk: bytes) -> None:
        """The attempt has written something: it goes to the job's log, too."""
        self._logs.feed(self._spec.step, task, attempt, stream, at, chunk)
        out = binary((sys.stdout, sys.stderr)[stream])
        out.write(chunk)
        out.flush()

    def grown(self, task: int, attempt: int, count: int, manifest: bytes) -> None:
        """Items of a foreach: nobody begins with them before all are there."""

    def ended(self, report: AttemptReport, usage: Usage) -> None:
        """The attempt is over."""
        if not self._ended.done():
            self._ended.set_result((report, usage))

    def _stored(self, task: int, attempt: int, chunks: int, error: Exception | None) -> None:
        if error is None:
            self._chunks = chunks
        elif not self._ended.done():
            self._ended.set_exception(error)

    async def _finished(self, report: AttemptReport, usage: Usage) -> AttemptRecord:
        """The attempt's record, when its log is in the store."""
        _, log = self._logs.finish(report.task, report.attempt, self._clock.now())
        if log is not None and log.unstored is not None:
            await log.unstored
        state = _STATES[report.state]
        reason = report.reason
        if self._stopped and state is AttemptState.CANCELLED:
            state, reason = AttemptState.INTERRUPTED, "The job of the task was stopped."
        return _with_log(self._running, log)._replace(
            state=state,
            finished_at=report.finished_at or self._clock.now(),
            reason=reason,
            manifest=report.manifest,
            max_rss=usage.max_rss,
            cpu=usage.cpu,
        )


def _with_log(record: AttemptRecord, log: Kept | None) -> AttemptRecord:
    if log is None:
        return record
    return record._replace(
        log=log.inline,
        log_chunks=log.chunks,
        stdout_size=log.stdout_size,
        stderr_size=log.stderr_size,
    )
