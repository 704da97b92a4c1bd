"""`spin`: rerun one step alone, on its inputs of an earlier run."""

from __future__ import annotations

import pytest

from aflow import client
from tests.flows.conftest import Ran, Workspace

FLOW = """
class Flow_(FlowSpec):
    alpha = Parameter("alpha", default=2)

    @step
    def start(self):
        self.xs = [1, 2, 3]
        self.big = bytes(50_000)
        self.next(self.work, foreach="xs")

    @retry(times=2, seconds=0)
    @catch(var="failure")
    @step
    def work(self):
        print("work", self.input, self.alpha, len(self.big), current.retry_count)
        self.y = self.input * self.alpha
        if os.path.exists("broken"):
            raise ValueError("broken")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ys = [each.y for each in inputs]
        print("join", self.ys)
        self.next(self.end)

    @environment(vars={"GREETING": "hello"})
    @step
    def end(self):
        print("end", self.ys, os.environ.get("GREETING"), current.origin_run_id)
"""


@pytest.fixture
def ran(workspace: Workspace) -> Workspace:
    """A workspace with a flow that has run."""
    workspace.write(FLOW)
    first = workspace.run("--alpha", "5")
    assert 0 == first.code, first.err
    return workspace


def spin(workspace: Workspace, *args: str) -> Ran:
    """Run `python flow.py spin ARGS`."""
    return workspace.finish(workspace.start("--no-pylint", "spin", *args))


def printed(ran: Ran) -> list[str]:
    """Return the output of the steps."""
    return [line for line in ran.lines if line.startswith(("work", "join", "end"))]


def flow(workspace: Workspace) -> client.Flow:
    """Return the flow as the client reads it."""
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    return client.Flow("Flow_")


def latest(workspace: Workspace) -> str:
    """Return the id of the latest run."""
    run = flow(workspace).latest_run
    assert run is not None
    return run.id


def test_a_step_runs_alone_on_the_inputs_it_had(ran: Workspace) -> None:
    spun = spin(ran, "work")
    assert (0, ["work 1 5 50000 0"]) == (spun.code, printed(spun)), spun.err
    assert ["join [5, 10, 15]"] == printed(spin(ran, "join"))
    origin = flow(ran).latest_run
    assert origin is not None
    assert [f"end [5, 10, 15] hello {origin.id}"] == printed(spin(ran, "end"))
    assert ["end [5, 10, 15] None " + origin.id] == printed(spin(ran, "end", "--skip-decorators"))
    ran.check()


def test_the_first_step_is_spun_with_the_parameters_of_its_run(ran: Workspace) -> None:
    spun = spin(ran, "start")
    assert 0 == spun.code, spun.err
    run = flow(ran)[run_of(spun)]
    assert [1, 2, 3] == run["start"].task.data.xs
    assert 5 == run["start"].task.data.alpha


def run_of(spun: Ran) -> str:
    """Return the id of the run that a spin has created."""
    return spun.out.split("run-id ")[1].split(")")[0]


@pytest.mark.parametrize("form", ["{task}", "Flow_/{task}"])
def test_a_task_is_named_exactly(ran: Workspace, form: str) -> None:
    run = flow(ran).latest_run
    assert run is not None
    last = run["work"].task
    path = form.format(task=f"{run.id}/work/{last.id}")
    assert [f"work {last.data.y // 5} 5 50000 0"] == printed(spin(ran, path))
    assert ["join [5, 10, 15]"] == printed(spin(ran, form.format(task=f"{run.id}/join")))


def test_of_several_tasks_the_one_that_failed_is_spun(workspace: Workspace) -> None:
    workspace.write(
        """
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.xs = "abc"
                self.next(self.work, foreach="xs")

            @step
            def work(self):
                print("work", self.input)
                if self.input == "b":
                    raise ValueError("no b")
                self.next(self.join)

            @step
            def join(self, inputs):
                self.next(self.end)

            @step
            def end(self):
                pass
        """
    )
    assert 1 == workspace.run().code
    spun = spin(workspace, "work")
    assert (1, ["work b"]) == (spun.code, printed(spun))
    assert "no b" in spun.err


def test_a_spin_is_in_nobodys_way(ran: Workspace) -> None:
    before = latest(ran)
    spun = spin(ran, "end")
    assert before == latest(ran)
    assert [before] == [run.id for run in flow(ran)]
    resumed = ran.finish(ran.start("--no-pylint", "resume", "end"))
    assert 0 == resumed.code, resumed.err
    refused = ran.finish(ran.start("resume", "--origin-run-id", run_of(spun)))
    assert 1 < refused.code
    assert "is a spin of one task, which cannot be resumed" in refused.err


@pytest.mark.parametrize("how", ["option", "setting"])
def test_without_persist_nothing_is_stored_of_what_the_step_leaves(
    workspace: Workspace, how: str
) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.xs = [1, 2]
                if os.path.exists("again"):
                    self.big = os.urandom(100_000)
                    self.lock = open(__file__)
                self.next(self.each, foreach="xs")
            @step
            def each(self):
                self.next(self.end)
            @step
            def end(self, inputs):
                pass
        """)
    assert 0 == workspace.run().code
    (workspace.path / "again").touch()
    refused = spin(workspace, "start")
    assert 1 == refused.code  # an open file cannot be pickled
    assert "'lock'" in refused.err
    before = stored(workspace)
    args = ("--no-persist",) if how == "option" else ()
    spun = workspace.finish(
        workspace.start(
            "--no-pylint", "spin", "start", *args, AFLOW_SPIN_PERSIST="1" if args else "0"
        )
    )
    assert 0 == spun.code, spun.err
    assert "Foreach yields 2 child steps." in spun.out
    assert before == stored(workspace)
    task = flow(workspace)[run_of(spun)]["start"].task
    assert task.successful
    assert [] == [each.id for each in task]


def stored(workspace: Workspace) -> list[str]:
    """Return the blobs in the store."""
    return sorted(path.name for path in workspace.path.glob(".aflow/blobs/*/*"))


def test_spins_are_listed_for_who_inspects_them(ran: Workspace) -> None:
    ids = {run_of(spin(ran, "end")), run_of(spin(ran, "join"))}
    client.inspect_spin(str(ran.path))
    client.namespace(None)
    assert ids == {run.id for run in client.Flow("Flow_")}
    latest = client.Flow("Flow_").latest_run
    assert latest is not None
    assert [5, 10, 15] == latest["join"].task.data.ys
    assert ids.isdisjoint(run.id for run in flow(ran))


def test_the_code_is_that_of_now_and_failures_are_shown_as_they_are(ran: Workspace) -> None:
    (ran.path / "broken").touch()
    spun = spin(ran, "work")
    assert 1 == spun.code
    assert ["work 1 5 50000 0"] == printed(spun)  # neither tried again nor caught
    assert "ValueError: broken" in spun.err


def test_artifacts_of_the_inputs_can_be_replaced(ran: Workspace) -> None:
    (ran.path / "mine.py").write_text("ARTIFACTS = {'ys': ['other']}\n")
    spun = spin(ran, "end", "--artifacts-module", "mine.py")
    assert ["end ['other'] hello"] == [line.rsplit(" ", 1)[0] for line in printed(spun)]
    run = flow(ran).latest_run
    assert run is not None
    assert [5, 10, 15] == run.data.ys
    task = next(task for task in run["work"] if task.data.y == 10)
    (ran.path / "mine.py").write_text(f"ARTIFACTS = {{'{task.pathspec}': {{'y': 'other'}}}}\n")
    assert ["join [5, 'other', 15]"] == printed(spin(ran, "join", "--artifacts-module", "mine.py"))


@pytest.mark.parametrize(
    ("args", "reported"),
    [
        (["nothing"], "has no step 'nothing' to spin; its steps are: start, work, join, end."),
        (["12/end"], "There is no run Flow_/12 in"),
        (["a/b/c/d"], "names no step: give STEP, RUN/STEP or RUN/STEP/TASK"),
        (["12/end/x"], "names no step"),
        (["end", "--artifacts-module", "empty.py"], "empty.py must have a dict ARTIFACTS"),
        (["end", "--artifacts-module", "bad.py"], "bad.py does not run: ZeroDivisionError"),
        (["end", "--artifacts-module", "ends.py"], "ends.py does not run: SystemExit: 0"),
        (["join", "--artifacts-module", "names.py"], "'ys' is none of its inputs. They are: Flow_"),
    ],
)
def test_what_cannot_be_spun_is_reported(ran: Workspace, args: list[str], reported: str) -> None:
    (ran.path / "empty.py").write_text("")
    (ran.path / "bad.py").write_text("1 / 0")
    (ran.path / "names.py").write_text("ARTIFACTS = {'ys': 1}")
    (ran.path / "ends.py").write_text("raise SystemExit(0)")
    spun = spin(ran, *args)
    assert 0 < spun.code
    assert reported in spun.err
    assert "Traceback" not in spun.err


def test_a_step_that_no_run_has_reached_is_reported(workspace: Workspace) -> None:
    workspace.write(FLOW)
    spun = spin(workspace, "end")
    assert 0 < spun.code
    assert "There is no task end to spin: none of the latest 0 runs of Flow_ has got as far" in (
        spun.err
    )
