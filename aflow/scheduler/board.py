"""Where the tasks of a run stand: ready, live, waiting. What starts next is decided here.

First the tasks that are ready, in the order in which they became so; then the next item of the
foreach that was opened last, so that of nested ones few are open at a time. A task or a foreach
whose step is at its own bound is parked with the step; each attempt of the step that ends brings
one back. So choosing costs the same however much there is to choose from.

The members of a gang wait for one another, so they start together: when a gang's turn has come and
there is no room for all of it, no other item starts until there is. A member that is to be tried
again keeps its place meanwhile: else two gangs could each have what the other lacks.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from aflow.scheduler.messages import LaunchAttempt
from aflow.scheduler.states import TaskState
from aflow.scheduler.tasks import Items, LiveStep, LiveTask


class Board:
    """The tasks of one run that are not over. At most `limit` are live at a time; of these
    `workers` certainly run, the others may wait behind them. `reserved` of the places are kept for
    members of gangs."""

    __slots__ = (
        "cursors", "launched", "limit", "live", "now", "pushed", "ready", "reserved", "steps",
        "waiting", "workers",
    )  # fmt: skip

    def __init__(self, steps: dict[str, LiveStep], limit: int, workers: int) -> None:
        self.steps = steps
        self.limit = limit
        self.workers = workers
        self.reserved = 0
        self.launched = 0  # tasks so far, so also the number of the latest
        self.now = 0.0  # the time of the event that is handled
        self.live: dict[int, LiveTask] = {}
        self.ready: deque[LiveTask] = deque()
        self.cursors: list[Items] = []
        self.waiting: list[tuple[float, int, LiveTask]] = []  # a heap
        self.pushed = 0  # keeps retries that are due at the same time in order

    def add(self, task: LiveTask) -> None:
        """A new task may start.

        Args:
            task: The task.
        """
        task.ready_at = self.now
        task.step.ready += 1
        self.ready.append(task)

    def open(self, items: Items) -> None:
        """A foreach of at least one item may start.

        Args:
            items: The items of the foreach.
        """
        items.body.ready += items.known
        items.ready_at = self.now
        self.cursors.append(items)

    def grow(self, items: Items, count: int) -> None:
        """The foreach has this many items now.

        Args:
            items: The items of the foreach.
            count: How many.
        """
        if count == items.known:
            return
        items.body.ready += count - items.known
        if items.next == items.known:  # all there were have started
            items.ready_at = self.now
            self.cursors.append(items)
        items.known = count

    def launch(self) -> LaunchAttempt | None:
        """Make the next task live, if there is one that may start now.

        Returns:
            The task; None where none may start.
        """
        task = self._take()
        if task is None:
            return None
        if task.has_reservation:
            task.has_reservation = False
            self.reserved -= 1
        if not task.number:
            self.launched += 1
            task.number = self.launched
        task.move(TaskState.RUNNING)
        task.step.ready -= 1
        task.step.launched += 1
        self.live[task.number] = task
        return task.next_attempt()

    def _take(self) -> LiveTask | None:
        ready = self.ready
        has_room = len(self.live) + self.reserved < self.limit
        while ready:
            if not has_room and not ready[0].has_reservation:
                return None
            task = ready.popleft()
            if task.step.launched < task.step.bound:
                return task
            task.step.parked.append(task)
        cursors = self.cursors
        while cursors and has_room:
            items = cursors[-1]
            body = items.body
            if items.gang and not self._fits(items):
                return None
            if body.launched >= body.bound:
                body.parked_items.append(cursors.pop())
                continue
            index = items.next
            items.next = index + 1
            if items.next == items.known:
                cursors.pop()
            task = LiveTask(body, items, index, items.entry)
            task.ready_at = items.ready_at
            return task
        return None

    def _fits(self, gang: Items) -> bool:
        """Whether all members can run at once; or go on starting, once they have begun to."""
        count = gang.expected
        return gang.next > 0 or (
            len(self.live) + self.reserved + count <= self.workers
            and gang.body.launched + count <= gang.body.bound
        )

    def begin(self, task: LiveTask, handle: str) -> None:
        """The live attempt of the task runs.

        Args:
            task: The task.
            handle: What the executor calls the attempt; empty where it has no name for it.
        """
        task.handle = handle
        task.step.running += 1

    def end(self, task: LiveTask) -> None:
        """The live attempt of the task is over, and its worker free.

        Args:
            task: The task.
        """
        del self.live[task.number]
        step = task.step
        step.launched -= 1
        if task.handle is not None:
            step.running -= 1
        if step.parked:
            self.ready.appendleft(step.parked.popleft())
        elif step.parked_items:
            self.cursors.append(step.parked_items.pop())

    def again(self, task: LiveTask) -> None:
        """A task whose attempt was lost or cut short is the first to start.

        Args:
            task: The task.
        """
        task.move(TaskState.READY)
        self._reserve(task)
        task.step.ready += 1
        self.ready.appendleft(task)

    def wait(self, task: LiveTask, at: float) -> None:
        """A task is to be tried again, but not before `at`.

        Args:
            task: The task.
            at: When it happened, in seconds since the epoch.
        """
        task.move(TaskState.WAITING)
        self._reserve(task)
        task.step.waiting += 1
        self.pushed += 1
        heappush(self.waiting, (at, self.pushed, task))

    def wake(self, now: float) -> bool:
        """Make the tasks ready whose backoff is over.

        Args:
            now: The present time, in seconds since the epoch.

        Returns:
            True if there was one.
        """
        due = False
        while self.waiting and self.waiting[0][0] <= now:
            task = heappop(self.waiting)[2]
            task.move(TaskState.READY)
            task.step.waiting -= 1
            if task.has_reservation:  # a task before it may wait for its gang
                task.step.ready += 1
                self.ready.appendleft(task)
            else:
                self.add(task)
            due = True
        return due

    def _reserve(self, task: LiveTask) -> None:
        """Keep the place of a member whose gang waits for it."""
        if task.is_member and not task.has_reservation:
            task.has_reservation = True
            self.reserved += 1

    def pending(self) -> list[LiveTask]:
        """Return the tasks that are ready, parked or waiting, without items that have not
        started."""
        parked = [task for step in self.steps.values() for task in step.parked]
        return [*self.ready, *parked, *(task for _, _, task in sorted(self.waiting))]

    def clear(self) -> list[LiveTask]:
        """Forget all that is not live.

        Returns:
            The answer is those forgotten that had been launched.
        """
        dropped = [task for task in self.pending() if task.number]
        self.ready.clear()
        self.cursors.clear()
        self.waiting.clear()
        self.reserved = 0
        for step in self.steps.values():
            step.parked.clear()
            step.parked_items.clear()
            step.ready = step.waiting = 0
        return dropped
