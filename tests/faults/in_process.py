"""Coordinators and a worker within the test's own process, on ports that fail at chosen points:
hundreds of deterministic crashes per minute."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from aflow._core.clock import Clock, SystemClock
from aflow._core.settings import RunOptions
from aflow.coordinator import Coordinator
from aflow.errors import (
    AflowError,
    LeaseLost,
    MetadataUnavailable,
    QueueUnavailable,
    StoreUnavailable,
)
from aflow.executors import protocol
from aflow.executors.protocol import Job, ReportsMessage, TaskMessage, open_message
from aflow.metadata.sqlite import SqliteMetadata
from aflow.queue.base import Lease, Message
from aflow.queue.sqlite import SqliteQueue
from aflow.scheduler.states import RunState
from aflow.storage.blobs import BlobStore
from aflow.storage.local import LocalStore
from aflow.task.config_binding import configured
from aflow.task.remote import Payloads, RemoteRunner
from aflow.task.spec import AttemptSpec
from aflow.testing.chaos import Fleet
from tests.support.failing import Failing, Killed, Points

FILE = Path(__file__).parent / "flow_files" / "small.py"


def flow_module() -> ModuleType:
    """Return the module of the flow."""
    spec = importlib.util.spec_from_file_location("small_flow_file", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Hand:
    """A worker with one slot that runs attempts in this process, one after the other, and reports
    the start and the end of each in two messages."""

    def __init__(self, queue: SqliteQueue, definition: Any, clock: Clock) -> None:
        self._queue = queue
        self._clock = clock
        self._definition = definition
        self._numbers = itertools.count(1)
        self._name = "hand"
        self._done = asyncio.Event()

    async def work(self) -> None:
        """Run attempts until cancelled."""
        while True:
            for lease in await self._queue.lease(["tasks.default"], 1, 60.0, 60.0):
                await self._one(lease)
            self._done.set()

    async def until_nothing_is_left(self) -> None:
        """Wait until all attempts are done."""
        while (await self._queue.depth("tasks.default"))[:2] != (0, 0):
            self._done.clear()
            await self._done.wait()
        # Coordinators that fail cancel what they have out: it has ended before it could be stopped.
        topic = protocol.worker_topic(self._name)
        await self._queue.ack(await self._queue.lease([topic], 1000, 60.0))

    async def _one(self, lease: Lease) -> None:
        message: TaskMessage = open_message(lease.body, "task", (), lease.topic, self._clock.now())
        spec = AttemptSpec.decode(message.spec)
        await self._send(message, (protocol.STARTED, spec.task, spec.attempt, 1, 0.0))
        report = await asyncio.to_thread(self._run, message, spec, lease.deliveries > 1)
        ended = (protocol.ENDED, spec.task, spec.attempt, None, None, *report[2:])
        await self._send(message, ended)
        with contextlib.suppress(LeaseLost):  # cancelled attempts are removed from the queue
            await self._queue.ack([lease])

    def _run(self, message: TaskMessage, spec: AttemptSpec, again: bool) -> Any:
        store = LocalStore(Path(message.store.removeprefix("file://")))
        job = Job.decode(Payloads(store, message.flow, message.run).get(message.job))
        runner = RemoteRunner(job.context, BlobStore(store), self._clock)
        runner.definition = self._definition
        runner.remember(spec)
        return runner.run(spec._replace(again=spec.again or again))

    async def _send(self, message: TaskMessage, event: tuple[Any, ...]) -> None:
        number = next(self._numbers)
        said = ReportsMessage(message.flow, message.run, self._name, "host", number, [event])
        body = said.seal((), message.reply, self._clock.now())
        await self._queue.put(message.reply, [Message(f"{self._name}:{number}", body)])


class Bench:
    """The services that coordinators and the worker use: the files of a fleet."""

    def __init__(self, fleet: Fleet, clock: Clock | None = None) -> None:
        self.fleet = fleet
        self._clock = clock or SystemClock()
        self.definition = configured(flow_module().Flow_)
        self._queue_file = Path(fleet.queue.removeprefix("sqlite:///"))
        self._metadata_file = Path(fleet.metadata_url.removeprefix("sqlite:///"))

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Hand]:
        """Run a worker."""
        queue = SqliteQueue(self._queue_file)
        hand = Hand(queue, self.definition, self._clock)
        working = asyncio.create_task(hand.work())
        try:
            yield hand
            await hand.until_nothing_is_left()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await queue.close()

    def open_queue(self, points: Points) -> Failing:
        """Open the queue as a coordinator does."""
        return Failing(SqliteQueue(self._queue_file), points, QueueUnavailable)

    @asynccontextmanager
    async def coordinator(self, points: Points) -> AsyncIterator[Coordinator]:
        """Return a coordinator whose calls pass these points."""
        metadata = SqliteMetadata(self._metadata_file, durability="process")
        try:
            async with Coordinator(
                storage=Failing(LocalStore(self.fleet.folder / "store"), points, StoreUnavailable),
                metadata=Failing(
                    metadata, points, MetadataUnavailable, but=("acquire_lease", "release_lease")
                ),
                grace=0.0,
                clock=self._clock,
            ) as made:
                yield made
        finally:
            metadata.close()

    def state(self) -> RunState | None:
        """Return the state of the run; None if there is no run."""
        record = self.fleet.record()
        return None if record is None else record.state

    def options(self) -> RunOptions:
        """Return the options of a run whose tasks the worker runs."""
        return RunOptions(executor="queue", queue=self.fleet.queue)

    async def run(self, points: Points) -> None:
        """Start the run, and drive it until it ends or its coordinator dies."""
        with contextlib.suppress(Killed, AflowError):
            async with self.coordinator(points) as coordinator:
                run = await coordinator.start(self.definition, options=self.options())
                await run.wait()

    async def recover(self, points: Points) -> None:
        """Continue the run, until it ends or its coordinator dies."""
        record = self.fleet.record()
        assert record is not None
        with contextlib.suppress(Killed, AflowError):
            async with self.coordinator(points) as coordinator:
                run = await coordinator.recover(self.definition, record.run, options=self.options())
                await run.wait()

    def let_leases_pass(self) -> None:
        """Advance the time until all leases of the dead coordinator have expired."""
        self.fleet.let_lease_pass()
        with sqlite3.connect(self._queue_file) as database:
            database.execute(
                "UPDATE messages SET due = 1 WHERE state = 'l' AND topic LIKE 'reports%'"
            )
        database.close()
