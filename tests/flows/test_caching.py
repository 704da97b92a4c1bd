"""`@cache`, `run --cache`, `run --dry-run` and `explain`: unchanged steps do not run again."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from aflow import client
from tests.flows.conftest import Ran, Workspace

FLOW = """
from aflow import cache
import helper

class Flow_(FlowSpec):
    lr = Parameter("lr", default=0.1)

    @step
    def start(self):
        print("start runs")
        self.xs = [1, 2, 3]
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        print("work runs")
        self.y = helper.scaled(self.input)
        self.next(self.join)

    @step
    def join(self, inputs):
        print("join runs")
        self.ys = [each.y for each in inputs]
        self.merge_artifacts(inputs, exclude=["y"])
        self.next(self.end)

    @step
    def end(self):
        print("end runs", self.ys, self.lr)
"""

EVERY_SHAPE = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.outer = ["a", "b"]
        self.next(self.middle, foreach="outer")

    @step
    def middle(self):
        self.letter = self.input
        self.inner = range(2)
        self.next(self.work, foreach="inner")

    @step
    def work(self):
        print("work runs")
        self.value = f"{self.letter}{self.input}"
        self.next(self.gather)

    @step
    def gather(self, inputs):
        self.values = [each.value for each in inputs]
        self.next(self.both)

    @step
    def both(self, inputs):
        self.everything = [value for each in inputs for value in each.values]
        self.turn = 0
        self.next(self.left, self.right)

    @step
    def left(self):
        self.next(self.meet)

    @step
    def right(self):
        self.next(self.meet)

    @step
    def meet(self, inputs):
        self.merge_artifacts(inputs)
        self.next(self.again)

    @step
    def again(self):
        self.turn += 1
        self.go = "more" if self.turn < 3 else "enough"
        self.next({"more": self.again, "enough": self.end}, condition="go")

    @step
    def end(self):
        print("end runs", self.everything, self.turn)
"""

HELPER = """
FACTOR = 10

def scaled(x):
    return x * factor()

def factor():
    return FACTOR

def not_used():
    return 1
"""

ALL = ["start runs", *3 * ["work runs"], "join runs", "end runs [10, 20, 30] 0.1"]


@pytest.fixture
def flow(workspace: Workspace) -> Workspace:
    """A workspace with a flow and its helper module, which has run once with --cache."""
    (workspace.path / "helper.py").write_text(HELPER)
    workspace.write(FLOW)
    first = workspace.run("--cache")
    assert 0 == first.code, first.err
    assert ALL == printed(first)
    return workspace


def printed(ran: Ran) -> list[str]:
    """Return the output of the steps."""
    return [line for line in ran.lines if " runs" in line]


def change_helper(workspace: Workspace, old: str, new: str) -> None:
    """Edit the helper module."""
    assert old in HELPER
    file = workspace.path / "helper.py"
    file.write_text(HELPER.replace(old, new))
    # Python takes a file of the same size and second for the same file.
    os.utime(file, (0, file.stat().st_mtime + 10))


def runs(workspace: Workspace) -> list[client.Run]:
    """Return the runs of the flow, newest first."""
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    return [*client.Flow("Flow_")]


def command(workspace: Workspace, *args: str) -> Ran:
    """Run `python flow.py ARGS`."""
    return workspace.finish(workspace.start(*args))


def program(workspace: Workspace, *args: str) -> Ran:
    """Run `aflow ARGS`."""
    process = subprocess.run(
        [sys.executable, "-m", "aflow", *args],
        cwd=workspace.path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ran(process.returncode, process.stdout, process.stderr)


# ------------------------------------------------------------ steps that run again


def test_nothing_is_run_again_when_nothing_has_changed(flow: Workspace) -> None:
    again = flow.run("--cache")
    assert 0 == again.code, again.err
    assert [] == printed(again)
    second, first = runs(flow)
    assert second.successful
    assert [10, 20, 30] == second.data.ys
    assert 6 == again.out.count("Nothing has changed since task")
    assert {f"{first.id}/{each.path_components[2]}" for each in tasks(first)} == {
        "/".join(task.origin_pathspec.split("/")[1:3]) for task in tasks(second)
    }
    flow.check()


def tasks(run: client.Run) -> list[client.Task]:
    """Return all tasks of a run."""
    return [task for step in run for task in step]


def test_the_log_of_a_cached_task_is_what_the_task_printed_that_ran(flow: Workspace) -> None:
    flow.run("--cache")
    flow.run("--cache")
    assert "end runs [10, 20, 30] 0.1\n" == runs(flow)[0]["end"].task.stdout


def test_a_run_without_caching_computes_everything(flow: Workspace) -> None:
    assert ALL == printed(flow.run())


def test_another_parameter_runs_all_that_can_read_it(flow: Workspace) -> None:
    assert [*ALL[:-1], "end runs [10, 20, 30] 0.2"] == printed(flow.run("--cache", "--lr", "0.2"))
    assert [] == printed(flow.run("--cache"))  # the results with 0.1 are still cached


def test_a_change_in_a_helper_module_runs_the_steps_that_use_it(flow: Workspace) -> None:
    change_helper(flow, "x * factor()", "x * factor() * 2")
    assert [*ALL[1:-1], "end runs [20, 40, 60] 0.1"] == printed(flow.run("--cache"))


def test_a_change_deep_in_a_helper_module_is_seen(flow: Workspace) -> None:
    change_helper(flow, "FACTOR = 10", "FACTOR = 7")
    assert [*ALL[1:-1], "end runs [7, 14, 21] 0.1"] == printed(flow.run("--cache"))


@pytest.mark.parametrize(
    ("old", "new"),
    [("return 1", "return 2"), ("def scaled", "# a comment\ndef scaled")],
    ids=["a function that no step uses", "a comment"],
)
def test_what_makes_no_difference_runs_nothing(flow: Workspace, old: str, new: str) -> None:
    change_helper(flow, old, new)
    assert [] == printed(flow.run("--cache"))


def test_a_step_that_leaves_the_same_as_before_stops_the_change(flow: Workspace) -> None:
    change_helper(flow, "x * factor()", "factor() * x")
    assert ALL[1:4] == printed(flow.run("--cache"))


def test_a_result_whose_blob_is_gone_is_computed_again(workspace: Workspace) -> None:
    workspace.write(
        """
        from aflow import cache

        class Flow_(FlowSpec):
            @cache
            @step
            def start(self):
                self.big = bytes(100_000)
                print("start runs")
                self.next(self.end)

            @step
            def end(self):
                print("end runs", len(self.big))
        """
    )
    assert ["start runs", "end runs 100000"] == printed(workspace.run())
    assert ["end runs 100000"] == printed(workspace.run())
    for blob in (workspace.path / ".aflow" / "blobs").rglob("*"):
        if blob.is_file():
            blob.unlink()
    assert ["start runs", "end runs 100000"] == printed(workspace.run())


def test_a_step_may_be_left_out_of_caching_or_given_a_new_version(workspace: Workspace) -> None:
    source = """
        from aflow import cache

        class Flow_(FlowSpec):
            @cache(version="VERSION")
            @step
            def start(self):
                print("start runs")
                self.next(self.end)

            @cache(enabled=False)
            @step
            def end(self):
                print("end runs")
        """
    workspace.write(source)
    assert ["start runs", "end runs"] == printed(workspace.run("--cache"))
    assert ["end runs"] == printed(workspace.run("--cache"))
    workspace.write(source.replace("VERSION", "2"))
    assert ["start runs", "end runs"] == printed(workspace.run("--cache"))


def test_another_environment_variable_runs_the_step_again(workspace: Workspace) -> None:
    source = """
        from aflow import cache

        class Flow_(FlowSpec):
            @cache
            @environment(vars={"GREETING": "WORD"})
            @step
            def start(self):
                print("start runs", os.environ["GREETING"])
                self.next(self.end)

            @step
            def end(self):
                pass
        """
    workspace.write(source)
    assert ["start runs WORD"] == printed(workspace.run())
    assert [] == printed(workspace.run())
    workspace.write(source.replace("WORD", "hello"))
    assert ["start runs hello"] == printed(workspace.run())
    reported = command(workspace, "explain", runs(workspace)[0].id).out
    assert "ran: @environment GREETING changed (since" in reported
    assert "hello" not in reported  # it may be a secret


def test_a_failed_task_is_not_a_result(workspace: Workspace) -> None:
    workspace.write(
        """
        class Flow_(FlowSpec):
            @step
            def start(self):
                print("start runs")
                self.next(self.end)

            @step
            def end(self):
                print("end runs")
                if not os.path.exists("mended"):
                    raise ValueError("broken")
        """
    )
    assert ["start runs", "end runs"] == printed(workspace.run("--cache"))
    (workspace.path / "mended").touch()
    assert ["end runs"] == printed(workspace.run("--cache"))


def test_nested_foreachs_branches_and_loops_are_cached_as_they_ran(workspace: Workspace) -> None:
    workspace.write(EVERY_SHAPE)
    first = workspace.run("--cache")
    assert 0 == first.code, first.err
    again = workspace.run("--cache")
    assert (0, []) == (again.code, printed(again))
    second, before = runs(workspace)
    assert ["a0", "a1", "b0", "b1"] == second.data.everything
    assert 3 == second.data.turn
    assert len(tasks(before)) == len(tasks(second)) == 17
    assert [1, 0, 1, 0] == [task.index for task in second["work"]]
    reported = command(workspace, "--quiet", "run", "--cache", "--dry-run").out
    assert "would run" not in reported.replace("would not run", "")


# ------------------------------------------------------------ saying why


def test_explain_says_in_words_why_tasks_ran(flow: Workspace) -> None:
    change_helper(flow, "FACTOR = 10", "FACTOR = 7")
    flow.run("--cache", "--lr", "0.2")
    latest, first = runs(flow)
    reported = command(flow, "explain", latest.id).out.splitlines()
    since = f"(since Flow_/{first.id})"
    assert f"Flow_/{latest.id}/start/1 ran: lr changed 0.1 -> 0.2 {since}" == reported[0]
    assert reported[1].endswith(f"ran: lr changed 0.1 -> 0.2; helper.FACTOR changed {since}")
    assert reported[-1].endswith(
        f"ran: lr changed 0.1 -> 0.2; ys changed [10, 20, 30] -> [7, 14, 21] {since}"
    )


def test_explain_says_why_tasks_did_not_run(flow: Workspace) -> None:
    flow.run("--cache")
    latest, first = runs(flow)
    reported = command(flow, "explain", f"Flow_/{latest.id}/end").out
    expected = f"did not run: nothing has changed since Flow_/{first.id}, whose result it has"
    assert re.fullmatch(rf"Flow_/{latest.id}/end/\d+ {expected}\n", reported), reported


def test_explain_needs_no_flow_file_and_names_a_task_that_is_not_there(flow: Workspace) -> None:
    (run,) = runs(flow)
    there = program(flow, "explain", f"Flow_/{run.id}/start/1")
    assert there.out.endswith("ran: no earlier run of Flow_ has finished this task\n")
    absent = program(flow, "explain", f"Flow_/{run.id}/start/99")
    assert 1 == absent.code
    assert f"There is no task Flow_/{run.id}/start/99" in absent.err


def test_explain_of_a_resumed_run_says_so(flow: Workspace) -> None:
    resumed = command(flow, "--no-pylint", "resume", "end")
    assert 0 == resumed.code, resumed.err
    latest, first = runs(flow)
    reported = command(flow, "explain", latest.id).out
    assert (
        f"start/1 did not run: Flow_/{first.id} was resumed, in which it had finished" in reported
    )
    assert "but caching is off for this step (@cache or run --cache turns it on)" in reported


def test_a_dry_run_says_before_what_would_run_and_runs_nothing(flow: Workspace) -> None:
    change_helper(flow, "FACTOR = 10", "FACTOR = 7")
    dry = flow.run("--cache", "--dry-run")
    (first,) = runs(flow)
    since = f"since Flow_/{first.id}"
    assert [
        f"start would not run: nothing has changed {since}",
        f"work[0], work[1], work[2] would run: helper.FACTOR changed ({since})",
        "join depends on the results of those that would run",
        "end depends on the results of those that would run",
    ] == dry.out.splitlines()
    assert 0 == dry.code


def test_a_dry_run_where_nothing_has_run_yet_leaves_nothing_behind(workspace: Workspace) -> None:
    (workspace.path / "helper.py").write_text(HELPER)
    workspace.write(FLOW)
    dry = workspace.run("--dry-run")
    assert 0 == dry.code, dry.err
    assert "start would run: no earlier run of Flow_ has finished this task\n" in dry.out
    assert not (workspace.path / ".aflow").exists()


def test_a_dry_run_of_a_resume_says_what_is_taken_over(flow: Workspace) -> None:
    (first,) = runs(flow)
    dry = command(flow, "--no-pylint", "resume", "join", "--dry-run")
    assert [
        f"start would not run: Flow_/{first.id} has finished it",
        f"work[0], work[1], work[2] would not run: Flow_/{first.id} has finished it",
        f"join would run: Flow_/{first.id} has not finished it with these inputs",
        "end depends on the results of those that would run",
    ] == dry.out.splitlines()
    assert [first.id] == [run.id for run in runs(flow)]


# ------------------------------------------------------------ what cannot be hashed

SETS = """
class Flow_(FlowSpec):
    @step
    def start(self):
        print("start runs", SEED)
        self.words = {f"word {n}" for n in range(30)}
        self.groups = [frozenset({"a", "b"}), {"c": {("d", 1), ("e", 2)}}]
        self.parts = [self.words, {"in": frozenset(self.words)}]
        self.next(self.each, foreach="parts")

    @step
    def each(self):
        print("each runs", len(self.input))
        self.next(self.join)

    @step
    def join(self, inputs):
        self.merge_artifacts(inputs)
        self.next(self.end)

    @step
    def end(self):
        print("end runs", len(self.words))
"""


def test_artifacts_and_items_with_sets_of_texts_are_the_same_in_every_process(
    workspace: Workspace,
) -> None:
    """Texts hash differently in every process, so that equal sets have different pickles."""
    first = ["start runs 1", "each runs 30", "each runs 1", "end runs 30"]
    for seed, expected in (("1", first), ("2", ["start runs 2"])):
        # `start` has changed, so it runs again; its artifacts have not changed.
        workspace.write(SETS.replace("SEED", seed))
        ran = workspace.run("--cache", PYTHONHASHSEED=seed)
        assert 0 == ran.code, ran.err
        assert sorted(expected) == sorted(printed(ran))


def test_a_step_whose_code_cannot_be_hashed_runs_each_time_and_explain_says_so(
    workspace: Workspace,
) -> None:
    workspace.write(
        """
        BIG = [[n] for n in range(300_000)]

        class Flow_(FlowSpec):
            @step
            def start(self):
                print("start runs")
                self.next(self.end)

            @step
            def end(self):
                print("end runs", len(BIG))
        """
    )
    assert ["start runs", "end runs 300000"] == printed(workspace.run("--cache"))
    assert ["end runs 300000"] == printed(workspace.run("--cache"))
    reported = command(workspace, "explain", f"{runs(workspace)[0].id}/end")
    assert "nothing else has changed since" in reported.out
    assert (
        "this step cannot be cached: neither the value nor the source of BIG can be hashed"
        in reported.out
    )
