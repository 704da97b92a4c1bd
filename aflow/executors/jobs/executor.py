"""Run attempts as jobs of a job system: submitted in groups, with reports through the datastore.

Attempts of one step that are launched together form one array. A job runs its attempt with the same
runner as all other attempts, commits the result to the datastore (remote.py), and writes its
reports as objects there (mailbox.py), which are listed about every second. If a job cannot report
its end, because its machine or container failed, the job system reports it; that is polled less
often (polling.py). The reports and commits of a job take precedence over its status in the job
system.

The name of a job is unique, and recorded before the job is submitted. If the response to a
submission is lost, this executor or another coordinator finds the job by its name and does not
submit it twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from aflow._core.backoff import Backoff, Tries
from aflow._core.threads import in_thread
from aflow._core.waiting import Waiting
from aflow._core.wording import plural
from aflow.errors import (
    InvalidInput,
    JobRefused,
    JobSystemBusy,
    JobSystemError,
    MetadataError,
    ObjectNotFound,
    QueueError,
    StoreUnavailable,
)
from aflow.executors.base import NO_USAGE, Orphan, Reports
from aflow.executors.jobs.base import JobState, JobStatus, Submission, lost
from aflow.executors.jobs.board import MOST_WAITING, JobBoard, JobsOfRun, WaitingJob, prune
from aflow.executors.jobs.place import AGAIN
from aflow.executors.jobs.polling import Poller
from aflow.executors.mailbox import Mailbox, RemoteExecutor
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

PUBLISHED = 5.0  # seconds between updates of the published status of jobs
ASKED = 4  # jobs per update whose reason for waiting is requested
LISTING = Backoff(0.3, 3.0, growth=1.1)  # between listings of the mailbox that find nothing
THREADS = 16  # concurrent calls
AWAY = Backoff(1.0, 30.0)  # while the datastore or the system is unavailable
LAG = 75.0  # seconds until a report is visible: NFS caches a directory for up to a minute
PATIENCE = 600.0  # seconds for which the datastore or the system may be unavailable
_UNKNOWN = JobStatus("", JobState.UNKNOWN)
_NAMED = "name="  # the prefix of a handle while the job's id is unknown

T = TypeVar("T")
_log = logging.getLogger("aflow")


@dataclass(slots=True, eq=False)
class _Array:
    """A single job, an array of jobs, or a job of several nodes.

    `attempt_keys` are its attempts by index (only those that we know of); `away` is the number of
    those that have not ended. `mark` precedes the index in the ids of its parts: ":" for an array,
    "#" for nodes, empty for a single job.

    `status` is the last one from the system. While some of its attempts wait, `since` is when the
    wait started, and `answer` the system's reason from `why_waiting`."""

    id: str
    step: str
    attempt_keys: dict[int, AttemptKey]
    mark: str
    away: int = 0
    status: JobStatus = _UNKNOWN
    since: float | None = None
    answer: str | None = None

    @property
    def reason(self) -> str:
        """Why it waits, if known."""
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

    `job_of` returns the job of an attempt, by the name of its step and its number: attempts with
    the same object are submitted together. `job` returns the description of the run for the jobs.
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
        self._arrays: dict[str, _Array] = {}  # those with attempts that have not ended
        # Of attempts that have not ended, or whose cancellation has not been sent.
        self._places: dict[AttemptKey, tuple[_Array, int]] = {}
        self._cancels: dict[AttemptKey, tuple[AttemptState, str]] = {}  # cancellations to send
        # Attempts that the system was, or will be, asked to end.
        self._stopping: dict[AttemptKey, tuple[AttemptState, str]] = {}
        self._late: dict[AttemptKey, float] = {}  # until when a report may be on its way
        self._over: dict[AttemptKey, JobStatus] = {}  # jobs that have ended according to the system
        # Arrays of which more members have ended than have reported; the value is whether all have
        # ended.
        self._suspects: dict[str, bool] = {}
        self._read: set[str] = set()  # names of messages
        self._board = JobBoard(metadata)
        self._poller: Poller
        self._turn = 0
        self._waiting: Waiting | None = None
        self._trouble: dict[str, Waiting] = {}  # what is unavailable
        self._threads: ThreadPoolExecutor | None = None

    def recover(self, orphans: Sequence[Orphan]) -> Sequence[Orphan]:
        """Take over all attempts. Their jobs still run, and are found by their handles."""
        for orphan in orphans:
            handle = orphan.handle if not orphan.handle.startswith(_NAMED) else ""
            self._mail.take_over(orphan, handle or None)
        self._orphans = [*orphans]
        return ()

    def forget(self, task: int, attempt: int) -> None:
        """Delete the message that reported this end, if all of its ends are committed."""
        if self._mail.forget((task, attempt)):
            self._tidy.set()

    async def start(self, context: RunContext, reports: Reports) -> None:
        """Prepare to launch attempts of this run. Raises StorageError, JobSystemError and
        InvalidSetting."""
        await self._prepare(context, reports, self._believes)
        self._reports = reports
        self._box = Mailbox(self._store, context.flow, context.run)
        self._threads = ThreadPoolExecutor(THREADS, "aflow-jobs")
        self._news, self._look_now, self._tidy = asyncio.Event(), asyncio.Event(), asyncio.Event()
        await self._patiently(lambda: self._system.scope)  # may block
        self._poller = Poller.of(self._system)
        if self._poller.system is not self._system:
            self._system.close()
            self._system = self._poller.system
        self._news.set()
        self._begin(self._send, self._listen, self._clear, self._watch)

    async def _blocking(self, call: Callable[[], T]) -> T:
        assert self._threads is not None, "it was started"
        return await self._loop.run_in_executor(self._threads, call)

    # ------------------------------------------------------------ attempts

    def launch(self, spec: AttemptSpec) -> None:
        """Submit a job for this attempt, together with other attempts launched now."""
        if self._send_off(spec):
            self._outgoing.append(spec)
            self._news.set()

    def _stop_one(self, attempt_key: AttemptKey, state: AttemptState, reason: str) -> None:
        if attempt_key in self._mail.away and attempt_key not in self._stopping:
            self._cancels[attempt_key] = self._stopping[attempt_key] = state, reason
            self._mail.note_cancel(attempt_key)
            # The system may be slow or unreachable.
            self._loop.call_later(2 * self._grace, self._mail.give_up, attempt_key, state, reason)
            self._news.set()

    async def conclude(self) -> None:
        """Do nothing: jobs have ended with their attempts."""

    async def leave(self) -> None:
        """Send pending requests and release all resources; jobs continue."""
        was_stopped, self._stopped = self._stopped, True
        if not was_stopped and self._tasks:
            for event in (self._news, self._tidy):
                event.set()
            await asyncio.wait([self._tasks[0], self._tasks[2]])
        await self._end_tasks()
        if self._threads is not None and not self._arrays:
            await self._publish_now()
        for job in self._arrays:
            self._poller.unwatch(job)
        self._arrays.clear()
        threads, self._threads = self._threads, None
        if threads is not None:
            await in_thread(threads.shutdown)
            # Without tasks, the start has failed.
            (self._poller.leave if self._tasks else self._system.close)()

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
        """Group attempts that are still wanted by step; each gang is a group."""
        together: dict[Hashable, _Submission] = {}
        for spec in specs:
            attempt_key = (spec.task, spec.attempt)
            if attempt_key in self._stopping:
                self._cancels.pop(attempt_key, None)
                self._mail.give_up(attempt_key, *self._stopping[attempt_key])
            elif self._mail.awaits_start(attempt_key):
                try:
                    job = self._job_of(spec.step, spec.attempt)
                except InvalidInput as error:  # a function of @resources, for this attempt
                    self._mail.fail(attempt_key, str(error), retryable=False)
                    continue
                # `job_of` returns the same object for attempts that can be submitted together.
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
            recorded = self._hand(attempt_keys, f"{_NAMED}{name}", group.mark)
            if recorded is not None:  # else another coordinator would submit the job again
                await asyncio.shield(recorded)  # others may wait for the same commit
            job = await self._submitted(group, name, array_spec)
        except JobRefused as error:
            for attempt_key in attempt_keys:
                reason = f"{self._system.title} does not take the job of the task: {error}"
                self._mail.fail(attempt_key, reason, retryable=False)
            return
        except Exception as error:  # noqa: BLE001 -- the run cannot continue without its attempts
            for attempt_key in attempt_keys:
                reason = f"The task could not be submitted to {self._system.title}: {error}"
                self._mail.give_up(attempt_key, AttemptState.LOST, reason)
            return
        self._hand(attempt_keys, job, group.mark)
        self._know(_Array(job, group.job.step, dict(enumerate(attempt_keys)), group.mark))

    def _written(self, group: _Submission) -> ArraySpec:
        """Write the list of these attempts to the datastore. Blocks."""
        if group.job.is_gang:
            self._rendezvous.expect(group.specs)
        apart = len(group.specs) > 1  # a single attempt contains its manifests and needs no payload
        specs = [self._packer.complete(each, apart=apart) for each in group.specs]
        return ArraySpec.write(self._payloads, specs)

    def _hand(
        self, attempt_keys: Sequence[AttemptKey], handle: str, mark: str
    ) -> Awaitable[None] | None:
        """Record where these attempts are; the awaitable ends when all are written."""
        recorded = None
        for index, attempt_key in enumerate(attempt_keys):
            if attempt_key in self._mail.away:
                place = f"{handle}{mark}{index}" if mark else handle
                recorded = self._reports.handed(*attempt_key, place)
        return recorded

    async def _submitted(self, group: _Submission, name: str, array_spec: ArraySpec) -> str:
        """Return the id of the job with this name, which is submitted unless it exists."""
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
            # If the response to an earlier try was lost, the job may exist.
            if tried and (there := self._system.find(name, group.job)) is not None:
                return there
            tried = True
            return self._system.submit(given)

        return await self._patiently(submit)

    def _know(self, array: _Array) -> None:
        """Track the job of these attempts."""
        for index, attempt_key in array.attempt_keys.items():
            is_away = attempt_key in self._mail.away
            # A cancelled attempt was given up before its job was known: terminate the job.
            if is_away or attempt_key in self._cancels:
                self._places[attempt_key] = array, index
            array.away += is_away
        if array.away:
            self._arrays[array.id] = array
            self._poller.watch(array.id, self._note_status)
            self._look_now.set()

    def _believes(self, report: AttemptReport) -> bool:
        """Return whether to accept the end that a job reports.

        An attempt that was cancelled, but not by us, ends as the system reports: its machine
        failed, or a user cancelled the job."""
        attempt_key = (report.task, report.attempt)
        if report.state != AttemptState.CANCELLED.value or attempt_key in self._stopping:
            return True
        self._poller.hurry()
        return False

    def _note_over(self, attempt_key: AttemptKey) -> None:
        """Clean up after an attempt that has ended; stop polling its job if it was the last one."""
        self._stopping.pop(attempt_key, None)
        self._late.pop(attempt_key, None)
        array, _ = self._places.get(attempt_key, (None, 0))
        if array is not None:
            if attempt_key not in self._cancels:
                del self._places[attempt_key]
            array.away -= 1
            if not array.away:
                del self._arrays[array.id]
                self._poller.unwatch(array.id)

    async def _terminate(self, cancels: Mapping[AttemptKey, tuple[AttemptState, str]]) -> None:
        by_array: defaultdict[_Array, list[int]] = defaultdict(list)
        for attempt_key in cancels:
            array, index = self._places.get(attempt_key, (None, 0))
            if array is not None:
                by_array[array].append(index)
                if attempt_key not in self._mail.away:
                    del self._places[attempt_key]
        reason = next((reason for _, reason in cancels.values()), "")
        together: list[list[str]] = []
        for array, indexes in by_array.items():
            ids = [array.id]
            if array.mark == ":" and any(
                attempt_key in self._mail.away and attempt_key not in cancels
                for attempt_key in array.attempt_keys.values()
            ):
                ids = [self._system.member(array.id, index) for index in indexes]
            most = self._system.limits.terminated
            together += [ids[at : at + most] for at in range(0, len(ids), most)]
        going_on: dict[str, JobSystemError] = {}

        async def terminate(ids: list[str]) -> None:
            try:
                end = partial(self._system.terminate, ids, reason)
                await self._patiently(end, 2 * self._grace)
            except JobSystemError as error:  # the attempts are given up after their grace period
                going_on.update(dict.fromkeys(ids, error))

        await asyncio.gather(*map(terminate, together))
        if going_on:
            _log.warning(
                "Jobs of %s go on (%s), and have to be ended there: %s",
                self._system.title, ", ".join([*going_on][:5]), next(iter(going_on.values())),
            )  # fmt: skip
        if together:
            self._poller.hurry()

    async def _patiently(self, call: Callable[[], T], patience: float = PATIENCE) -> T:
        """Return the result of the call; retry, and log the wait, while a system is unavailable."""
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
                # Many calls may wait for the same system; log it once.
                self._trouble.setdefault(waited_for, Waiting(waited_for)).still(str(error))
            await asyncio.sleep(delay)
        if waited_for is not None and (waiting := self._trouble.pop(waited_for, None)) is not None:
            waiting.over()
        return result

    # ------------------------------------------------------------ jobs of an earlier coordinator

    async def _find_orphans(self) -> None:
        """Find the jobs of an earlier coordinator; submit attempts without a job."""
        found: dict[str, _Array] = {}
        searched: dict[str, str | None] = {}  # ids of jobs by their names
        unknown: list[AttemptSpec] = []
        for spec, handle, started_at in self._orphans:
            handle = handle.partition(AGAIN)[0]
            mark = "#" if "#" in handle else ":" if ":" in handle else ""
            job, _, index = handle.partition(mark or ":")
            if job.startswith(_NAMED):
                name = job.removeprefix(_NAMED)
                if name not in searched:
                    of = self._job_of(spec.step, 0)
                    searched[name] = await self._patiently(partial(self._system.find, name, of))
                job = searched[name] or ""
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

    # ------------------------------------------------------------ from jobs

    async def _listen(self) -> None:
        wait = LISTING.first
        while True:
            try:
                async with asyncio.timeout(wait if self._mail.away else None):
                    await self._look_now.wait()
                self._look_now.clear()
                wait = LISTING.first
            except TimeoutError:  # poll anyway
                pass
            over, self._over = self._over, {}
            suspects, self._suspects = self._suspects, {}
            found = await self._look()
            await asyncio.gather(*map(self._conclude, self._by_gang(over)))
            for job, are_over in suspects.items():
                if job in self._arrays:  # otherwise its attempts have ended in the meantime
                    with suppress(JobSystemError):  # the next round of the poller retries
                        await self._look_at_members(self._arrays[job], are_over=are_over)
            wait = LISTING.first if found else LISTING.after(wait)

    async def _look(self) -> bool:
        """Read all new messages. Returns whether there were any."""
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
        except (QueueError, ObjectNotFound):
            # Not written by a job of this run; or another coordinator has taken over the run, and
            # has deleted it.
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
        """Apply the status of a job or an array."""
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
        """Periodically find out why jobs wait; log it, and publish it in the metadata store."""
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
            except MetadataError:  # the commits of the run report that
                continue
            await self._publish_now()

    async def _publish_now(self) -> None:
        context = self._context
        waiting = tuple(
            WaitingJob(each.id, each.step, each.status.waiting, each.since or 0.0, each.reason)
            for each in self._not_begun()[:MOST_WAITING]
        )
        # All attempts of a step have the same queue.
        queues = {each.step: self._job_of(each.step, 0).queue for each in self._arrays.values()}
        now = JobsOfRun(context.flow, context.run, self._system.title, queues, waiting)
        with suppress(MetadataError):  # the commits of the run report that
            await self._blocking(partial(self._board.publish, now))

    async def _ask_why(self) -> None:
        """Request the reasons of waiting jobs whose status has none, a few at a time."""
        silent = [each for each in self._not_begun() if not each.status.reason][:MOST_WAITING]
        unasked = [each for each in silent if each.answer is None][:ASKED]
        if silent and not unasked:  # refresh the reason of one job, in turn
            self._turn += 1
            unasked = [silent[self._turn % len(silent)]]
        for array in unasked:
            array.answer = await self._blocking(partial(self._system.why_waiting, array.status))

    def _not_begun(self) -> list[_Array]:
        """Return our jobs with attempts that have not started."""
        return [each for each in self._arrays.values() if each.status.waiting]

    def _note_waiting(self, trouble: str = "") -> None:
        """Log why jobs wait for a machine, since they may wait forever."""
        not_begun = self._not_begun()
        if not not_begun or self._waiting is None:
            self._waiting = None
            return
        why = trouble or not_begun[0].reason
        total = sum(each.status.waiting for each in not_begun)
        count = f"{plural(total, 'job has', 'jobs have')} not begun"
        self._waiting.still(f"{count}: {why}" if why else count, self._system.advice)

    async def _look_at_members(self, array: _Array, *, are_over: bool) -> None:
        """Conclude the attempts of an array that have ended without a report."""
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
            self._look_now.set()  # read reports again that may have arrived in the meantime

    def _conclude_later(self, attempt_key: AttemptKey, status: JobStatus) -> None:
        if attempt_key in self._mail.away:
            self._over[attempt_key] = status
            self._look_now.set()

    def _by_gang(self, over: Mapping[AttemptKey, JobStatus]) -> list[dict[AttemptKey, JobStatus]]:
        """Group jobs that have ended by gang; every other job is a group."""
        together: dict[Any, dict[AttemptKey, JobStatus]] = {}
        for attempt_key, status in over.items():
            array, _ = self._places.get(attempt_key, (None, 0))
            key = array.id if array is not None and array.mark == "#" else attempt_key
            together.setdefault(key, {})[attempt_key] = status
        return [*together.values()]

    async def _conclude(self, over: Mapping[AttemptKey, JobStatus]) -> None:
        """End attempts by the status of their ended jobs; their reports have been read.

        All attempts of a gang end together, so that their retries are launched together, and no
        member uses the address of the previous member 0."""
        try:
            ends = await asyncio.gather(*(self._end_of(*each) for each in over.items()))
        except JobSystemBusy:  # the next round of the poller retries
            return
        for attempt_key, end in zip(over, ends, strict=True):
            if end is not None and attempt_key in self._mail.away:
                end()

    async def _end_of(
        self, attempt_key: AttemptKey, status: JobStatus
    ) -> Callable[[], None] | None:
        """Return a function that reports the end of an attempt whose job has ended.

        None if the attempt has ended already, or its report may still arrive. Raises
        JobSystemBusy."""
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
        try:
            outcome = await self._blocking(partial(self._system.outcome_of, status))
        except JobSystemBusy:
            raise
        except JobSystemError as error:
            outcome = lost(f"{self._system.title} does not tell how its job ended: {error}")
        if outcome.state is AttemptState.FAILED:
            return partial(
                self._mail.fail, attempt_key, outcome.reason, retryable=outcome.retryable
            )
        return partial(self._mail.give_up, attempt_key, outcome.state, outcome.reason)
