"""Local processes: attempts run on this machine, forked from grounds (ground.py).

isolation `task`    a fresh process for each attempt            executors/local/task_processes.py
isolation `worker`  a few processes that run many attempts      executors/local/worker_processes.py
coroutine steps     one process whose event loop runs them all  executors/local/worker_processes.py

Processes of isolation `worker` and of coroutine steps have the variables of one @environment, and
run the steps that have the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aflow._core.records import NamedTuple
from aflow._core.threads import in_thread
from aflow.code.program import Request
from aflow.errors import AflowError
from aflow.executors import base
from aflow.executors.base import NO_USAGE, Orphan, Reports
from aflow.executors.local.ground_client import GroundProcess, Grounds
from aflow.executors.local.task_processes import FreshProcesses
from aflow.executors.local.worker_processes import MAX_AHEAD, WorkerPool
from aflow.scheduler.states import AttemptState
from aflow.task.spec import AttemptSpec, RunContext

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.executors.local.terminal import Terminal
    from aflow.flow.definition import FlowDefinition

GRACE = 5.0  # seconds between asking a process to end and killing it
BACKSTOP = 5.0  # seconds after its timeout in which a step may still react by itself

StartGround = Callable[[], GroundProcess]


class StepNeeds(NamedTuple):
    """What has to be known of a step to run it: whether it is a coroutine, after how many seconds
    it is killed from outside (None: never), and the variables of its @environment (None: they are
    to be learned from the flow, where it is run), and whether its processes are `fresh` or a `fork`
    of the program."""

    is_async: bool
    limit: float | None
    environment: dict[str, str] | None = None
    start: str = "fresh"


def needs_of(definition: FlowDefinition, start: str = "fresh") -> dict[str, StepNeeds]:
    """The needs of every step of a flow, as they are written down for other machines: without
    variables, which may hold secrets. `start` says what processes are forked from (@process), where
    a step does not say it."""
    return {
        name: StepNeeds(
            step.is_async,
            None
            if (timeout := step.decorator("timeout")) is None
            else timeout.total_seconds + BACKSTOP,
            start=start if (found := step.decorator("process")) is None else found.start,
        )
        for name, step in definition.steps.items()
    }


def needs_here(definition: FlowDefinition, start: str = "fresh") -> dict[str, StepNeeds]:
    """The needs of every step of a flow that is run by this machine, variables and all."""
    environments = {
        name: dict(found.vars)
        for name, step in definition.steps.items()
        if (found := step.decorator("environment")) is not None
    }
    return {
        name: needs._replace(environment=environments.get(name, {}))
        for name, needs in needs_of(definition, start).items()
    }


class ProcessExecutor:
    """Runs the attempts of one run in local processes; `needs` are those of its steps, `request`
    says how the flow is loaded.

    `first` is a ground that has been started already; `start_ground` starts another one, blocking,
    in any thread: where there is none yet, and when one has died. With `is_lazy` that is not before
    there is an attempt to run. The tasks of `debug_step` get the terminal of this process, each in
    a process of its own.
    """

    def __init__(
        self,
        needs: Mapping[str, StepNeeds],
        request: Request,
        start_ground: StartGround,
        clock: Clock,
        *,
        first: GroundProcess | None = None,
        max_workers: int,
        isolation: str = "task",
        grace: float = GRACE,
        debug_step: str | None = None,
        is_lazy: bool = False,
    ) -> None:
        self._debug_step = debug_step
        self._is_lazy = is_lazy
        self._terminal: Terminal | None = None
        self._needs = dict(needs)
        self._request = request
        self._start_ground = start_ground
        self._clock = clock
        self._first = first
        self._size = max_workers
        self._sequential = isolation == "worker"
        self._grace = grace
        self._stopping = False
        self._starting: asyncio.Task[None] | None = None  # a ground that is being started
        self._waiting: list[AttemptSpec] = []
        self._idle = asyncio.Event()
        self._link: Grounds | None = None
        self._pools: dict[tuple[Any, ...], WorkerPool] = {}
        self._pool_of: dict[int, WorkerPool] = {}
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

    async def conclude(self) -> None:
        """Nobody else has anything of the run."""

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
        if self._debug_step is not None:
            from aflow.executors.local.terminal import Terminal  # few runs are debugged

            self._terminal = Terminal(self._loop)
        if self._first is not None:
            self._use(self._first)
            return
        if self._is_lazy:
            return
        self._starting = self._loop.create_task(self._start_one())
        # If who waits here is cancelled, the process comes all the same: `stop` lets go of it.
        await asyncio.shield(self._starting)

    async def _start_one(self) -> None:
        self._use(await in_thread(self._start_ground))

    def _use(self, process: GroundProcess) -> None:
        link = Grounds(self._loop, process, self, self._request, self._context)
        self._link = link
        self._fresh = FreshProcesses(link, self._reports, self._clock, self._grace, self._learn)
        self._pools = {}

    def _pool(self, step: str) -> WorkerPool:
        """The processes that run many attempts of this step and others like it."""
        assert self._link is not None, "there are grounds"
        needs = self._needs[step]
        environment = needs.environment or {}
        key = (needs.is_async, needs.start, *sorted(environment.items()))
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = WorkerPool(
                self._link,
                self._reports,
                self._clock,
                size=self._size,
                start=needs.start,
                environment=environment,
                coroutines=needs.is_async,
                grace=self._grace,
                limit_of=lambda step: self._needs[step].limit,
                owned=self._pool_of,
                learn=self._learn,
            )
        return pool

    def _learn(
        self, imported: Mapping[str, Any], environments: Mapping[str, dict[str, str]]
    ) -> None:
        """A process has said what its program has imported, and which variables steps have."""
        for name, needs in self._needs.items():
            if needs.environment is None:
                self._needs[name] = needs._replace(environment=environments.get(name, {}))
        if self._link is not None:
            self._link.learn(imported)

    # ------------------------------------------------------------ attempts

    def launch(self, spec: AttemptSpec) -> None:
        """Start this attempt, now or as soon as there is room."""
        if self._link is None:
            self._waiting.append(spec)
            self._see_that_one_starts()
        elif self._terminal is not None and spec.step == self._debug_step:
            # Whoever debugs may take as long as it takes.
            needs = self._needs[spec.step]
            self._fresh.launch(spec, None, needs.start, needs.environment, self._terminal)
        elif self._needs[spec.step].is_async or self._sequential:
            self._pool(spec.step).launch(spec)
        else:
            needs = self._needs[spec.step]
            self._fresh.launch(spec, needs.limit, needs.start, needs.environment)

    def cancel(self, task: int, attempt: int) -> None:
        """Stop this attempt: SIGTERM to its group, SIGKILL after the grace time."""
        for spec in self._waiting:
            if (spec.task, spec.attempt) == (task, attempt):
                self._waiting.remove(spec)
                now = self._clock.now()
                state, reason = AttemptState.CANCELLED, "The task was cancelled."
                report = base.stopped(task, attempt, state, reason, now, now)
                self._loop.call_soon(self._reports.ended, report, NO_USAGE)
                return
        self._fresh.cancel(task, attempt)
        for pool in self._pools.values():
            pool.cancel(task, attempt)

    async def stop(self) -> None:
        """Interrupt all that runs, wait for it to end, and let go of the grounds."""
        self._stopping = True
        if self._starting is not None:
            await asyncio.wait([self._starting])  # what it raises was for `start`
        if self._link is not None:
            self._fresh.interrupt()
            for each in self._pools.values():
                each.interrupt()
            self._note_idle()
            await self._idle.wait()
        link, self._link = self._link, None  # it may have died meanwhile, or been stopped twice
        if link is not None:
            link.close()
            await in_thread(link.reap)

    def _note_idle(self) -> None:
        live = len(self._fresh) + sum(map(len, self._pools.values()))
        if self._stopping and not live:
            self._idle.set()

    # ------------------------------------------------------------ what grounds report

    def forked(self, child: int, pid: int, at: float) -> None:
        """A process runs."""
        pool = self._pool_of.get(child)
        if pool is None:
            self._fresh.forked(child, pid, at)
        else:
            pool.forked(child, pid)

    def exited(self, child: int, status: int, max_rss: int, cpu: float) -> None:
        """A process has ended."""
        pool = self._pool_of.pop(child, None)
        if pool is None:
            self._fresh.exited(child, status, max_rss, cpu)
        else:
            pool.exited(child, status)
        self._note_idle()

    def not_forked(self, child: int, reason: str) -> None:
        """There was no process to be had."""
        (self._pool_of.pop(child, None) or self._fresh).not_forked(child, reason)
        self._note_idle()

    def refused(self, child: int, reason: str) -> None:
        """A process cannot be forked from the program, as was asked for: its attempts fail."""
        (self._pool_of.pop(child, None) or self._fresh).refused(child, reason)
        self._note_idle()

    def ground_lost(self, reason: str) -> None:
        """All processes are gone: their attempts are lost, and a new ground is started."""
        self._link = None
        self._see_that_one_starts()
        self._pool_of.clear()
        self._fresh.lost(reason)
        for each in self._pools.values():
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
                report = base.stopped(spec.task, spec.attempt, AttemptState.LOST, reason, now, now)
                self._reports.ended(report, NO_USAGE)
            return
        for spec in self._take_waiting():
            self.launch(spec)

    def _take_waiting(self) -> list[AttemptSpec]:
        waiting, self._waiting = self._waiting, []
        return waiting
