import os
import signal
import sys
import time
from pathlib import Path

from aflow import FlowSpec, Parameter, current, kubernetes, resources, retry, step


class Jobs(FlowSpec):
    """Starts and ends locally; the pods in between get faults."""

    what = Parameter("what", default="nothing")
    gate = Parameter("gate", default="")
    n = Parameter("n", default=3)

    @step
    def start(self):
        self.items = list(range(self.n))
        self.next(self.work, foreach="items")

    @kubernetes(
        image=os.environ.get("IMAGE", "a-image"),
        namespace="default",
        node_selector=os.environ.get("NODES"),
        executable=sys.executable,
        persistent_volume_claims={"data": "/"},
        secrets="keys",
    )
    @resources(cpu=1, memory=lambda attempt: 200 * (attempt + 1))
    @retry(times=0)
    @step
    def work(self):
        print("working on", self.input, flush=True)
        getattr(self, self.what)()
        self.square = self.input * self.input
        self.tries = current.retry_count
        self.job = os.environ["AFLOW_JOB_ID"]
        self.starts = os.environ["AFLOW_JOB_TRIES"]
        self.secret = os.environ["KEY"]
        self.signing_key = os.environ.get("AFLOW_SIGNING_KEY")
        self.next(self.join)

    def nothing(self):
        pass

    def wait(self):
        while not Path(self.gate).exists():
            time.sleep(0.1)

    def kill_the_job(self):
        if self.input == 1:
            os.kill(int(Path(f"/proc/{os.getppid()}/stat").read_text().split()[3]), signal.SIGKILL)
            time.sleep(60)

    @step
    def join(self, inputs):
        self.squares = [each.square for each in inputs]
        self.tries = [each.tries for each in inputs]
        self.starts = [each.starts for each in inputs]
        self.jobs = sorted({each.job for each in inputs})
        self.secrets = {each.secret for each in inputs}
        self.signing_keys = {each.signing_key for each in inputs}
        self.next(self.end)

    @step
    def end(self):
        print("squares", self.squares, file=sys.stderr)


if __name__ == "__main__":
    Jobs()
