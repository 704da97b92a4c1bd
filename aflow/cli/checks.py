"""The checks of a flow before it runs: the rules of its graph, and a linter.

The linter is ruff or pylint, whichever is installed. It runs as a child process, in parallel with
the start of the command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aflow.errors import InvalidFlow
from aflow.flow.lint import check

if TYPE_CHECKING:
    from subprocess import Popen

    from aflow.flow.definition import FlowDefinition

Note = Callable[[str], None]

# Only definite errors: code that does not parse, undefined names, misplaced statements.
_RUFF = ("check", "--select", "E9,F63,F7,F82", "--no-cache", "--quiet", "--output-format=concise")
_RUFF_WARNINGS = ("--extend-select", "E,F,W,B")
# Static analysis does not see artifacts and the lazy names of the package.
_PYLINT = ("--score=n", "--disable=no-member,no-name-in-module")


def check_graph(definition: FlowDefinition, note: Note) -> None:
    """Check the flow against the rules of the graph.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        note: Called with lines to print.

    Raises:
        InvalidFlow: If rules are broken; the error has all of them.
    """
    note("Validating your flow...")
    problems = check(definition)
    if problems:
        raise _together(problems)
    note("    The graph looks good!")


def _together(problems: Sequence[InvalidFlow]) -> InvalidFlow:
    if len(problems) == 1:
        return problems[0]
    error = InvalidFlow("\n".join(str(problem) for problem in problems))
    error.headline = f"Validity checker found {len(problems)} issues"
    return error


class CodeCheck:
    """A linter that checks the flow's file in a child process, which the constructor starts.

    Use it as a context manager: a process that still runs at the end of the block is killed.
    """

    def __init__(self, file: str, *, enabled: bool = True, warnings: bool = False) -> None:
        self._enabled = enabled
        self._file = file
        self._is_there = os.path.isfile(file)
        self._name = ""
        self._process: Popen[bytes] | None = None
        tool = _tool() if enabled and self._is_there else None
        if tool is not None:
            from subprocess import PIPE, STDOUT, Popen  # not needed without the check

            self._name, command = tool
            arguments = _arguments(self._name, warnings)
            self._process = Popen([*command, *arguments, file], stdout=PIPE, stderr=STDOUT)

    def __enter__(self) -> CodeCheck:
        return self

    def finish(self, note: Note) -> None:
        """Wait for the result and report it.

        Args:
            note: Called with lines to print.

        Raises:
            InvalidFlow: If the linter has found errors.
        """
        if not self._enabled:
            return
        if not self._is_there:
            note(f"{self._file} lies in an archive, so extra checks are disabled.")
            return
        if self._process is None:
            note("Pylint not found, so extra checks are disabled.")
            return
        title = self._name.capitalize()
        note(f"Running {self._name}...")
        output = self._process.communicate()[0].decode(errors="replace").strip()
        code = self._process.returncode
        if code == 0:
            note(f"    {title} is happy!")
        elif _found_something(self._name, code):
            error = InvalidFlow(f"{output}\nCorrect this, or pass --no-pylint to run all the same.")
            error.headline = f"{title} is not happy"
            raise error
        else:
            last = output.splitlines()[-1] if output else f"exit code {code}"
            note(f"    {title} did not work, so extra checks are disabled: {last}")

    def __exit__(self, *exc: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def _tool() -> tuple[str, list[str]] | None:
    """Return the name of the linter and its command; None if none is installed."""
    for name in ("ruff", "pylint"):
        for folder in (Path(sys.executable).parent, Path(sys.prefix) / "bin"):
            program = folder / name
            if program.is_file():
                return name, [str(program)]
    from importlib.util import find_spec

    for name in ("ruff", "pylint"):  # a user installation has its program in another folder
        if find_spec(name) is not None:
            return name, [sys.executable, "-m", name]
    return None


def _arguments(tool: str, warnings: bool) -> tuple[str, ...]:
    if tool == "ruff":
        return (*_RUFF, *_RUFF_WARNINGS) if warnings else _RUFF
    return _PYLINT if warnings else ("--errors-only", *_PYLINT)


def _found_something(tool: str, code: int) -> bool:
    # ruff exits with 1 if it finds errors, and with 2 if it fails itself. pylint's exit code is a
    # bit mask, in which 32 means that it has failed itself.
    return code == 1 if tool == "ruff" else 0 < code < 32
