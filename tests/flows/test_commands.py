"""The command line in real processes: exit codes, stdout and stderr."""

from __future__ import annotations

import json
import os
import pickle
import re
import select
import signal
import subprocess
import sys

import pytest

from aflow._core.ids import MAX_TAGS
from aflow.scheduler.states import RunState
from tests.flows.conftest import Ran, Workspace

FLOW = """
class Flow_(FlowSpec):
    alpha = Parameter("alpha", help="Learning rate", default=0.01)

    @step
    def start(self):
        print(f"alpha is {self.alpha}")
        print("to stderr", file=sys.stderr)
        self._hidden = 1
        self.names = ["a", "b"]
        self.big = "x" * 5000
        self.next(self.each, foreach="names")

    @step
    def each(self):
        print("    each", self.input)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.merge_artifacts(inputs)
        self.next(self.end)

    @step
    def end(self):
        pass
"""

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} "


def aflow(workspace: Workspace, *words: str, **env: str) -> Ran:
    """Run `aflow WORDS` in the workspace."""
    return workspace.finish(
        subprocess.Popen(
            [sys.executable, "-m", "aflow", *words],
            cwd=workspace.path,
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
        )
    )


def script(workspace: Workspace, *words: str, **env: str) -> Ran:
    """Run `python flow.py WORDS` in the workspace."""
    return workspace.finish(workspace.start(*words, **env))


def run_id(ran: Ran) -> str:
    found = re.search(r"\(run-id (\d+)\)", ran.out)
    assert found, ran.out + ran.err
    return found[1]


@pytest.fixture
def flow(workspace: Workspace) -> Workspace:
    """A workspace with a flow in flow.py."""
    workspace.write(FLOW)
    return workspace


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, str]:
    """The workspace after a run, and the run's id, for tests that only read it."""
    workspace = Workspace(tmp_path_factory.mktemp("ran"))
    workspace.write(FLOW)
    return workspace, run_id(workspace.run())


# ------------------------------------------------------------ run


def test_the_log_is_on_stdout_and_all_else_on_stderr(flow: Workspace) -> None:
    ran = script(flow, "run")

    assert 0 == ran.code
    assert [
        "aflow 0.2.0 executing Flow_ for user:tester",
        f"Creating local datastore in current directory ({flow.path / '.aflow'})",
        "Validating your flow...",
        "    The graph looks good!",
    ] == ran.err.splitlines()[:4]
    lines = ran.out.splitlines()
    assert [] == [line for line in lines if not re.match(STAMP, line)]
    assert re.search(STAMP + r"Workflow starting \(run-id \d{16}\):$", lines[0])
    assert re.search(r"/start/1 \(pid \d+\)\] Task is starting\.$", lines[1])
    assert re.search(STAMP + r"Done!$", lines[-1])
    assert any(line.endswith("]     each a") for line in lines)
    assert any(line.endswith("] Foreach yields 2 child steps.") for line in lines)


def test_the_datastore_is_created_only_once(flow: Workspace) -> None:
    flow.run()

    assert "Creating" not in flow.run().err
    assert "\n*\n!config.json\n" in (flow.path / ".aflow" / ".gitignore").read_text()
    elsewhere = flow.finish(flow.start("--datastore-root", "other/place", "run"))
    assert f"Creating local datastore ({flow.path / 'other/place'})\n" in elsewhere.err
    assert not (flow.path / "other/place/.gitignore").exists()


def test_quiet_leaves_the_log_alone(flow: Workspace) -> None:
    ran = script(flow, "--quiet", "run")

    assert "" == ran.err
    assert "alpha is 0.01" in ran.out


@pytest.mark.parametrize(
    "words",
    [
        ["run", "flow.py", "--alpha", "0.5", "--quiet"],
        ["run", "--alpha", "0.5", "flow.py:Flow_", "--quiet"],
        ["--quiet", "run", "flow.py", "--alpha=0.5"],
        ["flow.py", "--quiet", "run", "--alpha", "0.5"],
    ],
)
def test_the_program_runs_a_flow_with_options_in_any_place(
    flow: Workspace, words: list[str]
) -> None:
    ran = aflow(flow, *words)

    assert (0, "") == (ran.code, ran.err)
    assert "alpha is 0.5" in ran.lines


@pytest.mark.parametrize("prefix", ["AFLOW", "METAFLOW"])
def test_a_parameter_may_come_from_the_environment(flow: Workspace, prefix: str) -> None:
    assert "alpha is 0.25" in flow.run(**{f"{prefix}_RUN_ALPHA": "0.25"}).lines


def test_tags_and_limits_are_recorded_with_the_run(flow: Workspace) -> None:
    flow.run("--tag", "a", "--tag", "ü", "--tag", "a", "--max-workers", "3")
    metadata = flow.metadata
    run = metadata.runs("Flow_")[0]
    metadata.close()

    assert {"a", "ü"} == set(run.tags)
    assert 3 == run.settings["max_workers"]


def test_limits_come_from_the_environment_too(flow: Workspace) -> None:
    ran = flow.run(METAFLOW_RUN_MAX_NUM_SPLITS="1")

    assert 1 == ran.code
    assert "--max-num-splits" in ran.err


def test_too_many_tags_are_a_usage_error(flow: Workspace) -> None:
    words = [word for number in range(MAX_TAGS + 1) for word in ("--tag", str(number))]
    ran = flow.run(*words)

    assert 2 == ran.code
    assert f"at most {MAX_TAGS} tags" in ran.err
    assert "Workflow starting" not in ran.out


def test_files_for_other_programs_are_written(flow: Workspace) -> None:
    ran = flow.run("--run-id-file", "id.txt", "--runner-attribute-file", "run.json")
    facts = json.loads((flow.path / "run.json").read_text())

    assert run_id(ran) == (flow.path / "id.txt").read_text() == facts["run_id"]
    assert "Flow_" == facts["flow_name"]


def test_a_file_in_a_folder_that_is_not_there_is_refused_before_the_run(flow: Workspace) -> None:
    ran = flow.run("--run-id-file", "nowhere/id.txt")

    assert (2, "") == (ran.code, ran.out)
    assert "There is no folder nowhere" in ran.err


def test_a_file_that_cannot_be_written_ends_the_run_of_which_nobody_would_know(
    flow: Workspace,
) -> None:
    ran = flow.run("--runner-attribute-file", "/dev/full")

    assert 1 == ran.code
    assert "/dev/full cannot be written: No space left on device." in ran.err
    assert RunState.CANCELLED is flow.latest()[0]


def test_a_decorator_from_the_command_line_is_on_every_step(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                print("try", current.retry_count)
                if not current.retry_count:
                    raise ValueError("not yet")
    """)
    ran = workspace.run("--with", "retry:times=1,seconds=0")

    assert 0 == ran.code
    assert ["try 0", "try 1"] == [line for line in ran.lines if line.startswith("try")]
    assert "Task is starting (retry)." in ran.lines


def test_a_decorator_that_is_not_known_is_a_usage_error(flow: Workspace) -> None:
    ran = flow.run("--with", "rtry")

    assert 2 == ran.code
    assert "Did you mean 'retry'?" in ran.err


def test_a_failed_run_ends_with_its_step_and_exit_code_1(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                raise ValueError("no such luck")
    """)
    ran = workspace.run()

    assert 1 == ran.code
    assert "Workflow failed." in ran.out
    assert "    Step failure:\n    Step start (task-id 1) failed" in ran.err
    assert "no such luck" in ran.err


def test_a_step_can_look_at_its_own_run_in_any_namespace(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                print(current.run.pathspec == f"Flow_/{current.run_id}", current.task.id)
    """)
    ran = workspace.run("--namespace", "team:other")

    assert (0, ["True 1"]) == (ran.code, [line for line in ran.lines if line.startswith("True")])


SLOW = """
class Flow_(FlowSpec):
    @step
    def start(self):
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_signal_stops_the_run_in_order(
    workspace: Workspace, signum: signal.Signals, code: int
) -> None:
    workspace.write(SLOW)
    process = workspace.start("--no-pylint", "run")
    assert process.stdout is not None
    before = ""
    while "ready" not in before:
        before = process.stdout.readline()
        assert before, "the run ended before its step began"
    process.send_signal(signum)
    ran = workspace.finish(process)

    assert code == ran.code
    assert "Workflow interrupted." in ran.out
    workspace.check()


def test_a_reader_that_goes_away_does_not_stop_the_run(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                for number in range(20_000):
                    print("line", number)
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    with workspace.start("--no-pylint", "run") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()

    assert 0 == process.returncode, err
    assert "rror" not in err
    assert "succeeded" == workspace.latest()[0]


def test_an_undefined_name_is_found_before_the_run(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                print(no_such_name)
    """)
    ran = script(workspace, "run")

    assert (1, "") == (ran.code, ran.out)
    assert "Ruff is not happy" in ran.err
    assert "no_such_name" in ran.err
    assert not (workspace.path / ".ruff_cache").exists()


def test_a_graph_that_is_wrong_does_not_run(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.next(self.middle)

            @step
            def end(self):
                pass
    """)
    ran = workspace.run()

    assert (1, "") == (ran.code, ran.out)
    assert "Validity checker found" in ran.err
    assert re.search(r"flow\.py, line \d+", ran.err)
    assert not (workspace.path / ".aflow").exists()


def test_bars_are_drawn_on_a_terminal_and_the_log_is_whole(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.xs = ["a", "b"]
                self.next(self.each, foreach="xs")

            @step
            def each(self):
                print("    each", self.input)
                self.next(self.join)

            @step
            def join(self, inputs):
                open("seen").read()  # until the bars before this step were seen
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    os.mkfifo(workspace.path / "seen")
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "flow.py", "--no-pylint", "run"],
        cwd=workspace.path,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    shown, goes_on = b"", False
    try:
        while select.select([ours], [], [], 60)[0]:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # EIO: Linux's error if the other end of a terminal is closed
                break
            if not goes_on and re.search(rb"each\b.*2/2", shown):
                (workspace.path / "seen").write_text("")
                goes_on = True
    finally:
        os.close(ours)
        if not goes_on:
            process.kill()

    assert goes_on, shown
    assert 0 == process.wait()
    assert b"\x1b[35m" in shown
    assert b"    each a" in shown


# ------------------------------------------------------------ dump


def test_dump_shows_the_public_artifacts_of_a_step(ran: tuple[Workspace, str]) -> None:
    flow, run = ran
    dumped = script(flow, "dump", f"{run}/start")

    assert 0 == dumped.code
    names = [line.split(" ")[0] for line in dumped.out.splitlines()]
    assert names == sorted(names)
    assert {"big", "names"} <= set(names)
    assert "_hidden" not in names
    assert re.search(r"^names \[size: \d+ type: .*list.*\] = \['a', 'b'\]$", dumped.out, re.M)
    assert re.search(r"^big \[size: \d+ type: .*\] < artifact too large >$", dumped.out, re.M)


def test_dump_shows_private_artifacts_if_asked_for(ran: tuple[Workspace, str]) -> None:
    flow, run = ran

    assert "_hidden [" in script(flow, "dump", "--private", f"{run}/start").out


def test_dump_can_be_narrowed_to_names(ran: tuple[Workspace, str]) -> None:
    flow, run = ran
    words = ("--include", "names,alpha", "--max-value-size", "0", f"{run}/start/1")

    assert ["alpha", "names"] == script(flow, "dump", *words).out.splitlines()


def test_dump_writes_all_values_to_a_file(ran: tuple[Workspace, str]) -> None:
    flow, run = ran
    dumped = script(flow, "dump", "--include", "names", "--file", "out.pickle", f"{run}/each")
    values = pickle.loads((flow.path / "out.pickle").read_bytes())

    assert (0, "") == (dumped.code, dumped.out)
    expected = {f"{run}/each/{task}": {"names": ["a", "b"]} for task in (2, 3)}
    assert list(expected.items()) == list(values.items())


def test_dump_needs_no_file_where_the_flow_is_named(ran: tuple[Workspace, str]) -> None:
    flow, run = ran

    assert "names [" in aflow(flow, "dump", f"Flow_/{run}/start").out
    assert "names [" in aflow(flow, "dump", "flow.py", f"Flow_/{run}/start").out


# ------------------------------------------------------------ logs


def test_logs_show_what_was_printed_byte_for_byte(ran: tuple[Workspace, str]) -> None:
    flow, run = ran

    assert "    each a\n    each b\n" == script(flow, "logs", f"{run}/each").out
    assert "    each a\n" == script(flow, "logs", "show", f"{run}/each/2").out


@pytest.mark.parametrize(
    ("stream", "lines"),
    [
        ("--stdout", ["alpha is 0.01"]),
        ("--stderr", ["to stderr"]),
        ("--both", ["alpha is 0.01", "to stderr"]),
    ],
)
def test_logs_of_one_stream_or_both(
    ran: tuple[Workspace, str], stream: str, lines: list[str]
) -> None:
    flow, run = ran

    assert lines == sorted(script(flow, "logs", stream, f"{run}/start").out.splitlines())


def test_logs_carry_their_times_if_asked_for(ran: tuple[Workspace, str]) -> None:
    flow, run = ran
    out = aflow(flow, "logs", "--timestamps", f"Flow_/{run}/each").out

    assert [] == [
        line for line in out.splitlines() if not re.match(STAMP + r"    each [ab]$", line)
    ]


def test_logs_of_an_earlier_attempt_are_kept(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @retry(times=1, seconds=0)
            @step
            def start(self):
                print("this is attempt", current.retry_count)
                if not current.retry_count:
                    raise ValueError("not yet")
    """)
    path = f"{run_id(workspace.run())}/start/1"

    assert "this is attempt 1\n" == script(workspace, "logs", "--stdout", path).out
    assert "this is attempt 0" in script(workspace, "logs", "--attempt", "0", path).out


# ------------------------------------------------------------ missing things


@pytest.mark.parametrize("command", ["dump", "logs"])
@pytest.mark.parametrize(
    ("path", "code"), [("77/start", 1), ("../etc/x", 2), ("77/start/one", 2), ("1/a/2/x/y", 2)]
)
def test_what_is_not_there_is_one_sentence(
    ran: tuple[Workspace, str], command: str, path: str, code: int
) -> None:
    flow, _ = ran
    shown = script(flow, command, path)

    assert (code, "") == (shown.code, shown.out)
    assert "Traceback" not in shown.err
    assert "unexpectedly" not in shown.err


@pytest.mark.parametrize("command", ["dump", "logs"])
def test_where_nothing_has_run_there_is_nothing_to_show(flow: Workspace, command: str) -> None:
    ran = script(flow, command, "77/start")

    assert (1, "") == (ran.code, ran.out)
    assert "unexpectedly" not in ran.err
    assert not (flow.path / ".aflow").exists()


# ------------------------------------------------------------ the rest


def test_status_tells_the_latest_run_of_each_flow(ran: tuple[Workspace, str]) -> None:
    flow, run = ran
    lines = aflow(flow, "status").out.splitlines()

    assert f"Datastore: {flow.path / '.aflow'}" == lines[0]
    assert ["FLOW", "LATEST", "RUN"] == lines[2].split()[:3]
    assert ["Flow_", run, "succeeded"] == lines[3].split()[:3]


def test_status_of_an_empty_folder_creates_nothing(workspace: Workspace) -> None:
    ran = aflow(workspace, "status")

    assert 0 == ran.code
    assert ran.out.startswith("Nothing has run here yet")
    assert [] == list(workspace.path.iterdir())


def test_a_flow_file_may_have_any_name(flow: Workspace) -> None:
    (flow.path / "flow.py").rename(flow.path / "train")

    by_name = aflow(flow, "run", "--alpha", "0.25", "train")
    assert "alpha is 0.25" in by_name.out, by_name.err
    assert 0 == by_name.code
    assert "alpha is 0.01" in aflow(flow, "./train:Flow_", "run").out
    again = aflow(flow, "resume", "train", "join")
    assert "Cloning previously run task" in again.out, again.err
    assert "alpha is 0.25" in aflow(flow, "logs", "train", f"{run_id(by_name)}/start").out


@pytest.mark.parametrize("words", [["version"], ["--version"]])
def test_the_version_is_reported(workspace: Workspace, words: list[str]) -> None:
    assert (0, "aflow 0.2.0\n") == (aflow(workspace, *words).code, aflow(workspace, *words).out)


@pytest.mark.parametrize("words", [[], ["help"], ["--help"]])
def test_help_is_given_without_a_flow(workspace: Workspace, words: list[str]) -> None:
    ran = aflow(workspace, *words)

    assert 0 == ran.code
    assert "aflow run flow.py --alpha 0.5" in ran.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "No flow is given. Write: aflow run flow.py"),
        (["rnu", "flow.py"], "No such command 'rnu'"),
        (["rnu"], "There is no command 'rnu'"),
        (["run", "nothing.py"], "There is no file nothing.py"),
        (["run", "nothing"], "There is no flow file 'nothing'. Write: aflow run flow.py"),
        (["run", "."], "There is no flow file '.'. Write: aflow run flow.py"),
        (["tag", "add", "x"], "There is no flow file 'x'. Write: aflow tag add flow.py"),
        (["run", "flow.py:Other"], "holds no flow 'Other'"),
        (["run", "flow.py", "--beta", "1"], "No such option"),
        (["status", "now"], "unexpected extra argument (now)"),
        (["runs", "\udcff"], r"'\udcff' cannot be the name of a flow"),
        (["gc", "--flow", "\udcff"], r"'\udcff' cannot be the name of a flow"),
        (["gc", "--run", "Flow_/\udcff"], r"'\udcff' cannot be the name of a run"),
        (["resume", "flow.py", "--origin-run-id", "\udcff"], "cannot be the name of a run"),
    ],
)
def test_what_cannot_be_used_is_exit_code_2(
    flow: Workspace, words: list[str], message: str
) -> None:
    ran = aflow(flow, *words)

    assert (2, "") == (ran.code, ran.out)
    assert message in ran.err


def test_help_of_a_flow_shows_its_parameters(flow: Workspace) -> None:
    assert "--alpha FLOAT" in aflow(flow, "run", "flow.py", "--help").out


def test_a_script_without_a_command_is_checked(flow: Workspace) -> None:
    ran = script(flow)

    assert (0, "") == (ran.code, ran.out)
    assert "The graph looks good!" in ran.err


def test_a_bad_setting_names_itself(flow: Workspace) -> None:
    ran = flow.run(METAFLOW_DEFAULT_DATASTORE="azure")

    assert 2 == ran.code
    assert "METAFLOW_DEFAULT_DATASTORE in the environment is 'azure'; allowed: local" in ran.err


def test_pickles_made_by_a_flow_that_the_program_runs_are_those_of_the_script(
    workspace: Workspace,
) -> None:
    workspace.write("""
        class Point:
            pass

        class Flow_(FlowSpec):
            @step
            def start(self):
                self.point = Point()
                self.next(self.end)

            @step
            def end(self):
                print(type(self.point).__module__)
    """)

    assert "__main__" in aflow(workspace, "run", "flow.py").lines
