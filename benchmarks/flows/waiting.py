"""Many coroutines that each wait for a second."""

import asyncio
import os

from aflow import FlowSpec, Parameter, step


class WaitingFlow(FlowSpec):
    n = Parameter("n", type=int, default=100)

    @step
    def start(self):
        self.xs = list(range(self.n))
        self.next(self.wait, foreach="xs")

    @step
    async def wait(self):
        await asyncio.sleep(1)
        self.pid = os.getpid()
        self.next(self.join)

    @step
    def join(self, inputs):
        print("processes", len({i.pid for i in inputs}), "tasks", len(inputs))
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    WaitingFlow()
