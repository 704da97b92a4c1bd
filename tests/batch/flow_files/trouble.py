import os
import sys
import time
from pathlib import Path

from aflow import FlowSpec, Parameter, batch, catch, current, retry, step


class Trouble(FlowSpec):
    """Starts and ends locally; the jobs in between get faults."""

    what = Parameter("what", default="nothing")
    gate = Parameter("gate", default="")
    n = Parameter("n", default=3)

    @step
    def start(self):
        self.here = os.getpid()
        self.items = list(range(self.n))
        self.next(self.work, foreach="items")

    @batch
    @retry(times=0)
    @step
    def work(self):
        print("working on", self.input, flush=True)
        getattr(self, self.what)()
        self.square = self.input * self.input
        self.tries = current.retry_count
        self.elsewhere = os.getppid() != self.here
        self.next(self.join)

    def nothing(self):
        pass

    def lose_the_machine(self):
        if self.input == 1 and current.retry_count == 0:
            print("the machine goes away now", flush=True)
            time.sleep(60)

    def use_up_memory(self):
        if self.input == 1:
            print("memory is used up now", flush=True)
            time.sleep(60)

    def wait(self):
        while not Path(self.gate).exists():
            time.sleep(0.1)

    def kill_the_job(self):
        if self.input == 1:
            job = int(Path(f"/proc/{os.getppid()}/stat").read_text().split()[3])
            # The output of this step may not be in the log yet when the job is killed.
            Path(f"/proc/{job}/fd/2").write_text("killed now\n")
            os.kill(job, 9)
            time.sleep(60)

    @step
    def join(self, inputs):
        self.squares = [each.square for each in inputs]
        self.tries = [each.tries for each in inputs]
        self.elsewhere = all(each.elsewhere for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("squares", self.squares, file=sys.stderr)


class Settled(Trouble):
    """The same flow, with @catch for the steps that fail."""

    @catch(var="problem")
    @batch(cpu=2, memory=500, image="no-such-image")
    @step
    def work(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.problems = [str(each.problem) for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    (Settled if "settled" in os.environ.get("WHICH", "") else Trouble)()
