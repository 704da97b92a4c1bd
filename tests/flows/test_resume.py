"""`resume`: finished tasks of a run are reused, however the run ended."""

from __future__ import annotations

import signal
import textwrap

import pytest

from aflow import client
from aflow.scheduler.states import RunState
from tests.flows.conftest import PREAMBLE, Ran, Workspace, children_of

FAILS_ONCE = """
class Flow_(FlowSpec):
    alpha = Parameter("alpha", default=0.5)
    bias = 10

    @step
    def start(self):
        self.xs = [0, 1, 2]
        print("start runs")
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        print("work", self.input)
        if self.input == 2 and not os.path.exists("mended"):
            raise ValueError("broken")
        self.y = self.input + self.bias
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ys = [each.y for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        print("total", sum(self.ys), self.alpha, current.origin_run_id)
"""


@pytest.fixture
def failed(workspace: Workspace) -> Workspace:
    """A workspace with a run that failed in its last foreach task, whose cause is fixed."""
    workspace.write(FAILS_ONCE)
    assert 1 == workspace.run("--alpha", "0.7").code
    (workspace.path / "mended").touch()
    return workspace


def resume(workspace: Workspace, *args: str) -> Ran:
    """Run `python flow.py resume ARGS`."""
    return workspace.finish(workspace.start("--no-pylint", "resume", *args))


def newest(workspace: Workspace, count: int = 1) -> list[client.Run]:
    """Return the latest runs of the flow, newest first."""
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    return [*client.Flow("Flow_")][:count]


def test_finished_tasks_are_taken_over_and_the_failed_one_runs(failed: Workspace) -> None:
    ran = resume(failed)
    assert 0 == ran.code, ran.err
    resumed, origin = newest(failed, 2)
    assert ["work 2", f"total 33 0.7 {origin.id}"] == [
        line for line in ran.lines if line.startswith(("start", "work", "total"))
    ]
    assert f"{origin.pathspec} cloned!" in ran.out
    assert resumed.successful
    assert origin.pathspec == resumed.origin_pathspec
    assert [10, 11, 12] == resumed.data.ys
    failed.check()


def test_without_an_id_ones_own_latest_run_is_resumed_whatever_others_have_run(
    failed: Workspace,
) -> None:
    (failed.path / "mended").unlink()
    assert 1 == failed.run("--alpha", "0.8", AFLOW_USER="bob").code
    (failed.path / "mended").touch()

    ours = resume(failed)
    theirs = failed.finish(failed.start("--no-pylint", "resume", AFLOW_USER="bob"))
    nobodys = failed.finish(failed.start("--no-pylint", "resume", AFLOW_USER="carl"))
    elsewhere = failed.finish(failed.start("--no-pylint", "resume", AFLOW_NAMESPACE="team:ads"))

    assert [True, True] == ["0.7" in ours.lines[-2], "0.8" in theirs.lines[-2]]
    assert [1, 1] == [nobodys.code, elsewhere.code]
    assert "There is no run of Flow_ by carl in" in nobodys.err
    assert "--origin-run-id RUN" in nobodys.err
    assert "by tester in the namespace 'team:ads'" in elsewhere.err


def test_a_task_that_was_taken_over_says_where_it_comes_from(failed: Workspace) -> None:
    resume(failed)
    resumed, origin = newest(failed, 2)
    assert f"{origin.pathspec}/start/1" == resumed["start"].task.origin_pathspec
    assert "start runs\n" == resumed["start"].task.stdout
    assert {"origin-run-id": origin.id, "origin-task-id": "1"}.items() <= (
        resumed["start"].task.metadata_dict.items()
    )
    theirs, own = (run["start"].task.metadata_dict for run in (origin, resumed))
    assert theirs["pid"] == own["pid"]
    assert theirs.keys() < own.keys()
    assert resumed["end"].task.origin_pathspec is None
    assert [(0, 10), (1, 11), (2, 12)] == sorted(
        (task.index, task.data.y) for task in resumed["work"]
    )


def test_nothing_is_copied_in_the_store(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.big = os.urandom(1_000_000)
                self.next(self.end)
            @step
            def end(self):
                self.size = len(self.big)
        """)
    assert 0 == workspace.run().code
    before = sorted(path for path in workspace.path.glob(".aflow/blobs/**/*") if path.is_file())
    assert before
    assert 0 == resume(workspace).code
    after = sorted(path for path in workspace.path.glob(".aflow/blobs/**/*") if path.is_file())
    assert before == after
    assert 1_000_000 == len(newest(workspace)[0].data.big)


def test_what_is_finished_can_be_taken_over_without_running_the_rest(failed: Workspace) -> None:
    ran = resume(failed, "--clone-only", "--run-id", "taken", "--max-workers", "1")
    assert 0 == ran.code, ran.err
    assert "nothing else was to be run (--clone-only)" in ran.out
    assert [] == [line for line in ran.lines if line.startswith(("start r", "work 2", "total"))]
    taken = newest(failed)[0]
    assert (False, "taken") == (taken.successful, taken.id)
    assert (RunState.CANCELLED, 3) == (failed.latest()[0], len(failed.latest()[1]))
    assert ["start", "work", "work"] == sorted(
        task.origin_pathspec.split("/")[2] for step in taken for task in step
    )
    went_on = resume(failed)
    assert 0 == went_on.code, went_on.err
    assert ["work 2", "total 33 0.7 taken"] == [
        line for line in went_on.lines if line.startswith(("start r", "work", "total"))
    ]
    failed.check()


def test_the_limit_of_a_step_does_not_keep_its_tasks_from_being_taken_over(
    workspace: Workspace,
) -> None:
    workspace.write("""
        from aflow import concurrency
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.xs = [0, 1]
                self.next(self.work, foreach="xs")
            @concurrency(limit=1)
            @retry(times=1, minutes_between_retries=0.001)
            @step
            def work(self):
                assert self.input, "item 0 fails, and item 1 runs before it is retried"
                self.next(self.join)
            @step
            def join(self, inputs):
                self.next(self.end)
            @step
            def end(self):
                pass
        """)
    assert 1 == workspace.run().code
    ran = resume(workspace, "--clone-only")
    assert 0 == ran.code, ran.err
    assert ["start", "work"] == sorted(
        task.origin_pathspec.split("/")[2] for step in newest(workspace)[0] for task in step
    )


def test_a_step_to_rerun_is_left_out_of_what_is_only_taken_over(failed: Workspace) -> None:
    assert 0 == resume(failed).code
    ran = resume(failed, "join", "--clone-only")
    assert 0 == ran.code, ran.err
    assert {"start", "work"} == {step.id for step in newest(failed)[0]}
    assert 3 == len([*newest(failed)[0]["work"]])


def test_a_whole_run_that_is_only_taken_over_is_a_whole_run(failed: Workspace) -> None:
    assert 0 == resume(failed).code
    ran = resume(failed, "--clone-only")
    assert 0 == ran.code, ran.err
    run = newest(failed)[0]
    assert run.successful
    assert [10, 11, 12] == run.data.ys
    assert all(task.origin_pathspec for step in run for task in step)


def test_a_step_to_rerun_runs_again_and_all_that_follows_it(failed: Workspace) -> None:
    resume(failed)
    ran = resume(failed, "join")
    assert 0 == ran.code, ran.err
    run = newest(failed)[0]
    assert all(task.origin_pathspec for task in run["work"])
    assert run["join"].task.origin_pathspec is None
    assert run["end"].task.origin_pathspec is None


def test_parameters_are_changed_for_the_steps_that_run(failed: Workspace) -> None:
    ran = resume(failed, "join", "--alpha", "0.9")
    assert 0 == ran.code, ran.out + ran.err
    assert "total 33 0.9" in ran.out
    assert "keep the results" not in ran.err
    changed, origin = newest(failed, 2)
    assert (0.9, 0.7) == (changed.data.alpha, origin["start"].task.data.alpha)
    assert f"{origin.pathspec}/start/1" == changed["start"].task.origin_pathspec

    again = failed.finish(failed.start("--no-pylint", "resume", "end", AFLOW_RUN_ALPHA="0.1"))
    assert "total 33 0.9" in again.out, "only what is named changes"
    assert "total 33 0.9" not in (reused := resume(failed, "--alpha", "0.5")).out
    assert "Finished tasks keep the results that they had with the earlier alpha" in reused.err
    assert 2 == resume(failed, "--alpha", "much").code
    assert 2 == resume(failed, "--beta", "1").code


def test_an_older_run_is_resumed_when_it_is_named(failed: Workspace) -> None:
    origin = newest(failed)[0]
    assert 0 == resume(failed).code
    ran = resume(failed, "--origin-run-id", origin.id, "--tag", "again")
    assert 0 == ran.code, ran.err
    assert "work 2" in ran.lines
    assert {"again"} == newest(failed)[0].user_tags


def test_a_resumed_run_that_failed_again_is_resumed_from_where_it_came_to(
    workspace: Workspace,
) -> None:
    workspace.write(FAILS_ONCE)
    workspace.run()
    assert 1 == resume(workspace).code
    (workspace.path / "mended").touch()
    ran = resume(workspace)
    assert 0 == ran.code, ran.err
    assert "start runs\n" == newest(workspace)[0]["start"].task.stdout


def test_a_changed_constant_and_a_new_parameter_are_those_of_the_code(failed: Workspace) -> None:
    failed.write(
        FAILS_ONCE.replace("bias = 10", 'bias = 20\n    beta = Parameter("beta", default=7)')
    )
    assert 0 == resume(failed).code
    data = newest(failed)[0].data
    assert [10, 11, 22] == data.ys
    assert (0.7, 7) == (data.alpha, data.beta)


def test_a_step_put_in_after_finished_ones_is_run(failed: Workspace) -> None:
    failed.write(
        FAILS_ONCE.replace("self.next(self.end)", "self.next(self.more)").replace(
            "    @step\n    def end",
            "    @step\n    def more(self):\n        self.next(self.end)\n\n    @step\n    def end",
        )
    )
    ran = resume(failed)
    assert 0 == ran.code, ran.err
    assert ["end", "more", "join", "work", "start"] == [step.id for step in newest(failed)[0]]


def test_nested_foreach_branches_and_switches_are_taken_over(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.xs = [1, 2]
                self.n = 0
                self.next(self.loop)
            @step
            def loop(self):
                self.n += 1
                self.again = "yes" if self.n < 3 else "no"
                self.next({"yes": self.loop, "no": self.outer}, condition="again")
            @step
            def outer(self):
                self.next(self.a, self.b)
            @step
            def a(self):
                self.next(self.inner, foreach="xs")
            @step
            def inner(self):
                self.x = self.input
                self.next(self.deep, foreach="xs")
            @step
            def deep(self):
                self.z = self.x * self.input
                self.next(self.collect)
            @step
            def collect(self, inputs):
                self.z = sum(each.z for each in inputs)
                self.next(self.all)
            @step
            def all(self, inputs):
                self.z = sum(each.z for each in inputs)
                self.next(self.join)
            @step
            def b(self):
                self.z = 100
                self.next(self.join)
            @step
            def join(self, inputs):
                self.z = inputs[0].z + inputs[1].z
                self.merge_artifacts(inputs, exclude=["z"])
                self.next(self.end)
            @step
            def end(self):
                if not os.path.exists("mended"):
                    raise ValueError("broken")
        """)
    assert 1 == workspace.run().code
    (workspace.path / "mended").touch()
    assert 0 == resume(workspace).code
    resumed, origin = newest(workspace, 2)
    ran = [task.pathspec for step in resumed for task in step if task.origin_pathspec is None]
    assert [resumed["end"].task.pathspec] == ran
    assert (109, 3) == (resumed.data.z, resumed.data.n)
    for step in (each for each in origin if each.id != "end"):
        left = sorted(task.data.z for task in step if "z" in task.data)
        assert left == sorted(task.data.z for task in resumed[step.id] if "z" in task.data)


@pytest.mark.slow
def test_a_run_whose_coordinator_was_killed_is_resumed_from_what_was_committed(
    workspace: Workspace,
) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                print("start runs")
                self.next(self.hang)
            @step
            def hang(self):
                if not os.path.exists("mended"):
                    print("hanging", flush=True)
                    signal.pause()
                self.next(self.end)
            @step
            def end(self):
                print("end runs")
        """)
    process = workspace.start("--no-pylint", "run")
    assert process.stdout is not None
    assert any("hanging" in line for line in process.stdout)
    refused = resume(workspace)
    assert 2 == refused.code
    assert "is still running" in refused.err
    template = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert template
    (workspace.path / "mended").touch()
    ran = resume(workspace)  # it watches the lease of the one that was killed until that is over
    assert 0 == ran.code, ran.err
    assert ["end runs"] == [line for line in ran.lines if line.endswith("runs")]
    assert RunState.SUCCEEDED == workspace.latest()[0]
    _, origin = newest(workspace, 2)  # nobody takes it up beside the run that has resumed it
    assert ("failed", True) == (origin.status, origin.finished)


def test_a_missing_blob_is_named_and_its_task_can_be_run_again(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.big = os.urandom(100_000)
                self.next(self.middle)
            @step
            def middle(self):
                self.size = len(self.big)
                self.next(self.end)
            @step
            def end(self):
                if not os.path.exists("mended"):
                    raise ValueError("broken")
        """)
    workspace.run()
    (workspace.path / "mended").touch()
    # The smaller one is the code of the run.
    _, big = sorted(workspace.path.glob(".aflow/blobs/*/*"), key=lambda path: path.stat().st_size)
    big.unlink()
    refused = resume(workspace)
    assert 2 == refused.code
    assert big.name in refused.err
    assert "'big'" in refused.err
    assert "--rerun-missing" in refused.err
    ran = resume(workspace, "--rerun-missing")
    assert 0 == ran.code, ran.err
    assert newest(workspace)[0]["start"].task.origin_pathspec is None


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("nosuch",), 2, "no step 'nosuch'"),
        (("--origin-run-id", "12345"), 1, "no run Flow_/12345"),
        (("--origin-run-id", "../x"), 2, "cannot be the name of a run"),
        (("--beta", "1"), 2, "No such option"),
        (("--run-id", "123"), 2, "must not be a number"),
        (("--clone-only", "--dry-run"), 2, "nothing for --dry-run"),
    ],
)
def test_what_cannot_be_resumed_ends_in_a_sentence(
    failed: Workspace, args: tuple[str, ...], code: int, said: str
) -> None:
    ran = resume(failed, *args)
    assert code == ran.code
    assert said in " ".join(ran.err.split())


def test_a_run_of_another_flow_is_refused_and_its_own_may_be_named_in_full(
    failed: Workspace,
) -> None:
    run = newest(failed)[0].id
    other = FAILS_ONCE.replace("Flow_", "Other")
    (failed.path / "other.py").write_text(PREAMBLE + textwrap.dedent(other))
    for name in (run, f"Flow_/{run}"):
        refused = failed.finish(
            failed.start_aflow("resume", "other.py", "--no-pylint", "--origin-run-id", name)
        )
        assert 2 == refused.code
        reported = f"Flow_/{run} is a run of another flow, which Other cannot resume"
        assert reported in " ".join(refused.err.split())
    ran = resume(failed, "--origin-run-id", f"Flow_/{run}")
    assert 0 == ran.code, ran.err


def test_without_any_run_there_is_nothing_to_resume(workspace: Workspace) -> None:
    workspace.write(FAILS_ONCE)
    ran = resume(workspace)
    assert 1 == ran.code
    assert "no run of Flow_ by tester in" in " ".join(ran.err.split())
