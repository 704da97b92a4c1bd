"""The client on what real runs have left."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from aflow import client
from aflow.client import Run
from tests.flows.conftest import Workspace

FLOW = """
from aflow import trigger_on_finish

@trigger_on_finish(flow="Flow_")
class Flow_(FlowSpec):
    @step
    def start(self):
        self.x = 1
        print("started")
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture
def two_runs(workspace: Workspace) -> tuple[Run, Run]:
    """A run, and one that its end has started, as the client reads them."""
    workspace.write(FLOW)
    assert 0 == workspace.run("--run-id-file", "first").code
    first = (workspace.path / "first").read_text()
    second = workspace.run("--trigger", f"Flow_/{first}", "--run-id-file", "second")
    assert 0 == second.code, second.err
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    ids = (first, (workspace.path / "second").read_text())
    return Run(f"Flow_/{ids[0]}"), Run(f"Flow_/{ids[1]}")


@pytest.fixture(autouse=True)
def _choices() -> Iterator[None]:
    yield
    client.default_metadata()
    client.default_namespace()


def test_a_run_knows_the_run_that_triggered_it(two_runs: tuple[Run, Run]) -> None:
    first, second = two_runs

    assert first.trigger is None
    assert second.trigger is not None
    assert first.pathspec == second.trigger.run.pathspec
    assert "Flow_" in second.trigger


def test_every_object_can_be_pickled_and_shown(two_runs: tuple[Run, Run]) -> None:
    run = two_runs[0]
    task = run["start"].task
    for each in (run.parent, run, task.parent, task, task["x"]):
        again = pickle.loads(pickle.dumps(each))
        assert repr(each) == repr(again) == str(again)
        assert each.pathspec in again._repr_html_()
    assert 1 == pickle.loads(pickle.dumps(task.data)).x
