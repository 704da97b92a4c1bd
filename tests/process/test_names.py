"""Classes of a flow's own file: one name for all that write and read them, found everywhere."""

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
    """What a program says that ends well."""
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
