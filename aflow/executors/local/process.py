"""Local processes: attempts run on this machine, forked from a template.

isolation `task`    a fresh process for each attempt            executors/local/fresh.py
isolation `worker`  a few processes that run many attempts      executors/local/pool.py
coroutine steps     one process whose event loop runs them all  executors/local/pool.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from aflow.attempt.spec import AttemptSpec, RunContext
from aflow.errors import AflowError
from aflow.executors import deaths
from aflow.executors.base import NO_USAGE, Orphan, Reports
from aflow.executors.local.fresh import FreshProcesses
from aflow.executors.local.link import TemplateLink, TemplateProcess
from aflow.executors.local.pool import MAX_AHEAD, WorkerPool
from aflow.scheduler.states import AttemptState

if TYPE_CHECKING:
    from aflow.clock import Clock
    from aflow.flow.definition import FlowDefinition

GRACE = 5.0  # seconds between asking a process to end and killing it
BACKSTOP = 5.0  # seconds after its timeout in which a step may still react by itself

StartTemplate = Callable[[], TemplateProcess]


class StepNeeds(NamedTuple):
    """What has to be known of a step to run it: whether it is a coroutine, and after how many
    seconds it is killed from outside (None: never)."""

    is_async: bool
    limit: float | None


def needs_of(definition: FlowDefinition) -> dict[str, StepNeeds]:
    """The needs of every step of a flow."""
    return {
        name: StepNeeds(
            step.is_async,
            None
            if (timeout := step.decorator("timeout")) is None
            else timeout.total_seconds + BACKSTOP,
        )
        for name, step in definition.steps.items()
    }


class ProcessExecutor:
    """Runs the attempts of one run in local processes; `needs` are those of its steps.

    `first` is a template that has been forked already; `start_template` starts another one,
    blocking, in any thread: where there is none yet, and when one has died.
    """

    def __init__(
        self,
        needs: Mapping[str, StepNeeds],
        start_template: StartTemplate,
        clock: Clock,
        *,
        first: TemplateProcess | None = None,
        max_workers: int,
        isolation: str = "task",
        grace: float = GRACE,
    ) -> None:
        self._needs = needs
        self._start_template = start_template
        self._clock = clock
        self._first = first
        self._size = max_workers
        self._sequential = isolation == "worker"
        self._grace = grace
        self._stopping = False
        self._starting: asyncio.Task[None] | None = None  # a template that is being started
        self._waiting: list[AttemptSpec] = []
        self._idle = asyncio.Event()
        self._link: TemplateLink | None = None
        self._loop: asyncio.AbstractEventLoop
        self._context: RunContext
        self._reports: Reports

    @property
    def lookahead(self) -> int:
        """How many attempts more than can run the executor wants in hand."""
        return self._size * (MAX_AHEAD - 1) if self._sequential else 0

    def recover(self, orphans: Sequence[Orphan]) -> Sequence[Orphan]:
        """None of them: they have ended with the process that has started them."""
        return orphans

    async def leave(self) -> None:
        """The same as `stop`: processes do not outlive us."""
        await self.stop()

    def forget(self, task: int, attempt: int) -> None:
        """Nothing is kept."""

    async def start(self, context: RunContext, reports: Reports) -> None:
        """Get ready to launch attempts of this run."""
        self._context = context
        self._reports = reports
        self._loop = asyncio.get_running_loop()
        if self._first is not None:
            self._use(self._first)
            return
        self._starting = self._loop.create_task(self._start_one())
        # If who waits here is cancelled, the process comes all the same: `stop` lets go of it.
        await asyncio.shield(self._starting)

    async def _start_one(self) -> None:
        self._use(await asyncio.to_thread(self._start_template))

    def _use(self, process: TemplateProcess) -> None:
        self._link = TemplateLink(self._loop, process, self)
        self._link.configure(self._context)
        self._fresh = FreshProcesses(self._link, self._reports, self._clock, self._grace)
        self._workers = self._pool(self._link, coroutines=False)
        self._coroutines = self._pool(self._link, coroutines=True)

    def _pool(self, link: TemplateLink, *, coroutines: bool) -> WorkerPool:
        return WorkerPool(
            link,
            self._reports,
            self._clock,
            size=self._size,
            coroutines=coroutines,
            grace=self._grace,
            limit_of=lambda step: self._needs[step].limit,
        )

    # ------------------------------------------------------------ attempts

    def launch(self, spec: AttemptSpec) -> None:
        """Start this attempt, now or as soon as there is room."""
        if self._link is None:
            self._waiting.append(spec)
            self._see_that_one_starts()
        elif self._needs[spec.step].is_async:
            self._coroutines.launch(spec)
        elif self._sequential:
            self._workers.launch(spec)
        else:
            self._fresh.launch(spec, self._needs[spec.step].limit)

    def cancel(self, task: int, attempt: int) -> None:
        """Stop this attempt: SIGTERM to its group, SIGKILL after the grace time."""
        for spec in self._waiting:
            if (spec.task, spec.attempt) == (task, attempt):
                self._waiting.remove(spec)
                now = self._clock.now()
                state, reason = AttemptState.CANCELLED, "The task was cancelled."
                report = deaths.stopped(task, attempt, state, reason, now, now)
                self._loop.call_soon(self._reports.ended, report, NO_USAGE)
                return
        self._fresh.cancel(task, attempt)
        self._workers.cancel(task, attempt)
        self._coroutines.cancel(task, attempt)

    async def stop(self) -> None:
        """Interrupt all that runs, wait for it to end, and let go of the template."""
        self._stopping = True
        if self._starting is not None:
            await asyncio.wait([self._starting])  # what it raises was for `start`
        if self._link is not None:
            for each in (self._fresh, self._workers, self._coroutines):
                each.interrupt()
            self._note_idle()
            await self._idle.wait()
        link, self._link = self._link, None  # it may have died meanwhile, or been stopped twice
        if link is not None:
            link.close()
            await asyncio.to_thread(link.reap)

    def _note_idle(self) -> None:
        live = len(self._fresh) + len(self._workers) + len(self._coroutines)
        if self._stopping and not live:
            self._idle.set()

    # ------------------------------------------------------------ what the template says

    def forked(self, child: int, pid: int, at: float) -> None:
        """A process runs."""
        pool = self._pool_of(child)
        if pool is None:
            self._fresh.forked(child, pid, at)
        else:
            pool.forked(child, pid)

    def exited(self, child: int, status: int, max_rss: int, cpu: float) -> None:
        """A process has ended."""
        pool = self._pool_of(child)
        if pool is None:
            self._fresh.exited(child, status, max_rss, cpu)
        else:
            pool.exited(child, status)
        self._note_idle()

    def not_forked(self, child: int, reason: str) -> None:
        """There was no process to be had."""
        pool = self._pool_of(child)
        (self._fresh if pool is None else pool).not_forked(child, reason)
        self._note_idle()

    def _pool_of(self, child: int) -> WorkerPool | None:
        for pool in (self._workers, self._coroutines):
            if pool.knows(child):
                return pool
        return None

    def template_lost(self, reason: str) -> None:
        """All processes are gone: their attempts are lost, and a new template is started."""
        self._link = None
        self._see_that_one_starts()
        for each in (self._fresh, self._workers, self._coroutines):
            each.lost(reason)
        self._note_idle()

    def _see_that_one_starts(self) -> None:
        if not self._stopping and (self._starting is None or self._starting.done()):
            self._starting = self._loop.create_task(self._start_again())

    async def _start_again(self) -> None:
        try:
            await self._start_one()
        except (OSError, AflowError) as error:
            for spec in self._take_waiting():
                now = self._clock.now()
                reason = f"The task was lost: no process could be started for it ({error})."
                report = deaths.stopped(
                    spec.task, spec.attempt, AttemptState.LOST, reason, now, now
                )
                self._reports.ended(report, NO_USAGE)
            return
        for spec in self._take_waiting():
            self.launch(spec)

    def _take_waiting(self) -> list[AttemptSpec]:
        waiting, self._waiting = self._waiting, []
        return waiting
