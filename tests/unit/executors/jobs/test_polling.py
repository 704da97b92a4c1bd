"""Polling a job system for the states of jobs continues after any response."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aflow._core.backoff import Backoff
from aflow._core.clock import SystemClock
from aflow.errors import InvalidInput, JobSystemBusy, JobSystemError, StoreUnavailable
from aflow.executors.base import Orphan
from aflow.executors.jobs import polling
from aflow.executors.jobs.base import CallLimits, JobState, JobStatus, lost
from aflow.executors.jobs.executor import JobExecutor
from aflow.executors.local.executor import needs_of
from aflow.executors.protocol import Job, python_version
from aflow.executors.remote import job as remote_job
from aflow.flow.spec import define
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.messages import NoInputs, Outcome, encode_inputs
from aflow.storage.local import LocalStore
from aflow.task.program import request_of
from aflow.task.spec import AttemptSpec
from tests.contracts.executing import Recorder, context_in
from tests.contracts.flow_of_actions import ActionFlow
from tests.support.failing import Failing, Points
from tests.support.waiting import select_nothing


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


class TwoArrays:
    """A job system with arrays of two jobs, one of which ends without a report. While the members
    of one array are looked at, those of the other are cancelled."""

    title, scope, advice = "a job system", "two arrays", ""
    limits = CallLimits(10, 10, 10)

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.arrays: list[str] = []
        self.left: list[int] = []  # the tasks that were not cancelled
        self.is_looked_at_again = self.is_closed = False
        self.executor: Any = None
        self.loop = asyncio.get_running_loop()

    def name_of(self, context: Any, step: str, unique: str) -> str:
        return unique

    def submit(self, submission: Any) -> str:
        self.arrays.append(f"array{len(self.arrays)}")
        return self.arrays[-1]

    def member(self, job: str, index: int) -> str:
        return f"{job}:{index}"

    def describe(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        ended = 1 if len(ids) == 2 or self.left else 0
        return {id: JobStatus(id, JobState.RUNNING, size=2, ended=ended) for id in ids}

    def suspects(self, array: str, members: Sequence[str], *, is_over: bool) -> Sequence[str]:
        if self.left:
            self.is_looked_at_again = True
        else:
            first, other = ([1, 2], [3, 4]) if array == "array0" else ([3, 4], [1, 2])
            self.left = first
            for task in other:
                self.loop.call_soon_threadsafe(self.executor.cancel, task, 0)
            while not all(task in self.recorder.reports for task in other):
                select_nothing(0.005)
        return []

    def terminate(self, ids: Sequence[str], reason: str) -> None:
        """Do nothing: the jobs do not respond."""

    def close(self) -> None:
        self.is_closed = True


def executor_of(system: Any, folder: Path, *, grace: float = 0.0) -> JobExecutor:
    """Return an executor whose attempts are jobs of this system; only first attempts have one."""
    definition, step = define(ActionFlow), SimpleNamespace(step="act", queue="", is_gang=False)

    def job_of(name: str, attempt: int) -> Any:
        if attempt > 0:
            raise InvalidInput("@resources: the function of memory raised IndexError.")
        return step

    def job(context: Any) -> Job:
        request, needs = request_of(definition), needs_of(definition)
        return Job(context, request, needs, None, "", "task", python_version(), 1 << 20)

    return JobExecutor(
        system, job_of, LocalStore(folder / "store"), SqliteMetadata(":memory:"), job,
        SystemClock(), grace=grace,
    )  # fmt: skip


def spec_of(task: int) -> AttemptSpec:
    """Return the first attempt of this task."""
    inputs = encode_inputs(NoInputs())
    return AttemptSpec("act", task, 0, inputs, None, None, None, False, True, False, {})


async def until(condition: Callable[[], object]) -> None:
    """Wait until this is true."""
    while not condition():
        await asyncio.to_thread(select_nothing, 0.005)


async def test_an_array_that_ends_while_another_is_looked_at_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "QUIET", Backoff(0.01, 0.01))
    recorder = Recorder()
    system: Any = TwoArrays(recorder)
    system.executor = executor = executor_of(system, tmp_path)
    await executor.start(context_in(tmp_path), recorder)
    for tasks in ((1, 2), (3, 4)):
        for task in tasks:
            executor.launch(spec_of(task))
        while len(system.arrays) < task / 2:
            await asyncio.to_thread(select_nothing, 0.005)
    while not system.is_looked_at_again and len(recorder.reports) < 4:
        await asyncio.to_thread(select_nothing, 0.005)
    await executor.stop()
    states = {task: report.state for task, report in recorder.reports.items()}
    assert [1, 2, 3, 4] == sorted(states)
    assert ["interrupted"] * 2 == [states[task] for task in system.left]


class OneByOne(TwoArrays):
    """A job system of single jobs. The first submission waits until it `may_submit`; the jobs end
    when they are in `ended`. While `trouble` is set, it does not tell how, and ends none."""

    scope = "one by one"

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.may_submit = threading.Event()
        self.terminated: list[str] = []
        self.ended: set[str] = set()
        self.trouble: Exception | None = None
        self.asked = 0

    def submit(self, submission: Any) -> str:
        job = super().submit(submission)
        assert self.may_submit.wait(60)
        return job

    def find(self, name: str, job: Any) -> str:
        assert self.may_submit.wait(60)
        return f"found {name}"

    def describe(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        states = {id: JobState.ENDED if id in self.ended else JobState.RUNNING for id in ids}
        return {id: JobStatus(id, state) for id, state in states.items()}

    def outcome_of(self, status: JobStatus) -> Outcome:
        self.asked += 1
        if self.trouble is not None:
            raise self.trouble
        return lost("its machine has gone.")

    def terminate(self, ids: Sequence[str], reason: str) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.terminated += ids


async def test_no_job_of_a_cancelled_attempt_is_submitted_or_goes_on(tmp_path: Path) -> None:
    recorder = Recorder()
    system: Any = OneByOne(recorder)
    executor = executor_of(system, tmp_path)
    named = Orphan(spec_of(1), "name=earlier", None)
    executor.recover([named])
    await executor.start(context_in(tmp_path), recorder)
    executor.cancel(1, 0)  # given up before the job of the earlier coordinator is found
    await until(lambda: 1 in recorder.reports)
    system.may_submit.set()
    await until(lambda: system.terminated == ["found earlier"])

    system.may_submit.clear()
    executor.launch(spec_of(2))
    await until(lambda: system.arrays == ["array0"])
    executor.launch(spec_of(3))
    executor.cancel(2, 0)  # while its job is submitted
    executor.cancel(3, 0)  # while it waits for the submission of the other job
    await until(lambda: {2, 3} <= recorder.reports.keys())
    system.may_submit.set()
    await until(lambda: "array0" in system.terminated)
    await executor.stop()
    assert ["array0"] == system.arrays
    assert {"cancelled"} == {report.state for report in recorder.reports.values()}


async def test_a_job_is_submitted_when_its_name_is_written(tmp_path: Path) -> None:
    written = asyncio.get_running_loop().create_future()

    class Writing(Recorder):
        def handed(self, task: int, attempt: int, handle: str, host: str = "") -> Any:
            super().handed(task, attempt, handle, host)
            return written

    recorder = Writing()
    system: Any = OneByOne(recorder)
    system.may_submit.set()
    executor = executor_of(system, tmp_path)
    await executor.start(context_in(tmp_path), recorder)
    executor.launch(spec_of(1))
    await until(lambda: recorder.handles.get(1, "").startswith("name="))
    executor.launch(spec_of(2))
    await asyncio.to_thread(select_nothing, 0.05)  # in which it would be submitted
    assert [] == system.arrays
    written.set_result(None)
    await until(lambda: system.arrays == ["array0", "array1"])
    await executor.stop()


async def test_an_attempt_that_is_left_while_it_is_cancelled_is_not_given_up_here(
    tmp_path: Path,
) -> None:
    recorder, errors = Recorder(), []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    system: Any = OneByOne(recorder)
    system.may_submit.set()
    executor = executor_of(system, tmp_path, grace=0.05)
    await executor.start(context_in(tmp_path), recorder)
    executor.launch(spec_of(1))
    await until(lambda: system.arrays and (1, 0) in executor._places)
    executor.cancel(1, 0)
    over = loop.call_later(0.1, lambda: None).when()  # the executor would give it up by now
    await executor.leave()
    await until(lambda: loop.time() > over)
    assert ["array0"] == system.terminated
    assert ([], {}) == (errors, recorder.reports)


async def test_what_fails_for_one_attempt_ends_no_other_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(polling, "QUIET", Backoff(0.01, 0.01))

    recorder = Recorder()
    system: Any = OneByOne(recorder)
    system.may_submit.set()
    system.trouble = JobSystemBusy("The controller does not respond.")
    executor = executor_of(system, tmp_path)
    await executor.start(context_in(tmp_path), recorder)
    executor.launch(spec_of(1))
    await until(lambda: "array0" in system.arrays)
    executor.launch(spec_of(2))
    executor.launch(spec_of(3)._replace(attempt=1))
    await until(lambda: "array1" in system.arrays)
    system.ended.add("array0")
    await until(lambda: system.asked > 1)
    assert ["failed"] == [report.state for report in recorder.reports.values()]
    assert "function of memory" in recorder.reports[3].reason
    system.trouble = JobSystemError("You may not see this.")
    await until(lambda: 1 in recorder.reports)
    assert "does not tell how its job ended: You may not see this." in recorder.reports[1].reason
    with caplog.at_level(logging.WARNING, "aflow"):
        await executor.stop()
    assert "Jobs of a job system go on (array1), and have to be ended there: You may" in caplog.text
    assert ["lost", "interrupted"] == [recorder.reports[task].state for task in (1, 2)]


async def test_runs_of_a_process_share_one_system_until_the_last_one_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "QUIET", Backoff(0.01, 0.01))
    recorder = Recorder()
    systems: list[Any] = [OneByOne(recorder) for _ in range(2)]
    executors = [executor_of(system, tmp_path) for system in systems]
    for system, executor in zip(systems, executors, strict=True):
        system.may_submit.set()
        await executor.start(context_in(tmp_path), recorder)
    shared, other = systems
    await executors[0].stop()
    assert [False, True] == [shared.is_closed, other.is_closed]
    executors[1].launch(spec_of(1))
    await until(lambda: shared.arrays == ["array0"])
    shared.ended.add("array0")
    await until(lambda: 1 in recorder.reports)
    await executors[1].stop()
    assert shared.is_closed
    assert (1, 0, []) == (shared.asked, other.asked, other.arrays)


async def test_reports_of_a_job_wait_for_the_datastore_except_for_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWAY", "GATHER"):
        monkeypatch.setattr(remote_job, name, Backoff(0.01, 0.01) if name == "AWAY" else 0.0)
    store = LocalStore(tmp_path / "store")

    async def sent(worker: str, fails_at: int) -> None:
        points = Points(stop_at=fails_at, dies=False)
        failing: Any = Failing(store, points, StoreUnavailable)
        news = remote_job.News(failing, "F", "1", worker)
        news.add(("first",))
        sending = asyncio.create_task(news.send_until_closed())
        await until(lambda: points.passed)
        news.add(("second",))
        news.close()
        await sending

    with pytest.raises(StoreUnavailable):
        await sent("refused", 0)
    await sent("patient", 1)
    names = [name.rpartition("/reports/")[2] for name in store.list("jobs/F/1/reports/")]
    assert ["patient/00000001", "patient/00000002"] == names
