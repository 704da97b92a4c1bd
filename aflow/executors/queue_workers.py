"""Run attempts on other machines: enqueue them for workers, and receive the workers' reports.

A message contains one attempt. It is delivered again if its worker is lost. Only the first end of
an attempt that the coordinator commits counts, so that a second delivery only costs time. A message
that crashes every worker that leases it becomes a dead letter, and its attempt fails. Workers put
their reports into a topic of the run; see executors/mailbox.py.

Brokers can lose data (a restart without persistence, an eviction, a failover to a lagging replica).
Therefore a message is enqueued again if its attempt is neither queued, nor held by a worker, nor
reported. When the run has ended, its cancel messages and its reports topic are removed, and a
marker in the datastore makes workers skip task messages that are left.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import ChainMap, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core.backoff import Tries
from aflow._core.threads import in_thread
from aflow._core.waiting import Waiting
from aflow.errors import (
    InvalidDecorator,
    InvalidMessage,
    LeaseLost,
    QueueError,
    QueueUnavailable,
    StorageError,
)
from aflow.executors import protocol
from aflow.executors.base import Orphan, Reports
from aflow.executors.mailbox import RemoteExecutor
from aflow.executors.protocol import (
    CancelMessage,
    Presence,
    ReportsMessage,
    TaskMessage,
    open_message,
)
from aflow.executors.queue_status import plain, workers_of
from aflow.queue.base import AWAY, MAX_DELIVERIES, Lease, Message, Queue
from aflow.scheduler.states import AttemptState
from aflow.task.remote import mark_over
from aflow.task.spec import AttemptKey, AttemptSpec, RunContext

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.executors.protocol import Job
    from aflow.metadata.base import MetadataStore
    from aflow.storage.base import ObjectStore

TTL = 15.0  # seconds; lease of a report, within which it must be committed
WAIT = 15.0  # seconds; long poll for reports
LOOK = 10.0  # seconds between checks for dead letters and lost messages
WATCH = 2.5  # seconds between checks of what the run is waiting for
PATIENCE = 600.0  # seconds for which the broker may be unavailable
GPU_POOL = "gpu"  # the default pool of steps that request GPUs
_AT_ONCE = 200  # messages per call
_BURIED = 1000  # dead letters that are listed first; more are listed if there are that many
_TIDYING = 5.0  # seconds to clean up at the end of a run if the broker does not respond
_UNSURE = 60.0  # seconds without a capable worker before attempts fail, if workers are not listed
_log = logging.getLogger("aflow.queue")


class QueueExecutor(RemoteExecutor[Lease]):
    """Runs the attempts of one run on the workers of a queue.

    `job` returns the description of the run for workers, `pool_of(step)` the pool of a step.
    `open_queue` opens the queue on the event loop of `start`. The first of `keys` signs messages; a
    received message may be signed with any of them. Without keys, messages are unsigned. `priority`
    is the priority of messages. `amounts` returns the resources that an attempt requests from its
    worker's slots."""

    def __init__(
        self,
        open_queue: Callable[[], Queue],
        store: ObjectStore,
        metadata: MetadataStore,
        job: Callable[[RunContext], Job],
        pool_of: Callable[[str], str],
        clock: Clock,
        *,
        keys: Sequence[bytes] = (),
        priority: int = 0,
        grace: float = 5.0,
        amounts: Callable[[AttemptSpec], dict[str, float]] = lambda spec: {},
    ) -> None:
        super().__init__(store, metadata, job, clock, grace)
        self._amounts = amounts
        self._open_queue = open_queue
        self._pool_of = pool_of
        self._keys = keys
        self._priority = priority
        self._given_up: set[AttemptKey] = set()  # ended here, though a worker may still lease them
        self._cancels: defaultdict[str, list[AttemptKey]] = defaultdict(list)
        self._away = ""  # the error of the broker while it is unavailable, else ""
        # Of attempts that have not ended, and whose messages were put.
        self._specs: dict[AttemptKey, AttemptSpec] = {}
        self._missing: set[AttemptKey] = set()  # unknown to the queue at the last check
        self._cancel_messages: dict[str, list[str]] = {}  # by worker: ids of our cancel messages
        self._unfit_since: dict[str, float] = {}  # since when a pool has no capable worker
        self._queue: Any = None  # a Queue after `start`

    def recover(self, orphans: Sequence[Orphan]) -> Sequence[Orphan]:
        """Take over all attempts.

        Workers continue the attempts that they have started, and report to this coordinator. All
        others are enqueued again, which has no effect on messages that are still queued. Such an
        attempt may already have run, and the previous coordinator may still lease its report;
        therefore `again` makes the worker check for a result first."""
        for orphan in orphans:
            self._mail.take_over(orphan, orphan.handle or None)
            spec = orphan.spec._replace(again=True)
            if orphan.started_at is None:
                self._outgoing.append(spec)
            else:
                self._specs[spec.task, spec.attempt] = spec
        return ()

    def forget(self, task: int, attempt: int) -> None:
        """Acknowledge the message that reported this end, if all of its ends are committed."""
        if self._mail.forget((task, attempt)):
            self._news.set()

    async def start(self, context: RunContext, reports: Reports) -> None:
        """Prepare to launch attempts of this run. Raises QueueUnavailable and StorageError."""
        job = await self._prepare(context, reports)
        self._name = protocol.run_id(context.flow, context.run)
        self._reply = protocol.reports_topic(context.flow, context.run)
        self._pools = {step: self._pool_of(step) for step in job.needs}
        self._gangs = frozenset(step for step, needs in job.needs.items() if needs.gang)
        self._queue = self._open_queue()
        self._news = asyncio.Event()
        self._caught_up = asyncio.Event()
        if self._outgoing:
            self._news.set()
        else:
            self._caught_up.set()
        await self._queue.depth(self._reply)  # reports an unreachable queue now instead of later
        self._begin(self._send, self._listen, self._look, self._watch)

    # ------------------------------------------------------------ attempts

    def launch(self, spec: AttemptSpec) -> None:
        """Put this attempt into the queue of its pool."""
        attempt_key = (spec.task, spec.attempt)
        if not self._send_off(spec):
            return
        try:
            amounts = {} if spec.fallback else self._amounts(spec)
        except InvalidDecorator as error:
            fail = partial(self._mail.fail, attempt_key, str(error), retryable=False)
            self._loop.call_soon(fail)
            return
        self._outgoing.append(spec._replace(resources=tuple(amounts.items())))
        self._news.set()

    def _stop_one(self, attempt_key: AttemptKey, state: AttemptState, reason: str) -> None:
        """Send a cancel message to the worker of the attempt; give it up if no worker is known.

        The message of the attempt is removed from the queue."""
        away = self._mail.away.get(attempt_key)
        if away is None:
            return
        self._mail.note_cancel(attempt_key)
        # Always remove the message: if the worker is gone, another one would receive it.
        self._given_up.add(attempt_key)
        if away.worker is None:
            self._loop.call_soon(self._mail.give_up, attempt_key, state, reason)
        else:
            self._cancels[away.worker].append(attempt_key)
            # If the worker is gone, it does not respond.
            self._loop.call_later(2 * self._grace, self._mail.give_up, attempt_key, state, reason)
        self._news.set()

    def _note_over(self, attempt_key: AttemptKey) -> None:
        self._specs.pop(attempt_key, None)
        self._missing.discard(attempt_key)

    async def conclude(self) -> None:
        """Remove the run's cancel messages and its reports topic from the queue.

        The run is marked as ended in the datastore, so that workers skip task messages that are
        left. Errors are logged."""
        if self._stopped:
            return
        context = self._context
        try:
            await in_thread(mark_over, self._store, context.flow, context.run)
            async with asyncio.timeout(_TIDYING):
                for worker, ids in self._cancel_messages.items():
                    await self._queue.remove(protocol.worker_topic(worker), ids)
                await self._queue.drop(self._reply)
        except (QueueError, StorageError, TimeoutError) as error:
            why = str(error) or f"{self._queue.url} does not answer."
            _log.warning("What is left of a run in the queue could not be taken out: %s", why)

    async def leave(self) -> None:
        """Send pending messages and close the queue; workers continue."""
        was_stopped, self._stopped = self._stopped, True
        if not was_stopped and self._tasks:
            self._caught_up.set()
            self._news.set()
            await asyncio.wait(self._tasks[:1], timeout=_TIDYING + self._grace)
        await self._end_tasks()
        if self._queue is not None:
            await self._queue.close()

    # ------------------------------------------------------------ to workers

    async def _send(self) -> None:
        await self._caught_up.wait()  # unread reports may end attempts
        while True:
            await self._news.wait()
            self._news.clear()
            specs, self._outgoing = self._outgoing, []
            for at in range(0, len(specs), _AT_ONCE):
                await self._put_patiently(specs[at : at + _AT_ONCE])
            cancels, self._cancels = self._cancels, defaultdict(list)
            for worker, attempt_keys in cancels.items():
                await self._put_cancel(worker, attempt_keys)
            await self._acknowledge()
            given_up, self._given_up = self._given_up, set()
            if given_up:
                await self._take_out(given_up)
            if self._stopped and not self._news.is_set():
                return

    async def _put_patiently(self, specs: list[AttemptSpec]) -> None:
        tried = False

        async def put() -> None:
            nonlocal tried
            was_tried, tried = tried, True
            # A failed call may have succeeded at the broker, and the attempts may have run since.
            await self._put([spec._replace(again=True) for spec in specs] if was_tried else specs)

        await self._patiently(put)

    async def _put(self, specs: list[AttemptSpec]) -> None:
        # Skip attempts that were cancelled while they waited here.
        there = [spec for spec in specs if self._mail.is_wanted((spec.task, spec.attempt))]
        try:
            bodies = await in_thread(self._task_messages, there)
        except Exception as error:  # noqa: BLE001 -- the run cannot continue without its attempts
            for spec in there:
                reason = f"The task could not be handed to a worker: {error}"
                self._mail.give_up((spec.task, spec.attempt), AttemptState.LOST, reason)
            return
        by_topic: defaultdict[str, list[Message]] = defaultdict(list)
        largest = self._queue.largest
        put: list[AttemptSpec] = []
        for spec, body in zip(there, bodies, strict=True):
            attempt_key = (spec.task, spec.attempt)
            if largest is not None and len(body) > largest:
                self._mail.fail(attempt_key, self._too_large(len(body)), retryable=False)
                continue
            put.append(spec)
            by_topic[self._topic(spec.step)].append(
                Message(self._id(attempt_key), body, self._priority)
            )
        for topic, messages in by_topic.items():
            await self._queue.put(topic, messages)
        for spec in put:
            # A worker may already have reported the end while the other messages were put.
            if (spec.task, spec.attempt) in self._mail.away:
                self._specs[spec.task, spec.attempt] = spec

    def _too_large(self, size: int) -> str:
        return (
            f"The task's message of {size} bytes is larger than {self._queue.url} takes: put many "
            "small artifacts into one list or dict, or name a store for such messages in the URL "
            "of the queue (?bodies=)."
        )

    def _topic(self, step: str) -> str:
        return protocol.tasks_topic(self._pools[step])

    def _task_messages(self, specs: Sequence[AttemptSpec]) -> list[bytes]:
        """Return the bodies of the attempts' messages. Blocks."""
        self._rendezvous.expect(spec for spec in specs if spec.step in self._gangs)
        return [self._task_message(spec) for spec in specs]

    def _task_message(self, spec: AttemptSpec) -> bytes:
        context = self._context
        message = TaskMessage(
            store=context.storage_url,
            flow=context.flow,
            run=context.run,
            job=self._job_key,
            reply=self._reply,
            spec=self._packer.complete(spec).encode(),
            launch=0,
        )
        return message.seal(self._keys, self._topic(spec.step), self._clock.now())

    def _id(self, attempt_key: AttemptKey) -> str:
        return protocol.task_id(self._context.flow, self._context.run, *attempt_key)

    async def _put_cancel(self, worker: str, attempt_keys: list[AttemptKey]) -> None:
        context = self._context
        cancel = CancelMessage(
            [[context.flow, context.run, *attempt_key] for attempt_key in attempt_keys]
        )
        topic = protocol.worker_topic(worker)
        body = cancel.seal(self._keys, topic, self._clock.now())
        # A unique id: until the worker has acknowledged an earlier message, another one with the
        # same id would be ignored, although it names other attempts.
        message = Message(f"{self._name}:cancel:{uuid.uuid4().hex}", body)
        self._cancel_messages.setdefault(worker, []).append(message.id)
        await self._patiently(lambda: self._queue.put(topic, [message]))

    async def _take_out(self, attempt_keys: set[AttemptKey]) -> None:
        ids = [self._id(attempt_key) for attempt_key in attempt_keys]
        for pool in {*self._pools.values()}:
            topic = protocol.tasks_topic(pool)
            await self._patiently(lambda: self._queue.remove(topic, ids, leased=True))  # noqa: B023

    async def _patiently(self, call: Callable[[], Any]) -> Any:
        """Return the result of the call; retry while the broker does not respond."""
        tries = Tries(AWAY, patience=PATIENCE)
        while True:
            try:
                answer = await call()
            except QueueUnavailable as error:
                self._away = str(error)
                delay = tries.failed()
                if delay is None or self._stopped:
                    raise
                await asyncio.sleep(delay)
            else:
                self._away = ""
                return answer

    # ------------------------------------------------------------ from workers

    async def _listen(self) -> None:
        while True:
            wait = WAIT if self._caught_up.is_set() else 0.0
            leases = await self._patiently(
                lambda: self._queue.lease([self._reply], _AT_ONCE, TTL, wait)  # noqa: B023
            )
            if not leases:
                self._caught_up.set()
            for lease in leases:
                self._open(lease)
            self._news.set()

    async def _acknowledge(self) -> None:
        done, self._mail.done = self._mail.done, []
        if not done:
            return
        try:
            await self._patiently(lambda: self._queue.ack(done))
        except LeaseLost:  # some were delivered again, and will be ignored as duplicates
            return

    def _open(self, lease: Lease) -> None:
        try:
            message: ReportsMessage = open_message(
                lease.body, "reports", self._keys, self._reply, self._clock.now()
            )
            if (message.flow, message.run) != (self._context.flow, self._context.run):
                raise InvalidMessage("A report is of another run.")
        except QueueError as error:  # for example, signed with another key
            _log.warning("A message of %s is refused: %s", lease.topic, error)
            self._mail.done.append(lease)
            return
        self._mail.receive(message, lease)

    # ------------------------------------------------------------ lost messages and dead letters

    async def _look(self) -> None:
        """Fail the attempts whose messages are dead letters, and put lost messages again."""
        while True:
            await asyncio.sleep(LOOK)
            by_topic: defaultdict[str, dict[str, AttemptKey]] = defaultdict(dict)
            for attempt_key in filter(self._mail.is_wanted, self._specs):
                by_topic[self._topic(self._mail.away[attempt_key].step)][self._id(attempt_key)] = (
                    attempt_key
                )
            missing: set[AttemptKey] = set()
            for topic, by_id in by_topic.items():
                await self._look_at_buried(topic, by_id)
                missing |= await self._unknown(topic, by_id)
            await self._put_forgotten(missing)

    async def _look_at_buried(self, topic: str, by_id: Mapping[str, AttemptKey]) -> None:
        most = _BURIED
        while True:
            buried = await self._patiently(lambda: self._queue.buried(topic, most))  # noqa: B023
            if len(buried) < most:
                break
            most *= 4  # those of other runs are listed as well, and may be older than ours
        mine = [each for each in buried if each.id in by_id]
        for each in mine:
            self._fail_buried(by_id[each.id], each.deliveries)
        ids = [each.id for each in mine]
        if ids:
            await self._patiently(lambda: self._queue.remove(topic, ids))

    def _fail_buried(self, attempt_key: AttemptKey, deliveries: int) -> None:
        if deliveries < MAX_DELIVERIES:
            reason = (
                "The message of the task was refused by a worker, which has buried it: see what "
                "the workers say, and whether they have the same version of aflow."
            )
        else:
            reason = (
                f"The task was given to {deliveries} workers, and each of them ended before it "
                "did: see what they say, and whether the task needs more memory than they have."
            )
        self._mail.fail(attempt_key, reason, retryable=False)

    async def _unknown(self, topic: str, by_id: Mapping[str, AttemptKey]) -> set[AttemptKey]:
        """Return the attempts whose messages the queue does not have.

        None are returned if the broker does not report which messages it has."""
        ids = [*by_id]
        unknown: set[AttemptKey] = set()
        for at in range(0, len(ids), 1000):
            part = ids[at : at + 1000]
            known = await self._patiently(lambda: self._queue.known(topic, part))  # noqa: B023
            if known is None:
                return set()
            unknown.update(by_id[each] for each in part if each not in known)
        return unknown

    async def _put_forgotten(self, missing: set[AttemptKey]) -> None:
        """Enqueue messages again that were missing at the last two checks.

        Skips those that a worker reports as held, and all of them while unread reports may contain
        their ends."""
        before, self._missing = self._missing, missing
        again = {
            attempt_key for attempt_key in missing & before if self._mail.is_wanted(attempt_key)
        }
        if not again or (await self._patiently(lambda: self._queue.depth(self._reply))).ready:
            return
        workers = await self._patiently(partial(workers_of, self._queue)) or {}
        held = {each for presence in workers.values() for each in presence.held}
        specs = [
            self._specs[attempt_key]._replace(again=True)
            for attempt_key in again
            if self._id(attempt_key) not in held and attempt_key in self._specs
        ]
        if specs:
            _log.warning("The queue has forgotten %d tasks, which are put again.", len(specs))
            self._outgoing.extend(specs)
            self._missing = set()
            self._news.set()

    # ------------------------------------------------------------ what the run is waiting for

    async def _watch(self) -> None:
        """Log why the run makes no progress; fail attempts that no worker can run."""
        waiting: Waiting | None = None
        while True:
            await asyncio.sleep(WATCH)
            if self._away:
                if not isinstance(waiting, _ForQueue):
                    waiting = _ForQueue(f"the queue {self._queue.url}")
                waiting.still(self._away)
                continue
            if not self._stands_still():
                if waiting is not None:
                    waiting.over()
                waiting = None
                self._unfit_since.clear()  # attempts run, so the wait of others starts again
                continue
            if waiting is None or isinstance(waiting, _ForQueue):
                waiting = Waiting("workers")
            reason = await self._why()
            if reason:
                waiting.still(reason)

    def _stands_still(self) -> bool:
        """Return whether attempts wait for workers and nothing else runs.

        Running members of gangs that wait for their other members do not count."""
        waiting = [attempt_key for attempt_key, away in self._mail.away.items() if away.waits]
        gangs = {
            gang for attempt_key in waiting if (gang := self._gang_of(attempt_key)) is not None
        }
        return bool(waiting) and all(
            away.waits or self._gang_of(attempt_key) in gangs
            for attempt_key, away in self._mail.away.items()
        )

    def _gang_of(self, attempt_key: AttemptKey) -> tuple[str, int | None] | None:
        """Return the step and the split of the attempt's gang; None if it is in none."""
        spec = self._specs.get(attempt_key)
        return (spec.step, spec.split) if spec is not None and spec.step in self._gangs else None

    async def _why(self) -> str:
        """Return what the waiting attempts are waiting for."""
        try:
            workers = await workers_of(self._queue)
        except QueueUnavailable as error:
            return str(error)
        waiting: defaultdict[str, list[AttemptKey]] = defaultdict(list)
        for attempt_key, away in self._mail.away.items():
            if away.waits:
                waiting[self._pools[away.step]].append(attempt_key)
        reasons = []
        for pool, attempt_keys in sorted(waiting.items()):
            declined = self._mail.declined.items()
            reported = [found for step, found in declined if self._pools[step] == pool]
            able = Ability.of(pool, self._name, workers, dict(ChainMap(*reported)))
            reasons.append(able.why(len(attempt_keys), self._queue.url))
            if any(self._gang_of(attempt_key) for attempt_key in attempt_keys):
                reasons.append("All members of a gang run at once, and each needs a slot.")
            self._give_up_if_none_can(pool, attempt_keys, able)
        for pool in self._unfit_since.keys() - waiting.keys():
            del self._unfit_since[pool]
        return " ".join(reasons)

    def _give_up_if_none_can(
        self, pool: str, attempt_keys: list[AttemptKey], able: Ability
    ) -> None:
        if not able.is_none:
            self._unfit_since.pop(pool, None)
            return
        now = self._loop.time()
        since = self._unfit_since.setdefault(pool, now)
        if now - since < (WATCH if able.is_sure else _UNSURE):
            return
        for attempt_key in attempt_keys:
            self._given_up.add(attempt_key)
            self._mail.fail(attempt_key, able.refusal(), retryable=False)
        self._news.set()


class _ForQueue(Waiting):
    """A wait for the broker."""


class Ability(NamedTuple):
    """The number of workers of a pool, and the reasons of those that cannot run the flow.

    `workers` is None if the broker does not list workers."""

    pool: str
    workers: int | None
    slots: int
    declined: Mapping[str, str]

    @classmethod
    def of(
        cls,
        pool: str,
        group: str,
        workers: Mapping[str, Presence] | None,
        reported: Mapping[str, str],
    ) -> Ability:
        """Return the ability of the workers that have announced themselves.

        Args:
            pool: The name of the pool of workers.
            group: The prefix of the run's message ids, by which workers decline a run.
            workers: The announcements by worker; None if the broker does not list workers.
            reported: The reasons of workers that have declined attempts of the pool.
        """
        if workers is None:
            return cls(pool, None, 0, reported)
        mine = {name: each for name, each in workers.items() if pool in each.pools}
        declined = {
            name: each.declined[group] for name, each in mine.items() if group in each.declined
        }
        return cls(pool, len(mine), sum(each.slots for each in mine.values()), declined)

    @property
    def is_sure(self) -> bool:
        """Whether all workers of the pool are known."""
        return self.workers is not None

    @property
    def is_none(self) -> bool:
        """Whether workers are known, and none of them can run the flow."""
        return bool(self.declined) and self.workers in (None, len(self.declined))

    def refusal(self) -> str:
        """Return why the tasks of the pool fail if no worker can run them."""
        reasons = "; ".join(
            f"{plain(name)}: {plain(why)}" for name, why in [*sorted(self.declined.items())][:5]
        )
        more = len(self.declined) - 5
        return (
            f"No worker of pool {self.pool} can run the task: {reasons}"
            f"{f'; and {more} more' if more > 0 else ''}"
        )

    def why(self, tasks: int, url: str) -> str:
        """Return a sentence on what the waiting tasks of the pool are waiting for.

        Args:
            tasks: The number of waiting tasks.
            url: The URL of the queue, without credentials, for the suggested command.
        """
        many = "1 task waits" if tasks == 1 else f"{tasks} tasks wait"
        start = f"aflow worker --queue '{url}' --pool {self.pool}"
        if self.workers is None:
            return (
                f"{many} for a worker of pool {self.pool}: see whether one takes tasks of it from "
                f"{url} ({start})."
            )
        if self.workers == 0:
            return (
                f"{many} for a worker of pool {self.pool}: no worker takes tasks of it from {url}. "
                f"Start one: {start}"
            )
        if self.is_none:
            return f"{many}. {self.refusal()}"
        unfit = f", {len(self.declined)} of which cannot run the flow" if self.declined else ""
        return (
            f"{many} for a worker of pool {self.pool}: there are {self.workers} with {self.slots} "
            f"slots{unfit}, and none has begun one. See what they do: aflow queue status --queue "
            f"'{url}'"
        )


def pools_of(definition: Any) -> Mapping[str, str]:
    """Return the pool of each step.

    This is the pool of its @queue; else `gpu` if the step requests GPUs by @resources; else
    `default`.

    Args:
        definition: The definition of the flow.
    """
    return {name: _pool(step) for name, step in definition.steps.items()}


def _pool(step: Any) -> str:
    marked = step.decorator("queue")
    if marked is not None and marked.pool is not None:
        return str(marked.pool)
    resources = step.decorator("resources")
    return GPU_POOL if resources is not None and resources.gpu else protocol.DEFAULT_POOL
