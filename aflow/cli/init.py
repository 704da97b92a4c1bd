"""`aflow init`: create a small project with a flow and a passing test."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

import click

from aflow._core.version import DISTRIBUTION, __version__
from aflow.cli.options import flag
from aflow.errors import InvalidInput

_IGNORED = ("# Runs and artifacts of aflow on this machine.", ".aflow/", "__pycache__/", ".venv/")
_FLOW = '''\
"""The flow: `python flow.py run`, `python flow.py --help`."""

from aflow import FlowSpec, Parameter, step


class $flow(FlowSpec):
    """Sums the squares of some numbers, each in a task of its own."""

    count = Parameter("count", help="How many numbers", default=4)

    @step
    def start(self):
        self.numbers = list(range(self.count))
        self.next(self.square, foreach="numbers")

    @step
    def square(self):
        self.squared = self.input**2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(each.squared for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("total", self.total)


if __name__ == "__main__":
    $flow()
'''
_TEST = '''\
"""Tests of the flow: `python -m pytest`."""

from pathlib import Path

from aflow import Runner
from aflow.testing import run_step

from flow import $flow

FLOW = Path(__file__).parents[1] / "flow.py"


def test_a_step_squares_its_number():
    done = run_step($flow.square, input=3, parameters={"count": 4})
    assert done.artifacts["squared"] == 9
    assert done.next == ("join",)


def test_the_whole_flow_sums_the_squares(tmp_path):
    with Runner(str(FLOW), cwd=str(tmp_path), show_output=False) as runner:
        result = runner.run(count=3)
        assert result.status == "successful", result.stderr
        assert result.run.data.total == 0 + 1 + 4
'''
_PIPELINE = """\
name: flows
on:
  push: { branches: [main] }
  pull_request:
permissions: { contents: read }

jobs:
  test:
    runs-on: ubuntu-24.04
    timeout-minutes: 20
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with: { python-version: "3.12", cache: pip, cache-dependency-path: pyproject.toml }
      - name: Install
        run: python -m pip install --upgrade pip && python -m pip install --group dev
      - name: Check the graph of the flow
        run: aflow check flow.py
      - name: Test
        run: python -m pytest -q
"""
_PROJECT = """\
[project]
name = "$name"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["$distribution~=$release"]

[dependency-groups]
dev = ["$distribution~=$release", "pytest>=8"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["."]
"""
_README = """\
# $name

A flow of aflow (the package `$distribution`): `flow.py`.

    python -m venv .venv && . .venv/bin/activate
    python -m pip install --upgrade pip && python -m pip install --group dev
    python flow.py run
    python flow.py run --count 10
    aflow ui
    python -m pytest

`.github/workflows/flows.yml` checks and tests it with every push.
"""
_FILES = {
    "flow.py": _FLOW,
    "tests/test_flow.py": _TEST,
    ".github/workflows/flows.yml": _PIPELINE,
    "pyproject.toml": _PROJECT,
    "README.md": _README,
}


def init() -> click.Command:
    """Return the command `init`."""
    return click.Command(
        "init",
        help="Create a project in DIR (default: this folder): a flow, its test, a pipeline that "
        "runs the test, pyproject.toml and .gitignore.",
        params=[
            click.Argument(["folder"], metavar="[DIR]", default=".", required=False),
            flag("--overwrite", help="Replace existing files."),
        ],
        callback=_init,
    )


def _init(folder: str, overwrite: bool) -> None:
    """Write the files; write none of them if one already exists."""
    target = Path(folder)
    there = [name for name in _FILES if (target / name).exists()]
    if there and not overwrite:
        raise InvalidInput(
            f"{target / there[0]} already exists: give --overwrite to replace it, or name "
            "another folder."
        )
    name = project_name(target.resolve().name)
    values = {
        "name": name,
        "flow": flow_name(name),
        "distribution": DISTRIBUTION,
        "release": ".".join([*__version__.split(".")[:2], "0"]),
    }
    try:
        for path, text in _FILES.items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_text(Template(text).substitute(values), encoding="utf-8")
            click.echo(target / path)
        _ignore(target / ".gitignore")
    except OSError as error:
        raise InvalidInput(
            f"The project cannot be written to {target}: {error.strerror or error}."
        ) from error
    go_there = "" if target.resolve() == Path.cwd() else f"cd {folder}\n  "
    click.echo(f"\nTry it:\n  {go_there}python flow.py run")


def project_name(folder: str) -> str:
    """Return the name of the project in a folder, in a form that is valid for packages.

    Args:
        folder: The name of the folder, without its parents.
    """
    return re.sub(r"[^a-z0-9]+", "-", folder.lower()).strip("-") or "my-flow"


def flow_name(project: str) -> str:
    """Return the name of the flow class of a project.

    Args:
        project: The name of the project, as `project_name` returns it.
    """
    parts = "".join(each.capitalize() for each in project.split("-"))
    name = parts if not parts[:1].isdigit() else f"My{parts}"
    return name if name.endswith("Flow") else f"{name}Flow"


def _ignore(file: Path) -> None:
    """Add the files that runs create to .gitignore, unless they are in it already."""
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    known = {line.strip() for line in before.splitlines()}
    missing = [line for line in _IGNORED if line not in known]
    if missing:
        gap = "\n" if before and not before.endswith("\n") else ""
        file.write_text(before + gap + "\n".join([*missing, ""]), encoding="utf-8")
        click.echo(file)
