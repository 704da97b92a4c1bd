"""Attempts that run on other machines: put into a queue, and what workers report of them.

A message is one attempt. It is delivered again when its worker goes away, and whoever commits its
task first has settled it, so that a second delivery costs time alone. One that kills each worker
that takes it is buried; then its attempt has failed. What workers report they put into a queue of
the run; see correspondence.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aflow.attempt.remote import Parcels
from aflow.attempt.spec import AttemptSpec, RunContext
from aflow.errors import LeaseLost, QueueError, QueueUnavailable
from aflow.executors import letters
from aflow.executors.base import Orphan, Reports
from aflow.executors.correspondence import STOPPED, Away, Correspondence, Owner
from aflow.executors.letters import CancelLetter, ReportsLetter, TaskLetter, unseal_letter
from aflow.executors.parcels import Packer
from aflow.queue.away import pause
from aflow.queue.base import Lease, Message, Queue
from aflow.scheduler.states import AttemptState
from aflow.threads import in_thread

if TYPE_CHECKING:
    from aflow.clock import Clock
    from aflow.executors.job import Job
    from aflow.metadata.base import MetadataStore
    from aflow.storage.base import ObjectStore

TTL = 15.0  # seconds within which a report that was leased is taken down and committed
WAIT = 15.0  # seconds that one call waits for reports
LOOK = 10.0  # seconds between looks at what was buried
PATIENCE = 600.0  # seconds for which it may be away
GPU_POOL = "gpu"  # of steps that ask for GPUs
_AT_ONCE = 200  # messages a call
_log = logging.getLogger("aflow.queue")


class QueueExecutor:
    """Runs the attempts of one run on the workers of a queue.

    `job` describes the run to workers, `pool_of(step)` names the pool of a step. `open_queue` opens
    the queue in the event loop of `start`. `key` signs messages, None leaves them unsigned.
    """

    lookahead = 0

    def __init__(
        self,
        open_queue: Callable[[], Queue],
        store: ObjectStore,
        metadata: MetadataStore,
        job: Callable[[RunContext], Job],
        pool_of: Callable[[str], str],
        clock: Clock,
        *,
        key: bytes | None = None,
        grace: float = 5.0,
    ) -> None:
        self._open_queue = open_queue
        self._store = store
        self._metadata = metadata
        self._job = job
        self._pool_of = pool_of
        self._clock = clock
        self._key = key
        self._grace = grace
        self._mail: Correspondence[Lease] = Correspondence(clock)
        self._given_up: set[Owner] = set()  # ended here, while a worker may still take them
        self._outgoing: list[AttemptSpec] = []
        self._cancels: defaultdict[str, list[Owner]] = defaultdict(list)
        self._lost: str | None = None  # why nothing more is heard of attempts
        self._stopped = False
        self._queue: Any = None  # a Queue from the start on
        self._tasks: list[asyncio.Task[None]] = []

    def recover(self, orphans: Sequence[Orphan]) -> Sequence[Orphan]:
        """All of them: what a worker has begun it ends, and reports to whoever listens then; what
        is not known to have begun is put into the queue, where it stays what it is if it is there
        already. It may have been done, and the letter that says so be leased by our predecessor:
        so whoever gets it looks first whether there is anything left to do."""
        for orphan in orphans:
            self._mail.take_over(orphan, orphan.handle or None)
            if orphan.started_at is None:
                self._outgoing.append(orphan.spec._replace(again=True))
        return ()

    def forget(self, task: int, attempt: int) -> None:
        """The letter that tells of this end has been read, if it tells of no other."""
        if self._mail.forget((task, attempt)):
            self._news.set()

    async def start(self, context: RunContext, reports: Reports) -> None:
        """Get ready to launch attempts of this run; raises QueueUnavailable and StorageError."""
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._mail.begin(reports)
        self._name = hashlib.sha256(f"{context.flow}/{context.run}".encode()).hexdigest()[:24]
        self._reply = letters.reports_topic(context.flow, context.run)
        parcels = Parcels(self._store, context.flow, context.run)
        self._packer = Packer(self._metadata, context.run_key, parcels)
        job = self._job(context._replace(remote=True))
        self._job_key = await in_thread(parcels.put, job.encode())
        self._queue = self._open_queue()
        self._news = asyncio.Event()
        self._caught_up = asyncio.Event()
        if self._outgoing:
            self._news.set()
        else:
            self._caught_up.set()
        await self._queue.depth(self._reply)  # a queue that is not there is better known now
        # They end with `stop`, which waits for them.
        self._tasks = [
            self._loop.create_task(each())
            for each in (self._send, self._listen, self._look_at_buried)
        ]
        for task in self._tasks:
            task.add_done_callback(self._note_end_of)

    def _note_end_of(self, task: asyncio.Task[None]) -> None:
        """The broker was away for too long: nothing is heard of the attempts any more."""
        error = None if task.cancelled() else task.exception()
        if error is None or self._stopped:
            return
        self._lost = f"The task was lost: nothing more can be heard of it ({error})"
        for owner in [*self._mail.away]:
            self._mail.give_up(owner, AttemptState.LOST, self._lost)

    # ------------------------------------------------------------ attempts

    def launch(self, spec: AttemptSpec) -> None:
        """Put this attempt into the queue of its pool."""
        owner = (spec.task, spec.attempt)
        self._mail.send(owner, spec.step)
        if self._lost is not None:
            self._loop.call_soon(self._mail.give_up, owner, AttemptState.LOST, self._lost)
            return
        self._outgoing.append(spec)
        self._news.set()

    def cancel(self, task: int, attempt: int) -> None:
        """Stop this attempt: its worker is told so; if none is known to have it, it is taken out
        of the queue."""
        owner = (task, attempt)
        away = self._mail.away.get(owner)
        if away is not None:
            reason = "The task was cancelled."
            self._stop_one(owner, away, AttemptState.CANCELLED, reason)

    def _stop_one(self, owner: Owner, away: Away, state: AttemptState, reason: str) -> None:
        if away.worker is None:
            self._given_up.add(owner)
            self._loop.call_soon(self._mail.give_up, owner, state, reason)
        else:
            self._cancels[away.worker].append(owner)
            # A worker that is gone does not answer.
            self._loop.call_later(2 * self._grace, self._mail.give_up, owner, state, reason)
        self._news.set()

    async def stop(self) -> None:
        """Interrupt all that is in the queue or runs, and let go of the queue."""
        if not self._stopped and self._tasks:
            self._mail.interrupt()
            for owner, away in [*self._mail.away.items()]:
                self._stop_one(owner, away, AttemptState.INTERRUPTED, STOPPED)
            await self._mail.until_idle()
        await self.leave()

    async def leave(self) -> None:
        """Say what is to be said, and let go of the queue: workers go on."""
        was_stopped, self._stopped = self._stopped, True
        if not was_stopped and self._tasks:
            self._caught_up.set()
            self._news.set()
            await asyncio.wait(self._tasks[:1])
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._queue is not None:
            await self._queue.close()

    # ------------------------------------------------------------ to workers

    async def _send(self) -> None:
        await self._caught_up.wait()  # what has ended meanwhile is not put again
        while True:
            await self._news.wait()
            self._news.clear()
            specs, self._outgoing = self._outgoing, []
            for at in range(0, len(specs), _AT_ONCE):
                await self._put_patiently(specs[at : at + _AT_ONCE])
            cancels, self._cancels = self._cancels, defaultdict(list)
            for worker, owners in cancels.items():
                await self._put_cancel(worker, owners)
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
            # A call that has failed may have been carried out, and what it put be done since then.
            await self._put([spec._replace(again=True) for spec in specs] if was_tried else specs)

        await self._patiently(put)

    async def _put(self, specs: list[AttemptSpec]) -> None:
        there = [spec for spec in specs if self._mail.awaits_start((spec.task, spec.attempt))]
        try:
            bodies = await in_thread(lambda: [self._letter(spec) for spec in there])
        except Exception as error:  # noqa: BLE001 -- the run cannot go on without its attempts
            for spec in there:
                reason = f"The task could not be handed to a worker: {error}"
                self._mail.give_up((spec.task, spec.attempt), AttemptState.LOST, reason)
            return
        by_topic: defaultdict[str, list[Message]] = defaultdict(list)
        for spec, body in zip(there, bodies, strict=True):
            by_topic[self._topic(spec.step)].append(
                Message(self._id((spec.task, spec.attempt)), body)
            )
        for topic, messages in by_topic.items():
            await self._queue.put(topic, messages)

    def _topic(self, step: str) -> str:
        return letters.tasks_topic(self._pool_of(step))

    def _letter(self, spec: AttemptSpec) -> bytes:
        context = self._context
        letter = TaskLetter(
            context.storage_url,
            context.flow,
            context.run,
            self._job_key,
            self._reply,
            self._packer.complete(spec).encode(),
            0,
        )
        return letter.seal(self._key)

    def _id(self, owner: Owner) -> str:
        return f"{self._name}:{owner[0]}:{owner[1]}"

    async def _put_cancel(self, worker: str, owners: list[Owner]) -> None:
        context = self._context
        letter = CancelLetter([[context.flow, context.run, *owner] for owner in owners])
        message = Message(f"{self._id(owners[0])}:cancel", letter.seal(self._key))
        topic = letters.worker_topic(worker)
        await self._patiently(lambda: self._queue.put(topic, [message]))

    async def _take_out(self, owners: set[Owner]) -> None:
        for topic in {self._topic(step) for step in self._steps()}:
            ids = [self._id(owner) for owner in owners]
            await self._patiently(lambda: self._queue.remove(topic, ids))  # noqa: B023

    def _steps(self) -> set[str]:
        return set(self._job(self._context).needs)

    async def _patiently(self, call: Callable[[], Any]) -> Any:
        """What the call gives, also where the broker is away for a while."""
        give_up_at = self._loop.time() + PATIENCE
        while True:
            try:
                return await call()
            except QueueUnavailable:
                if self._loop.time() > give_up_at or self._stopped:
                    raise
                await pause()

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
        except LeaseLost:  # some were delivered again: they say nothing the second time
            return

    def _open(self, lease: Lease) -> None:
        try:
            letter: ReportsLetter = unseal_letter(lease.body, "reports", self._key)
        except QueueError as error:  # nobody who may tell us something wrote it
            _log.warning("A message of %s is refused: %s", lease.topic, error)
            self._mail.done.append(lease)
            return
        self._mail.hear(letter, lease)

    async def _look_at_buried(self) -> None:
        """Fail the attempts whose messages were delivered too often."""
        while True:
            await asyncio.sleep(LOOK)
            by_id = {self._id(owner): owner for owner in self._mail.away}
            for topic in {self._topic(away.step) for away in self._mail.away.values()}:
                buried = await self._patiently(lambda: self._queue.buried(topic, 1000))  # noqa: B023
                mine = [each for each in buried if each.id in by_id]
                for each in mine:
                    self._fail_buried(by_id[each.id], each.deliveries)
                ids = [each.id for each in mine]
                if ids:
                    await self._patiently(lambda: self._queue.remove(topic, ids))  # noqa: B023

    def _fail_buried(self, owner: Owner, deliveries: int) -> None:
        reason = (
            f"The task was given to {deliveries} workers, and each of them ended before it did: "
            "see what they say, and whether the task needs more memory than they have."
        )
        self._mail.fail(owner, reason, retryable=False)


def pools_of(definition: Any) -> Mapping[str, str]:
    """The pool of each step: the one that its @queue names, else `gpu` for a step that asks for
    GPUs by @resources, else `default`."""
    return {name: _pool(step) for name, step in definition.steps.items()}


def _pool(step: Any) -> str:
    marked = step.decorator("queue")
    if marked is not None and marked.pool is not None:
        return str(marked.pool)
    resources = step.decorator("resources")
    return GPU_POOL if resources is not None and resources.gpu else letters.DEFAULT_POOL
