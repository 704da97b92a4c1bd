"""Polling a job system for the states of jobs continues after any response."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from aflow._core.backoff import Backoff
from aflow.executors.jobs import polling
from aflow.executors.jobs.base import CallLimits, JobState, JobStatus


class System:
    """A job system whose first responses are errors."""

    title, scope = "a job system", "here"
    limits = CallLimits(10, 10, 10)

    def __init__(self, *answers: Exception | dict[str, JobStatus]) -> None:
        self.answers = [*answers]

    def describe(self, jobs: list[str]) -> dict[str, JobStatus]:
        """Fail until all failures have been raised."""
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_an_answer_that_nobody_foresaw_is_logged_and_the_jobs_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("QUIET", "REFUSED"):
        monkeypatch.setattr(polling, name, Backoff(0.01, 0.01))
    ended = JobStatus("job", JobState.ENDED)
    odd: list[Any] = [RuntimeError("can't start new thread"), {}, {"job": ended}]
    seen: asyncio.Queue[JobStatus] = asyncio.Queue()
    poller = polling.Poller(System(*odd))  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR, "aflow.jobs"):
        poller.watch("job", seen.put_nowait)
        async with asyncio.timeout(60):
            assert ended == await seen.get()
        poller.unwatch("job")
    assert 2 == sum("tried again" in each.getMessage() for each in caplog.records)


async def test_a_job_that_is_watched_during_a_round_is_polled_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(polling, "QUIET", Backoff(0.01, 3600.0, growth=1e6, jitter=0.0))
    loop = asyncio.get_running_loop()
    seen: asyncio.Queue[JobStatus] = asyncio.Queue()

    async def watch_another() -> None:
        poller.watch("late", seen.put_nowait)

    class Slow(System):
        rounds = 0

        def describe(self, jobs: list[str]) -> dict[str, JobStatus]:
            """Nothing changes in the first round, during which another job is watched."""
            self.rounds += 1
            if self.rounds == 1:
                asyncio.run_coroutine_threadsafe(watch_another(), loop).result(60)
            return {job: JobStatus(job, JobState.RUNNING) for job in jobs}

    poller = polling.Poller(Slow())  # type: ignore[arg-type]
    poller.watch("early", lambda status: None)
    async with asyncio.timeout(60):
        assert "late" == (await seen.get()).id
    poller.unwatch("early")
    poller.unwatch("late")
