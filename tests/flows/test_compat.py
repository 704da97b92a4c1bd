"""Flow files that use `import metaflow` run on aflow: without Metaflow, or with --compat."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from aflow import client
from aflow.compat import metaflow
from tests.flows.conftest import Ran, Workspace

IS_THERE = (
    util.find_spec("metaflow") is not None
)  # asked before aflow stands for it in this process

THEIRS = """
from metaflow import (
    Config, FlowSpec, IncludeFile, JSONType, Parameter, S3 as _S3, batch, card, catch, conda,
    conda_base, config_expr, current, environment, kubernetes, parallel_map, profile, project, pypi,
    resources, retry, schedule, secrets, step, timeout, trigger, trigger_on_finish,
)
from metaflow.exception import MetaflowException, MetaflowNotFound
from metaflow.metaflow_config import DEFAULT_DATASTORE, SOMETHING_ELSE
from metaflow.util import get_username
import metaflow
import metaflow.client.core


class MyError(MetaflowException):
    headline = "Mine"

    def __init__(self, msg, lineno=None):
        super().__init__(msg, lineno)


@project(name="theirs")
class TheirFlow(FlowSpec):
    alpha = Parameter("alpha", default=0.5, type=float)
    data = Parameter("data", default='{"a": 1}', type=JSONType)

    @retry(times=1)
    @step
    def start(self):
        self.xs = [1, 2, 3]
        self.next(self.work, foreach="xs")

    @catch(var="broken")
    @step
    def work(self):
        with profile("work"):
            self.y = parallel_map(lambda x: x * self.alpha, [self.input])
        if self.input == 2:
            raise MyError("not this one", 3)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.broken = [str(each.broken.exception) for each in inputs if each.broken]
        self.user = get_username()
        self.next(self.end)

    @step
    def end(self):
        self.settings = DEFAULT_DATASTORE, SOMETHING_ELSE, current.project_name
        try:
            metaflow.Flow("NoSuchFlow")
        except MetaflowNotFound:
            self.found = False


if __name__ == "__main__":
    TheirFlow()
"""


def program(workspace: Workspace, *words: str, **env: str) -> Ran:
    """Run `python -m aflow WORDS`."""
    done = subprocess.run(
        [sys.executable, "-m", "aflow", *words],
        cwd=workspace.path,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=100,  # below the two minutes that @retry waits by default
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def write(workspace: Workspace, leave_out: str = " S3 as _S3, card,") -> None:
    """Write the file of Metaflow, without names that need the cloud."""
    source = THEIRS
    for word in leave_out.split(","):
        source = source.replace(f"{word},", "") if word.strip() else source
    (workspace.path / "theirs.py").write_text(source)


@pytest.mark.parametrize(
    "words",
    [("run", "theirs.py"), ("theirs.py", "run"), ("run", "--compat", "theirs.py")],
    ids=" ".join,
)
def test_a_file_that_imports_metaflow_runs(workspace: Workspace, words: tuple[str, ...]) -> None:
    if "--compat" not in words and IS_THERE:
        pytest.skip("Metaflow itself is installed here: only --compat can stand for it")
    write(workspace)
    ran = program(workspace, *words)
    assert 0 == ran.code, ran.err
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    run = client.Flow("TheirFlow").latest_run
    assert run is not None
    assert ["not this one"] == run.data.broken
    assert ("local", None, "theirs") == run.data.settings
    assert run.data.found is False
    workspace.check()


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("from metaflow import FlowSpec, airflow_s3_key_sensor", "airflow_s3_key_sensor"),
        ("from metaflow.integrations import ArgoEvent", "metaflow.integrations"),
    ],
)
def test_a_name_that_aflow_has_not_is_reported(workspace: Workspace, line: str, named: str) -> None:
    (workspace.path / "theirs.py").write_text(f"import sys\n{line}\n")
    ran = program(workspace, "run", "--compat", "theirs.py")
    assert 2 == ran.code
    assert "theirs.py, line 2" in ran.err
    assert named in ran.err
    assert "Install it" not in ran.err


def test_processes_that_a_flow_starts_stand_for_metaflow_too(workspace: Workspace) -> None:
    (workspace.path / "theirs.py").write_text(
        """
import sys
from metaflow import FlowSpec, Parameter, Runner, current, exit_hook, step


def notified(run=None):
    import metaflow
    print("hook of", run.id, run.data.inner, metaflow.FlowSpec.__module__)


@exit_hook(on_success=[notified])
class TheirFlow(FlowSpec):
    depth = Parameter("depth", default=1)

    @step
    def start(self):
        self.inner = None
        if self.depth:
            with Runner(__file__, show_output=False) as runner:
                self.inner = runner.run(depth=self.depth - 1).run.data.depth
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    TheirFlow()
"""
    )
    ran = program(workspace, "run", "--compat", "theirs.py")
    assert 0 == ran.code, ran.err
    assert " 0 aflow.flow.spec\n" in ran.out
    assert "hook" not in ran.err


PRIVATE = """
import copy, os, signal
from metaflow import FlowSpec, catch, current, parallel, retry, step, timeout
from metaflow.exception import ExternalCommandFailed, MetaflowException


class TheirError(MetaflowException):
    def __init__(self):
        super().__init__(msg="mine")
        self.message = "changed"


class TheirFlow(FlowSpec):
    @step
    def start(self):
        tags = current.tags.copy()
        tags.add("more")
        self.tags = (current.tags, tags, copy.copy(current.tags) | {"x"})
        self.first = (self._current_step, self._foreach_stack, self._task_ok)
        self._graph_of_ours = 1
        self.xs = ["a", "b"]
        self.next(self.outer, foreach="xs")

    @step
    def outer(self):
        there = self._datastore
        self.read = (there["xs"], "xs" in there, there.get("no"), "first" in [*there])
        self.next(self.gang, num_parallel=2)

    @parallel
    @step
    def gang(self):
        self.frames = [tuple(each) for each in self._foreach_stack]
        self.place = (self.input, self.index, current.parallel.node_index)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.places = [(each.input, *each.place) for each in inputs]
        self.frames = inputs[1].frames
        self.types = {each.name: each.type for each in self._graph}
        self.inside = {each.name for each in self._graph if each.is_inside_foreach}
        self.next(self.all)

    @step
    def all(self, inputs):
        self.merge_artifacts(inputs, exclude=["frames"])
        self.frames = inputs[1].frames
        self.next(self.late)

    @catch(var="late_error", print_exception=False)
    @timeout(seconds=1)
    @step
    def late(self):
        signal.pause()
        self.next(self.dead)

    @catch(var="dead_error", print_exception=False)
    @retry(times=1)
    @step
    def dead(self):
        os.kill(os.getpid(), signal.SIGSEGV)
        self.next(self.end)

    @catch(var="end_error", print_exception=False)
    @step
    def end(self):
        try:
            raise TheirError()
        except MetaflowException as error:
            self.said = str(error)
        raise ExternalCommandFailed("failed")


if __name__ == "__main__":
    TheirFlow()
"""


def test_private_names_and_names_of_exceptions_are_those_of_metaflow(workspace: Workspace) -> None:
    (workspace.path / "theirs.py").write_text(PRIVATE)
    words = ("run", "--compat", "theirs.py", "--tag", "a", "--max-workers", "4")
    ran = program(workspace, *words, AFLOW_RETRY_WAIT="0")
    assert 0 == ran.code, ran.out + ran.err
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    run = client.Flow("TheirFlow").latest_run
    assert run is not None
    data, first = run.data, run["start"].task.data
    assert ({"a"}, {"a", "more"}, {"a", "x"}) == first.tags
    assert ("start", [], None) == first.first
    assert 1 == first._graph_of_ours
    assert (["a", "b"], True, None, True) == run["outer"].task.data.read
    assert [("outer", "xs", 2, 1, "b"), ("gang", "_parallel_ubf_iter", None, 1, None)] == (
        data.frames
    )
    assert [(0, 0, 0, 0), (1, 1, 1, 1)] == data.places
    assert {
        "start": "foreach", "outer": "foreach", "gang": "linear", "join": "join", "all": "join",
        "late": "linear", "dead": "linear", "end": "end",
    } == data.types  # fmt: skip
    assert {"outer", "gang", "join"} == data.inside
    assert "metaflow.plugins.timeout_decorator.TimeoutException" == data.late_error.type
    assert "metaflow.plugins.catch_decorator.FailureHandledByCatch" == data.dead_error.type
    assert ("metaflow.exception.ExternalCommandFailed", "failed") == (
        data.end_error.type,
        data.end_error.exception,
    )
    assert "changed" == data.said
    dead = run["dead"].task
    attempts = [client.Task(dead.pathspec, attempt=each) for each in range(2)]
    assert ["Task failed with a segmentation fault.\n"] * 2 == [each.stderr for each in attempts]
    assert ["0", "1", "2"] == [each.value for each in dead.metadata if each.type == "attempt"]


def test_the_graph_of_a_class_can_be_asked_for_as_in_metaflow(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(PRIVATE)
    code = """
from aflow import compat
compat.install()
from metaflow.graph import FlowGraph
from theirs import TheirFlow
flow = TheirFlow(use_cli=False)
for graph in (flow._graph, TheirFlow._graph, FlowGraph(TheirFlow)):
    assert graph["join"].in_funcs == ["gang"] and graph["join"].split_parents == ["start", "outer"]
    assert graph["gang"].parallel_step and graph["outer"].parallel_foreach and "end" in graph
    assert graph["start"].matching_join == "all" and graph["all"].num_args == 2
    assert graph.sorted_nodes[0] == "start" and graph.sorted_nodes[-1] == "end"
assert [step.name for step in flow] == [step.__name__ for step in TheirFlow._steps]
flow._graph = "ours"
assert flow._graph == "ours"
print("fine")
"""
    assert "fine\n" == in_fresh_python(code, cwd=tmp_path)


HELPERS = """
from metaflow import FlowSpec, step, unbounded_test_foreach_internal
from metaflow._vendor import click
from metaflow._vendor.click import Choice
from metaflow.cli import start
from metaflow.cli_components.run_cmds import run
from metaflow.client import core
from metaflow.includefile import IncludedFile
from metaflow.metadata_provider import MetaDatum
from metaflow.plugins import InternalTestUnboundedForeachInput
from metaflow.runner.click_api import click_to_python_types, extract_all_params

assert Choice is click.Choice and core.current_namespace is False
signatures, arguments, options, types, defaults = extract_all_params(run)
assert arguments == {} and options["tags"].multiple and types["max_workers"] is int
assert "quiet" in extract_all_params(start)[2]
assert click_to_python_types[type(click.INT)] is int
assert click_to_python_types[type(options["tags"].type)] is str

class TheirFlow(FlowSpec):
    @step
    def start(self):
        self.xs = InternalTestUnboundedForeachInput(["a", "b"])
        self.next(self.each, foreach="xs")

    @unbounded_test_foreach_internal
    @step
    def each(self):
        assert self.input == self.xs[self.index]
        self.x = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        assert ["a", "b"] == [each.x for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    TheirFlow()
"""


def test_what_helpers_of_tests_import_is_there_and_commands_answer_in_metaflows_form(
    workspace: Workspace,
) -> None:
    (workspace.path / "theirs.py").write_text(HELPERS)
    run = workspace.path / "id"
    words = ("run", "--compat", "theirs.py", "--tag", "mine", "--run-id-file", str(run))
    assert 0 == program(workspace, *words).code

    def tag(*rest: str) -> Ran:
        name = ("--run-id", run.read_text())
        return program(workspace, "--compat", "theirs.py", "tag", *rest, *name)

    listed = tag("list", "--flat")
    assert "" == listed.out
    system = {line for line in listed.err.splitlines()[1:] if line != "mine"}
    assert {"user", "runtime", "python_version", "aflow_version"} == {
        line.partition(":")[0] for line in system
    }
    assert 0 == tag("add", "more", *system).code
    assert 2 == tag("remove", "more", *system).code
    assert 0 == tag("replace", "more", "other").code
    assert ["mine", "other"] == tag("list", "--flat", "--hide-system-tags").err.splitlines()[1:]
    half = tag("replace", "other")
    assert (2, True) == (half.code, "tag replace OLD NEW" in half.err)


def in_fresh_python(code: str, cwd: Path | None = None) -> str:
    """Return the output of a new interpreter that runs the code."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def test_after_install_the_names_of_metaflow_are_aflows() -> None:
    code = """
from aflow import compat
compat.install()
compat.install()
import aflow, aflow.errors, metaflow, metaflow.exception
from metaflow.plugins.parsers import yaml_parser
assert metaflow.FlowSpec is aflow.FlowSpec
assert metaflow.exception.MetaflowException is aflow.errors.AflowError
assert metaflow.metaflow_current.current is aflow.current
assert "Parameter" in dir(metaflow) and "parallel_map" in dir(metaflow)
print("fine")
"""
    assert "fine\n" == in_fresh_python(code)


def test_what_is_set_and_who_asks_can_be_asked_for_as_in_metaflow(tmp_path: Path) -> None:
    code = """
from aflow import compat
compat.install()
from metaflow.metaflow_config import SOME_TEXT, NOT_SET
from metaflow.metaflow_config_funcs import from_conf
from metaflow.util import resolve_identity, to_bytes, to_unicode, is_stringish
print(SOME_TEXT, NOT_SET, from_conf("SOME_NUMBER", 1), from_conf("SOME_FLAG", True))
print(from_conf("SOME_LIST", []), from_conf("NOT_SET", 7), resolve_identity())
print(to_unicode(b"x"), to_bytes("y"), is_stringish(3))
from metaflow.exception import MetaflowNotFound
from metaflow import Flow, namespace
try:
    Flow("Nowhere")
except MetaflowNotFound as error:
    print(error.message == str(error), error.headline)
"""
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ
        | {
            "METAFLOW_SOME_TEXT": "text",
            "METAFLOW_SOME_NUMBER": "5",
            "AFLOW_SOME_FLAG": "0",
            "METAFLOW_SOME_LIST": "[1, 2]",
            "AFLOW_USER": "ann",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    reported = ["text None 5 False", "[1, 2] 7 user:ann", "x b'y' False", "True Object not found"]
    assert reported == said.stdout.splitlines(), said.stderr


def test_an_import_of_metaflow_itself_is_reported() -> None:
    code = """
import sys, types
sys.modules["metaflow"] = types.ModuleType("metaflow")
from aflow import compat
try:
    compat.install()
except Exception as error:
    print(type(error).__name__, error)
"""
    assert "InvalidInput Metaflow has been imported already" in in_fresh_python(code)


@pytest.mark.parametrize("module", sorted(metaflow.MODULES))
def test_every_name_has_a_home(module: str) -> None:
    for name, home in metaflow.MODULES[module].items():
        assert metaflow._value(home) is not None, name
