"""An executor whose attempts are run by a worker, with a queue in between. Everything but the
attempts runs in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aflow._core.clock import SystemClock
from aflow.executors.base import Orphan, Reports
from aflow.executors.local.executor import needs_of
from aflow.executors.protocol import Job, python_version
from aflow.executors.queue_workers import QueueExecutor, pools_of
from aflow.flow.definition import FlowDefinition
from aflow.metadata.sqlite import SqliteMetadata
from aflow.queue.sqlite import SqliteQueue
from aflow.storage.local import LocalStore
from aflow.task.program import request_of
from aflow.task.spec import AttemptSpec, RunContext
from aflow.worker import Worker, WorkerOptions


class OverAQueue:
    """A worker of the flow's only pool, and the executor that puts attempts into its queue."""

    lookahead = 0

    def __init__(self, definition: FlowDefinition, workers: int, grace: float) -> None:
        self._definition = definition
        self._workers = workers
        self._grace = grace
        self._metadata = SqliteMetadata(":memory:")
        self._queue = SqliteQueue()
        self._sender: QueueExecutor | None = None
        self._worker: Worker | None = None
        self._working: asyncio.Task[None] | None = None

    async def start(self, context: RunContext, reports: Reports) -> None:
        queue = self._queue
        folder = Path(context.storage_url.removeprefix("file://"))
        options = WorkerOptions(("default",), self._workers, self._grace, 30.0, folder / "code")
        self._worker = Worker(queue, options, SystemClock(), lambda text: None)
        self._working = asyncio.create_task(self._worker.run())
        self._sender = QueueExecutor(
            lambda: queue,
            LocalStore(folder),
            self._metadata,
            self._job,
            pools_of(self._definition).__getitem__,
            SystemClock(),
            grace=self._grace,
        )
        await self._sender.start(context, reports)

    def _job(self, context: RunContext) -> Job:
        request, needs = request_of(self._definition), needs_of(self._definition)
        return Job(context, request, needs, None, "", "task", python_version(), 1 << 30)

    def recover(self, orphans: Sequence[Orphan]) -> Sequence[Orphan]:
        return orphans

    def forget(self, task: int, attempt: int) -> None:
        self._made().forget(task, attempt)

    def launch(self, spec: AttemptSpec) -> None:
        self._made().launch(spec)

    def cancel(self, task: int, attempt: int) -> None:
        self._made().cancel(task, attempt)

    async def conclude(self) -> None:
        await self._made().conclude()

    async def leave(self) -> None:
        await self._made().leave()

    async def stop(self) -> None:
        if self._sender is not None and self._worker is not None and self._working is not None:
            await self._sender.stop()
            self._worker.drain()
            await self._working
            await self._queue.close()
        self._metadata.close()

    def _made(self) -> Any:
        assert self._sender is not None, "it was started"
        return self._sender
