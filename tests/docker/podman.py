"""Containers without a Docker engine: podman and runc, as root, from a base made by debootstrap.

Building the base takes a minute or two; it is cached below the user's cache folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BASE = "localhost/aflow-base:bookworm"
IMAGE = "localhost/aflow-under-test"
USER = 1000
NEEDED = ("podman", "runc", "debootstrap")
CONFIGURATION = """\
[containers]
netns = "host"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


class Podman:
    """Images and containers in a separate folder, isolated from those of the machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wheels = folder / "wheels"
        configuration = folder / "containers.conf"
        configuration.write_text(CONFIGURATION)
        self._configuration = str(configuration)
        self._places = ["--root", str(folder / "root"), "--runroot", str(folder / "run")]

    def command(self, *words: object) -> list[str]:
        """Return the command line of `podman WORDS`."""
        return ["podman", *self._places, "--storage-driver", "overlay", *map(str, words)]

    def environment(self) -> dict[str, str]:
        """Return the current environment with the paths of podman's configuration."""
        return os.environ | {"CONTAINERS_CONF": self._configuration}

    def __call__(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run `podman WORDS`, whether it succeeds or not."""
        return subprocess.run(
            self.command(*words),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def must(self, *words: object) -> str:
        """Run `podman WORDS`, which must succeed, and return its output."""
        done = self(*words)
        assert 0 == done.returncode, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    def has(self, image: str) -> bool:
        """Return whether the image exists."""
        return 0 == self("image", "exists", image).returncode

    def build(self, repository: Path, image: str) -> None:
        """Build the image of the repository in its current state, from the base and the wheels."""
        arguments = {"BASE": BASE, "PIP_FIND_LINKS": "/wheels", "PIP_NO_INDEX": "1"}
        given = [
            word for name, each in arguments.items() for word in ("--build-arg", f"{name}={each}")
        ]
        self.must(
            # Not a layer of each instruction: of the stage that installs none is used again.
            *("build", "--quiet", "--layers=false", "--format", "docker"),
            *("--file", repository / "docker/Dockerfile"),
            *("--volume", f"{self.wheels}:/wheels:ro", "--tag", image, *given),
            repository,
        )


def derive(podman: Podman, image: str, instructions: str, folder: Path) -> None:
    """Build an image that is IMAGE and these instructions of a Dockerfile. (A build of another
    target of ours would take a quarter of a minute to find that nothing has changed.)"""
    file = folder / "Dockerfile"
    file.write_text(f"FROM {IMAGE}\n{instructions}")
    podman.must("build", "--quiet", "--format", "docker", "--file", file, "--tag", image, folder)


def hardened(data: Path) -> list[str]:
    """Return the options of an unprivileged container that may write only to its home and to
    /tmp."""
    return [
        *("--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "all"),
        *("--security-opt", "no-new-privileges", "--volume", f"{data}:/var/lib/aflow"),
    ]


def why_not() -> str:
    """Return why containers cannot run here; "" if they can."""
    if sys.platform != "linux" or os.getuid() != 0:
        return "containers are run as root on Linux"
    missing = [name for name in NEEDED if shutil.which(name) is None]
    return f"there is no {', '.join(missing)}" if missing else ""


@contextmanager
def podman_in_cache() -> Iterator[Podman]:
    """Return Podman with the base image, and lock the user's cache folder."""
    reason = why_not()
    if reason:
        pytest.skip(f"{reason}: no image is built")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "aflow-containers"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        podman = Podman(folder)
        if not podman.has(BASE):
            _make_base(podman)
        yield podman


def _make_base(podman: Podman) -> None:
    """Build the base image; skip the tests if its packages cannot be downloaded."""
    root = podman.folder / "base"
    shutil.rmtree(root, ignore_errors=True)
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=python3,python3-venv",
         "bookworm", root],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if made.returncode:
        shutil.rmtree(root, ignore_errors=True)
        pytest.skip(f"debootstrap could not make a base image: {made.stdout[-500:]}")
    archive = podman.folder / "base.tar"
    subprocess.run(
        ["tar", "-C", root, "--exclude=./var/cache/apt", "-cf", archive, "."], check=True
    )
    shutil.rmtree(root)
    podman.must("import", archive, BASE)
    archive.unlink()


def fetch_wheels(podman: Podman, repository: Path) -> None:
    """Download the wheels of the pinned versions that the image is built from."""
    podman.wheels.mkdir(exist_ok=True)
    pins = (repository / "docker" / "constraints.txt").read_text()
    fetched_for = podman.wheels / "constraints.txt"
    if fetched_for.exists() and fetched_for.read_text() == pins:
        return
    wanted = [line for line in pins.splitlines() if line and line[0] != "#"]
    fetched = subprocess.run(
        # Redis needs async-timeout on the Python of the base, which is older than ours may be.
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
         "--python-version=3.11", "--dest", podman.wheels, "async-timeout", *wanted],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if fetched.returncode:
        pytest.skip(f"the wheels for the image could not be fetched: {fetched.stderr[-500:]}")
    fetched_for.write_text(pins)
