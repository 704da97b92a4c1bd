"""A wide flow that records the start of each task, for tests that disturb it."""

from __future__ import annotations


def squares(width: int, large_each: int) -> str:
    """A foreach over `width` items whose tasks read 300 kB; one of `large_each` keeps 100 kB."""
    return f"""
import random

class Flow_(FlowSpec):
    @step
    def start(self):
        note()
        self.shared = random.Random(1).randbytes(300_000)
        self.xs = list(range({width}))
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        note()
        self.y = self.input ** 2 + len(self.shared)
        if self.input % {large_each} == 0:
            self.large = random.Random(self.input).randbytes(100_000)
        print("squared", self.input)
        self.next(self.join)

    @step
    def join(self, inputs):
        note()
        self.ys = [each.y for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        note()
        self.total = sum(self.ys)
"""
