"""A worker: leases attempts from a queue, runs them in processes of this machine, and reports.

A worker learns of a run from its first message. It then fetches the description and the code of the
run, starts a zygote for it, and keeps the zygote warm for later attempts. A lease is renewed while
its attempt runs, and acknowledged once the report of its end is in the queue.

If a worker cannot run a message (it cannot read the message or load the flow, or it has another
version of Python), that is no fault of the task: the worker releases the message without counting
the delivery, skips that run for a while, and reports it to the coordinator and in its
announcements.

The worker registers in the metadata database if one is reachable, and sends a heartbeat there every
HEARTBEAT seconds. The heartbeat lists the running attempts, and its response asks the worker to
drain if an operator has requested it.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import socket
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core.backoff import Tries
from aflow._core.threads import in_daemon_thread
from aflow._core.version import __version__
from aflow._core.waiting import Waiting
from aflow._core.wording import plural
from aflow.errors import (
    AflowError,
    ForgedMessage,
    LeaseLost,
    MessageTooNew,
    QueueError,
    QueueUnavailable,
    StorageError,
)
from aflow.executors import base, protocol
from aflow.executors.base import NO_USAGE
from aflow.executors.local.admission import ConcurrencyLimit, SlotQueue
from aflow.executors.protocol import (
    CancelMessage,
    DrainMessage,
    Presence,
    TaskMessage,
    open_message,
)
from aflow.executors.queue_status import HEARTBEAT
from aflow.executors.remote.reports import ReportSender
from aflow.executors.remote.runtime import Held, Runtime, Site
from aflow.metadata.base import MOST_RUNNING, WORKER_EXPIRY, RunningTask, WorkerRecord
from aflow.metadata.sql import worker_data
from aflow.queue.base import AWAY, Lease, Queue, group_of
from aflow.scheduler.slots import Slots
from aflow.scheduler.states import AttemptState
from aflow.task.spec import AttemptKey, AttemptReport

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.executors.base import Usage
    from aflow.executors.local.admission import MachineCapacity
    from aflow.metadata.base import WorkerRegistry

WAIT = 15.0  # seconds that one call to the queue waits for messages
WORTH_HOLDING = 0.2  # seconds of work that a slot may prefetch
TRUSTED = 2  # deliveries; on a third delivery, two workers have ended while they held the message
MOST_AHEAD = 32  # attempts that a slot may prefetch
KEPT = 4  # idle runs whose processes are kept warm
DECLINED_FOR = 60.0  # seconds until a declined run is tried again
_MOST_DECLINED = 200  # runs
_MOST_OVER = 10_000  # finished attempts that are remembered, so that replayed messages are not run
_MINUTE = 60  # seconds over which the rate of finished attempts is counted
ANNOUNCED = 5.0  # seconds between announcements
ANNOUNCED_FOR = 3 * ANNOUNCED  # seconds for which an announcement is valid
ENDING = 3.0  # seconds after the grace period in which reports may still be sent

Log = Callable[[str], None]
Key = tuple[str, str, int, int]  # flow, run, task, attempt


class WorkerOptions(NamedTuple):
    """The configuration of a worker.

    `slots` attempts of the `pools` run at a time. Leases last `lease` seconds and are renewed. At
    shutdown, running attempts get `grace` seconds. `folder` holds code. The first of `keys` signs
    messages, and each of them verifies messages. Each task is logged unless `quiet` is set.
    `labels` are listed with the worker, for people. `machine` holds the resources that its tasks
    share.
    """

    pools: tuple[str, ...]
    slots: int
    grace: float
    lease: float
    folder: Path
    keys: tuple[bytes, ...] = ()
    quiet: bool = False
    labels: Mapping[str, str] = MappingProxyType({})
    machine: MachineCapacity | None = None


class Worker:
    """One worker. `run` works until `drain` is called, and may be awaited once.

    `registry` opens the metadata in which the worker is listed, and returns None while there is
    none. It is called in a thread, repeatedly, until it returns a registry. If the metadata does
    not respond, the worker continues to work and is not listed until it does.
    """

    def __init__(
        self,
        queue: Queue,
        options: WorkerOptions,
        clock: Clock,
        log: Log,
        registry: Callable[[], WorkerRegistry | None] | None = None,
    ) -> None:
        self._open_registry = registry
        self._registry: WorkerRegistry | None = None
        self._queue = queue
        self._options = options
        self._clock = clock
        self._log = log
        host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()[:24]).strip("-") or "worker"
        self.id = f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._sender = ReportSender(queue, self.id, options.keys, clock)
        machine = options.machine
        admission = (
            None if machine is None else SlotQueue(Slots(machine.amounts, machine.devices), machine)
        )
        self._site = Site(
            worker=self.id,
            slots=options.slots,
            folder=options.folder,
            clock=clock,
            sender=self._sender,
            limit=ConcurrencyLimit(options.slots),
            report=log,
            admission=admission,
        )
        self._topics = [protocol.tasks_topic(pool) for pool in options.pools]
        self._own_topic = protocol.worker_topic(self.id)[:64]
        self._held: dict[Key, Held] = {}
        self._recording: set[asyncio.Task[None]] = (
            set()
        )  # writes of results, which must finish before they are reported
        self._over: dict[tuple[str, str, int, int, int], None] = {}  # finished here, latest last
        self._waiting: deque[Held] = deque()  # those of `_held` that no process has started yet
        self._active = 0
        self._duration = 1.0  # moving average of the seconds that an attempt takes
        self._runtimes: dict[str, Runtime] = {}
        self._retiring: set[Runtime] = set()
        self._declined: dict[str, tuple[float, str]] = {}  # by group: until when, and why
        self._draining = asyncio.Event()
        self._room = asyncio.Event()
        self._declines = asyncio.Event()
        self._broker = Tries(AWAY, waiting_for=f"the queue {queue.url}", log=log)
        self._ends_at: float | None = None  # when the grace period of running attempts ends
        self._is_patient = False  # running attempts may take as long as they need
        self._started_at = clock.now()
        self._done = self._failed = 0  # attempts that have finished here
        self._ended: Counter[tuple[int, str]] = Counter()  # by second and pool, in the last minute
        self._beat_soon = asyncio.Event()
        self._is_listed = False  # in the metadata, by its last heartbeat

    def drain(self, *, patient: bool = False) -> None:
        """Take no new attempts; `run` returns once the running ones have finished or were released.

        May be called again: `patient` has an effect only if no earlier call was without it, and a
        later call without it starts the grace period.

        Args:
            patient: Whether running attempts may take as long as they need; otherwise they are
                interrupted, and their leases released, after the grace period.
        """
        self._is_patient = patient and (self._is_patient or not self._draining.is_set())
        self._draining.set()
        self._room.set()
        self._beat_soon.set()

    async def run(self) -> None:
        """Lease and run attempts until the worker is drained.

        Raises:
            QueueUnavailable: If the queue is not reachable at the start.
            Exception: If a part of the worker failed: a worker that cannot renew leases or report
                ends.
        """
        await self._queue.depth(self._topics[0])
        self._log(
            f"Worker {self.id} takes tasks of {', '.join(self._options.pools)} from "
            f"{self._queue.url}, {self._options.slots} at a time."
        )
        try:
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._sender.send())
                helpers = [
                    group.create_task(each())
                    for each in (self._extend, self._take_commands, self._announce, self._register)
                ]
                await self._take()
                await self._finish()
                await self._send_remaining_reports(sending)
                for helper in helpers:
                    helper.cancel()
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        finally:
            await self._release_leases()

    async def _send_remaining_reports(self, sending: asyncio.Task[None]) -> None:
        """Wait until all reports are sent, or a few seconds if the broker does not respond."""
        if self._recording:
            await asyncio.wait(self._recording, timeout=ENDING)
        self._sender.close()
        loop = asyncio.get_running_loop()
        left = max((self._ends_at or loop.time()) - loop.time(), 0.0) + ENDING
        await asyncio.wait([sending], timeout=left)
        if not sending.done():
            self._log(
                f"Worker {self.id} ends, and could not send all ({self._sender.undelivered} "
                f"reports): {self._queue.url} does not answer. Others get these tasks when its "
                "leases have ended, and see in the store what was done."
            )
            sending.cancel()

    async def _release_leases(self) -> None:
        """Stop all processes, release the remaining leases, and unregister the worker."""
        for runtime in [*self._runtimes.values(), *self._retiring]:
            await runtime.stop()
        try:
            async with asyncio.timeout(ENDING):
                left = [each.lease for each in self._held.values()] + self._sender.take_back()
                # If a part of the worker has failed: other workers should get these soon.
                await self._give_back(left)
                await self._queue.announce(self.id, b"", 0.0)
                await self._queue.drop(self._own_topic)
        except (QueueError, TimeoutError):  # leases and announcements expire
            pass
        await self._queue.close()
        if self._registry is not None:
            try:
                async with asyncio.timeout(ENDING):
                    await in_daemon_thread(self._registry.remove_worker, self.id)
            except (AflowError, TimeoutError):  # listed until WORKER_EXPIRY has passed
                pass

    # ------------------------------------------------------------ leasing

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
        """Return the leases that may be started now, and release the others.

        A task that several workers held when they ended may have killed them. It runs alone, so
        that no other attempt is lost with it: attempts that have not started are released.
        """
        suspect = next((each for each in leases if each.deliveries > TRUSTED), None)
        if suspect is None:
            return leases
        back = [each for each in leases if each is not suspect]
        for held in self._waiting:
            self._forget(held)
            back.append(held.lease)
        self._waiting.clear()
        await self._give_back(back)
        return [suspect]

    def _forget(self, held: Held) -> bool:
        """Hold an attempt no longer; return False if it was given away before."""
        attempt_key = _key(held.message, held.spec.task, held.spec.attempt)
        if self._held.get(attempt_key) is not held:
            return False
        del self._held[attempt_key]
        self._active -= held.active
        self._room.set()
        return True

    @property
    def _wanted(self) -> int:
        """The number of attempts to hold.

        More than the slots if attempts are short, since each call to the broker takes time, but
        never so many that other workers wait for them. 0 while a suspect attempt runs alone.
        """
        if any(held.is_suspect for held in self._held.values()):
            return 0
        ahead = min(MOST_AHEAD, int(WORTH_HOLDING / max(self._duration, 1e-6)))
        return self._options.slots * (1 + ahead)

    async def _lease(self, free: int, draining: asyncio.Task[Any]) -> list[Lease]:
        """Return leases; none if there are no messages, the broker failed, or the worker drains."""
        skip = self._skipped()
        # The call ends early if a declined run may be tried again before.
        wait = min([WAIT, *(until - self._now() for until, _ in self._declined.values())])
        call = asyncio.create_task(  # noqa: TID251 -- ends here
            self._queue.lease(self._topics, free, self._options.lease, max(wait, 0.0), skip)
        )
        await asyncio.wait([call, draining], return_when=asyncio.FIRST_COMPLETED)
        if not call.done():
            call.cancel()
        try:
            leases = await call
        except asyncio.CancelledError:
            if not self._draining.is_set():
                raise
            return []
        except QueueUnavailable as error:
            await asyncio.sleep(self._broker.failed(error) or 0.0)
            return []
        self._broker.succeeded()
        return leases

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _skipped(self) -> Collection[str]:
        """Return the groups of messages that this worker declines for now."""
        now = self._now()
        for group in [each for each, (until, _) in self._declined.items() if until <= now]:
            del self._declined[group]
        return self._declined.keys()

    async def _begin(self, lease: Lease) -> None:
        try:
            message: TaskMessage = open_message(
                lease.body, "task", self._options.keys, lease.topic, self._clock.now()
            )
            spec = message.attempt
        except QueueError as error:
            self._log(f"A message of {lease.topic} is refused: {error}")
            group = group_of(lease.id)
            if group and isinstance(error, ForgedMessage | MessageTooNew):
                self._decline(group, str(error))
                self._sender.give_back(lease)
            else:
                self._sender.bury(lease)
            return
        attempt_key = _key(message, spec.task, spec.attempt)
        again = self._put_there_again(lease, message, attempt_key)
        if again is not None:
            self._log(
                f"A message of {lease.topic} is dropped: task {spec.task} of {message.flow}/"
                f"{message.run} {again}, and somebody has put its message there again."
            )
            self._sender.acknowledge(lease)
            return
        if attempt_key in self._held:  # the lease expired, and we leased it again
            self._held[attempt_key].lease = lease
            return
        runtime = self._runtimes.get(message.job)
        if runtime is not None and await runtime.is_over(lease):
            self._sender.acknowledge(lease)
            self.run_is_over(runtime)
            return
        # Look again: processes that failed to start meanwhile were retired, and run nothing more.
        runtime = self._runtimes.get(message.job)
        if runtime is None:
            self._runtimes[message.job] = runtime = Runtime(self._site, self, message)
            self._forget_idle(runtime)
        # Others can replay a signed message, so the process of the task must check whether the
        # task is settled or the attempt has ended.
        looks = spec.again or lease.deliveries > 1 or bool(self._options.keys)
        spec = spec._replace(again=looks)
        held = Held(lease, message, spec, runtime)
        held.is_suspect = lease.deliveries > TRUSTED
        self._held[attempt_key] = held
        self._waiting.append(held)
        self._feed()

    def _put_there_again(self, lease: Lease, message: TaskMessage, attempt_key: Key) -> str | None:
        """Return how a signed message was found to be a replay; None if it was not.

        A topic holds one message of an id at a time, so a copy next to the original has another id.
        """
        if not self._options.keys:
            return None
        if (*attempt_key, message.launch) in self._over and lease.deliveries <= 1:
            return "has ended here"
        if lease.id != protocol.task_id(*attempt_key):
            return "has a message of its own"
        return None

    def _feed(self) -> None:
        """Start waiting attempts, as many as the processes accept."""
        while self._waiting and self._active < self._waiting[0].runtime.in_hand:
            if self._waiting[0].is_suspect and self._active:
                return
            held = self._waiting.popleft()
            held.active = True
            self._active += 1
            held.runtime.launch(held)

    def _forget_idle(self, but: Runtime) -> None:
        """Retire the processes of the runs that have been idle longest."""
        busy = {held.runtime for held in self._held.values()}
        idle = [each for each in self._runtimes.values() if each not in busy and each is not but]
        for runtime in idle[: max(0, len(idle) - KEPT)]:
            self._retire(runtime)

    def _retire(self, runtime: Runtime) -> None:
        """Stop the processes of a run in the background; `_release_leases` waits for them."""
        del self._runtimes[runtime.message.job]
        self._retiring.add(runtime)
        runtime.retire(self._retiring.discard)

    # ------------------------------------------------------------ declining

    def _decline(self, group: str, why: str) -> None:
        """Skip the messages of this group for a while."""
        self._declined.pop(group, None)
        while len(self._declined) >= _MOST_DECLINED:
            del self._declined[next(iter(self._declined))]
        self._declined[group] = self._now() + DECLINED_FOR, why
        self._declines.set()

    def _taken_from(self, runtime: Runtime) -> list[Held]:
        """Forget all attempts of this run, retire its processes, and return the attempts."""
        mine = [each for each in self._held.values() if each.runtime is runtime]
        for held in mine:
            self._forget(held)
        self._waiting = deque(each for each in self._waiting if each.runtime is not runtime)
        if self._runtimes.get(runtime.message.job) is runtime:
            self._retire(runtime)
        return mine

    def cannot_run(self, runtime: Runtime, why: str, only: AttemptKey | None = None) -> None:
        """Release the attempts of a run that cannot run here: other workers may be able to run it.

        With `only`, the process of that attempt found out before it reached the step: other
        attempts of the run that have started continue.
        """
        if only is None:
            back = self._taken_from(runtime)
        else:
            back = [each for each in self._waiting if each.runtime is runtime]
            self._waiting = deque(each for each in self._waiting if each.runtime is not runtime)
            first = self._held.get(_key(runtime.message, *only))
            if first is not None:
                back.append(first)
            for held in back:
                self._forget(held)
        if not back:
            return
        self._log(
            f"Worker {self.id} cannot run {runtime.name}, and leaves it to others for "
            f"{DECLINED_FOR:.0f} s: {why}"
        )
        self._decline(group_of(back[0].lease.id), why)
        for held in back:
            event = (protocol.DECLINED, held.spec.task, held.spec.attempt, why[:2000])
            self._sender.add(held.message, event)
            self._sender.give_back(held.lease)
        self._feed()

    def run_is_over(self, runtime: Runtime) -> None:
        """Acknowledge all messages of a run that has ended."""
        mine = self._taken_from(runtime)
        self._log(f"{runtime.name} has ended: what is left of it in the queue is dropped.")
        for held in mine:
            self._sender.acknowledge(held.lease)
        self._feed()

    def refused(self, held: Held, why: str) -> None:
        """Dead-letter the message of an attempt that its run cannot have."""
        if self._forget(held):
            self._log(f"A message of {held.lease.topic} is refused: {why}")
            self._sender.bury(held.lease)
            self._feed()

    # ------------------------------------------------------------ finishing

    def started(self, message: TaskMessage, task: int, attempt: int) -> None:
        """Log that an attempt has started."""
        held = self._held.get(_key(message, task, attempt))
        if held is not None and not self._options.quiet:
            self._log(f"{_named(held)} begins.")

    def ended(self, message: TaskMessage, report: AttemptReport, usage: Usage) -> None:
        """Report the end of an attempt; its lease is acknowledged once the report is sent."""
        held = self._held.get(_key(message, *report.attempt_key))
        if held is None:
            return
        self._forget(held)
        self._done += report.state == AttemptState.SUCCEEDED.value
        self._failed += report.state in _FAILED
        pool = held.lease.topic.removeprefix(protocol.tasks_topic(""))
        self._ended[int(asyncio.get_running_loop().time()), pool] += 1
        took = max(report.finished_at - report.started_at, 0.0)
        self._duration += 0.2 * (took - self._duration)
        if not self._options.quiet:
            why = f" {report.reason}" if report.reason else ""
            self._log(f"{_named(held)} {report.state} after {took:.3g} s.{why}")
        if not self._draining.is_set():
            self._feed()
        if report.state == AttemptState.INTERRUPTED.value:
            self._sender.give_back(held.lease)
            return
        if self._options.keys:
            self._over[(*_key(message, *report.attempt_key), held.message.launch)] = None
            if len(self._over) > _MOST_OVER:
                del self._over[next(iter(self._over))]
        report = _that_can_be_sent(report)
        event = (protocol.ENDED, report.task, report.attempt, usage.max_rss, usage.cpu, *report[2:])
        if not self._options.keys or report.state == AttemptState.SUCCEEDED.value:
            self._sender.add(message, event, held.lease)
            return
        # The end is recorded before the message is acknowledged: afterwards, others can replay it.
        recording = asyncio.create_task(self._record_end(held, report, event))  # noqa: TID251 -- awaited by `_send_remaining_reports`
        self._recording.add(recording)
        recording.add_done_callback(self._recording.discard)

    async def _record_end(self, held: Held, report: AttemptReport, event: tuple[Any, ...]) -> None:
        try:
            await held.runtime.record_end(report)
        except StorageError as error:
            self._log(
                f"The end of {_named(held)} could not be recorded, so its message could be run "
                f"again by another worker while its run goes on: {error}"
            )
        finally:
            self._sender.add(held.message, event, held.lease)

    async def _finish(self) -> None:
        """Release attempts that have not started, and wait for others up to the grace period."""
        for each in self._waiting:
            self._forget(each)
            self._sender.give_back(each.lease)
        self._waiting.clear()
        if count := len(self._held):
            tasks = plural(count, "task is", "tasks are")
            self._log(f"Worker {self.id} ends: {tasks} still running.")
        while self._held:
            if not self._is_patient:
                self._begin_grace()
            left = None if self._ends_at is None else max(self._ends_at - self._now(), 0.0)
            self._room.clear()
            try:
                async with asyncio.timeout(left):
                    await self._room.wait()
            except TimeoutError:
                break
        self._begin_grace()
        for runtime in [*self._runtimes.values()]:
            await runtime.stop()  # interrupts running attempts, which are released

    def _begin_grace(self) -> None:
        if self._ends_at is None:
            self._ends_at = self._now() + self._options.grace

    async def _give_back(self, leases: Sequence[Lease]) -> None:
        try:
            await self._queue.release(leases, counted=False)
        except QueueError as error:
            self._broker.failed(error)

    # ------------------------------------------------------------ background tasks

    async def _extend(self) -> None:
        """Renew the leases of all attempts held."""
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
                self._log(f"{error} The worker that commits the task first has settled it.")
                extended = error.held  # type: ignore[assignment]
            except QueueUnavailable as error:
                self._broker.failed(error)
                continue
            tokens = {lease.token: lease for lease in extended}
            for each in held:
                each.lease = tokens.get(each.lease.token, each.lease)

    async def _take_commands(self) -> None:
        """Cancel attempts on request of a coordinator, and drain on request of a server."""
        while True:
            try:
                leases = await self._queue.lease([self._own_topic], 100, self._options.lease, WAIT)
                for lease in leases:
                    self._cancel(lease)
                await self._queue.ack(leases)
            except LeaseLost:  # the message was handled anyway
                continue
            except QueueUnavailable as error:
                await asyncio.sleep(self._broker.failed(error) or 0.0)

    async def _announce(self) -> None:
        """Announce this worker, the attempts that it holds, and the runs that it declines."""
        while True:
            self._declines.clear()
            now = self._now()
            held = [each.lease.id for each in self._held.values() if now - each.since >= ANNOUNCED]
            self._skipped()  # removes those whose time is over
            declined = {group: why[:2000] for group, (_, why) in self._declined.items()}
            about = "" if self._is_listed else worker_data(self._record())
            presence = Presence(self._options.pools, self._options.slots, held, declined, about)
            try:
                await self._queue.announce(self.id, presence.encode(), ANNOUNCED_FOR)
            except QueueUnavailable as error:
                await asyncio.sleep(self._broker.failed(error) or 0.0)
                continue
            self._broker.succeeded()
            try:
                async with asyncio.timeout(ANNOUNCED):
                    await self._declines.wait()
            except TimeoutError:
                continue

    async def _register(self) -> None:
        """Send heartbeats to the metadata, and drain if the response asks for it."""
        if self._open_registry is None:
            return
        away: Waiting | None = None
        while True:
            self._beat_soon.clear()
            try:
                if self._registry is None:
                    self._registry = await in_daemon_thread(self._open_registry)
                if self._registry is not None:
                    beat = self._registry.beat_worker
                    reason = await in_daemon_thread(beat, self._record(), WORKER_EXPIRY)
                    self._is_listed = True
                    if reason is not None:
                        self._asked_to_drain(reason)
                if away is not None:
                    away.over()
                    away = None
            except AflowError as error:
                self._is_listed = False
                away = away or Waiting("the metadata, to be listed as a worker", log=self._log)
                away.still(str(error), "Tasks are taken all the same.")
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await self._beat_soon.wait()
            except TimeoutError:
                continue

    def _asked_to_drain(self, reason: str) -> None:
        if not self._draining.is_set():
            self._log(f"Worker {self.id} is drained: {reason}")
            self.drain(patient=True)

    def _record(self) -> WorkerRecord:
        """Return the record of this worker for the metadata."""
        now, loop_now = self._clock.now(), self._now()
        held = sorted(self._held.values(), key=lambda each: (not each.active, each.since))
        return WorkerRecord(
            name=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            queue=self._queue.url,
            pools=self._options.pools,
            slots=self._options.slots,
            version=__version__,
            python=platform.python_version(),
            started_at=self._started_at,
            labels=dict(self._options.labels),
            running=tuple(
                RunningTask(
                    _pathspec(each), each.spec.attempt, now - (loop_now - each.since), each.active
                )
                for each in held[:MOST_RUNNING]
            ),
            done=self._done,
            failed=self._failed,
            draining=self._draining.is_set(),
            ended=self._ended_lately(int(loop_now)),
        )

    def _ended_lately(self, now: int) -> dict[str, int]:
        """Return how many attempts of each pool have finished in the last minute."""
        found: Counter[str] = Counter()
        for (at, pool), count in [*self._ended.items()]:
            if at <= now - _MINUTE:
                del self._ended[at, pool]
            else:
                found[pool] += count
        return dict(found)

    def _cancel(self, lease: Lease) -> None:
        try:
            message: CancelMessage | DrainMessage = open_message(
                lease.body, ("cancel", "drain"), self._options.keys, lease.topic, self._clock.now()
            )
        except QueueError as error:
            self._log(f"A message is refused: {error}")
            return
        if isinstance(message, DrainMessage):
            self._asked_to_drain(message.reason)
            return
        for flow, run, task, attempt in message.attempts:
            held = self._held.get((flow, run, task, attempt))
            if held is not None and held.active:
                held.runtime.cancel(task, attempt)
            elif held is not None:
                self._waiting.remove(held)
                self.never_begun(held)

    def never_begun(self, held: Held) -> None:
        """Report an attempt as cancelled before it has started."""
        spec, now = held.spec, self._clock.now()
        reason = "The task was cancelled."
        report = base.stopped(spec.task, spec.attempt, AttemptState.CANCELLED, reason, now, now)
        self.ended(held.message, report, NO_USAGE)


_FAILED = (AttemptState.FAILED.value, AttemptState.TIMED_OUT.value, AttemptState.LOST.value)


def _key(message: TaskMessage, task: int, attempt: int) -> Key:
    return message.flow, message.run, task, attempt


def _pathspec(held: Held) -> str:
    return f"{held.message.flow}/{held.message.run}/{held.spec.step}/{held.spec.task}"


def _named(held: Held) -> str:
    again = f" (attempt {held.spec.attempt})" if held.spec.attempt else ""
    return _pathspec(held) + again


def _that_can_be_sent(report: AttemptReport) -> AttemptReport:
    size = len(report.manifest or b"")
    if size <= protocol.LARGEST_MANIFEST:
        return report
    reason = (
        f"What the task keeps of its small artifacts is {size >> 20} MB, more than a message can "
        "carry: put many of them into one list or dict."
    )
    return report._replace(
        state=AttemptState.FAILED.value, reason=reason, retryable=False, manifest=None
    )
