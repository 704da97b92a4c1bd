"""Flows that are deployed in tests: their commands, and how their runs went."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aflow import client
from aflow.backends import open_metadata
from aflow.client import Run
from aflow.metadata.base import RunRecord
from tests.support.servers import select_nothing

if TYPE_CHECKING:
    from tests.support.aws.furnished import Account

FLOWS = Path(__file__).parent / "flow_files"
DEADLINE = 150.0  # seconds for an execution


def flow(file: str, *words: str, code: int = 0, cwd: Path | None = None) -> str:
    """What a command of the flow says."""
    done = subprocess.run(
        [sys.executable, str(FLOWS / file), *words], capture_output=True, text=True, cwd=cwd
    )
    assert code == done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


def step_functions(file: str, command: str, *words: str, code: int = 0) -> str:
    return flow(file, "step-functions", command, *words, code=code)


def ended(aws: Account, machine: str, run: str) -> str:
    """How the execution of a run has ended."""
    states = aws.client("stepfunctions")
    arn = f"arn:aws:states:us-east-1:123456789012:execution:{machine}:{run.removeprefix('sfn-')}"
    give_up_at = time.monotonic() + DEADLINE
    while (found := states.describe_execution(executionArn=arn))["status"] == "RUNNING":
        assert time.monotonic() < give_up_at, job_logs(aws)
        select_nothing(0.3)
    status: str = found["status"]
    return status


def job_logs(aws: Account) -> str:
    """What all jobs have printed."""
    logs, told = aws.client("logs"), []
    for stream in logs.describe_log_streams(logGroupName="/aws/batch/job")["logStreams"]:
        events = logs.get_log_events(
            logGroupName="/aws/batch/job", logStreamName=stream["logStreamName"]
        )
        told += [each["message"] for each in events["events"]]
    return "\n".join(told)


def wait_for_log(aws: Account, text: str) -> None:
    """Wait until a job has printed this; a job's log may arrive after its execution has ended."""
    give_up_at = time.monotonic() + DEADLINE
    while text not in (printed := job_logs(aws)):
        assert time.monotonic() < give_up_at, f"{text!r} is not in: {printed}"
        select_nothing(0.3)


def run_of(aws: Account, pathspec: str) -> Run:
    client.metadata(aws.metadata.url)
    return Run(pathspec, _namespace_check=False)


def recorded(aws: Account, flow: str, run: str) -> RunRecord:
    """The record of a run."""
    metadata = open_metadata(aws.metadata.url)
    found = metadata.run(flow, run)
    metadata.close()
    assert found is not None
    return found
