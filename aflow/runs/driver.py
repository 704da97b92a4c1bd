"""Drives one run: turns what executors report into events, and executes the machine's commands.

A task that reads what another one has left is launched only when that is committed; others need
not wait. So a foreach keeps its workers busy while the disk takes its time, and still nothing is
ever built on a result that a power cut could take back.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, assert_never

from aflow._core.clock import ForwardClock
from aflow._core.records import dataclass
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

HEARTBEAT = 3.0  # seconds between signs of life
PROGRESS = 300.0  # seconds between reports of progress
SHOWN_AFTER = 0.5  # seconds until an attempt that goes on is seen to run by others
LONGEST_RECORDED_REASON = 2 * LONGEST_REASON  # characters of a reason that are recorded
AT_ONCE = 100  # results reused in one turn of the event loop, which takes some milliseconds
_STDERR = STREAMS.index("stderr")

P = ParamSpec("P")


def _guarded(method: Callable[P, None]) -> Callable[P, None]:
    """A callback of the event loop: a fault in it ends the run with that fault, rather than
    being logged somewhere while the run waits for ever."""

    @functools.wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 -- raised where the run is awaited
            driver = args[0]
            assert isinstance(driver, RunDriver), "only methods of the driver are guarded"
            driver._broken(error)

    return guarded


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverPorts:
    """What a driver works with: where the run is recorded, where its artifacts and logs are, what
    carries its attempts out, and the time."""

    metadata: MetadataStore
    store: ObjectStore
    executor: Executor
    clock: Clock


class RunDriver:
    """One run, from its first task to its end. `run` may be awaited once.

    The driver executes the commands of the `machine`. Its parts: GroupCommit writes what is to be
    recorded, CommitGate keeps what has to wait for that, AttemptLogs stores what attempts print,
    Handover knows the manifests that attempts read, EventPublisher notifies `watch`. What `watch`
    raises stops the run.

    `lease_holder` has acquired the run's lease, which the driver renews. A run that is recovered
    from another coordinator has a machine that stands where it ended, and its `unfinished`
    attempts. `takes_end(step, reason)` says whether a step is tried again that has raised nothing,
    and whose process was ended for this reason.
    """

    def __init__(
        self,
        new: NewRun,
        context: RunContext,
        machine: Machine,
        ports: DriverPorts,
        *,
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
        self._executor = ports.executor
        self._lease_holder = lease_holder
        self._leaves = False
        self._is_lost = False  # another coordinator has the run
        self._unfinished = unfinished
        # What the machine waits for is named by a time: it comes, though the clock be set back, or
        # that of our predecessor was ahead.
        self._clock = ForwardClock(ports.clock, run.heartbeat_at or 0.0)
        self._reusable = new.reusable
        self._reused: deque[tuple[LaunchAttempt, ReusableResult]] = deque()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[RunEnded] = self._loop.create_future()
        self._publisher = EventPublisher(watch, self._broken)
        self._commits = GroupCommit(
            ports.metadata, run.key, run.version, self._committed, self._broken
        )
        self._gate = CommitGate()
        self._logs = AttemptLogs(ports.store, run.flow, run.run, max_log_size, self._chunk_stored)
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
            The state in which it has ended.

        Raises:
            AflowError: The metadata, the datastore or the watcher has failed: the run is then as
                its last commit left it.
        """
        try:
            if self._unfinished is not None:
                await self._commits.flush()  # who still took it for its own run is refused now
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
            if self._unfinished is None:
                self._handle(RunStarted())
            else:
                self._go_on(self._unfinished, lost)
            return await self._end()
        except asyncio.CancelledError:  # before it had begun: there is nobody to stop it in order
            self._stop_here(RunState.CANCELLED, "The run was cancelled while it began.")
            raise
        except OSError as error:  # no descriptors or processes are available, say
            reason = f"No process could be started for its tasks: {error.strerror or error}."
            if self._unfinished is not None:  # others may go on with it
                self._leaves = True
                raise AflowError(f"{self._run.flow}/{self._run.run} is left. {reason}") from error
            self._stop_here(RunState.FAILED, f"The run could not begin. {reason}")
            return await self._end()
        finally:
            await to_the_end(self._release)

    async def _end(self) -> RunEnded:
        """How the run ends. It is not left half way when the program cancels its task (because it
        cancels all that it has, say): that stops the run."""
        while True:
            try:
                return await asyncio.shield(self._ended)
            except asyncio.CancelledError:
                self.cancel("The run was cancelled with the tasks of its program.")

    def _stop_here(self, state: RunState, reason: str) -> None:
        """Record that the run has ended like this, as it is."""
        if self._leaves or self._is_lost or self._final is not None or self._ended.done():
            return
        self._commits.pending.events.append((self._clock.now(), CancelRequested(reason)))
        self._finish(FinishRun(state, reason))
        self._commits.touch()

    async def _release(self) -> None:
        """Stop what runs, and release everything. May be called twice."""
        for timer in self._timers.values():
            timer.cancel()
        # What is out is somebody else's where the run is.
        left = self._leaves or self._is_lost
        try:
            if self._ended.done() and not self._ended.cancelled() and not self._ended.exception():
                await self._executor.conclude()
        finally:
            await (self._executor.leave() if left else self._executor.stop())
        await self._logs.close()
        if self._leaves:
            await self._commits.release_lease(self._lease_holder)
        await self._commits.close()
        self._publisher.flush()

    def cancel(self, reason: str) -> None:
        """Stop the run: live attempts are cancelled, nothing new starts. May be called again.

        Args:
            reason: Why, in one sentence; it is recorded with the run.
        """
        if self._machine.stopping is None:
            self._publish_stopping(reason)
        self._handle(CancelRequested(reason))

    def leave(self) -> None:
        """Stop driving the run, which goes on when another coordinator recovers it; `run` raises
        RunLeft. May be called again, and late, when it changes nothing."""
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

    # ------------------------------------------------------------ what another has left

    def _recover(self, unfinished: Sequence[Unfinished]) -> list[Orphan]:
        """The attempts that are out become ours; those that an executor may know of."""
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
        self._handle(RunStarted())  # changes nothing, unless our predecessor died before it said so
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
        self._wakes_at = None  # the machine may name the same time again: then we came early
        self._handle(TimePassed())

    def _note_stopping(self, commands: Sequence[Command]) -> None:
        """Publish that the run fails fast. (`cancel` publishes its own event.)"""
        end = self._machine.stopping
        if end is None or end.state is not RunState.FAILED:
            return
        if any(type(each) is CancelAttempt for each in commands):
            self._publish_stopping(end.reason)

    def _publish_stopping(self, reason: str) -> None:
        now, active = self._clock.now(), len(self._live)
        self._publisher.publish(RunStopping(now, self._run.run, reason, active))

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
        """Record a new task; whether the result of another one stands for it."""
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
                # Between this and the start of its attempt it waits: for room, or for a worker.
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
        """Let results stand that need not be computed: some at a time, since each may lead to more
        of them, and others want to have their turn in the event loop."""
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
        """A task has left something: what its manifest says is in commit `number`."""
        self._handover.keep(task, manifest)
        self._gate.settle(task, number)
        if self._reusable is not None:
            self._reusable.settled(task, manifest)

    def _launch(self, command: LaunchAttempt) -> None:
        if (command.task, command.attempt) in self._live:  # else: cancelled while it was held
            self._executor.launch(self._spec(command))

    def _spec(self, command: LaunchAttempt) -> AttemptSpec:
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
        )

    def _cancel_attempt(self, command: CancelAttempt) -> None:
        attempt_key = (command.task, command.attempt)
        if attempt_key not in self._live:
            return  # its result is being reused, which is its end
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
        """The machine's word on a task stands above the report: it may refuse a transition."""
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

    # ------------------------------------------------------------ what the executor says

    @_guarded
    def handed(self, task: int, attempt: int, handle: str, host: str = "") -> None:
        """Another executor finds the attempt by this."""
        live = self._live[(task, attempt)]
        live.handle, live.host = handle, host or live.host
        self._note_running(task, attempt, live)
        self._commits.touch()

    @_guarded
    def started(self, task: int, attempt: int, pid: int | None, at: float) -> None:
        """An attempt is running now."""
        live = self._live[(task, attempt)]
        live.pid, live.started_at = pid, at
        self._note_running(task, attempt, live)
        # The next commit says so. One is made for it only if nothing else comes for a while: short
        # tasks would pay for it.
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
        """An attempt has made items of its foreach: tasks for them may start, once what they read
        of it is committed."""
        live = self._live.get((task, attempt))
        if live is None or self._ended.done():
            return
        live.manifest = manifest
        self._note_running(task, attempt, live)
        self._note_left(task, manifest, self._commits.number)
        self._handle(ItemsReady(task, attempt, count))

    @_guarded
    def logged(self, task: int, attempt: int, stream: int, at: float, chunk: bytes) -> None:
        """An attempt has written something. What it left behind (a thread, a task of the event loop
        of coroutine steps) may write when it has ended: its log is stored, so that is dropped."""
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
        """An attempt is over: its log is stored first, then its end is committed."""
        live = self._live[(report.task, report.attempt)]
        live.is_over = True
        if report.manifest is None and report.state == AttemptState.FAILED.value:
            # Its process has died, and could not write down why. (The console says it anyhow.)
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
        if len(report.reason) > LONGEST_RECORDED_REASON:  # of whatever process has sent it
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
            at=self._clock.now(),  # by the clock that stamped the lines before it
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
        """A part of a log is in the store: readers may look for it; or it could not be stored."""
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
        for command in launches:
            self._launch(command)
        if self._final is not None and self._final[0] == number and not self._ended.done():
            ended = self._final[1]._replace(at=self._clock.now())
            self._publisher.publish(ended)
            self._ended.set_result(ended)

    def _broken(self, error: BaseException) -> None:
        """What the run rests on has failed: nothing more can be recorded, so it stops here."""
        if isinstance(error, VersionConflict):  # another coordinator has recovered it
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
