import asyncio
import os

from aflow import FlowSpec, batch, client, current, environment, resources, secrets, step


class Surroundings(FlowSpec):
    """The environment of steps in a job."""

    @step
    def start(self):
        self.items = (number * 10 for number in range(2))
        self.next(self.work, foreach="items")

    @secrets(sources=[{"type": "inline", "options": {"env_vars": {"TOKEN": "hidden"}}}])
    @environment(vars={"COLOUR": "red"})
    @batch(memory=3000, use_tmpfs=True, tmpfs_path="/tmp")
    @resources(cpu=2, memory=2000)
    @step
    async def work(self):
        await asyncio.sleep(0)
        self.found = (
            self.input,
            os.environ["COLOUR"],
            len(os.environ["TOKEN"]),
            current.tempdir,
            "user:tester" in client.Run(f"{current.flow_name}/{current.run_id}").tags,
        )
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found = [each.found for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        print("found", self.found)


if __name__ == "__main__":
    Surroundings()
