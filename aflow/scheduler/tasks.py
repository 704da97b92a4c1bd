"""The in-memory steps and tasks of the state machine of a run.

A task is an object from the moment it becomes ready until it finishes; then it is only counted in
its step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Union

from aflow._core.records import NamedTuple
from aflow.errors import InvalidFlow
from aflow.flow.graph import Graph, Kind, Node
from aflow.scheduler.messages import (
    FromBranches,
    FromForeach,
    FromTask,
    Inputs,
    LaunchAttempt,
    Outcome,
)
from aflow.scheduler.retry import MAX_FALLBACKS, MAX_LOSSES, StepPolicy
from aflow.scheduler.states import TASK_MOVES, AttemptState, IllegalMove, TaskState

# Open splits: the token model.
#
# A task is a token. Every token has a place: the innermost open split around it and its index there
# (None and 0 outside of any split). A split saves the place of its own task in a group and gives
# each child a place in the group. The join counts arrivals; when all have arrived, it continues at
# the saved place. Groups nest to any depth, as a chain of parents.
#
# A foreach is a cursor: it counts the items that have started; an item that has not started is not
# an object. Finished items are only counted, too. So the memory that a foreach takes depends on its
# live items, not on its width.


Place = tuple[int | None, int | None, int | None]
"""The place in the innermost foreach: the task that opened it, the index, the width."""

UNKNOWN = -1  # the number of items of a foreach whose task still produces them

NOWHERE: Place = (None, None, None)


class _Split:
    """The base class of open splits.

    `serial` is the number of the split within its run, from 1. `task` is the number of the task
    that opened it, at the step `step`; `group` and `index` are the place of that task. `entry` is
    the inputs object that all first tasks share; a task whose inputs are this object is a first
    one.
    """

    __slots__ = (
        "arrived", "entry", "expected", "group", "index", "join", "serial", "step", "task",
    )  # fmt: skip

    def __init__(self, serial: int, task: LiveTask, join: LiveStep, expected: int) -> None:
        self.serial = serial
        self.task = task.number
        self.step = task.step
        self.join = join
        self.group: Group | None = task.group
        self.index = task.index
        self.entry = FromTask(task.number)
        self.expected = expected
        self.arrived = 0


class Items(_Split):
    """An open foreach or gang; `next` is the index of the first item that has not started.

    The items of a gang start together, because its members may wait for each other. `known` is the
    number of items so far; `expected` is UNKNOWN until the total is known. `ready_at` is when the
    items that have not started became ready.
    """

    __slots__ = ("body", "gang", "known", "next", "ready_at")

    def __init__(
        self, serial: int, task: LiveTask, join: LiveStep, count: int, *, grows: bool = False
    ) -> None:
        super().__init__(serial, task, join, UNKNOWN if grows else count)
        self.known = count
        self.body = task.step.targets[0]
        self.gang = task.step.kind is Kind.PARALLEL
        self.next = 0
        self.ready_at = 0.0

    def arrive(self, index: int, task: int) -> bool:
        """Count an item that has reached the join.

        Args:
            index: The index of the item.
            task: The number of its last task within the run.

        Returns:
            True if all items have arrived.
        """
        self.arrived += 1
        return self.arrived == self.expected

    def inputs(self) -> FromForeach:
        """Return the inputs of the join."""
        return FromForeach(self.task, self.join.inlets, self.expected)

    def place(self, index: int) -> Place:
        """Return the innermost foreach of a task at this index: this one.

        Args:
            index: The index of the item.
        """
        return (self.task, index, None if self.expected == UNKNOWN else self.expected)

    def opens(self, task: LiveTask) -> bool:
        """Return whether the task is the first task of its item.

        Args:
            task: The task.
        """
        return task.inputs is self.entry


class Branches(_Split):
    """An open split into branches; `last` has the task that arrived from each branch, or 0."""

    __slots__ = ("last",)

    def __init__(self, serial: int, task: LiveTask, join: LiveStep) -> None:
        super().__init__(serial, task, join, len(task.step.targets))
        self.last = [0] * self.expected

    def arrive(self, index: int, task: int) -> bool:
        """Count a branch that has reached the join.

        Args:
            index: The index of the branch.
            task: The number of its last task within the run.

        Returns:
            True if all branches have arrived.
        """
        self.last[index] = task
        self.arrived += 1
        return self.arrived == self.expected

    def inputs(self) -> FromBranches:
        """Return the inputs of the join."""
        return FromBranches(tuple(self.last))

    def place(self, index: int) -> Place:
        """Return the innermost foreach of a task in a branch: that of the task that opened it.

        The place is not cached, because the number of items of the foreach may not be known yet.

        Args:
            index: The index of the branch; it has no effect.
        """
        return NOWHERE if self.group is None else self.group.place(self.index)

    def opens(self, task: LiveTask) -> bool:
        """Return False: a task of a branch is never the first task of an item.

        Args:
            task: The task.
        """
        return False


Group = Union[Items, Branches]  # noqa: UP007 - the classes refer to it before it is defined


_UNBOUNDED = 1 << 62


class StepCounts(NamedTuple):
    """The number of tasks of a step in each state.

    Foreach items that have not started count as `ready`. Tasks in `queued` and `running` have a
    live attempt, which the executor has not started yet, or has started.
    """

    ready: int
    queued: int
    running: int
    waiting: int
    done: int
    failed: int
    cancelled: int


class LiveStep:
    """One step: the parts of its node and policy that are used often, and its counters.

    `parked` and `parked_items` are tasks and foreaches that only the step's own limit keeps from
    starting. `reserved` places of its limit are kept for members of gangs that are retried.
    """

    __slots__ = (
        "bound", "cancelled", "done", "failed", "inlets", "is_join", "join", "kind", "launched",
        "name", "next", "parked", "parked_items", "policy", "ready", "reserved", "running",
        "targets", "waiting",
    )  # fmt: skip

    def __init__(self, node: Node, policy: StepPolicy) -> None:
        self.name = node.name
        self.kind = node.kind
        self.is_join = node.is_join
        self.next = node.next
        self.inlets = tuple(name for name in node.previous if name != node.name)
        self.targets: tuple[LiveStep, ...] = ()
        self.join: LiveStep | None = None
        self.policy = policy
        self.bound = policy.max_workers or _UNBOUNDED
        self.parked: deque[LiveTask] = deque()
        self.parked_items: list[Items] = []
        self.ready = self.launched = self.running = self.waiting = self.reserved = 0
        self.done = self.failed = self.cancelled = 0

    @property
    def may_stream(self) -> bool:
        """Whether tasks for its items may start before it ends.

        False if the step may be retried: it would create the items again.
        """
        policy = self.policy
        return self.kind is Kind.FOREACH and policy.retries == 0 and not policy.catches

    def counts(self) -> StepCounts:
        """Return the counters as a value."""
        return StepCounts(
            ready=self.ready,
            queued=self.launched - self.running,
            running=self.running,
            waiting=self.waiting,
            done=self.done,
            failed=self.failed,
            cancelled=self.cancelled,
        )


def steps_of(graph: Graph, policies: Mapping[str, StepPolicy]) -> dict[str, LiveStep]:
    """Return the steps of a graph, linked to each other.

    Args:
        graph: The steps of the flow and the transitions between them.
        policies: The policies, by step; a step without one gets the defaults.

    Raises:
        InvalidFlow: If the graph cannot be executed.
    """
    default = StepPolicy()
    steps = {
        name: LiveStep(node, policies.get(name, default)) for name, node in graph.nodes.items()
    }
    if graph.start not in steps:
        raise InvalidFlow(f"Flow {graph.flow} has no step {graph.start!r} to start with.")
    for step in steps.values():
        _tie(step, graph[step.name], steps)
    return steps


def _tie(step: LiveStep, node: Node, steps: dict[str, LiveStep]) -> None:
    """Replace the names of steps in a node by the steps themselves."""

    def fault(text: str) -> InvalidFlow:
        return InvalidFlow(f"Step {step.name} {text}.", file=node.file, line=node.line)

    for name in node.next:
        if name not in steps:
            raise fault(f"leads to {name}, which is not a step")
    step.targets = tuple(steps[name] for name in node.next)
    if (node.kind is Kind.END) is bool(node.next):
        raise fault("ends the flow but leads on" if node.next else "leads nowhere")
    if node.kind in (Kind.LINEAR, Kind.FOREACH, Kind.PARALLEL) and len(node.next) != 1:
        raise fault(f"leads to {len(node.next)} steps, but one may follow")
    if node.kind not in (Kind.SPLIT, Kind.FOREACH, Kind.PARALLEL):
        return
    if node.join not in steps:
        raise fault("opens a split that no join closes")
    step.join = steps[node.join]
    for target in step.targets:
        if target.is_join and (target is not step.join or node.kind is not Kind.SPLIT):
            raise fault(f"leads straight into the join {target.name}")


class LiveTask:
    """One unfinished task.

    `number` is 0 and `attempt` -1 until its first attempt is launched. `failures` counts the
    failures that were retried, `losses` the lost attempts. `fallback` is 0 while the step itself
    runs, then the number of the fallback attempt. `handle` is None until the live attempt starts.
    `has_reservation` is True while a place among the live attempts is kept for its next attempt.
    `stream` is the foreach that its live attempt has opened before its end. `ready_at` is when all
    inputs of the task were available.
    """

    __slots__ = (
        "attempt", "failures", "fallback", "group", "handle", "has_reservation", "index", "inputs",
        "launch", "losses", "number", "ready_at", "state", "step", "stream",
    )  # fmt: skip

    launch: LaunchAttempt  # the live attempt, or the last one

    def __init__(self, step: LiveStep, group: Group | None, index: int, inputs: Inputs) -> None:
        self.step = step
        self.group = group
        self.index = index
        self.inputs = inputs
        self.state = TaskState.READY
        self.number = 0
        self.attempt = -1
        self.failures = 0
        self.losses = 0
        self.fallback = 0
        self.handle: str | None = None
        self.has_reservation = False
        self.stream: Items | None = None
        self.ready_at = 0.0

    @property
    def is_member(self) -> bool:
        """Whether the task is a member of a gang."""
        return isinstance(self.group, Items) and self.group.gang and self.group.opens(self)

    def move(self, state: TaskState) -> None:
        """Change the state.

        Args:
            state: The new state.

        Raises:
            IllegalMove: If TASK_MOVES forbids the change; the error describes the task.
        """
        if state not in TASK_MOVES[self.state]:
            raise IllegalMove(f"{self.description()} cannot become {state}.")
        self.state = state

    def next_attempt(self) -> LaunchAttempt:
        """Create the next attempt.

        Returns:
            The command that launches it.
        """
        self.attempt += 1
        self.handle = None
        group = self.group
        split, index, count = NOWHERE if group is None else group.place(self.index)
        if self.fallback:
            final = self.fallback == MAX_FALLBACKS
        else:
            final = self.failures >= self.step.policy.retries
        self.launch = LaunchAttempt(
            task=self.number,
            step=self.step.name,
            attempt=self.attempt,
            inputs=self.inputs,
            split=split,
            index=index,
            count=count,
            opens_index=group is not None and group.opens(self),
            final=final,
            fallback=self.fallback > 0,
        )
        return self.launch

    def wait_after(self, outcome: Outcome) -> float | None:
        """Count an attempt that did not succeed, and decide when the next one starts.

        Args:
            outcome: How the attempt ended.

        Returns:
            Seconds until the next attempt; None if there is none.
        """
        state = outcome.state
        policy = self.step.policy
        if state is AttemptState.INTERRUPTED or state is AttemptState.CANCELLED:
            return 0.0  # aflow stopped it, so it counts neither as a failure nor as a loss
        if self.fallback:
            return self._fall_back()
        if state is AttemptState.LOST and outcome.retryable:
            self.losses += 1
            return 0.0 if self.losses < MAX_LOSSES else self._fall_back()
        if outcome.retryable and self.failures < policy.retries:
            self.failures += 1
            return policy.wait_before(self.failures)
        return self._fall_back()

    def _fall_back(self) -> float | None:
        if not self.step.policy.catches or self.fallback == MAX_FALLBACKS:
            return None
        self.fallback += 1
        return 0.0

    def last_reason(self, outcome: Outcome) -> str:
        """Return one sentence on why the task did not succeed.

        Args:
            outcome: How its last attempt ended.
        """
        reason = outcome.reason or (
            f"Attempt {self.attempt} of step {self.step.name} (task {self.number}) ended as "
            f"{outcome.state} and gave no reason."
        )
        if self.losses < MAX_LOSSES:
            return reason
        return (
            f"Step {self.step.name} (task {self.number}) was lost {self.losses} times, so it is "
            f"not tried again; the last time: {reason}"
        )

    def description(self) -> str:
        """Return the task in one line, for error messages and debugging."""
        where = "" if self.group is None else f", index {self.index} of split {self.group.serial}"
        return (
            f"task {self.number or '(not launched)'} of step {self.step.name} ({self.state}, "
            f"attempt {self.attempt}, {self.failures} failures, {self.losses} losses, fallback "
            f"{self.fallback}, {self.inputs}{where})"
        )
