"""The commands of a flow, up to the point where they start to work."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any, cast

import click
import pytest
from click.testing import CliRunner, Result

from aflow import Config, FlowSpec, JSONType, Parameter, project, retry, step
from aflow._core.settings import SETTINGS, RunOptions
from aflow.cli import plain
from aflow.cli.commands import COMMANDS
from aflow.cli.flow_commands import FlowGroup
from aflow.cli.options import (
    SectionedCommand,
    bound,
    option,
    parameter_options,
    taken_out,
    top_options,
    with_option,
)
from aflow.cli.run import run
from aflow.cli.session import Defined, Session
from aflow.task.config_binding import GivenConfigs


class ManyFlow(FlowSpec):
    """A flow with parameters.

    It does nothing.
    """

    alpha = Parameter("alpha", help="Learning rate", default=0.01)
    names = Parameter("names", separator=",")
    some_plan = Parameter("some_plan", type=JSONType, required=True)
    today = Parameter("today", default=lambda context: context.parameter_name)

    @retry(times=1)
    @step
    def start(self):
        """The first."""
        self.xs = [1, 2]
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.kind = "a"
        self.next({"a": self.left, "b": self.end}, condition="kind")

    @step
    def left(self):
        self.next(self.end)

    @step
    def end(self):
        pass


def invoke(*words: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(FlowGroup(ManyFlow, "many.py"), words, env=env)


# ------------------------------------------------------------ help


def test_help_teaches_all_commands_by_example() -> None:
    text = invoke("--help").output

    assert [] == [name for name in COMMANDS if f"  {name} " not in text]
    assert "python many.py run --max-workers 4" in text
    assert "A flow with parameters.\n\n  It does nothing." in text


def test_the_command_help_says_the_same() -> None:
    assert invoke("--help").output.splitlines()[1:] == invoke("help").output.splitlines()[1:]


def test_help_of_run_begins_with_the_parameters_and_their_defaults() -> None:
    text = invoke("run", "--help").output
    plain = " ".join(text.split())

    assert text.index("Parameters of the flow") < text.index("--tag") < text.index("--quiet")
    assert "--alpha FLOAT Learning rate [default: 0.01]" in plain
    assert "--some_plan JSON [required]" in plain
    assert "--today STR [default: computed]" in plain


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"]])
def test_help_of_a_flow_with_configs_names_them_and_their_options(words: list[str]) -> None:
    class Configured(ManyFlow):
        sizes = Config("sizes", default_value={})

    text = CliRunner().invoke(FlowGroup(Configured, "many.py"), words).output

    assert "--config NAME PATH Read a config of the flow (sizes) from a file." in (
        " ".join(text.split())
    )
    assert "--config-value NAME JSON" in text
    assert "--config" not in invoke(*words).output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = invoke(name, "--help")

    assert 0 == result.exit_code
    assert COMMANDS[name] in " ".join(result.output.split())


# ------------------------------------------------------------ the graph


def test_show_tells_the_steps_in_order_with_their_texts() -> None:
    assert (
        "\nA flow with parameters.\n\nIt does nothing.\n"
        "\n@retry\nStep start\n    The first.\n    => work (foreach xs)\n"
        "\nStep work\n    ?\n    => join\n"
        "\nStep join\n    ?\n    => left (kind is a), end (kind is b)\n"
        "\nStep left\n    ?\n    => end\n"
        "\nStep end\n    ?\n\n"
    ) == invoke("show").output


def test_dot_has_every_step_and_every_edge() -> None:
    lines = invoke("output-dot").output.splitlines()

    assert "digraph ManyFlow {" == lines[0]
    assert 5 == sum("label=" in each for each in lines)
    assert [
        '  "start" -> "work";',
        '  "work" -> "join";',
        '  "join" -> "left";',
        '  "join" -> "end";',
        '  "left" -> "end";',
    ] == [each for each in lines if "->" in each]


def test_raw_output_is_a_line_a_step() -> None:
    assert [
        "start kind=foreach foreach=xs next=work",
        "work kind=linear splits=start next=join",
        "join kind=switch join condition=kind next=left,end",
        "left kind=linear next=end",
        "end kind=end",
    ] == invoke("output-raw").output.splitlines()


def test_raw_output_as_json_is_the_graph_that_runs_store() -> None:
    import json

    from aflow.flow.graph import Graph
    from aflow.flow.spec import define

    assert define(ManyFlow).graph == Graph.from_dict(
        json.loads(invoke("output-raw", "--json").output)
    )


# ------------------------------------------------------------ wrong words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], "No such command 'rnu'"),
        (["run", "--beta", "1"], "No such option"),
        (["run", "--alpha", "x"], "Parameter 'alpha' has the value 'x', which is not a number"),
        (["run", "--some_plan", "{"], "which is not JSON"),
        (["run", "--max-workers", "0"], "'--max-workers': 0 is not in the range x>=1"),
        (["run", "--isolation", "cell"], "'cell' is not one of 'task', 'worker'"),
        (["--datastore", "floppy", "run"], "'floppy' is not one of 'local', 's3'"),
        (["run", "--tag", ""], "cannot be a tag"),
        (["run", "--tag", "x" * 501], "is too long"),
    ],
)
def test_a_word_that_cannot_be_used_is_a_usage_error(words: list[str], message: str) -> None:
    result = invoke(*words)

    assert 2 == result.exit_code
    assert message in " ".join(result.output.split())


def test_parameters_come_from_the_environment_and_are_checked_there() -> None:
    result = invoke("run", env={"METAFLOW_RUN_ALPHA": "x"})

    assert 2 == result.exit_code
    assert "which is not a number" in " ".join(result.output.split())


# ------------------------------------------------------------ options in any place


class Seen:
    """What a command's body was called with."""

    def __init__(self) -> None:
        self.session: Session
        self.own: dict[str, Any]

    def __call__(self, session: Session, **own: Any) -> None:
        self.session, self.own = session, own


def _undefined(configs: object) -> Any:
    raise AssertionError("this command asks for no flow")


def called(words: list[str], env: dict[str, str] | None = None) -> Seen:
    seen = Seen()
    group = click.Group("flow.py", params=list(top_options()))
    params: list[click.Parameter] = [option("--size", default=1), with_option("Options", "run_")]
    general = [each for each in top_options(after_command=True) if each.name != "with_"]
    group.add_command(
        SectionedCommand(
            "go",
            params=[*params, *general],
            callback=bound(seen, None, "flow.py", cast(Defined, _undefined)),
        )
    )
    result = CliRunner().invoke(group, words, env=env, catch_exceptions=False)
    assert 0 == result.exit_code, result.output
    return seen


@pytest.mark.parametrize("words", [["--quiet", "go"], ["go", "--quiet"]])
def test_an_option_of_every_command_may_stand_before_it_or_behind(words: list[str]) -> None:
    assert True is called(words).session.top["quiet"]


def test_what_stands_behind_the_command_wins() -> None:
    words = ["--quiet", "--datastore-root", "a", "go", "--not-quiet", "--datastore-root", "b"]
    top = called(words).session.top

    assert (False, "b") == (top["quiet"], top["datastore_root"])


def test_decorators_add_up_from_both_places() -> None:
    words = ["--with", "retry", "go", "--with", "timeout:seconds=1", "--with", "catch"]

    assert ("retry", "timeout:seconds=1", "catch") == called(words).session.top["with_"]


def test_a_command_gets_its_own_options_alone() -> None:
    assert {"size": 3} == called(["--quiet", "go", "--size", "3", "--with", "retry"]).own


@pytest.mark.parametrize("prefix", ["AFLOW", "METAFLOW"])
def test_options_of_every_command_come_from_the_environment(prefix: str) -> None:
    assert True is called(["go"], {f"{prefix}_QUIET": "1"}).session.top["quiet"]


def test_our_own_variable_is_stronger_than_the_old_one() -> None:
    env = {"AFLOW_PYLINT": "0", "METAFLOW_PYLINT": "1"}

    assert not called(["go"], env).session.wants_code_check


def test_the_code_is_checked_unless_that_is_refused() -> None:
    assert called(["go"]).session.wants_code_check
    assert not called(["go", "--no-pylint"]).session.wants_code_check


class Hostile(FlowSpec):
    """Sets \x1b]0;a title\x07."""

    rate = Parameter("rate", help="a \x1b[2J rate", default="\x9b2J")

    @step
    def start(self) -> None:
        """Clears \x1b[2J the terminal."""
        self.next(self.end)

    @step
    def end(self) -> None:
        pass


def test_what_a_flow_says_of_itself_does_nothing_to_a_terminal() -> None:
    group = FlowGroup(Hostile, "flow.py")
    for words in (["show"], ["run", "--help"], ["--help"]):
        said = CliRunner().invoke(group, words).output
        assert "\\x1b" in said
        assert not set("\x1b\x07\x9b") & set(said), said


# ------------------------------------------------------------ a plain run, without click


@project(name="many")
class InAProject(ManyFlow):
    pass


class Asking(ManyFlow):
    beta = Parameter("beta", prompt=True)


def understood(*words: str, flow: type[FlowSpec] = ManyFlow) -> Any:
    """Return the arguments of `run` if it is parsed without click."""
    return plain.understood(flow, "many.py", Defined(flow, GivenConfigs()), words, words)


def run_command(*words: str, flow: type[FlowSpec]) -> tuple[click.Context, click.Command]:
    """Return click's command `run`, with the options before its name in these words."""
    group = FlowGroup(flow, "many.py")
    context = group.make_context("many.py", [*words[: words.index("run") + 1]])
    command = group.get_command(context, "run")
    assert command is not None
    return context, command


def parsed(*words: str, flow: type[FlowSpec] = ManyFlow) -> tuple[Any, Any, Any]:
    """Return what click parses from the same words: the options of every command, the parameters of
    the flow, and the options of `run`."""
    found: list[Any] = []
    definition = Defined(flow, GivenConfigs())
    context, command = run_command(*words, flow=flow)

    def body(session: Session, **values: Any) -> None:
        declared = definition().parameters
        given = taken_out(values, declared, parameter_options(declared))
        found.extend((session.top, given, values))

    command.callback = bound(body, flow, "many.py", definition)
    with command.make_context(
        "run", [*words[words.index("run") + 1 :]], parent=context, allow_extra_args=False
    ) as inner:
        command.invoke(inner)
    return found[0], found[1], found[2]


@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        ("--no-pylint", "run"),
        ("run", "--quiet", "--alpha", "0.5", "--pylint"),
        ("run", "--names=a,b", "--some_plan", '{"a": 1}', "--today=x=y"),
        ("--not-quiet", "run", "--names="),
    ],
)
def test_a_plain_run_is_understood_as_click_understands_it(words: tuple[str, ...]) -> None:
    session, given = understood(*words)

    top, values, options = parsed(*words)
    assert (top, values) == (session.top, given)
    assert {name: UNSAID[name] for name in options} == options
    assert (ManyFlow, "many.py", words) == (session.flow, session.script, session.argv)


# The arguments of `run` without options: its own defaults, and those of a run.
UNSAID = {
    **{each.name: getattr(RunOptions(), each.name) for each in fields(RunOptions)},
    **dict.fromkeys(SETTINGS.keys() & {each.name for each in fields(RunOptions)}),
    "progress": None,
    **{name: each.default for name, each in inspect.signature(run).parameters.items()},
    "run_id": None,
    "parameters_file": None,
}
_, RUN = run_command("run", flow=ManyFlow)
OF_FLOW = ["--alpha", "--names", "--some_plan", "--some-plan", "--today"]
NAMES = [name for each in RUN.params for name in (*each.opts, *each.secondary_opts)]


@pytest.mark.parametrize("name", NAMES)
def test_no_option_is_understood_otherwise_than_click_does(name: str) -> None:
    """This holds for options that need click and those that do not, and if a parameter has the same
    name."""
    values = ["1", "a", "{}", "", "service", "task", "./run", "--quiet"]
    calls = [("run", name), (name, "run"), ("run", "--quiet", name.replace("-", "_"))]
    calls += [("run", name, value) for value in values]
    calls += [("run", f"{name}={value}") for value in values]
    names = {name, name.replace("-", "_")} - {*OF_FLOW}
    own = [Parameter(each.lstrip("-_")) for each in sorted(names)]
    flows = [type("Called", (ManyFlow,), {"own": each}) for each in own]
    for flow in (ManyFlow, *flows):
        for words in calls:
            call = understood(*words, flow=flow)
            if call is not None:
                top, given, options = parsed(*words, flow=flow)
                assert (call[0].top, call[1]) == (top, given), words
                assert {each: UNSAID[each] for each in options} == options, words


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("check",),
        ("run", "run"),
        ("run", "--help"),
        ("run", "-h"),
        ("run", "--alpha"),
        ("run", "--alpha", "-1"),
        ("run", "--alpha", "fast"),
        ("run", "--alpha", "1", "--alpha", "2"),
        ("run", "--alhpa", "1"),
        ("run", "--some-plan", "1"),
        ("run", "--tag", "a"),
        ("run", "--quiet", "--not-quiet"),
        ("--alpha", "1", "run"),
        ("run", "there"),
    ],
)
def test_a_run_that_is_not_plain_is_left_to_click(words: tuple[str, ...]) -> None:
    assert understood(*words) is None


def test_a_flow_that_adds_or_asks_for_something_is_left_to_click() -> None:
    assert understood("run", flow=InAProject) is None
    assert understood("run", flow=Asking) is None


@pytest.mark.parametrize(
    "variable",
    ["AFLOW_RUN_ALPHA", "METAFLOW_RUN_TAG", "AFLOW_QUIET", "METAFLOW_WITH", "_MANY_PY_COMPLETE"],
)
def test_a_variable_that_stands_for_an_option_is_left_to_click(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")

    assert understood("run") is None
