"""Conventions that hold in every file of the repository."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.architecture.sources import (
    dotted,
    nodes_of,
    python_files,
    text_of,
    tracked,
    tree_of,
    uses,
    violations,
)
from tests.support.budget import over_budget

AFLOW = python_files("aflow")
TESTS = python_files("tests")

CLOCKS = {
    f"time.{name}{unit}"
    for name in ("time", "monotonic", "perf_counter", "process_time")
    for unit in ("", "_ns")
} | {
    f"datetime.{name}"
    for name in ("datetime.now", "datetime.utcnow", "datetime.today", "date.today")
}
ENVIRONMENT = {"os.environ", "os.getenv", "os.environb", "os.putenv", "os.unsetenv"}

# Modules whose imports inside functions have one reason. Any other such import has its reason in a
# comment beside it.
MAY_IMPORT_LATE = {
    "aflow/__init__.py": "`import aflow` is light: what it offers is imported when it is used",
    "aflow/__main__.py": "the process to fork tasks from starts before anything else is imported",
    "aflow/cli/prefork.py": "what two processes need is imported before the one forks the other",
    "aflow/cli/main.py": "a command imports what it needs itself",
    "aflow/cli/flow_commands.py": "a command imports what it needs itself",
    "aflow/cli/loading.py": "completion and help look at files without knowing flows",
    "aflow/cli/session.py": "commands about runs define no flow",
    "aflow/cli/run.py": "the first task waits for all that is imported before it",
    "aflow/cli/foreground.py": "the first task waits for all that is imported before it",
    "aflow/cli/plain.py": "the first task waits for all that is imported before it",
    "aflow/cli/options.py": "most commands have no flow, and so no options of one",
    "aflow/cli/batch.py": "its help is shown without the extra aws",
    "aflow/cli/configure.py": "it works without the extra aws",
    "aflow/cli/kubernetes.py": "its help is shown without the extra kubernetes",
    "aflow/cli/step_functions.py": "its help is shown without the extra aws",
    "aflow/cli/server.py": "its help is shown without the extra server",
    "aflow/cli/metadata_service.py": "its help is shown without the extra server",
    "aflow/cli/worker.py": "a worker that is not a cluster's starts without what keeps clusters",
    "aflow/cli/doctor/checks.py": "it names the extras that are missing, and so works without them",
    "aflow/cli/doctor/probes.py": "it names the extras that are missing, and so works without them",
    "aflow/step_functions/unrecorded.py": "a job's end is looked at without the extra aws",
}
MOST_LATE_IMPORTS = 1.4  # of our own modules, per 1,000 lines

# What runs in a job before there is aflow has the standard library alone.
BEFORE_AFLOW = (Path("aflow/environments/boot.py"), Path("aflow/environments/install.py"))

# Files that may name os.environ beside config.py, each with its reason.
MAY_TOUCH_THE_ENVIRONMENT = {
    Path("aflow/_core/settings.py"): "it is the one that reads settings",
    Path("aflow/task/environment.py"): "@environment and @secrets set variables for a step",
    Path("aflow/task/secrets.py"): "@secrets refuses to hide a variable that is there",
    Path("aflow/executors/local/zygote.py"): "a zygote has the variables of the steps it is for",
    Path("aflow/executors/local/child.py"): "PYTHONBREAKPOINT is Python's own",
    Path("aflow/testing/chaos.py"): "processes that it starts inherit what it sets",
    **dict.fromkeys(BEFORE_AFLOW, "there is no aflow yet in the job"),
    Path("aflow/_core/private_folders.py"): "XDG_RUNTIME_DIR is the session's",
    Path(
        "aflow/executors/local/child_task.py"
    ): "a task has the variables of its step from the start",
    Path("aflow/executors/local/preload.py"): "it compares what imports could read",
    Path(
        "aflow/executors/local/surroundings.py"
    ): "a process of many tasks puts back what a task changed",
}


def test_only_the_clock_module_reads_a_clock() -> None:
    def clocks(path: Path) -> list[tuple[int, str]]:
        return [(line, name) for line, name in uses(path) if name in CLOCKS]

    found = violations(AFLOW, clocks)

    assert found.pop("aflow/_core/clock.py", None), "clock.py reads no clock any more"
    for path in BEFORE_AFLOW:
        assert found.pop(str(path), None), f"{path} reads no clock any more"
    assert {} == found


def environment_in(path: Path) -> list[tuple[int, str]]:
    """Return the lines in which a file uses the environment."""
    return [
        (line, name) for line, name in uses(path) if ".".join(name.split(".")[:2]) in ENVIRONMENT
    ]


def test_only_the_settings_read_the_environment() -> None:
    others = [path for path in AFLOW if path not in MAY_TOUCH_THE_ENVIRONMENT]

    assert {} == violations(others, environment_in)


def test_every_exception_for_the_environment_is_needed() -> None:
    assert set(MAY_TOUCH_THE_ENVIRONMENT) <= set(AFLOW)
    assert (
        set(map(str, MAY_TOUCH_THE_ENVIRONMENT))
        == violations(MAY_TOUCH_THE_ENVIRONMENT, environment_in).keys()
    )


# What is not on every Unix system, as it stands in programs.
OF_LINUX = (
    "pidfd", "SEQPACKET", '"/proc', "'/proc", "prctl", "memfd", "waitid", "sched_getaffinity",
    "posix_fa", "epoll", "signalfd", "eventfd", "inotify", "ru_maxrss", "sys.platform ==",
)  # fmt: skip
MAY_BE_OF_LINUX = {
    Path("aflow/_core/system.py"): "it has something else for other systems",
    Path("aflow/executors/local/probe.py"): "it is about /proc, and says no where there is none",
    Path("aflow/testing/chaos.py"): "a tool for Linux alone",
}


def test_one_module_chooses_what_stands_for_what_linux_alone_has() -> None:
    def of_linux(path: Path) -> list[str]:
        return [name for name in OF_LINUX if name in text_of(path)]

    found = violations(AFLOW, of_linux)

    assert {str(path) for path in MAY_BE_OF_LINUX} == found.keys(), found


def test_no_test_sleeps() -> None:
    def sleeps(path: Path) -> list[tuple[int, str]]:
        return [
            (node.lineno, ast.unparse(node))
            for node in nodes_of(path)
            if isinstance(node, ast.Call)
            and dotted(node.func).rpartition(".")[2] == "sleep"
            and not (
                node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            )
        ]

    # Flows that have to take long, so that something can happen to them, may sleep; so may the
    # generators of load, whose pace is what they are for.
    tests = [
        each
        for each in TESTS
        if each.parent.name != "flow_files"
        and not each.name.startswith("flow_of_")
        and each != Path("tests/server/load.py")
    ]
    assert {} == violations(tests, sleeps)


def test_tests_that_take_longer_than_their_budget_are_named_with_what_took_the_time() -> None:
    def took(name: str, **phases: float) -> list[pytest.TestReport]:
        return [
            pytest.TestReport(name, ("", None, ""), {}, "passed", None, when, duration=seconds)  # type: ignore[arg-type]
            for when, seconds in phases.items()
        ]

    reports = [
        *took("tests/a.py::test_quick", setup=0.1, call=59.7),
        *took("tests/a.py::test_slow[x]", setup=0.1, call=61.2),
        *took("tests/b.py::test_of_a_server@servers", setup=50.0, call=12.0, teardown=3.0),
    ]

    assert [
        "65 s (setup 50, call 12, teardown 3)  tests/b.py::test_of_a_server",
        "61 s (call 61)  tests/a.py::test_slow[x]",
    ] == over_budget(reports, 60.0)


def test_no_test_mocks() -> None:
    def mocks(path: Path) -> list[tuple[int, str]]:
        return [(line, name) for line, name in uses(path) if name.startswith("unittest.mock")]

    assert {} == violations(TESTS, mocks)


def test_every_test_asserts_something() -> None:
    def silent(path: Path) -> list[str]:
        return [
            node.name
            for node in nodes_of(path)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name.startswith("test_")
            and not any(asserts(each) for each in ast.walk(node))
        ]

    assert {} == violations(TESTS, silent)


def asserts(node: ast.AST) -> bool:
    """Return whether this node can fail a test: an assert, `pytest.raises`, a `check_...` call."""
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    called = dotted(node.func) or ast.unparse(node.func)
    last = called.rpartition(".")[2]
    return called in {"pytest.raises", "pytest.warns", "pytest.fail"} or last.startswith(
        ("assert_", "check", "expect_", "run_state_machine_as_test")
    )


def test_nothing_is_left_for_later() -> None:
    marker = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)) + r")\b")
    files = tracked(".py", ".sql", ".lua", ".toml", ".md", "scripts/test", ".ci/run")

    assert {} == violations(
        files, lambda path: [line for line in text_of(path).splitlines() if marker.search(line)]
    )


# The two packages that users import from: their __init__.py is a door, all others are a docstring.
DOORS = {Path("aflow/__init__.py"), Path("aflow/client/__init__.py")}
PACKAGES = [path for path in AFLOW if path.name == "__init__.py" and path not in DOORS]


def test_the_init_file_of_a_package_says_what_it_is_and_does_nothing() -> None:
    """It may define the public names and their lazy import. It executes no other statement."""

    def statements(path: Path) -> list[tuple[int, str]]:
        kinds = (ast.Expr, ast.ImportFrom, ast.Assign, ast.FunctionDef)
        return [
            (node.lineno, ast.unparse(node)[:80])
            for node in tree_of(path).body
            if not (
                isinstance(node, kinds)
                or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
            )
            or (isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant))
        ]

    assert PACKAGES
    assert [] == [path for path in PACKAGES if not ast.get_docstring(tree_of(path))]
    assert {} == violations(PACKAGES, statements)


def test_wide_records_are_made_with_the_names_of_their_fields() -> None:
    """More than five positional values are hard to read and to review."""

    def is_record(node: ast.ClassDef) -> bool:
        return any("NamedTuple" in ast.unparse(base) for base in node.bases) or any(
            "dataclass" in ast.unparse(each) for each in node.decorator_list
        )

    records = {
        node.name
        for path in AFLOW
        for node in nodes_of(path)
        if isinstance(node, ast.ClassDef) and is_record(node)
    } - {"Signs"}  # the characters of a bar, in their order

    def made(path: Path) -> list[tuple[int, str]]:
        return [
            (node.lineno, ast.unparse(node.func))
            for node in nodes_of(path)
            if isinstance(node, ast.Call)
            and len([each for each in node.args if not isinstance(each, ast.Starred)]) > 5
            and ast.unparse(node.func).rpartition(".")[2] in records
        ]

    assert {"RunContext", "AttemptRecord", "RunOptions"} <= records
    assert {} == violations(AFLOW, made)


def test_every_module_says_what_it_is() -> None:
    assert [] == [path for path in AFLOW if not ast.get_docstring(tree_of(path))]


def test_no_exception_is_swallowed_without_a_word() -> None:
    def silent(path: Path) -> list[tuple[int, str]]:
        lines = text_of(path).splitlines()
        return [
            (node.lineno, ast.unparse(node))
            for node in nodes_of(path)
            if isinstance(node, ast.ExceptHandler)
            and all(isinstance(each, ast.Pass) for each in node.body)
            and "#" not in "".join(lines[node.lineno - 1 : node.end_lineno])
        ]

    assert {} == violations(AFLOW, silent)


def test_an_import_inside_a_function_has_its_reason() -> None:
    counted = 0

    def without_reason(path: Path) -> list[tuple[int, str]]:
        nonlocal counted
        lines = text_of(path).splitlines()
        late = {
            node.lineno: node
            for function in nodes_of(path)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
            and (getattr(node, "module", None) or node.names[0].name).startswith("aflow")
        }
        counted += len(late)
        if str(path) in MAY_IMPORT_LATE:
            return []

        def has_reason(line: int) -> bool:
            before = lines[line - 2].strip()
            return (
                any("#" in each for each in lines[line - 1 : late[line].end_lineno])
                or before.startswith("#")
                or (
                    before.startswith(("from ", "import "))
                    and line - 1 in late
                    and has_reason(line - 1)
                )
            )

        return [(line, ast.unparse(late[line])) for line in sorted(late) if not has_reason(line)]

    assert {} == violations(AFLOW, without_reason)
    size = sum(len(text_of(path).splitlines()) for path in AFLOW)
    assert 1000 * counted / size < MOST_LATE_IMPORTS
