"""Background tasks of a server that fail or finish."""

from __future__ import annotations

import asyncio
import errno
import logging
from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request

from aflow._core.backoff import Backoff
from aflow.errors import AflowError
from aflow.metadata.sqlite import SqliteMetadata
from aflow.server.routes.actions import ActionRoutes
from aflow.server.runs import Runs, RunsLocation
from aflow.server.serve import run_until
from aflow.server.views import Views
from aflow.storage.blobs import BlobStore
from aflow.storage.local import LocalStore
from tests.support.clocks import FakeClock


async def test_a_background_task_that_fails_is_logged_and_begins_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stop, begun = asyncio.Event(), 0

    async def fails() -> None:
        nonlocal begun
        begun += 1
        if begun == 2:
            stop.set()
        raise OSError(errno.EMFILE, "Too many open files")

    with caplog.at_level(logging.ERROR):
        await run_until(stop, {"schedules": fails}, backoff=Backoff(0.0, 0.0))

    assert 2 <= begun
    assert "The background task for schedules failed; it begins again." in caplog.text
    assert "Too many open files" in caplog.text


async def test_a_background_task_that_ends_all_the_same_ends_the_server() -> None:
    cancelled = asyncio.Event()

    async def ends() -> None:
        raise asyncio.CancelledError

    async def goes_on() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(AflowError, match="has ended"):
        await run_until(asyncio.Event(), {"schedules": ends, "metrics": goes_on})
    assert cancelled.is_set()


async def test_a_check_whose_client_has_gone_while_it_waited_does_not_begin(
    tmp_path: Path,
) -> None:
    metadata, store = SqliteMetadata(":memory:"), LocalStore(tmp_path)
    clock = FakeClock()
    runs = Runs(RunsLocation(tmp_path, {}), BlobStore(store), 1)
    routes = ActionRoutes(metadata, Views(metadata, clock), runs, clock, store)
    begun = asyncio.Event()

    async def check() -> None:
        begun.set()

    async with routes._checking:  # by another request
        with pytest.raises(ConnectionResetError):
            await routes._alone(make_mocked_request("POST", "/v1/doctor"), check)
    await asyncio.sleep(0)
    assert not begun.is_set()
    metadata.close()
