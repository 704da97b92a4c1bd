"""The pages as files, if the build could not include their libraries."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from aflow.server import ui


async def allows(_: str) -> bool:
    return True


async def test_pages_that_were_not_built_say_how_to_build_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ui.STATIC / "index.html", tmp_path)
    monkeypatch.setattr(ui, "STATIC", tmp_path)
    app = web.Application()
    ui.Pages(allows).add_to(app)
    async with TestClient(TestServer(app)) as client:
        answer = await client.get("/ui/runs/Flow/1")
        assert 501 == answer.status
        assert "python build_backend/aflow_build.py" in await answer.text()


def test_a_build_without_npm_says_what_is_missing_and_goes_on(
    tmp_path: Path, repository: Path
) -> None:
    for each in ("build_backend", "ui"):
        shutil.copytree(
            repository / each,
            tmp_path / each,
            ignore=shutil.ignore_patterns("node_modules", "checked"),
        )
    built = subprocess.run(
        [sys.executable, "build_backend/aflow_build.py"],
        cwd=tmp_path, env={**os.environ, "PATH": "/nowhere"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert 0 == built.returncode
    assert "neither npm nor a wheel of Node.js was found" in built.stderr
    assert "Everything else is complete." in built.stderr
