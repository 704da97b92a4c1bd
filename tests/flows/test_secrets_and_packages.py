"""@secrets, and decorators for what local runs do not support: packages, Batch, Kubernetes."""

from __future__ import annotations

import pytest

from tests.flows.conftest import Ran, Workspace


def run(workspace: Workspace, decorators: str, body: str, head: str = "", **env: str) -> Ran:
    """Run a flow with these decorators on its first step."""
    workspace.write(
        f"""
from aflow import batch, conda, conda_base, kubernetes, pypi, pypi_base, secrets

{head}
class Flow_(FlowSpec):
    {decorators}
    @step
    def start(self):
        {body}
        self.next(self.end)

    @step
    def end(self):
        assert "PASSWORD" not in os.environ
"""
    )
    return workspace.finish(workspace.start("--no-pylint", "run", **env))


INLINE = '{"type": "inline", "options": {"env_vars": {"PASSWORD": "hunter2"}}}'
SHOW = 'print("length", len(os.environ["PASSWORD"]))'


def test_a_secret_is_a_variable_of_its_step_alone_and_is_shown_nowhere(
    workspace: Workspace,
) -> None:
    # Not as it is in the file of the flow, which is kept as the code of the run.
    source = INLINE.replace("hunter2", 'hun" + "ter2')
    ran = run(workspace, f"@secrets(sources=[{source}])", SHOW)
    assert (0, ["length 7"]) == (ran.code, [each for each in ran.lines if "length" in each])
    assert "hunter2" not in ran.out + ran.err
    for file in (workspace.path / ".aflow").rglob("*"):
        assert file.is_dir() or b"hunter2" not in file.read_bytes(), file
    workspace.check()


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_secrets_are_put_back_in_a_process_that_runs_many(
    workspace: Workspace, isolation: str
) -> None:
    ran = run(workspace, f"@secrets(sources=[{INLINE}])", SHOW, AFLOW_ISOLATION=isolation)
    assert 0 == ran.code, ran.err


@pytest.mark.parametrize(
    ("decorator", "reported"),
    [
        ('@secrets(sources=["vault.x"])', "'vault.x' names no backend: write backend.id"),
        ('@secrets(sources=[{"type": "nowhere"}])', "there is no backend 'nowhere'; there are:"),
        ('@secrets(sources=[{"id": "x"}])', "'x' names no backend: write backend.id, or type="),
        ('@secrets(sources=[{"id": 1}])', "a source that is a mapping has the keys type, id"),
        (f"@secrets(sources=[{INLINE}, {INLINE}])", "two sources have the variable PASSWORD"),
        (f"@secrets(sources=[{INLINE.replace('PASSWORD', 'HOME')}])", "HOME is set already"),
        (
            f"@secrets(sources=[{INLINE.replace('PASSWORD', 'A=B')}])",
            "is not a variable with a text",
        ),
    ],
)
def test_a_secret_that_is_not_to_be_had_fails_the_step_in_a_sentence(
    workspace: Workspace, decorator: str, reported: str
) -> None:
    ran = run(workspace, decorator, "pass")
    assert 1 == ran.code
    assert reported in ran.err
    assert "hunter2" not in ran.out + ran.err


def test_a_variable_is_overridden_only_where_that_is_said(workspace: Workspace) -> None:
    source = INLINE.replace("PASSWORD", "HOME")
    body = 'assert os.environ["HOME"] == "hunter2"'
    ran = run(workspace, f"@secrets(sources=[{source}], allow_override=True)", body)
    assert 0 == ran.code, ran.err


def test_secrets_that_cannot_be_read_are_refused_without_being_shown(workspace: Workspace) -> None:
    ran = run(workspace, '@secrets(sources="hunter2")', "pass")
    assert 0 != ran.code
    assert "@secrets: sources must be a list of texts and mappings" in ran.err
    assert "not '<str>'" in ran.err


def test_a_step_for_batch_or_kubernetes_runs_here_with_a_note(workspace: Workspace) -> None:
    ran = run(workspace, "@batch(cpu=2, memory=500)\n    @kubernetes(disk=1)", "pass")
    assert 0 == ran.code, ran.err
    assert "@batch: start would run on AWS Batch; this run is local: here." in ran.err
    assert "@kubernetes: start would run on Kubernetes; this run is local: here." in ran.err


def test_packages_are_those_that_are_installed_with_a_note_on_others(
    workspace: Workspace,
) -> None:
    ran = run(
        workspace,
        "@pypi(packages={'click': '0.1', 'no-such-package': '1',"
        " 'mine': '@ git+https://ada:hunter2@host/x'})",
        "pass",
        head="@conda_base(libraries={'msgpack': '>=1.0'}, python='3.11')",
        AFLOW_DEFAULT_ENVIRONMENT="local",
    )
    assert 0 == ran.code, ran.err
    assert "Package click 0.1 is asked for by start;" in ran.err
    assert "Package no-such-package 1 is not installed, which is asked for by: start." in ran.err
    assert "msgpack" not in ran.err
    assert "Package mine @ git+https://host/x is not installed" in ran.err


def test_a_step_may_do_without_the_packages_of_the_flow(workspace: Workspace) -> None:
    head = "@pypi_base(packages={'no-such-package': '1'})"
    local = {"AFLOW_DEFAULT_ENVIRONMENT": "local"}
    ran = run(workspace, "@pypi(disabled=True)", "pass", head=head, **local)
    assert "is asked for by: end." in ran.err


def test_an_option_that_batch_has_not_is_refused(workspace: Workspace) -> None:
    ran = run(workspace, "@batch(cpus=2)", "pass")
    assert 0 != ran.code
    assert "@batch has no option 'cpus'. Did you mean 'cpu'?" in ran.err


@pytest.mark.parametrize(
    "decorator", [f"@secrets(sources=[{INLINE}])", '@environment(vars={"PASSWORD": "hunter2"})']
)
def test_coroutines_side_by_side_hold_the_same_variable(
    workspace: Workspace, decorator: str
) -> None:
    workspace.write(
        f"""
import asyncio
from aflow import environment, secrets

class Flow_(FlowSpec):
    @step
    def start(self):
        self.words = ["a", "b", "c"]
        self.next(self.each, foreach="words")

    {decorator}
    @step
    async def each(self):
        await asyncio.sleep(0.02 * self.index)
        self.length = len(os.environ["PASSWORD"])
        self.next(self.join)

    @step
    def join(self, inputs):
        assert [7, 7, 7] == [each.length for each in inputs]
        self.next(self.end)

    @step
    async def end(self):
        assert "PASSWORD" not in os.environ
"""
    )
    ran = workspace.finish(workspace.start("--no-pylint", "run"))
    assert 0 == ran.code, ran.out + ran.err
    workspace.check()
