"""Exits of processes: all that Python's own exit does is done, in `MyFlow()` and in tasks."""

from __future__ import annotations

import gzip
import os
import shelve
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.flows.conftest import Workspace

PROGRAMS = Path(__file__).with_name("programs")
OUTCOME = dict[str, dict[str, bytes]]

# Python itself loses it: the file below is finalized before the buffer above it. Here it is kept.
BETTER = "a_file_in_a_cycle"
# Seen in no file, or done by the kernel for every process.
NOT_TOLD = {
    "a_closed_stdout",
    "a_file_in_a_cycle",
    "a_map_of_a_file",
    "a_process",
    "a_socket",
    "a_spooled_file",
    "a_weak_reference_with_a_callback",
    "a_weak_reference_with_a_partial_callback",
    "bytes_that_notice_their_end",
    "nothing",
    "printed_without_a_newline",
}


def effects(folder: Path, program: str, *words: str) -> OUTCOME:
    """Return the files that each effect of programs/effects.py has left, by name."""
    done = subprocess.run(
        [sys.executable, PROGRAMS / program, *words, folder], capture_output=True, text=True
    )
    assert (0, "") == (done.returncode, done.stderr)
    return {each.name: left_in(each) for each in sorted(folder.iterdir())}


def left_in(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.rglob("*"):
        name = "temporary" if path.name.startswith("temporary") else path.name
        found[name] = path.read_bytes() if path.is_file() else b"folder"
    if found.get("file", b"").startswith(b"\x1f\x8b"):  # it holds the time of its making
        found["file"] = inflated(found["file"])
    if found.get("file", b"").startswith(b"PK"):
        found["file"] = str(len(found["file"])).encode()
    # Where an object was in memory, and which line was running, does not matter.
    lines = [line for line in found["stderr"].splitlines(keepends=True) if b" 0x" not in line]
    found["stderr"] = b"".join(line.partition(b": RuntimeWarning:")[2] or line for line in lines)
    return found


def inflated(data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (EOFError, zlib.error) as error:
        return repr(error).encode()


@pytest.fixture(scope="module")
def of_python(tmp_path_factory: pytest.TempPathFactory) -> OUTCOME:
    return effects(tmp_path_factory.mktemp("python"), "effects.py", "python")


def differing(one: OUTCOME, other: OUTCOME) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name]}


def test_most_effects_are_lost_where_a_process_ends_at_once(
    of_python: OUTCOME, tmp_path: Path
) -> None:
    lost = differing(of_python, effects(tmp_path, "effects.py", "at once"))

    assert of_python.keys() - NOT_TOLD <= lost


@pytest.mark.parametrize("how", ["raised", "looked ahead, raised"])
def test_an_end_by_an_exception_is_no_different_from_that_of_python(
    how: str, of_python: OUTCOME, tmp_path: Path
) -> None:
    raised = effects(tmp_path, "effects.py", how)

    assert {BETTER} == differing(of_python, raised)
    assert raised[BETTER]["file"] == b"x"


def test_an_end_by_python_itself_is_the_same_where_objects_were_looked_at_before(
    of_python: OUTCOME, tmp_path: Path
) -> None:
    assert set() == differing(of_python, effects(tmp_path, "effects.py", "looked ahead, python"))


def test_the_end_of_a_forked_process_is_no_different_from_that_of_python(
    of_python: OUTCOME, tmp_path: Path
) -> None:
    assert {BETTER} == differing(of_python, effects(tmp_path, "zygote.py"))


@pytest.mark.parametrize(
    ("option", "is_pythons"), [("default", True), ("error::UserWarning", True), ("i", False)]
)
def test_options_that_silence_warnings_leave_nothing_to_say(
    tmp_path: Path, option: str, is_pythons: bool
) -> None:
    program = (
        "from aflow._core import ending\n"
        "cycle = [open('file', 'w')]\n"
        "cycle[0].write('x')\n"
        "cycle.append(cycle)\n"
        "del cycle\n"
        "raise ending.Leave(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", option, "-c", program],
        cwd=tmp_path, env={**os.environ, "PYTHONWARNINGS": ""}, capture_output=True, text=True,
    )  # fmt: skip

    assert 3 == done.returncode
    assert ("" if is_pythons else "x") == (tmp_path / "file").read_text()  # Python loses it
    assert ("ResourceWarning" in done.stderr) == (option == "default")


# ------------------------------------------------------------------ around MyFlow()

FLOW = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        if os.path.exists("fail"):
            raise ValueError("asked to")
"""

AROUND = """
import atexit, contextlib

class Left:
    def __del__(self):
        note("object")

def note(*words, open=open, print=print):  # at the end of Python builtins have gone
    with open("after.txt", "a") as file:
        print(*words, file=file)

if __name__ == "__main__":
    atexit.register(note, "exit function")
    left = Left()
    with contextlib.ExitStack() as stack:
        stack.callback(note, "with")
        try:
            Flow_()
        except SystemExit as error:
            note("exit", error.code)
            raise
        finally:
            note("finally")
"""


def write(workspace: Workspace, source: str, name: str = "flow.py") -> None:
    """Write a flow file without the usual last lines."""
    file = workspace.write(source, name)
    file.write_text(file.read_text().rpartition("\n\nif __name__")[0] + "\n")


@pytest.mark.parametrize("code", [0, 1])
def test_a_program_goes_on_around_its_flow(workspace: Workspace, code: int) -> None:
    write(workspace, FLOW + AROUND)
    if code:
        (workspace.path / "fail").touch()

    ran = workspace.run()

    assert code == ran.code, ran.err
    said = (workspace.path / "after.txt").read_text().splitlines()
    around = [f"exit {code}", "finally", "with", "exit function"]
    # Tasks run the file as well, each to its own end.
    assert around == [line for line in said if line in around][-len(around) :]
    assert "object" in said


def run_python(workspace: Workspace, *words: str, text: str = "") -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=workspace.path,
        input=text,
        capture_output=True,
        text=True,
        timeout=90,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_program_that_catches_the_end_has_an_end_of_its_own(workspace: Workspace) -> None:
    write(
        workspace,
        FLOW
        + """
if __name__ == "__main__":
    try:
        Flow_()
    except SystemExit:
        pass
    print("still here")
    sys.exit(7)
""",
    )

    code, said = run_python(workspace, "flow.py", "run")

    assert (7, True) == (code, "still here" in said), said


def test_tests_that_call_a_flow_see_its_end(workspace: Workspace) -> None:
    write(
        workspace,
        FLOW
        + """
import pytest

@pytest.mark.parametrize("word", ["run", "no-such-command"])
def test_the_command_line(monkeypatch, word):
    monkeypatch.setattr(sys, "argv", ["test_it.py", word])
    with pytest.raises(SystemExit) as error:
        Flow_()
    assert error.value.code == (0 if word == "run" else 2)

def test_another():
    assert False, "this has to be seen"
""",
        "test_it.py",
    )

    code, said = run_python(workspace, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py")

    assert (1, True) == (code, "1 failed, 2 passed" in said), said


def test_a_profiler_writes_what_it_has_measured(workspace: Workspace) -> None:
    workspace.write(FLOW)

    code, said = run_python(workspace, "-m", "cProfile", "-o", "times", "flow.py", "run")

    assert code == 0, said
    assert (workspace.path / "times").stat().st_size


def test_an_interactive_interpreter_goes_on(workspace: Workspace) -> None:
    workspace.write(FLOW)

    _, said = run_python(workspace, "-i", "flow.py", "run", text="print('go', 'on')\n")

    assert "go on" in said, said


def test_the_debugger_says_how_the_flow_has_ended(workspace: Workspace) -> None:
    workspace.write(FLOW)

    _, said = run_python(workspace, "-m", "pdb", "-c", "continue", "flow.py", "run", text="q\n")

    assert "exited via sys.exit(). Exit status: 0" in said, said


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("flow.py", "run"), 0),
        (("-m", "aflow", "run", "flow.py"), 0),
        (("flow.py", "run", "--no-such-option"), 2),
        (("-m", "aflow", "run", "nowhere.py"), 2),
        (("flow.py", "logs", "Flow_/1/start"), 1),
    ],
)
def test_exit_codes_are_those_of_before(
    workspace: Workspace, words: tuple[str, ...], code: int
) -> None:
    workspace.write(FLOW)

    assert code == run_python(workspace, *words)[0]


def test_the_end_of_an_output_that_nobody_reads_is_quiet(workspace: Workspace) -> None:
    workspace.write(FLOW)
    readable, writable = os.pipe()
    os.close(readable)
    run = subprocess.Popen(
        [sys.executable, "flow.py", "show"],
        cwd=workspace.path,
        stdout=writable,
        stderr=subprocess.PIPE,
    )
    os.close(writable)
    _, said = run.communicate(timeout=90)

    assert (1, b"") == (run.returncode, said)


# ------------------------------------------------------------------ tasks


def test_a_file_that_is_open_when_a_step_fails_is_written(workspace: Workspace) -> None:
    workspace.write(
        """
class Flow_(FlowSpec):
    @step
    def start(self):
        file = open("partial.txt", "w")
        file.write("so far")
        if self.index is None:
            raise ValueError("row 17")
        self.next(self.end)

    @step
    def end(self):
        pass
"""
    )

    ran = workspace.run()

    assert (1, True) == (ran.code, "row 17" in ran.out + ran.err)
    assert (workspace.path / "partial.txt").read_text() == "so far"


STEP_THAT_LEAVES_THINGS = """
import atexit, gzip, logging.handlers, shelve, threading

class Left:
    def __del__(self, open=open):  # at the end of Python builtins have gone
        with open("object.txt", "w") as file:
            file.write("x")

def numbers():
    mkdir = os.mkdir
    try:
        yield 1
    finally:
        mkdir("generator")

KEPT = []

class Flow_(FlowSpec):
    @step
    def start(self):
        handler = logging.handlers.MemoryHandler(100, target=logging.FileHandler("log.txt"))
        logging.getLogger("job").addHandler(handler)
        logging.getLogger("job").warning("x")
        KEPT.extend([Left(), numbers(), open("file.txt", "w")])
        next(KEPT[1])
        KEPT[2].write("x")
        KEPT.extend([gzip.open("packed.gz", "wt"), shelve.open(os.path.abspath("shelf"))])
        KEPT[3].write("x")  # closed by code of Python, which needs its modules for that
        KEPT[4]["x"] = 1
        atexit.register(os.mkdir, "exit function")
        threading.Timer(0.1, os.mkdir, ["thread"]).start()
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize(
    "option", [("--isolation", "task"), ("--isolation", "worker"), ("--process", "fork")]
)
def test_what_a_step_leaves_open_ends_as_under_plain_python(
    workspace: Workspace, option: tuple[str, str]
) -> None:
    workspace.write(STEP_THAT_LEAVES_THINGS)

    ran = workspace.run(*option)

    assert ran.code == 0, ran.err
    files = [workspace.path / f"{name}.txt" for name in ("log", "file", "object")]
    assert ["x", "x", "x"] == [file.read_text().strip() for file in files]
    assert gzip.decompress((workspace.path / "packed.gz").read_bytes()) == b"x"
    with shelve.open(workspace.path / "shelf") as shelf:
        assert shelf["x"] == 1
    folders = [workspace.path / name for name in ("generator", "exit function", "thread")]
    assert all(folder.is_dir() for folder in folders)


def test_coverage_of_steps_is_measured(workspace: Workspace) -> None:
    pytest.importorskip("coverage")
    workspace.write(
        """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        print("done")
"""
    )
    settings = "[run]\nparallel = true\npatch = subprocess\nsource = .\n"
    (workspace.path / ".coveragerc").write_text(settings)

    for words in (["flow.py", "run"], ["-m", "aflow", "run", "flow.py"]):
        code, said = run_python(workspace, "-m", "coverage", "run", *words)
        assert code == 0, said
        assert run_python(workspace, "-m", "coverage", "combine", "-q")[0] == 0
        assert run_python(workspace, "-m", "coverage", "report", "--format=total")[1] == "100\n"
