"""The processes of one run on a worker: its code is fetched once, and its zygotes are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aflow._core.threads import in_daemon_thread, in_thread
from aflow.environments import build, transport
from aflow.errors import AflowError, StorageError
from aflow.executors import protocol
from aflow.executors.local.admission import ConcurrencyLimit, SlotQueue, bounded, too_much
from aflow.executors.local.executor import ProcessExecutor
from aflow.executors.local.zygote_start import spawn_zygote
from aflow.executors.mailbox import Rendezvous
from aflow.executors.protocol import Job, TaskMessage
from aflow.executors.remote.attempt import delivered, gang_address, other_python
from aflow.executors.remote.reports import ReportSender
from aflow.queue.base import Lease
from aflow.scheduler.slots import demand_of
from aflow.storage.factory import open_store
from aflow.task import code_package
from aflow.task.program import packaged
from aflow.task.remote import is_over, record_end
from aflow.task.spec import AttemptReport, AttemptSpec

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.environments.build import Built
    from aflow.environments.lock import Shipped
    from aflow.executors.base import Usage
    from aflow.storage.base import ObjectStore


def _message_of(error: Exception) -> str:
    return str(error) if isinstance(error, AflowError) else f"{type(error).__name__}: {error}"


LOOK = 10.0  # seconds between checks whether the run has ended
LOOK_OF_LATE = 0.5  # the same for messages that were delivered to another worker before


class Site(NamedTuple):
    """The environment of a worker's processes.

    `worker` is the worker's id, `slots` the number of concurrent attempts, and `limit` enforces it
    for all runs together. `folder` is the directory for unpacked code, and `sender` sends the
    reports. `report` receives a line for each slow operation. `admission` manages the slots of the
    machine, for attempts that request resources."""

    worker: str
    slots: int
    folder: Path
    clock: Clock
    sender: ReportSender
    limit: ConcurrencyLimit
    report: Callable[[str], None] = lambda line: None
    admission: SlotQueue | None = None


class RunOver(AflowError):
    """The run has ended: its remaining attempts must not run."""


class WorkerHost(Protocol):
    """The worker, as used by the processes of a run."""

    def started(self, message: TaskMessage, task: int, attempt: int) -> None:
        """Handle the start of an attempt: start its heartbeat, and notify the coordinator.

        Args:
            message: The message of the attempt.
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
        """

    def ended(self, message: TaskMessage, report: AttemptReport, usage: Usage) -> None:
        """Handle the end of an attempt: report it, then acknowledge the message.

        Args:
            message: The message of the attempt.
            report: The result of the attempt.
            usage: Memory and CPU of the attempt.
        """

    def never_begun(self, held: Held) -> None:
        """Handle an attempt that was cancelled before it started: acknowledge its message.

        Args:
            held: The attempt, its message and its lease.
        """

    def refused(self, held: Held, why: str) -> None:
        """Handle an attempt that can never run, since its run has no such step: bury the message.

        Args:
            held: The attempt, its message and its lease.
            why: The reason, in one sentence.
        """

    def cannot_run(self, runtime: Runtime, why: str, only: tuple[int, int] | None = None) -> None:
        """Leave a run, or one attempt, that cannot run on this machine to other workers.

        Args:
            runtime: The runtime of the run on this worker.
            why: The reason, in one sentence.
            only: The attempt that cannot run here; None for the whole run.
        """

    def run_is_over(self, runtime: Runtime) -> None:
        """Handle the end of the run: stop its processes, and remove its messages.

        Args:
            runtime: The runtime of the run on this worker.
        """


@dataclass(slots=True, eq=False)
class Held:
    """A leased message and its attempt."""

    lease: Lease
    message: TaskMessage
    spec: AttemptSpec
    runtime: Runtime
    since: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    active: bool = False  # passed to the processes of its run
    is_suspect: bool = False  # it may crash the worker, so it runs alone


class Runtime:
    """The processes of one run."""

    def __init__(self, site: Site, host: WorkerHost, message: TaskMessage) -> None:
        self._site = site
        self._host = host
        self._message = message
        self._waiting: list[Held] = []
        self._executor: ProcessExecutor | None = None
        self._folder: Path | None = None  # the run's code; locked against the removal of old code
        self._store: ObjectStore | None = None
        self._looked_at = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._start())  # noqa: TID251 -- awaited by `stop`
        self._is_retired = False
        self._isolation = "task"
        self._job: Job  # this and the next are set before the processes start
        self._rendezvous: Rendezvous
        self._packaged: dict[Shipped, ProcessExecutor] = {}  # by environment
        self._building: dict[Shipped, asyncio.Task[None]] = {}
        self._built: list[Built] = []  # locked against their removal
        self._unbuilt: dict[Shipped, list[Held]] = {}  # attempts that wait for their environment
        # Members of gangs that wait for member 0, with the task that waits.
        self._meeting: dict[tuple[int, int], tuple[Held, asyncio.Task[None]]] = {}

    @property
    def name(self) -> str:
        """Flow and run."""
        return f"{self._message.flow}/{self._message.run}"

    @property
    def message(self) -> TaskMessage:
        """The message that created this runtime."""
        return self._message

    @property
    def in_hand(self) -> int:
        """The number of attempts to lease; processes that run many attempts prefetch some."""
        slots = self._site.slots
        return slots if self._isolation == "task" else slots * 8

    def launch(self, held: Held) -> None:
        """Run the attempt as soon as the run's processes have started.

        Args:
            held: The attempt, its message and its lease; queued until the processes have started.
        """
        if self._executor is None:
            self._waiting.append(held)
        else:
            self._launch(held, self._executor)

    def _lacking(self, held: Held) -> str | None:
        """Return why this machine can never run the attempt; None if it can."""
        admission = self._site.admission
        if admission is None or not held.spec.resources:
            return None
        amounts = bounded(dict(held.spec.resources), admission.machine)
        held.spec = held.spec._replace(resources=tuple(amounts.items()))
        lacking = admission.slots.lacking(demand_of(amounts))
        return too_much(lacking, admission.slots) if lacking else None

    def _launch(self, held: Held, executor: ProcessExecutor) -> None:
        step, attempt_key = held.spec.step, held.spec.attempt_key
        needs, shipped = self._job.needs.get(step), self._job.environments.get(step)
        # Called later: callers do not expect the result before `launch` has returned.
        call_soon = asyncio.get_running_loop().call_soon
        if needs is None:
            call_soon(self._host.refused, held, f"{self.name} has no step {step}.")
        elif (lacking := self._lacking(held)) is not None:
            call_soon(self._host.cannot_run, self, f"Step {step} {lacking}", attempt_key)
        elif needs.gang and not held.spec.address and held.spec.splits:
            meeting = asyncio.create_task(self._meet(held, executor))  # noqa: TID251 -- see `_stop`
            self._meeting[attempt_key] = held, meeting
        elif shipped is not None:
            self._launch_packaged(held, shipped)
        elif (why := other_python(step, self._job.python)) is not None:
            call_soon(self._host.cannot_run, self, why, attempt_key)
        else:
            executor.launch(held.spec)

    async def _meet(self, held: Held, executor: ProcessExecutor) -> None:
        """Run a member of a gang as soon as the address of member 0 is known."""
        attempt_key = held.spec.attempt_key
        try:
            address = await gang_address(self._rendezvous, held.spec)
        except StorageError as error:
            self._host.cannot_run(self, _message_of(error), attempt_key)
            return
        finally:
            self._meeting.pop(attempt_key, None)
        held.spec = held.spec._replace(address=address)
        self._launch(held, executor)

    def _launch_packaged(self, held: Held, shipped: Shipped) -> None:
        """Run the attempt in the environment of its step as soon as that is built."""
        executor = self._packaged.get(shipped)
        if executor is not None:
            executor.launch(held.spec)
            return
        self._unbuilt.setdefault(shipped, []).append(held)
        if shipped not in self._building:
            building = self._build(shipped)
            self._building[shipped] = asyncio.create_task(building)  # noqa: TID251 -- see `_stop`

    async def _build(self, shipped: Shipped) -> None:
        """Build an environment and run the attempts that wait for it.

        If the build fails, leave them to other workers."""
        job, store = self._job, self._store
        assert store is not None, "it has been opened"
        steps = [name for name, each in job.environments.items() if each == shipped]
        try:
            built = await in_daemon_thread(
                transport.built, shipped, store, self._site.report, steps
            )
            self._built.append(built)
            executor = self._processes(job, built)
            await executor.start(job.context, self)
        except Exception as error:  # noqa: BLE001 -- whatever the error, other workers may succeed
            del self._building[shipped]
            for each in self._unbuilt.pop(shipped, []):
                self._host.cannot_run(self, _message_of(error), each.spec.attempt_key)
            return
        self._packaged[shipped] = executor
        for each in self._unbuilt.pop(shipped, []):
            executor.launch(each.spec)

    def cancel(self, task: int, attempt: int) -> None:
        """Stop the attempt, even if it has not been passed to a process yet."""
        for waiting in (self._waiting, *self._unbuilt.values()):
            for held in [*waiting]:
                if held.spec.attempt_key == (task, attempt):
                    waiting.remove(held)
                    self._host.never_begun(held)
        if (task, attempt) in self._meeting:
            held, meeting = self._meeting.pop((task, attempt))
            meeting.cancel()
            self._host.never_begun(held)
        for executor in self._executors:
            executor.cancel(task, attempt)

    @property
    def _executors(self) -> list[ProcessExecutor]:
        found = [*self._packaged.values()]
        return found if self._executor is None else [self._executor, *found]

    def retire(self, then: Callable[[Runtime], object]) -> None:
        """Stop the processes, which are no longer needed, in the background.

        Args:
            then: Called when they have stopped.
        """
        self._is_retired = True
        self._task = asyncio.create_task(self._retire(self._task))  # noqa: TID251 -- see `stop`
        self._task.add_done_callback(lambda _: then(self))

    async def _retire(self, starting: asyncio.Task[None]) -> None:
        await asyncio.wait([starting])
        await self._stop()

    async def stop(self) -> None:
        """Interrupt running attempts and stop the processes. May be called twice."""
        await asyncio.wait([self._task])
        await self._stop()

    async def _stop(self) -> None:
        # Child processes of builds are not killed; their results stay in the cache.
        ending = [*self._building.values(), *(each for _, each in self._meeting.values())]
        for each in ending:
            each.cancel()
        if ending:
            await asyncio.wait(ending)
        for executor in self._executors:
            await executor.stop()
        while self._built:
            build.release(self._built.pop())
        folder, self._folder = self._folder, None
        if folder is not None:
            code_package.release(folder)

    async def _start(self) -> None:
        try:
            self._executor = await self._made()
        except RunOver:
            self._host.run_is_over(self)
            return
        except Exception as error:  # noqa: BLE001 -- whatever the error, other workers may succeed
            self._host.cannot_run(self, _message_of(error))
            return
        waiting, self._waiting = self._waiting, []
        for held in waiting:
            self._launch(held, self._executor)

    async def is_over(self, lease: Lease) -> bool:
        """Return whether the run has ended, since a message may outlive its run.

        The datastore is checked every few seconds; False in between.

        Args:
            lease: The lease of a message of the run; after a redelivery the check is due sooner.
        """
        now = asyncio.get_running_loop().time()
        due = LOOK_OF_LATE if lease.deliveries > 1 else LOOK
        store = self._store
        if store is None or now - self._looked_at < due:
            return False
        self._looked_at = now
        try:
            return await in_thread(is_over, store, self._message.flow, self._message.run)
        except StorageError:  # the attempt will fail if it needs the datastore
            return False

    async def record_end(self, report: AttemptReport) -> None:
        """Record the end of an attempt that has not succeeded in the datastore.

        Args:
            report: The result of the attempt.

        Raises:
            StorageError: If the datastore does not respond.
        """
        if self._store is not None:  # otherwise no attempt of the run has started here
            message = self._message
            await in_thread(record_end, self._store, message.flow, message.run, report)

    async def _made(self) -> ProcessExecutor:
        job = self._job = await in_thread(self._fetched)
        self._isolation = job.isolation
        executor = self._processes(job)
        await executor.start(job.context, self)
        return executor

    def _processes(self, job: Job, built: Built | None = None) -> ProcessExecutor:
        """Return an executor whose processes run in this Python, or in an environment."""
        return ProcessExecutor(
            job.needs,
            job.request if built is None else packaged(job.request, is_here=False),
            lambda: spawn_zygote(built=built),
            self._site.clock,
            max_workers=self._site.slots,
            limit=self._site.limit,
            isolation=job.isolation,
            # All steps of a run may have environments.
            is_lazy=built is None and bool(job.environments),
            admission=self._site.admission,
        )

    def _fetched(self) -> Job:
        """Return the description of the run, with its code unpacked on this machine. Blocks."""
        message, below = self._message, self._site.folder
        store = self._store = open_store(message.store)
        if is_over(store, message.flow, message.run):
            raise RunOver(f"{self.name} has ended.")
        self._rendezvous = Rendezvous(store, message.flow, message.run)
        job, folder = delivered(
            store,
            message.flow,
            message.run,
            message.job,
            lambda blobs, key: code_package.unpacked(blobs, key, below),
        )
        self._folder = folder
        return job

    # ------------------------------------------------------------ reports of the processes

    def handed(self, task: int, attempt: int, handle: str, host: str = "") -> None:
        """Do nothing: the queue redelivers the attempts of a lost machine."""

    def started(self, task: int, attempt: int, pid: int | None, at: float) -> None:
        """Report that an attempt has started."""
        self._host.started(self._message, task, attempt)
        self._site.sender.add(self._message, (protocol.STARTED, task, attempt, pid, at))

    def logged(self, task: int, attempt: int, stream: int, at: float, chunk: bytes) -> None:
        """Report the output of an attempt."""
        event = (protocol.LOGGED, task, attempt, stream, at, chunk)
        self._site.sender.add(self._message, event)

    def grown(self, task: int, attempt: int, count: int, manifest: bytes) -> None:
        """Report the number of foreach items of an attempt so far."""
        event = (protocol.GROWN, task, attempt, count, manifest)
        self._site.sender.add(self._message, event)

    def ended(self, report: AttemptReport, usage: Usage) -> None:
        """Report that an attempt has ended."""
        if self._is_retired:
            return  # the attempt was left to other workers
        if report.unreached:
            self._host.cannot_run(self, report.reason, (report.task, report.attempt))
        else:
            self._host.ended(self._message, report, usage)
