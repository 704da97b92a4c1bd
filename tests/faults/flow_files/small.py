"""A flow that exercises all decisions of a coordinator: a foreach, a retry, a join, branches."""

import os

from aflow import FlowSpec, current, retry, step


def note():
    """Write a line to the ledger: a task has started."""
    words = current.task_id, current.retry_count, "0", os.getpid(), ""
    file = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, "{} {} {} {} {}\n".format(*words).encode())
    os.close(file)


class Flow_(FlowSpec):
    """Small."""

    @step
    def start(self):
        note()
        self.xs = [1, 2, 3]
        self.next(self.work, foreach="xs")

    @retry(times=1, seconds=float(os.environ.get("WAIT", "0")))
    @step
    def work(self):
        note()
        if self.input == 2 and current.retry_count == 0:
            raise ValueError("not yet")
        self.y = self.input**2
        self.next(self.join)

    @step
    def join(self, inputs):
        note()
        self.ys = [each.y for each in inputs]
        self.next(self.left, self.right)

    @step
    def left(self):
        note()
        self.large = bytes(200_000)
        self.next(self.end)

    @step
    def right(self):
        note()
        self.next(self.end)

    @step
    def end(self, inputs):
        note()
        self.size = len(inputs.left.large)
