"""Splits that are open: the token model.

A task is a token. Every token has a place: the innermost split that is open around it and its
index there (None and 0 outside of any split). A split puts the place of its own task away in a
group and gives each child a place in the group; the join counts arrivals, and when all are there
it goes on at the place that was put away. So groups nest to any depth, as a chain of parents.

A foreach is a cursor: it counts the items that have started, and an item that has not is no object
at all. What has finished is a count too. So a wide foreach costs what is live in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Union

from aflow.flow.graph import Kind
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask

if TYPE_CHECKING:
    from aflow.scheduler.tasks import Step, Task

Place = tuple[int | None, int | None, int | None]
"""The innermost foreach around a task: the task that opened it, the index in it, its width."""

UNKNOWN = -1  # items of a foreach that still come

NOWHERE: Place = (None, None, None)


class _Split:
    """What all open splits have.

    `serial` counts the splits of the run from 1. `task` is the number of the task that opened this
    one at the step `step`; `group` and `index` are that task's own place. `entry` are the inputs of
    all first tasks: one shared value, by whose identity a task knows that it is a first one.
    """

    __slots__ = ("arrived", "entry", "expected", "group", "index", "join", "serial", "step", "task")

    def __init__(self, serial: int, task: Task, join: Step, expected: int) -> None:
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
    """An open foreach; `next` is the index of the first item that has not started.

    The items of a `gang` start together: its members, who may wait for one another. `known` is how
    many items there are so far; while they still come, `expected` is UNKNOWN.
    """

    __slots__ = ("body", "gang", "known", "next")

    def __init__(
        self, serial: int, task: Task, join: Step, count: int, *, grows: bool = False
    ) -> None:
        super().__init__(serial, task, join, UNKNOWN if grows else count)
        self.known = count
        self.body = task.step.targets[0]
        self.gang = task.step.kind is Kind.PARALLEL
        self.next = 0

    def arrive(self, index: int, task: int) -> bool:
        """Count an item that has come to the join; True if it was the last of all."""
        self.arrived += 1
        return self.arrived == self.expected

    def inputs(self) -> FromForeach:
        """The inputs of the join."""
        return FromForeach(self.task, self.join.inlets, self.expected)

    def place(self, index: int) -> Place:
        """The innermost foreach of a task at this index: this one."""
        return (self.task, index, None if self.expected == UNKNOWN else self.expected)

    def opens(self, task: Task) -> bool:
        """Whether the task is the first one of its item."""
        return task.inputs is self.entry


class Branches(_Split):
    """An open split into branches; `last` are the tasks that have arrived, 0 for those to come."""

    __slots__ = ("last", "outer")

    def __init__(self, serial: int, task: Task, join: Step) -> None:
        super().__init__(serial, task, join, len(task.step.targets))
        self.last = [0] * self.expected
        self.outer = task.place()

    def arrive(self, index: int, task: int) -> bool:
        """Count a branch whose last task has come to the join; True if it was the last of all."""
        self.last[index] = task
        self.arrived += 1
        return self.arrived == self.expected

    def inputs(self) -> FromBranches:
        """The inputs of the join."""
        return FromBranches(tuple(self.last))

    def place(self, index: int) -> Place:
        """The innermost foreach of a task in a branch: that of the task which opened the split."""
        return self.outer

    def opens(self, task: Task) -> bool:
        """A branch is no item."""
        return False


Group = Union[Items, Branches]  # noqa: UP007 - the classes name each other before they stand
