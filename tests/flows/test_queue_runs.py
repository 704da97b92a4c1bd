"""Runs whose tasks are executed by workers of a queue: real workers, real kills, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from aflow import client
from aflow.executors import protocol
from aflow.executors.protocol import ReportsMessage, TaskMessage
from aflow.metadata.base import WorkerRecord
from aflow.metadata.sqlite import SqliteMetadata
from aflow.queue.base import Message
from aflow.queue.sqlite import SqliteQueue
from aflow.scheduler.states import RunState
from tests.flows.conftest import Ran, Workspace, processes_in
from tests.support import packages
from tests.support.waiting import select_nothing

KEY = "0123456789abcdef" * 4

FLOW = """
import asyncio
import helpers
from aflow import queue

class Flow_(FlowSpec):
    n = Parameter("n", default=8)

    @step
    def start(self):
        self.big = bytes(range(256)) * 400
        self.xs = list(range(self.n))
        self.next(self.work, foreach="xs")

    @retry(times=2, minutes_between_retries=0)
    @step
    def work(self):
        print("working on", self.input)
        self.pid = os.getpid()
        self.y = helpers.square(self.input) + len(self.big)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ys = [each.y for each in inputs]
        self.places = [each.index for each in inputs]
        self.merge_artifacts(inputs, include=["big"])
        self.next(self.left, self.right)

    @step
    async def left(self):
        await asyncio.sleep(0)
        self.side = "left"
        self.next(self.both)

    @step
    def right(self):
        self.side = "right"
        self.next(self.both)

    @step
    def both(self, inputs):
        self.sides = inputs.left.side, inputs.right.side
        self.merge_artifacts(inputs, exclude=["side"])
        self.next(self.end)

    @step
    def end(self):
        print("ys", self.ys, self.sides, len(self.big), os.getcwd())
"""


SOME_STEPS = """
from aflow import queue, resources

def where():
    return os.environ["WHERE"]

class Flow_(FlowSpec):
    @step
    def start(self):
        self.first = where()
        self.next(self.small, self.large)

    @queue
    @step
    def small(self):
        self.place = where()
        self.next(self.join)

    @queue
    @resources(gpu=1)
    @step
    def large(self):
        self.place = where()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.both = sorted(each.place for each in inputs)
        self.first = inputs.small.first + ("" if where() == "here" else ", and " + where())
        self.next(self.end)

    @step
    def end(self):
        pass
"""


class Workers:
    """Workers of one queue, which is a file of the workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.url = f"sqlite:///{workspace.path}/queue.db"
        self._folder = workspace.path.parent / f"{workspace.path.name}-elsewhere"
        self._folder.mkdir()
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Start a worker in a folder without the flow, and wait until it takes tasks."""
        command = [sys.executable, "-m", "aflow", "worker", "--queue", self.url, "--lease", "2"]
        process = subprocess.Popen(
            [*command, *words],
            cwd=self._folder,
            env=os.environ | {"AFLOW_CLIENT_CACHE_PATH": str(self._folder / "cache")} | env,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        assert process.stderr is not None
        assert "takes tasks of" in process.stderr.readline()
        return process

    def run(self, *words: str, **env: str) -> Ran:
        """Run the flow on the workers."""
        return self.workspace.finish(self.begin(*words, **env))

    def begin(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Start a run without waiting."""
        queue = ("--executor", "queue", "--queue", self.url)
        return self.workspace.start("--no-pylint", "run", *queue, *words, **env)

    def close(self) -> None:
        """Stop all workers, and check that nothing is left of them."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.communicate(timeout=60)
        assert [] == processes_in(self._folder)


@pytest.fixture
def workers(workspace: Workspace) -> Iterator[Workers]:
    """A workspace with a flow and a helper module, without running workers."""
    workspace.write(FLOW)
    (workspace.path / "helpers.py").write_text("def square(x):\n    return x * x\n")
    made = Workers(workspace)
    yield made
    made.close()


def latest(workers: Workers) -> client.Run:
    """Return the latest run, as the client reads it."""
    client.metadata(f"local@{workers.workspace.path}")
    client.namespace(None)
    run = client.Flow("Flow_").latest_run
    assert run is not None
    return run


def assert_ended_well(workers: Workers, ran: Ran, n: int = 8) -> None:
    """Assert that the run has the same artifacts as a local run."""
    assert 0 == ran.code, ran.out + ran.err
    run = latest(workers)
    assert [each * each + 102_400 for each in range(n)] == run.data.ys
    assert list(range(n)) == run.data.places
    assert ("left", "right") == run.data.sides
    assert n == len(list(run["work"]))
    workers.workspace.check()


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_a_flow_runs_on_workers_that_know_nothing_of_it(workers: Workers, isolation: str) -> None:
    workers.start("--slots", "2")
    workers.start("--slots", "2")

    ran = workers.run("--isolation", isolation)

    assert_ended_well(workers, ran)
    assert {f"working on {number}" for number in range(8)} <= set(ran.lines)


def test_a_wide_join_reads_its_inputs_in_pages(workers: Workers) -> None:
    workers.start("--slots", "2")

    ran = workers.run("--n", "1100", "--max-num-splits", "2000", "--isolation", "worker",
                      "--max-workers", "100")  # fmt: skip

    assert_ended_well(workers, ran, 1100)


def test_the_tasks_of_a_worker_that_is_killed_are_run_by_others(workers: Workers) -> None:
    (workers.workspace.path / "helpers.py").write_text(WAITS)
    begun = workers.workspace.path / "begun"
    first = workers.start("--slots", "1", BEGUN_IN=str(begun))
    run = workers.begin()
    wait_for(begun)
    first.kill()
    workers.start("--slots", "2", GO="1")

    assert_ended_well(workers, workers.workspace.finish(run))


def test_a_worker_that_is_to_end_gives_back_what_it_cannot_finish(workers: Workers) -> None:
    (workers.workspace.path / "helpers.py").write_text(WAITS)
    begun = workers.workspace.path / "begun"
    first = workers.start("--slots", "1", "--grace", "0.1", BEGUN_IN=str(begun))
    run = workers.begin()
    wait_for(begun)
    first.send_signal(signal.SIGTERM)
    assert 0 == first.wait(60)
    workers.start("--slots", "2", GO="1")

    assert_ended_well(workers, workers.workspace.finish(run))
    _, tasks = workers.workspace.latest()
    assert {0} == {view.attempt.attempt for view in tasks if view.attempt}


# The first call waits until its worker is gone; a worker with GO does not wait.
WAITS = """
import os, select
from contextlib import closing
from pathlib import Path

def square(x):
    if x == 0 and "GO" not in os.environ:
        Path(os.environ["BEGUN_IN"]).touch()
        select.select([], [], [], 60)
    return x * x
"""


@pytest.mark.slow
def test_a_worker_that_is_drained_ends_its_task_and_takes_no_other(workers: Workers) -> None:
    workspace = workers.workspace
    (workspace.path / "helpers.py").write_text(WAITS_FOR_A_FILE)
    begun, go = workspace.path / "begun", workspace.path / "go"
    metadata = workspace.path / ".aflow" / "metadata.db"
    # Its grace time is over long before its task is: draining is not ending.
    first = workers.start(
        *("--slots", "1", "--grace", "0.1", "--label", "rack=r1"),
        *("--metadata", f"sqlite:///{metadata}"),
        BEGUN_IN=str(begun), GO=str(go),
    )  # fmt: skip
    run = workers.begin()
    wait_for(begun)
    store = SqliteMetadata(metadata)

    def listed(until: Callable[[list[WorkerRecord]], bool]) -> list[WorkerRecord]:
        for _ in range(6000):
            found = store.workers()
            if until(found):
                return found
            select_nothing(0.01)
        pytest.fail(f"the workers are {found}")

    def runs_a_task(found: list[WorkerRecord]) -> bool:
        return any("/work/" in task.pathspec for each in found for task in each.running)

    (known,) = listed(runs_a_task)
    assert {"default": 1} == known.ended, "the start, a moment ago"
    assert ({"rack": "r1"}, first.pid, ("default",), 1) == (
        known.labels, known.pid, known.pools, known.slots
    )  # fmt: skip
    shown = workspace.finish(workspace.start_aflow("workers", "list"))
    (row,) = [line.split() for line in shown.out.splitlines()[1:]]
    assert [known.name, "busy", "default", "1/1"] == row[:4]
    assert "rack=r1" == row[-1]

    drained = workspace.finish(workspace.start_aflow("workers", "drain", known.name[:-4]))
    assert f"{known.name} takes no more tasks" in drained.out
    listed(lambda found: [True] == [each.draining for each in found])
    unknown = workspace.finish(workspace.start_aflow("workers", "drain", "nobody"))
    assert 1 == unknown.code
    assert "There is no worker 'nobody'" in unknown.err
    second = workers.start(
        "--slots", "2", "--metadata", f"sqlite:///{metadata}", BEGUN_IN=str(begun), GO=str(begun)
    )
    listed(lambda found: second.pid in [each.pid for each in found])
    go.touch()
    assert 0 == first.wait(60)

    assert_ended_well(workers, workspace.finish(run))
    (other,) = listed(lambda found: [second.pid] == [each.pid for each in found])
    _, tasks = workspace.latest()
    ran = [view.attempt for view in tasks if view.attempt and view.task.task]
    assert {known.name, other.name} == {each.handle for each in ran}
    assert {socket.gethostname()} == {each.host for each in ran}
    assert {0} == {each.attempt for each in ran}
    by_first = [each.task for each in ran if each.handle == known.name]
    assert ["start", "work"] == [v.task.step for v in tasks if v.task.task in by_first]
    store.close()


WAITS_FOR_A_FILE = """
import os, select
from contextlib import closing
from pathlib import Path

def square(x):
    Path(os.environ["BEGUN_IN"]).touch()
    while not Path(os.environ["GO"]).exists():
        select.select([], [], [], 0.01)
    return x * x
"""


def wait_for(path: Path) -> None:
    """Wait until a file exists."""
    import select

    for _ in range(3000):
        if path.exists():
            return
        select.select([], [], [], 0.01)
    pytest.fail(f"{path} has not come")


def test_a_run_that_is_stopped_stops_its_tasks_on_workers(workers: Workers) -> None:
    (workers.workspace.path / "helpers.py").write_text(WAITS)
    begun = workers.workspace.path / "begun"
    worker = workers.start("--slots", "1", BEGUN_IN=str(begun))
    run = workers.begin()
    wait_for(begun)
    run.send_signal(signal.SIGINT)

    ran = workers.workspace.finish(run)

    assert 130 == ran.code
    state, _ = workers.workspace.latest()
    assert RunState.CANCELLED is state
    worker.send_signal(signal.SIGTERM)
    assert 0 == worker.wait(60)  # it has nothing more to run


TURNS = """
        self.turns = []
        self.next(self.turn)

    @step
    def turn(self):
        self.turns = self.turns + self._iteration_stack
        self.case = "again" if len(self.turns) < 3 else "on"
        self.next({"again": self.turn, "on": self.end}, condition="case")

    @step
    def end(self):
        assert [0, 1, 2] == self.turns
"""


def test_steps_choose_their_pool_and_know_how_often_they_have_run(workers: Workers) -> None:
    source = FLOW.replace(
        "    @step\n    def right", '    @queue(pool="gpu")\n    @step\n    def right'
    )
    last = "        self.next(self.end)\n\n    @step\n    def end(self):\n"
    assert last in source
    workers.workspace.write(source.replace(last, TURNS[1:]))
    workers.start("--slots", "2")
    workers.start("--slots", "1", "--pool", "gpu")

    assert_ended_well(workers, workers.run())


def test_steps_without_a_queue_stay_here_and_those_with_gpus_have_a_pool(workers: Workers) -> None:
    workers.workspace.write(SOME_STEPS)
    workers.start("--slots", "1", WHERE="a worker")
    workers.start("--slots", "1", "--pool", "gpu", WHERE="a worker with a GPU")

    ran = workers.workspace.run("--queue", workers.url, WHERE="here")

    assert 0 == ran.code, ran.out + ran.err
    run = latest(workers)
    assert "here" == run.data.first
    assert ["a worker", "a worker with a GPU"] == run.data.both
    workers.workspace.check()


def test_messages_are_signed_where_there_is_a_key(workers: Workers) -> None:
    worker = workers.start("--slots", "1", AFLOW_SIGNING_KEY=KEY)
    with closing(sqlite3.connect(workers.url.removeprefix("sqlite:///"))) as queue:
        queue.execute("CREATE TABLE seen AS SELECT topic, id, body FROM messages")
        queue.execute(
            "CREATE TRIGGER see AFTER INSERT ON messages WHEN new.topic LIKE 'tasks.%' "
            "BEGIN INSERT INTO seen VALUES (new.topic, new.id, new.body); END"
        )

        assert_ended_well(workers, workers.run(AFLOW_SIGNING_KEY=KEY))

        # A client without the key puts the same messages again: nothing runs a second time.
        queue.execute("DROP TRIGGER see")
        again = queue.execute(
            "INSERT INTO messages (topic, id, body) SELECT topic, id || 'x', body FROM seen"
        ).rowcount
        queue.commit()
    assert again > 3
    assert worker.stderr is not None
    dropped, lines = 0, 0
    while dropped < again:
        line = worker.stderr.readline()
        lines += " begins." in line
        dropped += "has ended here, and somebody has put" in line
    assert lines == again, "each has begun once"


def test_a_signed_message_of_an_attempt_that_has_failed_is_run_by_no_other_worker(
    workers: Workers,
) -> None:
    workers.workspace.write("""
        class Flow_(FlowSpec):
            @retry(times=1, minutes_between_retries=0)
            @step
            def start(self):
                with open(os.environ["PLACE"] + "/begun", "a") as file:
                    file.write(f"{current.retry_count}\\n")
                assert current.retry_count
                while not os.path.exists(os.environ["PLACE"] + "/free"):
                    time.sleep(0.02)
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    place = workers.workspace.path
    signed = {"AFLOW_SIGNING_KEY": KEY, "PLACE": str(place)}
    first = workers.start("--slots", "1", **signed)
    with closing(sqlite3.connect(workers.url.removeprefix("sqlite:///"))) as queue:
        queue.execute("CREATE TABLE seen AS SELECT topic, id, body FROM messages")
        queue.execute(
            "CREATE TRIGGER see AFTER INSERT ON messages WHEN new.topic LIKE 'tasks.%' "
            "BEGIN INSERT INTO seen VALUES (new.topic, new.id, new.body); END"
        )
        process = workers.workspace.start(
            "--no-pylint", "run", "--executor", "queue", "--queue", workers.url, **signed
        )
        assert first.stderr is not None
        while "(attempt 1) begins" not in first.stderr.readline():
            continue
        queue.execute("DROP TRIGGER see")
        # The message of the failed attempt, and copies of both with new ids.
        queue.execute(
            "INSERT INTO messages (topic, id, body) "
            "SELECT topic, id, body FROM seen WHERE id LIKE '%:0'"
        )
        queue.execute(
            "INSERT INTO messages (topic, id, body) SELECT topic, id || 'x', body FROM seen"
        )
        queue.commit()
    second = workers.start("--slots", "1", **signed)
    assert second.stderr is not None
    lines = [second.stderr.readline() for _ in range(4)]
    (place / "free").touch()
    ran = workers.workspace.finish(process)

    assert 0 == ran.code, ran.out + ran.err
    assert 2 == sum("and somebody has put its message there again" in line for line in lines), lines
    assert any("start/1 failed" in line and "AssertionError" in line for line in lines), lines
    assert "0\n1\n" == (place / "begun").read_text()


def test_who_has_no_key_is_refused_by_both_sides_and_that_is_said(workers: Workers) -> None:
    def put(topic: str, body: bytes) -> None:
        queue = SqliteQueue(Path(workers.url.removeprefix("sqlite:///")))
        asyncio.run(queue.put(topic, [Message("forged", body)]))
        asyncio.run(queue.close())

    reports = protocol.reports_topic("Flow_", "signed")
    now = time.time()
    said = ReportsMessage("Flow_", "signed", "intruder", "host", 1, [[0, 1, 0, 1, 0.0]])
    put(reports, said.seal((), reports, now))
    tasks = protocol.tasks_topic("default")
    task = TaskMessage("file:///nowhere", "Flow_", "signed", "0" * 64, reports, b"", 0)
    put(tasks, task.seal([b"another key"], tasks, now))
    worker = workers.start("--slots", "1", AFLOW_SIGNING_KEY=KEY)
    assert worker.stderr is not None
    assert "A message of tasks.default is refused: A message was signed with another" in (
        worker.stderr.readline()
    )

    ran = workers.run("--run-id", "signed", AFLOW_SIGNING_KEY=KEY)

    assert_ended_well(workers, ran)
    assert f"A message of {reports} is refused: A message is not signed" in ran.err


def test_what_no_worker_has_is_said_in_the_error_of_the_task(workers: Workers) -> None:
    elsewhere = workers.workspace.path / "lib"
    elsewhere.mkdir()
    (elsewhere / "only_here.pyc").touch()
    package = elsewhere / ".only"
    package.mkdir()
    (package / "only_here.py").write_text("x = 1\n")
    workers.workspace.write("import only_here\n" + FLOW)
    workers.start("--slots", "1")

    ran = workers.run(PYTHONPATH=os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]))

    assert 1 == ran.code
    assert "No worker of pool default can run the task" in ran.err
    assert "No module named 'only_here'" in ran.err


def test_retries_are_not_used_up_by_workers_that_cannot_run_the_flow(workers: Workers) -> None:
    hidden = workers.workspace.path / ".only"
    hidden.mkdir()
    (hidden / "only_here.py").write_text("x = 1\n")
    workers.workspace.write("import only_here\n" + FLOW)
    workers.start("--slots", "1")

    path = os.pathsep.join([str(hidden), os.environ.get("PYTHONPATH", "")])
    ran = workers.run("--with", "retry:times=1,minutes_between_retries=0", PYTHONPATH=path)

    assert 1 == ran.code
    assert "No module named 'only_here'" in ran.err


def test_a_worker_with_nothing_to_do_ends_when_it_is_asked_to(workers: Workers) -> None:
    worker = workers.start("--slots", "1")
    worker.send_signal(signal.SIGTERM)

    assert 0 == worker.wait(60)


def test_a_queue_is_named_where_one_is_asked_for(workers: Workers) -> None:
    ran = workers.workspace.run("--executor", "queue")
    assert 2 == ran.code
    assert "--executor queue needs a queue: give --queue URL, or set AFLOW_QUEUE." in ran.err
    absent = workers.workspace.run("--executor", "queue", "--queue", "redis://127.0.0.1:1/0")
    assert 1 == absent.code
    assert "does not answer" in absent.err
    assert "Traceback" not in absent.err


def test_workers_without_the_key_or_a_library_leave_runs_to_those_who_have_them(
    workers: Workers,
) -> None:
    hidden = workers.workspace.path / ".only"
    hidden.mkdir()
    (hidden / "only_here.py").write_text("x = 1\n")
    workers.workspace.write("import only_here\n" + FLOW)
    path = os.pathsep.join([str(hidden), os.environ.get("PYTHONPATH", "")])
    workers.start("--slots", "1", PYTHONPATH=path)  # without the key
    workers.start("--slots", "1", AFLOW_SIGNING_KEY=f"{KEY[::-1]}", PYTHONPATH=path)
    workers.start("--slots", "1", AFLOW_SIGNING_KEY=KEY)  # without the library
    both = f"{KEY[::-1]},{KEY}"
    workers.start("--slots", "1", AFLOW_SIGNING_KEY=both, PYTHONPATH=path)

    ran = workers.run("--n", "4", AFLOW_SIGNING_KEY=f"{KEY},{KEY[::-1]}", PYTHONPATH=path)

    assert_ended_well(workers, ran, 4)
    _, tasks = workers.workspace.latest()
    assert {0} == {view.attempt.attempt for view in tasks if view.attempt}


@pytest.mark.slow
def test_what_a_dead_worker_had_of_a_run_that_was_cancelled_is_not_run_by_others(
    workers: Workers,
) -> None:
    (workers.workspace.path / "helpers.py").write_text(WAITS)
    begun = workers.workspace.path / "begun"
    first = workers.start("--slots", "1", BEGUN_IN=str(begun))
    run = workers.begin("--n", "1")
    wait_for(begun)
    run.kill()
    run.communicate()
    first.kill()
    record = latest(workers)
    cancelled = subprocess.run(
        [sys.executable, "-m", "aflow", "cancel", record.pathspec],
        cwd=workers.workspace.path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "is cancelled: no coordinator drove it" in cancelled.stdout, cancelled.stderr
    begun.unlink()

    second = workers.start("--slots", "1", GO="1", BEGUN_IN=str(begun))
    assert second.stderr is not None
    said = second.stderr.readline()
    assert f"{record.pathspec} has ended: what is left of it in the queue is dropped." in said
    queue = SqliteQueue(Path(workers.url.removeprefix("sqlite:///")))

    async def until_empty() -> None:
        while tuple(await queue.depth(protocol.tasks_topic("default"))) != (0, 0, 0):
            await asyncio.to_thread(select_nothing, 0.02)
        await queue.close()

    asyncio.run(until_empty())


@pytest.mark.slow
def test_what_waits_in_a_queue_is_shown_and_what_was_buried_released_or_deleted(
    workers: Workers,
) -> None:
    def aflow(*words: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "aflow", "queue", *words, "--queue", workers.url],
            cwd=workers.workspace.path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return Ran(done.returncode, done.stdout, done.stderr)

    assert ["Nothing is buried."] == aflow("list").out.splitlines()
    run = workers.begin("--priority", "3", "--run-id", "mine")
    said = ""
    while "Waiting for workers" not in said:
        assert run.stderr is not None
        said = run.stderr.readline()
        assert said
    assert "1 task waits for a worker of pool default: no worker takes tasks of it" in said
    status = aflow("status").out.splitlines()
    assert ["default", "1", "0", "0"] == status[1].split()[:4]
    (waits,) = json.loads(aflow("list", "--ready", "--json").out)
    assert ("default", "Flow_/mine/start/1") == (waits["pool"], waits["task"])
    run.send_signal(signal.SIGINT)
    assert 130 == run.wait(60)
    run.communicate()
    assert ["Nothing waits."] == aflow("list", "--ready").out.splitlines()

    async def bury() -> None:
        queue = SqliteQueue(Path(workers.url.removeprefix("sqlite:///")))
        await queue.put("tasks.gpu", [Message(name, b"\x1b[31mnothing") for name in ("a", "b")])
        await queue.bury(await queue.lease(["tasks.gpu"], 2, 60.0))
        await queue.close()

    asyncio.run(bury())
    buried = aflow("list").out.splitlines()
    assert [["gpu", "a"], ["gpu", "b"]] == [line.split()[:2] for line in buried[1:]]
    assert "\x1b" not in "".join(buried)
    assert ["1 message released."] == aflow("release", "a", "--pool", "gpu").out.splitlines()
    assert ["1 message deleted."] == aflow("delete", "--all").out.splitlines()
    assert ["1 message deleted."] == aflow("delete", "a").out.splitlines()
    assert 2 == aflow("delete", "a").code
    assert 2 == aflow("release").code
    assert "No messages are given" in aflow("release").err


@packages.needs_another
def test_workers_without_an_index_run_steps_with_packages_and_another_python(
    workers: Workers, tmp_path: Path
) -> None:
    for version in ("1.0", "2.0", "3.0", "4.0"):
        packages.make_wheel(tmp_path / "index", "tiny", version)
    own, other = ".".join(map(str, sys.version_info[:2])), str(packages.ANOTHER)
    source = Path(__file__).parents[1] / "batch" / "flow_files" / "packages.py"
    (workers.workspace.path / "flow.py").write_text(source.read_text())
    # Its own cache, and nothing but the datastore to have files from.
    offline = {"UV_OFFLINE": "1", "UV_NO_INDEX": "1"}
    workers.start(AFLOW_ENVIRONMENTS_FOLDER=str(tmp_path / "of-worker"), **offline)

    ran = workers.run(
        ANOTHER_PYTHON=other,
        AFLOW_ENVIRONMENTS_FOLDER=str(tmp_path / "of-run"),
        UV_FIND_LINKS=str(tmp_path / "index"),
    )

    assert 0 == ran.code, ran.err
    assert str([("1.0", own), ("2.0", other), ("3.0", other), ("4.0", own)]) in ran.out
