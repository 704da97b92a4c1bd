"""A foreach over an iterator of unknown length: its items are stored as they come."""

from __future__ import annotations

from aflow import client
from tests.flows.conftest import Workspace

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
