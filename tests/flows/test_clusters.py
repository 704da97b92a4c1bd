"""Workers in real clusters of Dask and Ray: they serve the queue, are replaced if their node is
lost, and exit with the command that started them. Ray is tested only if it is installed."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.conftest import Workspace
from tests.support.clusters import Nodes, cluster
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.xdist_group("clusters"),
    pytest.mark.timeout(300),
    pytest.mark.slow,
]

FLOW = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.xs = [1, 2, 3, 4]
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        open(f"FOLDER/began-{self.input}", "w").close()
        while not os.path.exists("FOLDER/go"):
            time.sleep(0.05)
        self.y = self.input ** 2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(each.y for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("total", self.total)
"""


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Stop the commands that a failed test has left."""
    yield
    while _started:
        with _started.pop() as process:
            process.kill()


@pytest.fixture(scope="module", params=["dask", "ray"])
def nodes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Nodes]]:
    kind = request.param
    if importlib.util.find_spec("distributed" if kind == "dask" else kind) is None:
        pytest.skip(f"{kind} is not installed: pip install -e '.[{kind}]'")
    with cluster(kind, tmp_path_factory.mktemp(kind)) as made:
        yield kind, made


class Kept:
    """A command that keeps workers in a cluster, and its output so far."""

    def __init__(self, workspace: Workspace, *words: str) -> None:
        self.process = workspace.start_aflow("workers", *words)
        _started.append(self.process)
        self.lines: list[str] = []
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def until(self, words: str, count: int = 1) -> None:
        """Wait until the output contains this, this many times."""
        wait_until(lambda: "".join(self.lines).count(words) >= count, lambda: self.lines)

    def end(self) -> tuple[int, str]:
        """Wait for the command, and return its exit code and output."""
        code = self.process.wait(90)
        self._reader.join(90)
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        with self.process.stdout, self.process.stderr:
            return code, "".join(self.lines) + self.process.stderr.read()


def workers_of(folder: Path) -> list[str]:
    """Return the command lines of workers that have the folder's name as a label."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes()
        except OSError:  # it has ended while we looked
            continue
        if b"--label=of=" + folder.name.encode() in words:
            found.append(words.decode())
    return found


def test_workers_end_with_the_command_that_keeps_them_however_that_ends(
    workspace: Workspace, nodes: tuple[str, Nodes]
) -> None:
    kind, made = nodes
    queue = f"sqlite:///{workspace.path}/queue.db"
    label = f"of={workspace.path.name}"
    words = [kind, "--address", made.address, "--queue", queue, "--label", label]

    kept, too_many = Kept(workspace, *words), Kept(workspace, *words, "--count", "9")
    code, said = too_many.end()
    assert 2 == code
    assert "has room for 4 of 9 workers" in said
    assert "--wait" in said

    kept.until("begins on")
    assert 1 == len(workers_of(workspace.path))
    kept.process.kill()
    wait_until(lambda: [] == workers_of(workspace.path), lambda: workers_of(workspace.path))


def test_workers_in_a_cluster_serve_the_queue_and_are_replaced_with_their_node(
    workspace: Workspace, nodes: tuple[str, Nodes]
) -> None:
    kind, made = nodes
    queue = f"sqlite:///{workspace.path}/queue.db"
    label = f"of={workspace.path.name}"
    words = ["--address", made.address, "--queue", queue, "--label", label, "--grace", "5"]

    kept = Kept(workspace, kind, *words, "--count", "2")
    workspace.write(FLOW.replace("FOLDER", str(workspace.path)))
    run = workspace.start("--no-pylint", "run", "--executor", "queue", "--queue", queue)
    _started.append(run)
    began = workspace.path.glob
    wait_until(lambda: 2 <= len([*began("began-*")]), lambda: (kept.lines, made.said()))
    kept.until("begins on", 2)  # a worker's output is lost with its node
    made.lose_a_node()
    kept.until("is lost")
    kept.until("begins on", 3)
    (workspace.path / "go").touch()
    ran = workspace.finish(run)
    assert 0 == ran.code, ran.err
    assert "total 30" in ran.out

    kept.process.send_signal(signal.SIGTERM)
    code, said = kept.end()
    assert 0 == code, said
    assert 2 == said.count("has ended.")
    wait_until(lambda: [] == workers_of(workspace.path), lambda: workers_of(workspace.path))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["dask", "--address", "tcp://127.0.0.1:1"], "Nothing answers at tcp://127.0.0.1:1"),
        (["dask", "--address", "tcp://127.0.0.1:1", "--ask", "GPU"], "write NAME=AMOUNT"),
        (["dask", "--queue="], "No queue is given: use --queue URL"),
        (["dask"], "No Dask cluster is given: use --address"),
        (
            ["ray", "--address", "127.0.0.1:1"],
            "Workers in Ray need ray: install aflow-runtime[ray].",
        ),
    ],
)
def test_what_is_wrong_with_a_cluster_is_one_sentence(
    tmp_path: Path, words: list[str], sentence: str
) -> None:
    # Ray is not there for this program, wherever it is installed.
    program = "import sys; sys.modules['ray'] = None; from aflow.__main__ import main; main()"
    command = [sys.executable, "-c", program, "workers", *words]
    done = subprocess.run(
        [*command, *([] if "--queue=" in words else ["--queue", "sqlite:///q.db"])],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert 0 != done.returncode
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_ends_with_its_standard_input_where_it_is_to(workspace: Workspace) -> None:
    words = ["worker", "--queue", f"sqlite:///{workspace.path}/queue.db", "--until-eof"]
    process = subprocess.Popen(
        [sys.executable, "-m", "aflow", *words],
        cwd=workspace.path, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert "takes tasks of default" in process.stderr.readline()
    assert process.poll() is None
    process.communicate("", timeout=60)
    assert 0 == process.returncode

    with Path(__file__).open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "aflow", *words],
            cwd=workspace.path, stdin=file, capture_output=True, text=True,
        )  # fmt: skip
    assert "--until-eof needs a pipe" in done.stderr
