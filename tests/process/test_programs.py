"""A task's process looks like the user's program: it sees what the same file sees under Python."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.flows.conftest import Workspace, processes_in
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.aws.furnished import Account

HERE = Path(__file__).parent / "programs"
MIRROR = (HERE / "mirror.py").read_text()
TIMEOUT = 90  # seconds after which a program that hangs fails its test

PYTHON = [sys.executable, "mirror.py", "--no-pylint"]
WAYS = {
    "python": [*PYTHON, "run"],
    "python, imports first": [sys.executable, "imports_first.py", "--no-pylint", "run"],
    "aflow run": [sys.executable, "-m", "aflow", "run", "mirror.py", "--no-pylint"],
    "python -m aflow": [sys.executable, "-m", "aflow", "mirror.py", "--no-pylint", "run"],
    "isolation worker": [*PYTHON, "run", "--isolation", "worker"],
    "process fork": [*PYTHON, "run", "--process", "fork"],
    "python -m package": [sys.executable, "-m", "package.mirror", "--no-pylint", "run"],
    "Runner": [
        sys.executable,
        "-c",
        "from aflow import Runner; ran = Runner('mirror.py', False, pylint=False).run(); "
        "raise SystemExit(ran.returncode)",
    ],
}
NOTEBOOK = """
import mirror
from aflow import NBRunner
NBRunner(mirror.MirrorFlow, False, pylint=False, base_dir=".").nbrun()
"""
# The equivalent arguments of `python mirror.py` for a command of aflow.
MEANT = {"aflow run": ["run", "--no-pylint"], "python -m aflow": ["--no-pylint", "run"]}
# Intended differences, and their reasons.
OURS = {
    "isolation worker": {"threads", "native_threads"},  # two threads that read the output
}


def run(folder: Path, command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder, with nothing on stdin."""
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"MIRROR_FILE": str(folder / "seen")} | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def mirrored(folder: Path, command: list[str], **env: str) -> list[dict[str, Any]]:
    """Return what the program has recorded when it was run by this command, in order."""
    (folder / "seen").unlink(missing_ok=True)
    (folder / "seen.lines").unlink(missing_ok=True)
    done = run(folder, command, **env)
    assert 0 == done.returncode, done.stdout + done.stderr
    return [json.loads(line) for line in (folder / "seen").read_text().splitlines()]


def only(notes: list[dict[str, Any]], where: str) -> dict[str, Any]:
    """Return what a step has seen, without the keys that identify the process."""
    (note,) = [each for each in notes if each["where"] == where]
    return {key: value for key, value in note.items() if key not in ("where", "pid", "variable")}


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A folder with the program that records what it sees."""
    shutil.copy(HERE / "mirror.py", tmp_path)
    # The same program where all that it does before it asks for aflow are imports.
    ours = next(line for line in MIRROR.splitlines() if line.startswith("from aflow"))
    (tmp_path / "imports_first.py").write_text(f"import os\n{ours}\n{MIRROR}")
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(HERE / "mirror.py", package)
    return tmp_path


@pytest.mark.parametrize("way", WAYS)
def test_a_task_sees_what_the_program_sees_under_python(way: str, mirror: Path) -> None:
    notes = mirrored(mirror, WAYS[way])
    # Python itself has run the program up to its flow's call, under the same command.
    reference = next(each for each in notes if each["where"] == "block")
    if way in MEANT:
        reference = mirrored(mirror, [sys.executable, "mirror.py", *MEANT[way]])[0]
    assert_tasks_see(reference, notes, OURS.get(way, set()))


def assert_tasks_see(
    reference: dict[str, Any], notes: list[dict[str, Any]], but: Collection[str] = ()
) -> None:
    """Assert that tasks have seen the same as the program itself, except for these keys."""
    left_out = {"where", "pid", "variable", *but}
    expected = {key: value for key, value in reference.items() if key not in left_out}
    for where in ("start, by __init__", "other"):
        found = only(notes, where)
        if where == "other":
            assert "of the step" == found["environ"].pop("MIRROR_VARIABLE")
        assert expected == {key: found[key] for key in expected}
    assert {
        "start, by __init__": "unset",
        "other": "of the step",
        "last": "unset",
    } == variables_of(notes)


def variables_of(notes: list[dict[str, Any]]) -> dict[str, str]:
    """Return the variable's value when the module was run, by step."""
    return {each["where"]: each["variable"] for each in notes if each["where"] != "block"}


@pytest.mark.parametrize("way", ["python", "aflow run", "process fork"])
def test_what_a_task_does_around_its_step_is_what_the_program_does(way: str, mirror: Path) -> None:
    mirrored(mirror, WAYS[way])

    lines = (mirror / "seen.lines").read_text().splitlines()
    at_exit = [] if way == "process fork" else ["exit function"]
    of_a_task = ["module", "step", "exit 0", "finally", *at_exit]
    of_the_program = ["module", "exit 0", "finally", *at_exit]
    # The first two tasks have a step that writes; the coroutine's and the last one's do not, and
    # neither does the program itself. Each process writes when it ends.
    assert 2 == lines.count("step")
    assert lines[: len(of_a_task)] == of_a_task
    assert lines[-len(of_the_program) :] == of_the_program


def test_a_task_on_a_worker_runs_the_whole_file_with_the_variables_of_its_step(
    mirror: Path,
) -> None:
    elsewhere = mirror.parent / f"{mirror.name}-elsewhere"
    elsewhere.mkdir()
    queue = f"sqlite:///{mirror}/queue.db"
    worker = subprocess.Popen(
        [sys.executable, "-m", "aflow", "worker", "--queue", queue],
        cwd=elsewhere,
        env=os.environ
        | {"AFLOW_CLIENT_CACHE_PATH": str(elsewhere), "MIRROR_FILE": str(mirror / "seen")},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert worker.stderr is not None
        assert "takes tasks of" in worker.stderr.readline()
        command = [*PYTHON, "run", "--executor", "queue", "--queue", queue]
        # The variable's value is known where the run begins, and not to the worker.
        given = {"MIRROR_OF_THE_STEP": "of the run's own shell"}
        notes = mirrored(mirror, command, **given)
        many = mirrored(mirror, [*command, "--isolation", "worker"], **given)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=60)

    for each, tasks in ((notes, 4), (many, 3)):  # start and end share a process of isolation worker
        assert 1 + tasks == [note["where"] for note in each].count("block")
        assert "of the run's own shell" == variables_of(each)["other"]
    start, other = only(notes, "start, by __init__"), only(notes, "other")
    assert {"block": "run"} == start["settings"] == other["settings"]
    assert "__main__" == start["main"][0]
    assert ["--no-pylint", "run"] == start["argv"][1:3]
    assert Path(start["argv"][0]).parent == Path(start["path"][0])
    assert str(elsewhere) == start["cwd"]
    assert "PYTHONPATH" not in set(start["environ"]) - set(os.environ)
    assert [] == processes_in(elsewhere)


def test_a_flow_of_a_notebook_sees_what_a_program_sees(mirror: Path) -> None:
    program = mirrored(mirror, WAYS["python"])[0]
    notes = mirrored(mirror, [sys.executable, "-c", NOTEBOOK])

    # It is a file that is made for the run, without what the cell does besides.
    assert_tasks_see(program, notes, ["argv", "environ", "orig_argv", "main", "settings"])
    start = only(notes, "start, by __init__")
    assert {**program["environ"], "JPY_PARENT_PID": ""} == start["environ"]
    assert {"block": "not run"} == start["settings"]
    assert [start["argv"][0], "__main__"] == [start["main"][1], start["main"][0]]


def test_a_task_of_a_server_sees_what_the_program_sees_that_the_server_runs(mirror: Path) -> None:
    place = mirror.parent / f"{mirror.name}-server"
    place.mkdir()
    variables = {"AFLOW_HOME": str(place / "home"), "MIRROR_FILE": str(mirror / "seen")}
    server = subprocess.Popen(
        [sys.executable, "-m", "aflow", "server", "--port", "0"],
        cwd=place,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        submit = [sys.executable, "-m", "aflow", "submit", "mirror.py", "--wait"]
        notes = mirrored(mirror, [*submit, "--server", url], **variables)
    finally:
        server.terminate()
        server.communicate(timeout=60)

    command = next(each for each in notes if each["where"] == "block")
    # The command itself has connections to the server, and collects garbage seldom.
    assert_tasks_see(command, notes, ["descriptors", "collector", "orig_argv"])
    start = only(notes, "start, by __init__")
    assert [str(mirror / "seen.lines")] == list(start["descriptors"].values())
    assert {"block": "run"} == start["settings"]
    assert Path(start["argv"][0]).parent == Path(start["path"][0])
    assert str(mirror) not in start["path"]
    assert [] == processes_in(place)


@pytest.mark.slow
@pytest.mark.xdist_group("batch")
def test_a_job_of_aws_batch_runs_the_whole_file_with_the_variables_of_its_step(
    mirror: Path, aws: Account
) -> None:
    program = mirror / "mirror.py"  # jobs have a separate environment
    place = repr(str(mirror / "seen"))
    program.write_text(program.read_text().replace('os.environ["MIRROR_FILE"]', place))
    notes = mirrored(mirror, [*PYTHON, "run", "--executor", "batch"])

    start, other = only(notes, "start, by __init__"), only(notes, "other")
    assert {"block": "run"} == start["settings"] == other["settings"]
    assert "__main__" == start["main"][0]
    assert Path(start["argv"][0]).parent == Path(start["path"][0])
    assert str(mirror) not in start["path"]
    assert "of the step" == variables_of(notes)["other"]
    assert 5 == [each["where"] for each in notes].count("block")  # four tasks, and the command


def test_a_program_that_embeds_a_flow_gives_tasks_its_path_and_no_more(mirror: Path) -> None:
    library = mirror / "library"
    library.mkdir()
    (mirror / "mirror.py").rename(library / "mirror.py")
    (mirror / "program.py").write_text(
        "import sys\n"
        f"sys.path.append({str(library)!r})\n"
        "import aflow, mirror\n"
        'if __name__ == "__main__":\n'
        "    aflow.run(mirror.MirrorFlow)\n"
    )
    notes = mirrored(mirror, [sys.executable, "program.py"])

    start, other = only(notes, "start, by __init__"), only(notes, "other")
    assert str(library) == start["path"][-1]
    assert str(mirror) == start["path"][0]
    assert ["program.py"] == start["argv"]
    assert "PYTHONPATH" not in set(start["environ"]) - set(os.environ)
    assert {"block": "not run"} == start["settings"]
    assert "of the step" == other["environ"]["MIRROR_VARIABLE"]


# ------------------------------------------------------------------ programs that go wrong

EARLY = [
    ("raise ImportError('this library is away')", "ImportError: this library is away"),
    ("import no_such_module", "No module named 'no_such_module'"),
    ("os._exit(7)", "left with exit code 7"),
    ("sys.exit(3)", "ended with exit code 3 before it came to"),
]


@pytest.mark.parametrize(("line", "sentence"), EARLY)
def test_a_program_that_fails_in_the_task_alone_fails_it_with_what_it_says(
    line: str, sentence: str, workspace: Workspace
) -> None:
    workspace.write(f"""
        if os.getpid() == os.getsid(0):  # in tasks, not in the command itself
            {line}

        class Flow_(FlowSpec):
            @step
            def start(self):
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    ran = workspace.run()

    assert 1 == ran.code
    assert sentence in ran.err


def test_an_exit_code_after_a_good_step_fails_the_task(workspace: Workspace) -> None:
    file = workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                print("the step is good")
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    around = "    try:\n        Flow_()\n    finally:\n        sys.exit(5)\n"
    file.write_text(file.read_text().replace("    Flow_()\n", around))
    ran = workspace.run()

    assert "the step is good" in ran.lines
    assert "the program after it did not: it ended with exit code 5" in ran.err


def test_a_program_without_a_guarded_block_that_begins_a_run_ends_in_one_sentence(
    tmp_path: Path,
) -> None:
    (tmp_path / "program.py").write_text(
        "import aflow\n"
        "from aflow import FlowSpec, step\n"
        "class Flow_(FlowSpec):\n"
        "    @step\n"
        "    def start(self):\n"
        "        self.next(self.end)\n"
        "    @step\n"
        "    def end(self):\n"
        "        pass\n"
        "aflow.run(Flow_)\n"
    )
    done = run(tmp_path, [sys.executable, "program.py"])

    assert 1 == done.returncode
    assert 'below `if __name__ == "__main__":`' in done.stderr
    assert [] == processes_in(tmp_path)


# ------------------------------------------------------------------ zygotes

COLD = """
import os
{before}
import csv, {library}
from aflow import FlowSpec, step

class Flow_(FlowSpec):
    @step
    def start(self):
        print("seen", os.environ.get("LATE"))
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Flow_()
"""


def test_tasks_start_cold_where_the_file_changes_what_its_imports_read_and_check_says_so(
    tmp_path: Path,
) -> None:
    (tmp_path / "flow.py").write_text(
        COLD.format(before='os.environ["LATE"] = "set before"', library="pandas")
    )
    checked = run(tmp_path, [sys.executable, "flow.py", "--no-pylint", "check"])
    ran = run(tmp_path, [sys.executable, "flow.py", "--no-pylint", "run"])

    for done in (checked, ran):
        assert 0 == done.returncode
        assert 1 == done.stderr.count("Tasks start cold")
        assert "changes the environment (LATE)" in done.stderr
    assert "seen set before" in ran.stdout


def test_a_library_whose_import_starts_a_thread_is_named_and_imported_by_each_task(
    tmp_path: Path,
) -> None:
    site = tmp_path / "venv"
    subprocess.run(
        [sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", site], check=True
    )
    packages = next(site.glob("lib/python*/site-packages"))
    # What this interpreter has stands in an environment itself, which a venv made of it does not
    # look into.
    (packages / "this.pth").write_text("\n".join(each for each in sys.path if each))
    (packages / "ticking.py").write_text(
        "import threading, time\n"
        "time.sleep(0.1)\n"
        "threading.Thread(target=threading.Event().wait, name='ticker', daemon=True).start()\n"
    )
    (tmp_path / "flow.py").write_text(COLD.format(before="", library="ticking"))
    python = str(site / "bin" / "python")
    checked = run(tmp_path, [python, "flow.py", "--no-pylint", "check"])
    ran = run(tmp_path, [python, "flow.py", "--no-pylint", "run"])

    for done in (checked, ran):
        assert 0 == done.returncode, done.stdout + done.stderr
        assert "Tasks start cold" in done.stderr
        assert "the thread 'ticker' runs" in done.stderr
    assert "seen None" in ran.stdout


REFUSED = [
    ("import threading; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
     "runs"),
    ("import socket; PAIR = socket.socketpair()", "socket is open"),
    ("OUT = open('out.txt', 'w')", "out.txt is open"),
    ("import tempfile; T = tempfile.TemporaryDirectory()", "a finalizer"),
    ("import atexit; atexit.register(lambda: None)", "the exit function"),
    ("import random; R = random.Random()", "R (random.Random) would give all tasks the same"),
    ("import numpy; R = numpy.random.default_rng()", "R (of numpy.random) would give all tasks"),
    ("import multiprocessing; L = multiprocessing.get_context('fork').Lock()", "memory is shared"),
    ("import subprocess; S = subprocess.Popen(['sleep', '9'])", "a child process runs"),
    ("signal.setitimer(signal.ITIMER_REAL, 60)", "a timer"),
    ("import fcntl; F = open(__file__); fcntl.flock(F, fcntl.LOCK_SH)", "a lock on"),
]  # fmt: skip

SLOW_FILE = """
import random
random.seed(42)
LINES = open(__file__)
LINES.readline()
print("loaded by", os.getpid())
{line}

class Flow_(FlowSpec):
    @step
    def start(self):
        self.items = [1, 2, 3]
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.found = (LINES.readline(), random.random())
        self.next(self.join)

    @step
    def join(self, inputs):
        print("kinds", len({{each.found for each in inputs}}))
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_with_process_fork_the_file_is_run_once_and_tasks_share_neither_position_nor_seed(
    workspace: Workspace,
) -> None:
    workspace.write(SLOW_FILE.format(line=""))
    ran = workspace.run("--process", "fork")

    assert 0 == ran.code, ran.err
    assert "kinds 1" in ran.lines  # each has read the second line, and drawn the first number
    assert 1 == len({line for line in ran.lines if line.startswith("loaded by")})


@pytest.mark.parametrize(("line", "sentence"), REFUSED, ids=[each[0][:30] for each in REFUSED])
def test_with_process_fork_what_tasks_must_not_share_is_refused_with_the_reason(
    line: str, sentence: str, workspace: Workspace
) -> None:
    workspace.write(SLOW_FILE.format(line=line))
    ran = workspace.run("--process", "fork")

    assert 1 == ran.code
    assert "cannot be forked from the program (process=fork)" in ran.err
    assert sentence in ran.err


# Settings that Python and the C library read only once, at the start of a program.
READ_ONCE = {
    "TZ": "Asia/Tokyo",
    "PYTHONPATH": "extra",
    "PYTHONHASHSEED": "7",
    "PYTHONWARNINGS": "error::UserWarning",
    "LC_ALL": "POSIX",
}
SEES = """
import locale, sys, time
try:
    from beside import WHO
except ImportError:
    WHO = "nobody"

def seen():
    return repr((time.tzname, time.localtime(0).tm_hour, WHO, hash("x"), sys.warnoptions,
                 locale.setlocale(locale.LC_CTYPE)))
"""
OF_STEPS = f"""
{SEES}
VARIABLES = {READ_ONCE}

class Flow_(FlowSpec):
    @environment(vars=VARIABLES)
    @step
    def start(self):
        print("start", seen())
        self.next(self.middle)

    @environment(vars={{**VARIABLES, "OTHER": "1"}})
    @step
    async def middle(self):
        print("middle", seen(), os.environ["OTHER"])
        self.next(self.end)

    @step
    def end(self):
        print("end", WHO, time.tzname)
"""


@pytest.mark.parametrize(
    "option", [("--isolation", "task"), ("--isolation", "worker"), ("--process", "fork")]
)
def test_a_step_has_from_the_start_the_variables_that_programs_read_when_they_begin(
    workspace: Workspace, option: tuple[str, str]
) -> None:
    (workspace.path / "extra").mkdir()
    (workspace.path / "extra" / "beside.py").write_text("WHO = 'somebody'")
    plain = subprocess.run(
        [sys.executable, "-c", f"{SEES}\nprint(seen())"],
        cwd=workspace.path, env={**os.environ, **READ_ONCE}, capture_output=True, text=True,
        check=True,
    ).stdout.strip()  # fmt: skip
    workspace.write(OF_STEPS)
    ran = workspace.run(*option)

    assert 0 == ran.code, ran.err
    assert f"start {plain}" in ran.lines
    assert f"middle {plain} 1" in ran.lines
    assert f"end nobody {time.tzname}" in ran.lines


def test_variables_with_which_no_python_can_start_end_the_run_and_are_named(
    workspace: Workspace,
) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @environment(vars={"PYTHONHOME": "/nowhere", "TZ": "UTC"})
            @step
            def start(self):
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    ran = workspace.run()

    assert 1 == ran.code
    assert "the Python that was started with the step's PYTHONHOME, TZ has ended" in ran.err


def test_with_process_fork_the_traceback_of_a_step_is_its_own(workspace: Workspace) -> None:
    workspace.write(SLOW_FILE.format(line="").replace("self.items = [1, 2, 3]", "1 / 0"))
    ran = workspace.run("--process", "fork")

    assert 1 == ran.code
    assert 1 == ran.out.count("Traceback (most recent call last):")
    assert "ZeroDivisionError" in ran.out


def test_a_step_says_by_a_decorator_that_its_tasks_are_forked_from_the_program(
    workspace: Workspace,
) -> None:
    workspace.write("""
        from aflow import process

        LOADED = os.getpid()

        class Flow_(FlowSpec):
            @step
            def start(self):
                print("fresh", LOADED == os.getpid())
                self.next(self.work)

            @process("fork")
            @step
            def work(self):
                print("forked", LOADED != os.getpid())
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    ran = workspace.run()

    assert 0 == ran.code, ran.err
    assert ["fresh True", "forked True"] == [each for each in ran.lines if "True" in each]


COMMANDS = ("python", "aflow run")


@pytest.mark.parametrize("way", COMMANDS)
def test_a_task_has_imported_nothing_of_the_command_line(workspace: Workspace, way: str) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                found = {"asyncio", "click", "aflow.cli.main", "aflow.coordinator"} & {*sys.modules}
                print("imported:", sorted(found))
                status = open(f"/proc/{os.getppid()}/status").read()
                print("zygote of:", status.partition("PPid:")[2].split()[0])
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    words = ("--no-pylint", "run")
    process = (
        workspace.start(*words)
        if way == "python"
        else workspace.start_aflow("run", "flow.py", "--no-pylint")
    )
    ran = workspace.finish(process)

    assert 0 == ran.code, ran.err
    assert any("imported: []" in line for line in ran.lines), ran.out
    # From the first zygote, which has all that this file imports, however early it is asked.
    assert any(f"zygote of: {process.pid}" in line for line in ran.lines), ran.out


# What a program does before it asks for FlowSpec, and whether its own process is still as a fresh
# one then.
BEGINNINGS = {
    "'docs'\nfrom __future__ import annotations\nimport os, json as j, xml.dom\nA = 1\n": True,
    "import os\nos.environ['SET'] = 'by the program'\n": False,
    "import threading as t\nt.Thread(target=t.Event().wait, daemon=True).start()\n": False,
    "import beside\n": False,
    "import msgpack\n": False,
}


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_tasks_are_forked_from_a_process_in_which_nothing_of_the_program_has_run(
    beginning: str, workspace: Workspace
) -> None:
    (workspace.path / "beside.py").touch()
    (workspace.path / "flow.py").write_text(
        f"""{beginning}
from aflow import FlowSpec, step
class Flow_(FlowSpec):
    @step
    def start(self):
        import os
        words = open(f"/proc/{{os.getppid()}}/cmdline").read().split(chr(0))
        print("zygote:", "forked" if words[-4] == "flow.py" else "spawned")
        print("SET:", os.environ.get("SET"))
        self.next(self.end)
    @step
    def end(self):
        pass
if __name__ == "__main__":
    Flow_()
"""
    )

    ran = workspace.run()

    assert 0 == ran.code, ran.err
    assert f"zygote: {'forked' if BEGINNINGS[beginning] else 'spawned'}" in ran.lines, ran.out
    assert f"SET: {'by the program' if 'SET' in beginning else None}" in ran.lines, ran.out


def test_a_program_can_wait_for_all_that_it_has_started(workspace: Workspace) -> None:
    (workspace.path / "flow.py").write_text("""import os
from aflow import FlowSpec, step
if not os.fork():
    os._exit(0)
ended = 0
try:
    while os.wait():
        ended += 1
except ChildProcessError:
    print("ended:", ended)
class Flow_(FlowSpec):
    @step
    def start(self):
        self.next(self.end)
    @step
    def end(self):
        pass
if __name__ == "__main__":
    Flow_()
""")

    ran = workspace.run()

    assert (0, "ended: 1") == (ran.code, ran.out.splitlines()[0]), ran.err


@pytest.mark.parametrize("place", ["import helper", "from aflow import FlowSpec; import helper"])
def test_a_module_can_wait_for_all_children_whatever_command_runs_the_flow(
    workspace: Workspace, place: str
) -> None:
    (workspace.path / "helper.py").write_text("""import os, signal
def ended(wait):
    for _ in range(2):
        if not os.fork():
            os._exit(0)
    count = 0
    try:
        while True:
            count += bool(wait())
    except ChildProcessError:
        return count
WAITS = {
    "wait": os.wait,
    "waitpid": lambda: os.waitpid(-1, os.WNOHANG)[0],
    "waitid": lambda: os.waitid(os.P_ALL, 0, os.WEXITED),
    "wait3": lambda: os.wait3(options=0),
    "wait4": lambda: os.wait4(pid=-1, options=0),
}
print("ended:", {name: ended(wait) for name, wait in WAITS.items()})
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
""")
    file = workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                print("wait is", os.wait.__class__.__name__)
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    file.write_text(f"{place}\n{file.read_text()}")

    for ran in (workspace.run(), workspace.finish(workspace.start_aflow("run", "flow.py"))):
        counts = dict.fromkeys(("wait", "waitpid", "waitid", "wait3", "wait4"), 2)
        assert (0, True) == (ran.code, f"ended: {counts}" in ran.out.splitlines()), ran.err
        assert "wait is builtin_function_or_method" in ran.lines
    workspace.check()


def test_nothing_is_left_of_a_program_that_begins_no_flow_though_its_words_are_those_of_a_run(
    workspace: Workspace,
) -> None:
    file = workspace.path / "flow.py"
    file.write_text("""import os
from aflow import FlowSpec
class Held:
    def __init__(self):
        self.me, self.file = self, open("held", "w")
        self.file.write("written")
HELD = Held()
print("children:", len(open(f"/proc/self/task/{os.getpid()}/children").read().split()))
raise SystemExit(3)
""")

    ran = workspace.run()

    assert (3, "children: 1\n", "") == (ran.code, ran.out, ran.err)
    assert [] == processes_in(workspace.path)
    assert "written" == (workspace.path / "held").read_text()


def test_a_program_that_forks_before_it_calls_its_flow_runs_it_in_both_processes(
    workspace: Workspace,
) -> None:
    file = workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    fork = """\
    child = 0
    if not os.path.exists("forked"):
        open("forked", "w").close()
        child = os.fork()
    try:
        Flow_()
    finally:
        if child:
            print("code of the child:", os.waitpid(child, 0)[1])
"""
    file.write_text(file.read_text().replace("    Flow_()\n", fork))

    ran = workspace.run()

    assert 0 == ran.code, ran.err
    assert 2 == sum("Done!" in line for line in ran.out.splitlines()), ran.out
    assert "code of the child: 0" in ran.out


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_all_processes_end_with_a_command_that_is_killed_though_a_helper_lives_on(
    isolation: str, workspace: Workspace
) -> None:
    file = workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                print("waiting", flush=True)
                time.sleep(600)
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    # A process that the program has forked holds copies of all that the program has open.
    helper = """\
    if not os.fork():
        with open("helpers", "a") as file:
            file.write(f"{os.getpid()}\\n")
        os.chdir("/")
        time.sleep(600)
        os._exit(0)
"""
    file.write_text(file.read_text().replace("    Flow_()\n", helper + "    Flow_()\n"))
    process = workspace.start("--no-pylint", "run", "--isolation", isolation)
    try:
        assert process.stdout is not None
        assert any("waiting" in line for line in process.stdout)
        process.kill()
        process.wait()
        wait_until(lambda: processes_in(workspace.path) == [])
        helpers = (workspace.path / "helpers").read_text().split()
        still = [int(each) for each in helpers if Path("/proc", each).exists()]
        for each in still:
            os.kill(each, signal.SIGKILL)
        assert 1 == len(still), "that of the command; those of tasks end with their tasks"
    finally:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
