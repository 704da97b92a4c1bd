"""What a job does for a run: `python -m aflow.executors.remote.job`, described by its variables.

It finds its attempt in the list of its array, runs it in a process of its own, and reports to the
coordinator by objects in the store: that it has begun, what it prints, how it has ended. Its exit
code is 0 where the attempt has succeeded, so that the job system shows what has failed.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core.clock import Clock, SystemClock
from aflow._core.process import binary, on_signal
from aflow._core.settings import conceal_secrets, looked_up
from aflow._core.system import DESCRIPTORS
from aflow._core.threads import in_thread
from aflow.environments import transport
from aflow.errors import AflowError, CodePackageError, InvalidInput
from aflow.executors import base, protocol
from aflow.executors.base import NO_USAGE
from aflow.executors.jobs.place import SLURM, JobPlace, place_of_this_job
from aflow.executors.local.executor import ProcessExecutor, StartGround
from aflow.executors.local.ground_start import EarlyGround, fork_ground, spawn_ground
from aflow.executors.mailbox import Mailbox, Rendezvous
from aflow.executors.protocol import ArraySpec
from aflow.executors.remote.runtime import delivered, gang_address
from aflow.scheduler.states import AttemptState
from aflow.storage.factory import open_store
from aflow.task import code_package
from aflow.task.remote import Payloads
from aflow.task.spec import NO_RETRY_EXIT_CODE, AttemptReport, AttemptSpec

if TYPE_CHECKING:
    from aflow.environments.build import Built
    from aflow.environments.lock import Shipped
    from aflow.executors.base import Usage
    from aflow.executors.protocol import Job
    from aflow.storage.base import ObjectStore
    from aflow.storage.blobs import BlobStore

SAY = 1.0  # seconds for which events are gathered before they become a message
GRACE = 20.0  # seconds for a step to end when the job is to stop: systems give 30 in all
LOOK = 0.5  # seconds between looks for the other members of a gang
PATIENCE = 600.0  # seconds for which a main node that is done waits for the others
ALL_AT_ONCE = 0.5  # seconds within which a system's SIGTERM comes to all processes of a job
SLACK = 1 << 17  # bytes of output beyond what is kept, so that it is seen that there was more


class JobVariables(NamedTuple):
    """What the variables say: the store, the run, the payload that describes it, the list of
    attempts, and which job, or node of a job, this process is; whether its attempts are members of
    a gang."""

    store: str
    flow: str
    run: str
    job: str
    array: ArraySpec
    place: JobPlace
    is_gang: bool

    @classmethod
    def load(cls) -> JobVariables:
        """The variables of this process; raises InvalidInput where it is no such job."""

        def needed(key: str) -> str:
            value = looked_up(key)
            if value is None:
                raise InvalidInput(f"This is not a job of a run: AFLOW_{key} is not set.")
            return value

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
        """The job, of which this may be a node."""
        return self.place.worker.partition("#")[0]


def main() -> int:
    """Run the attempt that the variables name; the exit code."""
    try:
        variables = JobVariables.load()
        if looked_up("SERVICE_AUTH_KEY_SECRET") is not None:
            from aflow.task.secrets_manager import fetch_service_key  # few jobs have one

            fetch_service_key()
        # Now, for the ground to have all of it, too: it is what takes longest.
        store = open_store(variables.store)
        # Before the folder is made: a process that was forked after would remove it at its end.
        ground = EarlyGround(fork_ground())
        conceal_secrets()  # of the environment that steps can look up in /proc
        with ExitStack() as made:
            folder = made.enter_context(tempfile.TemporaryDirectory(prefix="aflow-"))
            made.callback(ground.close)
            return asyncio.run(OneJob(variables, store, SystemClock(), Path(folder), ground).run())
    except AflowError as error:
        print(f"aflow: {error}", file=sys.stderr)  # noqa: T201 -- the log of the job
        return 1


class OneJob:
    """One job. The code of the flow is put into the folder, from which its task runs it."""

    def __init__(
        self,
        variables: JobVariables,
        store: ObjectStore,
        clock: Clock,
        folder: Path,
        ground: EarlyGround,
    ) -> None:
        self._variables = variables
        self._store = store
        self._clock = clock
        self._folder = folder
        self._ground = ground
        self._news = News(store, variables.flow, variables.run, variables.place.worker)
        self._rendezvous = Rendezvous(store, variables.flow, variables.run)
        self._address = ""  # of member 0 of its gang, if it is in one
        self._left = [0, 0]  # bytes of each stream that are still sent

    async def run(self) -> int:
        """Run the attempt; the exit code of the job. SIGTERM ends it. Raises StorageError where
        the end of the attempt could not be reported."""
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[AttemptReport] = loop.create_future()
        self._stopping = stopping = asyncio.Event()
        on_signal(loop, signal.SIGTERM, stopping.set)
        spec = await in_thread(self._attempt)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._news.tell())
                await self._run(spec, stopping, group)
                self._news.close()
            await self._leave(stopping)
        except* AflowError as errors:
            raise errors.exceptions[0] from None
        report = await self._ended
        if report.state == AttemptState.SUCCEEDED.value:
            return 0
        print(f"aflow: {report.reason}", file=sys.stderr)  # noqa: T201 -- the log of the job
        return 1 if report.retryable else NO_RETRY_EXIT_CODE

    async def _run(
        self, spec: AttemptSpec, stopping: asyncio.Event, group: asyncio.TaskGroup
    ) -> None:
        executor = await self._executor(spec, stopping)
        if executor is None:
            return
        stop = group.create_task(self._stop(stopping, executor, spec))
        executor.launch(spec._replace(address=self._address))
        await self._ended
        stop.cancel()
        await executor.stop()

    def _attempt(self) -> AttemptSpec:
        variables = self._variables
        spec = variables.array.read(
            Payloads(self._store, variables.flow, variables.run), variables.place.index
        )
        return spec._replace(again=spec.again or variables.place.tries > 1)

    async def _executor(self, spec: AttemptSpec, stopping: asyncio.Event) -> ProcessExecutor | None:
        """What runs the attempt; None where it cannot be run here, which is its end."""
        try:
            job = await in_thread(self._job)
            start: StartGround = self._ground.start
            shipped = job.environments.get(spec.step)
            if shipped is not None:
                start = partial(
                    spawn_ground, built=await in_thread(self._built, shipped, spec.step)
                )
            elif job.python != protocol.python_version():
                raise CodePackageError(
                    f"step {spec.step} was started with Python {job.python}, and the job has "
                    f"{protocol.python_version()}: use an image with the same, or name the step's "
                    "packages (@pypi)."
                )
            executor = ProcessExecutor(
                job.needs,
                job.request,
                start,
                self._clock,
                max_workers=1,
                grace=GRACE,
            )
            self._left = [job.max_log_size + SLACK] * 2
            if self._variables.is_gang:
                self._address = await self._meet(spec, stopping)
            await executor.start(job.context, self)
        except AflowError as error:
            reason = f"The job {self._variables.place.worker} cannot run the task: {error}"
            self._never_ran(spec, AttemptState.FAILED, reason)
            return None
        if stopping.is_set():
            self._never_ran(spec, AttemptState.CANCELLED, "The task was cancelled.")
            await executor.stop()
            return None
        return executor

    def _never_ran(self, spec: AttemptSpec, state: AttemptState, reason: str) -> None:
        now = self._clock.now()
        self.started(spec.task, spec.attempt, os.getpid(), now)
        report = base.stopped(spec.task, spec.attempt, state, reason, now, now)
        self._end(report, NO_USAGE)

    async def _meet(self, spec: AttemptSpec, stopping: asyncio.Event) -> str:
        """Where member 0 of the gang is; nothing where the job is to stop before that is known."""
        loop = asyncio.get_running_loop()
        patience = float(looked_up("JOB_MEETING_TIMEOUT") or math.inf)
        meeting = loop.create_task(gang_address(self._rendezvous, spec))
        stopped = loop.create_task(stopping.wait())
        try:
            await asyncio.wait(
                [meeting, stopped],
                timeout=None if math.isinf(patience) else patience,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if meeting.done():
                return await meeting
        finally:
            meeting.cancel()
            stopped.cancel()
        if stopping.is_set():
            return ""
        raise InvalidInput(f"Member 0 of the gang did not begin within {patience:.0f} seconds.")

    async def _leave(self, stopping: asyncio.Event) -> None:
        """With the main node all others would be ended: so it waits until they are done."""
        variables, place = self._variables, self._variables.place
        if place.nodes == 1 or not place.main_ends_all:
            return
        if place.index != 0:
            await in_thread(self._rendezvous.leave, variables.whole_job, place.index)
            return
        give_up_at = asyncio.get_running_loop().time() + PATIENCE
        while not stopping.is_set():
            left = await in_thread(self._rendezvous.left, variables.whole_job)
            if left >= place.nodes - 1 or asyncio.get_running_loop().time() > give_up_at:
                return
            await asyncio.sleep(LOOK)

    def _job(self) -> Job:
        variables = self._variables
        job, _ = delivered(self._store, variables.flow, variables.run, variables.job, self._unpack)
        return job

    def _built(self, shipped: Shipped, step: str) -> Built:
        def report(line: str) -> None:
            print(f"aflow: {line}", file=sys.stderr, flush=True)  # noqa: T201 -- the job's log

        return transport.built(shipped, self._store, report, [step])

    def _unpack(self, blobs: BlobStore, key: str) -> Path:
        code_package.unpack(code_package.fetch(blobs, key), self._folder)
        return self._folder

    async def _stop(
        self, stopping: asyncio.Event, executor: ProcessExecutor, spec: AttemptSpec
    ) -> None:
        await stopping.wait()
        executor.cancel(spec.task, spec.attempt)

    # ------------------------------------------------------------ what the executor says

    def handed(self, task: int, attempt: int, handle: str, host: str = "") -> None:
        """The coordinator finds the job by its id."""

    def started(self, task: int, attempt: int, pid: int | None, at: float) -> None:
        """The attempt is running now."""
        self._news.add((protocol.STARTED, task, attempt, pid, at))

    def logged(self, task: int, attempt: int, stream: int, at: float, chunk: bytes) -> None:
        """The attempt has written something: it goes to the job's own log, too, if it has one."""
        kept = chunk[: self._left[stream]]
        self._left[stream] -= len(kept)
        if kept:
            self._news.add((protocol.LOGGED, task, attempt, stream, at, kept))
        if not self._variables.place.echoes:
            return
        out = binary((sys.stdout, sys.stderr)[stream])
        out.write(chunk)
        out.flush()

    def grown(self, task: int, attempt: int, count: int, manifest: bytes) -> None:
        """The attempt has made items of its foreach."""
        self._news.add((protocol.GROWN, task, attempt, count, manifest))

    def ended(self, report: AttemptReport, usage: Usage) -> None:
        """The attempt is over. Where its process died without a word, the job may have been sent
        SIGTERM, as Slurm does to all of its processes: we hear of ours in a moment."""
        if _is_silent(report) and not self._stopping.is_set():
            loop = asyncio.get_running_loop()
            loop.call_later(ALL_AT_ONCE, self._end, report, usage)
        else:
            self._end(report, usage)

    def _end(self, report: AttemptReport, usage: Usage) -> None:
        if _is_silent(report) and self._stopping.is_set():
            # No failure of the step's: the system knows why, or the coordinator has asked for it.
            cancelled, reason = AttemptState.CANCELLED.value, "The task was cancelled."
            report = report._replace(state=cancelled, reason=reason)
        if not self._ended.done():
            self._news.add(
                (protocol.ENDED, report.task, report.attempt, usage.max_rss, usage.cpu, *report[2:])
            )
            self._ended.set_result(report)


def _is_silent(report: AttemptReport) -> bool:
    """Whether an attempt has ended without saying how: its process died, or what starts it."""
    died = (AttemptState.FAILED.value, AttemptState.LOST.value)
    return report.state in died and report.manifest is None


class News:
    """The events for the coordinator, gathered into messages."""

    def __init__(self, store: ObjectStore, flow: str, run: str, worker: str) -> None:
        self._box = Mailbox(store, flow, run)
        self._flow = flow
        self._run = run
        self._worker = worker
        self._host = socket.gethostname()
        self._number = 0
        self._events: list[tuple[Any, ...]] = []
        self._some = asyncio.Event()
        self._closed = asyncio.Event()

    def add(self, event: tuple[Any, ...]) -> None:
        """Say it soon."""
        self._events.append(event)
        self._some.set()

    def close(self) -> None:
        """Say at once what there is; `tell` returns then."""
        self._closed.set()
        self._some.set()

    async def tell(self) -> None:
        """Say what there is to say, until it is all said. Raises StorageError."""
        while True:
            await self._some.wait()
            self._some.clear()
            try:
                async with asyncio.timeout(SAY):
                    await self._closed.wait()
            except TimeoutError:  # more may come: what there is goes now
                pass
            events, self._events = self._events, []
            for part in protocol.parts(events):
                self._number += 1
                message = protocol.ReportsMessage(
                    flow=self._flow,
                    run=self._run,
                    worker=self._worker,
                    host=self._host,
                    number=self._number,
                    events=part,
                )
                await in_thread(self._box.put, message)
            if self._closed.is_set() and not self._events:
                return


def remove_empty_output() -> None:
    """Remove the file that this job prints to, if that is empty: a wide array would leave one for
    each of its members."""
    if DESCRIPTORS is None:  # where this is not known
        return
    try:
        path = os.readlink(f"{DESCRIPTORS}/2")
        if os.fstat(2).st_size == 0 and os.path.isfile(path):
            os.unlink(path)
    except OSError:  # it is not a file, or was removed before
        return


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if looked_up("JOB_SYSTEM") == SLURM:
        remove_empty_output()
    os._exit(code)  # at once: the threads of clients do not hold us up
