"""The image, built and run without a Docker engine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from aflow._core.version import __version__
from tests.docker.podman import IMAGE, USER, Podman, hardened
from tests.support import packages
from tests.support.s3 import S3Bucket

# One process of the test session builds the image for all tests: building the base is slow.
pytestmark = [pytest.mark.xdist_group("containers"), pytest.mark.timeout(900)]

FLOW = """
import os
from aflow import FlowSpec, pypi, step

class SquaresFlow(FlowSpec):
    @step
    def start(self):
        self.xs = [1, 2, 3]
        self.next(self.square, foreach="xs")

    @pypi(packages={"tiny": "1.0"})
    @step
    def square(self):
        import tiny
        assert tiny.__version__ == "1.0"
        self.y = self.input ** 2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ys = [each.y for each in inputs]
        self.data = b"x" * 100_000
        self.next(self.end)

    @step
    def end(self):
        print("squares", self.ys, "by", os.getuid())

if __name__ == "__main__":
    SquaresFlow()
"""

REST = """
import time
from aflow import FlowSpec, step

class RestFlow(FlowSpec):
    @step
    def start(self):
        print("at work", flush=True)
        time.sleep(600)
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    RestFlow()
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder that is mounted as the home of the image's user, with write permission."""
    folder = tmp_path / "home"
    folder.mkdir()
    os.chown(folder, USER, USER)
    return folder


def test_the_image_has_the_command_and_a_user_of_its_own(podman: Podman, data: Path) -> None:
    said = podman.must("run", *hardened(data), IMAGE, "aflow", "--version")
    who = podman.must("run", *hardened(data), IMAGE, "id", "-u")

    assert f"aflow {__version__}" == said.strip()
    assert str(USER) == who.strip()


def test_the_image_has_what_it_takes_for_every_kind_of_backend(podman: Podman, data: Path) -> None:
    libraries = "import aiobotocore, aiohttp, psycopg, redis, uvloop, yaml"
    done = podman("run", *hardened(data), IMAGE, "python3", "-W", "error", "-c", libraries)
    assert (0, "") == (done.returncode, done.stderr)


def test_the_image_lists_what_is_installed_in_it(podman: Podman, data: Path) -> None:
    reported = podman.must(
        "run", *hardened(data), IMAGE, "cat", "/opt/aflow/share/sbom/aflow.cdx.json"
    )
    program = "from importlib.metadata import distributions as d; print(*(e.name for e in d()))"
    installed = podman.must("run", *hardened(data), IMAGE, "python3", "-c", program).split()

    materials = json.loads(reported)
    versions = {each["name"]: each["version"] for each in materials["components"]}
    assert "CycloneDX" == materials["bomFormat"]
    assert {*installed} == {*versions}
    assert __version__ == versions["aflow-runtime"]


def test_an_aflow_that_was_installed_from_a_wheel_can_be_shipped(
    podman: Podman, data: Path
) -> None:
    program = (
        "import json, pathlib, sys; from aflow.environments.shipping import packed_runtime as p; "
        "made = p(pathlib.Path('/tmp/wheels'), 0.0); "
        "print(json.dumps(sorted(each.path.name for each in made.wheels)))"
    )
    names = json.loads(podman.must("run", *hardened(data), IMAGE, "python3", "-c", program))

    assert f"aflow_runtime-{__version__}-py3-none-any.whl" in names
    assert {"botocore", "msgpack", "uvloop"} <= {each.split("-")[0] for each in names}


def test_a_flow_with_packages_runs_in_a_hardened_container_and_leaves_its_artifacts_in_s3(
    podman: Podman, data: Path, s3_bucket: S3Bucket
) -> None:
    (data / "flow.py").write_text(FLOW)
    packages.make_wheel(data / "wheels", "tiny", "1.0")
    command = ["aflow", "run", "flow.py", "--datastore", "s3", "--datastore-root", s3_bucket.url]
    options = [*hardened(data), "--init", "--env", "AWS_*"]
    options += ["--env", "UV_FIND_LINKS=/var/lib/aflow/wheels", "--env", "UV_OFFLINE=1"]

    said = podman.must("run", *options, IMAGE, *command)

    assert f"squares [1, 4, 9] by {USER}" in said
    assert [] != s3_bucket.names()


def test_a_container_that_is_stopped_stops_its_run(podman: Podman, data: Path) -> None:
    (data / "flow.py").write_text(REST)
    running = subprocess.Popen(
        podman.command(
            "run",
            "--replace",
            "--name",
            "stopped",
            *hardened(data),
            IMAGE,
            "aflow",
            "run",
            "flow.py",
        ),
        env=podman.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with running:
        assert running.stdout is not None
        before = next(line for line in running.stdout if "at work" in line)
        podman.must("stop", "--time", "30", "stopped")
        rest = running.stdout.read()

    assert "start/1" in before
    assert "SIGTERM" in rest, rest
    assert 128 + 15 == running.returncode, rest
