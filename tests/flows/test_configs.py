"""Config, IncludeFile and choices: values that a flow is defined or started with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aflow import Config, FlowSpec, arun, client, config_expr, retry, step
from aflow.client import Run
from tests.flows.conftest import Ran, Workspace

FLOW = """
from aflow import Config, IncludeFile, config_expr, project
from typing import Any, Literal

def lines(text):
    return dict(line.split("=") for line in text.split())

@project(name=config_expr("settings.project"))
class Flow_(FlowSpec):
    settings = Config("settings", default="settings.json")
    pairs = Config("pairs", default_value="a=1 b=2", parser=lines)
    raw = Config("raw", default_value="just text", plain=True)
    nothing = Config("nothing")
    size = Parameter("size", default=config_expr("settings.size * 2"))
    kind = Parameter("kind", type=Literal["small", "large"], default="small")
    level = Parameter("level", choices=[1, 2, 3], default=2)
    notes = IncludeFile("notes", default="notes.txt")
    blob = IncludeFile("blob", is_text=False, default="notes.txt")
    parsed = IncludeFile("parsed", default="settings.json", parser=__import__("json").loads)

    @retry(times=settings.retries, seconds=0)
    @environment(vars=config_expr("dict(settings.env)"))
    @timeout(minutes=settings.get("minutes", 3))
    @step
    def start(self):
        self.env = os.environ["GREETING"]
        self.tries = current.retry_count
        if current.retry_count < self.settings.retries:
            raise ValueError("again")
        self.choice = "left"
        self.next({self.settings.first: self.left, "right": self.right}, condition="choice")

    @step
    def left(self):
        self.next(self.end)

    @step
    def right(self):
        self.next(self.end)

    @step
    def end(self):
        self.seen = (self.settings.deep.key, self.settings["size"], self.pairs.a, self.raw)
        self.same = type(self.settings).__name__, self.nothing, current.project_name
"""
SETTINGS = {
    "size": 3,
    "retries": 1,
    "env": {"GREETING": "hello"},
    "first": "left",
    "deep": {"key": [1]},
    "project": "proj",
}


@pytest.fixture
def flow(workspace: Workspace) -> Workspace:
    """A workspace with a flow and its files."""
    (workspace.path / "settings.json").write_text(json.dumps(SETTINGS))
    (workspace.path / "notes.txt").write_text("café\n")
    workspace.write(FLOW)
    return workspace


def command(workspace: Workspace, *args: str, **env: str) -> Ran:
    """Run `python flow.py ARGS`."""
    return workspace.finish(workspace.start("--no-pylint", *args, **env))


def latest(workspace: Workspace) -> Run:
    """The latest run."""
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    run = client.Flow("Flow_").latest_run
    assert run is not None
    return run


def test_configs_are_there_before_decorators_parameters_and_the_graph(flow: Workspace) -> None:
    ran = command(flow, "run")
    assert 0 == ran.code, ran.err
    data = latest(flow).data
    assert ("hello", 1, 6) == (data.env, data.tries, data.size)
    assert ([1], 3, "1", "just text") == data.seen
    assert ("ConfigValue", None, "proj") == data.same
    assert SETTINGS == data.settings.to_dict()
    flow.check()


def test_included_files_are_texts_bytes_or_what_a_parser_makes(flow: Workspace) -> None:
    (flow.path / "other.txt").write_text("other")
    assert 0 == command(flow, "run", "--notes", "other.txt").code
    data = latest(flow).data
    assert ("other", "café\n".encode(), SETTINGS) == (data.notes, data.blob, data.parsed)


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_value_on_the_line_wins_over_the_file(flow: Workspace, place: str) -> None:
    value = ("--config-value", "settings", json.dumps({**SETTINGS, "size": 50}))
    words = (*value, "run") if place == "before" else ("run", *value)
    assert 0 == command(flow, *words).code
    assert 100 == latest(flow).data.size


def test_a_file_on_the_line_wins_over_the_environment(flow: Workspace) -> None:
    (flow.path / "other.json").write_text(json.dumps({**SETTINGS, "size": 7}))
    env = {"METAFLOW_FLOW_CONFIG_VALUE": json.dumps({"settings": {**SETTINGS, "size": 8}})}
    assert 0 == command(flow, "run", **env).code
    assert 16 == latest(flow).data.size
    assert 0 == command(flow, "run", "--config", "settings", "other.json", **env).code
    assert 14 == latest(flow).data.size


def test_a_resumed_run_has_the_configs_of_its_origin(flow: Workspace) -> None:
    assert 0 == command(flow, "run").code
    (flow.path / "settings.json").write_text(json.dumps({**SETTINGS, "size": 999, "retries": 9}))
    resumed = command(flow, "resume", "end")
    assert 0 == resumed.code, resumed.err
    assert ([1], 3, "1", "just text") == latest(flow).data.seen
    refused = command(flow, "--config-value", "raw", "x", "resume")
    assert 2 == refused.code
    assert "has the configs of its origin" in refused.err


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (["--config-value", "settings", "{x"], "'settings', as it was given, does not parse"),
        (["--config", "unknown", "x"], "has no config 'unknown'; its configs are: settings, pairs"),
        (["--config", "settings"], "--config takes two arguments"),
        (["--notes", "no.txt"], "The file no.txt of parameter 'notes' cannot be read: No such"),
        (["--kind", "middle"], "which is not one of its choices: small, large"),
    ],
)
def test_what_cannot_be_used_is_reported_in_a_sentence(
    flow: Workspace, words: list[str], reported: str
) -> None:
    ran = command(flow, "run", *words)
    assert 2 == ran.code
    assert reported in ran.err
    assert "Traceback" not in ran.err


def test_help_shows_choices(flow: Workspace) -> None:
    shown = " ".join(command(flow, "run", "--help").out.split())
    assert "one of: small, large" in shown


class Embedded(FlowSpec):
    config = Config("config", default_value={"times": 2})

    @retry(times=config.times, seconds=0)
    @step
    def start(self) -> None:
        self.value = self.config.times, config_expr("1")  # an expression is only text here
        del self.value
        self.times = self.config.times
        self.next(self.end)

    @step
    def end(self) -> None:
        pass


async def test_embedded_flows_have_configs_in_a_fresh_interpreter(workspace: Workspace) -> None:
    place: Any = {
        "storage": (workspace.path / ".aflow").as_uri(),
        "metadata": f"sqlite:///{workspace.path}/metadata.db",
    }
    run = await arun(Embedded, **place)
    assert 2 == run.data.times
    run = await arun(Embedded, configs={"config": {"times": 5}}, **place)
    assert 5 == run.data.times
