"""Options of the command line in every position, and the errors for invalid input."""

from __future__ import annotations

import json
import os

import pytest

from tests.flows.conftest import Ran, Workspace
from tests.support.waiting import wait_until

FLOW = """
class Flow_(FlowSpec):
    \"\"\"What it is for.\"\"\"

    size = Parameter("size", default=0)

    @step
    def start(self):
        \"\"\"Begins.\"\"\"
        print("x" * self.size)
        print("try", current.retry_count)
        self.next(self.a, self.b)

    @step
    def a(self):
        self.next(self.join)

    @step
    def b(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        if "fail" in current.tags and not current.retry_count:
            raise ValueError("on purpose")
"""


@pytest.fixture
def flow(workspace: Workspace) -> Workspace:
    """A workspace with a flow."""
    workspace.write(FLOW)
    return workspace


def command(workspace: Workspace, *words: str, **env: str) -> Ran:
    """Run `python flow.py WORDS`."""
    return workspace.finish(workspace.start(*words, **env))


def program(workspace: Workspace, *words: str) -> Ran:
    """Run `aflow WORDS`."""
    return workspace.finish(workspace.start_aflow(*words))


# ------------------------------------------------------------ options of every command

EVERYWHERE = (
    *("--metadata", "local", "--environment", "local", "--datastore", "local", "--no-pylint"),
    *("--event-logger", "debugLogger", "--monitor", "debugMonitor", "--mode", "spin"),
    *("--package-suffixes", ".py,.sql", "--with", "retry:times=1,seconds=0", "--not-quiet"),
)


@pytest.mark.parametrize("before", [True, False])
def test_general_options_stand_before_the_command_or_behind_it(
    flow: Workspace, before: bool
) -> None:
    words = (*EVERYWHERE, "--datastore-root", "kept/here")
    ran = command(flow, *words, "run") if before else command(flow, "run", *words)
    assert 0 == ran.code, ran.err
    assert (flow.path / "kept" / "here" / "metadata.db").exists()
    assert not (flow.path / ".aflow").exists()


@pytest.mark.parametrize("prefix", ["AFLOW", "METAFLOW"])
def test_the_datastore_may_be_named_in_the_environment(flow: Workspace, prefix: str) -> None:
    root = {f"{prefix}_DATASTORE_SYSROOT_LOCAL": str(flow.path / "other")}
    assert 0 == flow.run(**root).code
    assert (flow.path / "other" / ".aflow" / "metadata.db").exists()


def test_the_datastore_is_found_from_a_folder_below(flow: Workspace) -> None:
    assert 0 == flow.run().code
    below = Workspace(flow.path / "below")
    below.path.mkdir()
    below.write(FLOW)
    assert 0 == below.run().code
    assert not (below.path / ".aflow").exists()


@pytest.mark.parametrize("prefix", ["AFLOW", "METAFLOW"])
def test_decorators_for_every_step_may_come_from_the_environment(
    flow: Workspace, prefix: str
) -> None:
    ran = flow.run("--tag", "fail", **{f"{prefix}_DEFAULT_DECOSPECS": "retry:times=1,seconds=0"})
    assert 0 == ran.code, ran.err
    assert "Task is starting (retry)." in ran.out


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--metadata", "nothing"),
        ("--datastore", "nothing"),
        ("--environment", "nothing"),
        ("--mode", "nothing"),
        ("--event-logger", "nothing"),
        ("--monitor", "nothing"),
        ("--max-workers", "0"),
        ("--max-num-splits", "x"),
        ("--max-log-size", "-1"),
    ],
)
def test_a_value_that_an_option_has_not_is_refused(
    flow: Workspace, option: str, value: str
) -> None:
    ran = command(flow, "run", option, value)
    assert (2, "") == (ran.code, ran.out)
    assert option in ran.err
    assert not (flow.path / ".aflow").exists()


# ------------------------------------------------------------ run


@pytest.mark.parametrize(
    ("tag", "reported"),
    [("", "not empty"), ("x" * 501, "501 characters is too long"), ("\udcff", "UTF-8")],
)
def test_what_cannot_be_a_tag_is_refused_before_the_run(
    flow: Workspace, tag: str, reported: str
) -> None:
    ran = flow.run("--tag", tag)
    assert (2, "") == (ran.code, ran.out)
    assert reported in " ".join(ran.err.split())
    assert not (flow.path / ".aflow").exists()


def test_a_tag_may_be_as_long_as_500_characters(flow: Workspace) -> None:
    assert 0 == flow.run("--tag", "x" * 500).code
    listed = command(flow, "tag", "list")
    assert "x" * 500 in listed.out


def test_a_log_is_kept_up_to_its_limit(flow: Workspace) -> None:
    ran = flow.run("--size", "3000000", "--max-log-size", "1", "--run-id-file", "id")
    assert 0 == ran.code, ran.err
    run = (flow.path / "id").read_text()
    kept = command(flow, "logs", "--stdout", f"{run}/start")
    assert len(kept.out) < 1.1 * (1 << 20)
    assert "[TRUNCATED - MAXIMUM LOG FILE SIZE REACHED]" in kept.out


@pytest.mark.parametrize("namespace", ["", "team:x"])
def test_the_namespace_of_a_run_is_that_of_the_client_in_it(
    workspace: Workspace, namespace: str
) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                from aflow import get_namespace
                print("in", get_namespace(), current.namespace)
    """)
    ran = workspace.run(f"--namespace={namespace}")
    assert f"in {namespace or None} {namespace or None}" in ran.lines, ran.out


# ------------------------------------------------------------ commands that show


def test_a_flow_is_shown_in_words(flow: Workspace) -> None:
    shown = command(flow, "show")
    assert 0 == shown.code
    assert "What it is for." in shown.out
    text = " ".join(shown.out.split())
    assert "Step start Begins. => a, b" in text
    assert "Step end ?" in text


def test_a_flow_is_written_for_graphviz(flow: Workspace) -> None:
    written = command(flow, "output-dot")
    assert 0 == written.code
    assert written.out.startswith("digraph Flow_ {")
    for edge in ('"start" -> "a"', '"start" -> "b"', '"a" -> "join"', '"join" -> "end"'):
        assert edge in written.out


def test_a_flow_is_written_for_programs(flow: Workspace) -> None:
    raw = command(flow, "output-raw")
    assert "start kind=split next=a,b" in raw.out.splitlines()
    graph = json.loads(command(flow, "output-raw", "--json").out)
    assert ("Flow_", "start", "end") == (graph["flow"], graph["start"], graph["end"])
    assert ["start", "a", "b", "join", "end"] == [node["name"] for node in graph["nodes"]]


def test_help_is_a_command_and_an_option(flow: Workspace) -> None:
    reported = command(flow, "help")
    assert 0 == reported.code
    assert reported.out == command(flow, "--help").out
    for word in ("run", "resume", "spin", "logs", "tag", "card", "package", "dump"):
        assert f"\n  {word} " in reported.out
    for word in ("run", "resume", "spin", "dump", "logs", "tag", "card", "package", "check"):
        shown = command(flow, word, "--help")
        assert (0, "") == (shown.code, shown.err)
        assert "Usage: flow.py" in shown.out


def test_warnings_of_the_code_check_are_shown_if_wanted(flow: Workspace) -> None:
    assert 0 == command(flow, "check").code
    shown = command(flow, "check", "--warnings")
    assert 1 == shown.code
    assert "imported but unused" in shown.err  # the imports at the top of all flow files


# ------------------------------------------------------------ decorators


@pytest.mark.parametrize(
    ("decorator", "reported"),
    [
        ("retry(times=51)", "a whole number from 0 to 50, not 51"),
        ("retry(time=1)", "Did you mean 'times'?"),
        ("timeout", "@timeout needs a time above 0"),
        ("timeout(seconds='x')", "seconds must be a number of 0 or more, not 'x'"),
        ("environment(vars=1)", "vars must be a mapping"),
        ("resources(cpu='x')", "cpu must be a number above 0, not 'x'"),
    ],
)
def test_an_option_that_a_decorator_cannot_have_is_reported(
    flow: Workspace, decorator: str, reported: str
) -> None:
    flow.write(FLOW.replace("@step", f"@{decorator}\n    @step", 1))
    ran = flow.run()
    assert (2, "") == (ran.code, ran.out)
    assert reported in ran.err


def test_catch_does_not_stand_where_nobody_would_know_how_to_go_on(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @catch
            @step
            def start(self):
                self.xs = [1]
                self.next(self.each, foreach="xs")
            @step
            def each(self):
                self.next(self.join)
            @step
            def join(self, inputs):
                self.next(self.end)
            @step
            def end(self):
                pass
    """)
    ran = workspace.run()
    assert (1, "") == (ran.code, ran.out)
    assert "Step 'start' cannot have @catch: it is a foreach" in ran.err


def test_the_message_of_a_time_limit_names_its_parts(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @timeout(seconds=1)
            @step
            def start(self):
                signal.pause()
    """)
    ran = workspace.run()
    assert 1 == ran.code
    assert "Step 'start' timed out after 0 hours, 0 minutes, 1 seconds." in ran.err


# ------------------------------------------------------------ bad input


def test_a_flow_file_that_imports_something_absent_says_what(flow: Workspace) -> None:
    file = flow.path / "flow.py"
    file.write_text("import no_such_library_at_all\n" + file.read_text())
    ran = flow.finish(flow.start_aflow("run", "flow.py"))
    assert (2, "") == (ran.code, ran.out)
    assert "no_such_library_at_all" in ran.err
    assert "Traceback" not in ran.err


def test_a_run_of_another_flow_is_not_resumed(flow: Workspace) -> None:
    assert 0 == flow.run("--run-id-file", "id").code
    run = (flow.path / "id").read_text()
    file = flow.path / "flow.py"
    file.write_text(file.read_text().replace("Flow_", "Other"))
    ran = command(flow, "--no-pylint", "resume", "--origin-run-id", run)
    assert (2, "") == (ran.code, ran.out)
    assert f"Flow_/{run} is a run of another flow, which Other cannot resume" in ran.err


def test_a_config_that_does_not_parse_is_one_sentence(workspace: Workspace) -> None:
    workspace.write("""
        from aflow import Config

        class Flow_(FlowSpec):
            config = Config("config", default="config.json")
            @step
            def start(self):
                pass
    """)
    (workspace.path / "config.json").write_text("{nothing")
    ran = workspace.run()
    assert (2, "") == (ran.code, ran.out)
    assert "config.json" in ran.err
    assert "Traceback" not in ran.err


def test_a_mutator_that_raises_is_named_and_nothing_runs(workspace: Workspace) -> None:
    workspace.write("""
        from aflow import FlowMutator

        class Breaks(FlowMutator):
            def mutate(self, flow):
                raise ValueError("not today")

        @Breaks
        class Flow_(FlowSpec):
            @step
            def start(self):
                pass
    """)
    ran = workspace.run()
    assert 0 != ran.code
    assert "" == ran.out
    assert "Breaks" in ran.err
    assert "not today" in ran.err
    assert not (workspace.path / ".aflow").exists()


def test_a_task_that_takes_long_is_seen_to_run(workspace: Workspace) -> None:
    workspace.write(
        """
        class Flow_(FlowSpec):
            @step
            def start(self):
                with open("gate") as gate:  # opens when the test has seen enough
                    gate.read()
                self.next(self.end)

            @step
            def end(self):
                pass
        """
    )
    os.mkfifo(workspace.path / "gate")
    process = workspace.start("--no-pylint", "run")
    for line in process.stdout or ():
        if "Task is starting." in line:
            break
    running = sight_of(workspace, "start 1 running")
    with (workspace.path / "gate").open("w"):
        pass
    ran = workspace.finish(process)
    assert (0, True) == (ran.code, running), ran.err


def sight_of(workspace: Workspace, text: str) -> bool:
    """Return whether `aflow status` eventually shows this."""
    return wait_until(lambda: text in program(workspace, "status").out)


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        ("run --help", "aflow run FLOW.PY [OPTIONS]"),
        ("resume -h", "aflow resume FLOW.PY [OPTIONS] [STEP_TO_RERUN]"),
        ("tag add --help", "aflow tag add FLOW.PY [OPTIONS] TAGS..."),
        ("step-functions create --help", "aflow step-functions create FLOW.PY [OPTIONS]"),
        ("dump --help", "aflow dump [OPTIONS] PATHSPEC"),
        ("gc -h", "aflow gc [OPTIONS]"),
    ],
)
def test_a_command_has_help_without_a_flow(workspace: Workspace, words: str, usage: str) -> None:
    ran = program(workspace, *words.split())

    assert (0, "") == (ran.code, ran.err)
    assert f"Usage: {usage}" == ran.out.splitlines()[0]
