"""The image that all container tests share: it is built once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.podman import IMAGE, Podman, fetch_wheels, podman_in_cache


@pytest.fixture(scope="session")
def podman(repository: Path) -> Iterator[Podman]:
    """Podman, with the image of the working tree."""
    with podman_in_cache() as podman:
        fetch_wheels(podman, repository)
        podman.build(repository, IMAGE)
        yield podman
        podman.must("image", "rm", "--force", IMAGE)
        podman.must("image", "prune", "--force")
