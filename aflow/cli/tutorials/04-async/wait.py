"""Steps that are coroutines: hundreds that wait need one process."""

import asyncio

from aflow import FlowSpec, Parameter, step


class WaitFlow(FlowSpec):
    """Ask many slow services at once."""

    services = Parameter("services", default=50, help="How many")

    @step
    def start(self):
        """A task for each service."""
        self.numbers = list(range(self.services))
        self.next(self.ask, foreach="numbers")

    @step
    async def ask(self):
        """While this one waits, the others go on in the same process."""
        await asyncio.sleep(0.5)
        self.answer = self.input**2
        self.next(self.join)

    @step
    def join(self, inputs):
        """Add up what they have answered."""
        self.total = sum(each.answer for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        """Show the sum."""
        print("The sum of all answers is", self.total)


if __name__ == "__main__":
    WaitFlow()
