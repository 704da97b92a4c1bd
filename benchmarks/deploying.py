"""The cost of deploying a flow to Step Functions, and the overhead of its jobs.

    python -m benchmarks.deploying [--quick]

prints one JSON object per line: {"name", "value", "unit"}. `compile` is the processor time for the
plan of a flow with 200 steps, made without requests: its state machine, its order, its job
definitions. `job` is one job of a step that does nothing, from the start of its interpreter to its
exit, as wall clock and processor time; S3 is a moto server on the same machine, and so is the
metadata service.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from aflow._core.settings import Settings
from aflow.aws.settings import Account, AwsSettings
from aflow.cli.loading import load_flow
from aflow.flow.spec import define
from aflow.step_functions.plan import DeploymentOptions, plan
from aflow.task.code_package import Package
from tests.support.aws.furnished import Account as StandIn

ROLE = "arn:aws:iam::123456789012:role/flows"
STEP = """
    @{decorators}
    @step
    def s{number}(self):
        self.x = {number}
        self.next(self.s{following})
"""
FLOW = """
from aflow import FlowSpec, retry, step

class Wide(FlowSpec):
    @step
    def start(self):
        self.next(self.s1)
{steps}
    @step
    def s{count}(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""
TINY = """
from aflow import FlowSpec, step

class Tiny(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Tiny()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few of everything")
    few = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        tell("deploy.compile_200", compile_time(Path(folder), 3 if few else 20), "ms")
        clocks, cpus = jobs(Path(folder), 3 if few else 20)
        tell("deploy.job_clock", median(clocks), "ms")
        tell("deploy.job_cpu", median(cpus), "ms")


def compile_time(folder: Path, times: int) -> float:
    """Return the milliseconds for the plan of 200 steps."""
    count = 198
    steps = "".join(
        STEP.format(decorators=f"retry(times={number % 4})", number=number, following=number + 1)
        for number in range(1, count)
    )
    file = folder / "wide.py"
    file.write_text(FLOW.format(steps=steps, count=count))
    definition = define(load_flow(str(file)))
    environment = {
        "AFLOW_DEFAULT_DATASTORE": "s3", "AFLOW_DATASTORE_SYSROOT_S3": "s3://bucket/prefix",
        "AFLOW_DEFAULT_METADATA": "service", "AFLOW_SERVICE_URL": "http://127.0.0.1:9",
        "AFLOW_USER": "ada",
    }  # fmt: skip
    settings = Settings.load(env=environment)
    known = AwsSettings(queue="queue", image="image", job_role=ROLE, machine_role=ROLE)
    account = Account("aws", "us-east-1", "123456789012")
    code, wanted = Package("0" * 64, "wide.py", 1), DeploymentOptions()
    seconds = []
    for _ in range(times):
        begun = time.process_time()
        made = plan(definition, wanted, settings, known, account, code, "wide-0-abcd")
        seconds.append(time.process_time() - begun)
    assert len(json.loads(made.definition)["States"]) > 200
    return median(seconds) * 1e3


def jobs(folder: Path, times: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of jobs, as wall clock and processor time."""
    stand_in = StandIn(folder)
    try:
        os.environ.update(stand_in.settings)
        stand_in.furnish()
        file = folder / "tiny.py"
        file.write_text(TINY)
        command = [sys.executable, str(file), "step-functions", "create"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (made, *_) = stand_in.client("batch").describe_job_definitions()["jobDefinitions"]
        measured = [one_job(stand_in, made, number) for number in range(times)]
    finally:
        stand_in.close()
    return [each[0] for each in measured], [each[1] for each in measured]


def one_job(stand_in: StandIn, made: Any, number: int) -> tuple[float, float]:
    properties = made["containerProperties"]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": os.environ.get("HOME", "/"),
        **{key: value for key, value in stand_in.settings.items() if key.startswith("AWS_")},
        **{each["name"]: each["value"] for each in properties["environment"]},
        "AFLOW_SFN_RUN": f"sfn-{number}", "AFLOW_SFN_STEP": "start", "AFLOW_SFN_INPUT": "{}",
    }  # fmt: skip
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(properties["command"], env=environment, check=True)
    clock = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return clock * 1e3, cpu * 1e3


def tell(name: str, value: float, unit: str) -> None:
    print(json.dumps({"name": name, "value": round(value, 2), "unit": unit}), flush=True)


if __name__ == "__main__":
    main()
