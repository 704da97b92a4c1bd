"""Local processes: attempts run on this machine, forked from zygotes (zygote.py).

isolation `task`    a fresh process for each attempt            executors/local/task_processes.py
isolation `worker`  a few processes that run many attempts      executors/local/worker_processes.py
coroutine steps     one process whose event loop runs them all  executors/local/worker_processes.py

Processes of isolation `worker` and of coroutine steps have the variables of one @environment, and
run the steps that have the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aflow._core.records import NamedTuple
from aflow._core.system import memory_of
from aflow._core.threads import in_thread
from aflow.errors import InvalidDecorator
from aflow.executors import base, local
from aflow.executors.base import Orphan, Reports, Usage
from aflow.executors.local.admission import FREE, ConcurrencyLimit, Granted, SlotQueue, too_much
from aflow.executors.local.task_processes import (
    CANCELLED,
    INTERRUPTED,
    FreshProcesses,
    over_memory,
)
from aflow.executors.local.zygote_client import ZygoteProcess, Zygotes
from aflow.scheduler.slots import demand_of
from aflow.scheduler.states import AttemptState
from aflow.task.program import LoadRequest
from aflow.task.spec import AttemptKey, AttemptReport, AttemptSpec, RunContext

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.executors.local.terminal import Terminal
    from aflow.executors.local.worker_processes import WorkerPool
    from aflow.flow.definition import FlowDefinition

_log = logging.getLogger("aflow.processes")

GRACE = 5.0  # seconds between SIGTERM and SIGKILL
MEASURED = 0.25  # seconds between two measurements of attempts that have a memory limit
BACKSTOP = 5.0  # seconds between a step's timeout, enforced by its process, and a kill

StartZygote = Callable[[], ZygoteProcess]
Key = tuple[int, int, int]  # of an attempt, unique among all executors that share a machine
# Returns the resources that an attempt requests, by name. Raises InvalidDecorator.
Amounts = Callable[[AttemptSpec], dict[str, float]]


class StepNeeds(NamedTuple):
    """The properties of a step that its executor needs.

    `is_async`: whether it is a coroutine. `limit`: seconds after which it is killed from outside;
    None for no limit. `environment`: the variables of its @environment. `start`: whether its
    processes are `fresh` or a `fork` of the program. `gang`: whether its attempts are members of
    gangs (num_parallel).
    """

    is_async: bool
    limit: float | None
    environment: Mapping[str, str] = {}
    start: str = "fresh"
    gang: bool = False


def needs_from(fields: Mapping[str, Any]) -> dict[str, StepNeeds]:
    """Return the needs of steps that another process has sent.

    Versions of aflow that do not send variables are supported.

    Args:
        fields: The fields of each step's StepNeeds, by the name of the step.

    Raises:
        TypeError: If the fields are not those of StepNeeds.
    """
    every = {name: StepNeeds(*each) for name, each in fields.items()}
    return {name: each._replace(environment=each.environment or {}) for name, each in every.items()}


def needs_of(definition: FlowDefinition, start: str = "fresh") -> dict[str, StepNeeds]:
    """Return the needs of every step of a flow, for this machine and for others.

    The variables are evaluated by the program that starts the run. The process of a task needs them
    before it runs the program, so it cannot evaluate them itself, and their sources (a variable of
    the shell, a file) may not exist elsewhere.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        start: `fresh` or `fork`: what processes are forked from, for steps without @process.
    """
    gangs = definition.graph.gangs
    return {
        name: StepNeeds(
            step.is_async,
            None
            if (timeout := step.decorator("timeout")) is None
            else timeout.total_seconds + BACKSTOP,
            {} if (variables := step.decorator("environment")) is None else dict(variables.vars),
            start=start if (found := step.decorator("process")) is None else found.start,
            gang=name in gangs,
        )
        for name, step in definition.steps.items()
    }


class ProcessExecutor:
    """Runs the attempts of one run in local processes.

    `needs` are those of the steps of the run; `request` describes how the flow is loaded. `first`
    is a zygote that has already been started. `start_zygote` starts another one if there is none or
    if it has crashed; it blocks and may be called in any thread. With `is_lazy`, no zygote is
    started before the first attempt. The tasks of `debug_step` get the terminal of this process,
    each in a separate process. `limit` is a limit of concurrent attempts that this executor shares
    with others; None for `max_workers` of its own.

    With an `admission`, attempts start when the resources that they request (`amounts`) are free on
    this machine; the members of `gangs` start together. `bounds` limit how many attempts of a step
    run at the same time.
    """

    def __init__(
        self,
        needs: Mapping[str, StepNeeds],
        request: LoadRequest,
        start_zygote: StartZygote,
        clock: Clock,
        *,
        first: ZygoteProcess | None = None,
        max_workers: int,
        isolation: str = "task",
        grace: float = GRACE,
        debug_step: str | None = None,
        is_lazy: bool = False,
        limit: ConcurrencyLimit | None = None,
        admission: SlotQueue | None = None,
        amounts: Amounts = lambda spec: dict(spec.resources),
        bounds: Mapping[str, int] | None = None,
        gangs: frozenset[str] = frozenset(),
    ) -> None:
        self._admission = admission
        self._amounts = amounts
        self.bounds: Mapping[str, int] = bounds or {}
        self._gangs = gangs
        self._members: dict[tuple[str, int | None], list[AttemptSpec]] = {}  # of incomplete gangs
        self._limits: dict[tuple[int, int], int] = {}  # bytes of memory, of running attempts
        self._peaks: dict[tuple[int, int], int] = {}
        self._measuring: asyncio.Task[None] | None = None
        self._debug_step = debug_step
        self._is_lazy = is_lazy
        self._terminal: Terminal | None = None
        self._needs = dict(needs)
        self._request = request
        self._start_zygote = start_zygote
        self._clock = clock
        self._first = first
        self._size = max_workers
        self._limit = limit or ConcurrencyLimit(max_workers)
        self._sequential = isolation == "worker"
        self._grace = grace
        self._stopping = False
        self._starting: asyncio.Task[None] | None = None  # starts a zygote
        self._waiting: list[tuple[AttemptSpec, Granted]] = []
        self._idle = asyncio.Event()
        self._link: Zygotes | None = None
        self._pools: dict[tuple[Any, ...], WorkerPool] = {}
        self._pool_of: dict[int, WorkerPool] = {}
        self._loop: asyncio.AbstractEventLoop
        self._context: RunContext
        self._reports: Reports

    @property
    def lookahead(self) -> int:
        """The number of attempts that the executor accepts in addition to those that can run.

        Attempts that wait for resources of this machine must not keep others from running.
        """
        ahead = self._size * (local.worker_processes.MAX_AHEAD - 1) if self._sequential else 0
        return ahead + sum(self.bounds.values())

    def recover(self, orphans: Sequence[Orphan]) -> Sequence[Orphan]:
        """Return all orphans as lost: their processes ended with their coordinator."""
        return orphans

    async def conclude(self) -> None:
        """Do nothing: no other process holds anything of the run."""

    async def leave(self) -> None:
        """Stop: local processes do not outlive the coordinator."""
        await self.stop()

    def forget(self, task: int, attempt: int) -> None:
        """Do nothing: no reports are kept here."""

    async def start(self, context: RunContext, reports: Reports) -> None:
        """Prepare to launch attempts of this run."""
        self._context = context
        self._reports = reports if self._admission is None else _Releasing(reports, self)
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
        # If the awaiting task is cancelled, the zygote starts anyway, and `stop` releases it.
        await asyncio.shield(self._starting)

    async def _start_one(self) -> None:
        self._use(await in_thread(self._start_zygote))

    def _use(self, process: ZygoteProcess) -> None:
        link = Zygotes(self._loop, process, self, self._request, self._context)
        self._link = link
        self._fresh = FreshProcesses(
            link, self._reports, self._clock, self._grace, self._learn, self._limit
        )
        self._limit.add(self._fresh)

    def _pool(self, step: str, granted: Granted) -> WorkerPool:
        """Return the worker pool of this step and of others with the same environment."""
        assert self._link is not None, "there are zygotes"
        needs = self._needs[step]
        environment = {**granted.early, **needs.environment}
        # Steps share a pool if their variables are equal: they cannot be changed in a process that
        # runs attempts of another step.
        shown = (*sorted(environment.items()), *sorted(granted.late.items()))
        key = (needs.is_async, needs.start, *shown)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = local.worker_processes.WorkerPool(
                self._link,
                self._reports,
                self._clock,
                size=self._size,
                start=needs.start,
                environment=environment,
                late=granted.late,
                coroutines=needs.is_async,
                grace=self._grace,
                limit_of=lambda step: self._needs[step].limit,
                owned=self._pool_of,
                learn=self._learn,
                limit=self._limit,
            )
            self._limit.add(pool)
        return pool

    def _leave_limit(self) -> None:
        self._limit.remove(self._fresh)
        for each in self._pools.values():
            self._limit.remove(each)

    def _learn(self, imported: Mapping[str, Any]) -> None:
        """Remember what the program has imported, as one of its processes has reported."""
        if self._link is not None:
            self._link.learn(imported)

    # ------------------------------------------------------------ attempts

    def launch(self, spec: AttemptSpec) -> None:
        """Start this attempt now, or as soon as its resources and a process are available."""
        admission = self._admission
        if admission is None:
            self._launch(spec, FREE)
            return
        try:
            # A fallback settles the step without running it, so it needs none of its resources.
            amounts = {} if spec.fallback else self._amounts(spec)
        except InvalidDecorator as error:
            self._loop.call_soon(self._refuse, spec, str(error))
            return
        if not amounts and self._sequential:
            self._launch(spec, FREE)  # its pool observes the limit of concurrent attempts
            return
        specs = self._together(spec)
        if not specs:
            return  # other members of its gang have not been launched yet
        lacking = admission.slots.lacking(demand_of(amounts), len(specs))
        if lacking:
            gang = f"the gang of {len(specs)} " if len(specs) > 1 else ""
            reason = f"Step {spec.step}: {gang}{too_much(lacking, admission.slots)}"
            for each in specs:
                self._loop.call_soon(self._refuse, each, reason)
            return
        admission.submit([self._key(each) for each in specs], specs, amounts, self._launch)

    def _together(self, spec: AttemptSpec) -> list[AttemptSpec]:
        """Return the attempts that start together with this one.

        These are all members of its gang once the last one has been launched, and none before. A
        retried member starts alone, since the others are running.
        """
        if spec.step not in self._gangs or spec.attempt > 0 or not spec.splits:
            return [spec]
        members = self._members.setdefault((spec.step, spec.split), [])
        members.append(spec)
        if len(members) < spec.splits:
            return []
        return self._members.pop((spec.step, spec.split))

    def _key(self, spec: AttemptSpec) -> Key:
        return id(self), *spec.attempt_key

    def _refuse(self, spec: AttemptSpec, reason: str) -> None:
        base.refuse(self._reports, spec.attempt_key, reason, self._clock.now())

    def _launch(self, spec: AttemptSpec, granted: Granted) -> None:
        needs = self._needs[spec.step]
        if granted.memory is not None and not needs.is_async:
            self._limits[spec.attempt_key] = granted.memory
            if self._measuring is None:
                # `stop` cancels it and waits for it.
                self._measuring = self._loop.create_task(self._measure())
        terminal = self._terminal if spec.step == self._debug_step else None
        if self._link is None:
            self._waiting.append((spec, granted))
            self._see_that_one_starts()
        elif terminal is None and (needs.is_async or self._sequential):
            self._pool(spec.step, granted).launch(spec)
        else:
            limit = needs.limit if terminal is None else None  # a debugger has no time limit
            self._fresh.launch(
                spec, limit, needs.start, needs.environment, terminal, granted=granted
            )

    def cancel(self, task: int, attempt: int) -> None:
        """Stop this attempt: SIGTERM to its process group, and SIGKILL after the grace period."""
        attempt_key = (task, attempt)
        if self._withdraw(attempt_key):
            self._end_unstarted(attempt_key, AttemptState.CANCELLED, CANCELLED)
            return
        if self._link is None:
            return  # no process runs; another executor may have the attempt
        self._fresh.cancel(task, attempt)
        for pool in self._pools.values():
            pool.cancel(task, attempt)

    def _withdraw(self, attempt_key: AttemptKey) -> bool:
        """Remove an attempt that waits for slots or for a process; False if it does not wait."""
        for waiting in self._waiting:
            if waiting[0].attempt_key == attempt_key:
                self._waiting.remove(waiting)
                return True
        for members in self._members.values():
            for spec in members:
                if spec.attempt_key == attempt_key:
                    members.remove(spec)
                    return True
        admission = self._admission
        return admission is not None and admission.withdraw((id(self), *attempt_key)) is not None

    def _end_unstarted(self, attempt_key: AttemptKey, state: AttemptState, reason: str) -> None:
        base.settle_soon(self._reports, attempt_key, state, reason, self._clock.now())

    def released(self, attempt_key: AttemptKey) -> None:
        """Release the slots of an attempt that has ended.

        Args:
            attempt_key: The numbers of its task and of itself.
        """
        self._limits.pop(attempt_key, None)
        self._peaks.pop(attempt_key, None)
        if self._admission is not None:
            self._admission.release((id(self), *attempt_key))

    def used(self, report: AttemptReport, usage: Usage) -> Usage:
        """Return the resource usage of an attempt, with the peak memory of all its processes.

        Args:
            report: The report of the attempt's main process.
            usage: The usage that the main process has measured.
        """
        peak = self._peaks.get(report.attempt_key)
        if peak is None or peak <= (usage.max_rss or 0):
            return usage
        return Usage(peak, usage.cpu)

    async def _measure(self) -> None:
        """Measure the memory of attempts that have a limit, and kill those that exceed it."""
        is_logged = False
        while True:
            await asyncio.sleep(MEASURED)
            try:
                await self._measure_once()
            except Exception as error:  # noqa: BLE001 -- no descriptor, no thread: try again
                if not is_logged:
                    _log.warning("The memory of tasks cannot be measured: %s", error)
                is_logged = True

    async def _measure_once(self) -> None:
        attempt_keys = {
            pid: attempt_key
            for attempt_key in self._limits
            if (pid := self._pid_of(attempt_key)) is not None
        }
        if not attempt_keys:
            return
        for pid, size in (await in_thread(memory_of, [*attempt_keys])).items():
            attempt_key = attempt_keys[pid]
            limit = self._limits.get(attempt_key)
            if limit is None:
                continue  # it has ended during the measurement
            self._peaks[attempt_key] = max(size, self._peaks.get(attempt_key, 0))
            if size > limit:
                reason = over_memory(limit, size)
                self._fresh.fail(*attempt_key, reason)
                for pool in self._pools.values():
                    pool.fail(*attempt_key, reason)

    def _pid_of(self, attempt_key: tuple[int, int]) -> int | None:
        if self._link is None:
            return None
        found = self._fresh.pid_of(*attempt_key)
        for pool in self._pools.values():
            found = found or pool.pid_of(*attempt_key)
        return found

    async def stop(self) -> None:
        """Interrupt all running attempts, wait until they have ended, and release the zygotes."""
        self._stopping = True
        self._interrupt_waiting()
        measuring, self._measuring = self._measuring, None
        if measuring is not None:
            measuring.cancel()
            await asyncio.wait([measuring])
        if self._starting is not None:
            await asyncio.wait([self._starting])  # `start` has raised its exception already
        if self._link is not None:
            self._fresh.interrupt()
            for each in self._pools.values():
                each.interrupt()
            self._note_idle()
            await self._idle.wait()
        # It may have crashed while this waited, or `stop` was called twice.
        link, self._link = self._link, None
        if link is not None:
            link.close()
            if not link.is_lent:
                await in_thread(link.reap)
            self._fresh.tidy()
            self._leave_limit()

    def _interrupt_waiting(self) -> None:
        """End the attempts that wait for slots."""
        waiting = [] if self._admission is None else self._admission.withdraw_all(id(self))
        waiting += [each for members in self._members.values() for each in members]
        self._members.clear()
        for spec in waiting:
            self._end_unstarted(spec.attempt_key, AttemptState.INTERRUPTED, INTERRUPTED)

    def _note_idle(self) -> None:
        live = self._fresh.at_once + sum(map(len, self._pools.values()))
        if self._stopping and not live:
            self._idle.set()

    # ------------------------------------------------------------ what zygotes report

    def forked(self, child: int, pid: int, at: float) -> None:
        """Handle a process that was forked."""
        self._pool_of.get(child, self._fresh).forked(child, pid, at)

    def exited(self, child: int, status: int, max_rss: int, cpu: float) -> None:
        """Handle a process that has ended."""
        self._pool_of.pop(child, self._fresh).exited(child, status, max_rss, cpu)
        self._note_idle()

    def not_forked(self, child: int, reason: str) -> None:
        """Handle a process that could not be forked."""
        self._pool_of.pop(child, self._fresh).not_forked(child, reason)
        self._note_idle()

    def refused(self, child: int, reason: str) -> None:
        """Fail the attempts of a process that cannot be forked as its step requests."""
        self._pool_of.pop(child, self._fresh).refused(child, reason)
        self._note_idle()

    def zygote_lost(self, reason: str) -> None:
        """Report all attempts as lost, since their processes are gone, and start a new zygote."""
        self._link = None
        self._see_that_one_starts()
        self._pool_of.clear()
        self._leave_limit()  # first, so that nothing is sent to the zygotes that have ended
        self._fresh.lost(reason)
        for each in self._pools.values():
            each.lost(reason)
        self._pools.clear()
        self._limit.feed()  # the attempts of other executors
        self._note_idle()

    def _see_that_one_starts(self) -> None:
        if not self._stopping and (self._starting is None or self._starting.done()):
            self._starting = self._loop.create_task(self._start_again())

    async def _start_again(self) -> None:
        try:
            await self._start_one()
        except Exception as error:  # noqa: BLE001 -- "can't start new thread" is a RuntimeError
            reason = f"The task was lost: no process could be started for it ({error})."
            for spec, _ in self._take_waiting():
                self._end_unstarted(spec.attempt_key, AttemptState.LOST, reason)
            return
        for spec, granted in self._take_waiting():
            self._launch(spec, granted)

    def _take_waiting(self) -> list[tuple[AttemptSpec, Granted]]:
        waiting, self._waiting = self._waiting, []
        return waiting


class _Releasing:
    """Forwards reports, and releases the slots of attempts that have ended."""

    def __init__(self, reports: Reports, executor: ProcessExecutor) -> None:
        self._executor = executor
        self._reports = reports
        self.handed = reports.handed
        self.started = reports.started
        self.logged = reports.logged
        self.grown = reports.grown

    def ended(self, report: AttemptReport, usage: Usage) -> None:
        """Forward the end of an attempt, and release its slots."""
        usage = self._executor.used(report, usage)
        self._reports.ended(report, usage)
        self._executor.released(report.attempt_key)
