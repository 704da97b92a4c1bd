"""An embedded coordinator: admission of runs, cancellation, no side effects on the program."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from aflow.coordinator import Coordinator
from aflow.errors import (
    CoordinatorClosed,
    CoordinatorFull,
    InvalidInput,
    InvalidParameter,
    RunLeft,
)
from aflow.flow.spec import FlowSpec
from aflow.metadata.sqlite import SqliteMetadata
from aflow.runs.events import RunEnded, RunEvent, RunStarting, RunStopping, TaskEnded
from aflow.scheduler.states import RunState
from aflow.storage.local import LocalStore
from aflow.task.config_binding import configured
from tests.contracts.executing import ends, is_alive
from tests.flows.conftest import children_of
from tests.flows.embedded import at_work, coordinator, flow, loaded

__all__ = ["flow"]  # a fixture


def states(folder: Path) -> list[RunState]:
    """Return the states of all recorded runs in the folder, the latest first."""
    metadata = SqliteMetadata(folder / "metadata.db", read_only=True)
    try:
        return [each.state for each in metadata.runs("EmbeddedFlow")]
    finally:
        metadata.close()


# ---------------------------------------------------------------- limit of concurrent runs


async def test_a_run_too_many_waits_until_another_one_has_ended(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    async with coordinator(tmp_path, max_runs=1) as runs:
        first = await runs.start(flow, rest=60.0)
        second = asyncio.ensure_future(runs.start(flow))
        third = asyncio.ensure_future(runs.start(flow, n=1))
        await at_work(first)
        assert (False, False) == (second.done(), third.done())
        assert (first,) == runs.runs

        await first.cancel()
        assert RunState.SUCCEEDED is (await (await second).wait()).state
        assert RunState.SUCCEEDED is (await (await third).wait()).state
    assert (await second).id < (await third).id


async def test_a_run_too_many_is_refused_where_nobody_is_to_wait(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    async with coordinator(tmp_path, max_runs=1, when_full="refuse") as runs:
        first = await runs.start(flow, rest=60.0)
        with pytest.raises(CoordinatorFull, match="max_runs"):
            await runs.start(flow)
        await first.cancel()
        await (await runs.start(flow)).wait()
    assert [RunState.SUCCEEDED, RunState.CANCELLED] == states(tmp_path)


async def test_a_run_that_does_not_begin_takes_nobodys_place(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    async with coordinator(tmp_path, max_runs=1, when_full="refuse") as runs:
        for _ in range(3):
            with pytest.raises(InvalidParameter):
                await runs.start(flow, n="many")
        assert RunState.SUCCEEDED is (await (await runs.start(flow)).wait()).state


async def test_a_caller_that_waits_for_admission_learns_of_the_closing(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    async with coordinator(tmp_path, max_runs=1) as runs:
        await runs.start(flow, rest=60.0)
        read = configured(flow)  # so that they go straight to the door
        waiting = [asyncio.ensure_future(runs.start(read)) for _ in range(3)]
        await asyncio.sleep(0)
    reported = await asyncio.gather(*waiting, return_exceptions=True)
    assert [CoordinatorClosed] * 3 == [type(each) for each in reported]
    with pytest.raises(CoordinatorClosed):
        await runs.start(flow)
    assert [RunState.CANCELLED] == states(tmp_path)


async def test_who_leaves_the_line_is_not_missed(flow: type[FlowSpec], tmp_path: Path) -> None:
    async with coordinator(tmp_path, max_runs=1) as runs:
        first = await runs.start(flow, rest=60.0)
        read = configured(flow)  # so that they go straight to the door
        gone = asyncio.ensure_future(runs.start(read))
        stays = asyncio.ensure_future(runs.start(read))
        await asyncio.sleep(0)
        gone.cancel()
        await first.cancel()
        assert RunState.SUCCEEDED is (await (await stays).wait()).state
    assert gone.cancelled()


@pytest.mark.parametrize("wrong", [{"max_runs": 0}, {"max_runs": True}, {"when_full": "drop"}])
def test_a_door_that_cannot_be_is_a_sentence(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        coordinator(tmp_path, **wrong)


# ---------------------------------------------------------------- starting and stopping


async def test_a_start_that_is_cancelled_leaves_no_run_that_goes_on(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    async with coordinator(tmp_path, max_runs=1) as runs:
        unwanted = asyncio.ensure_future(runs.start(configured(flow), rest=60.0))
        await asyncio.sleep(0)  # it is recording the run now, in a thread
        unwanted.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unwanted
        assert RunState.SUCCEEDED is (await (await runs.start(flow)).wait()).state
    assert [RunState.SUCCEEDED, RunState.CANCELLED] == states(tmp_path)


async def test_a_start_that_is_cancelled_while_the_flow_is_read_records_nothing(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    async with coordinator(tmp_path) as runs:
        unwanted = asyncio.ensure_future(runs.start(flow, rest=60.0))
        await asyncio.sleep(0)
        unwanted.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unwanted
    assert not (tmp_path / "metadata.db").exists()


async def test_a_start_that_is_going_on_when_the_block_ends_is_stopped_in_it(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    async with coordinator(tmp_path) as runs:
        late = asyncio.ensure_future(runs.start(configured(flow), rest=60.0))
        await asyncio.sleep(0)
    assert RunState.CANCELLED is (await (await late).wait()).state
    assert [RunState.CANCELLED] == states(tmp_path)


async def test_a_run_that_is_left_is_not_cancelled_by_the_end_of_the_block(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    async with coordinator(tmp_path) as runs:
        left = await runs.start(flow, rest=0.2)
        await at_work(left)
        left.leave()
        left.cancel("too late")
    with pytest.raises(RunLeft):
        await left.wait()
    assert [RunState.RUNNING] == states(tmp_path)
    async with coordinator(tmp_path) as runs:
        recovered = await runs.recover(flow, left.id)
        assert RunState.SUCCEEDED is (await recovered.wait()).state


async def test_a_run_that_is_left_as_it_starts_sets_no_timer_for_later(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error))
    async with coordinator(tmp_path) as runs:
        left = await runs.start(flow, rest=0.6)
        left.leave()
    async with coordinator(tmp_path) as runs:  # takes longer than a timer of the first would
        recovered = await runs.recover(flow, left.id)
        assert RunState.SUCCEEDED is (await recovered.wait()).state
    assert [] == errors


@pytest.mark.parametrize(
    ("breaks", "state"), [(False, RunState.SUCCEEDED), (True, RunState.FAILED)]
)
async def test_a_run_is_recovered_whose_cached_tasks_began_while_a_generator_still_yielded(
    breaks: bool, state: RunState, tmp_path: Path
) -> None:
    with loaded("streamed") as module:
        flow = module.StreamedFlow
        async with coordinator(tmp_path) as runs:
            left = await runs.start(flow, folder=str(tmp_path), breaks=breaks)
            async with aclosing(left.events()) as events:
                async for event in events:
                    if isinstance(event, TaskEnded):  # the task of the generator
                        break
            left.leave()
        (tmp_path / "go").touch()
        async with coordinator(tmp_path) as runs:
            recovered = await runs.recover(flow, left.id)
            assert state is (await recovered.wait()).state


@pytest.mark.parametrize("rounds", [0, 1, 5])  # of the event loop before it is cancelled
async def test_a_run_that_is_cancelled_as_it_starts_is_seen_to_start_first(
    flow: type[FlowSpec], tmp_path: Path, rounds: int
) -> None:
    seen: list[RunEvent] = []
    async with coordinator(tmp_path) as runs:
        run = await runs.start(flow, watch=seen.extend)
        for _ in range(rounds):
            await asyncio.sleep(0)
        ended = await run.cancel("early")
    assert (RunState.CANCELLED, "early") == (ended.state, ended.reason)
    kinds = [type(event) for event in seen]  # a task may have started in the meantime
    assert (RunStarting, RunEnded) == (kinds[0], kinds[-1])
    assert 1 == kinds.count(RunStopping)


async def test_a_cancel_can_be_awaited_to_know_how_the_run_ended(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    async with coordinator(tmp_path, max_workers=2) as runs:
        run = await runs.start(flow, rest=60.0)
        await at_work(run)
        ended = await run.cancel("no longer wanted")
        assert (RunState.CANCELLED, "no longer wanted") == (ended.state, ended.reason)
        assert () == runs.runs
        assert ended == await run.cancel("again")


async def test_listeners_come_and_go_and_each_hears_everything_meanwhile(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    async with coordinator(tmp_path) as runs:
        run = await runs.start(flow)
        async with aclosing(run.events()) as leaving:
            first = await anext(leaving)
        heard = [event async for event in run.events()]
        assert first not in heard
        assert await run.wait() == heard[-1]
        assert [] == [event async for event in run.events()]


# ---------------------------------------------------------------- a good guest


def traces() -> dict[str, Any]:
    """Return the traces that an embedded coordinator could leave in its host's process."""
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
        "tasks": len(asyncio.all_tasks()),
        "signals": {each: signal.getsignal(each) for each in signal.valid_signals()},
        "threads": {each.name for each in threading.enumerate() if "asyncio" not in each.name},
        "files": os.listdir(tempfile.gettempdir()),
        "folder": os.getcwd(),
        "variables": dict(os.environ),
    }


@pytest.mark.parametrize("isolation", ["task", "worker"])
async def test_nothing_is_left_in_the_program_and_its_signals_are_its_own(
    flow: type[FlowSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolation: Any
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))
    async with coordinator(tmp_path / "data") as runs:  # opens files that stay open
        await (await runs.start(flow)).wait()
    before = traces()

    async with coordinator(tmp_path / "data", isolation=isolation, max_workers=2) as runs:
        cut, whole = await runs.start(flow, rest=60.0), await runs.start(flow)
        await at_work(cut)
        await whole.wait()
        assert before["signals"] == traces()["signals"]

    assert before == traces()


class _Noting:
    """Records in which threads the methods of a backend are called."""

    def __init__(self) -> None:
        self.seen: dict[str, set[int]] = {}

    def of(self, backend: Any) -> Any:
        """Return the backend with all of its calls recorded."""
        seen = self.seen

        class Noted(type(backend)):  # type: ignore[misc]
            def __getattribute__(self, name: str) -> Any:
                if not name.startswith("_") and name not in ("url", "address"):
                    seen.setdefault(name, set()).add(threading.get_ident())
                return super().__getattribute__(name)

        backend.__class__ = Noted
        return backend


@pytest.mark.parametrize("isolation", ["task", "worker"])
async def test_nothing_that_blocks_is_called_on_the_loop_of_the_program(
    flow: type[FlowSpec], tmp_path: Path, isolation: Any
) -> None:
    noting = _Noting()
    store = noting.of(LocalStore(tmp_path / "store"))
    metadata = noting.of(SqliteMetadata(tmp_path / "metadata.db"))
    async with Coordinator(storage=store, metadata=metadata, isolation=isolation) as runs:
        run = await runs.start(flow, n=20)
        assert RunState.SUCCEEDED is (await run.wait()).state
    metadata.close()

    assert {"commit", "create_run", "put"} <= set(noting.seen)
    on_the_loop = {name for name, who in noting.seen.items() if threading.get_ident() in who}
    assert on_the_loop <= {"close"}


# ---------------------------------------------------------------- programs that are busy or go away


async def test_calls_of_the_program_that_fill_its_default_executor_hold_up_nothing(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    gate = threading.Event()
    loop = asyncio.get_running_loop()
    busy = [loop.run_in_executor(None, gate.wait) for _ in range((os.cpu_count() or 1) + 40)]
    try:
        async with asyncio.timeout(60), coordinator(tmp_path) as runs:
            run = await runs.start(flow)
            assert RunState.SUCCEEDED is (await run.wait()).state
            assert [] == await runs.orphaned()
    finally:
        gate.set()
        await asyncio.gather(*busy)


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_who_is_cancelled_often_while_the_block_is_left_leaves_nothing(
    flow: type[FlowSpec], tmp_path: Path, times: int
) -> None:
    begun = asyncio.Event()
    before, threads = children_of(os.getpid()), traces()["threads"]  # of tests before this one

    async def host() -> None:
        async with coordinator(tmp_path, grace=1.0) as runs:
            run = await runs.start(flow, rest=60.0, stubborn=True)
            await at_work(run)
            begun.set()
            await run.wait()

    task = asyncio.get_running_loop().create_task(host())
    await begun.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    for _ in range(times):  # also while the processes are being ended
        await asyncio.wait([task], timeout=0.05)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [RunState.CANCELLED] == states(tmp_path)
    assert set() == traces()["threads"] - threads
    assert set() == set(children_of(os.getpid())) - set(before)


async def test_a_program_that_cancels_all_of_its_tasks_stops_its_runs(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    def cancel_all() -> None:
        ours = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not ours and task is not waiting:
                task.cancel()

    waiting = None
    before = children_of(os.getpid())  # of tests before this one
    async with coordinator(tmp_path) as runs:
        run = await runs.start(flow, rest=60.0)
        await at_work(run)
        waiting = asyncio.get_running_loop().create_task(run.wait())
        cancel_all()
        await asyncio.sleep(0)
        cancel_all()
        ended = await waiting
    assert RunState.CANCELLED is ended.state
    assert [RunState.CANCELLED] == states(tmp_path)
    assert set() == set(children_of(os.getpid())) - set(before)


async def test_a_coordinator_outside_of_its_block_says_so(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    runs = coordinator(tmp_path)
    for call in (runs.start(flow), runs.recover(flow, "1"), runs.orphaned()):
        with pytest.raises(InvalidInput, match="was not entered: use it in a block, `async with"):
            await call
    async with runs:
        pass
    for call in (runs.start(flow), runs.recover(flow, "1"), runs.orphaned()):
        with pytest.raises(CoordinatorClosed, match="its block has been left"):
            await call
    with pytest.raises(InvalidInput, match="was entered before"):
        async with runs:
            pass


FORKS = """
import asyncio, multiprocessing, os, sys, time
import aflow
from aflow import FlowSpec, Parameter, step

class ForkedFlow(FlowSpec):
    secs = Parameter("secs", default=0.5)

    @step
    def start(self):
        open("task", "w").write(str(os.getpid()))
        time.sleep(self.secs)
        self.next(self.end)

    @step
    def end(self):
        pass

async def main():
    url = f"sqlite:///{os.getcwd()}/metadata.db"
    async with aflow.Coordinator(storage=f"file://{os.getcwd()}", metadata=url) as runs:
        run = await runs.start(ForkedFlow, secs=float(sys.argv[1]))
        while not os.path.exists("task"):
            await asyncio.sleep(0.01)
        helper = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        helper.start()
        print(helper.pid, flush=True)
        print((await run.wait()).state.value, flush=True)
    print("left", flush=True)
    helper.kill()

if __name__ == "__main__":
    asyncio.run(main())
"""


def forking(folder: Path, secs: float) -> tuple[subprocess.Popen[str], int]:
    """A program that has forked a helper during a run, and the helper."""
    (folder / "program.py").write_text(FORKS)
    program = subprocess.Popen(
        [sys.executable, "program.py", str(secs)], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    return program, int(program.stdout.readline())


def test_a_helper_that_the_program_forks_does_not_hold_up_the_end_of_a_run(tmp_path: Path) -> None:
    program, _ = forking(tmp_path, 0.5)
    out, _ = program.communicate(timeout=60)
    assert ("succeeded\nleft\n", 0) == (out, program.returncode)


def test_a_helper_that_the_program_forks_does_not_keep_tasks_alive(tmp_path: Path) -> None:
    program, helper = forking(tmp_path, 600)
    task = int((tmp_path / "task").read_text())
    program.kill()
    program.wait()
    try:
        assert ends(task, 30)
        assert is_alive(helper)
    finally:
        os.kill(helper, signal.SIGKILL)  # it holds the pipe
        program.communicate()


WITHOUT_DESCRIPTORS = """
import asyncio, os, resource
import aflow
from aflow import FlowSpec, step

class FewFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass

async def main():
    url = f"sqlite:///{os.getcwd()}/metadata.db"
    async with aflow.Coordinator(storage=f"file://{os.getcwd()}", metadata=url) as runs:
        await (await runs.start(FewFlow)).wait()
        run, held = await runs.start(FewFlow), []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            ended = await run.wait()
        for each in held:
            os.close(each)
        print(ended.state.value, ended.reason)
        print((await (await runs.start(FewFlow)).wait()).state.value)

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
    asyncio.run(main())
"""


def test_a_program_without_descriptors_has_a_run_that_failed_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(WITHOUT_DESCRIPTORS)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert 0 == done.returncode, done.stderr
    first, second = done.stdout.splitlines()
    # The first task may have been handed out a moment before the descriptors were gone.
    whys = (
        "failed The run could not begin. No process could be started for its tasks: Too many open "
        "files.",
        "failed Step start (task 1) was lost 3 times",
    )
    assert first.startswith(whys)
    assert "succeeded" == second
