"""The step decorators in real runs."""

from __future__ import annotations

from itertools import pairwise

import pytest

from aflow.metadata.base import TaskView
from tests.flows.conftest import Workspace


def one_step(body: str, decorators: str = "") -> str:
    """Return a flow whose step `start` has this body."""
    lines = "\n".join(f"        {line}" for line in body.strip().splitlines())
    marks = "\n".join(f"    {line}" for line in decorators.strip().splitlines())
    return f"""
class Flow_(FlowSpec):
{marks}
    @step
    def start(self):
{lines}
        self.next(self.end)

    @step
    def end(self):
        print("at the end", sorted(k for k in ("x", "caught") if hasattr(self, k)))
"""


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_a_failing_step_is_tried_again_after_its_wait(workspace: Workspace, isolation: str) -> None:
    workspace.write(one_step(
        'assert current.retry_count == 2, "not yet"\nprint("third time")',
        "@retry(times=2, seconds=0.3)",
    ))  # fmt: skip
    ran = workspace.run("--isolation", isolation)
    assert ran.code == 0, ran.out + ran.err
    assert "third time" in ran.lines
    assert 2 == ran.lines.count("Task is starting (retry).")
    metadata = workspace.metadata
    run = metadata.runs("Flow_")[0]
    starts = [each.started_at or 0.0 for each in metadata.attempts(run.key, 1)]
    metadata.close()
    assert 3 == len(starts)
    assert all(later - earlier >= 0.3 for earlier, later in pairwise(starts))
    workspace.check()


def test_with_adds_a_decorator_to_every_step(workspace: Workspace) -> None:
    workspace.write(one_step('assert current.retry_count == 1, "not yet"'))
    assert workspace.run().code == 1
    ran = workspace.run("--with", "retry:times=1,seconds=0")
    assert ran.code == 0, ran.out + ran.err


def test_catch_stores_the_exception_and_goes_on(workspace: Workspace) -> None:
    workspace.write(one_step(
        'self.x = 1\nraise ValueError("no good")', '@catch(var="caught")'
    ))  # fmt: skip
    ran = workspace.run()
    assert ran.code == 0, ran.out + ran.err
    assert "at the end ['caught', 'x']" in ran.lines
    assert "@catch caught an exception from <flow Flow_ step start>" in ran.lines
    assert ">  ValueError: no good" in ran.lines


def test_catch_comes_after_the_last_retry(workspace: Workspace) -> None:
    workspace.write(one_step(
        'print("attempt", current.retry_count)\nraise ValueError("no good")',
        '@retry(times=1, seconds=0)\n@catch(var="caught", print_exception=False)',
    ))  # fmt: skip
    ran = workspace.run()
    assert ran.code == 0, ran.out + ran.err
    assert ["attempt 0", "attempt 1"] == [each for each in ran.lines if "attempt" in each]


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_catch_settles_a_step_whose_process_dies(workspace: Workspace, isolation: str) -> None:
    workspace.write(one_step("os.kill(os.getpid(), signal.SIGKILL)", '@catch(var="caught")'))
    ran = workspace.run("--isolation", isolation)
    assert ran.code == 0, ran.out + ran.err
    assert "Task fallback is starting to handle the failure." in ran.lines
    assert "at the end ['caught']" in ran.lines
    workspace.check()


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_a_step_over_its_time_is_stopped(workspace: Workspace, isolation: str) -> None:
    workspace.write(one_step("time.sleep(60)", "@timeout(seconds=0.5)"))
    ran = workspace.run("--isolation", isolation)
    assert ran.code == 1
    assert "Step 'start' timed out after 0 hours, 0 minutes, 0.5 seconds" in ran.out
    assert ["timed_out"] == states(workspace.latest()[1])
    workspace.check()


def test_a_coroutine_step_over_its_time_is_stopped(workspace: Workspace) -> None:
    source = one_step("import asyncio\nawait asyncio.sleep(60)", "@timeout(seconds=0.5)")
    workspace.write(source.replace("def start", "async def start"))
    ran = workspace.run()
    assert ran.code == 1
    assert ["timed_out"] == states(workspace.latest()[1])


def test_catch_catches_a_timeout(workspace: Workspace) -> None:
    workspace.write(one_step("time.sleep(60)", '@timeout(seconds=0.5)\n@catch(var="caught")'))
    assert workspace.run().code == 0


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_environment_variables_are_set_for_their_step_alone(
    workspace: Workspace, isolation: str
) -> None:
    source = one_step('print("K is", os.environ["K"])', '@environment(vars={"K": "v"})')
    workspace.write(source.replace('print("at the end"', 'print("K left", os.environ.get("K"))#'))
    ran = workspace.run("--isolation", isolation)
    assert ran.code == 0, ran.out + ran.err
    assert "K is v" in ran.lines
    assert "K left None" in ran.lines


def test_resources_do_not_hinder_a_local_run(workspace: Workspace) -> None:
    workspace.write(one_step("self.x = 1", "@resources(cpu=64, memory=10**6)"))
    assert workspace.run().code == 0


def states(tasks: list[TaskView]) -> list[str]:
    """Return the states of the tasks' latest attempts."""
    return [each.attempt.state.value if each.attempt else "none" for each in tasks]


def test_only_the_exceptions_that_are_named_are_tried_again(workspace: Workspace) -> None:
    workspace.write(one_step(
        """
self.x = current.retry_count
raise (ConnectionError if current.retry_count < 2 else ValueError)("no")
""",
        "@catch(var='caught', print_exception=False)\n"
        "@retry(times=9, seconds=0.01, backoff=2, on=(ConnectionError, KeyError))",
    ))  # fmt: skip
    ran = workspace.run()
    assert ran.code == 0, ran.out + ran.err
    assert 2 == ran.lines.count("Task is starting (retry).")
    assert "at the end ['caught', 'x']" in ran.lines
    assert not any("fallback" in line for line in ran.lines)
    workspace.check()


def test_no_more_tasks_of_a_step_go_on_than_it_says(workspace: Workspace) -> None:
    workspace.write(
        """
        from aflow import concurrency

        class Flow_(FlowSpec):
            @step
            def start(self):
                self.next(self.narrow, self.wide)

            @step
            def narrow(self):
                self.xs = range(6)
                self.next(self.one, foreach="xs")

            @concurrency(limit=2)
            @step
            def one(self):
                self.span = time.time(), time.sleep(0.05), time.time()
                self.next(self.meet)

            @step
            def meet(self, inputs):
                spans = [(each.span[0], each.span[2]) for each in inputs]
                self.most = max(sum(a <= at < b for a, b in spans) for at, _ in spans)
                self.next(self.end_of_both)

            @step
            def wide(self):
                self.next(self.end_of_both)

            @step
            def end_of_both(self, inputs):
                self.most = inputs.meet.most
                self.next(self.end)

            @step
            def end(self):
                print("at most", self.most)
        """
    )
    ran = workspace.run("--max-workers", "4")
    assert ran.code == 0, ran.out + ran.err
    assert {"at most 1", "at most 2"} & {*ran.lines}
    workspace.check()
