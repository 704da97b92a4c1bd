"""`resume --reentrant`: several callers mean the same new run; one resumes, the others wait for it.

Whose record of the run comes first is the one. Where its process dies before anything has run but
what was taken over, another begins anew, under the same id.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aflow import backends
from aflow.cli.run import announcement
from aflow.errors import InvalidInput, VersionConflict
from aflow.ids import PARAMETERS_STEP
from aflow.runs.liveness import is_driven
from aflow.scheduler.states import RunState

if TYPE_CHECKING:
    from aflow.cli.session import Session
    from aflow.config import Settings
    from aflow.metadata.base import MetadataStore, RunRecord

LOOK_AGAIN = 1.0  # seconds: a run of another process or machine tells nobody that it has ended


def lead_or_follow(
    session: Session,
    run: str,
    lead: Callable[[], int],
    *,
    clone_only: bool,
    run_id_file: str | None,
    runner_attribute_file: str | None,
) -> int:
    """The exit code of `lead`, which resumes and names the new run `run`, or the code that means
    how the run has ended that somebody else drives: then the files are written here."""
    settings, flow = session.settings(), session.define().name
    while True:
        ended = _wait(session, settings, flow, run)
        if ended is not None:
            if run_id_file is not None:
                Path(run_id_file).write_text(run)
            if runner_attribute_file is not None:
                Path(runner_attribute_file).write_text(announcement(flow, run, settings))
            session.note(f"{flow}/{run} is {ended.state.value}: nothing is left to resume.")
            wanted = {RunState.SUCCEEDED, *([RunState.CANCELLED] if clone_only else [])}
            return 0 if ended.state in wanted else 1
        try:
            return lead()
        except VersionConflict:
            session.note(f"Somebody else has begun {flow}/{run} a moment ago.")


def _wait(session: Session, settings: Settings, flow: str, run: str) -> RunRecord | None:
    """The run when it has ended; None if there is none, or none any more."""
    if not settings.has_metadata:
        return None
    metadata = backends.open_metadata(settings.metadata_url, settings.durability)
    try:
        told = False
        while (found := metadata.run(flow, run)) is not None:
            if found.state not in (RunState.PENDING, RunState.RUNNING):
                return found
            if not is_driven(found):
                _remove(metadata, found)
                return None
            if not told:
                by = found.settings.get("resume_identifier") or "another process"
                session.note(f"{flow}/{run} is being resumed by {by}; waiting until it has ended.")
                told = True
            time.sleep(LOOK_AGAIN)
        return None
    finally:
        metadata.close()


def _remove(metadata: MetadataStore, run: RunRecord) -> None:
    """Make room for another beginning; raises InvalidInput if that would cost any result."""
    for view in metadata.tasks(run.key, light=True):
        if view.task.step != PARAMETERS_STEP and not view.task.origin:
            raise InvalidInput(
                f"{run.flow}/{run.run} has run tasks of its own, and its process is no more: "
                f"resume it with --origin-run-id {run.run} and another --run-id."
            )
    metadata.delete_run(run.key)
