"""What all tests share: settings of hypothesis, and a world without the developer's settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.aws.furnished import aws, aws_account  # noqa: F401 -- fixtures of all tests
from tests.support.kubernetes import kubernetes, kubernetes_server  # noqa: F401 -- the same
from tests.support.s3 import (  # noqa: F401 -- the same
    s3_bucket,
    s3_server,
    strict_bucket,
    strict_s3_server,
)
from tests.support.servers import postgres_server  # noqa: F401 -- the same
from tests.support.slurm import slurm, slurm_server  # noqa: F401 -- the same

# A deadline would make slow machines fail tests that are right.
settings.register_profile(
    "aflow", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("aflow")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def _own_world(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting of the developer's shell or home reaches a test or the processes it starts."""
    for name in os.environ:
        if name.startswith(("AFLOW_", "METAFLOW_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AFLOW_USER", "tester")
    monkeypatch.setenv("AFLOW_HOME", str(tmp_path_factory.getbasetemp() / "no-home"))
