"""Gangs: all members run at the same time and know each other."""

from __future__ import annotations

import pytest

from aflow import client
from tests.flows.conftest import Ran, Workspace

FLOW = """
import socket
from aflow import parallel, pytorch_parallel

class Flow_(FlowSpec):
    members = Parameter("members", default=3)

    @step
    def start(self):
        self.next(self.work, num_parallel=self.members)

    @DECORATOR
    @step
    def work(self):
        gang = current.parallel
        self.place = tuple(gang)[:3]
        self.rank = os.environ.get("NODE_RANK"), os.environ.get("WORLD_SIZE")
        # Every member waits for all others: only a gang that runs at once comes to its end.
        open(f"here-{gang.node_index}", "w").close()
        while not all(os.path.exists(f"here-{each}") for each in range(gang.num_nodes)):
            time.sleep(0.005)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.places = [each.place for each in inputs]
        self.ranks = [each.rank for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def run(workspace: Workspace, decorator: str, *args: str) -> Ran:
    """Run the flow with this decorator on its gang."""
    workspace.write(FLOW.replace("@DECORATOR", decorator))
    return workspace.run(*args)


def data(workspace: Workspace) -> client.TaskData:
    """Return the artifacts of the latest run."""
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    latest = client.Flow("Flow_").latest_run
    assert latest is not None
    data = latest.data
    assert data is not None
    return data


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_all_members_run_at_once_and_know_their_place(workspace: Workspace, isolation: str) -> None:
    ran = run(workspace, "@parallel", "--isolation", isolation, "--max-workers", "3")
    assert 0 == ran.code, ran.err
    assert [("127.0.0.1", 3, place) for place in range(3)] == data(workspace).places
    assert [(None, None)] * 3 == data(workspace).ranks
    workspace.check()


def test_members_for_torch_have_its_variables(workspace: Workspace) -> None:
    assert 0 == run(workspace, "@pytorch_parallel(master_port=50001)").code
    assert [(str(rank), "3") for rank in range(3)] == data(workspace).ranks


def test_a_gang_that_cannot_run_at_once_is_refused(workspace: Workspace) -> None:
    ran = run(workspace, "@parallel", "--max-workers", "2")
    assert 1 == ran.code
    assert "a gang of 3 members, which all run at once, and only 2 tasks may" in ran.err
    assert "--max-workers 3" in ran.err


FAILS_ONCE = """
from aflow import cache, parallel, resources

class Flow_(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    DECORATORS
    @parallel
    @step
    def work(self):
        member = current.parallel.node_index
        print("member", member)
        if member == 1 and not os.path.exists("mended"):
            raise ValueError("broken")
        self.next(self.join)

    @step
    def join(self, inputs):
        print("join")
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize(
    ("decorators", "again"),
    [("@resources(cpu=0.1)", "resume"), ("", "resume"), ("@cache", "run")],
)
def test_a_gang_runs_again_as_a_whole(workspace: Workspace, decorators: str, again: str) -> None:
    workspace.write(FAILS_ONCE.replace("DECORATORS", decorators))
    assert 1 == workspace.run("--max-workers", "2").code
    (workspace.path / "mended").touch()
    ran = workspace.finish(workspace.start("--no-pylint", again, "--max-workers", "2"))
    assert 0 == ran.code, ran.err
    for line in ("member 0", "member 1", "join"):
        assert line in ran.out

    ran = workspace.finish(workspace.start("--no-pylint", again, "--max-workers", "2"))
    assert 0 == ran.code, ran.err
    assert "member" not in ran.out


def test_a_gang_step_that_was_started_otherwise_is_reported(workspace: Workspace) -> None:
    workspace.write(
        """
        from aflow import parallel

        class Flow_(FlowSpec):
            @step
            def start(self):
                self.next(self.end)

            @parallel
            @step
            def end(self):
                pass
        """
    )
    ran = workspace.run()
    assert 1 == ran.code
    assert "Step 'end' has @parallel, and was not started with" in ran.err


def test_a_gang_is_seen_by_the_client(workspace: Workspace) -> None:
    assert 0 == run(workspace, "@parallel").code
    data(workspace)
    latest = client.Flow("Flow_").latest_run
    assert latest is not None
    step = latest["work"]
    control = step.control_task
    assert control is not None
    assert (0, [control]) == (control.index, [*step.control_tasks()])
    assert {0, 1, 2} == {task.index for task in step}
    assert 3 == len([*latest["join"].task.parent_tasks])


def test_a_gang_for_which_workers_lack_slots_says_what_it_waits_for(workspace: Workspace) -> None:
    workspace.write(FLOW.replace("@DECORATOR", "@parallel"))
    queue = ["--queue", f"sqlite:///{workspace.path}/queue.db"]
    worker = workspace.start_aflow("worker", *queue, "--slots", "2", "--quiet")
    run = workspace.start("--no-pylint", "run", "--executor", "queue", *queue)
    try:
        assert run.stderr is not None
        line = next(line for line in run.stderr if "Waiting for workers" in line)
        assert "1 task waits for a worker of pool default: there are 1 with 2 slots" in line
        assert "All members of a gang run at once, and each needs a slot." in line
    finally:
        for each in (run, worker):
            each.kill()
            each.communicate()
