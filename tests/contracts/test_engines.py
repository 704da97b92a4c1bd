"""One flow on every engine: a run loses a node, fails, is resumed, and its results equal those of
a local run. The engines are local processes with slots, workers of a queue, jobs of AWS Batch and
of Kubernetes (stand-ins that run jobs as processes), of Slurm (its real daemons), and workers in
real clusters of Dask and Ray. Ray is large, so it is tested only if it is installed
(pip install -e '.[ray]'); Dask, whose pool differs in one class, is always tested.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from aflow import client
from aflow.executors.remote.attempt import own_address
from tests.support.clusters import cluster
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.aws.furnished import Account
    from tests.support.kubernetes import Cluster
    from tests.support.slurm import Slurm

pytestmark = pytest.mark.timeout(300)

FLOW = Path(__file__).parent / "flow_files" / "engines.py"
GROUPS = {"ray": "clusters", "dask": "clusters"}


class Begun(NamedTuple):
    """A started task: its process, and the environment of that."""

    pid: int
    variables: Mapping[str, str]


class Engine(NamedTuple):
    """How runs use an engine, and how it loses a node with at least one of these tasks. `check` is
    called after the run."""

    options: list[str]
    lose: Callable[[list[Begun]], object]
    check: Callable[[], object] = lambda: None


class Bench:
    """A folder in which the flow is run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"

    @contextmanager
    def running(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a command of the flow, which writes to the log."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(FLOW), *words], stdout=log, stderr=log, cwd=self.folder
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run(self, *words: str) -> int:
        """The exit code of a command of the flow."""
        with self.running(*words) as process:
            return process.wait()

    def said(self) -> str:
        return self.log.read_text()

    def begun(self) -> list[Begun]:
        """Return the tasks of the foreach that have started, if all of them have."""
        files = sorted(self.folder.glob("began-*"))
        written = [each.read_text().splitlines() for each in files]
        if len(written) < 3 or not all(written):
            return []
        return [
            Begun(int(pid), dict(each.partition("=")[::2] for each in variables))
            for pid, *variables in written
        ]

    def left(self) -> dict[str, list[dict[str, str]]]:
        """Return the artifacts of the latest run, sorted, by step. (The path of the code differs in
        each job.)"""
        client.metadata(f"local@{self.folder}/.aflow")
        run: Any = client.Flow("Engines", _namespace_check=False).latest_run
        return {
            step.id: sorted(
                (
                    {
                        each.id: re.sub(r'File ".*?/(\w+\.py)', r'File "\1', str(each.data))
                        for each in task
                        if each.id != "folder"
                    }
                    for task in step
                ),
                key=str,
            )
            for step in run
        }


@cache
def plain() -> dict[str, list[dict[str, str]]]:
    """The results of a local run without faults."""
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.delenv("AFLOW_DEFAULT_DATASTORE", raising=False)
        patch.setenv("AFLOW_DEFAULT_METADATA", "local")
        bench = Bench(Path(name))
        for each in ("lost", "mended"):
            (bench.folder / each).touch()
        assert 0 == bench.run("run", "--folder", name, "--resources", "gpu=1"), bench.said()
        return bench.left()


# ------------------------------------------------------------------ engines


def local(bench: Bench, request: pytest.FixtureRequest, until: ExitStack) -> Engine:
    def lose(tasks: list[Begun]) -> None:
        # All tasks are lost with their zygote, also one that is to fail by itself first.
        wait_until(lambda: "Task is starting (retry)." in bench.said())
        zygote = int(Path(f"/proc/{tasks[0].pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(zygote, signal.SIGKILL)

    return Engine(["--resources", "gpu=2,cpu=8"], lose)


def on_a_queue(bench: Bench) -> list[str]:
    return ["--executor", "queue", "--queue", f"sqlite:///{bench.folder}/queue.db"]


def queue(bench: Bench, request: pytest.FixtureRequest, until: ExitStack) -> Engine:
    words = [*on_a_queue(bench)[2:], "--slots", "2", "--lease", "3", "--resources", "gpu=1,cpu=2"]
    pools = ["--pool", "default", "--pool", "gpu"]
    workers = [
        until.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "aflow", "worker", *words, *pools],
                cwd=bench.folder, stderr=subprocess.DEVNULL,
            )
        )
        for _ in range(2)
    ]  # fmt: skip
    for each in workers:
        until.callback(each.kill)
    return Engine(on_a_queue(bench), lambda tasks: workers[0].kill())


def batch(bench: Bench, request: pytest.FixtureRequest, until: ExitStack) -> Engine:
    aws: Account = request.getfixturevalue("aws")
    request.getfixturevalue("monkeypatch").setenv("AFLOW_DEFAULT_METADATA", "local")

    def check() -> None:
        jobs = aws.jobs("tester-Engines-")
        sizes = [job["nodeProperties"]["numNodes"] for job in jobs if "nodeProperties" in job]
        assert [2] == sizes[-1:], "the gang is one job of two nodes"

    return Engine(["--with", "batch"], lambda tasks: (bench.folder / "away").touch(), check)


def slurm(bench: Bench, request: pytest.FixtureRequest, until: ExitStack) -> Engine:
    daemons: Slurm = request.getfixturevalue("slurm")

    def lose(tasks: list[Begun]) -> None:
        node = f"nodename={tasks[0].variables['SLURMD_NODENAME']}"
        daemons.query("scontrol", "update", node, "state=down", "reason=test")
        until.callback(daemons.query, "scontrol", "update", node, "state=resume")

    def check() -> None:
        outputs = [*(bench.folder / ".aflow" / "slurm").iterdir()]
        empty = [each for each in outputs if not each.stat().st_size]
        assert len(empty) <= 3, "but those of jobs that were lost no empty files are left"

    return Engine(["--with", "slurm:cpu=1"], lose, check)


def kubernetes(bench: Bench, request: pytest.FixtureRequest, until: ExitStack) -> Engine:
    standin: Cluster = request.getfixturevalue("kubernetes")
    standin.make("persistentvolumeclaims", "data")

    def lose(tasks: list[Begun]) -> None:
        job, index = (tasks[1].variables[each] for each in ("AFLOW_JOB_ID", "JOB_COMPLETION_INDEX"))
        name = f"{job.rpartition('@')[2]}-{index}-"
        standin.lose_node(next(each for each in standin.running() if each.startswith(name)))

    def check() -> None:
        assert {0} == {each["status"]["active"] for each in standin.listed("jobs")}

    mounts = json.dumps({"data": "/"})
    words = f"kubernetes:executable={sys.executable},persistent_volume_claims={mounts}"
    return Engine(["--with", words], lose, check)


def pool(kind: str, bench: Bench, request: pytest.FixtureRequest, until: ExitStack) -> Engine:
    module = "distributed" if kind == "dask" else kind
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{kind} is not installed: pip install -e '.[{kind}]'")
    nodes = until.enter_context(
        cluster(kind, request.getfixturevalue("tmp_path_factory").mktemp(kind))
    )
    words = ["--count", "2", "--slots", "2", "--resources", "gpu=1,cpu=2", "--lease", "3"]
    pools = ["--pool", "default", "--pool", "gpu", "--grace", "1"]
    command = [sys.executable, "-m", "aflow", "workers", kind, "--address", nodes.address]
    with (bench.folder / "workers").open("wb") as log:
        keeper = until.enter_context(
            subprocess.Popen(
                [*command, *on_a_queue(bench)[2:], *words, *pools],
                cwd=bench.folder, stdout=log, stderr=log,
            )
        )  # fmt: skip
    until.callback(keeper.send_signal, signal.SIGTERM)
    return Engine(on_a_queue(bench), lambda tasks: nodes.lose_a_node())


def dask(bench: Bench, request: pytest.FixtureRequest, until: ExitStack) -> Engine:
    return pool("dask", bench, request, until)


def ray(bench: Bench, request: pytest.FixtureRequest, until: ExitStack) -> Engine:
    return pool("ray", bench, request, until)


ENGINES = [
    pytest.param(each, marks=pytest.mark.xdist_group(GROUPS.get(each.__name__, each.__name__)))
    for each in (local, queue, batch, slurm, kubernetes, dask, ray)
]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_flow_leaves_the_same_on_every_engine_whatever_happens_to_it(
    engine: Callable[..., Engine], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bench = Bench(tmp_path)
    with ExitStack() as until:
        until.callback(client.default_metadata)
        expected = plain()
        made = engine(bench, request, until)
        with bench.running("run", "--folder", str(tmp_path), *made.options) as run:
            begun = wait_until(bench.begun, bench.said)
            made.lose(begun)
            wait_until(lambda: not all(Path(f"/proc/{each.pid}").exists() for each in begun))
            (tmp_path / "lost").touch()
            assert 1 == run.wait(), bench.said()
        assert [each.pid for each in begun] != [each.pid for each in bench.begun()], bench.said()

        assert "ValueError: not mended" in bench.said()
        assert "Task failed. ValueError: not yet" in bench.said()
        assert "Task is starting (retry)." in bench.said()
        assert f"] folder {tmp_path}" in bench.said()
        again = sorted(each.stat().st_mtime_ns for each in tmp_path.glob("began-*"))
        (tmp_path / "mended").touch()
        assert 0 == bench.run("resume", *made.options), bench.said()

        assert again == sorted(each.stat().st_mtime_ns for each in tmp_path.glob("began-*"))
        assert expected == bench.left()
        address = "127.0.0.1" if engine is local else own_address()
        assert address == (tmp_path / "address").read_text(), "where others reach member 0"
        made.check()
