"""@secrets in jobs of AWS Batch: read within the job, with its role, and never sent to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.aws.furnished import Account

pytestmark = [pytest.mark.timeout(400), pytest.mark.xdist_group("batch")]
KEY = "key-of-the-metadata-service"
PASSWORD = "correct horse battery staple"
FLOW = """
import os
from aflow import FlowSpec, secrets, step
from aflow._core.settings import Settings

class SecretFlow(FlowSpec):
    @secrets(sources=["NAME"])
    @step
    def start(self):
        print("length", len(os.environ["DB_PASSWORD"]), "AWS_BATCH_JOB_ID" in os.environ)
        (key,) = Settings.load().service_auth_keys
        print("key", len(key.reveal()), "AFLOW_SERVICE_AUTH_KEY" in os.environ)
        self.next(self.end)

    @step
    def end(self):
        assert "DB_PASSWORD" not in os.environ

if __name__ == "__main__":
    SecretFlow()
"""


def test_a_job_reads_its_secrets_itself(
    aws: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"jobs/db-{os.getpid()}"
    value = f'{{"DB_PASSWORD": "{PASSWORD}"}}'
    aws.client("secretsmanager").create_secret(Name=name, SecretString=value)
    key = aws.client("secretsmanager").create_secret(Name=f"{name}-key", SecretString=KEY)["ARN"]
    monkeypatch.setenv("AFLOW_SERVICE_AUTH_KEY", KEY)
    monkeypatch.setenv("AFLOW_SERVICE_AUTH_KEY_SECRET", key)
    monkeypatch.setenv("AFLOW_DEFAULT_METADATA", "local")
    # The setting travels with the job.
    monkeypatch.setenv("METAFLOW_DEFAULT_SECRETS_BACKEND_TYPE", "aws-secrets-manager")
    file = tmp_path / "flow.py"
    file.write_text(FLOW.replace("NAME", name))

    done = subprocess.run(
        [sys.executable, str(file), "run", "--with", "batch"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip

    assert 0 == done.returncode, done.stdout + done.stderr
    assert f"length {len(PASSWORD)} True" in done.stdout
    assert f"key {len(KEY)} False" in done.stdout
    assert PASSWORD not in done.stdout + done.stderr
    batch = aws.client("batch")
    jobs = [
        each["jobId"]
        for status in ("SUCCEEDED", "RUNNING")
        for each in batch.list_jobs(jobQueue="queue", jobStatus=status)["jobSummaryList"]
    ]
    assert jobs
    assert PASSWORD not in str(batch.describe_jobs(jobs=jobs[:100])["jobs"])
    assert PASSWORD not in str(batch.describe_job_definitions()["jobDefinitions"])
    assert KEY not in str(batch.describe_jobs(jobs=jobs[:100])["jobs"])
    assert KEY not in str(batch.describe_job_definitions()["jobDefinitions"])
