"""Runs with metadata in PostgreSQL, through the command line and the client."""

from __future__ import annotations

from aflow._core.secret import without_passwords
from tests.flows.conftest import Workspace
from tests.support.postgres import new_schema
from tests.support.servers import Server

FLOW = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.items = [1, 2, 3]
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.twice = 2 * self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        from aflow import Run

        self.total = sum(each.twice for each in inputs)
        print("seen inside:", Run(f"Flow_/{current.run_id}").id == current.run_id)
        self.next(self.end)

    @step
    def end(self):
        print("total", self.total)
"""


def test_a_run_is_recorded_there_and_found_again(
    workspace: Workspace, postgres_server: Server
) -> None:
    url = new_schema(postgres_server)
    workspace.write(FLOW)
    ran = workspace.run("--metadata", url)
    assert 0 == ran.code, ran.err
    assert ["seen inside: True"] == [line for line in ran.lines if "seen" in line]
    assert not (workspace.path / ".aflow" / "metadata.db").exists()

    resumed = workspace.finish(workspace.start("--no-pylint", "resume", AFLOW_DEFAULT_METADATA=url))
    status = workspace.finish(workspace.start_aflow("status", AFLOW_DEFAULT_METADATA=url))
    assert (0, 0) == (resumed.code, status.code)
    assert "cloned!" in resumed.out
    assert "Flow_" in status.out
    for each in (ran, resumed, status):
        assert "secret" not in each.out + each.err


def test_a_wrong_password_ends_in_a_sentence(workspace: Workspace, postgres_server: Server) -> None:
    url = new_schema(postgres_server).replace(":secret@", ":wrong-one@")
    workspace.write(FLOW)
    ran = workspace.run("--metadata", url)

    assert 1 == ran.code
    assert f"The metadata in {without_passwords(url)} cannot be used" in ran.err
    assert "wrong-one" not in ran.out + ran.err
