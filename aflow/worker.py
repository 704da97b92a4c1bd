"""A worker: takes attempts from a queue, runs them in processes of this machine, and reports.

It knows of no run until a message names one. Then it fetches what describes the run and its code,
starts a template for it, and keeps that warm for the attempts that follow. A lease is extended for
as long as its attempt runs, and acknowledged when the report of its end is in the queue.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow.attempt.spec import AttemptReport, AttemptSpec
from aflow.errors import LeaseLost, QueueError, QueueUnavailable
from aflow.executors import deaths, letters
from aflow.executors.base import NO_USAGE
from aflow.executors.letters import CancelLetter, TaskLetter, unseal_letter
from aflow.queue.away import AWAY, pause
from aflow.queue.base import Lease, Queue
from aflow.remote.outbox import Outbox
from aflow.remote.runtime import Held, Runtime, Site
from aflow.scheduler.states import AttemptState

if TYPE_CHECKING:
    from aflow.clock import Clock
    from aflow.executors.base import Usage

WAIT = 15.0  # seconds that one call waits for messages
WORTH_HOLDING = 0.2  # seconds of work that a slot may hold ahead
TRUSTED = 2  # deliveries; one that comes for the third time was with two workers that ended
MOST_AHEAD = 32  # attempts that a slot may hold ahead
KEPT = 4  # runs whose processes are kept warm though nothing of them runs

Say = Callable[[str], None]


class WorkerOptions(NamedTuple):
    """How a worker works: `slots` attempts at a time, of these pools; leases last `lease` seconds
    and are extended; at its end it gives what runs `grace` seconds. `folder` is for code."""

    pools: tuple[str, ...]
    slots: int
    grace: float
    lease: float
    folder: Path
    key: bytes | None = None


class Worker:
    """One worker. `run` works until `drain` is called, and may be awaited once."""

    def __init__(self, queue: Queue, options: WorkerOptions, clock: Clock, say: Say) -> None:
        self._queue = queue
        self._options = options
        self._clock = clock
        self._say = say
        self.id = f"{socket.gethostname()[:24]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._outbox = Outbox(queue, self.id, options.key)
        self._site = Site(self.id, options.slots, options.folder, clock, self._outbox)
        self._topics = [letters.tasks_topic(pool) for pool in options.pools]
        self._held: dict[tuple[str, str, int, int], Held] = {}
        self._waiting: deque[Held] = deque()  # of these, those that no process has yet
        self._active = 0
        self._duration = 1.0  # seconds that attempts have taken lately
        self._runtimes: dict[str, Runtime] = {}
        self._draining = asyncio.Event()
        self._room = asyncio.Event()

    def drain(self) -> None:
        """Take nothing new; `run` ends when what runs has ended, or been given back. May be called
        again."""
        self._draining.set()
        self._room.set()

    async def run(self) -> None:
        """Take and run attempts. Raises QueueUnavailable where there is no queue at the start."""
        await self._queue.depth(self._topics[0])
        self._say(
            f"Worker {self.id} takes tasks of {', '.join(self._options.pools)} from "
            f"{self._queue.url}, {self._options.slots} at a time."
        )
        helpers = [
            asyncio.create_task(each())  # noqa: TID251 -- they end with this method, below
            for each in (self._outbox.send, self._extend, self._obey)
        ]
        try:
            await self._take()
            await self._finish()
        finally:
            self._outbox.close()
            await helpers[0]
            for helper in helpers[1:]:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            for runtime in self._runtimes.values():
                await runtime.executor.stop()
            await self._queue.close()

    # ------------------------------------------------------------ taking

    async def _take(self) -> None:
        draining = asyncio.create_task(self._draining.wait())  # noqa: TID251 -- ends below
        try:
            while not self._draining.is_set():
                free = self._wanted - len(self._held)
                if free <= 0:
                    self._room.clear()
                    await self._room.wait()
                    continue
                leases = await self._lease(free, draining)
                for lease in await self._sifted(leases):
                    await self._begin(lease)
        finally:
            draining.cancel()

    async def _sifted(self, leases: list[Lease]) -> list[Lease]:
        """The leases, if all may be begun together. A task that was with several workers when they
        ended may have killed them, and its neighbours are not to be taken for it: it runs alone,
        and what has not begun goes back to others before that."""
        suspect = next((each for each in leases if each.deliveries > TRUSTED), None)
        if suspect is None:
            return leases
        back = [each for each in leases if each is not suspect]
        for held in self._waiting:
            del self._held[held.letter.flow, held.letter.run, held.spec.task, held.spec.attempt]
            back.append(held.lease)
        self._waiting.clear()
        await self._give_back(back, counted=False)
        return [suspect]

    @property
    def _wanted(self) -> int:
        """How many attempts to have in hand: more than can run at once where they are short, since
        each call to the broker takes its time; none is kept from others for long. None beside one
        that has to run alone."""
        if any(held.is_suspect for held in self._held.values()):
            return 0
        ahead = min(MOST_AHEAD, int(WORTH_HOLDING / max(self._duration, 1e-6)))
        return self._options.slots * (1 + ahead)

    async def _lease(self, free: int, draining: asyncio.Task[Any]) -> list[Lease]:
        """Messages, or none if there are none, the broker is away, or we are to end."""
        call = asyncio.create_task(  # noqa: TID251 -- ends here
            self._queue.lease(self._topics, free, self._options.lease, WAIT)
        )
        await asyncio.wait([call, draining], return_when=asyncio.FIRST_COMPLETED)
        if not call.done():
            call.cancel()
        try:
            return await call
        except asyncio.CancelledError:
            return []
        except QueueUnavailable as error:
            self._say(str(error))
            await pause()
            return []

    async def _begin(self, lease: Lease) -> None:
        try:
            letter: TaskLetter = unseal_letter(lease.body, "task", self._options.key)
            spec = AttemptSpec.decode(letter.spec)
        except QueueError as error:
            self._say(f"A message of {lease.topic} is refused: {error}")
            await self._give_back([lease], delay=AWAY)
            return
        owner = (letter.flow, letter.run, spec.task, spec.attempt)
        if owner in self._held:  # our own lease had ended, and the message came back to us
            self._held[owner].lease = lease
            return
        runtime = self._runtimes.get(letter.job)
        if runtime is None:
            self._runtimes[letter.job] = runtime = Runtime(self._site, self, letter)
            self._forget_idle(runtime)
        spec = spec._replace(again=spec.again or lease.deliveries > 1)
        held = Held(lease, letter, spec, runtime)
        held.is_suspect = lease.deliveries > TRUSTED
        self._held[owner] = held
        self._waiting.append(held)
        self._feed()

    def _feed(self) -> None:
        """Hand on what waits, as far as processes want it."""
        while self._waiting and self._active < self._waiting[0].runtime.in_hand:
            if self._waiting[0].is_suspect and self._active:
                return
            held = self._waiting.popleft()
            held.active = True
            self._active += 1
            held.runtime.launch(held)

    def _forget_idle(self, but: Runtime) -> None:
        """Let go of the processes of runs that have not had an attempt for the longest time."""
        busy = {held.runtime for held in self._held.values()}
        idle = [
            (key, each)
            for key, each in self._runtimes.items()
            if each not in busy and each is not but
        ]
        for key, runtime in idle[: max(0, len(idle) - KEPT)]:
            del self._runtimes[key]
            runtime.retire()

    # ------------------------------------------------------------ ending

    def ended(self, letter: TaskLetter, report: AttemptReport, usage: Usage) -> None:
        """An attempt is over: its lease is acknowledged when that has been reported."""
        held = self._held.pop((letter.flow, letter.run, report.task, report.attempt), None)
        self._room.set()
        if held is None:
            return
        self._active -= held.active
        took = max(report.finished_at - report.started_at, 0.0)
        self._duration += 0.2 * (took - self._duration)
        if not self._draining.is_set():
            self._feed()
        if report.state == AttemptState.INTERRUPTED.value:
            self._outbox.give_back(held.lease)
            return
        report = _that_can_be_sent(report)
        event = (letters.ENDED, report.task, report.attempt, usage.max_rss, usage.cpu, *report[2:])
        self._outbox.add(letter.reply, event, held.lease)

    async def _finish(self) -> None:
        """Give back what has not begun, and wait for what runs; what is still running after the
        grace time goes back, too."""
        for each in self._waiting:
            del self._held[each.letter.flow, each.letter.run, each.spec.task, each.spec.attempt]
            self._outbox.give_back(each.lease)
        self._waiting.clear()
        if self._held:
            self._say(f"Worker {self.id} ends: {len(self._held)} tasks are still running.")
        give_up_at = asyncio.get_running_loop().time() + self._options.grace
        while self._held:
            left = give_up_at - asyncio.get_running_loop().time()
            self._room.clear()
            try:
                async with asyncio.timeout(max(left, 0.0)):
                    await self._room.wait()
            except TimeoutError:
                break
        for runtime in self._runtimes.values():
            await runtime.executor.stop()  # interrupts what runs: it goes back

    async def _give_back(
        self, leases: Sequence[Lease], delay: float = 0.0, *, counted: bool = True
    ) -> None:
        try:
            await self._queue.release(leases, delay=delay, counted=counted)
        except QueueError as error:
            self._say(str(error))

    # ------------------------------------------------------------ beside

    async def _extend(self) -> None:
        """Keep the leases of what runs."""
        while True:
            await asyncio.sleep(self._options.lease / 3)
            held = [*self._held.values()]
            if not held:
                continue
            try:
                extended = await self._queue.extend(
                    [each.lease for each in held], self._options.lease
                )
            except LeaseLost as error:
                self._say(f"{error} Whoever commits the task first has settled it.")
                extended = error.held  # type: ignore[assignment]
            except QueueError as error:
                self._say(str(error))
                continue
            tokens = {lease.token: lease for lease in extended}
            for each in held:
                each.lease = tokens.get(each.lease.token, each.lease)

    async def _obey(self) -> None:
        """Stop the attempts that a coordinator wants to be stopped."""
        topic = letters.worker_topic(self.id)[:64]
        while True:
            try:
                leases = await self._queue.lease([topic], 100, self._options.lease, WAIT)
                for lease in leases:
                    self._cancel(lease)
                await self._queue.ack(leases)
            except QueueError as error:
                self._say(str(error))
                await pause()

    def _cancel(self, lease: Lease) -> None:
        try:
            letter: CancelLetter = unseal_letter(lease.body, "cancel", self._options.key)
        except QueueError as error:
            self._say(f"A message is refused: {error}")
            return
        for flow, run, task, attempt in letter.attempts:
            held = self._held.get((flow, run, task, attempt))
            if held is not None and held.active:
                held.runtime.cancel(task, attempt)
            elif held is not None:
                self._waiting.remove(held)
                self.never_begun(held)

    def never_begun(self, held: Held) -> None:
        """An attempt that has not begun is not wanted any more."""
        spec, now = held.spec, self._clock.now()
        reason = "The task was cancelled."
        report = deaths.stopped(spec.task, spec.attempt, AttemptState.CANCELLED, reason, now, now)
        self.ended(held.letter, report, NO_USAGE)


def _that_can_be_sent(report: AttemptReport) -> AttemptReport:
    size = len(report.manifest or b"")
    if size <= letters.LARGEST_MANIFEST:
        return report
    reason = (
        f"What the task keeps of its small artifacts is {size >> 20} MB, more than a message can "
        "carry: put many of them into one list or dict."
    )
    return report._replace(
        state=AttemptState.FAILED.value, reason=reason, retryable=False, manifest=None
    )
