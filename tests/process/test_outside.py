"""The environment of the program stays unchanged: signals, streams, folders, variables."""

from __future__ import annotations

import _imp
import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from aflow._core.shadowed import BEFORE_PROGRAMS, NEEDED
from tests.flows.conftest import Workspace
from tests.support.waiting import wait_until

WAYS = {
    "python flow.py": [sys.executable, "flow.py", "run"],
    "aflow run": [sys.executable, "-m", "aflow", "run", "flow.py"],
    "isolation worker": [sys.executable, "flow.py", "run", "--isolation", "worker"],
    "aflow.run": [sys.executable, "embedding.py"],
}
EMBEDDING = "import aflow, flow\nif __name__ == '__main__': aflow.run(flow.Flow_)\n"


def run(
    workspace: Workspace, words: Sequence[str], **more: object
) -> subprocess.CompletedProcess[bytes]:
    (workspace.path / "embedding.py").write_text(EMBEDDING)
    given = {"cwd": workspace.path, "capture_output": True, "timeout": 90, **more}
    return subprocess.run(words, **given)  # type: ignore[call-overload,no-any-return]


def shell(line: str) -> list[str]:
    return ["sh", "-c", f'exec "{sys.executable}" {line}']


def read(folder: str | bytes | Path, expression: str) -> str:
    """Return an expression over the data `d` of the latest run, evaluated by a process in its
    folder."""
    source = (
        "import aflow; aflow.namespace(None); d = aflow.Flow('Flow_').latest_run.data;"
        f"print({expression})"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=folder, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The program's view of the settings that it made or inherited.
SEEN = """
import random, socket, subprocess, sys
random.seed(42)
socket.setdefaulttimeout(0.05)

class Flow_(FlowSpec):
    def __init__(self, use_cli=True):
        self.kind = "prod"
        super().__init__(use_cli)

    @step
    def start(self):
        time.sleep(0.2)  # longer than the timeout of sockets
        self.number = random.random()
        self.timeout = socket.getdefaulttimeout()
        self.path = os.environ.get("PYTHONPATH")
        self.programs = subprocess.run(["env"], capture_output=True, text=True).stdout
        self.ignored = [signal.getsignal(each) is signal.SIG_IGN for each in (2, 1)]
        self.next(self.end)

    @step
    def end(self):
        self.seen_kind = self.kind
"""


@pytest.mark.parametrize("way", WAYS)
def test_steps_see_what_their_program_has_set(workspace: Workspace, way: str) -> None:
    workspace.write(SEEN)

    done = run(workspace, WAYS[way])

    assert done.returncode == 0, done.stderr
    seen = "[d.number, d.timeout, d.path, 'PYTHONPATH=' in d.programs, d.kind, d.seen_kind]"
    random.seed(42)
    assert read(workspace.path, seen) == repr([random.random(), 0.05, None, False, "prod", "prod"])


# ------------------------------------------------------------------ signals

LONG = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.ignored = [signal.getsignal(each) == signal.SIG_IGN for each in (1, 2)]
        open("begun", "w").close()
        while not os.path.exists("go-on"):
            time.sleep(0.01)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize("way", ["python flow.py", "aflow run", "isolation worker"])
def test_signals_that_are_ignored_at_the_start_stay_so(workspace: Workspace, way: str) -> None:
    workspace.write(LONG)
    ignoring = "import os, signal, sys; signal.signal(1, signal.SIG_IGN);"
    ignoring += "signal.signal(2, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", ignoring, *WAYS[way]],
        cwd=workspace.path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_until((workspace.path / "begun").exists)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    (workspace.path / "go-on").touch()

    _, said = process.communicate(timeout=90)

    assert process.returncode == 0, said
    assert read(workspace.path, "d.ignored") == "[True, True]"


# ------------------------------------------------------------------ streams

PRINTS = """
class Tee:
    def __init__(self, *streams):
        self.streams = streams

    def write(self, text):
        for each in self.streams:
            each.write(text)

    def flush(self):
        for each in self.streams:
            each.flush()

    def __getattr__(self, name):
        return getattr(self.streams[0], name)

if os.path.exists("tee"):
    sys.stdout = Tee(sys.stdout, open("copy.txt", "a"))
if os.path.exists("closed"):
    sys.stdin.close()
    sys.stdout.close()

class Flow_(FlowSpec):
    @step
    def start(self):
        if not sys.stdout.closed:
            print("hello")
        self.read = os.read(0, 10)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize(
    ("closed", "isolation"),
    [("<&-", "task"), (">&-", "task"), ("2>&-", "worker"), ("<&- >&- 2>&-", "worker")],
)
def test_streams_that_are_closed_at_the_start_are_as_if_they_led_nowhere(
    workspace: Workspace, closed: str, isolation: str
) -> None:
    workspace.write(PRINTS)

    done = run(workspace, shell(f"flow.py run --isolation {isolation} {closed}"))

    assert (0, True) == (done.returncode, b"Exception" not in done.stderr), done.stderr
    assert read(workspace.path, "d.read") == "b''"


def test_a_stream_that_the_program_has_replaced_gets_the_log(workspace: Workspace) -> None:
    workspace.write(PRINTS)
    (workspace.path / "tee").touch()

    done = run(workspace, WAYS["python flow.py"])

    assert (0, True) == (done.returncode, b"hello" in done.stdout), done.stderr
    copied = (workspace.path / "copy.txt").read_text()
    assert "hello" in copied
    assert "Task is starting." in copied


def test_a_program_that_has_closed_its_streams_runs_its_flow(workspace: Workspace) -> None:
    workspace.write(PRINTS)
    (workspace.path / "closed").touch()

    done = run(workspace, WAYS["python flow.py"])

    assert done.returncode == 0, done.stderr


# What a program finds out about its standard streams, where their files are pipes.
ABOUT_STREAMS = """
def about():
    return [
        (each.encoding, each.errors, each.name, each.mode, each.isatty(), each.seekable(),
         isinstance(each, io.TextIOWrapper), each is original, each.closed)
        for each, original in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__))
    ]
"""
OF_STREAMS = f"""
import io
{ABOUT_STREAMS}
class Flow_(FlowSpec):
    @step
    def start(self):
        self.before = about()
        sys.stdout.reconfigure(encoding="cp1252", errors="replace")
        sys.stdout.write("euro: \\u20ac; ")
        sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding="latin-1")
        print("caf\\xe9")
        self.next(self.middle)

    @step
    def middle(self):
        sys.stdout.close()
        try:
            print("nothing")
        except ValueError as error:
            self.refused = str(error)
        self.next(self.end)

    @step
    def end(self):
        self.after = about()
        print("the last line", end="")
"""


@pytest.mark.parametrize("encoding", ["latin-1", "ascii:replace"])
@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_the_streams_of_steps_have_the_encodings_that_python_gives_them(
    workspace: Workspace, isolation: str, encoding: str
) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    source = f"import io, sys\n{ABOUT_STREAMS}\nprint(about())"
    plain = run(workspace, [sys.executable, "-c", source], env=environment).stdout.decode().strip()
    workspace.write(OF_STREAMS)
    words = [*WAYS["python flow.py"], "--isolation", isolation]

    # The command's own output is a file, which has positions: those of steps are pipes.
    with open(workspace.path / "out.txt", "wb") as out:
        done = subprocess.run(
            words, cwd=workspace.path, env=environment, stdout=out, stderr=subprocess.PIPE
        )

    assert done.returncode == 0, done.stderr
    found = read(workspace.path, "[d.before, d.after, d.refused]")
    assert found == f"[{plain}, {plain}, 'I/O operation on closed file.']"
    shown = (workspace.path / "out.txt").read_bytes()
    assert b"] euro: \x80; caf\xe9\n" in shown
    assert b"] the last line\n" in shown


ENCODED_BY_STEP = """
class Flow_(FlowSpec):
    @environment(vars={"PYTHONIOENCODING": "latin-1"})
    @step
    def start(self):
        print("caf\\xe9")
        self.next(self.end)

    @step
    def end(self):
        print("th\\xe9")
"""


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_a_step_may_have_an_encoding_of_its_own(workspace: Workspace, isolation: str) -> None:
    workspace.write(ENCODED_BY_STEP)

    done = run(workspace, [*WAYS["python flow.py"], "--isolation", isolation])

    assert done.returncode == 0, done.stderr
    assert [True, True] == [each in done.stdout for each in (b"caf\xe9\n", b"th\xc3\xa9\n")]


PRINTS_FOR_EVER = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.items = range(2)
        self.next(self.work, foreach="items")

    @timeout(seconds=1)
    @step
    def work(self):
        while True:
            print("x", file=sys.stderr)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_a_step_whose_time_is_over_while_it_prints_ends_at_once(workspace: Workspace) -> None:
    workspace.write(PRINTS_FOR_EVER)

    done = run(workspace, [*WAYS["isolation worker"], "--max-workers", "2"])

    assert done.returncode == 1
    assert b"timed out after 0 hours, 0 minutes, 1 seconds" in done.stderr
    assert b"did not react" not in done.stdout + done.stderr


def test_a_flow_runs_where_warnings_are_errors(workspace: Workspace) -> None:
    workspace.write(SMALL)
    strict = [sys.executable, "-X", "dev", "-X", "warn_default_encoding", "-W", "error"]

    for isolation in ("task", "worker"):
        done = run(workspace, [*strict, "flow.py", "run", "--isolation", isolation])
        assert (0, False) == (done.returncode, b"Warning" in done.stderr), done.stderr


# ------------------------------------------------------------------ objects with code of their own

# Objects whose own code raises, whatever they are asked, at every place that aflow looks at.
STRANGE = """
import types

class NoClass:
    def __getattribute__(self, name):
        if name == "__class__":
            raise RuntimeError("no class")
        return object.__getattribute__(self, name)
    def __reduce__(self):
        return NoClass, ()

class NoAttributes:
    def __getattr__(self, name):
        raise RuntimeError("no " + name)
    def __reduce__(self):
        return NoAttributes, ()

class Leaves(NoAttributes):
    def __getattr__(self, name):
        raise SystemExit(7)
    def __reduce__(self):
        return Leaves, ()

class NoComparison:
    def __eq__(self, other):
        raise RuntimeError("not equal")
    __bool__ = __repr__ = __str__ = __len__ = __hash__ = __iter__ = __eq__

class Module(types.ModuleType):
    def __getattr__(self, name):
        raise RuntimeError("no " + name)

class Closed(types.ModuleType):
    def __getattribute__(self, name):
        raise KeyError(name)

KINDS = (NoClass, NoAttributes, Leaves, NoComparison)
OBJECTS = [kind() for kind in KINDS]
A, B, C, D = OBJECTS
sys.modules.update(
    strange=Module("strange"), stranger=Closed("stranger"), strangest=A, there=B, none=None
)
import strange, stranger

class Flow_(FlowSpec):
    a, b, c, d = OBJECTS
    _e, _f, _g, _h = OBJECTS

    @step
    def start(self):
        self.kept = [*map(type, (A, B, C, D, strange, stranger, self.a, self.b))]
        self.objects = OBJECTS
        self.next(self.work, foreach="objects")

    @step
    def work(self):
        self.same = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        assert [type(each.same) for each in inputs] == [*KINDS]
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize("options", [["--cache"], ["--isolation", "worker"], ["--process", "fork"]])
def test_a_flow_may_hold_objects_that_raise_whatever_they_are_asked(
    workspace: Workspace, options: list[str]
) -> None:
    workspace.write(STRANGE)

    done = run(workspace, [*WAYS["python flow.py"], *options])

    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------ folders and users

SMALL = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.value = 42
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize("way", WAYS)
def test_folders_may_have_any_name(workspace: Workspace, way: str) -> None:
    name = b"caf\xe9 a:b #1 100% \xc3\xbc"  # not UTF-8, and what URLs and lists of paths use
    folder = os.path.join(os.fsencode(workspace.path), name)
    os.mkdir(folder)
    workspace.write(SMALL).rename(os.fsdecode(folder) + "/flow.py")
    Path(os.fsdecode(folder), "embedding.py").write_text(EMBEDDING)

    done = subprocess.run(WAYS[way], cwd=folder, capture_output=True, timeout=90)

    assert done.returncode == 0, done.stderr
    assert read(folder, "d.value") == "42"
    assert [name] == os.listdir(os.fsencode(workspace.path))


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_user_without_a_home_or_a_name_runs_flows(workspace: Workspace) -> None:
    workspace.write(SMALL)
    workspace.path.chmod(0o777)
    nobody = ["unshare", "--user", "--map-user=12345", "--map-group=12345", "env", "-i"]
    if subprocess.run([*nobody, "/bin/true"], capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    given = [f"PATH={os.environ['PATH']}", "AFLOW_USER=me"]

    done = run(workspace, [*nobody, *given, *WAYS["python flow.py"]])

    assert done.returncode == 0, done.stderr
    done = run(workspace, [*nobody, *given, sys.executable, "-m", "aflow", "runs", "Flow_"])
    assert (0, True) == (done.returncode, b"succeeded" in done.stdout), done.stderr
    asked = [*nobody, *given, sys.executable, "flow.py", "--datastore-root", "~/data", "run"]
    refused = run(workspace, asked)
    assert b"the home of this user is not known" in refused.stderr
    assert b"Traceback" not in refused.stderr


# A program beside files that are named like Python's own modules.
BESIDE = """\
{first}
from aflow import FlowSpec, step
{second}
import sys

class Flow_(FlowSpec):
    @step
    def start(self):
        print("HAVE", *sorted(sys.modules))
        self.next(self.end)

    @step
    def end(self):
        {body}

if __name__ == "__main__":
    Flow_()
"""
OF_PYTHON = sorted(
    name
    for name in sys.stdlib_module_names
    if name not in sys.builtin_module_names and not _imp.is_frozen(name)
)


def beside(workspace: Workspace, first: str = "", second: str = "", body: str = "pass") -> None:
    source = BESIDE.format(first=first, second=second, body=body)
    (workspace.path / "flow.py").write_text(source)


def imported_by_runpy() -> set[str]:
    program = "import runpy, sys; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", program]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("way", ["python flow.py", "aflow run", "isolation worker"])
def test_files_beside_a_program_hide_no_module_that_aflow_needs(
    workspace: Workspace, way: str
) -> None:
    # `python -m aflow` has the folder on its path while Python itself imports what it needs for -m.
    pythons_own = imported_by_runpy() if way == "aflow run" else BEFORE_PROGRAMS
    for name in {*OF_PYTHON} - pythons_own:
        (workspace.path / f"{name}.py").write_text(f"raise RuntimeError('{name}.py is imported')")
    beside(workspace)

    done = run(workspace, WAYS[way])

    assert 0 == done.returncode, done.stderr


@pytest.mark.skipif(not BEFORE_PROGRAMS, reason="this Python starts programs without them")
def test_a_file_that_keeps_python_from_starting_is_named_in_one_sentence(
    workspace: Workspace,
) -> None:
    (workspace.path / "linecache.py").touch()
    beside(workspace)

    refused = run(workspace, WAYS["python flow.py"])

    assert 2 == refused.returncode
    sentence = f"The module linecache is imported from {workspace.path}/linecache.py,"
    assert [True] == [sentence in each for each in refused.stderr.decode().splitlines()]


@pytest.mark.parametrize("way", ["python flow.py", "aflow run"])
@pytest.mark.parametrize("place", ["first", "second"])
def test_a_program_that_imports_such_a_file_is_refused_in_one_sentence(
    workspace: Workspace, way: str, place: str
) -> None:
    (workspace.path / "helper.py").write_text("def use():\n    import socket\n")
    (workspace.path / "socket.py").write_text("MINE = 1\n")
    (workspace.path / "wave.py").write_text("MINE = 'my wave'\n")
    beside(workspace, **{place: "import helper, wave"}, body="print(sys.modules['wave'].MINE)")

    refused = run(workspace, WAYS[way])
    (workspace.path / "socket.py").rename(workspace.path / "sockets.py")
    done = run(workspace, WAYS[way])

    text = refused.stderr.decode()
    assert (2, False) == (refused.returncode, "Traceback" in text)
    assert f"The module socket is imported from {workspace.path}/socket.py," in text
    assert "Give it another name." in text
    assert 0 == done.returncode, done.stderr
    assert b"my wave" in done.stdout
    line = next(each for each in done.stdout.decode().splitlines() if " HAVE " in each)
    used = {each.partition(".")[0] for each in line.partition(" HAVE ")[2].split()}
    public = {name for name in used & {*OF_PYTHON} if not name.startswith("_")}
    assert {"wave"} == public - NEEDED


# What plain Python says of a program, and what its step sees of it.
IN_ARCHIVE = """
import sys
from aflow import FlowSpec, step

ABOUT = (__name__, __spec__.name, __file__, sys.argv[0], sys.path[0])

class Flow_(FlowSpec):
    @step
    def start(self):
        self.about = ABOUT
        self.next(self.end)

    @step
    def end(self):
        assert isinstance(self, Flow_)

if __name__ == "__main__":
    if sys.argv[1:] == ["plain"]:
        print(*ABOUT)
    else:
        Flow_()
"""


def test_a_flow_in_an_archive_runs_as_one_in_a_folder(workspace: Workspace) -> None:
    for name in ("program.pyz", "lib.zip"):
        with zipfile.ZipFile(workspace.path / name, "w") as archive:
            archive.writestr("__main__.py", IN_ARCHIVE)
            archive.writestr("pkg/__init__.py", "")
            archive.writestr("pkg/flow.py", IN_ARCHIVE)
    environment = {**os.environ, "PYTHONPATH": "lib.zip"}
    for words, more in (
        (["program.pyz"], ["run"]),
        (["program.pyz"], ["run", "--isolation", "worker"]),
        (["-m", "pkg.flow"], ["run"]),
    ):
        plain = run(workspace, [sys.executable, *words, "plain"], env=environment)
        done = run(workspace, [sys.executable, *words, *more], env=environment)

        assert done.returncode == 0, done.stderr
        assert b"lies in an archive" in done.stderr
        assert plain.stdout.decode().strip() == read(workspace.path, "*d.about")
    source = "import aflow, pkg.flow as f; print(aflow.run(f.Flow_).data.about[0])"
    embedded = run(workspace, [sys.executable, "-c", source], env=environment)
    assert embedded.stdout.strip() == b"pkg.flow", embedded.stderr


def test_tasks_run_the_file_as_it_was_when_the_run_began(workspace: Workspace) -> None:
    text = """
        VERSION = 1

        class Flow_(FlowSpec):
            @step
            def start(self):
                with open(__file__, "a") as file:
                    file.write("def this is no Python")
                self.next(self.end)

            @step
            def end(self):
                self.version = VERSION
    """
    for words in (*WAYS.values(), [sys.executable, "-m", "flow", "run"]):
        workspace.write(text)
        done = run(workspace, words)
        assert done.returncode == 0, done.stderr
        workspace.write(text)
        assert read(workspace.path, "d.version") == "1"


def test_a_folder_that_was_removed_is_one_sentence(workspace: Workspace) -> None:
    workspace.write(SEEN)
    gone = f"mkdir gone; cd gone; rmdir ../gone; {sys.executable} {workspace.path}/flow.py run"
    done = run(workspace, ["sh", "-c", gone])

    assert done.returncode != 0
    assert b"Traceback" not in done.stderr
    assert b"The working directory cannot be read" in done.stderr


CALLED_FROM = {
    "an event loop": "asyncio.run(called())",
    "a thread": "thread = threading.Thread(target=Flow_)\n    thread.start()\n    thread.join()",
}


@pytest.mark.parametrize("call", CALLED_FROM.values(), ids=CALLED_FROM)
def test_a_flow_may_be_called_from_an_event_loop_or_a_thread(
    workspace: Workspace, call: str
) -> None:
    (workspace.path / "flow.py").write_text(f"""
import asyncio, threading
from aflow import FlowSpec, step, timeout

class Flow_(FlowSpec):
    @step
    async def start(self):
        await asyncio.sleep(0)
        self.next(self.end)

    @timeout(seconds=60)
    @step
    def end(self):
        self.done = True

async def called():
    try:
        Flow_()
    finally:
        await asyncio.sleep(0)
        print("the loop goes on")

if __name__ == "__main__":
    {call}
""")
    done = run(workspace, WAYS["isolation worker"])

    assert done.returncode == 0, done.stderr
    assert (b"the loop goes on" in done.stdout) == ("called" in call)
    assert read(workspace.path, "d.done") == "True"
