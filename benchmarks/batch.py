"""Tasks as jobs of AWS Batch: the overhead of a job, and the number of requests to AWS.

    python -m benchmarks.batch [--tasks 1000]

prints one JSON object per line: {"name", "value", "unit"}. AWS is the stand-in of the tests, whose
jobs are local processes. `own_work` is the median time from the start of a job to its end, for
tasks that store 100 kB and print a line: imports, package, inputs, output, log. `own_work_cpu` is
the processor time of one job. `submission_calls` are all calls except polls until a foreach of
`--tasks` is submitted, `polls` the polls per second while it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from tests.support.aws.furnished import Account
from tests.support.faulty import FaultyProxy

HERE = Path(__file__).resolve().parent
WATCHED = 20.0  # seconds during which polls are counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        account = Account(Path(folder))
        os.environ.update(account.settings | {"AFLOW_DEFAULT_METADATA": "local"})
        account.furnish()
        try:
            own_work(account, Path(folder))
            calls(account, Path(folder), options.tasks)
        finally:
            account.close()


def own_work(account: Account, folder: Path) -> None:
    command = [sys.executable, str(HERE / "flows" / "carry.py"), "--no-pylint", "run"]
    subprocess.run([*command, "--with", "batch"], cwd=folder, check=True, capture_output=True)
    jobs = jobs_of(account)
    attempts = [job["attempts"][-1] for job in jobs]
    taken = [(each["stoppedAt"] - each["startedAt"]) / 1000 for each in attempts]
    tell("batch.own_work", median(taken), "s")
    said = jobs[-1]["container"]
    environment = {each["name"]: each["value"] for each in said["environment"]}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    before = os.times()
    subprocess.run(said["command"], env={**os.environ, **environment}, check=True)
    after = os.times()
    cpu = after.children_user + after.children_system
    tell("batch.own_work_cpu", cpu - before.children_user - before.children_system, "s")


def jobs_of(account: Account) -> list[dict[str, Any]]:
    batch = account.client("batch")
    listed = batch.list_jobs(jobQueue="queue", jobStatus="SUCCEEDED")["jobSummaryList"]
    found: list[dict[str, Any]] = batch.describe_jobs(jobs=[e["jobId"] for e in listed])["jobs"]
    return found


def calls(account: Account, folder: Path, tasks: int) -> None:
    limits = ["--max-workers", str(tasks), "--max-num-splits", str(tasks), "--n", str(tasks)]
    command = [sys.executable, str(HERE / "flows" / "fan.py"), "--no-pylint", "run"]
    with FaultyProxy(account.endpoint, seed=1) as proxy:
        run = subprocess.Popen(
            [*command, "--with", "batch", *limits],
            cwd=folder,
            env={**os.environ, "AWS_ENDPOINT_URL_BATCH": proxy.url},
            stdout=subprocess.DEVNULL,
        )
        while asked(proxy)["submitjob"] < 2:  # the first step, and the foreach
            time.sleep(0.1)
        submitting = asked(proxy)
        time.sleep(WATCHED)
        polls = asked(proxy)["describejobs"] - submitting["describejobs"]
        run.send_signal(signal.SIGINT)
        run.wait()
    tell("batch.submission_calls", submitting.total() - submitting["describejobs"], "calls")
    tell("batch.polls", polls / WATCHED, "calls/s")


def asked(proxy: FaultyProxy) -> Counter[str]:
    return Counter(seen.target.rpartition("/")[2] for seen in proxy.seen)


def tell(name: str, value: float, unit: str) -> None:
    print(json.dumps({"name": name, "value": round(value, 3), "unit": unit}), flush=True)


if __name__ == "__main__":
    main()
