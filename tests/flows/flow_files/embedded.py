"""A flow for programs that embed aflow."""

from __future__ import annotations

import signal
import time
from typing import Any

from aflow import FlowSpec, Parameter, step


class EmbeddedFlow(FlowSpec):
    n = Parameter("n", default=3)
    rest = Parameter("rest", default=0.0)
    stubborn = Parameter("stubborn", default=False)

    @step
    def start(self) -> None:
        self.xs = list(range(self.n))
        self.next(self.work, foreach="xs")

    @step
    def work(self) -> None:
        if self.stubborn:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("item", self.input)
        time.sleep(self.rest)
        self.y = self.input * 2
        self.next(self.join)

    @step
    def join(self, inputs: Any) -> None:
        self.ys = [each.y for each in inputs]
        self.next(self.end)

    @step
    def end(self) -> None:
        print("ys", self.ys)
