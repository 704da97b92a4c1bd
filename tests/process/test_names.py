"""Classes of a flow's own file have one name in all programs, and every program finds them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.flows.conftest import Workspace

HELPERS = """
import enum
from colors import Color

class Unit(enum.Enum):
    METRE = 1

def paint():
    from colors import Color  # found late as well
    return Color.RED
"""

COLORS = """
import enum

class Color(enum.Enum):
    RED = 1
"""

FLOW = """
import dataclasses, enum
from helpers import Unit, paint

class Mode(enum.Enum):
    FAST = 1
    SLOW = 2

@dataclasses.dataclass
class Score:
    value: float
    class Level(enum.IntEnum):
        HIGH = 3

def double(number):
    return 2 * number

class Flow_(FlowSpec):
    kept = Mode.SLOW

    @step
    def start(self):
        self.mode, self.score, self.level = Mode.FAST, Score(0.5), Score.Level.HIGH
        self.double, self.unit, self.color = double, Unit.METRE, paint()
        self.with_lambda = [Mode.FAST, lambda: Mode.FAST]
        self.next(self.work)

    @step
    def work(self):
        assert self.mode is Mode.FAST and self.level is Score.Level.HIGH
        assert self.kept is Mode.SLOW and self.unit is Unit.METRE
        assert self.score == Score(0.5) and isinstance(self.score, Score)
        assert self.with_lambda[0] is Mode.FAST and self.with_lambda[1]() is Mode.FAST
        match self.mode:
            case Mode.FAST:
                self.matched = True
        if os.path.exists("fail"):
            raise ValueError("asked to")
        self.next(self.end)

    @step
    def end(self):
        self.modes = list(Mode)
"""

READER = """
from aflow import Flow, namespace
namespace(None)
data = Flow("Flow_").latest_run.data
"""

CHECKS = """
assert data.mode is Mode.FAST and data.modes == list(Mode)
assert data.level is Score.Level.HIGH and data.double is double
assert data.score == Score(0.5) and isinstance(data.score, Score)
assert data.with_lambda[0] is Mode.FAST and data.with_lambda[1]() is Mode.FAST
assert data.kept is Mode.SLOW
print("all found")
"""

# A program in another folder, which has no such classes.
STRANGER = """
import pickle
mode, score = data.mode, data.score
assert mode is data.mode and mode is data.with_lambda[0] and mode in data.modes
assert type(score) is type(data.score) and score == data.score and score.value == 0.5
assert data.level.name == "HIGH" and type(data.level).__qualname__ == "Score.Level"
assert data.double(3) == 6 and data.unit.name == "METRE" and data.color.name == "RED"
assert type(mode).__module__.startswith("aflow_code_"), type(mode).__module__
assert pickle.loads(pickle.dumps([mode, score])) == [mode, score]
assert pickle.loads(pickle.dumps(mode)) is mode
import inspect
assert "class Mode" in inspect.getsource(type(mode))
print("all found")
"""


def write(folder: Path) -> None:
    file = Workspace(folder).write(FLOW)
    reads = f"def read():\n{textwrap.indent(READER + CHECKS, '    ')}\n"
    begin, guard, _ = file.read_text().rpartition("if __name__")
    end = ' == "__main__":\n    read() if sys.argv[1:] == ["read"] else Flow_()\n'
    file.write_text(begin + reads + guard + end)
    (folder / "helpers.py").write_text(HELPERS)
    (folder / "colors.py").write_text(COLORS)


def program(folder: Path, source: str, *words: str) -> str:
    """Run a program, which must succeed, and return its output."""
    (folder / "program.py").write_text(textwrap.dedent(source))
    return said_by(folder, "program.py", *words)


def said_by(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


WAYS = {
    "python flow.py": ["flow.py", "run"],
    "aflow run": ["-m", "aflow", "run", "flow.py"],
    "isolation worker": ["flow.py", "run", "--isolation", "worker"],
    "aflow.run": ["embedding.py"],
}


@pytest.fixture(scope="module", params=WAYS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was started in one of several ways."""
    folder = tmp_path_factory.mktemp("names")
    write(folder)
    (folder / "embedding.py").write_text(
        "import aflow, flow\nif __name__ == '__main__': aflow.run(flow.Flow_)\n"
    )
    said_by(folder, *WAYS[request.param])
    return folder


def test_a_program_that_imports_the_file_reads_its_own_classes(run: Path) -> None:
    assert "all found" in program(run, READER + "from flow import *\n" + CHECKS)


def test_a_file_reads_its_own_classes(run: Path) -> None:
    assert "all found" in said_by(run, "flow.py", "read")


def test_a_copy_of_the_file_reads_its_own_classes(run: Path) -> None:
    (run / "another_name.py").write_text((run / "flow.py").read_text())

    assert "all found" in said_by(run, "another_name.py", "read")


def test_a_program_in_another_folder_gets_the_classes_of_the_run(run: Path, tmp_path: Path) -> None:
    where = f"import aflow; aflow.metadata('local@{run}')\n"

    assert "all found" in program(tmp_path, where + READER + STRANGER)


def test_what_another_flow_has_stored_of_them_is_found_again(run: Path, tmp_path: Path) -> None:
    """The class is named by the code of the first run, which readers of the second one get."""
    source = """
class Second(FlowSpec):
    @step
    def start(self):
        import aflow
        aflow.namespace(None)
        self.mode = aflow.Flow("Flow_").latest_run.data.mode
        self.next(self.end)

    @step
    def end(self):
        print("name", self.mode.name)
"""
    Workspace(tmp_path).write(source, "second.py")
    text = (tmp_path / "second.py").read_text().replace("    Flow_()", "    Second()")
    (tmp_path / "second.py").write_text(text)

    where = f"sqlite:///{run}/.aflow/metadata.db"
    said_by(
        tmp_path, "second.py", "--metadata", where, "run", "--datastore-root", str(run / ".aflow")
    )
    read = f"""
import aflow
aflow.metadata('local@{run}'); aflow.namespace(None)
print(aflow.Flow("Second").latest_run.data.mode.name)
"""

    assert program(tmp_path, read) == "FAST\n"


@pytest.mark.parametrize("way", ["python flow.py", "aflow run"])
def test_a_resumed_run_knows_its_classes_again(run: Path, way: str) -> None:
    words = [word.replace("run", "resume") if word == "run" else word for word in WAYS[way]]
    said_by(run, *words, "--origin-run-id", latest(run), "work")

    assert "all found" in said_by(run, "flow.py", "read")


def latest(folder: Path) -> str:
    return said_by(
        folder,
        "-c",
        "import aflow; aflow.namespace(None); print(aflow.Flow('Flow_').latest_run.id)",
    ).strip()


# ------------------------------------------------------------------ packages

MODULE = """
import enum, sys
from aflow import FlowSpec, queue, step
from ..common import Unit
from . import local

class Mode(enum.Enum):
    FAST = 1

class PackageFlow(FlowSpec):
    @step
    def start(self):
        self.mode, self.unit = Mode.FAST, Unit.METRE
        self.next(self.end)

    @step
    def end(self):
        from .local import NAME
        assert self.mode is Mode.FAST and self.unit is Unit.METRE
        print("found", NAME, __name__, __package__)

if __name__ == "__main__":
    PackageFlow()
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package, whose flow imports from it by relative names."""
    folder = tmp_path_factory.mktemp("package")
    inner = folder / "pack" / "inner"
    inner.mkdir(parents=True)
    for each in (folder / "pack", inner):
        (each / "__init__.py").touch()
    (folder / "pack" / "common.py").write_text(
        "import enum\nclass Unit(enum.Enum):\n    METRE = 1\n"
    )
    (inner / "local.py").write_text("NAME = 'neighbour'\n")
    (inner / "flow.py").write_text(MODULE)
    return folder


OF_THE_PACKAGE = {
    "as a module": ["-m", "pack.inner.flow", "run"],
    "by its file": ["-m", "aflow", "run", "pack/inner/flow.py"],
    "in one process": ["-m", "aflow", "run", "pack/inner/flow.py", "--isolation", "worker"],
}


@pytest.mark.parametrize("way", OF_THE_PACKAGE)
def test_a_flow_in_a_package_imports_by_relative_names(
    package: Path, way: str, tmp_path: Path
) -> None:
    assert "found neighbour __main__ pack.inner" in said_by(package, *OF_THE_PACKAGE[way])

    where = f"import aflow; aflow.metadata('local@{package}'); aflow.namespace(None)\n"
    read = "data = aflow.Flow('PackageFlow').latest_run.data\nprint(data.mode.name, data.unit.name)"
    assert program(tmp_path, where + read) == "FAST METRE\n"


def test_workers_run_a_flow_of_a_package(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFLOW_QUEUE", f"sqlite:///{package}/queue.db")
    monkeypatch.setenv("AFLOW_CLIENT_CACHE_PATH", str(package / "cache"))
    worker = subprocess.Popen([sys.executable, "-m", "aflow", "worker"], cwd=package)
    try:
        for way in ("as a module", "by its file"):
            said = said_by(package, *OF_THE_PACKAGE[way], "--executor", "queue")
            assert "found neighbour __main__ pack.inner" in said
    finally:
        worker.terminate()
        worker.wait()


def test_what_is_sent_of_a_flow_of_a_package_is_the_package(package: Path) -> None:
    source = """
from aflow.task import code_package
from aflow.cli.loading import load_flow
from aflow.flow.spec import define
definition = define(load_flow("pack/inner/flow.py"))
print(definition.cls.__module__, code_package.program_of(definition).place[1])
print(*[name for name in code_package.members(definition) if name.startswith("pack/")])
"""

    files = "pack/__init__.py pack/common.py pack/inner/__init__.py pack/inner/flow.py"
    assert program(package, source).splitlines() == [
        "pack.inner.flow pack/inner/flow.py",
        f"{files} pack/inner/local.py",
    ]


def test_a_program_that_imports_a_flow_of_a_package_runs_it(package: Path) -> None:
    source = """
import aflow
from pack.inner.flow import Mode, PackageFlow
if __name__ == "__main__":
    assert aflow.run(PackageFlow).data.mode is Mode.FAST
    print("the same")
"""

    assert "the same" in program(package, source)


def test_a_file_that_calls_its_flow_without_a_guard_is_read_all_the_same(
    workspace: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = workspace.write(FLOW.replace("from helpers import Unit, paint", "").replace(
        "self.double, self.unit, self.color = double, Unit.METRE, paint()", ""
    ).replace(" and self.unit is Unit.METRE", ""))  # fmt: skip
    file.write_text(file.read_text().rpartition("\n\nif __name__")[0] + "\nFlow_()\n")
    said_by(workspace.path, "flow.py", "run")

    where = f"import aflow; aflow.metadata('local@{workspace.path}')\n"
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert program(elsewhere, where + READER + "print(data.mode.name)") == "FAST\n"
