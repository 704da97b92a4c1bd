"""A release, built and checked by `scripts/release`."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from aflow._core.version import __version__

pytestmark = pytest.mark.timeout(600)  # it builds, and installs from an index


@pytest.mark.slow
def test_a_release_is_built_checked_and_left_with_its_changes_and_checksums(
    repository: Path, tmp_path: Path
) -> None:
    words = ["--unfinished", "--without-demo", "--out", str(tmp_path / "out")]
    ran = subprocess.run(
        [repository / "scripts" / "release", *words], capture_output=True, text=True
    )
    assert 0 == ran.returncode, ran.stdout + ran.stderr

    name = f"aflow_runtime-{__version__}"
    wheel, source = f"{name}-py3-none-any.whl", f"{name}.tar.gz"
    left = {each.name: each for each in (tmp_path / "out").iterdir()}
    assert {wheel, source, f"CHANGES-{__version__}.md", f"SHA256SUMS-{__version__}"} == {*left}
    assert "2 passed" in ran.stdout, "the project of `aflow init`, from the installed wheel"
    assert left[f"CHANGES-{__version__}.md"].read_text().startswith(f"## {__version__}")
    lines = left[f"SHA256SUMS-{__version__}"].read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    for file in (wheel, source):
        assert sums[file] == hashlib.sha256(left[file].read_bytes()).hexdigest()
    with zipfile.ZipFile(left[wheel]) as archive, tarfile.open(left[source]) as sources:
        assert {"aflow", f"{name}.dist-info"} == {n.split("/")[0] for n in archive.namelist()}
        assert f"{name}/build_backend/aflow_build.py" in sources.getnames()
