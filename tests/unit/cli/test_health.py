"""The health check of containers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aflow.cli import health
from aflow.errors import InvalidSetting
from tests.support.servers import free_port
from tests.support.waiting import PATIENCE

NOW = 1_700_000_000.0


def touched(path: Path, age: float) -> Path:
    path.touch()
    os.utime(path, (NOW - age, NOW - age))
    return path


def test_a_worker_that_has_just_given_a_sign_of_life_is_well(tmp_path: Path) -> None:
    assert health.trouble(touched(tmp_path / "file", 5), None, NOW) == ""


def test_a_worker_whose_last_sign_of_life_is_old_is_not_well(tmp_path: Path) -> None:
    assert "is 31 s old" in health.trouble(touched(tmp_path / "file", 31), None, NOW)


def test_a_worker_that_has_given_no_sign_of_life_is_not_well(tmp_path: Path) -> None:
    assert "No heartbeat of a worker" in health.trouble(tmp_path / "file", None, NOW)


def test_a_server_that_does_not_answer_is_not_well() -> None:
    url = f"http://127.0.0.1:{free_port()}/readyz"
    assert f"does not answer at {url}" in health.trouble(None, url, NOW)


async def test_a_sign_of_life_is_given_at_once_and_one_that_cannot_be_given_is_said(
    tmp_path: Path,
) -> None:
    file = tmp_path / "file"
    beating = asyncio.ensure_future(health.beat(file))
    async with asyncio.timeout(PATIENCE):
        while not file.exists():
            await asyncio.sleep(0)
    beating.cancel()

    with pytest.raises(InvalidSetting, match="AFLOW_HEALTH_FILE"):
        await health.beat(tmp_path / "nowhere" / "file")


@pytest.mark.parametrize(("there", "code"), [(True, 0), (False, 1)])
def test_the_check_is_a_program_whose_exit_code_is_the_answer(
    tmp_path: Path, there: bool, code: int
) -> None:
    file = tmp_path / "file"
    if there:
        file.touch()
    done = subprocess.run(
        [sys.executable, "-m", "aflow", "_health"],
        env=os.environ | {"AFLOW_HEALTH_FILE": str(file)},
        capture_output=True,
        text=True,
    )
    assert (code, not there) == (done.returncode, bool(done.stderr)), done.stderr


def test_a_check_of_nothing_is_no_good_news() -> None:
    assert "AFLOW_HEALTH_URL" in health.trouble(None, None, NOW)
