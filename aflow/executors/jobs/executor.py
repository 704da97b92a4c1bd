"""Attempts that run as jobs of a job system: submitted together, with reports through the store.

Attempts of one step that are launched together become one array. A job runs its attempt through
the same runner as every other attempt, commits what it leaves in the store (remote.py), and reports
its progress by objects there (mailbox.py), which are listed every second or so. What a job cannot
report itself, because its machine or container has failed, the job system knows, which is polled
less often (polling.py). Reports of the job, and what it has committed, take precedence over that.

A job's name is unique and recorded before it is submitted. So a job whose submission was not
answered is found by its name, by this executor or by another coordinator, and not submitted twice.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from aflow._core.backoff import Backoff, Tries
from aflow._core.threads import in_thread
from aflow._core.waiting import Waiting
from aflow._core.wording import plural
from aflow.errors import (
    JobRefused,
    JobSystemBusy,
    JobSystemError,
    MetadataError,
    ObjectNotFound,
    QueueError,
    StoreUnavailable,
)
from aflow.executors.base import NO_USAGE, Orphan, Reports
from aflow.executors.jobs.base import JobState, JobStatus, Submission
from aflow.executors.jobs.board import MOST_WAITING, JobBoard, JobsOfRun, WaitingJob, prune
from aflow.executors.jobs.place import AGAIN
from aflow.executors.jobs.polling import Poller
from aflow.executors.mailbox import WAS_CANCELLED, Mailbox, RemoteExecutor
from aflow.executors.protocol import ArraySpec
from aflow.scheduler.states import AttemptState
from aflow.task.remote import committed
from aflow.task.spec import AttemptKey, AttemptReport, AttemptSpec, RunContext

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.executors.jobs.base import JobSystem, StepJob
    from aflow.executors.protocol import Job, ReportsMessage
    from aflow.metadata.base import MetadataStore
    from aflow.storage.base import ObjectStore

PUBLISHED = 5.0  # seconds between two looks at what is to be recorded of jobs
ASKED = 4  # jobs that the system is asked about each time
LISTING = Backoff(0.3, 3.0, growth=1.1)  # between listings of the mailbox that find nothing
THREADS = 16  # calls at once
AWAY = Backoff(1.0, 30.0)  # where store or system do not answer
LAG = 75.0  # seconds until a report is seen: NFS caches a folder for up to a minute
PATIENCE = 600.0  # seconds for which they may not answer
_NAMED = "name="  # what a handle begins with as long as the job's id is not known

T = TypeVar("T")


class _Array:
    """A job, an array of jobs, or a job of several nodes: the attempts that it was submitted for by
    index (only those that we know of), and how many of them are away. `mark` stands before an
    index in the ids of its parts: ":" of an array, "#" of nodes, nothing for a single job.

    `status` is the last one that the system has given; while some of its attempts wait, `since`
    says since when, and `answer` what the system has answered to the question why."""

    __slots__ = ("answer", "attempt_keys", "away", "id", "mark", "since", "status", "step")

    def __init__(self, id: str, step: str, attempt_keys: dict[int, AttemptKey], mark: str) -> None:
        self.id = id
        self.step = step
        self.attempt_keys = attempt_keys
        self.mark = mark
        self.away = 0
        self.status = JobStatus(id, JobState.UNKNOWN)
        self.since: float | None = None
        self.answer: str | None = None

    @property
    def reason(self) -> str:
        """Why it waits, as far as that is known."""
        return self.status.reason or self.answer or ""


class _Submission(NamedTuple):
    """Attempts that are submitted together."""

    job: StepJob
    specs: list[AttemptSpec]

    @property
    def mark(self) -> str:
        """See _Array."""
        if self.job.is_gang:
            return "#"
        return ":" if len(self.specs) > 1 else ""


class JobExecutor(RemoteExecutor[str]):
    """Runs the attempts of one run as jobs of a job system.

    `job_of` gives how an attempt of a step is submitted (the step's name, the number of the
    attempt): attempts for which it gives the same object are submitted together. `job` describes
    the run to the jobs.
    """

    def __init__(
        self,
        system: JobSystem[Any],
        job_of: Callable[[str, int], StepJob],
        store: ObjectStore,
        metadata: MetadataStore,
        job: Callable[[RunContext], Job],
        clock: Clock,
        *,
        grace: float = 5.0,
    ) -> None:
        super().__init__(store, metadata, job, clock, grace)
        self._system = system
        self._job_of = job_of
        self._orphans: list[Orphan] = []
        self._arrays: dict[str, _Array] = {}  # those of which some are away
        self._queues: dict[str, str] = {}  # by step
        self._places: dict[AttemptKey, tuple[_Array, int]] = {}
        self._cancels: dict[AttemptKey, tuple[AttemptState, str]] = {}  # to be sent
        self._left: dict[AttemptKey, tuple[_Array, int]] = {}  # of these, those that were given up
        # Those that the system is to end.
        self._stopping: dict[AttemptKey, tuple[AttemptState, str]] = {}
        self._late: dict[AttemptKey, float] = {}  # until when a report may be on its way
        self._over: dict[AttemptKey, JobStatus] = {}  # jobs that have ended, as the system says
        # Arrays of which more have ended than have reported, and whether that is all of them.
        self._suspects: dict[str, bool] = {}
        self._read: set[str] = set()  # names of messages
        self._searches: dict[str, str] = {}  # ids of jobs by their names
        self._board = JobBoard(metadata)
        self._turn = 0
        self._waiting: Waiting | None = None
        self._trouble: dict[str, Waiting] = {}  # what does not answer
        self._threads: ThreadPoolExecutor | None = None

    def recover(self, orphans: Sequence[Orphan]) -> Sequence[Orphan]:
        """Take all of them: jobs go on without a coordinator, and are found by their handles."""
        for orphan in orphans:
            handle = orphan.handle if not orphan.handle.startswith(_NAMED) else ""
            self._mail.take_over(orphan, handle or None)
        self._orphans = [*orphans]
        return ()

    def forget(self, task: int, attempt: int) -> None:
        """The message that reports this end can be deleted, if it reports no other."""
        if self._mail.forget((task, attempt)):
            self._tidy.set()

    async def start(self, context: RunContext, reports: Reports) -> None:
        """Get ready to launch attempts of this run; raises StorageError, JobSystemError and
        InvalidSetting."""
        await self._prepare(context, reports, self._believes)
        self._reports = reports
        self._box = Mailbox(self._store, context.flow, context.run)
        self._threads = ThreadPoolExecutor(THREADS, "aflow-jobs")
        self._news, self._look_now, self._tidy = asyncio.Event(), asyncio.Event(), asyncio.Event()
        await self._blocking(lambda: self._system.scope)  # which may take a while
        self._poller = Poller.of(self._system)
        self._news.set()
        self._begin(self._send, self._listen, self._clear, self._watch)

    async def _blocking(self, call: Callable[[], T]) -> T:
        assert self._threads is not None, "it was started"
        return await self._loop.run_in_executor(self._threads, call)

    # ------------------------------------------------------------ attempts

    def launch(self, spec: AttemptSpec) -> None:
        """Submit a job for this attempt, together with others that are launched now."""
        if self._send_off(spec):
            self._outgoing.append(spec)
            self._news.set()

    def _stop_one(self, attempt_key: AttemptKey, state: AttemptState, reason: str) -> None:
        if attempt_key in self._mail.away and attempt_key not in self._stopping:
            self._cancels[attempt_key] = self._stopping[attempt_key] = state, reason
            self._mail.note_cancel(attempt_key)
            # The system may take its time, or be out of reach.
            self._loop.call_later(2 * self._grace, self._mail.give_up, attempt_key, state, reason)
            self._news.set()

    async def conclude(self) -> None:
        """Jobs were ended with their attempts."""

    async def leave(self) -> None:
        """Send what is still to be sent, and release everything: jobs go on."""
        was_stopped, self._stopped = self._stopped, True
        if not was_stopped and self._tasks:
            for event in (self._news, self._tidy):
                event.set()
            await asyncio.wait([self._tasks[0], self._tasks[2]])
        await self._end_tasks()
        if self._threads is not None and not self._mail.away:
            await self._publish_now()
        for job in self._arrays:
            self._poller.unwatch(job)
        self._arrays.clear()
        threads, self._threads = self._threads, None
        if threads is not None:
            await in_thread(threads.shutdown)
            self._system.close()

    # ------------------------------------------------------------ to the system

    async def _send(self) -> None:
        await self._find_orphans()
        while True:
            await self._news.wait()
            self._news.clear()
            specs, self._outgoing = self._outgoing, []
            for group in self._groups(specs):
                await self._submit(group)
            cancels, self._cancels = self._cancels, {}
            await self._terminate(cancels)
            if self._stopped and not self._news.is_set():
                return

    def _groups(self, specs: Sequence[AttemptSpec]) -> list[_Submission]:
        """Those that were not cancelled meanwhile, by step; of gangs each by itself."""
        together: dict[Hashable, _Submission] = {}
        for spec in specs:
            attempt_key = (spec.task, spec.attempt)
            if attempt_key in self._cancels:
                self._mail.give_up(attempt_key, *self._cancels.pop(attempt_key))
            elif self._mail.awaits_start(attempt_key):
                job = self._job_of(spec.step, spec.attempt)
                # `job_of` gives the same object for the same submission, whichever attempt asks.
                key = (spec.step, id(job), spec.split if job.is_gang else None)
                together.setdefault(key, _Submission(job, [])).specs.append(spec)
        most = self._system.limits.array
        return [
            _Submission(job, some[at : at + most])
            for job, some in together.values()
            for at in range(0, len(some), most)
        ]

    async def _submit(self, group: _Submission) -> None:
        attempt_keys = [(spec.task, spec.attempt) for spec in group.specs]
        try:
            array_spec = await self._patiently(partial(self._written, group))
            name = self._system.name_of(self._context, group.job.step, array_spec.key[:16])
            self._hand(attempt_keys, f"{_NAMED}{name}", group.mark)
            job = await self._submitted(group, name, array_spec)
        except JobRefused as error:
            for attempt_key in attempt_keys:
                reason = f"{self._system.title} does not take the job of the task: {error}"
                self._mail.fail(attempt_key, reason, retryable=False)
            return
        except Exception as error:  # noqa: BLE001 -- the run cannot go on without its attempts
            for attempt_key in attempt_keys:
                reason = f"The task could not be submitted to {self._system.title}: {error}"
                self._mail.give_up(attempt_key, AttemptState.LOST, reason)
            return
        array = _Array(job, group.job.step, dict(enumerate(attempt_keys)), group.mark)
        self._hand(attempt_keys, job, group.mark)
        self._know(array)
        for index, attempt_key in enumerate(attempt_keys):
            if attempt_key not in self._mail.away:
                # It was given up while it was submitted: it ends with others.
                self._cancels.setdefault(attempt_key, (AttemptState.CANCELLED, WAS_CANCELLED))
                self._left[attempt_key] = array, index

    def _written(self, group: _Submission) -> ArraySpec:
        """The list of these attempts, in the store. Blocks."""
        if group.job.is_gang:
            self._rendezvous.expect(group.specs)
        apart = len(group.specs) > 1  # a single attempt carries its manifests and reads no payload
        specs = [self._packer.complete(each, apart=apart) for each in group.specs]
        return ArraySpec.write(self._payloads, specs)

    def _hand(self, attempt_keys: Sequence[AttemptKey], handle: str, mark: str) -> None:
        for index, attempt_key in enumerate(attempt_keys):
            if attempt_key in self._mail.away:
                self._reports.handed(*attempt_key, f"{handle}{mark}{index}" if mark else handle)

    async def _submitted(self, group: _Submission, name: str, array_spec: ArraySpec) -> str:
        """The id of the job of this name, which is submitted if it is not there."""
        context = self._context
        environment = {
            "AFLOW_JOB_STORE": context.storage_url,
            "AFLOW_JOB_RUN": f"{context.flow}/{context.run}",
            "AFLOW_JOB_KEY": self._job_key,
            "AFLOW_JOB_ARRAY": str(array_spec),
            **({"AFLOW_JOB_GANG": "1"} if group.job.is_gang else {}),
        }
        given = Submission(context, group.job, name, len(group.specs), environment)
        tried = False

        def submit() -> str:
            nonlocal tried
            # Where the answer to an earlier try was lost, the job may be there.
            if tried and (there := self._system.find(name, group.job)) is not None:
                return there
            tried = True
            return self._system.submit(given)

        return await self._patiently(submit)

    def _know(self, array: _Array) -> None:
        """These attempts have this job."""
        for index, attempt_key in array.attempt_keys.items():
            if attempt_key in self._mail.away:
                self._places[attempt_key] = array, index
                array.away += 1
        if array.away:
            self._arrays[array.id] = array
            _, attempt = next(iter(array.attempt_keys.values()))
            self._queues[array.step] = self._job_of(array.step, attempt).queue
            self._poller.watch(array.id, self._note_status)
            self._look_now.set()

    def _believes(self, report: AttemptReport) -> bool:
        """Whether an attempt has ended as its job says. One that was stopped, and not by us, ends
        as the system says: its machine failed, or somebody has ended it."""
        attempt_key = (report.task, report.attempt)
        if report.state != AttemptState.CANCELLED.value or attempt_key in self._stopping:
            return True
        self._poller.hurry()
        return False

    def _note_over(self, attempt_key: AttemptKey) -> None:
        """An attempt has ended: what is not away any more is not watched."""
        self._stopping.pop(attempt_key, None)
        self._late.pop(attempt_key, None)
        array, index = self._places.pop(attempt_key, (None, 0))
        if array is not None:
            if attempt_key in self._cancels:
                self._left[attempt_key] = array, index
            array.away -= 1
            if not array.away:
                del self._arrays[array.id]
                self._poller.unwatch(array.id)

    async def _terminate(self, cancels: Mapping[AttemptKey, tuple[AttemptState, str]]) -> None:
        left, self._left = self._left, {}
        by_array: defaultdict[_Array, list[int]] = defaultdict(list)
        for attempt_key in cancels:
            place = self._places.get(attempt_key) or left.get(attempt_key)
            if place is not None:
                by_array[place[0]].append(place[1])
        reason = next((reason for _, reason in cancels.values()), "")
        ends = []
        for array, indexes in by_array.items():
            others = {
                index
                for index, attempt_key in array.attempt_keys.items()
                if attempt_key in self._mail.away and attempt_key not in cancels
            }
            whole = not others or array.mark != ":"
            ids = {array.id} if whole else {self._system.member(array.id, at) for at in indexes}
            ends += self._terminations(sorted(ids), reason)
        results = await asyncio.gather(
            *(self._patiently(each, 2 * self._grace) for each in ends), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, JobSystemError):
                raise result  # else it is given up in its time
        if ends:
            self._poller.hurry()

    def _terminations(self, ids: Sequence[str], reason: str) -> list[Callable[[], None]]:
        most = self._system.limits.terminated
        return [
            partial(self._system.terminate, ids[at : at + most], reason)
            for at in range(0, len(ids), most)
        ]

    async def _patiently(self, call: Callable[[], T], patience: float = PATIENCE) -> T:
        """What the call gives, also where store or system do not answer for a while, which is
        logged."""
        tries = Tries(AWAY, patience=patience)
        waited_for: str | None = None
        while True:
            try:
                result = await self._blocking(call)
                break
            except (JobSystemBusy, StoreUnavailable) as error:
                delay = tries.failed()
                if delay is None or (self._stopped and patience == PATIENCE):
                    raise
                is_store = isinstance(error, StoreUnavailable)
                waited_for = "the datastore" if is_store else self._system.title
                # Many calls may wait for the same: it is logged once for all of them.
                self._trouble.setdefault(waited_for, Waiting(waited_for)).still(str(error))
            await asyncio.sleep(delay)
        if waited_for is not None and (waiting := self._trouble.pop(waited_for, None)) is not None:
            waiting.over()
        return result

    # ------------------------------------------------------------ what another has left

    async def _find_orphans(self) -> None:
        """Find the jobs of attempts that another coordinator has submitted; what has none is
        submitted."""
        found: dict[str, _Array] = {}
        unknown: list[AttemptSpec] = []
        for spec, handle, started_at in self._orphans:
            handle = handle.partition(AGAIN)[0]
            mark = "#" if "#" in handle else ":" if ":" in handle else ""
            job, _, index = handle.partition(mark or ":")
            if job.startswith(_NAMED):
                name = job.removeprefix(_NAMED)
                job = await self._searched(name, self._job_of(spec.step, spec.attempt))
            if job:
                array = found.setdefault(job, _Array(job, spec.step, {}, mark))
                array.attempt_keys[int(index or 0)] = (spec.task, spec.attempt)
            elif started_at is None:
                unknown.append(spec._replace(again=True))
        self._orphans = []
        for array in found.values():
            self._know(array)
        self._outgoing += unknown
        self._news.set()

    async def _searched(self, name: str, job: StepJob) -> str:
        """The id of the job of this name; empty where there is none."""
        if name not in self._searches:
            found = await self._patiently(lambda: self._system.find(name, job))
            self._searches[name] = found or ""
        return self._searches[name]

    # ------------------------------------------------------------ from jobs

    async def _listen(self) -> None:
        wait = LISTING.first
        while True:
            try:
                async with asyncio.timeout(wait if self._mail.away else None):
                    await self._look_now.wait()
                self._look_now.clear()
                wait = LISTING.first
            except TimeoutError:  # it is time to look anyway
                pass
            over, self._over = self._over, {}
            suspects, self._suspects = self._suspects, {}
            found = await self._look()
            await asyncio.gather(*map(self._conclude, self._by_gang(over)))
            for job in suspects.keys() & self._arrays.keys():
                try:
                    await self._look_at_members(self._arrays[job], are_over=suspects[job])
                except JobSystemError:  # the next round of the poller finds it as suspect as before
                    continue
            wait = LISTING.first if found else LISTING.after(wait)

    async def _look(self) -> bool:
        """Read all messages that are there; whether there were any."""
        names = await self._patiently(lambda: [*self._box.names()])
        new = [name for name in names if name not in self._read]
        opened = await asyncio.gather(
            *(self._patiently(partial(self._opened, name)) for name in new)
        )
        for name, message in zip(new, opened, strict=True):
            self._read.add(name)
            if message is None:
                self._mail.done.append(name)
            else:
                self._mail.receive(message, name)
        if new:
            self._tidy.set()
        return bool(new)

    def _opened(self, name: str) -> ReportsMessage | None:
        try:
            return self._box.open(name)
        except QueueError:  # not written by a job of this run
            return None
        except ObjectNotFound:  # another coordinator has taken the run up, and is done with it
            return None

    async def _clear(self) -> None:
        """Delete the messages whose ends are committed."""
        while True:
            await self._tidy.wait()
            self._tidy.clear()
            done, self._mail.done = self._mail.done, []
            await asyncio.gather(
                *(self._patiently(partial(self._box.remove, each)) for each in done)
            )
            self._read.difference_update(done)
            if self._stopped and not self._tidy.is_set():
                return

    # ------------------------------------------------------------ from the system

    def _note_status(self, status: JobStatus) -> None:
        """What the system says of a job, or of an array."""
        array = self._arrays.get(status.id)
        if array is None:
            return
        array.status = status
        if status.waiting:
            array.since = array.since or self._clock.now()
            self._waiting = self._waiting or Waiting(f"a machine of {self._system.title}")
        else:
            array.since = array.answer = None
        if array.mark != ":":
            if status.is_over:
                self._over.update(dict.fromkeys(array.attempt_keys.values(), status))
                self._look_now.set()
        elif status.is_over or status.ended > status.size - array.away:
            self._suspects[array.id] = status.is_over
            self._look_now.set()

    async def _watch(self) -> None:
        """Find out, now and then, why jobs wait: this is logged, and recorded for people."""
        pruned = False
        while True:
            await asyncio.sleep(PUBLISHED)
            try:
                await self._ask_why()
            except JobSystemError as error:
                self._note_waiting(str(error))
                continue
            self._note_waiting()
            try:
                if not pruned:
                    await self._blocking(partial(prune, self._metadata))
                    pruned = True
            except MetadataError:  # the run's own commits report that
                continue
            await self._publish_now()

    async def _publish_now(self) -> None:
        steps = {array.step for array in self._arrays.values() if array.away}
        context = self._context
        waiting = tuple(
            WaitingJob(each.id, each.step, each.status.waiting, each.since or 0.0, each.reason)
            for each in self._not_begun()[:MOST_WAITING]
        )
        queues = {step: queue for step, queue in self._queues.items() if step in steps}
        now = JobsOfRun(context.flow, context.run, self._system.title, queues, waiting)
        try:
            await self._blocking(partial(self._board.publish, now))
        except MetadataError:  # the run's own commits report that
            pass

    async def _ask_why(self) -> None:
        """Ask the system why jobs wait that do not say so themselves: few at a time, each once in a
        while."""
        silent = [each for each in self._not_begun() if not each.status.reason][:MOST_WAITING]
        unasked = [each for each in silent if each.answer is None][:ASKED]
        if silent and not unasked:  # one of those whose reason may have changed, in turn
            self._turn += 1
            unasked = [silent[self._turn % len(silent)]]
        for array in unasked:
            array.answer = await self._blocking(partial(self._system.why_waiting, array.status))

    def _not_begun(self) -> list[_Array]:
        """Our jobs of which some attempts wait for a machine."""
        return [each for each in self._arrays.values() if each.status.waiting]

    def _note_waiting(self, trouble: str = "") -> None:
        """Jobs that wait for a machine may wait for ever: this is logged, with the reason."""
        not_begun = self._not_begun()
        if not not_begun or self._waiting is None:
            self._waiting = None
            return
        why = trouble or not_begun[0].reason
        total = sum(each.status.waiting for each in not_begun)
        count = f"{plural(total, 'job has', 'jobs have')} not begun"
        self._waiting.still(f"{count}: {why}" if why else count, self._system.advice)

    async def _look_at_members(self, array: _Array, *, are_over: bool) -> None:
        """Conclude those attempts of an array that have ended without a report."""
        jobs = {
            self._system.member(array.id, index): attempt_key
            for index, attempt_key in array.attempt_keys.items()
            if attempt_key in self._mail.away
        }
        find = partial(self._system.suspects, array.id, [*jobs], is_over=are_over)
        ids = await self._patiently(find)
        most = self._system.limits.described
        for at in range(0, len(ids), most):
            found = await self._patiently(partial(self._system.describe, ids[at : at + most]))
            self._over.update({jobs[id]: each for id, each in found.items() if each.is_over})
        if self._over:
            self._look_now.set()  # they may have reported meanwhile

    def _conclude_later(self, attempt_key: AttemptKey, status: JobStatus) -> None:
        if attempt_key in self._mail.away:
            self._over[attempt_key] = status
            self._look_now.set()

    def _by_gang(self, over: Mapping[AttemptKey, JobStatus]) -> list[dict[AttemptKey, JobStatus]]:
        """Jobs that have ended: those of a gang together, every other one alone."""
        together: dict[Any, dict[AttemptKey, JobStatus]] = {}
        for attempt_key, status in over.items():
            array, _ = self._places.get(attempt_key, (None, 0))
            key = array.id if array is not None and array.mark == "#" else attempt_key
            together.setdefault(key, {})[attempt_key] = status
        return [*together.values()]

    async def _conclude(self, over: Mapping[AttemptKey, JobStatus]) -> None:
        """These jobs have ended, and their reports are read: what is left is what the system says.
        All of a gang end at the same time, so that what is tried again of it is launched together,
        and nobody takes an address of before for that of the new member 0."""
        ends = await asyncio.gather(*(self._end_of(*each) for each in over.items()))
        for attempt_key, end in zip(over, ends, strict=True):
            if end is not None and attempt_key in self._mail.away:
                end()

    async def _end_of(
        self, attempt_key: AttemptKey, status: JobStatus
    ) -> Callable[[], None] | None:
        """What reports how the attempt of a job that has ended did end; None where it has ended for
        us, or may still report itself."""
        if attempt_key in self._stopping:
            return partial(self._mail.give_up, attempt_key, *self._stopping[attempt_key])
        if attempt_key not in self._mail.away:
            return None
        report = await self._patiently(partial(committed, self._store, self._context, *attempt_key))
        if report is not None:
            return partial(self._mail.end, report, NO_USAGE)
        now = self._loop.time()
        if status.succeeded and now < self._late.setdefault(attempt_key, now + LAG):
            self._loop.call_later(LISTING.longest, self._conclude_later, attempt_key, status)
            return None
        outcome = await self._blocking(partial(self._system.outcome_of, status))
        if outcome.state is AttemptState.FAILED:
            return partial(
                self._mail.fail, attempt_key, outcome.reason, retryable=outcome.retryable
            )
        return partial(self._mail.give_up, attempt_key, outcome.state, outcome.reason)
