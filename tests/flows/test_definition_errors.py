"""Invalid flow definitions: one sentence with the line, for every way to start the flow."""

from __future__ import annotations

import pytest

from tests.flows.conftest import Ran, Workspace

START = """
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""
FAULTS = {
    "a decorator of a step": ("class Flow_(FlowSpec):\n    @retry(times=-1)" + START[4:], 2),
    "an option that is unknown": ("class Flow_(FlowSpec):\n    @retry(tmes=1)" + START[4:], 2),
    "a parameter": (
        "class Flow_(FlowSpec):\n    x = Parameter('x', type=int, choices=3)\n" + START,
        2,
    ),
    "a decorator of the flow": (
        "from aflow import project\n@project(name='Not Allowed')\nclass Flow_(FlowSpec):" + START,
        2,
    ),
}


def lines_of(ran: Ran) -> list[str]:
    """Return the lines on stderr."""
    return ran.err.splitlines()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_definition_is_a_sentence_with_its_line(
    workspace: Workspace, fault: str
) -> None:
    source, code = FAULTS[fault]
    file = workspace.write("X\n")
    file.write_text(file.read_text().replace("X\n", source))

    ran = workspace.finish(workspace.start("run"))

    assert code == ran.code, ran.err
    assert "Traceback" not in ran.err
    assert f"{file.name}, line " in ran.err
    assert len(lines_of(ran)) <= 3


def test_other_exceptions_of_a_script_keep_their_traceback(workspace: Workspace) -> None:
    (workspace.path / "flow.py").write_text(
        "from aflow import FlowSpec, Flow\nclass Broken(FlowSpec):\n    x = 1 / 0\n"
    )
    ran = workspace.finish(workspace.start("run"))
    assert 1 == ran.code
    assert "ZeroDivisionError" in ran.err
    assert "Traceback" in ran.err


def test_a_program_that_uses_aflow_gets_its_exceptions_as_they_are(workspace: Workspace) -> None:
    (workspace.path / "flow.py").write_text(
        "from aflow import FlowSpec, Flow\nFlow('NoSuchFlow')\n"
    )
    ran = workspace.finish(workspace.start("run"))
    assert 1 == ran.code
    assert "Traceback" in ran.err
