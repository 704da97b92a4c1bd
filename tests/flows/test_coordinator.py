"""The coordinator embedded in another program."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from aflow._core.settings import RunOptions
from aflow.errors import InvalidInput, InvalidParameter
from aflow.flow.spec import FlowSpec
from aflow.metadata.sqlite import SqliteMetadata
from aflow.runs.events import LogLine, RunEnded, TaskStarting
from aflow.scheduler.states import RunState
from tests.flows.embedded import FILE, at_work, coordinator, flow
from tests.support.waiting import open_files, wait_until

__all__ = ["flow"]  # a fixture


def children() -> set[str]:
    """Return the child processes of this one that were not waited for."""
    listed = (each.read_text() for each in Path("/proc/self/task").glob("*/children"))
    return {child for line in listed for child in line.split()}


@pytest.mark.parametrize("isolation", ["task", "worker"])
async def test_a_flow_runs_inside_of_a_program_that_hears_what_happens(
    flow: type[FlowSpec], tmp_path: Path, isolation: Any
) -> None:
    async with coordinator(tmp_path, max_workers=2, isolation=isolation) as runs:
        run = await runs.start(flow, n=4)
        events = [event async for event in run.events()]
        ended = await run.wait()
    assert RunState.SUCCEEDED is ended.state
    assert isinstance(events[-1], RunEnded)
    assert b"ys [0, 2, 4, 6]" in [each.text for each in events if isinstance(each, LogLine)]
    assert 7 == sum(isinstance(each, TaskStarting) for each in events)
    assert run.pathspec == f"EmbeddedFlow/{run.id}"


async def test_several_runs_and_coordinators_live_side_by_side(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    async with coordinator(tmp_path / "a") as one, coordinator(tmp_path / "b") as other:
        runs = [await each.start(flow, n=n) for each in (one, other) for n in (1, 2)]
        ended = [await run.wait() for run in runs]
    assert [RunState.SUCCEEDED] * 4 == [each.state for each in ended]
    assert 4 == len({run.id for run in runs})


async def test_a_run_can_be_cancelled_twice_and_late(flow: type[FlowSpec], tmp_path: Path) -> None:
    async with coordinator(tmp_path, max_workers=2) as runs:
        run = await runs.start(flow, rest=60.0)
        async for event in run.events():
            if isinstance(event, LogLine):
                run.cancel("no longer wanted")
                run.cancel("really")
        ended = await run.wait()
        run.cancel("too late")
    assert (RunState.CANCELLED, "no longer wanted") == (ended.state, ended.reason)


async def test_leaving_the_block_stops_what_runs_and_leaves_nothing_behind(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    async with coordinator(tmp_path) as runs:  # opens files that stay open
        await (await runs.start(flow)).wait()
    before, others = open_files(), children()  # others: servers of other tests, in this process
    async with coordinator(tmp_path, max_workers=2) as runs:
        run = await runs.start(flow, rest=60.0)
        await at_work(run)
        assert children() > others
    assert RunState.CANCELLED is (await run.wait()).state
    wait_until(lambda: open_files() <= before, lambda: (before, open_files()))
    assert children() <= others
    metadata = SqliteMetadata(tmp_path / "metadata.db", read_only=True)
    assert [RunState.CANCELLED, RunState.SUCCEEDED] == [
        each.state for each in metadata.runs("EmbeddedFlow")
    ]
    metadata.close()


async def test_a_wrong_parameter_begins_nothing(flow: type[FlowSpec], tmp_path: Path) -> None:
    async with coordinator(tmp_path) as runs:
        with pytest.raises(InvalidParameter, match="n"):
            await runs.start(flow, n="many")
        with pytest.raises(InvalidParameter, match="m"):
            await runs.start(flow, m=1)
        with pytest.raises(InvalidInput, match="only from a run that is resumed"):
            await runs.start(flow, options=RunOptions(clone_only=True))


async def test_a_flow_made_on_the_spot_travels_by_value(tmp_path: Path) -> None:
    source = FILE.read_text().replace("class EmbeddedFlow", "class SpotFlow")
    script = tmp_path / "spot.py"
    script.write_text(source)
    module: dict[str, Any] = {"__name__": "__spot__", "__file__": str(script)}
    exec(compile(source, str(script), "exec"), module)
    async with coordinator(tmp_path / "data") as runs:
        run = await runs.start(module["SpotFlow"])
        assert RunState.SUCCEEDED is (await run.wait()).state


async def test_who_stops_waiting_does_not_stop_the_run(
    flow: type[FlowSpec], tmp_path: Path
) -> None:
    async with coordinator(tmp_path) as runs:
        run = await runs.start(flow, rest=0.2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run.wait(), 0.001)
        assert RunState.SUCCEEDED is (await run.wait()).state
