"""A process that runs coroutine steps, many at a time, on one event loop."""

from __future__ import annotations

import asyncio
import os

import msgpack

from aflow.attempt.runner import Runner
from aflow.attempt.spec import STARTED, AttemptSpec
from aflow.clock import SystemClock
from aflow.executors.local import inside
from aflow.executors.local.streams import Owner, WorkerStreams
from aflow.executors.local.work import Link
from aflow.loops import fastest_loop

CANCEL = b"\xc0"  # msgpack's nil: what precedes [task, attempt] where a spec would stand


class CoroutineWorker:
    """Runs every spec that it is sent as a task of its event loop, at once."""

    def __init__(self, runner: Runner, tasks: int, reports: int, *descriptors: int) -> None:
        self._runner = runner
        self._link = Link(tasks, reports)
        self._link.tasks.setblocking(False)
        self._clock = SystemClock()
        self._pid = 0
        self._tasks: dict[Owner, asyncio.Task[None]] = {}
        self._streams = WorkerStreams(descriptors, self._oldest, self._link.log)

    def serve(self) -> None:
        """Run what comes, until the coordinator closes its end."""
        self._pid = os.getpid()
        self._runner.expect_many()
        with asyncio.Runner(loop_factory=fastest_loop()) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        closed = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            loop.add_reader(self._link.tasks, self._receive, group, closed)
            await closed.wait()
            loop.remove_reader(self._link.tasks)
            for task in self._tasks.values():
                task.cancel()

    def _receive(self, group: asyncio.TaskGroup, closed: asyncio.Event) -> None:
        while True:
            try:
                data = self._link.next()
            except BlockingIOError:
                return
            if not data:
                closed.set()
                return
            if data.startswith(CANCEL):
                self._cancel(msgpack.unpackb(data[1:], use_list=False))
                continue
            spec = AttemptSpec.decode(data)
            self._tasks[(spec.task, spec.attempt)] = group.create_task(self._run(spec))

    def _cancel(self, owner: Owner) -> None:
        task = self._tasks.get(owner)
        if task is not None:
            # Later, so that it has begun: a task cancelled before its first step would say nothing.
            asyncio.get_running_loop().call_soon(task.cancel)

    async def _run(self, spec: AttemptSpec) -> None:
        owner = (spec.task, spec.attempt)
        self._streams.owner.set(owner)
        self._link.say(STARTED, *owner, self._pid, self._clock.now())
        report = await self._runner.run_async(spec)
        if os.getpid() != self._pid:
            inside.end()  # the step forked, and this is its child: it has nothing to report
        self._streams.finish(owner)
        del self._tasks[owner]
        self._link.say(*report.message())

    def _oldest(self) -> Owner | None:
        """Who is taken to have written past Python: several may run, so the first of them."""
        return next(iter(self._tasks), None)
