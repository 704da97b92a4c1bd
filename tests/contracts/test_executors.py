"""The contract of every executor: order, results, cancellation, stopping. Kinds of attempts are
`task` (one process each), `worker` (processes that run many), `coroutine` (one process runs all),
`queue` (one process each, on a worker that takes them from a queue), and `batch` (one job of AWS
Batch each).
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from aflow._core.clock import SystemClock
from aflow._core.system import usable_cpus
from aflow.errors import AflowError
from aflow.executors.base import Orphan
from aflow.executors.local import executor
from aflow.executors.local.zygote_client import ZygoteProcess
from aflow.executors.local.zygote_start import spawn_zygote
from aflow.flow.spec import define
from aflow.task.program import request_of
from tests.contracts.executing import (
    BATCH,
    EVERYWHERE,
    KINDS,
    Recorder,
    context_in,
    ends,
    executing,
    is_alive,
    new_executor,
    nothing_left,
    settled,
)
from tests.contracts.flow_of_actions import ActionFlow
from tests.support.aws.furnished import Account

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _account(request: pytest.FixtureRequest) -> None:
    """The account in which jobs run, for the kind that needs one."""
    given = getattr(request.node, "callspec", None)
    if given is not None and given.params.get("kind") == "batch":
        request.getfixturevalue("aws")


PATIENCE = 600.0  # seconds of grace for tests in which no process may be killed


# ------------------------------------------------------------------ how attempts end


@pytest.mark.parametrize("kind", [*EVERYWHERE, BATCH])
async def test_an_attempt_starts_writes_and_ends(kind: str, tmp_path: Path) -> None:
    async with executing(tmp_path, kind) as bench:
        task = bench.launch("speak")
        assert ["succeeded"] == await bench.ended(task)

        assert ["started", "logged", "ended"] == bench.recorder.said[task]
        assert "spoken" == bench.result(task)
        assert [b"past Python", b"to stdout"] == bench.recorder.lines(task)
        assert b"to stderr\n" == bench.recorder.out(task, 1)
        report, usage = bench.recorder.reports[task], bench.recorder.usages[task]
        assert ("act_async",) == report.steps or kind == "coroutine"
        assert report.started_at <= report.finished_at
        assert (kind in ("task", "queue", "batch")) is (
            usage.max_rss is not None and usage.max_rss > 1 << 20
        )


@pytest.mark.parametrize("kind", EVERYWHERE)
async def test_each_of_many_attempts_ends_once_with_its_own_output(
    kind: str, tmp_path: Path
) -> None:
    async with executing(tmp_path, kind, workers=3) as bench:
        tasks = [bench.launch("write", b"task %d\n" % number) for number in range(1, 61)]
        states = await bench.ended(*tasks)

        assert ["succeeded"] * 60 == states
        assert [b"task %d\n" % task for task in tasks] == [
            bench.recorder.out(task) for task in tasks
        ]


@pytest.mark.parametrize("kind", EVERYWHERE)
@pytest.mark.parametrize(
    ("action", "argument", "reason"),
    [
        ("fail", "no good", "ValueError: no good"),
        ("fail", "caf\udce9", "ValueError: caf"),
        ("leave_politely", 3, "The step called sys.exit(3)"),
        ("leave", 3, "left with exit code 3 before the step had ended"),
        ("kill_yourself", signal.SIGKILL, "was killed (SIGKILL)"),
        ("kill_yourself", signal.SIGSEGV, "segmentation fault"),
        ("kill_yourself", signal.SIGUSR2, "signal 12 (SIGUSR2)"),
    ],
)
async def test_what_a_step_does_wrong_is_its_failure(
    kind: str, action: str, argument: object, reason: str, tmp_path: Path
) -> None:
    async with executing(tmp_path, kind) as bench:
        task = bench.launch(action, argument)
        assert ["failed"] == await bench.ended(task)

        assert reason in bench.reason(task)
        assert bench.recorder.reports[task].retryable
        assert "spoken" == await bench.does("speak")


@pytest.mark.xdist_group("batch")
async def test_jobs_fail_for_what_their_steps_do_wrong_each_for_itself(
    aws: object, tmp_path: Path
) -> None:
    async with executing(tmp_path, "batch") as bench:
        actions = [
            ("fail", "no good"),
            ("leave", 3),
            ("kill_yourself", signal.SIGKILL),
            ("leave", 202),
        ]
        tasks = [bench.launch(*action) for action in actions]
        well = bench.launch("speak")

        assert ["failed"] * 4 == await bench.ended(*tasks)
        assert ["succeeded"] == await bench.ended(well)
        reasons = [bench.reason(task) for task in tasks]
        assert "ValueError: no good" in reasons[0]
        assert "left with exit code 3 before the step had ended" in reasons[1]
        assert "was killed (SIGKILL)" in reasons[2]
        retryable = [bench.recorder.reports[task].retryable for task in tasks]
        assert [True, True, True, False] == retryable


@pytest.mark.parametrize("kind", EVERYWHERE)
@pytest.mark.parametrize("action", ["leave", "leave_politely"])
async def test_exit_code_202_is_not_worth_another_try(
    kind: str, action: str, tmp_path: Path
) -> None:
    async with executing(tmp_path, kind) as bench:
        task = bench.launch(action, 202)

        assert ["failed"] == await bench.ended(task)
        assert not bench.recorder.reports[task].retryable


@pytest.mark.parametrize("kind", ["task", "worker"])
async def test_a_step_that_reacts_to_nothing_is_killed_when_its_time_is_over(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "BACKSTOP", 0.2)
    monkeypatch.setenv("ACTIONS_TAKE_TIME_AT_IMPORT", "1.3")  # does not count
    async with executing(tmp_path, kind, grace=PATIENCE) as bench:
        task = bench.launch("be_deaf", step="hurry")

        assert ["timed_out"] == await bench.ended(task)
        assert "did not react" in bench.reason(task)
        assert b"waiting" in bench.recorder.out(task)
        assert "spoken" == await bench.does("speak")


@pytest.mark.parametrize("kind", ["task", "worker", "queue", BATCH])
async def test_a_step_over_its_time_is_reported(kind: str, tmp_path: Path) -> None:
    async with executing(tmp_path, kind) as bench:
        task = bench.launch("wait", step="hurry")

        assert ["timed_out"] == await bench.ended(task)
        assert "timed out after 0 hours, 0 minutes, 1 seconds" in bench.reason(task)


# ------------------------------------------------------------------ cancelling


def waiting_of(kind: str) -> str:
    return "wait_async" if kind == "coroutine" else "wait"


@pytest.mark.parametrize("kind", [*EVERYWHERE, BATCH])
async def test_an_attempt_that_runs_can_be_cancelled_twice(kind: str, tmp_path: Path) -> None:
    async with executing(tmp_path, kind, grace=PATIENCE) as bench:
        task, other = bench.launch(waiting_of(kind)), bench.launch(waiting_of(kind))
        await bench.started(task, other)
        bench.cancel(task)
        bench.cancel(task)

        assert ["cancelled"] == await bench.ended(task)
        assert "The task was cancelled." == bench.reason(task)
        bench.cancel(task)
        assert other not in bench.recorder.reports
        bench.cancel(other)
        assert ["cancelled"] == await bench.ended(other)
        assert "spoken" == await bench.does("speak")


@pytest.mark.parametrize("kind", EVERYWHERE)
async def test_cancelling_late_changes_nothing(kind: str, tmp_path: Path) -> None:
    async with executing(tmp_path, kind) as bench:
        task = bench.launch("speak")
        await bench.ended(task)
        bench.cancel(task)
        bench.cancel(99)

        assert "spoken" == await bench.does("speak")
        assert "succeeded" == bench.recorder.reports[task].state


@pytest.mark.parametrize("kind", [*EVERYWHERE, BATCH])
async def test_cancelling_at_once_ends_every_attempt_once(kind: str, tmp_path: Path) -> None:
    async with executing(tmp_path, kind, grace=PATIENCE) as bench:
        tasks = [bench.launch(waiting_of(kind)) for _ in range(20)]
        for task in tasks:
            bench.cancel(task)

        assert ["cancelled"] * 20 == await bench.ended(*tasks)
        assert "spoken" == await bench.does("speak")


async def test_what_waits_for_a_worker_is_cancelled_without_starting(tmp_path: Path) -> None:
    async with executing(tmp_path, "worker", workers=1, grace=PATIENCE) as bench:
        first, second, third = (bench.launch("wait") for _ in range(3))
        await bench.started(first)
        bench.cancel(second)

        assert ["cancelled"] == await bench.ended(second)
        assert ["ended"] == bench.recorder.said[second]
        bench.cancel(first)
        await bench.started(third)
        bench.cancel(third)
        assert ["cancelled"] * 2 == await bench.ended(first, third)


@pytest.mark.parametrize("kind", ["task", "worker"])
async def test_a_step_that_ignores_sigterm_is_killed_after_the_grace_time(
    kind: str, tmp_path: Path
) -> None:
    async with executing(tmp_path, kind) as bench:
        task = bench.launch("ignore_the_polite")
        await bench.written(task, b"waiting")
        (pid,) = await bench.started(task)
        bench.cancel(task)

        assert ["cancelled"] == await bench.ended(task)
        assert not is_alive(pid)


@pytest.mark.parametrize("action", ["ignore_the_polite_async", "wait"])
async def test_a_coroutine_that_does_not_listen_goes_with_its_process(
    action: str, tmp_path: Path
) -> None:
    async with executing(tmp_path, "coroutine") as bench:
        innocent = bench.launch("wait_async")
        await bench.started(innocent)
        task = bench.launch(action)
        await bench.started(task)
        unheard = bench.launch("speak")
        bench.cancel(task)

        assert ["cancelled", "lost"] == await bench.ended(task, innocent)
        assert ["succeeded"] == await bench.ended(unheard)


async def test_a_cancel_does_not_hold_up_what_was_sent_with_it(tmp_path: Path) -> None:
    async with executing(tmp_path, "coroutine", grace=PATIENCE) as bench:
        busy = bench.launch("wait_async")
        await bench.started(busy)
        others = [bench.launch("speak") for _ in range(5)]
        cancelled = bench.launch("wait_async")
        bench.cancel(cancelled)
        bench.cancel(busy)
        bench.cancel(others[0])

        states = await bench.ended(busy, cancelled, *others)
        assert ["cancelled", "cancelled"] == states[:2]
        assert ["succeeded"] * 4 == states[3:]


async def test_processes_of_all_kinds_together_run_no_more_attempts_than_allowed(
    tmp_path: Path,
) -> None:
    async with executing(tmp_path, "worker", workers=2, grace=PATIENCE) as bench:
        of_both = [("wait", "act"), ("wait_async", "act_async")]
        running = [bench.launch(action, step=step) for action, step in of_both]
        await bench.started(*running)
        waiting = [bench.launch(action, step=step) for action, step in of_both]
        for number, each in enumerate(running):
            assert 2 + number == len(bench.recorder.pids), "no more have started"
            bench.cancel(each)
            assert ["cancelled"] == await bench.ended(each)
            await bench.recorder.until(lambda: len(bench.recorder.pids) >= 3 + number)  # noqa: B023
        for each in waiting:
            bench.cancel(each)
        assert ["cancelled"] * 2 == await bench.ended(*waiting)


async def test_many_short_attempts_do_not_hold_up_those_of_another_process(tmp_path: Path) -> None:
    async with executing(tmp_path, "worker", workers=1) as bench:
        await bench.does("speak")  # it is known that they are short
        many = [bench.launch("speak") for _ in range(200)]
        other = bench.launch("speak", step="act_async")
        assert ["succeeded"] == await bench.ended(other)
        assert len(bench.recorder.reports) < 200
        assert ["succeeded"] * 200 == await bench.ended(*many)


# ------------------------------------------------------------------ stopping


@pytest.mark.parametrize("kind", [*EVERYWHERE, BATCH])
async def test_stopping_interrupts_what_runs_and_what_waits(kind: str, tmp_path: Path) -> None:
    async with executing(tmp_path, kind, grace=PATIENCE) as bench:
        tasks = [bench.launch(waiting_of(kind)) for _ in range(5)]
        await bench.started(*tasks[:2])
        await asyncio.gather(bench.executor.stop(), bench.executor.stop())
        await bench.executor.stop()
        await settled()

        assert {"interrupted"} == {bench.recorder.reports[task].state for task in tasks}


@pytest.mark.parametrize("kind", ["task", "worker", "coroutine"])
async def test_stopping_kills_who_does_not_listen(kind: str, tmp_path: Path) -> None:
    async with executing(tmp_path, kind) as bench:
        task = bench.launch("ignore_the_polite")
        await bench.written(task, b"waiting")
        await bench.executor.stop()

        assert "interrupted" == bench.recorder.reports[task].state


@pytest.mark.parametrize("kind", EVERYWHERE)
async def test_stopping_at_any_time_leaves_nothing_and_ends_everything(
    kind: str, tmp_path: Path
) -> None:
    for turns in (0, 1, 3, 30):
        async with executing(tmp_path, kind, workers=3) as bench:
            for _ in range(10):
                bench.launch("speak")
            for _ in range(turns):
                await asyncio.sleep(0)
        bench.check_order()  # each attempt has ended, once


async def test_stopping_before_the_start_does_nothing() -> None:
    with nothing_left():
        bench = new_executor()
        await bench.executor.stop()

        assert [] == bench.zygotes


async def test_cancelling_before_a_process_is_needed_does_nothing(tmp_path: Path) -> None:
    with nothing_left():
        definition = define(ActionFlow)
        lazy = executor.ProcessExecutor(
            executor.needs_of(definition),
            request_of(definition),
            spawn_zygote,
            SystemClock(),
            max_workers=2,
            is_lazy=True,
        )
        recorder = Recorder()
        await lazy.start(context_in(tmp_path), recorder)
        lazy.cancel(1, 0)  # an attempt of another executor of the run
        await lazy.stop()
        assert {} == recorder.reports


async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    with nothing_left():
        bench = new_executor()
        start = asyncio.create_task(bench.executor.start(context_in(tmp_path), bench.recorder))
        await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        await bench.executor.stop()

        assert 1 == len(bench.zygotes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        ("ACTIONS_CANNOT_BE_IMPORTED", "ImportError: this file is in no mood"),
        ("ACTIONS_DIE_AT_IMPORT", "left with exit code 7"),
        ("ACTIONS_EXIT_AT_IMPORT", "ended with exit code 3 before it came to ActionFlow()"),
    ],
)
async def test_an_attempt_whose_program_does_not_come_to_its_flow_fails_with_what_it_says(
    kind: str, trouble: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(trouble, "yes")
    async with executing(tmp_path, kind) as bench:
        task = bench.launch("speak")

        assert ["failed"] == await bench.ended(task)
        assert sentence in bench.reason(task)


async def test_a_thread_that_the_flow_file_has_started_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTIONS_LEAVE_A_THREAD", "yes")
    async with executing(tmp_path, "task", grace=PATIENCE) as bench:
        assert "spoken" == await bench.does("speak")


# ------------------------------------------------------------------ taking over


@pytest.mark.xdist_group("batch")
async def test_jobs_of_another_coordinator_are_found_whatever_it_had_said_of_them(
    aws: Account, tmp_path: Path
) -> None:
    first = new_executor("batch")
    context = context_in(tmp_path)._replace(run=f"taken-over-{tmp_path.name}")
    await first.executor.start(context, first.recorder)
    tasks = [first.launch("write", b"task %d" % number) for number in range(3)]
    await first.recorder.until(lambda: all(first.handle_of(task).count("-") == 4 for task in tasks))
    name = aws.jobs(f"tester-ActionFlow-{context.run}")[0]["jobName"]
    await first.executor.leave()
    never_submitted = first.prepare("speak")

    second = new_executor("batch")
    said = [first.handle_of(tasks[0]), f"name={name}:1", first.handle_of(tasks[2])]
    second.executor.recover(
        [
            *(
                Orphan(first.specs[task], handle, None)
                for task, handle in zip(tasks, said, strict=True)
            ),
            Orphan(first.specs[never_submitted], "name=no-such-job:0", None),
        ]
    )
    await second.executor.start(context, second.recorder)
    ended = await second.ended(*tasks, never_submitted)
    await second.executor.stop()

    assert ["succeeded"] * 4 == ended
    assert [b"task 0", b"task 1", b"task 2"] == [second.recorder.out(task) for task in tasks]
    assert 2 == len(aws.jobs(f"tester-ActionFlow-{context.run}")), "one array, one job"


@pytest.mark.xdist_group("batch")
async def test_a_job_whose_attempt_was_given_up_while_it_was_submitted_is_ended(
    aws: Account, tmp_path: Path
) -> None:
    bench = new_executor("batch", grace=0.0)
    context = context_in(tmp_path)._replace(run=f"given-up-{tmp_path.name}")
    await bench.executor.start(context, bench.recorder)
    tasks = [bench.launch("wait") for _ in range(2)]
    await bench.recorder.until(lambda: bench.handle_of(tasks[1]).startswith("name="))
    for task in tasks:
        bench.cancel(task)

    assert ["cancelled"] * 2 == await bench.ended(*tasks)
    await bench.executor.stop()
    (job,) = aws.jobs(f"tester-ActionFlow-{context.run}")
    assert job["isTerminated"]


# ------------------------------------------------------------------ when processes go away


async def test_a_worker_that_is_killed_fails_its_attempt_and_the_others_run(
    tmp_path: Path,
) -> None:
    async with executing(tmp_path, "worker", workers=1) as bench:
        task = bench.launch("wait")
        others = [bench.launch("speak") for _ in range(10)]
        (pid,) = await bench.started(task)
        os.kill(pid, signal.SIGKILL)

        assert ["failed"] == await bench.ended(task)
        assert ["succeeded"] * 10 == await bench.ended(*others)


async def test_coroutines_whose_process_is_killed_are_lost_and_new_ones_run(
    tmp_path: Path,
) -> None:
    async with executing(tmp_path, "coroutine", workers=3) as bench:
        tasks = [bench.launch("wait_async") for _ in range(3)]
        pids = await bench.started(*tasks)
        os.kill(pids[0], signal.SIGKILL)

        assert 1 == len({*pids})
        assert ["lost"] * 3 == await bench.ended(*tasks)
        assert "with others of its process" in bench.reason(tasks[0])
        assert "spoken" == await bench.does("speak")


@pytest.mark.parametrize("kind", KINDS)
async def test_attempts_are_lost_with_the_zygote_and_the_next_ones_run(
    kind: str, tmp_path: Path
) -> None:
    async with executing(tmp_path, kind) as bench:
        tasks = [bench.launch("leave_a_child_and_wait"), bench.launch(waiting_of(kind))]
        await bench.started(tasks[0])
        await bench.written(tasks[0], b"waiting")
        child = int(bench.recorder.out(tasks[0]).split()[0])
        os.kill(bench.zygotes[0].pid, signal.SIGKILL)

        assert ["lost", "lost"] == await bench.ended(*tasks)
        assert (
            "has died (it was ended by signal 9 (SIGKILL): by somebody, or by the"
            in bench.reason(tasks[0])
        )
        later = bench.launch("speak")
        cancelled = bench.launch(waiting_of(kind))
        bench.cancel(cancelled)
        assert ["succeeded", "cancelled"] == await bench.ended(later, cancelled)
        assert 2 == len(bench.zygotes)
        assert ends(child)


async def test_attempts_whose_python_cannot_start_do_not_hold_up_others(tmp_path: Path) -> None:
    bench = new_executor()
    needs = bench.executor._needs
    broken = {"PYTHONHOME": str(tmp_path / "nowhere")}
    needs["act"] = needs["act"]._replace(environment=broken)
    await bench.executor.start(context_in(tmp_path), bench.recorder)
    tasks = [bench.launch("speak") for _ in range(usable_cpus() + 2)]
    other = bench.launch("speak", step="act_async")

    assert ["lost"] * len(tasks) == await bench.ended(*tasks)
    assert "the step's PYTHONHOME has ended" in bench.reason(tasks[-1])
    assert ["succeeded"] == await bench.ended(other)
    await bench.executor.stop()


async def test_where_no_zygote_can_be_had_attempts_are_lost_until_one_can(
    tmp_path: Path,
) -> None:
    refusals = iter([None, OSError(11, "no process for you"), AflowError("not again"), None])

    def start() -> ZygoteProcess:
        refusal = next(refusals)
        if refusal is not None:
            raise refusal
        return spawn_zygote()

    async with executing(tmp_path, "task", start=start) as bench:
        os.kill(bench.zygotes[0].pid, signal.SIGKILL)
        assert ["lost"] == await bench.ended(bench.launch("wait"))
        states, task = ["lost"], 0
        while states[-1] == "lost":
            reason = bench.reason(task) if task else "no process could be started for it"
            assert "no process could be started for it" in reason
            task = bench.launch("speak")
            states += await bench.ended(task)

        assert "succeeded" == states[-1]
        assert 2 <= states.count("lost") <= 3  # one or two of them found the start going on
        assert 2 == len(bench.zygotes)


async def test_a_zygote_that_dies_while_the_executor_stops_holds_up_nothing(
    tmp_path: Path,
) -> None:
    async with executing(tmp_path, "task", grace=PATIENCE) as bench:
        task = bench.launch("ignore_the_polite")
        await bench.written(task, b"waiting")
        stopping = asyncio.create_task(bench.executor.stop())
        await settled()
        os.kill(bench.zygotes[0].pid, signal.SIGKILL)
        await stopping

        assert "interrupted" == bench.recorder.reports[task].state
        assert 1 == len(bench.zygotes)
