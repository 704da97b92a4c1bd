import os
import signal
import sys
import time
from pathlib import Path

from aflow import FlowSpec, Parameter, current, resources, retry, slurm, step


class Jobs(FlowSpec):
    """Starts and ends locally; the jobs of Slurm in between get faults."""

    what = Parameter("what", default="nothing")
    gate = Parameter("gate", default="")
    n = Parameter("n", default=3)

    @step
    def start(self):
        self.here = os.getpid()
        self.items = list(range(self.n))
        self.next(self.work, foreach="items")

    @slurm(time="00:05:00")
    @resources(cpu=1, memory=lambda attempt: 200 * (attempt + 1))
    @retry(times=0)
    @step
    def work(self):
        print("working on", self.input, flush=True)
        getattr(self, self.what)()
        self.square = self.input * self.input
        self.tries = current.retry_count
        self.job = os.environ["SLURM_JOB_NAME"]
        self.memory = os.environ["SLURM_MEM_PER_NODE"]
        self.signing_key = os.environ.get("AFLOW_SIGNING_KEY")
        self.next(self.join)

    def nothing(self):
        pass

    def wait(self):
        while not Path(self.gate).exists():
            time.sleep(0.1)

    def wait_the_first_time(self):
        if current.retry_count == 0:
            self.wait()

    def kill_the_job(self):
        if self.input == 1:
            os.kill(int(Path(f"/proc/{os.getppid()}/stat").read_text().split()[3]), signal.SIGKILL)
            time.sleep(60)

    @step
    def join(self, inputs):
        self.squares = [each.square for each in inputs]
        self.tries = [each.tries for each in inputs]
        self.jobs = sorted({each.job for each in inputs})
        self.memory = sorted({each.memory for each in inputs})
        self.signing_keys = {each.signing_key for each in inputs}
        self.next(self.end)

    @step
    def end(self):
        print("squares", self.squares, file=sys.stderr)


if __name__ == "__main__":
    Jobs()
