"""A foreach of trivial tasks and its join, to measure the cost per task."""

import time

from aflow import FlowSpec, Parameter, step


class FanFlow(FlowSpec):
    n = Parameter("n", type=int, default=100)

    @step
    def start(self):
        self.xs = list(range(self.n))
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        self.y = self.input * self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        began = time.perf_counter()
        self.total = sum(i.y for i in inputs)
        print("join_seconds", time.perf_counter() - began)
        self.next(self.end)

    @step
    def end(self):
        assert self.total == sum(x * x for x in range(self.n))


if __name__ == "__main__":
    FanFlow()
