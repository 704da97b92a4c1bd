"""`aflow gc`: deletes runs, then unreferenced objects, while other processes write."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgpack
import pytest

from aflow import client
from aflow.scheduler.states import RunState
from tests.flows.conftest import Ran, Workspace
from tests.support.waiting import wait_until

FLOW = """
from aflow import card

class Flow_(FlowSpec):
    number = Parameter("number", default=0)
    fails = Parameter("fails", default=False)

    @card
    @step
    def start(self):
        self.same = bytes(100_000)
        self.own = bytes([self.number + 1]) * 100_000
        self.xs = [b"x" * 2_000_000, b"y" * (self.number + 2_000_000)]
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        if self.index == 0 and self.number < 3:  # else nobody reads what is printed
            for _ in range(200):
                print("a line of a log that is long enough to become an object " * 20)
        self.size = len(self.input)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.sizes = [each.size for each in inputs]
        self.merge_artifacts(inputs, exclude=["size"])
        if self.fails:
            raise ValueError("broken")
        self.next(self.end)

    @step
    def end(self):
        if os.path.exists("gate"):
            open("gate").read()  # until the test has opened it, and closed it again
        assert len(self.same) == len(self.own) == 100_000
"""


@pytest.fixture
def flow(workspace: Workspace) -> Workspace:
    """A workspace with a flow."""
    workspace.write(FLOW)
    return workspace


def gc(workspace: Workspace, *args: str) -> Ran:
    """Run `aflow gc ARGS`."""
    done = subprocess.run(
        [sys.executable, "-m", "aflow", "gc", *args],
        cwd=workspace.path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def runs(workspace: Workspace) -> list[client.Run]:
    """Return all runs, newest first."""
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    return [run for flow in client.Metaflow() for run in flow]


def objects(workspace: Workspace) -> set[Path]:
    """Return all objects of the store."""
    root = workspace.path / ".aflow"
    folders = ("blobs", "logs", "cards")
    return {path for folder in folders for path in (root / folder).rglob("*") if path.is_file()}


def run(workspace: Workspace, *args: str) -> Ran:
    """Run the flow."""
    return workspace.run(*args)


def everything_can_be_read(of: client.Run) -> None:
    """Check that every artifact of the run can be read."""
    for step in of:
        for task in step:
            for artifact in task:
                assert artifact.data is not None or artifact.id == "fails"


def test_without_options_only_what_nothing_refers_to_goes(flow: Workspace) -> None:
    assert 0 == run(flow).code
    before = objects(flow)
    lost = flow.path / ".aflow" / "blobs" / "00" / ("0" * 62)
    lost.parent.mkdir(exist_ok=True)
    lost.write_bytes(b"nobody wants this")
    young = gc(flow)
    assert "0 runs and 0 objects deleted" in young.out, young.err
    assert "Nothing refers to 1 object more, written or used in the last 1h" in young.out
    assert "0 runs and 1 object deleted: 17 bytes.\n" == gc(flow, "--grace", "0s").out
    assert before == objects(flow)
    everything_can_be_read(runs(flow)[0])


def test_a_dry_run_says_what_would_go_and_deletes_nothing(flow: Workspace) -> None:
    assert 0 == run(flow).code
    assert 0 == run(flow, "--number", "1").code
    before = objects(flow)
    dry = gc(flow, "--keep", "1", "--grace", "0s", "--dry-run")
    newest, oldest = runs(flow)
    assert f"{oldest.pathspec}  succeeded\n1 run and " in dry.out
    assert "would be deleted: " in dry.out
    assert before == objects(flow)
    real = gc(flow, "--keep", "1", "--grace", "0s")
    assert real.out == dry.out.replace("would be deleted", "deleted")
    assert [newest.id] == [each.id for each in runs(flow)]
    assert before > objects(flow)
    everything_can_be_read(runs(flow)[0])


def test_what_other_runs_share_stays(flow: Workspace) -> None:
    assert 0 == run(flow).code
    only_one = objects(flow)
    assert 0 == run(flow, "--number", "1").code
    assert 0 == run(flow, "--number", "0", "--tag", "old").code
    assert "1 run and " in gc(flow, "--tag", "old", "--grace", "0s").out
    for each in runs(flow):
        everything_can_be_read(each)
    assert 0 == gc(flow, "--keep", "1", "--grace", "0s").code
    everything_can_be_read(runs(flow)[0])
    assert len(only_one) == len(objects(flow))


def test_runs_are_chosen_by_failure_age_and_flow(flow: Workspace) -> None:
    assert 1 == run(flow, "--fails", "True").code
    assert 0 == run(flow).code
    assert "0 runs" in gc(flow, "--older-than", "1d").out
    assert "0 runs" in gc(flow, "--failed", "--flow", "Other").out
    assert "1 run and " in gc(flow, "--failed", "--older-than", "0s").out
    assert [RunState.SUCCEEDED.value] == [each.status for each in runs(flow)]
    assert "1 run and " in gc(flow, "--older-than", "0s", "--grace", "0s").out
    assert [] == runs(flow)
    assert set() == objects(flow)


def test_a_resumed_run_lives_on_without_its_origin(flow: Workspace) -> None:
    assert 0 == run(flow).code
    resumed = flow.finish(flow.start("--no-pylint", "resume", "end"))
    assert 0 == resumed.code, resumed.err
    assert "1 run and " in gc(flow, "--keep", "1", "--grace", "0s").out
    (left,) = runs(flow)
    everything_can_be_read(left)
    again = flow.finish(flow.start("--no-pylint", "resume", "end"))
    assert 0 == again.code, again.err


def test_a_run_that_goes_on_stays_and_keeps_all_it_needs(flow: Workspace) -> None:
    assert 0 == run(flow).code
    os.mkfifo(flow.path / "gate")
    process = flow.start("--no-pylint", "run", "--number", "3")
    with (flow.path / "gate").open("w"):  # opens when the last step reads from it
        swept = gc(flow, "--older-than", "0s", "--grace", "0s")
        assert "1 run and " in swept.out, swept.err
    finished = flow.finish(process)
    assert 0 == finished.code, finished.err
    everything_can_be_read(runs(flow)[0])


SLOW_ITEMS = """
class Flow_(FlowSpec):
    @retry  # the items are therefore not announced before the step ends
    @step
    def start(self):
        self.own = os.urandom(100_000)
        self.xs = self.items()
        self.next(self.work, foreach="xs")

    def items(self):
        open("gate").read()  # until the test has opened it, and closed it again
        yield len(self.own)

    @step
    def work(self):
        assert self.input == len(self.own)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_what_a_running_step_has_stored_stays_while_it_generates_items(
    workspace: Workspace,
) -> None:
    workspace.write(SLOW_ITEMS)
    os.mkfifo(workspace.path / "gate")
    process = workspace.start("--no-pylint", "run")
    with (workspace.path / "gate").open("w"):  # opens when the step asks for its items
        # The record that it runs follows the start of a task by half a second.
        wait_until(
            lambda: [task for step in runs(workspace)[0] for task in step.tasks(status="running")]
        )
        swept = gc(workspace, "--grace", "0s")
        assert "0 objects deleted" in swept.out, swept.err
    finished = workspace.finish(process)
    assert 0 == finished.code, finished.err


def test_a_run_that_was_killed_can_be_deleted(flow: Workspace) -> None:
    os.mkfifo(flow.path / "gate")
    process = flow.start("--no-pylint", "run", "--number", "3")
    with (flow.path / "gate").open("w"):
        process.send_signal(signal.SIGKILL)
        flow.finish(process)
    assert "0 runs" in gc(flow, "--failed", "--grace", "0s").out  # its lease is not over yet
    flow.expire_leases()
    assert "0 runs" in gc(flow, "--failed").out  # it may still be taken up
    assert "1 run and " in gc(flow, "--failed", "--grace", "0s").out
    assert [] == runs(flow)


def test_spins_go_when_they_are_meant(flow: Workspace) -> None:
    assert 0 == run(flow).code
    assert 0 == flow.finish(flow.start("--no-pylint", "spin", "end")).code
    assert "1 run and " in gc(flow, "--spins", "--grace", "0s").out
    assert 1 == len(runs(flow))
    assert "0 runs" in gc(flow, "--spins").out


@pytest.mark.parametrize(
    ("args", "reported"),
    [
        (
            ["--older-than", "soon"],
            "'--older-than': 'soon' is not a number and a unit",
        ),
        (["--grace", "1"], "'--grace': '1' is not a number and a unit"),
        (["--keep", "-1"], "Invalid value for '--keep'"),
        (["more"], "unexpected extra argument"),
    ],
)
def test_what_cannot_be_meant_is_reported(flow: Workspace, args: list[str], reported: str) -> None:
    assert 0 == run(flow).code
    refused = gc(flow, *args)
    assert 2 == refused.code
    assert reported in refused.err


def test_where_nothing_has_run_there_is_nothing_to_delete(workspace: Workspace) -> None:
    done = gc(workspace)
    assert (0, True) == (done.code, "Nothing has run here yet" in done.out)


def changed(manifest: bytes, key: str, value: object) -> bytes:
    """Return a manifest with another value in it."""
    reported = msgpack.unpackb(manifest, strict_map_key=False)
    packed: bytes = msgpack.packb({**reported, key: value})
    return packed


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda manifest: manifest[:40],
    "other bytes": lambda manifest: b"\xc1" * 40,
    "no map": lambda manifest: b"\x01",
    "artifacts that are none": lambda manifest: changed(manifest, "a", {"x": [1]}),
    "keys that are none": lambda manifest: changed(
        manifest, "a", {"x": ["int", 1, "", [["../../etc", 1]]]}
    ),
    "items that are none": lambda manifest: changed(manifest, "x", [1, b"\xff" * 50]),
    "items that were cut off": lambda manifest: changed(manifest, "x", [1, b"\xff"]),
    "items without their number": lambda manifest: changed(manifest, "x", ["0" * 64]),
}


def test_a_run_that_is_damaged_is_named_and_keeps_all_blobs_until_it_is_deleted(
    flow: Workspace,
) -> None:
    assert 0 == run(flow).code
    name = runs(flow)[0].pathspec
    root = flow.path / ".aflow"
    stray = root / "blobs" / "00" / ("0" * 62)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"nothing refers to this")
    (root / "logs" / ".DS_Store").write_bytes(b"not of aflow")
    before = objects(flow)
    with closing(sqlite3.connect(root / "metadata.db", isolation_level=None)) as database:
        ((whole,),) = database.execute("SELECT manifest FROM attempts WHERE task = 1")
        for damage in DAMAGES.values():
            database.execute("UPDATE attempts SET manifest = ? WHERE task = 1", [damage(whole)])
            log = root / "logs" / "Flow_" / "gone" / "log"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.touch()

            found = gc(flow, "--grace", "0s")

            assert (0, "0 runs and 1 object deleted: 0 bytes.\n") == (found.code, found.out)
            assert f"{name} cannot be read: " in found.err
            assert "1 run may refer to any artifact, so no artifact was deleted" in found.err
            assert before == objects(flow)
            assert not log.exists()
        database.execute("UPDATE attempts SET manifest = ? WHERE task = 1", [whole])
        database.execute("UPDATE runs SET settings = substr(settings, 1, 20)")
        assert f"{name} cannot be read: its record is damaged." in gc(flow, "--grace", "0s").err
        assert before == objects(flow)

    assert "--run takes the flow and the id" in gc(flow, "--run", "Flow_").err
    assert "0 runs and 0 objects" in gc(flow, "--run", "Flow_/of-nobody").out
    found = gc(flow, "--grace", "0s", "--run", name)
    assert f"{name}  succeeded\n1 run and " in found.out
    assert {root / "logs" / ".DS_Store"} == objects(flow)
