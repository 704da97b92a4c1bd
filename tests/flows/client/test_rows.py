"""All attributes of the client's objects, on one real run that has everything."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import aflow
from aflow import client
from aflow.errors import AflowError, InvalidInput, NamespaceMismatch, NotFound
from tests.flows.conftest import Workspace

FLOW = """
class Flow_(FlowSpec):
    alpha = Parameter("alpha", default=1)
    size = 3

    @step
    def start(self):
        self.xs = [1, 2]
        self._private = 1
        self.next(self.each, foreach="xs")

    @retry(times=1, seconds=0)
    @step
    def each(self):
        print("hello", self.input, current.retry_count)
        print("error", file=sys.stderr)
        if self.input == 2 and not current.retry_count:
            raise ValueError("not yet")
        self.y = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ys = [each.y for each in inputs]
        self.next(self.caught)

    @catch(var="bad", print_exception=False)
    @step
    def caught(self):
        1 / 0
        self.next(self.end)

    @step
    def end(self):
        if self.alpha == 2:
            raise KeyError("broken")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the flow has succeeded, and then failed."""
    workspace = Workspace(tmp_path_factory.mktemp("rows"))
    workspace.write(FLOW)
    good = workspace.run("--run-id-file", "good", "--tag", "one", AFLOW_USER="tester")
    assert 0 == good.code, good.err
    assert 1 == workspace.run("--alpha", "2", "--run-id-file", "bad", AFLOW_USER="tester").code
    return workspace.path


@pytest.fixture
def run(folder: Path) -> Iterator[client.Run]:
    """The run that succeeded, with the client set to its folder."""
    aflow.metadata(f"local@{folder}")
    aflow.namespace(None)
    yield aflow.Run(f"Flow_/{(folder / 'good').read_text()}")
    aflow.default_metadata()
    aflow.default_namespace()


def test_what_all_objects_have(run: client.Run) -> None:
    flow, step = aflow.Flow("Flow_"), run["each"]
    task = step.task
    chain = [flow, run, step, task, task["y"]]
    names = ["Flow_", run.id, "each", task.id, "y"]
    for depth, each in enumerate(chain):
        parts = names[: depth + 1]
        assert (parts[-1], "/".join(parts), parts) == (each.id, each.pathspec, each.path_components)
        assert each.parent == (chain[depth - 1] if depth else None)
        assert each.created_at.utcoffset() == timedelta(0)
        assert each.is_in_namespace()
        assert None is each.origin_pathspec
        assert each.tags == each.user_tags | each.system_tags
        assert each.user_tags == (frozenset({"one"}) if depth else frozenset())
        assert ("user:tester" in each.system_tags) is bool(depth)
        assert f"{type(each).__name__}({each.pathspec!r})" == repr(each) == str(each)
        assert each == pickle.loads(pickle.dumps(each))
        assert "nothing" not in each
        assert each.pathspec in each._repr_html_()
    assert flow.finished_at is None
    assert all(isinstance(each.finished_at, datetime) for each in chain[1:])
    for above, below in pairwise(chain):
        assert below.id in above
        assert below == above[below.id]
        assert below.id in [each.id for each in above]


def test_all_flows_and_their_runs(run: client.Run, folder: Path) -> None:
    bad = aflow.Run(f"Flow_/{(folder / 'bad').read_text()}")
    everything = aflow.Metaflow()
    assert ["Flow_"] == [each.id for each in everything.flows] == [each.id for each in everything]
    flow = everything["Flow_"]
    assert [bad, run] == [*flow] == [*flow.runs()]
    assert (bad, run) == (flow.latest_run, flow.latest_successful_run)
    assert [run] == [*flow.runs("one")] == [*flow.runs("one", "user:tester")]
    assert [] == [*flow.runs("two")]
    assert [(True, True), (True, False)] == [
        (each.finished, each.successful) for each in (run, bad)
    ]


def test_a_run(run: client.Run, folder: Path) -> None:
    assert ["end", "caught", "join", "each", "start"] == [step.id for step in run]
    assert [*run] == [*run.steps()]
    assert run.end_task == run["end"].task
    assert ([1, 2], 1, 3) == (run.data.ys, run.data.alpha, run.data.size)
    assert run.trigger is None
    assert run.code is not None
    assert ("flow.py", "class Flow_(FlowSpec)") == (
        run.code.script_name,
        run.code.flowspec[run.code.flowspec.index("class") :][:21],
    )
    bad = aflow.Run(f"Flow_/{(folder / 'bad').read_text()}")
    assert bad.end_task == bad["end"].task
    exception = bad["end"].task.exception
    assert exception is not None
    assert ("builtins.KeyError", "'broken'") == (exception.type, exception.message)


def test_tags_are_changed_one_by_one_and_many_at_once(run: client.Run) -> None:
    def tags() -> frozenset[str]:
        return aflow.Run(run.pathspec).user_tags

    run.add_tag("x")
    assert {"one", "x"} == tags() == run.user_tags
    run.add_tags(["y", "z"])
    run.remove_tag("x")
    run.remove_tags(["y"])
    assert {"one", "z"} == tags()
    run.replace_tag("z", "w")
    run.replace_tags(["w"], ["one"])
    assert {"one"} == tags()
    run.add_tags(["user:tester"])  # it has that as a tag of the system
    wrong: Any
    for wrong in ("", "x" * 501, [], 4):
        with pytest.raises(AflowError):
            run.add_tag(wrong)
    with pytest.raises(AflowError, match="is a system tag"):
        run.remove_tags(["one", "user:tester"])
    assert {"one"} == tags()


def test_a_step(run: client.Run) -> None:
    step = run["each"]
    assert {2, 3} == {int(task.id) for task in step}
    assert [*step] == [*step.tasks()]
    assert [*step] == [*step.tasks("one")]
    assert [] == [*step.tasks("two")]
    assert step.task in [*step]
    assert (None, []) == (step.control_task, [*step.control_tasks()])
    assert (["start"], ["join"]) == tuple(
        [each.id for each in steps] for steps in (step.parent_steps, step.child_steps)
    )
    assert "Flow_" == step.environment_info["flow_name"]


def test_a_task(run: client.Run) -> None:
    task = next(task for task in run["each"] if task.index == 1)
    assert (True, True, None) == (task.successful, task.finished, task.exception)
    assert (2, 1, "dev") == (task.data.y, task.current_attempt, task.runtime_name)
    assert ["alpha", "size", "xs", "y"] == [each.id for each in task.artifacts]
    assert 2 == task.artifacts.y.data
    assert "_private" in task
    assert ("y" in task.data, "nothing" in task.data) == (True, False)
    with pytest.raises(AttributeError):
        _ = task.data.nothing
    with pytest.raises(KeyError):
        _ = task["nothing"]
    assert task.code is not None
    assert "flow.py" == task.code.script_name
    start, join = run["start"].task, run["join"].task
    assert ([start], [join]) == ([*task.parent_tasks], [*task.child_tasks])
    assert [start.pathspec] == [*task.parent_task_pathspecs]
    assert [join.pathspec] == [*task.child_task_pathspecs]
    assert 2 == len([*join.parent_tasks])


def test_the_attempts_and_logs_of_a_task(run: client.Run) -> None:
    task = next(task for task in run["each"] if task.index == 1)
    assert ("hello 2 1\n", "error\n") == (task.stdout, task.stderr)
    assert (10, 6) == (task.stdout_size, task.stderr_size)
    [(at, line)] = task.loglines("stdout")
    assert (timedelta(0), "hello 2 1") == (at.utcoffset(), line)
    assert [b"error"] == [line for _, line in task.loglines("stderr", as_unicode=False)]
    first = aflow.Task(task.pathspec, attempt=0)
    assert (0, False) == (first.current_attempt, first.successful)
    assert "hello 2 0\n" == first.stdout
    assert first.exception is not None
    assert str(first.exception).endswith("ValueError: not yet\n")
    with pytest.raises(NotFound):
        _ = aflow.Task(task.pathspec, attempt=7).stdout


def test_the_facts_of_a_task(run: client.Run) -> None:
    task = next(task for task in run["each"] if task.index == 1)
    facts = task.metadata_dict
    assert facts == {each.name: each.value for each in task.metadata}
    assert {
        "attempt": "1",
        "ds-type": "local",
        "user": "tester",
        "attempt_ok": "True",
        "runtime": "dev",
    }.items() <= facts.items()
    assert {"name", "value", "created_at", "type", "task"} == {*task.metadata[0]._fields}
    assert {"foreach-stack", "foreach-execution-path", "attempt-done"} <= facts.keys()


def test_an_artifact(run: client.Run) -> None:
    here, there = (run[step].task["xs"] for step in ("start", "each"))
    assert ([1, 2], here.sha) == (there.data, there.sha)
    assert here.size == there.size > 0
    assert isinstance(here.sha, str)


def test_what_was_caught_is_reported_and_is_an_artifact(run: client.Run) -> None:
    task = run["caught"].task
    assert (False, True) == (task.successful, run.successful)
    assert task.exception is None
    assert "division by zero" in str(task.caught)
    assert task.caught.type == task.data.bad.type == "builtins.ZeroDivisionError"


def test_namespaces_hide_what_is_not_in_them(run: client.Run) -> None:
    assert "user:other" == aflow.namespace("user:other") == aflow.get_namespace()
    for hidden in (lambda: aflow.Run(run.pathspec), lambda: aflow.Flow("Flow_").latest_run):
        with pytest.raises(NamespaceMismatch):
            hidden()
    assert [] == aflow.Metaflow().flows
    assert not run.is_in_namespace()
    aflow.namespace("one")
    assert run.is_in_namespace()
    assert run == aflow.Flow("Flow_").latest_run
    assert aflow.default_namespace() == aflow.get_namespace()


@pytest.mark.parametrize(
    ("kind", "pathspec", "error"),
    [
        ("Flow", "Nothing", KeyError),
        ("Run", "Flow_/7", KeyError),
        ("Step", "Flow_/{run}/nothing", KeyError),
        ("Task", "Flow_/{run}/each/999", KeyError),
        ("Run", "Flow_", InvalidInput),
        ("Task", "Flow_/{run}/each", InvalidInput),
        ("Flow", "../etc", InvalidInput),
    ],
)
def test_what_is_not_there_or_no_name_is_reported(
    run: client.Run, kind: str, pathspec: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        getattr(aflow, kind)(pathspec.format(run=run.id))


def test_the_place_is_chosen_and_reported(run: client.Run, folder: Path) -> None:
    assert str(folder) in aflow.get_metadata()
    with pytest.raises(InvalidInput):
        aflow.metadata("nothing@nowhere")
    assert str(folder) in aflow.get_metadata()
    assert aflow.get_metadata() != aflow.default_metadata()
