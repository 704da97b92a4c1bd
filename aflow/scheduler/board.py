"""The ready, live and waiting tasks of a run, and the choice of the task that starts next.

Ready tasks start first, in the order in which they became ready; then the next item of the foreach
that was opened last, so that few nested foreaches are open at the same time. A task or foreach
whose step has reached its own limit is parked in the step; each attempt of the step that ends
unparks one. Choosing a task therefore takes constant time.

The members of a gang wait for each other, so they start together: if it is the turn of a gang and
there is not room for all of its members, no other item starts until there is. A member that is
retried keeps its place: otherwise two gangs could each hold places that the other one needs.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from aflow.scheduler.messages import LaunchAttempt
from aflow.scheduler.states import TaskState
from aflow.scheduler.tasks import Items, LiveStep, LiveTask


class Board:
    """The unfinished tasks of one run.

    At most `limit` of them are live at the same time; `workers` of these run, and the executor may
    queue the others. `reserved` places are kept for members of gangs that are retried.
    """

    __slots__ = (
        "cursors", "launched", "limit", "live", "now", "pushed", "ready", "reserved", "steps",
        "waiting", "workers",
    )  # fmt: skip

    def __init__(self, steps: dict[str, LiveStep], limit: int, workers: int) -> None:
        self.steps = steps
        self.limit = limit
        self.workers = workers
        self.reserved = 0
        self.launched = 0  # tasks launched so far; also the number of the latest one
        self.now = 0.0  # the time of the event that is being handled
        self.live: dict[int, LiveTask] = {}
        self.ready: deque[LiveTask] = deque()
        self.cursors: list[Items] = []
        self.waiting: list[tuple[float, int, LiveTask]] = []  # a heap
        self.pushed = 0  # tie-breaker of retries that are due at the same time

    def add(self, task: LiveTask) -> None:
        """Make a new task ready.

        Args:
            task: The task.
        """
        task.ready_at = self.now
        task.step.ready += 1
        self.ready.append(task)

    def open(self, items: Items) -> None:
        """Make the known items of a foreach ready.

        Args:
            items: The items of the foreach; at least one is known.
        """
        items.body.ready += items.known
        items.ready_at = self.now
        self.cursors.append(items)

    def grow(self, items: Items, count: int) -> None:
        """Set the number of known items of an open foreach; the additional ones become ready.

        Args:
            items: The items of the foreach.
            count: The number of items that are known now.
        """
        if count == items.known:
            return
        items.body.ready += count - items.known
        if items.next == items.known:  # all items known so far have started
            items.ready_at = self.now
            self.cursors.append(items)
        items.known = count

    def launch(self) -> LaunchAttempt | None:
        """Make the next task live, if one may start now.

        Returns:
            The command that launches its next attempt; None if no task may start.
        """
        task = self._take()
        if task is None:
            return None
        if task.has_reservation:
            task.has_reservation = False
            self.reserved -= 1
            task.step.reserved -= 1
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
        """Return whether all members can run at the same time, or some have already started."""
        count = gang.expected
        return gang.next > 0 or (
            len(self.live) + self.reserved + count <= self.workers
            and gang.body.launched + gang.body.reserved + count <= gang.body.bound
        )

    def begin(self, task: LiveTask, handle: str) -> None:
        """Record that the live attempt of the task has started.

        Args:
            task: The task.
            handle: The executor's name for the attempt; empty if it has none.
        """
        task.handle = handle
        task.step.running += 1

    def end(self, task: LiveTask) -> None:
        """Record that the live attempt of the task has ended; unpark one task of its step.

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
        """Make a task ready again without a wait, ahead of all other ready tasks.

        Args:
            task: The task.
        """
        task.move(TaskState.READY)
        self._reserve(task)
        task.step.ready += 1
        self.ready.appendleft(task)

    def wait(self, task: LiveTask, at: float) -> None:
        """Make a task wait for its next attempt.

        Args:
            task: The task.
            at: The earliest start of the next attempt, in seconds since the epoch.
        """
        task.move(TaskState.WAITING)
        self._reserve(task)
        task.step.waiting += 1
        self.pushed += 1
        heappush(self.waiting, (at, self.pushed, task))

    def wake(self, now: float) -> bool:
        """Make the tasks ready whose backoff has expired.

        Args:
            now: The current time, in seconds since the epoch.

        Returns:
            True if there was at least one.
        """
        due = False
        while self.waiting and self.waiting[0][0] <= now:
            task = heappop(self.waiting)[2]
            task.move(TaskState.READY)
            task.step.waiting -= 1
            if task.has_reservation:  # behind other tasks it could block its gang
                task.step.ready += 1
                self.ready.appendleft(task)
            else:
                self.add(task)
            due = True
        return due

    def _reserve(self, task: LiveTask) -> None:
        """Keep the place of a gang member for its next attempt; the others wait for it."""
        if task.is_member and not task.has_reservation:
            task.has_reservation = True
            self.reserved += 1
            task.step.reserved += 1

    def pending(self) -> list[LiveTask]:
        """Return the ready, parked and waiting tasks, without foreach items that never started."""
        parked = [task for step in self.steps.values() for task in step.parked]
        return [*self.ready, *parked, *(task for _, _, task in sorted(self.waiting))]

    def clear(self) -> list[LiveTask]:
        """Remove everything that is not live.

        Returns:
            The removed tasks that had been launched before.
        """
        dropped = [task for task in self.pending() if task.number]
        self.ready.clear()
        self.cursors.clear()
        self.waiting.clear()
        self.reserved = 0
        for step in self.steps.values():
            step.parked.clear()
            step.parked_items.clear()
            step.ready = step.waiting = step.reserved = 0
        return dropped
