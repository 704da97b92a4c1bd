"""The processes of one run on a worker: its code is fetched once, and its grounds are kept."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aflow import backends, package
from aflow.attempt.spec import AttemptReport, AttemptSpec
from aflow.errors import AflowError
from aflow.executors import letters
from aflow.executors.base import NO_USAGE
from aflow.executors.job import Job
from aflow.executors.letters import TaskLetter
from aflow.executors.local.process import ProcessExecutor
from aflow.executors.local.start import spawn_ground
from aflow.queue.base import Lease
from aflow.remote.delivery import delivered
from aflow.remote.outbox import Outbox
from aflow.scheduler.states import AttemptState
from aflow.threads import in_thread

if TYPE_CHECKING:
    from aflow.clock import Clock
    from aflow.executors.base import Usage


class Site(NamedTuple):
    """Where processes run: `worker` is its id, `slots` attempts go at a time, code is unpacked
    below `folder`, and what they say goes to the outbox."""

    worker: str
    slots: int
    folder: Path
    clock: Clock
    outbox: Outbox


class Host(Protocol):
    """The worker, as the processes of a run see it."""

    def ended(self, letter: TaskLetter, report: AttemptReport, usage: Usage) -> None:
        """An attempt is over."""

    def never_begun(self, held: Held) -> None:
        """An attempt that has not begun is not wanted any more."""


class Held:
    """A lease and what it is for."""

    __slots__ = ("active", "is_suspect", "lease", "letter", "runtime", "spec")

    def __init__(
        self, lease: Lease, letter: TaskLetter, spec: AttemptSpec, runtime: Runtime
    ) -> None:
        self.lease = lease
        self.letter = letter
        self.spec = spec
        self.runtime = runtime
        self.active = False  # handed to the processes of its run
        self.is_suspect = False  # it may kill its worker, and runs alone


class Runtime:
    """The processes of one run."""

    def __init__(self, site: Site, host: Host, letter: TaskLetter) -> None:
        self._site = site
        self._host = host
        self._letter = letter
        self._waiting: list[Held] = []
        self._executor: ProcessExecutor | None = None
        self._folder: Path | None = None  # of the run's code, which nobody sweeps meanwhile
        self._fault: str | None = None  # why there are no processes, and will be none
        self._task = asyncio.create_task(self._start())  # noqa: TID251 -- awaited by `stop`
        self.executor = self
        self._isolation = "task"

    @property
    def in_hand(self) -> int:
        """How many attempts its processes want to have: those that run many can take some more
        than they run."""
        slots = self._site.slots
        return slots if self._isolation == "task" else slots * 8

    def launch(self, held: Held) -> None:
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
                self._host.never_begun(held)

    def retire(self) -> None:
        """Let go of the processes, which do nothing."""
        self._task = asyncio.create_task(self.stop())  # noqa: TID251 -- short, and its own

    async def stop(self) -> None:
        """Interrupt what runs, and let go of the processes. May be called twice."""
        if asyncio.current_task() is not self._task:
            await asyncio.wait([self._task])
        if self._executor is not None:
            await self._executor.stop()
        folder, self._folder = self._folder, None
        if folder is not None:
            package.release(folder)

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

    def _refuse(self, held: Held, told: str) -> None:
        now = self._site.clock.now()
        spec = held.spec
        reason = f"Worker {self._site.worker} cannot run the task: {told}"
        report = AttemptReport(
            spec.task, spec.attempt, AttemptState.FAILED.value, reason,
            started_at=now, finished_at=now,
        )  # fmt: skip
        self.started(spec.task, spec.attempt, os.getpid(), now)
        self.ended(report, NO_USAGE)

    async def _made(self) -> ProcessExecutor:
        job = await in_thread(self._fetched)
        self._isolation = job.isolation
        executor = ProcessExecutor(
            job.needs,
            job.request,
            spawn_ground,
            self._site.clock,
            max_workers=self._site.slots,
            isolation=job.isolation,
        )
        await executor.start(job.context, self)
        return executor

    def _fetched(self) -> Job:
        """The description of the run, with its code in a folder of ours. Blocks."""
        letter, below = self._letter, self._site.folder
        job, folder = delivered(
            backends.open_store(letter.store),
            letter.flow,
            letter.run,
            letter.job,
            lambda blobs, key: package.unpacked(blobs, key, below),
        )
        self._folder = folder
        return job

    # ------------------------------------------------------------ what the processes say

    def handed(self, task: int, attempt: int, handle: str) -> None:
        """Nobody else finds processes of this machine: the queue gives their attempts to others."""

    def started(self, task: int, attempt: int, pid: int | None, at: float) -> None:
        """An attempt is running now."""
        self._site.outbox.add(self._letter.reply, (letters.STARTED, task, attempt, pid, at))

    def logged(self, task: int, attempt: int, stream: int, at: float, chunk: bytes) -> None:
        """An attempt has written something."""
        event = (letters.LOGGED, task, attempt, stream, at, chunk)
        self._site.outbox.add(self._letter.reply, event)

    def grown(self, task: int, attempt: int, count: int, manifest: bytes) -> None:
        """An attempt has made items of its foreach."""
        event = (letters.GROWN, task, attempt, count, manifest)
        self._site.outbox.add(self._letter.reply, event)

    def ended(self, report: AttemptReport, usage: Usage) -> None:
        """An attempt is over."""
        if report.unreached:
            reason = f"Worker {self._site.worker} cannot run the task: {report.reason}"
            report = report._replace(reason=reason)
        self._host.ended(self._letter, report, usage)
