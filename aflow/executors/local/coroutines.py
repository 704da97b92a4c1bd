"""A process that runs coroutine steps, many at a time, on one event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar
from typing import Any

import msgpack

from aflow.attempt.runner import Runner
from aflow.attempt.spec import STARTED, AttemptReport, AttemptSpec
from aflow.clock import SystemClock
from aflow.executors.local import inside
from aflow.executors.local.streams import Owner, WorkerStreams
from aflow.executors.local.work import Link
from aflow.loops import fastest_kind

CANCEL = b"\xc0"  # msgpack's nil: what precedes [task, attempt] where a spec would stand


class CoroutineWorker:
    """Runs every spec that it is sent as a task of its event loop, at once.

    The loop is shared: a step cannot stop it, and what a step cancels of others' (all tasks of the
    loop, say) is not cancelled."""

    def __init__(self, runner: Runner, descriptors: Sequence[int]) -> None:
        tasks, reports, *streams = descriptors
        self._runner = runner
        self._link = Link(tasks, reports)
        self._clock = SystemClock()
        self._pid = os.getpid()
        self._first: AttemptSpec | None = None  # until it runs
        self._begun: AttemptSpec | None = None  # whose start was reported before it runs
        self._tasks: dict[Owner, asyncio.Task[None]] = {}
        self._cancelled: set[Owner] = set()
        self._fault: BaseException | None = None
        self._streams = WorkerStreams(streams, self._oldest, self._link.log)
        self.say = self._link.say

    def first(self) -> AttemptSpec | None:
        """Begin with the first attempt; None if there is none, and never will be. What the user's
        program prints before it comes to its flow belongs to this one."""
        self._runner.expect_many()
        while (data := self._link.next()).startswith(CANCEL):
            continue  # of what has not come yet, and was taken back
        if not data:
            return None
        spec = self._first = self._begun = AttemptSpec.decode(data)
        self._token = self._streams.owner.set((spec.task, spec.attempt))
        self._say_started(spec)
        return spec

    def refuse(self, report: AttemptReport) -> None:
        """Say that the first attempt has ended before the flow was reached."""
        self._streams.finish((report.task, report.attempt))
        self._link.say(*report.message())

    def serve(self) -> None:
        """Run the first attempt and what comes, until the coordinator closes its end."""
        self._streams.owner.reset(self._token)
        self._link.tasks.setblocking(False)
        with asyncio.Runner(loop_factory=self._loop) as runner:
            runner.run(self._serve())

    def _loop(self) -> asyncio.AbstractEventLoop:
        owner, kind = self._streams.owner, fastest_kind()

        class SharedLoop(kind):  # type: ignore[misc, valid-type]
            def stop(self) -> None:
                if owner.get() is not None:
                    raise RuntimeError("A step cannot stop the event loop: others run in it.")
                super().stop()

        return SharedLoop()

    async def _serve(self) -> None:
        self._closed = asyncio.Event()
        assert self._first is not None, "there is a first one"
        self._start(self._first)
        self._first = None
        loop = asyncio.get_running_loop()
        loop.add_reader(self._link.tasks, self._receive)
        while not self._closed.is_set():
            try:
                await self._closed.wait()
            except asyncio.CancelledError:  # by a step, which cancels all tasks of its loop
                continue
        loop.remove_reader(self._link.tasks)
        for owner in [*self._tasks]:
            self._cancel_now(owner)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._fault is not None:
            raise self._fault

    def _receive(self) -> None:
        while True:
            try:
                data = self._link.next()
            except BlockingIOError:
                return
            if not data:
                self._closed.set()
                return
            if data.startswith(CANCEL):
                self._cancel(msgpack.unpackb(data[1:], use_list=False))
                continue
            self._start(AttemptSpec.decode(data))

    def _start(self, spec: AttemptSpec) -> None:
        owner = (spec.task, spec.attempt)
        task = _OwnTask(self._run(spec), owner, self._streams.owner)
        task.add_done_callback(self._note_end)
        self._tasks[owner] = task

    def _say_started(self, spec: AttemptSpec) -> None:
        self._link.say(STARTED, spec.task, spec.attempt, self._pid, self._clock.now())

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """What a step raises is in its report; anything else is our fault, and ends the process."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fault = self._fault or error
            self._closed.set()

    def _cancel(self, owner: Owner) -> None:
        # Later, so that it has begun: a task cancelled before its first step would say nothing.
        asyncio.get_running_loop().call_soon(self._cancel_now, owner)

    def _cancel_now(self, owner: Owner) -> None:
        task = self._tasks.get(owner)
        if task is not None:
            self._cancelled.add(owner)
            task.cancel()

    async def _run(self, spec: AttemptSpec) -> None:
        owner = (spec.task, spec.attempt)
        self._streams.owner.set(owner)
        if spec is not self._begun:
            self._say_started(spec)
        report = await self._runner.run_async(spec, lambda: owner in self._cancelled)
        if os.getpid() != self._pid:
            inside.end()  # the step forked, and this is its child: it has nothing to report
        self._streams.finish(owner)
        del self._tasks[owner]
        self._cancelled.discard(owner)
        self._link.say(*report.message())

    def _oldest(self) -> Owner | None:
        """Who is taken to have written past Python: several may run, so the first of them."""
        if self._first is not None:
            return self._first.task, self._first.attempt
        return next(iter(self._tasks), None)


class _OwnTask(asyncio.Task[None]):
    """The task of one attempt: no other attempt can cancel it."""

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, None],
        owner: Owner,
        current: ContextVar[Owner | None],
    ) -> None:
        self._owner = owner
        self._current = current
        super().__init__(coroutine)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel it, unless another attempt asks for that."""
        if self._current.get() not in (None, self._owner):
            return False
        return super().cancel(msg)
