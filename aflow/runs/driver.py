"""Drive one run: turn executor reports into scheduler events, and execute the machine's commands.

A task is launched only after all results that it reads are committed; tasks with committed inputs
do not wait for other commits. So the workers of a foreach stay busy during a slow commit, and no
task ever depends on a result that a power failure could lose.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar, assert_never

from aflow._core.clock import ForwardClock
from aflow._core.threads import to_the_end
from aflow.errors import LONGEST_REASON, AflowError, RunLeft, RunTakenOver, VersionConflict, clipped
from aflow.executors.base import Orphan
from aflow.metadata.base import LEASE, SPIN, AttemptRecord, RunUpdate, TaskRecord
from aflow.runs.attempts import AttemptLogs, Handover, Kept, LiveAttempt
from aflow.runs.commit_gate import CommitGate, GroupCommit
from aflow.runs.events import (
    EventPublisher,
    LogLine,
    Progress,
    RunEnded,
    RunStarting,
    RunStopping,
    TaskEnded,
    TaskReused,
    TaskStarting,
    Watch,
)
from aflow.scheduler.messages import (
    AttemptEnded,
    CancelAttempt,
    CancelRequested,
    Command,
    Event,
    FinishRun,
    ItemsReady,
    LaunchAttempt,
    NoInputs,
    Outcome,
    RetryAttempt,
    RunStarted,
    TaskSettled,
    TimePassed,
    encode_inputs,
)
from aflow.scheduler.states import AttemptState, RunState
from aflow.task.spec import STREAMS, AttemptReport, AttemptSpec, RunContext

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.executors.base import Executor, Usage
    from aflow.metadata.base import LeaseState, MetadataStore
    from aflow.runs.cache.reuse import ReusableResult
    from aflow.runs.create import NewRun
    from aflow.runs.recovery import Unfinished
    from aflow.scheduler.machine import Machine
    from aflow.storage.base import ObjectStore

HEARTBEAT = 3.0  # seconds between renewals of the lease
PROGRESS = 300.0  # seconds between progress events
SHOWN_AFTER = 0.5  # seconds until a running attempt is recorded as running
LONGEST_RECORDED_REASON = 2 * LONGEST_REASON  # characters; longer reasons are clipped
AT_ONCE = 100  # results reused per iteration of the event loop: some milliseconds of work
_STDERR = STREAMS.index("stderr")

P = ParamSpec("P")
T = TypeVar("T")


def _guarded(method: Callable[P, T]) -> Callable[P, T | None]:
    """Wrap a callback of the event loop so that an exception in it ends the run with that error,
    instead of being logged by the loop while the run waits forever."""

    @functools.wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return method(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 -- raised where the run is awaited
            driver = args[0]
            assert isinstance(driver, RunDriver), "only methods of the driver are guarded"
            driver._broken(error)
            return None

    return guarded


class RunDriver:
    """Drives one run from its first task to its end. `run` may be awaited once.

    The driver executes the commands of the `machine`. Its parts: GroupCommit writes records,
    CommitGate holds what depends on a commit, AttemptLogs stores the output of attempts, Handover
    caches the manifests that attempts read, EventPublisher notifies `watch`. An exception in
    `watch` stops the run.

    `lease_holder` has acquired the run's lease; the driver renews it. To recover a run from another
    coordinator, pass a machine that has replayed the run's journal, and its `unfinished` attempts;
    `unfinished` is None for a new run. `takes_end(step, reason)` returns whether to retry a step
    whose process ended, for this reason, without raising an exception.
    """

    def __init__(
        self,
        new: NewRun,
        context: RunContext,
        machine: Machine,
        *,
        metadata: MetadataStore,
        store: ObjectStore,
        executor: Executor,
        clock: Clock,
        lease_holder: str,
        max_log_size: int,
        watch: Watch,
        unfinished: Sequence[Unfinished] | None,
        takes_end: Callable[[str, str], bool],
    ) -> None:
        run = new.record
        self._takes_end = takes_end
        self._machine = machine
        self._run = run
        self._context = context
        self._executor = executor
        self._lease_holder = lease_holder
        self._leaves = False
        self._is_lost = False  # another coordinator has the run
        self._is_started = False
        self._cancelled_early: str | None = None  # the reason, if it was cancelled before its start
        self._unfinished = unfinished
        # The machine's deadlines are absolute times: they must pass even if the clock is set back,
        # or the clock of the previous coordinator was ahead.
        self._clock = ForwardClock(clock, run.heartbeat_at or 0.0)
        self._reusable = new.reusable
        self._reused: deque[tuple[LaunchAttempt, ReusableResult]] = deque()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[RunEnded] = self._loop.create_future()
        self._publisher = EventPublisher(watch, self._broken)
        self._commits = GroupCommit(metadata, run.key, run.version, self._committed, self._broken)
        self._gate = CommitGate()
        self._logs = AttemptLogs(store, run.flow, run.run, max_log_size, self._chunk_stored)
        self._handover = Handover(new.parameters)
        self._live: dict[tuple[int, int], LiveAttempt] = {}
        self._final: tuple[int, RunEnded] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._retry_at: float | None = None
        self._refused = ""
        self._wakes_at: float | None = None
        self._commits.pending.late.append(new.facts)
        for task, attempt in new.settled:
            self._commits.pending.tasks.append(task)
            self._commits.pending.attempts[(task.task, attempt.attempt)] = attempt
            assert attempt.manifest is not None, "a task that is settled has left something"
            self._note_left(task.task, attempt.manifest, self._commits.number)

    async def run(self) -> RunEnded:
        """Drive the run to its end.

        Returns:
            The event that reports the end of the run, with its final state.

        Raises:
            AflowError: If the metadata store, the datastore or the watcher fails; the run stays in
                the state of its last commit.
        """
        try:
            if self._unfinished is not None:
                await self._commits.flush()  # fences off a previous coordinator that still writes
                if self._ended.done():
                    return await self._ended
            orphans = self._recover(self._unfinished or ())
            lost = self._executor.recover(orphans)
            await self._executor.start(self._context, self)
            run, again = self._run, self._unfinished is not None
            now, spins = self._clock.now(), run.kind == SPIN
            starting = RunStarting(
                at=now, flow=run.flow, run=run.run, origin=run.origin_run, spins=spins,
                recovered=again,
            )  # fmt: skip
            self._publisher.publish(starting)
            self._every(HEARTBEAT, "heartbeat", self._renew_lease)
            self._every(PROGRESS, "progress", self._report_progress)
            self._is_started = True
            if self._unfinished is not None:
                self._go_on(self._unfinished, lost)
            if self._cancelled_early is not None:
                self.cancel(self._cancelled_early)
            self._handle(RunStarted())  # no effect if it is cancelled, or was recorded before
            return await self._end()
        except asyncio.CancelledError:  # cancelled before the start: no attempts need to be stopped
            self._stop_here(RunState.CANCELLED, "The run was cancelled while it began.")
            raise
        except OSError as error:  # for example, no descriptors or processes are available
            reason = f"No process could be started for its tasks: {error.strerror or error}."
            if self._unfinished is not None:  # another coordinator may recover it
                self._leaves = True
                raise AflowError(f"{self._run.flow}/{self._run.run} is left. {reason}") from error
            self._stop_here(RunState.FAILED, f"The run could not begin. {reason}")
            return await self._end()
        finally:
            await to_the_end(self._release)

    async def _end(self) -> RunEnded:
        """Wait for the end of the run.

        If the program cancels the task of the run, the run is cancelled in order: this still waits
        until its attempts have ended and its end is recorded.
        """
        while True:
            try:
                return await asyncio.shield(self._ended)
            except asyncio.CancelledError:
                self.cancel("The run was cancelled with the tasks of its program.")

    def _stop_here(self, state: RunState, reason: str) -> None:
        """Record that the run has ended in this state, without stopping attempts."""
        if self._leaves or self._is_lost or self._final is not None or self._ended.done():
            return
        self._commits.pending.events.append((self._clock.now(), CancelRequested(reason)))
        self._finish(FinishRun(state, reason))
        self._commits.touch()

    async def _release(self) -> None:
        """Stop live attempts and release all resources. Idempotent."""
        self._stop_timers()
        # Live attempts of a run that was left or taken over belong to its next coordinator.
        left = self._leaves or self._is_lost
        try:
            if self._ended.done() and not self._ended.cancelled() and not self._ended.exception():
                await self._executor.conclude()
        finally:
            await (self._executor.leave() if left else self._executor.stop())
        await self._logs.close()
        self._stop_timers()  # attempts that started meanwhile have set one again
        if self._leaves:
            await self._commits.release_lease(self._lease_holder)
        await self._commits.close()
        self._publisher.flush()

    def _stop_timers(self) -> None:
        for timer in self._timers.values():
            timer.cancel()

    def cancel(self, reason: str) -> None:
        """Stop the run, or do so as soon as it has started: cancel live attempts and launch no
        more. Idempotent; has no effect on a run that has been left or taken over, because its next
        coordinator would find it cancelled.

        Args:
            reason: The reason, as one sentence; it is recorded with the run.
        """
        if self._ended.done():
            return
        if not self._is_started:  # watchers get RunStarting first
            self._cancelled_early = self._cancelled_early or reason
            return
        if self._machine.stopping is None:
            self._publish_stopping(reason, fails=False)
        self._handle(CancelRequested(reason))

    def leave(self) -> None:
        """Stop driving the run, so that another coordinator can recover it; `run` raises RunLeft.
        Idempotent; has no effect after the end of the run."""
        if self._final is None and not self._ended.done():
            self._leaves = True
            self._ended.set_exception(RunLeft.of(self._run.flow, self._run.run))

    def _renew_lease(self) -> None:
        self._commits.acquire_lease(self._lease_holder, LEASE, self._clock.now(), self._lease_is)

    @_guarded
    def _lease_is(self, lease: LeaseState) -> None:
        if self._final is not None or self._ended.done():
            return
        if not lease.mine:
            self._broken(RunTakenOver.of(self._run.flow, self._run.run))
        elif lease.cancel is not None:
            self.cancel(lease.cancel)

    # ------------------------------------------------------------ recovery

    def _recover(self, unfinished: Sequence[Unfinished]) -> list[Orphan]:
        """Adopt the attempts that have not ended. Returns those that the executor has to find."""
        orphans = []
        for launch, record, reused, _ in unfinished:
            if reused is not None:
                self._reused.append((launch, reused))
                continue
            live = self._live[(launch.task, launch.attempt)] = LiveAttempt(
                launch.step, launch.fallback
            )
            if record is not None:
                live.go_on(record)
                self._logs.go_on(launch.step, launch.task, launch.attempt, live.chunks)
            orphans.append(Orphan(self._spec(launch), live.handle, live.started_at))
        return orphans

    def _go_on(self, unfinished: Sequence[Unfinished], lost: Sequence[Orphan]) -> None:
        self._handle(RunStarted())  # if the previous coordinator has not recorded it
        if self._reused:
            self._loop.call_soon(self._reuse_some)
        for spec, *_ in lost:
            reason = "The task was interrupted: the coordinator that ran it is gone."
            report = AttemptReport(spec.task, spec.attempt, AttemptState.INTERRUPTED.value, reason)
            self._conclude(report, None, None)
        for launch, _, _, cancelled in unfinished:
            if cancelled and (launch.task, launch.attempt) in self._live:
                self._executor.cancel(launch.task, launch.attempt)
        self._handle(TimePassed())

    # ------------------------------------------------------------ events in

    def _handle(self, event: Event) -> None:
        now = self._clock.now()
        stopping = self._machine.stopping is not None
        commands = self._machine.handle(event, now)
        if self._machine.journaled(event):
            self._commits.pending.events.append((now, event))
        for command in commands:
            self._execute(command)
        wake_at = self._machine.wake_at
        if wake_at is not None and wake_at != self._wakes_at:
            self._wakes_at = wake_at
            self._at(wake_at - now, "retry", self._wake)
        if not stopping:
            self._note_stopping(commands)
        self._commits.touch()

    def _wake(self) -> None:
        self._wakes_at = None  # if the timer fired early, the machine returns the same time again
        self._handle(TimePassed())

    def _note_stopping(self, commands: Sequence[Command]) -> None:
        """Publish RunStopping if the run fails fast. (`cancel` publishes its own event.)"""
        end = self._machine.stopping
        if end is None or end.state is not RunState.FAILED:
            return
        if any(type(each) is CancelAttempt for each in commands):
            self._publish_stopping(end.reason, fails=True)

    def _publish_stopping(self, reason: str, *, fails: bool) -> None:
        now, active = self._clock.now(), len(self._live)
        self._publisher.publish(RunStopping(now, self._run.run, reason, active, fails))

    # ------------------------------------------------------------ commands out

    def _execute(self, command: Command) -> None:
        match command:
            case LaunchAttempt():
                self._launch_when_committed(command)
            case TaskSettled():
                self._note_settled(command)
            case RetryAttempt():
                self._retry_at = command.at
            case CancelAttempt():
                self._cancel_attempt(command)
            case FinishRun():
                self._finish(command)
            case _:
                assert_never(command)

    def _launch_when_committed(self, command: LaunchAttempt) -> None:
        if command.attempt == 0 and self._begin_task(command):
            return
        self._live[(command.task, command.attempt)] = LiveAttempt(command.step, command.fallback)
        commit = self._gate.commit_of(command.inputs)
        if commit is None:
            self._launch(command)
        else:
            self._gate.hold_attempt(command, commit)

    def _begin_task(self, command: LaunchAttempt) -> bool:
        """Record a new task. Returns whether it reuses the result of another one."""
        reused, cache_key = None, None
        if self._reusable is not None:
            reused = self._reusable.find(command)
            cache_key = self._reusable.cache_key(command.task)
        now = self._clock.now()
        ready_at = self._machine.ready_at(command.task)
        self._commits.pending.tasks.append(
            TaskRecord(
                task=command.task,
                step=command.step,
                # The time from here to the start of the attempt is spent queued, for a worker.
                created_at=now if ready_at is None else min(ready_at, now),
                split=command.split,
                index=command.index,
                inputs=encode_inputs(command.inputs),
                origin="" if reused is None else reused.origin,
                cache_key=cache_key,
            )
        )
        if reused is None:
            return False
        if not self._reused:
            self._loop.call_soon(self._reuse_some)
        self._reused.append((command, reused))
        return True

    @_guarded
    def _reuse_some(self) -> None:
        """Settle tasks with reused results, AT_ONCE at a time: each may make further tasks ready,
        and other callbacks must not wait for all of them."""
        if self._ended.done():
            return
        for _ in range(min(AT_ONCE, len(self._reused))):
            self._reuse(*self._reused[0])
            self._reused.popleft()
        if self._reused:
            self._loop.call_soon(self._reuse_some)

    def _reuse(self, command: LaunchAttempt, reused: ReusableResult) -> None:
        now = self._clock.now()
        task, attempt = command.task, command.attempt
        self._commits.pending.attempts[(task, attempt)] = AttemptRecord(
            task, attempt, AttemptState.SUCCEEDED, now, now, manifest=reused.manifest
        )
        number = self._commits.number
        self._note_left(task, reused.manifest, number)
        outcome = Outcome(AttemptState.SUCCEEDED, reused.transition)
        self._handle(AttemptEnded(task, attempt, outcome))
        run, step, origin = self._run.run, command.step, reused.origin
        event = TaskReused(
            at=now, run=run, step=step, task=task, origin=origin, cached=reused.cached
        )
        self._gate.hold_event(event, number)

    def _note_left(self, task: int, manifest: bytes, number: int) -> None:
        """Note that commit `number` contains this manifest of the task."""
        self._handover.keep(task, manifest)
        self._gate.settle(task, number)
        if self._reusable is not None:
            self._reusable.settled(task, manifest)

    def _launch(self, command: LaunchAttempt) -> None:
        if (command.task, command.attempt) in self._live:  # not cancelled while it was held
            self._executor.launch(self._spec(command))

    def _spec(self, command: LaunchAttempt) -> AttemptSpec:
        # Attempts without inputs and further attempts wait for no commit: an earlier coordinator
        # may have launched them, and died before that was written.
        waits = command.attempt == 0 and not isinstance(command.inputs, NoInputs)
        return AttemptSpec(
            step=command.step,
            task=command.task,
            attempt=command.attempt,
            inputs=encode_inputs(command.inputs),
            split=command.split,
            split_index=command.index,
            splits=command.count,
            opens_index=command.opens_index,
            final=command.final,
            fallback=command.fallback,
            manifests=self._handover.manifests_for(command.inputs),
            again=self._unfinished is not None and not waits,
        )

    def _cancel_attempt(self, command: CancelAttempt) -> None:
        attempt_key = (command.task, command.attempt)
        if attempt_key not in self._live:
            return  # the task is being settled with a reused result
        held = self._gate.withdraw(*attempt_key)
        if held is None:
            self._executor.cancel(*attempt_key)
        else:
            self._loop.call_soon(self._end_held, held)

    def _end_held(self, launch: LaunchAttempt) -> None:
        report = AttemptReport(
            launch.task, launch.attempt, AttemptState.CANCELLED.value, "The task was cancelled."
        )
        self._conclude(report, None, None)

    def _note_settled(self, command: TaskSettled) -> None:
        """Record a task as failed if the machine has refused its transition, although the attempt
        reported success."""
        if command.succeeded:
            return
        record = self._commits.pending.attempts.get((command.task, command.attempt))
        if record is not None and record.state is AttemptState.SUCCEEDED:
            self._commits.pending.attempts[(command.task, command.attempt)] = record._replace(
                state=AttemptState.FAILED, reason=command.reason
            )
            self._refused = command.reason

    def _finish(self, command: FinishRun) -> None:
        now = self._clock.now()
        self._commits.pending.run = RunUpdate(command.state, now, command.reason)
        ended = RunEnded(at=now, run=self._run.run, **command._asdict())
        self._final = (self._commits.number, ended)

    # ------------------------------------------------------------ callbacks of the executor

    @_guarded
    def handed(self, task: int, attempt: int, handle: str, host: str = "") -> asyncio.Future[None]:
        """Record the handle by which a later executor finds the attempt."""
        live = self._live[(task, attempt)]
        live.handle, live.host = handle, host or live.host
        self._note_running(task, attempt, live)
        written = self._commits.pending.written
        self._commits.touch()
        return written

    @_guarded
    def started(self, task: int, attempt: int, pid: int | None, at: float) -> None:
        """Record that an attempt has started."""
        live = self._live[(task, attempt)]
        live.pid, live.started_at = pid, at
        self._note_running(task, attempt, live)
        # The next commit contains the record. A commit is forced only after a delay: short tasks
        # would otherwise need an additional one.
        self._at(SHOWN_AFTER, "show", self._commits.touch)
        run, step, fallback = self._run.run, live.step, live.fallback
        event = TaskStarting(
            at=at, run=run, step=step, task=task, attempt=attempt, pid=pid, fallback=fallback
        )
        self._publisher.publish(event)

    def _note_running(self, task: int, attempt: int, live: LiveAttempt) -> None:
        self._commits.pending.attempts[(task, attempt)] = live.running(task, attempt)

    @_guarded
    def grown(self, task: int, attempt: int, count: int, manifest: bytes) -> None:
        """Handle new items of a foreach that is still running: tasks for them may start after the
        manifest is committed."""
        live = self._live.get((task, attempt))
        if live is None or self._ended.done():
            return
        live.manifest = manifest
        self._note_running(task, attempt, live)
        self._note_left(task, manifest, self._commits.number)
        self._handle(ItemsReady(task, attempt, count))

    @_guarded
    def logged(self, task: int, attempt: int, stream: int, at: float, chunk: bytes) -> None:
        """Add output of an attempt to its log.

        Output after the end of the attempt is discarded, because its log is stored already. A
        thread that outlives the step, or a task in the event loop of coroutine steps, may write it.
        """
        live = self._live.get((task, attempt))
        if live is None or live.is_over:
            return
        lines = self._logs.feed(live.step, task, attempt, stream, at, chunk)
        self._show(live, task, lines)

    def _show(
        self, live: LiveAttempt, task: int, lines: Sequence[tuple[float, int, bytes, bool]]
    ) -> None:
        run, step, pid = self._run.run, live.step, live.pid
        for at, stream, text, whole in lines:
            name = STREAMS[stream]
            line = LogLine(
                at=at, run=run, step=step, task=task, pid=pid, stream=name, text=text, whole=whole
            )
            self._publisher.publish(line)

    @_guarded
    def ended(self, report: AttemptReport, usage: Usage) -> None:
        """Handle the end of an attempt: store its log, then commit its end."""
        live = self._live[(report.task, report.attempt)]
        live.is_over = True
        if report.manifest is None and report.state == AttemptState.FAILED.value:
            # The process crashed and could not write the reason to its log, so append it here.
            text = f"{report.reason}\n".encode("utf-8", "backslashreplace")
            now = self._clock.now()
            self._logs.feed(live.step, report.task, report.attempt, _STDERR, now, text)
        lines, log = self._logs.finish(report.task, report.attempt, self._clock.now())
        self._show(live, report.task, lines)
        if log is not None and log.unstored is not None:
            log.unstored.add_done_callback(lambda _: self._conclude(report, usage, log))
        else:
            self._conclude(report, usage, log)

    @_guarded
    def _conclude(self, report: AttemptReport, usage: Usage | None, log: Kept | None) -> None:
        if self._ended.done():
            return
        if len(report.reason) > LONGEST_RECORDED_REASON:  # processes may report any length
            report = report._replace(reason=clipped(report.reason))
        live = self._live.pop((report.task, report.attempt))
        record = live.ended(report, usage, log, self._clock.now())
        pending, number = self._commits.pending, self._commits.number
        pending.attempts[(report.task, report.attempt)] = record
        if report.manifest is not None and report.state == AttemptState.SUCCEEDED.value:
            self._note_left(report.task, report.manifest, number)
        self._retry_at, self._refused = None, ""
        outcome = report.outcome
        died = outcome.state is AttemptState.FAILED and report.manifest is None
        if died and outcome.retryable and not self._takes_end(live.step, report.reason):
            outcome = outcome._replace(retryable=False)
        self._handle(AttemptEnded(report.task, report.attempt, outcome))
        self._gate.hold_event(self._ended_event(live, report, record), number)

    def _ended_event(
        self, live: LiveAttempt, report: AttemptReport, record: AttemptRecord
    ) -> TaskEnded:
        state = AttemptState.FAILED if self._refused else record.state
        return TaskEnded(
            at=self._clock.now(),  # the clock of the log lines before it
            run=self._run.run,
            step=live.step,
            task=report.task,
            attempt=report.attempt,
            pid=live.pid,
            state=state.value,
            reason=self._refused or report.reason,
            retry_at=self._retry_at,
            splits=report.splits if state is AttemptState.SUCCEEDED else None,
        )

    def _chunk_stored(self, task: int, attempt: int, chunks: int, error: Exception | None) -> None:
        """Record a stored chunk of a log, so that readers find it; `error` if it was not stored."""
        if error is not None:
            self._broken(error)
            return
        live = self._live.get((task, attempt))
        if live is not None and live.started_at is not None:
            live.chunks = chunks
            self._note_running(task, attempt, live)
            self._commits.touch()

    # ------------------------------------------------------------ commits

    @_guarded
    def _committed(self, number: int) -> None:
        events, launches = self._gate.open(number)
        for event in events:
            self._publisher.publish(event)
            if type(event) is TaskEnded:
                self._executor.forget(event.task, event.attempt)
        if not self._ended.done():  # an attempt of a run that was left is its next coordinator's
            for command in launches:
                self._launch(command)
        if self._final is not None and self._final[0] == number and not self._ended.done():
            ended = self._final[1]._replace(at=self._clock.now())
            self._publisher.publish(ended)
            self._ended.set_result(ended)

    def _broken(self, error: BaseException) -> None:
        """Stop driving the run because of an error: nothing more can be recorded."""
        if isinstance(error, VersionConflict):  # another coordinator has recovered the run
            error = RunTakenOver.of(self._run.flow, self._run.run)
        if not self._ended.done():
            self._is_lost = isinstance(error, RunTakenOver)
            self._ended.set_exception(error)

    # ------------------------------------------------------------ watching and time

    def _report_progress(self) -> None:
        counts = self._machine.counts()
        begun = {each.step for each in self._live.values()}
        running = (each.step for each in self._live.values() if each.started_at is not None)
        rest = (step for step, c in counts.items() if step not in begun and not c.done + c.failed)
        self._publisher.publish(
            Progress(
                at=self._clock.now(),
                run=self._run.run,
                running=Counter(running),
                done={step: c.done for step, c in counts.items() if c.done},
                failed={step: c.failed for step, c in counts.items() if c.failed},
                queued={step: c.ready for step, c in counts.items() if c.ready},
                unstarted=tuple(rest),
            )
        )

    def _every(self, seconds: float, name: str, what: Callable[[], None]) -> None:
        def again() -> None:
            what()
            self._every(seconds, name, what)

        self._at(seconds, name, again)

    def _at(self, seconds: float, name: str, what: Callable[[], None]) -> None:
        timer = self._timers.get(name)
        if timer is not None:
            timer.cancel()
        self._timers[name] = self._loop.call_later(max(0.0, seconds), what)
