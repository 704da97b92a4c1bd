"""Many concurrent tasks that wait until they are killed."""

import asyncio

from aflow import FlowSpec, Parameter, step


class HeldFlow(FlowSpec):
    n = Parameter("n", default=10)

    @step
    def start(self):
        self.xs = list(range(self.n))
        self.next(self.work, foreach="xs")

    @step
    async def work(self):
        await asyncio.sleep(600)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    HeldFlow()
