"""The state machine of one run: it takes events with their times, and returns commands.

It does no I/O and uses neither a clock nor randomness: the same events at the same times always
lead to the same state. A run is recovered by replaying its journal into a new machine. The machine
stores only tasks that are not finished; finished tasks are counters (see tasks.py and board.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, assert_never

from aflow.flow.graph import Graph, Kind
from aflow.scheduler.board import Board
from aflow.scheduler.messages import (
    AttemptEnded,
    AttemptStarted,
    CancelAttempt,
    CancelRequested,
    Command,
    Event,
    FinishRun,
    FromForeach,
    FromTask,
    ItemsReady,
    LaunchAttempt,
    NoInputs,
    Outcome,
    RetryAttempt,
    RunStarted,
    TaskSettled,
    TimePassed,
    Transition,
)
from aflow.scheduler.retry import StepPolicy
from aflow.scheduler.states import RUN_MOVES, AttemptState, IllegalMove, RunState, TaskState
from aflow.scheduler.tasks import Branches, Group, Items, LiveStep, LiveTask, StepCounts, steps_of

# Check transitions against the graph.
#
# The runner checks them too, with better messages. But a report may come from another machine with
# another version of the code, and an invalid transition would corrupt the run.


FAN_OUT = frozenset({Kind.FOREACH, Kind.PARALLEL})


def disagreement(
    task: LiveTask, transition: Transition | None, max_num_splits: int, max_workers: int
) -> str | None:
    """Return one sentence on why the graph does not allow this transition; None if it does.

    Args:
        task: The task.
        transition: The transition that the task reported; None if it reported none.
        max_num_splits: The maximum number of items of a foreach.
        max_workers: The maximum number of tasks that run at the same time.
    """
    step = task.step
    if transition is None:
        return f"Step {step.name} succeeded without saying which steps follow it."
    if not _agrees(step, transition):
        return _mismatch(step, transition)
    if step.kind is Kind.PARALLEL:
        return _too_large(step, transition.count, max_workers)
    if task.stream is not None and (transition.count or 0) < task.stream.known:
        return (
            f"Foreach in step {step.name} has {transition.count} items, but tasks for "
            f"{task.stream.known} have begun."
        )
    if step.kind in FAN_OUT:
        return _too_many(step, transition.count, max_num_splits)
    if step.kind is Kind.END:
        if task.group is not None:
            return (
                f"Step {step.name} ends the flow inside the split that step "
                f"{task.group.step.name} opened."
            )
    elif step.kind is not Kind.SPLIT:
        target = next_step(step, transition)
        if target.is_join and (task.group is None or task.group.join is not target):
            return (
                f"Step {step.name} leads into the join {target.name}, but no split that "
                f"{target.name} closes is open there."
            )
    return None


def _too_large(step: LiveStep, count: int | None, max_workers: int) -> str | None:
    if count is None or count <= min(max_workers, step.targets[0].bound):
        return None
    if count > max_workers:
        return (
            f"Step {step.name} starts a gang of {count} members, which all run at once, and only "
            f"{max_workers} tasks may: start the run with --max-workers {count}."
        )
    return (
        f"Step {step.name} starts a gang of {count} members, which all run at once, and only "
        f"{step.targets[0].bound} tasks of {step.targets[0].name} may."
    )


def next_step(step: LiveStep, transition: Transition) -> LiveStep:
    """Return the step that follows a linear step or a switch.

    Args:
        step: The step.
        transition: The transition that its task reported.
    """
    return step.targets[0 if step.kind is Kind.LINEAR else step.next.index(transition.steps[0])]


def _agrees(step: LiveStep, transition: Transition) -> bool:
    if step.kind is Kind.SWITCH:
        if len(transition.steps) != 1 or transition.steps[0] not in step.next:
            return False
    elif transition.steps != step.next:
        return False
    if step.kind in FAN_OUT:
        return type(transition.count) is int and transition.count >= 0
    return transition.count is None


def _mismatch(step: LiveStep, transition: Transition) -> str:
    actual = ", ".join(map(str, transition.steps)) or "nowhere"
    items = "" if transition.count is None else f" (for {transition.count!r} items)"
    may = (" or " if step.kind is Kind.SWITCH else ", ").join(step.next) or "nowhere"
    items_too = " for each item" if step.kind in FAN_OUT else ""
    return (
        f"Step {step.name} went to {actual}{items}, but by the graph of the flow it goes to "
        f"{may}{items_too}."
    )


def _too_many(step: LiveStep, count: int | None, limit: int) -> str | None:
    if step.kind is not Kind.FOREACH or count is None or count <= limit:
        return None
    return (
        f"Foreach in step {step.name} yielded {count} child steps which is more than the current "
        f"maximum of {limit} children. You can raise the maximum with the --max-num-splits option."
    )


_FAILURES = frozenset({AttemptState.FAILED, AttemptState.TIMED_OUT})


class Machine(Protocol):
    """The interface between the coordinator of a run and its state machine."""

    @property
    def stopping(self) -> FinishRun | None:
        """How the run will end; None until that is decided."""

    @property
    def wake_at(self) -> float | None:
        """The time at which the machine needs a TimePassed event; None if it needs none."""

    def handle(self, event: Event, now: float) -> list[Command]:
        """Apply an event to the state of the run.

        Args:
            event: The event.
            now: The current time, in seconds since the epoch.

        Returns:
            The commands to execute, in order.
        """

    def journaled(self, event: Event) -> bool:
        """Return whether the event changed the machine, and so must be stored in the journal.

        Args:
            event: The event that was handled last.
        """

    def counts(self) -> Mapping[str, StepCounts]:
        """Return the number of tasks in each state, by step."""

    def ready_at(self, task: int) -> float | None:
        """Return the time at which all inputs of a live task were available; None if unknown.

        Args:
            task: The number of the task within its run.
        """


class RunMachine:
    """Decides what one run does next.

    At most `max_workers + lookahead` attempts are live (launched and not yet reported as ended);
    `lookahead` is how many attempts an executor may queue behind busy workers. `max_workers` in the
    policy of a step also limits the attempts of that step. `max_num_splits` is the maximum number
    of items of a foreach. With `fail_fast` the first task that fails cancels all others; without
    it, live attempts may finish.

    Raises InvalidFlow if the graph cannot be executed, and ValueError if the limits allow no task.
    """

    def __init__(
        self,
        graph: Graph,
        policies: Mapping[str, StepPolicy],
        *,
        max_workers: int,
        lookahead: int = 0,
        max_num_splits: int = 100,
        fail_fast: bool = False,
    ) -> None:
        if max_workers < 1 or lookahead < 0:
            raise ValueError(
                f"a run needs max_workers of 1 or more and lookahead of 0 or more, "
                f"not {max_workers} and {lookahead}"
            )
        self._start = graph.start
        self._board = Board(steps_of(graph, policies), max_workers + lookahead, max_workers)
        self._max_num_splits = max_num_splits
        self._max_workers = max_workers
        self._fail_fast = fail_fast
        self._state = RunState.PENDING
        self._stop: FinishRun | None = None  # how the run will end, once that is decided
        self._cancelled = False  # whether live attempts have been cancelled
        self._splits = 0  # the number of splits opened so far
        self._handled: Event | None = None  # the latest event, if it changed the machine

    # ------------------------------------------------------------------ events

    def handle(self, event: Event, now: float) -> list[Command]:
        """Apply an event that happened at `now` (seconds since the epoch); return the commands.

        Outdated, duplicate and unknown reports, and all events after the end of the run, change
        nothing and return no commands. The content of an event never raises an exception.
        """
        commands: list[Command] = []
        self._handled = None
        self._board.now = now
        if self._state is RunState.RUNNING:
            match event:
                case AttemptEnded():
                    self._attempt_ended(event, now, commands)
                case AttemptStarted():
                    self._attempt_started(event)
                case ItemsReady():
                    self._items_ready(event, commands)
                case TimePassed():
                    self._time_passed(event, now, commands)
                case CancelRequested():
                    self._cancel(event, commands)
                case RunStarted():  # a duplicate
                    pass
                case _:
                    assert_never(event)
        elif self._state is RunState.PENDING:
            if type(event) is RunStarted:
                self._run_started(event, commands)
            elif type(event) is CancelRequested:
                self._cancel(event, commands)
        return commands

    def journaled(self, event: Event) -> bool:
        """Return whether `event`, which was handled last, has changed the machine.

        Only such events must be stored: replaying them alone leads to the same state.
        """
        return self._handled is event

    def ready_at(self, task: int) -> float | None:
        """Return when all inputs of a live task were available; None if the task is not live."""
        found = self._board.live.get(task)
        return None if found is None else found.ready_at

    def _run_started(self, event: RunStarted, commands: list[Command]) -> None:
        self._handled = event
        self._move(RunState.RUNNING)
        self._board.add(LiveTask(self._board.steps[self._start], None, 0, NoInputs()))
        self._go_on(commands)

    def _attempt_started(self, event: AttemptStarted) -> None:
        task = self._board.live.get(event.task)
        if task is None or task.attempt != event.attempt or task.handle is not None:
            return
        self._handled = event
        self._board.begin(task, event.handle)

    def _items_ready(self, event: ItemsReady, commands: list[Command]) -> None:
        task = self._board.live.get(event.task)
        if task is None or task.attempt != event.attempt or self._stop is not None:
            return
        if not task.step.may_stream or event.count > self._max_num_splits:
            return
        known = 0 if task.stream is None else task.stream.known
        if event.count <= known:
            return
        self._handled = event
        if task.stream is None:
            task.stream = Items(self._next_split(), task, _join_of(task), event.count, grows=True)
            self._board.open(task.stream)
        else:
            self._board.grow(task.stream, event.count)
        self._go_on(commands)

    def _attempt_ended(self, event: AttemptEnded, now: float, commands: list[Command]) -> None:
        task = self._board.live.get(event.task)
        if task is None or task.attempt != event.attempt:
            return
        self._handled = event
        self._board.end(task)
        outcome = event.outcome
        if outcome.state is AttemptState.SUCCEEDED:
            self._succeeded(task, outcome.transition, commands)
        elif self._stop is None:
            self._try_again(task, outcome, now, commands)
        elif outcome.state in _FAILURES:
            self._settle(task, TaskState.FAILED, task.last_reason(outcome), commands)
        else:
            reason = outcome.reason or "The task was not finished: the run is stopping."
            self._settle(task, TaskState.CANCELLED, reason, commands)
        self._go_on(commands)

    def _time_passed(self, event: TimePassed, now: float, commands: list[Command]) -> None:
        if self._board.wake(now):
            self._handled = event
            self._go_on(commands)

    def _cancel(self, event: CancelRequested, commands: list[Command]) -> None:
        if self._cancelled:
            return
        self._handled = event
        if self._stop is None:
            reason = event.reason or "The run was cancelled."
            self._stop_with(FinishRun(RunState.CANCELLED, reason), commands)
        self._cancel_live(commands)
        self._go_on(commands)

    # ------------------------------------------------------------------ ends of attempts

    def _succeeded(
        self, task: LiveTask, transition: Transition | None, commands: list[Command]
    ) -> None:
        fault = disagreement(task, transition, self._max_num_splits, self._max_workers)
        if fault is not None:
            self._fail(task, fault, commands)
            return
        task.move(TaskState.SUCCEEDED)
        task.step.done += 1
        commands.append(TaskSettled(task.number, task.attempt, True))
        if self._stop is None and transition is not None:
            self._follow(task, transition)

    def _try_again(
        self, task: LiveTask, outcome: Outcome, now: float, commands: list[Command]
    ) -> None:
        wait = task.wait_after(outcome)
        # Another attempt would create the items again, but tasks for them have already started.
        if wait is None or task.stream is not None:
            self._fail(task, task.last_reason(outcome), commands)
            return
        commands.append(RetryAttempt(task.number, task.attempt, now + wait))
        if wait > 0:
            self._board.wait(task, now + wait)
        else:
            self._board.again(task)

    def _fail(self, task: LiveTask, reason: str, commands: list[Command]) -> None:
        """Settle a task that has no attempts left; the run fails unless it is already stopping."""
        self._settle(task, TaskState.FAILED, reason, commands)
        if self._stop is None:
            end = FinishRun(RunState.FAILED, reason, task.step.name, task.number)
            self._stop_with(end, commands)
            if self._fail_fast:
                self._cancel_live(commands)

    def _settle(
        self, task: LiveTask, state: TaskState, reason: str, commands: list[Command]
    ) -> None:
        task.move(state)
        if state is TaskState.FAILED:
            task.step.failed += 1
        else:
            task.step.cancelled += 1
        commands.append(TaskSettled(task.number, task.attempt, False, reason))

    # ------------------------------------------------------------------ tokens

    def _follow(self, task: LiveTask, transition: Transition) -> None:
        """Make the successors of a finished task ready."""
        kind = task.step.kind
        if kind is Kind.LINEAR or kind is Kind.SWITCH:
            self._enter(next_step(task.step, transition), task.group, task.index, task.number)
        elif kind is Kind.SPLIT:
            self._open_branches(task)
        elif kind is Kind.END:
            self._stop = FinishRun(RunState.SUCCEEDED)
        else:
            self._open_items(task, transition.count or 0)

    def _enter(self, step: LiveStep, group: Group | None, index: int, task: int) -> None:
        """Move a token from `task` to `step`, which may be the join of its group."""
        if group is None or step is not group.join:
            self._board.add(LiveTask(step, group, index, FromTask(task)))
        elif group.arrive(index, task):
            self._board.add(LiveTask(step, group.group, group.index, group.inputs()))

    def _open_branches(self, task: LiveTask) -> None:
        branches = Branches(self._next_split(), task, _join_of(task))
        for index, target in enumerate(task.step.targets):
            if target is branches.join:
                self._enter(target, branches, index, task.number)
            else:
                self._board.add(LiveTask(target, branches, index, branches.entry))

    def _open_items(self, task: LiveTask, count: int) -> None:
        join = _join_of(task)
        if task.stream is not None:
            self._close_stream(task.stream, count)
        elif count:
            self._board.open(Items(self._next_split(), task, join, count))
        else:
            nothing = FromForeach(task.number, join.inlets, 0)
            self._board.add(LiveTask(join, task.group, task.index, nothing))

    def _close_stream(self, items: Items, count: int) -> None:
        """Set the final number of items; start the join if all of them have already arrived."""
        self._board.grow(items, count)
        items.expected = count
        if items.arrived == count:
            self._board.add(LiveTask(items.join, items.group, items.index, items.inputs()))

    def _next_split(self) -> int:
        self._splits += 1
        return self._splits

    # ------------------------------------------------------------------ continuing and stopping

    def _go_on(self, commands: list[Command]) -> None:
        """Launch all tasks that may start, or finish a stopping run that has no live attempts."""
        if self._stop is None:
            launch = self._board.launch()
            while launch is not None:
                commands.append(launch)
                launch = self._board.launch()
        elif not self._board.live:
            self._move(self._stop.state)
            commands.append(self._stop)

    def _stop_with(self, end: FinishRun, commands: list[Command]) -> None:
        """Stop launching attempts; the run ends with `end` as soon as no attempt is live."""
        self._stop = end
        for task in self._board.clear():
            self._settle(task, TaskState.CANCELLED, f"Not tried again: {end.reason}", commands)

    def _cancel_live(self, commands: list[Command]) -> None:
        self._cancelled = True
        commands.extend(CancelAttempt(each.number, each.attempt) for each in self._live())

    def _move(self, state: RunState) -> None:
        if state not in RUN_MOVES[self._state]:
            raise IllegalMove(f"The run is {self._state} and cannot become {state}.")
        self._state = state

    # ------------------------------------------------------------------ queries

    @property
    def state(self) -> RunState:
        """The state of the run; it stays RUNNING while attempts of a stopping run are live."""
        return self._state

    @property
    def stopping(self) -> FinishRun | None:
        """How the run will end; None until that is decided."""
        return self._stop

    @property
    def wake_at(self) -> float | None:
        """The time of the earliest retry, when TimePassed is due; None if no task waits."""
        waiting = self._board.waiting
        return waiting[0][0] if waiting else None

    def _live(self) -> list[LiveTask]:
        return sorted(self._board.live.values(), key=lambda task: task.number)

    def live(self) -> list[LaunchAttempt]:
        """Return the attempts that were launched and have not ended, sorted by task number."""
        return [task.launch for task in self._live()]

    def counts(self) -> dict[str, StepCounts]:
        """Return the number of tasks in each state, by step in source order."""
        return {name: step.counts() for name, step in self._board.steps.items()}


def _join_of(task: LiveTask) -> LiveStep:
    join = task.step.join
    assert join is not None, "steps_of refuses a split that no join closes"
    return join


class SingleTask:
    """A machine for a run of one task, described by `launch`: one attempt, no retries.

    The run succeeds if the attempt does and fails otherwise, unless it was cancelled before.
    """

    def __init__(self, launch: LaunchAttempt) -> None:
        self._launch = launch
        self._begun = False
        self._ended: RunState | None = None
        self._handled: Event | None = None
        self.stopping: FinishRun | None = None
        self.wake_at: float | None = None

    def handle(self, event: Event, now: float) -> list[Command]:
        """Apply an event; return the commands. The content of an event never raises."""
        self._handled = None
        if self._ended is not None:
            return []
        if type(event) is RunStarted and not self._begun:
            return self._start(event)
        if type(event) is CancelRequested and self.stopping is None:
            return self._cancel(event)
        if type(event) is AttemptEnded and event.task == self._launch.task:
            return self._end(event)
        return []

    def journaled(self, event: Event) -> bool:
        """Return whether `event`, which was handled last, has changed the machine."""
        return self._handled is event

    def counts(self) -> Mapping[str, StepCounts]:
        """Return the number of tasks of the step in each state."""
        counts = StepCounts(
            ready=not self._begun,
            queued=self._begun and self._ended is None,
            running=0,
            waiting=0,
            done=self._ended is RunState.SUCCEEDED,
            failed=self._ended is RunState.FAILED,
            cancelled=self._ended is RunState.CANCELLED,
        )
        return {self._launch.step: counts}

    def ready_at(self, task: int) -> float | None:
        """Return None: the inputs were available before the run started."""
        return None

    def _start(self, event: Event) -> list[Command]:
        self._handled = event
        self._begun = True
        return [self._launch]

    def _cancel(self, event: CancelRequested) -> list[Command]:
        self._handled = event
        reason = event.reason or "The run was cancelled."
        self.stopping = FinishRun(RunState.CANCELLED, reason)
        if self._begun:
            return [CancelAttempt(self._launch.task, self._launch.attempt)]
        self._ended = RunState.CANCELLED
        return [self.stopping]

    def _end(self, event: AttemptEnded) -> list[Command]:
        self._handled = event
        outcome, task, step = event.outcome, self._launch.task, self._launch.step
        succeeded = outcome.state is AttemptState.SUCCEEDED
        settled = TaskSettled(task, event.attempt, succeeded, outcome.reason)
        if self.stopping is None and succeeded:
            self.stopping = FinishRun(RunState.SUCCEEDED)
        elif self.stopping is None:
            self.stopping = FinishRun(RunState.FAILED, outcome.reason, step, task)
        self._ended = self.stopping.state
        return [settled, self.stopping]
