"""The program of a job: `python -m aflow _task`, configured by environment variables.

It reads its attempt from the list of its array, runs it in a child process, and reports to the
coordinator through objects in the datastore: the start, the output and the end. Its exit code is 0
only if the attempt succeeded, so that failures are visible in the job system.
"""

from __future__ import annotations

import asyncio
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from aflow._core.backoff import Backoff, Tries
from aflow._core.clock import Clock, SystemClock
from aflow._core.settings import looked_up, variable_of
from aflow._core.system import DESCRIPTORS
from aflow._core.threads import in_thread
from aflow.errors import AflowError, InvalidInput, StoreUnavailable
from aflow.executors import base, protocol
from aflow.executors.base import NO_USAGE
from aflow.executors.jobs.place import SLURM, JobPlace, place_of_this_job
from aflow.executors.mailbox import WAS_CANCELLED, Mailbox, Rendezvous
from aflow.executors.protocol import ArraySpec
from aflow.executors.remote.attempt import (
    AGAIN,
    Container,
    JobAttempt,
    delivered,
    gang_address,
    leave,
    log_line,
    run_job,
    unpacked_in,
)
from aflow.scheduler.states import AttemptState
from aflow.task.remote import Payloads
from aflow.task.spec import NO_RETRY_EXIT_CODE, AttemptReport, AttemptSpec

if TYPE_CHECKING:
    from aflow.executors.base import Usage
    from aflow.executors.local.executor import StartZygote
    from aflow.executors.protocol import Job
    from aflow.storage.base import ObjectStore

GATHER = 1.0  # seconds for which events are collected into one message
LOOK = 0.5  # seconds between checks for other members of a gang
# Seconds for which a finished main node waits for the others, and reports for the datastore.
PATIENCE = 600.0
AWAY = Backoff(1.0, 30.0)  # while the datastore is unavailable
# Bytes of output sent beyond the limit, so that the coordinator notices the truncation.
SLACK = 1 << 17


class JobVariables(NamedTuple):
    """The configuration of a job, from its environment variables.

    These are the datastore, the run, the key of the run's payload, the list of attempts, the place
    of this process, and whether its attempts form a gang."""

    store: str
    flow: str
    run: str
    job: str
    array: ArraySpec
    place: JobPlace
    is_gang: bool

    @classmethod
    def load(cls) -> JobVariables:
        """Return the variables of this process.

        Raises:
            InvalidInput: If this process is not a job of a run.
        """
        needed = partial(variable_of, "a job of a run")
        flow, _, run = needed("JOB_RUN").partition("/")
        return cls(
            needed("JOB_STORE"),
            flow,
            run,
            needed("JOB_KEY"),
            ArraySpec.parse(needed("JOB_ARRAY")),
            place_of_this_job(),
            looked_up("JOB_GANG") is not None,
        )

    @property
    def whole_job(self) -> str:
        """The id of the job, of which this process may be one node."""
        return self.place.worker.partition("#")[0]


def main() -> NoReturn:
    """Run the attempt of this job, and exit."""

    def work(variables: JobVariables, container: Container) -> int:
        return asyncio.run(OneJob(variables, container, SystemClock()).run())

    code = run_job(JobVariables.load, lambda variables: variables.store, work)
    if looked_up("JOB_SYSTEM") == SLURM:
        remove_empty_output()
    leave(code)


class OneJob(JobAttempt):
    """Runs the attempt of a job and reports it to the coordinator."""

    def __init__(self, variables: JobVariables, container: Container, clock: Clock) -> None:
        super().__init__(container, clock)
        self._variables = variables
        self.echoes = variables.place.echoes
        store = self._store
        self._news = News(store, variables.flow, variables.run, variables.place.worker)
        self._rendezvous = Rendezvous(store, variables.flow, variables.run)
        self._left = [0, 0]  # bytes of each stream that may still be sent

    async def run(self) -> int:
        """Run the attempt.

        Returns:
            The exit code of the job.

        Raises:
            StorageError: If the end of the attempt could not be reported.
        """
        self.listen()
        spec = await in_thread(self._attempt)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._news.send_until_closed())
                await self._run(spec)
                self._news.close()
            await self._leave()
        except ExceptionGroup as errors:  # Python before 3.11.4 raises a group in an `except*`
            raise errors.exceptions[0] from None
        report, _ = await self._end
        if report.state == AttemptState.SUCCEEDED.value:
            return 0
        log_line(report.reason)
        return AGAIN if report.retryable else NO_RETRY_EXIT_CODE

    def _attempt(self) -> AttemptSpec:
        variables = self._variables
        spec = variables.array.read(
            Payloads(self._store, variables.flow, variables.run), variables.place.index
        )
        return spec._replace(again=spec.again or variables.place.tries > 1)

    async def _run(self, spec: AttemptSpec) -> None:
        """Run the attempt, or report its end if it cannot run here."""
        try:
            job, start = await in_thread(self._prepared, spec.step)
            self._left = [job.max_log_size + SLACK] * 2
            if self._variables.is_gang:
                spec = spec._replace(address=await self._meet(spec))
            executor = await self.begin(job.context, job.needs, job.request, start)
        except AflowError as error:
            reason = f"The job {self._variables.place.worker} cannot run the task: {error}"
            self._never_ran(spec, AttemptState.FAILED, reason)
            return
        if self._stopping.is_set():
            self._never_ran(spec, AttemptState.CANCELLED, WAS_CANCELLED)
            await executor.stop()
            return
        await self.finish(executor, spec)

    def _prepared(self, step: str) -> tuple[Job, StartZygote]:
        """Return the run, with its code unpacked, and the starter of the step's zygote. Blocks."""
        variables, unpack = self._variables, unpacked_in(self._container.folder)
        job, _ = delivered(self._store, variables.flow, variables.run, variables.job, unpack)
        return job, self.start_of(step, job.environments.get(step), job.python)

    def _never_ran(self, spec: AttemptSpec, state: AttemptState, reason: str) -> None:
        now = self._clock.now()
        self.started(spec.task, spec.attempt, os.getpid(), now)
        self.settle(base.stopped(spec.task, spec.attempt, state, reason, now, now), NO_USAGE)

    async def _meet(self, spec: AttemptSpec) -> str:
        """Return the address of member 0 of the gang; empty if the job is stopped first."""
        loop = asyncio.get_running_loop()
        given = looked_up("JOB_MEETING_TIMEOUT")
        patience = None if given is None else float(given)
        meeting = loop.create_task(gang_address(self._rendezvous, spec))
        stopped = loop.create_task(self._stopping.wait())
        try:
            both = [meeting, stopped]
            await asyncio.wait(both, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if meeting.done():
                return await meeting
        finally:
            meeting.cancel()
            stopped.cancel()
        if self._stopping.is_set():
            return ""
        raise InvalidInput(f"Member 0 of the gang did not begin within {patience:.0f} seconds.")

    async def _leave(self) -> None:
        """Wait for the other nodes in the main node, since its end would end them."""
        variables, place = self._variables, self._variables.place
        if place.nodes == 1 or not place.main_ends_all:
            return
        if place.index != 0:
            await in_thread(self._rendezvous.leave, variables.whole_job, place.index)
            return
        give_up_at = asyncio.get_running_loop().time() + PATIENCE
        while not self._stopping.is_set():
            left = await in_thread(self._rendezvous.left, variables.whole_job)
            if left >= place.nodes - 1 or asyncio.get_running_loop().time() > give_up_at:
                return
            await asyncio.sleep(LOOK)

    # ------------------------------------------------------------ reports of the executor

    def started(self, task: int, attempt: int, pid: int | None, at: float) -> None:
        """Report that the attempt has started."""
        self._news.add((protocol.STARTED, task, attempt, pid, at))

    def logged(self, task: int, attempt: int, stream: int, at: float, chunk: bytes) -> None:
        """Report the output of the attempt."""
        kept = chunk[: self._left[stream]]
        self._left[stream] -= len(kept)
        if kept:
            self._news.add((protocol.LOGGED, task, attempt, stream, at, kept))
        super().logged(task, attempt, stream, at, chunk)

    def grown(self, task: int, attempt: int, count: int, manifest: bytes) -> None:
        """Report the number of foreach items of the attempt so far."""
        self._news.add((protocol.GROWN, task, attempt, count, manifest))

    def settle(self, report: AttemptReport, usage: Usage) -> None:
        """Report the end, once."""
        if self._end.done():
            return
        super().settle(report, usage)
        report, usage = self._end.result()
        self._news.add(
            (protocol.ENDED, report.task, report.attempt, usage.max_rss, usage.cpu, *report[2:])
        )


class News:
    """Collects events for the coordinator into messages."""

    def __init__(self, store: ObjectStore, flow: str, run: str, worker: str) -> None:
        self._box = Mailbox(store, flow, run)
        self._last = protocol.ReportsMessage(
            flow=flow, run=run, worker=worker, host=socket.gethostname(), number=0, events=()
        )
        self._events: list[tuple[Any, ...]] = []
        self._some = asyncio.Event()
        self._closed = asyncio.Event()

    def add(self, event: tuple[Any, ...]) -> None:
        """Queue an event for the next message.

        Args:
            event: The event: its kind, followed by its fields.
        """
        self._events.append(event)
        self._some.set()

    def close(self) -> None:
        """Send queued events immediately; then `send_until_closed` returns."""
        self._closed.set()
        self._some.set()

    async def send_until_closed(self) -> None:
        """Send events until `close` has been called and all are sent. Raises StorageError."""
        while True:
            await self._some.wait()
            self._some.clear()
            try:
                async with asyncio.timeout(GATHER):
                    await self._closed.wait()
            except TimeoutError:  # send what has been collected
                pass
            events, self._events = self._events, []
            for part in protocol.parts(events):
                self._last = self._last._replace(number=self._last.number + 1, events=part)
                put = partial(in_thread, self._box.put, self._last)
                # The first message shows whether this job may write to the datastore at all.
                patience = PATIENCE if self._last.number > 1 else 0.0
                tries = Tries(AWAY, patience=patience, waiting_for="the datastore", log=log_line)
                await tries.retry_async(put, StoreUnavailable)
            if self._closed.is_set() and not self._events:
                return


def remove_empty_output() -> None:
    """Remove the output file of this job if it is empty.

    A wide array would leave one per member."""
    if DESCRIPTORS is None:  # without /proc
        return
    try:
        path = os.readlink(f"{DESCRIPTORS}/2")
        if os.fstat(2).st_size == 0 and os.path.isfile(path):
            os.unlink(path)
    except OSError:  # stderr is not a file, or it was removed already
        return
