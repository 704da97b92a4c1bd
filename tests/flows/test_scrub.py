"""`logs scrub`: output that was printed by mistake is removed everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from aflow import client
from aflow.client.redact import redact_attempt
from aflow.metadata.metaflow.copies import Copies
from aflow.storage.base import Buffer
from aflow.storage.local import LocalStore
from tests.flows.conftest import Ran, Workspace

FLOW = """
class Flow_(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @step
    def start(self):
        print("SECRET of stdout", current.retry_count)
        print("SECRET of stderr", file=sys.stderr)
        if current.retry_count == 0:
            raise ValueError("again")
        self.next(self.loud)

    @step
    def loud(self):
        for number in range(30_000):
            print(number, "SECRET that fills chunks of the log " * 2)
        print("a line of no interest", file=sys.stderr)
        self.next(self.end)

    @step
    def end(self):
        print("a line that stays")
"""


@pytest.fixture
def run(workspace: Workspace) -> str:
    """Run a flow whose tasks print secrets, and return the run's id."""
    workspace.write(FLOW)
    ran = workspace.run("--run-id-file", "id")
    assert 0 == ran.code, ran.err
    return (workspace.path / "id").read_text()


def scrub(workspace: Workspace, *words: str) -> Ran:
    """Run `logs scrub`, which must succeed."""
    ran = workspace.finish(workspace.start("logs", "scrub", *words))
    assert 0 == ran.code, ran.err
    return ran


def shown(workspace: Workspace, *words: str) -> str:
    """Return the output of `logs`."""
    return workspace.finish(workspace.start("logs", *words)).out


def files_with(folder: Path, text: bytes) -> list[str]:
    """Return the files of the datastore that contain the text, compressed or not, except code."""
    return [
        str(path)
        for path in (folder / ".aflow").rglob("*")
        if path.is_file() and "blobs" not in path.parts and text in path.read_bytes()
    ]


def task_of(workspace: Workspace, run: str, step: str) -> client.Task:
    """Return the task of a step."""
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    return client.Step(f"Flow_/{run}/{step}").task


def copy_logs(workspace: Workspace, run: str) -> None:
    """Copy the logs as a service does for Metaflow's client."""
    for step in ("start", "loud"):
        task = task_of(workspace, run, step)
        source = task._source
        copies = Copies(source.blobs.store, source.metadata)
        copies.write_logs(source.record, task._view)


class Interrupted(LocalStore):
    """A store whose second chunk of a log cannot be written."""

    def put(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> None:
        if name.endswith("/00000001"):
            raise KeyboardInterrupt
        super().put(name, parts, durable=durable)


def test_a_redaction_that_was_interrupted_is_repeated(workspace: Workspace, run: str) -> None:
    task = task_of(workspace, run, "loud")
    source, view = task._source, task._now
    assert view.attempt is not None
    store = Interrupted(workspace.path / ".aflow")
    with pytest.raises(KeyboardInterrupt), source.place.writing() as metadata:
        redact_attempt(metadata, store, source.record, view.task, view.attempt, ["stdout"])

    scrub(workspace, "--stdout", f"{run}/loud")

    assert "[REDACTED task stdout]\n" == shown(workspace, "--stdout", f"{run}/loud")
    assert "a line of no interest\n" == shown(workspace, "--stderr", f"{run}/loud")


def test_nothing_of_what_was_redacted_is_left_in_any_file(workspace: Workspace, run: str) -> None:
    copy_logs(workspace, run)
    copies = [path for path in files_with(workspace.path, b"SECRET") if "/metaflow/" in path]
    assert 3 == len(copies), "the files of the latest attempts that Metaflow's client reads"

    said = scrub(workspace, "--all", f"{run}/start").err + scrub(workspace, f"{run}/loud").err

    assert 3 == said.count("Logs have been scrubbed for ")
    assert [] == files_with(workspace.path, b"SECRET")
    assert "[REDACTED task stdout]\n[REDACTED task stderr]\n" == shown(workspace, f"{run}/start")
    assert "a line that stays\n" == shown(workspace, f"{run}/end")
    workspace.check()


def test_one_stream_is_redacted_and_the_other_stays(workspace: Workspace, run: str) -> None:
    scrub(workspace, "--stdout", f"{run}/loud")

    assert "[REDACTED task stdout]\n" == shown(workspace, "--stdout", f"{run}/loud")
    assert "a line of no interest\n" == shown(workspace, "--stderr", f"{run}/loud")


def test_the_latest_attempt_alone_is_redacted_unless_all_are_meant(
    workspace: Workspace, run: str
) -> None:
    scrub(workspace, f"{run}/start")

    assert "SECRET of stdout 0\n" == shown(workspace, "--stdout", "--attempt", "0", f"{run}/start")
    assert "[REDACTED task stdout]\n" == shown(workspace, "--stdout", f"{run}/start")

    scrub(workspace, "--attempt", "0", "--stdout", f"{run}/start")
    first = shown(workspace, "--attempt", "0", f"{run}/start")
    assert "[REDACTED task stdout]\n" in first
    assert "SECRET of stderr\n" in first


def test_the_log_of_a_task_that_was_taken_over_is_that_of_its_origin(
    workspace: Workspace, run: str
) -> None:
    resumed = workspace.finish(
        workspace.start("resume", "end", "--origin-run-id", run, "--run-id-file", "id")
    )
    assert 0 == resumed.code, resumed.err
    clone = (workspace.path / "id").read_text()

    scrub(workspace, f"{clone}/start")

    assert "SECRET" not in shown(workspace, f"{run}/start")


def test_what_has_printed_nothing_is_said_in_one_sentence(workspace: Workspace, run: str) -> None:
    ran = workspace.finish(workspace.start("logs", "scrub", "--stderr", f"{run}/end"))

    assert 1 == ran.code
    assert f"There is nothing to redact of {run}/end" in ran.err
    assert "Traceback" not in ran.err
