"""The web service of the examples, tested over HTTP."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import RunState

FOR_EVER = 10**12  # samples


@asynccontextmanager
async def serving(example: Path, folder: Path) -> AsyncIterator[ClientSession]:
    """Run the service in the folder; at the end it is stopped by Ctrl-C, and must succeed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", example, "--port", "0"),
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert "http://" in line
        async with ClientSession(line.split()[3]) as session:
            yield session
        process.send_signal(signal.SIGINT)
        assert 0 == await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def example(repository: Path) -> Path:
    """The program."""
    return repository / "examples" / "embedded_service.py"


async def begin(service: ClientSession, samples: Any) -> str:
    """Start a run, and return its id."""
    async with service.post("/runs", json={"samples": samples}) as answer:
        assert 202 == answer.status, await answer.text()
        run: str = (await answer.json())["run"]
        return run


async def test_a_flow_runs_on_request_and_is_watched_while_it_does(
    example: Path, tmp_path: Path
) -> None:
    async with serving(example, tmp_path) as service:
        run = await begin(service, 4000)
        async with service.get(f"/runs/{run}/events") as answer:
            text = await answer.text()
        async with service.get(f"/runs/{run}") as answer:
            result = await answer.json()

    events = [each.split("\n", 1) for each in text.split("\n\n")[:-1]]
    assert "event: RunEnded" == events[-1][0]
    assert "succeeded" == json.loads(events[-1][1].removeprefix("data: "))["state"]
    assert "succeeded" == result["state"]
    assert 3 < result["pi"] < 3.3


async def test_a_run_too_many_is_refused_until_another_one_is_stopped(
    example: Path, tmp_path: Path
) -> None:
    async with serving(example, tmp_path) as service:
        first, _second = [await begin(service, FOR_EVER) for _ in range(2)]
        async with service.post("/runs", json={"samples": 4}) as answer:
            assert (503, "5") == (answer.status, answer.headers["Retry-After"])
        async with service.delete(f"/runs/{first}") as answer:
            assert "cancelled" == (await answer.json())["state"]
        async with service.delete(f"/runs/{first}") as answer:
            assert 404 == answer.status
        await begin(service, FOR_EVER)

    metadata = SqliteMetadata(tmp_path / ".aflow" / "metadata.db", read_only=True)
    assert [RunState.CANCELLED] * 3 == [each.state for each in metadata.runs("PiFlow")]
    metadata.close()


async def test_a_wrong_request_is_answered_with_a_sentence(example: Path, tmp_path: Path) -> None:
    async with serving(example, tmp_path) as service:
        for body in (b"{", b"[]", b'{"watch": 1}', b'{"samples": "many"}'):
            async with service.post("/runs", data=body) as answer:
                assert 400 == answer.status, body
                assert "Traceback" not in await answer.text()
        for wrong in ("1", "no%20id", "..%2F..%2Fetc"):
            async with service.get(f"/runs/{wrong}") as answer:
                assert 404 == answer.status, wrong
