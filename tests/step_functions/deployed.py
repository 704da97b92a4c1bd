"""Flows that tests deploy: their commands, and the results of their executions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aflow import client
from aflow.client import Run
from aflow.metadata.base import RunRecord
from aflow.metadata.factory import open_metadata
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.aws.furnished import Account

FLOWS = Path(__file__).parent / "flow_files"
DEADLINE = 150.0  # seconds of an execution: several jobs, one after the other


def flow(file: str, *words: str, code: int = 0, cwd: Path | None = None) -> str:
    """Run a command of the flow, and return its output."""
    done = subprocess.run(
        [sys.executable, str(FLOWS / file), *words], capture_output=True, text=True, cwd=cwd
    )
    assert code == done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


def step_functions(file: str, command: str, *words: str, code: int = 0) -> str:
    return flow(file, "step-functions", command, *words, code=code)


def ended(aws: Account, machine: str, run: str) -> str:
    """Wait for the execution of a run, and return how it has ended."""
    states = aws.client("stepfunctions")
    arn = f"arn:aws:states:us-east-1:123456789012:execution:{machine}:{run.removeprefix('sfn-')}"

    def status() -> str | None:
        found: str = states.describe_execution(executionArn=arn)["status"]
        return None if found == "RUNNING" else found

    return wait_until(status, lambda: job_logs(aws), seconds=DEADLINE, interval=0.3) or ""


def job_logs(aws: Account) -> str:
    """Return the output of all jobs, in all log groups. The account is shared by the test session,
    so there may be more jobs than the 50 of one page."""
    logs, printed = aws.client("logs"), []
    for group in (each["logGroupName"] for each in logs.describe_log_groups()["logGroups"]):
        pages = logs.get_paginator("describe_log_streams").paginate(logGroupName=group)
        for stream in (each["logStreamName"] for page in pages for each in page["logStreams"]):
            events = logs.get_log_events(logGroupName=group, logStreamName=stream)["events"]
            printed += [each["message"] for each in events]
    return "\n".join(printed)


def wait_for_log(aws: Account, text: str) -> None:
    """Wait until a job has printed this; a job's log may arrive after its execution has ended."""
    wait_until(
        lambda: text in job_logs(aws),
        lambda: f"{text!r} is not in: {job_logs(aws)}",
        seconds=DEADLINE,
        interval=0.3,
    )


def run_of(aws: Account, pathspec: str) -> Run:
    client.metadata(aws.metadata.url)
    return Run(pathspec, _namespace_check=False)


def recorded(aws: Account, flow: str, run: str) -> RunRecord:
    """Return the record of a run."""
    metadata = open_metadata(aws.metadata.url)
    found = metadata.run(flow, run)
    metadata.close()
    assert found is not None
    return found
