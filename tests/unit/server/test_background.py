"""Background tasks of a server that fail or finish."""

from __future__ import annotations

import asyncio
import errno
import logging

import pytest

from aflow._core.backoff import Backoff
from aflow.errors import AflowError
from aflow.server.serve import run_until


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
