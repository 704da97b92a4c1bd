"""A foreach over an iterator of unknown length: its items are stored as they are produced."""

from __future__ import annotations

import time

import pytest

from aflow import client
from aflow.runs.gc import RunsToDelete, collect
from aflow.storage.factory import open_store
from tests.flows.conftest import Workspace
from tests.support.waiting import wait_until

FLOW = """
class Flow_(FlowSpec):
    count = Parameter("count", default=5)
    fails = Parameter("fails", default=False)

    def found(self):
        for number in range(self.count):
            if self.fails and number == 3:
                raise ValueError("no more")
            yield {"number": number}

    @step
    def start(self):
        self.items = self.found()
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.seen = self.input["number"], self.index
        self.next(self.join)

    @step
    def join(self, inputs):
        self.all_seen = [each.seen for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_a_task_runs_for_each_item_that_a_generator_gives(workspace: Workspace) -> None:
    workspace.write(FLOW)
    ran = workspace.run()
    assert 0 == ran.code, ran.err
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    run = client.Flow("Flow_").latest_run
    assert run is not None
    assert [(number, number) for number in range(5)] == run.data.all_seen
    assert "items" not in run["start"].task
    workspace.check()


def test_a_generator_of_nothing_leads_to_a_join_of_nothing(workspace: Workspace) -> None:
    workspace.write(FLOW)
    assert 0 == workspace.run("--count", "0").code


def test_a_generator_that_fails_fails_its_step(workspace: Workspace) -> None:
    workspace.write(FLOW)
    ran = workspace.run("--fails", "True")
    assert 1 == ran.code
    assert "ValueError: no more" in ran.err


def test_an_endless_generator_stops_at_the_limit(workspace: Workspace) -> None:
    workspace.write(FLOW.replace("range(self.count)", "iter(int, 1)"))
    ran = workspace.run("--max-num-splits", "7")
    assert 1 == ran.code
    assert "7" in ran.err
    assert "--max-num-splits" in ran.err


HAND_IN_HAND = """
class Flow_(FlowSpec):
    def found(self):
        for number in range(4):
            yield number
            # The next item comes when the task for this one has run.
            while not os.path.exists(f"done-{number}"):
                time.sleep(0.005)

    DECORATOR
    @step
    def start(self):
        self.word = "x" * 100_000
        self.items = self.found()
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.seen = self.input, self.foreach_stack()[0][1], len(self.word)
        open(f"done-{self.input}", "w").close()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.all_seen = [each.seen for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        print("seen", self.all_seen)
"""


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_tasks_begin_while_the_generator_still_yields(workspace: Workspace, isolation: str) -> None:
    workspace.write(HAND_IN_HAND.replace("    DECORATOR\n", ""))

    ran = workspace.run("--isolation", isolation)

    assert 0 == ran.code, ran.err
    seen = [(number, None, 100_000) for number in range(4)]
    assert f"seen {seen}" in ran.lines
    workspace.check()


def test_one_process_reads_items_that_were_generated_after_its_first_task(
    workspace: Workspace,
) -> None:
    """Coroutine steps share a process, which has cached the list of the first items."""
    workspace.write(
        HAND_IN_HAND.replace("    DECORATOR\n", "")
        # Without artifacts of the first step, its manifest is not sent along to the later ones.
        .replace('        self.word = "x" * 100_000\n', "")
        .replace(", len(self.word)", "")
        .replace("self.next(self.join)", "self.next(self.later)")
        .replace('        open(f"done-{self.input}", "w").close()\n', "")
        .replace(
            "    @step\n    def join",
            "    @step\n"
            "    async def later(self):\n"
            '        open(f"done-{self.input}", "w").close()\n'
            "        self.next(self.join)\n\n"
            "    @step\n"
            "    def join",
        )
    )

    ran = workspace.run()

    assert 0 == ran.code, ran.err
    seen = [(number, None) for number in range(4)]
    assert f"seen {seen}" in ran.lines


def test_a_generator_that_fails_later_fails_its_run_and_is_resumed_anew(
    workspace: Workspace,
) -> None:
    source = HAND_IN_HAND.replace("    DECORATOR\n", "")
    workspace.write(
        source.replace("range(4):", "range(4):\n            self.check(number)").replace(
            "    @step\n    def start",
            "    def check(self, number):\n"
            "        if number == 2 and not os.path.exists('mended'):\n"
            "            raise ValueError('no more')\n\n"
            "    @step\n    def start",
        )
    )
    failed = workspace.run()
    assert 1 == failed.code
    assert "ValueError: no more" in failed.err
    assert 2 == len([line for line in failed.lines if "finished successfully" in line])
    spun = workspace.finish(workspace.start("--no-pylint", "spin", "work"))
    assert 2 == spun.code
    assert "without the results that it reads: Task 1 " in spun.err
    (workspace.path / "mended").touch()

    resumed = workspace.finish(workspace.start("resume"))

    assert 0 == resumed.code, resumed.err
    assert f"seen {[(number, None, 100_000) for number in range(4)]}" in resumed.lines
    workspace.check()


def test_where_a_step_may_be_tried_again_tasks_begin_when_all_items_are_there(
    workspace: Workspace,
) -> None:
    workspace.write(
        FLOW.replace(
            "    @step\n    def start",
            "    @retry(times=1, minutes_between_retries=0)\n    @step\n    def start",
        ).replace("self.fails and number == 3", "current.retry_count == 0 and number == 3")
    )
    ran = workspace.run()
    assert 0 == ran.code, ran.err
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    run = client.Flow("Flow_").latest_run
    assert run is not None
    assert 5 == len(list(run["work"]))


def test_gc_keeps_the_items_of_a_step_that_may_be_tried_again_while_it_yields(
    workspace: Workspace,
) -> None:
    workspace.write(
        FLOW.replace(
            "    @step\n    def start",
            "    @retry(times=1, minutes_between_retries=0)\n    @step\n    def start",
        ).replace(
            'yield {"number": number}',
            "open('yielding', 'w').close()\n"
            '            yield {"number": number, "large": "x" * (2 << 20)}\n'
            "            while not os.path.exists('collected'):\n"
            "                time.sleep(0.01)",
        )
    )
    running = workspace.start("run", "--count", "2")
    wait_until((workspace.path / "yielding").exists)
    metadata = workspace.metadata
    run = metadata.runs("Flow_")[0]
    wait_until(lambda: metadata.manifests(run.key, [1]))

    store = open_store(f"file://{workspace.path}/.aflow")
    collect(metadata, store, RunsToDelete(), time.time() + 10, grace=0.0)

    (workspace.path / "collected").touch()
    ran = workspace.finish(running)
    assert 0 == ran.code, ran.err
    workspace.check()


def test_a_generator_of_many_items_is_reported_now_and_then(workspace: Workspace) -> None:
    workspace.write(FLOW)
    ran = workspace.run(
        "--count", "3000", "--max-num-splits", "3000", "--isolation", "worker", "--cache"
    )
    assert 0 == ran.code, ran.err
    again = workspace.run(
        "--count", "3000", "--max-num-splits", "3000", "--isolation", "worker", "--cache"
    )
    assert 0 == again.code, again.err
    workspace.check()
