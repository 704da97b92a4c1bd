"""The checks before a run: the graph, and each linter that may be installed."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from aflow import FlowSpec, step
from aflow.cli.checks import CodeCheck, check_graph
from aflow.errors import InvalidFlow
from aflow.flow.spec import define


class GoodFlow(FlowSpec):
    @step
    def start(self):
        pass


class BadFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.nowhere)

    @step
    def end(self):
        self.next(self.start)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without any linter; a test may add some. They check flow.py."""
    (tmp_path / "flow.py").touch()
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "path", [])
    return folder


def install(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def notes(**options: bool) -> list[str]:
    said: list[str] = []
    with CodeCheck("flow.py", **options) as code:
        code.finish(said.append)
    return said


def test_a_good_graph_is_said_to_look_good() -> None:
    said: list[str] = []
    check_graph(define(GoodFlow), said.append)

    assert ["Validating your flow...", "    The graph looks good!"] == said


def test_all_problems_of_a_graph_are_reported_at_once_with_their_lines() -> None:
    with pytest.raises(InvalidFlow) as caught:
        check_graph(define(BadFlow), lambda _: None)

    lines = str(caught.value).splitlines()
    assert len(lines) >= 1
    assert [] == [line for line in lines if "test_checks.py, line " not in line]


def test_without_a_tool_the_check_is_left_out(tools: Path) -> None:
    assert ["Pylint not found, so extra checks are disabled."] == notes()


def test_a_check_that_is_not_wanted_is_not_mentioned(tools: Path) -> None:
    install(tools, "ruff", "exit 1")

    assert [] == notes(enabled=False)


@pytest.mark.parametrize(("tool", "title"), [("ruff", "Ruff"), ("pylint", "Pylint")])
def test_a_tool_that_finds_nothing_is_happy(tools: Path, tool: str, title: str) -> None:
    install(tools, tool, "exit 0")

    assert [f"Running {tool}...", f"    {title} is happy!"] == notes()


@pytest.mark.parametrize(("tool", "code"), [("ruff", 1), ("pylint", 2), ("pylint", 30)])
def test_what_a_tool_finds_stops_the_run(tools: Path, tool: str, code: int) -> None:
    install(tools, tool, f"echo 'flow.py:3:1 undefined name'; exit {code}")

    with pytest.raises(InvalidFlow, match=r"flow\.py:3:1 undefined name") as caught:
        notes()
    assert f"{tool.capitalize()} is not happy" == caught.value.headline
    assert "--no-pylint" in str(caught.value)


@pytest.mark.parametrize(("tool", "code"), [("ruff", 2), ("pylint", 32), ("ruff", 127)])
def test_a_tool_that_does_not_work_stops_nothing(tools: Path, tool: str, code: int) -> None:
    install(tools, tool, f"echo 'what a mess' >&2; exit {code}")

    assert (
        f"    {tool.capitalize()} did not work, so extra checks are disabled: what a mess"
        == notes()[-1]
    )


def test_ruff_goes_before_pylint_and_looks_for_errors_alone(tools: Path) -> None:
    install(tools, "pylint", "exit 2")
    install(tools, "ruff", 'echo "$@"; exit 1')

    with pytest.raises(InvalidFlow, match=r"--select E9,F63,F7,F82 .* flow\.py") as caught:
        notes()
    assert "--extend-select" not in str(caught.value)


def test_warnings_are_shown_if_asked_for(tools: Path) -> None:
    install(tools, "ruff", 'echo "$@"; exit 1')

    with pytest.raises(InvalidFlow, match="--extend-select"):
        notes(warnings=True)


def test_a_tool_that_is_still_at_work_is_stopped_at_the_end(tools: Path) -> None:
    install(tools, "ruff", "exec cat /dev/zero")
    with CodeCheck("flow.py") as code:
        process = code._process

    assert process is not None
    assert process.returncode is not None
