"""Coroutines as steps: one process runs hundreds of tasks that wait."""

import asyncio

from aflow import FlowSpec, Parameter, step


class WaitFlow(FlowSpec):
    """Query many slow services concurrently."""

    services = Parameter("services", default=50, help="How many")

    @step
    def start(self):
        """Start a task for each service."""
        self.numbers = list(range(self.services))
        self.next(self.ask, foreach="numbers")

    @step
    async def ask(self):
        """Wait for a service; meanwhile, other tasks run in the same process."""
        await asyncio.sleep(0.5)
        self.answer = self.input**2
        self.next(self.join)

    @step
    def join(self, inputs):
        """Add up the answers."""
        self.total = sum(each.answer for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        """Print the sum."""
        print("The sum of all answers is", self.total)


if __name__ == "__main__":
    WaitFlow()
