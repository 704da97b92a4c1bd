"""A worker: takes attempts from a queue, runs them in processes of this machine, and reports.

It knows of no run until a message names one. Then it fetches what describes the run and its code,
starts a template for it, and keeps that warm for the attempts that follow. A lease is extended for
as long as its attempt runs, and acknowledged when the report of its end is in the queue.
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow import backends, package
from aflow.attempt import AttemptReport, AttemptSpec
from aflow.errors import AflowError, CodePackageError, LeaseLost, QueueError, QueueUnavailable
from aflow.executors import deaths, letters
from aflow.executors.base import NO_USAGE
from aflow.executors.job import Job, python_version
from aflow.executors.letters import CancelLetter, ReportsLetter, TaskLetter, unseal_letter
from aflow.executors.process import ProcessExecutor
from aflow.executors.spawn import fresh_environment, start_from
from aflow.queue.base import Lease, Message, Queue
from aflow.remote import Parcels
from aflow.scheduler.states import AttemptState
from aflow.storage.blobs import BlobStore

if TYPE_CHECKING:
    from aflow.clock import Clock
    from aflow.executors.base import Usage

WAIT = 15.0  # seconds that one call waits for messages
AWAY = 1.0  # seconds between tries while the broker is away
WORTH_HOLDING = 0.2  # seconds of work that a slot may hold ahead
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


class _Held:
    """A lease and what it is for."""

    __slots__ = ("active", "lease", "letter", "runtime", "spec")

    def __init__(
        self, lease: Lease, letter: TaskLetter, spec: AttemptSpec, runtime: _Runtime
    ) -> None:
        self.lease = lease
        self.letter = letter
        self.spec = spec
        self.runtime = runtime
        self.active = False  # handed to the processes of its run


class Worker:
    """One worker. `run` works until `drain` is called, and may be awaited once."""

    def __init__(self, queue: Queue, options: WorkerOptions, clock: Clock, say: Say) -> None:
        self._queue = queue
        self._options = options
        self._clock = clock
        self._say = say
        self.id = f"{socket.gethostname()[:24]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.outbox = _Outbox(queue, self.id, options.key)
        self._topics = [letters.tasks_topic(pool) for pool in options.pools]
        self._held: dict[tuple[str, str, int, int], _Held] = {}
        self._waiting: deque[_Held] = deque()  # of these, those that no process has yet
        self._active = 0
        self._duration = 1.0  # seconds that attempts have taken lately
        self._runtimes: dict[str, _Runtime] = {}
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
            for each in (self.outbox.send, self._extend, self._obey)
        ]
        try:
            await self._take()
            await self._finish()
        finally:
            self.outbox.close()
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
                for lease in leases:
                    await self._begin(lease)
        finally:
            draining.cancel()

    @property
    def _wanted(self) -> int:
        """How many attempts to have in hand: more than can run at once where they are short, since
        each call to the broker takes its time; none is kept from others for long."""
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
            await asyncio.sleep(AWAY)
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
            self._runtimes[letter.job] = runtime = _Runtime(self, letter)
            self._forget_idle(runtime)
        held = _Held(lease, letter, spec._replace(again=lease.deliveries > 1), runtime)
        self._held[owner] = held
        self._waiting.append(held)
        self._feed()

    def _feed(self) -> None:
        """Hand on what waits, as far as processes want it."""
        while self._waiting and self._active < self._waiting[0].runtime.in_hand:
            held = self._waiting.popleft()
            held.active = True
            self._active += 1
            held.runtime.launch(held)

    def _forget_idle(self, but: _Runtime) -> None:
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
            self.outbox.give_back(held.lease)
            return
        report = _that_can_be_sent(report)
        event = (letters.ENDED, report.task, report.attempt, usage.max_rss, usage.cpu, *report[2:])
        self.outbox.add(letter.reply, event, held.lease)

    async def _finish(self) -> None:
        """Give back what has not begun, and wait for what runs; what is still running after the
        grace time goes back, too."""
        for each in self._waiting:
            del self._held[each.letter.flow, each.letter.run, each.spec.task, each.spec.attempt]
            self.outbox.give_back(each.lease)
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

    async def _give_back(self, leases: Sequence[Lease], delay: float = 0.0) -> None:
        try:
            await self._queue.release(leases, delay=delay)
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
                await asyncio.sleep(AWAY)

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

    def never_begun(self, held: _Held) -> None:
        """An attempt that has not begun is not wanted any more."""
        spec, now = held.spec, self._clock.now()
        reason = "The task was cancelled."
        report = deaths.stopped(spec.task, spec.attempt, AttemptState.CANCELLED, reason, now, now)
        self.ended(held.letter, report, NO_USAGE)

    # ------------------------------------------------------------ for its runtimes

    @property
    def options(self) -> WorkerOptions:
        """How it works."""
        return self._options

    @property
    def clock(self) -> Clock:
        """Its clock."""
        return self._clock


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


class _Outbox:
    """What is to be said to coordinators: together, in order, and leases acknowledged after it."""

    def __init__(self, queue: Queue, worker: str, key: bytes | None) -> None:
        self._queue = queue
        self._worker = worker
        self._key = key
        self._host = socket.gethostname()
        self._number = 0
        self._events: defaultdict[str, list[Any]] = defaultdict(list)
        self._done: list[Lease] = []
        self._back: list[Lease] = []
        self._news = asyncio.Event()
        self._closed = False

    def add(self, reply: str, event: Sequence[Any], done: Lease | None = None) -> None:
        """Say it soon; `done` is acknowledged after that."""
        self._events[reply].append(event)
        if done is not None:
            self._done.append(done)
        self._news.set()

    def give_back(self, lease: Lease) -> None:
        """Somebody else is to have it, as if we had never taken it."""
        self._back.append(lease)
        self._news.set()

    def close(self) -> None:
        """`send` returns when all is said."""
        self._closed = True
        self._news.set()

    async def send(self) -> None:
        """Say what there is to say, again and again."""
        while True:
            await self._news.wait()
            self._news.clear()
            events, self._events = self._events, defaultdict(list)
            done, self._done = self._done, []
            back, self._back = self._back, []
            for reply, said in events.items():
                for part in letters.parts(said):
                    await self._put(reply, part)
            await self._until_done(lambda: self._queue.ack(done))  # noqa: B023
            await self._until_done(lambda: self._queue.release(back, counted=False))  # noqa: B023
            if self._closed and not self._news.is_set():
                return

    async def _put(self, reply: str, events: list[Any]) -> None:
        self._number += 1
        letter = ReportsLetter(self._worker, self._host, self._number, events)
        message = Message(f"{self._worker}:{self._number}", letter.seal(self._key))
        await self._until_done(lambda: self._queue.put(reply, [message]))

    async def _until_done(self, call: Callable[[], Any]) -> None:
        """The broker may be away: what was done is not to be lost for that."""
        while True:
            try:
                await call()
                return
            except LeaseLost:  # the message was delivered again: it will be seen to be settled
                return
            except QueueUnavailable:
                await asyncio.sleep(AWAY)


class _Runtime:
    """The processes of one run."""

    def __init__(self, worker: Worker, letter: TaskLetter) -> None:
        self._worker = worker
        self._letter = letter
        self._waiting: list[_Held] = []
        self._executor: ProcessExecutor | None = None
        self._fault: str | None = None  # why there are no processes, and will be none
        self._task = asyncio.create_task(self._start())  # noqa: TID251 -- awaited by `stop`
        self.executor = self
        self._isolation = "task"

    @property
    def in_hand(self) -> int:
        """How many attempts its processes want to have: those that run many can take some more
        than they run."""
        slots = self._worker.options.slots
        return slots if self._isolation == "task" else slots * 8

    def launch(self, held: _Held) -> None:
        """Run the attempt, as soon as the run's processes are there."""
        if self._fault is not None:
            # Later: who launches does not expect the answer before launch has returned.
            asyncio.get_running_loop().call_soon(self._refuse, held, self._fault)
        elif self._executor is None:
            self._waiting.append(held)
        else:
            self._executor.launch(held.spec)

    def cancel(self, task: int, attempt: int) -> None:
        """Stop the attempt, also before there are processes."""
        if self._executor is not None:
            self._executor.cancel(task, attempt)
            return
        for held in [*self._waiting]:
            if (held.spec.task, held.spec.attempt) == (task, attempt):
                self._waiting.remove(held)
                self._worker.never_begun(held)

    def retire(self) -> None:
        """Let go of the processes, which do nothing."""
        self._task = asyncio.create_task(self.stop())  # noqa: TID251 -- short, and its own

    async def stop(self) -> None:
        """Interrupt what runs, and let go of the processes. May be called twice."""
        if asyncio.current_task() is not self._task:
            await asyncio.wait([self._task])
        if self._executor is not None:
            await self._executor.stop()

    async def _start(self) -> None:
        try:
            self._executor = await self._made()
        except Exception as error:  # noqa: BLE001 -- whatever is wrong here, those who wait for it have to know
            told = (
                str(error) if isinstance(error, AflowError) else f"{type(error).__name__}: {error}"
            )
            self._fault = told
            waiting, self._waiting = self._waiting, []
            for held in waiting:
                self._refuse(held, told)
            return
        waiting, self._waiting = self._waiting, []
        for held in waiting:
            self._executor.launch(held.spec)

    def _refuse(self, held: _Held, told: str) -> None:
        now = self._worker.clock.now()
        spec = held.spec
        reason = f"Worker {self._worker.id} cannot run the task: {told}"
        report = AttemptReport(
            spec.task, spec.attempt, AttemptState.FAILED.value, reason,
            started_at=now, finished_at=now,
        )  # fmt: skip
        self.started(spec.task, spec.attempt, os.getpid(), now)
        self.ended(report, NO_USAGE)

    async def _made(self) -> ProcessExecutor:
        job, environment = await asyncio.to_thread(self._fetched)
        if job.python != python_version():
            raise CodePackageError(
                f"the run was started with Python {job.python}, and this worker has "
                f"{platform.python_version()}: start a worker with the same."
            )
        self._isolation = job.isolation
        options = self._worker.options
        executor = ProcessExecutor(
            job.needs,
            lambda: start_from(job.request, job.context.flow, environment),
            self._worker.clock,
            max_workers=options.slots,
            isolation=job.isolation,
        )
        await executor.start(job.context, self)
        return executor

    def _fetched(self) -> tuple[Job, Mapping[str, str]]:
        """The description of the run, with its code in a folder of ours. Blocks."""
        letter = self._letter
        store = backends.open_store(letter.store)
        job = Job.decode(Parcels(store, letter.flow, letter.run).get(letter.job))
        environment = dict(fresh_environment())
        if job.code is None:
            return job, environment
        folder = package.unpacked(BlobStore(store), job.code, self._worker.options.folder)
        source = {**job.request.source, "file": str(folder / job.script)}
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(folder), environment.get("PYTHONPATH", "")])
        )
        return job._replace(request=job.request._replace(source=source)), environment

    # ------------------------------------------------------------ what the processes say

    def handed(self, task: int, attempt: int, handle: str) -> None:
        """Nobody else finds processes of this machine: the queue gives their attempts to others."""

    def started(self, task: int, attempt: int, pid: int | None, at: float) -> None:
        """An attempt is running now."""
        self._worker.outbox.add(self._letter.reply, (letters.STARTED, task, attempt, pid, at))

    def logged(self, task: int, attempt: int, stream: int, at: float, chunk: bytes) -> None:
        """An attempt has written something."""
        event = (letters.LOGGED, task, attempt, stream, at, chunk)
        self._worker.outbox.add(self._letter.reply, event)

    def grown(self, task: int, attempt: int, count: int, manifest: bytes) -> None:
        """An attempt has made items of its foreach."""
        event = (letters.GROWN, task, attempt, count, manifest)
        self._worker.outbox.add(self._letter.reply, event)

    def ended(self, report: AttemptReport, usage: Usage) -> None:
        """An attempt is over."""
        self._worker.ended(self._letter, report, usage)
