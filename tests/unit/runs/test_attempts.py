from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from aflow.runs.attempts import AttemptLogs, LiveAttempt
from aflow.scheduler.states import AttemptState
from aflow.storage.base import Buffer
from aflow.storage.memory import MemoryStore
from aflow.task.spec import AttemptReport


@pytest.mark.parametrize(("ended_at", "recorded"), [(99.0, 100.0), (101.0, 101.0), (None, 102.0)])
def test_no_attempt_ends_before_it_began_whatever_the_clocks_say(
    ended_at: float | None, recorded: float
) -> None:
    attempt = LiveAttempt("work", fallback=False)
    attempt.started_at = 100.0
    report = AttemptReport(1, 0, AttemptState.SUCCEEDED.value, finished_at=ended_at or 0.0)

    assert recorded == attempt.ended(report, None, None, 102.0).finished_at


class HeldStore(MemoryStore):
    """A store whose writes wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def put(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> None:
        assert self.go.wait(30)
        super().put(name, parts, durable=durable)


async def test_an_attempt_that_ends_waits_for_a_chunk_that_is_still_being_stored() -> None:
    store, stored = HeldStore(), asyncio.Event()
    logs = AttemptLogs(store, "Flow", "1", 1 << 30, lambda *_: stored.set())
    logs.feed("work", 1, 0, 0, 1.0, b"x" * (1 << 20) + b"\n")  # a whole chunk: stored at once

    _, log = logs.finish(1, 0, 2.0)
    assert log is not None
    assert log.unstored is not None
    assert (1, False, False) == (log.chunks, log.unstored.done(), stored.is_set())

    store.go.set()
    await log.unstored
    assert 1 == len([*store.list("")])
    await logs.close()
