"""A server and two workers in containers, with the settings of compose.yaml, run a flow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker.podman import IMAGE, Podman, derive
from tests.docker.stack import secrets, stack, stages
from tests.support.s3 import S3Bucket
from tests.support.servers import (
    Server,
    free_port,
    new_database,
    redis_server,
)
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.xdist_group("containers"), pytest.mark.timeout(900)]

FLOW = """
import os, time
from aflow import FlowSpec, Parameter, current, step

class ShardsFlow(FlowSpec):
    n = Parameter("n", default=1)

    @step
    def start(self):
        self.xs = list(range(self.n))
        self.next(self.shard, foreach="xs")

    @step
    def shard(self):
        self.y = self.input ** 2
        time.sleep(0.2)
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
    ShardsFlow()
"""


class Containers:
    """The aflow services of the stack, with stand-ins for the other services."""

    def __init__(
        self, podman: Podman, repository: Path, folder: Path, places: dict[str, str]
    ) -> None:
        self._folder = folder
        self._podman = podman
        self._services: dict[str, Any] = stack(repository)["services"]
        self._places = places
        self._repository = repository
        self.names: list[str] = []

    def settings(self, service: str) -> dict[str, str]:
        """Return the environment of a service in the stack, with the addresses of the stand-ins."""
        found = dict(self._services[service]["environment"])
        return found | {key: value for key, value in self._places.items() if key in found}

    def start(self, service: str, *words: str, **more: str) -> str:
        """Start a container of this service; the image has the target's settings built in."""
        image = f"{IMAGE}-{service}"
        if not self._podman.has(image):
            target = self._services[service]["build"]["target"]
            derive(self._podman, image, stages(self._repository)[target], self._folder)
        name = f"aflow-{os.getpid()}-{len(self.names)}"
        given = (self.settings(service) | more).items()
        environment = [word for key, value in given for word in ("--env", f"{key}={value}")]
        hardening = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--init"]
        home = ["--security-opt", "no-new-privileges", "--volume", "/var/lib/aflow"]
        self.names.append(name)
        self._podman.must(
            *("run", "--replace", "--detach", "--name", name, *hardening, *home, *environment),
            *(image, *words),
        )
        return name

    def start_metadata_service(self, port: int) -> str:
        """The metadata service, with the stack's command but for where it listens and looks."""
        words = list(self._services["metadata-service"]["command"])
        words[words.index("--host") + 1] = "127.0.0.1"
        words[words.index("--metadata") + 1] = self._places["AFLOW_DEFAULT_METADATA"]
        url = f"http://127.0.0.1:{port}/healthcheck"
        return self.start("metadata-service", *words, "--port", str(port), AFLOW_HEALTH_URL=url)

    def until_well(self, name: str) -> None:
        """Wait until the health check of the container succeeds."""
        wait_until(
            lambda: self._podman("healthcheck", "run", name).returncode == 0,
            lambda: f"{name} is not well:\n{self.said(name)}",
            interval=0.1,
        )

    def said(self, name: str) -> str:
        """Return the output of the container."""
        done = self._podman("logs", name)
        return done.stdout + done.stderr

    def stop(self, name: str) -> int:
        """Send SIGTERM, as when the stack is stopped, and return the exit code."""
        self._podman.must("stop", "--time", "45", name)
        reported = self._podman.must("inspect", "--format", "{{.State.ExitCode}}", name)
        return int(reported)

    def remove(self) -> None:
        for name in self.names:
            self._podman("rm", "--force", "--time", "0", "--volumes", name)
        for service in ("server", "worker", "metadata-service"):
            self._podman("image", "rm", "--force", f"{IMAGE}-{service}")


@pytest.fixture
def redis_with_password(tmp_path: Path) -> Iterator[str]:
    """The URL of a queue that requires the password of the stack."""
    password = secrets()["REDIS_PASSWORD"]
    server = redis_server(tmp_path, "--requirepass", password)
    yield f"redis://:{password}@127.0.0.1:{server.port}/0"
    server.kill()


@pytest.fixture
def containers(
    podman: Podman,
    repository: Path,
    postgres_server: Server,
    redis_with_password: str,
    s3_bucket: S3Bucket,
    tmp_path: Path,
) -> Iterator[Containers]:
    """The stack without running containers."""
    with new_database(postgres_server) as database:
        places = {
            "AFLOW_DATASTORE_SYSROOT_S3": f"s3://{s3_bucket.name}/runs",
            "AFLOW_S3_ENDPOINT_URL": s3_bucket.endpoint,
            # The password is in a separate variable, as in the stack.
            "AFLOW_DEFAULT_METADATA": database.replace(":secret@", "@"),
            "AFLOW_QUEUE": redis_with_password,
            "PGPASSWORD": "secret",
        }
        containers = Containers(podman, repository, tmp_path, places)
        yield containers
        containers.remove()


def test_a_server_and_two_workers_in_containers_run_a_flow_that_is_sent(
    containers: Containers, tmp_path: Path
) -> None:
    port = free_port()
    ready = f"http://127.0.0.1:{port}/readyz"
    server = containers.start(
        "server",
        "aflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        AFLOW_HEALTH_URL=ready,
    )
    workers = [containers.start("worker", "aflow", "worker", "--slots", "2") for _ in range(2)]
    service = containers.start_metadata_service(service_port := free_port())
    for name in (server, *workers, service):
        containers.until_well(name)
    (tmp_path / "flow.py").write_text(FLOW)
    settings = containers.settings("aflow")
    token = containers.settings("server")["AFLOW_SERVICE_AUTH_KEY"]

    sent = aflow("submit", tmp_path / "flow.py", "--n", "12", "--wait",
                 "--server", f"http://127.0.0.1:{port}", AFLOW_SERVICE_AUTH_KEY=token)  # fmt: skip
    assert 0 == sent.returncode, sent.stderr + "".join(map(containers.said, containers.names))
    run = sent.stdout.split()[0]
    artifacts = aflow("dump", f"{run}/join", "--include", "ys", **settings)
    log = aflow("logs", f"{run}/end", **settings)
    over_http = {
        "AFLOW_DEFAULT_METADATA": f"http://127.0.0.1:{service_port}",
        "AFLOW_SERVICE_AUTH_KEY": token,
    }
    listed = aflow("runs", "ShardsFlow", **over_http)
    ended = [containers.stop(name) for name in (*workers, service, server)]

    assert str([x * x for x in range(12)]) in artifacts.stdout, artifacts.stderr
    assert "by 1000" in log.stdout, log.stderr
    assert run.partition("/")[2] in listed.stdout, listed.stderr
    assert [0, 0, 0, 0] == ended
    took = [containers.said(name) for name in workers]
    assert all("takes tasks of default from redis://127.0.0.1" in each for each in took), took


def aflow(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command on this machine."""
    return subprocess.run(
        [sys.executable, "-m", "aflow", *map(str, words)],
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )
