"""Attempts that run on other machines, and the messages with which their workers report on them.

Reports are applied in the order of arrival. Duplicates, and reports on attempts that have ended,
have no effect. A message that reports the end of an attempt is acknowledged after that end has been
committed: if this coordinator crashes before that, its successor receives the message again."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from aflow._core.threads import in_thread
from aflow.errors import AflowError, ObjectNotFound
from aflow.executors import base, protocol
from aflow.executors.base import NO_USAGE, Orphan, Reports, Usage
from aflow.executors.protocol import Packer, ReportsMessage, open_message, reports_topic
from aflow.scheduler.states import AttemptState
from aflow.task.remote import Payloads
from aflow.task.spec import AttemptKey, AttemptReport

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aflow._core.clock import Clock
    from aflow.executors.protocol import Job
    from aflow.metadata.base import MetadataStore
    from aflow.storage.base import ObjectStore
    from aflow.task.spec import AttemptSpec, RunContext

CANCELLED = AttemptState.CANCELLED.value
STOPPED = "The task was interrupted: the run was stopped."
WAS_CANCELLED = "The task was cancelled."

R = TypeVar("R")
_log = logging.getLogger("aflow")


class Away:
    """An attempt that runs on another machine, or waits for one, and has not ended."""

    __slots__ = ("host", "is_back", "started_at", "step", "worker")

    def __init__(self, step: str) -> None:
        self.step = step
        self.is_back = False  # a worker had started it, and returned it
        self.worker: str | None = None  # the worker that is known to have it
        self.host = ""  # the machine of the worker
        self.started_at: float | None = None

    @property
    def waits(self) -> bool:
        """Whether no worker is known to run it."""
        return self.started_at is None or self.is_back


class _Unread(Generic[R]):
    """A message that reports ends which are not committed yet."""

    __slots__ = ("name", "receipt", "uncommitted")

    def __init__(self, name: tuple[str, int], receipt: R, uncommitted: set[AttemptKey]) -> None:
        self.name = name
        self.receipt = receipt
        self.uncommitted = uncommitted


class ReportInbox(Generic[R]):
    """Tracks the attempts of one run that run on other machines.

    `begin` sets the receiver of their reports. A receipt identifies a message at its source; `done`
    contains the receipts of the messages that can be acknowledged."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.away: dict[AttemptKey, Away] = {}
        self.done: list[R] = []
        self._received: defaultdict[str, set[int]] = defaultdict(set)
        self._unread: dict[AttemptKey, _Unread[R]] = {}  # by the attempts whose ends it reports
        self._uncommitted: dict[tuple[str, int], _Unread[R]] = {}  # by worker and number
        self._interrupted = False
        self._cancelled: set[AttemptKey] = set()  # by us, and not yet ended
        # Workers that cannot run the flow, with the reasons, by the step that they have declined.
        self.declined: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._idle = asyncio.Event()
        self._reports: Reports
        self._over: Callable[[AttemptKey], None] | None = None
        self._believes: Callable[[AttemptReport], bool] | None = None

    def begin(
        self,
        reports: Reports,
        over: Callable[[AttemptKey], None] | None = None,
        believes: Callable[[AttemptReport], bool] | None = None,
    ) -> None:
        """Start to pass on reports.

        Args:
            reports: Receives the reports on the attempts.
            over: Called with an attempt before its end is reported; None for no call.
            believes: Returns whether a reported end can be true; if not, it is ignored. None
                accepts all.
        """
        self._reports = reports
        self._over = over
        self._believes = believes

    def send(self, attempt_key: AttemptKey, step: str) -> None:
        """Track an attempt that is handed to a worker or a job.

        Args:
            attempt_key: The numbers of task and attempt.
            step: The name of the step.
        """
        self.away[attempt_key] = Away(step)

    def take_over(self, orphan: Orphan, worker: str | None) -> None:
        """Track an attempt that an earlier coordinator launched.

        Args:
            orphan: The attempt, as recorded in the metadata store.
            worker: The id of the worker that runs it; None if no worker has reported it yet.
        """
        spec = orphan.spec
        away = self.away[(spec.task, spec.attempt)] = Away(spec.step)
        away.worker, away.started_at = worker, orphan.started_at

    def awaits_start(self, attempt_key: AttemptKey) -> bool:
        """Return whether the attempt is tracked and not known to have started.

        Args:
            attempt_key: The numbers of task and attempt.
        """
        away = self.away.get(attempt_key)
        return away is not None and away.started_at is None

    def note_cancel(self, attempt_key: AttemptKey) -> None:
        """Record that this attempt was requested to stop.

        Args:
            attempt_key: The numbers of task and attempt.
        """
        if attempt_key in self.away:
            self._cancelled.add(attempt_key)

    def is_wanted(self, attempt_key: AttemptKey) -> bool:
        """Return whether the attempt is tracked and was not requested to stop.

        Args:
            attempt_key: The numbers of task and attempt.
        """
        return attempt_key in self.away and attempt_key not in self._cancelled

    # ------------------------------------------------------------ messages

    def receive(self, message: ReportsMessage, receipt: R) -> None:
        """Apply a message, unless it was applied before.

        Args:
            message: The opened message. A duplicate is only acknowledged again: brokers deliver at
                least once.
            receipt: Identifies the message when it is acknowledged.
        """
        name = (message.worker, message.number)
        if message.number in self._received[message.worker]:
            if name in self._uncommitted:  # its ends are not committed yet
                self._uncommitted[name].receipt = receipt
            else:
                self.done.append(receipt)
            return
        self._received[message.worker].add(message.number)
        ends = self._read(message)
        if ends:
            self._uncommitted[name] = unread = _Unread(name, receipt, ends)
            self._unread.update((attempt_key, unread) for attempt_key in ends)
        else:
            self.done.append(receipt)

    def forget(self, attempt_key: AttemptKey) -> bool:
        """Record that the end of this attempt is committed.

        Args:
            attempt_key: The numbers of task and attempt.

        Returns:
            Whether the message that reported it can be acknowledged now.
        """
        message = self._unread.pop(attempt_key, None)
        if message is None:
            return False
        message.uncommitted.discard(attempt_key)
        if message.uncommitted:
            return False
        del self._uncommitted[message.name]
        self.done.append(message.receipt)
        return True

    def _read(self, message: ReportsMessage) -> set[AttemptKey]:
        """Apply the message; return the attempts whose ends it reports."""
        ends: set[AttemptKey] = set()
        for kind, task, attempt, *rest in message.events:
            away = self.away.get((task, attempt))
            if away is None:
                continue
            if kind == protocol.DECLINED:
                self.declined[away.step][message.worker] = rest[0]
                if away.worker in (None, message.worker):
                    away.is_back, away.worker = True, None
                continue
            if kind == protocol.STARTED:
                self._note_start(away, message, task, attempt, *rest)
            elif away.started_at is None:
                # The message with its start is late (lost delivery, unordered queue), or the
                # previous coordinator read it and crashed before it recorded the start.
                now = self._clock.now()
                self._note_start(away, message, task, attempt, None, now)
            if kind == protocol.LOGGED:
                self._reports.logged(task, attempt, *rest)
            elif kind == protocol.GROWN:
                self._reports.grown(task, attempt, *rest)
            elif kind == protocol.ENDED:
                max_rss, cpu, *fields = rest
                report = AttemptReport(task, attempt, *fields)
                report = report._replace(steps=tuple(report.steps))
                if self._believes is not None and not self._believes(report):
                    continue
                if report.state == CANCELLED and (task, attempt) not in self._cancelled:
                    reason = f"The task was lost: {message.worker} cancelled it without our asking."
                    report = report._replace(state=AttemptState.LOST.value, reason=reason)
                ends.add((task, attempt))
                self.end(report, Usage(max_rss, cpu))
        return ends

    def _note_start(
        self,
        away: Away,
        message: ReportsMessage,
        task: int,
        attempt: int,
        pid: int | None,
        at: float,
    ) -> None:
        away.is_back = False
        self.declined[away.step].pop(message.worker, None)
        if (away.worker, away.host) != (message.worker, message.host):
            away.worker, away.host = message.worker, message.host
            self._reports.handed(task, attempt, message.worker, message.host)
        if away.started_at is None:
            away.started_at = at
            self._reports.started(task, attempt, pid, at)

    # ------------------------------------------------------------ ends

    def end(self, report: AttemptReport, usage: Usage) -> None:
        """Report the end of a tracked attempt.

        Args:
            report: The report; a cancelled attempt counts as interrupted after `interrupt`.
            usage: The resources that the attempt used; NO_USAGE if unknown.
        """
        if self._interrupted and report.state == AttemptState.CANCELLED.value:
            # Workers receive the same cancel message in both cases.
            report = report._replace(state=AttemptState.INTERRUPTED.value, reason=STOPPED)
        del self.away[(report.task, report.attempt)]
        self._cancelled.discard((report.task, report.attempt))
        if not self.away:
            self._idle.set()
        if self._over is not None:
            self._over((report.task, report.attempt))
        self._reports.ended(report, usage)

    def give_up(self, attempt_key: AttemptKey, state: AttemptState, reason: str) -> None:
        """End an attempt without a report from its worker, unless it has ended already.

        Args:
            attempt_key: The numbers of task and attempt.
            state: The state to report, such as lost or cancelled.
            reason: The reason, in one sentence.
        """
        away = self.away.get(attempt_key)
        if away is not None:
            now = self._clock.now()
            begun = away.started_at or now
            self.end(base.stopped(*attempt_key, state, reason, begun, now), NO_USAGE)

    def fail(self, attempt_key: AttemptKey, reason: str, *, retryable: bool = True) -> None:
        """Report an attempt as failed whose worker can no longer report it.

        Args:
            attempt_key: The numbers of task and attempt.
            reason: The reason, in one sentence.
            retryable: Whether the retry policy applies; False fails the task without a retry.
        """
        away = self.away.get(attempt_key)
        if away is None:
            return
        now = self._clock.now()
        if away.started_at is None:
            away.started_at = now
            self._reports.started(*attempt_key, None, now)
        report = AttemptReport(
            *attempt_key,
            AttemptState.FAILED.value,
            reason,
            retryable,
            started_at=away.started_at,
            finished_at=now,
        )
        self.end(report, NO_USAGE)

    def interrupt(self) -> None:
        """Report attempts that are cancelled from now on as interrupted."""
        self._interrupted = True

    async def until_idle(self) -> None:
        """Wait until no attempts are tracked."""
        while self.away:
            self._idle.clear()
            await self._idle.wait()


class RemoteExecutor(ABC, Generic[R]):
    """The common part of executors whose attempts run elsewhere and report by messages.

    `_mail` tracks the attempts. Asyncio tasks transfer messages until `stop` or `leave` ends them.
    """

    lookahead = 0
    bounds: Mapping[str, int] = MappingProxyType({})

    def __init__(
        self,
        store: ObjectStore,
        metadata: MetadataStore,
        job: Callable[[RunContext], Job],
        clock: Clock,
        grace: float,
    ) -> None:
        self._store = store
        self._metadata = metadata
        self._job = job
        self._clock = clock
        self._grace = grace
        self._mail: ReportInbox[R] = ReportInbox(clock)
        self._outgoing: list[AttemptSpec] = []
        self._lost: str | None = None  # why no more reports can arrive
        self._stopped = False
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop

    @abstractmethod
    def _note_over(self, attempt_key: AttemptKey) -> None:
        """Clean up after an attempt that has ended; called before its end is reported."""

    def cancel(self, task: int, attempt: int) -> None:
        """Stop this attempt, whether it is still waiting or runs on a worker."""
        self._stop_one((task, attempt), AttemptState.CANCELLED, WAS_CANCELLED)

    @abstractmethod
    def _stop_one(self, attempt_key: AttemptKey, state: AttemptState, reason: str) -> None:
        """Request the end of an attempt, and give it up if its worker does not respond."""

    @abstractmethod
    async def leave(self) -> None:
        """Send pending messages and release all resources; attempts continue."""

    async def _prepare(
        self,
        context: RunContext,
        reports: Reports,
        believes: Callable[[AttemptReport], bool] | None = None,
    ) -> Job:
        """Upload the job of the run for the processes that run its attempts, and return it."""
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._mail.begin(reports, self._note_over, believes)
        self._payloads = Payloads(self._store, context.flow, context.run)
        self._packer = Packer(self._metadata, context.run_key, self._payloads)
        self._rendezvous = Rendezvous(self._store, context.flow, context.run)
        job = self._job(context._replace(remote=True))
        self._job_key = await in_thread(self._payloads.put, job.encode())
        return job

    def _begin(self, *works: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start the tasks that transfer messages. `leave` waits for them."""
        self._tasks = [self._loop.create_task(each()) for each in works]
        for task in self._tasks:
            task.add_done_callback(self._note_end_of)

    def _note_end_of(self, task: asyncio.Task[None]) -> None:
        """Give up all attempts after a task that transfers messages has failed.

        The broker or the datastore was unavailable for too long, or this is a bug. In either case
        no more reports can arrive."""
        error = None if task.cancelled() else task.exception()
        if error is None or self._stopped:
            return
        reason = str(error) if isinstance(error, AflowError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, AflowError):
            _log.error("A part of the coordinator has failed.", exc_info=error)
        self._lost = f"The task was lost: no more reports of it can arrive ({reason})"
        for attempt_key in [*self._mail.away]:
            self._mail.give_up(attempt_key, AttemptState.LOST, self._lost)

    def _send_off(self, spec: AttemptSpec) -> bool:
        """Track an attempt before it is launched; return False if no reports can arrive."""
        attempt_key = (spec.task, spec.attempt)
        self._mail.send(attempt_key, spec.step)
        if self._lost is not None:
            self._loop.call_soon(self._mail.give_up, attempt_key, AttemptState.LOST, self._lost)
        return self._lost is None

    async def stop(self) -> None:
        """Interrupt all attempts, and release all resources."""
        if not self._stopped and self._tasks:
            self._mail.interrupt()
            for attempt_key in [*self._mail.away]:
                self._stop_one(attempt_key, AttemptState.INTERRUPTED, STOPPED)
            await self._mail.until_idle()
        await self.leave()

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Attempts that are left belong to another executor: no timer may give them up here.
        self._mail.away.clear()


# Messages from jobs to the coordinator of their run, as objects in the datastore.
#
# A job writes its reports as numbered messages below a prefix of the run. The coordinator lists the
# prefix, reads new messages, and deletes them after they have been committed. On NFS, listings may
# lag behind (LAG in jobs/executor.py). Calls block, and are thread-safe.


_FOR_NAMES = str.maketrans(":#@~", "....")  # not allowed in names of objects


class Mailbox:
    """The messages of one run."""

    def __init__(self, store: ObjectStore, flow: str, run: str) -> None:
        self._store = store
        self._folder = f"jobs/{flow}/{run}/reports/"
        self._topic = reports_topic(flow, run)

    def put(self, message: ReportsMessage) -> None:
        """Store a message.

        Args:
            message: Reports of a job. Worker and number form its name, so that `names` lists them
                in order.

        Raises:
            StorageError: If the datastore does not respond.
        """
        worker = message.worker.translate(_FOR_NAMES)
        name = f"{self._folder}{worker}/{message.number:08d}"
        self._store.put(name, [message.seal((), self._topic, 0.0)])

    def names(self) -> Iterator[str]:
        """Yield the names of all messages, in order for each job. Raises StorageError."""
        return self._store.list(self._folder)

    def open(self, name: str) -> ReportsMessage:
        """Return the message with this name.

        Args:
            name: A name that `names` returned.

        Raises:
            InvalidMessage: If it is malformed.
            StorageError: If the datastore does not respond.
        """
        data = bytes(self._store.get(name))
        message: ReportsMessage = open_message(data, "reports", (), self._topic, None)
        return message

    def remove(self, name: str) -> None:
        """Delete a message, if it exists.

        Args:
            name: A name that `names` returned.

        Raises:
            StorageError: If the datastore does not respond.
        """
        self._store.delete(name)


# How the members of a gang, which are jobs on several machines, find each other: through the
# datastore.
#
# Each attempt of member 0 publishes its address under its number; the other members use the address
# of the latest attempt. Before an attempt of member 0 is launched again, the executor stores an
# empty address for it. Therefore members that start later wait for the new attempt, whereas a
# member that is retried alone finds the attempt that is still running. A multi-node job ends when
# its main node does, so the other nodes record that they have finished. Calls block.


class Rendezvous:
    """The gangs of one run; a gang is identified by the task of its member 0."""

    def __init__(self, store: ObjectStore, flow: str, run: str) -> None:
        self._store = store
        self._folder = f"jobs/{flow}/{run}/gangs"

    def expect(self, specs: Iterable[AttemptSpec]) -> None:
        """Store an empty address for each attempt that restarts member 0 of a gang.

        It makes the other members wait for the new address. Existing addresses are kept.

        Args:
            specs: The attempts that will be launched; those of other members are skipped.

        Raises:
            StorageError: If the datastore does not respond.
        """
        for spec in specs:
            if spec.split_index == 0 and spec.attempt > 0:
                self._store.put_if_absent(self._name(spec.task, spec.attempt), [b""])

    def announce(self, control: int, attempt: int, address: str) -> None:
        """Publish the address of this attempt of member 0 of the gang.

        Args:
            control: The number of the task of member 0.
            attempt: The number of the attempt, from 0.
            address: The host name or IP address at which the other members reach it.

        Raises:
            StorageError: If the datastore does not respond.
        """
        self._store.put(self._name(control, attempt), [address.encode()])

    def address(self, control: int) -> str | None:
        """Return the address of the latest attempt of member 0; None until it is published.

        Args:
            control: The number of the task of member 0.

        Raises:
            StorageError: If the datastore does not respond.
        """
        names = [*self._store.list(f"{self._folder}/{control}/addresses/")]
        try:
            return bytes(self._store.get(names[-1])).decode() or None if names else None
        except ObjectNotFound:  # the run has ended, and its objects were deleted
            return None

    def _name(self, control: int, attempt: int) -> str:
        return f"{self._folder}/{control}/addresses/{attempt:010d}"

    def leave(self, job: str, node: int) -> None:
        """Record that this node of a multi-node job has finished.

        Args:
            job: The id of the job.
            node: The index of the node, from 0: the main node waits for the others.

        Raises:
            StorageError: If the datastore does not respond.
        """
        self._store.put(f"{self._folder}/{job}/nodes/{node}", [b"done"])

    def left(self, job: str) -> int:
        """Return the number of nodes of a job that have finished.

        Args:
            job: The id of the job.

        Raises:
            StorageError: If the datastore does not respond.
        """
        return sum(1 for _ in self._store.list(f"{self._folder}/{job}/nodes/"))
