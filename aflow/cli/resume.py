"""`resume`: start a run that reuses the finished tasks of another run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from aflow._core import ids
from aflow._core.ids import PARAMETERS_STEP
from aflow.cli.options import flag, option, run_options
from aflow.cli.run import announce, name_of_run, run
from aflow.cli.selection import own_latest
from aflow.errors import InvalidInput, VersionConflict
from aflow.metadata.factory import has_runs, histories_of, open_metadata
from aflow.metadata.metaflow.importing import import_run
from aflow.runs.liveness import is_driven
from aflow.scheduler.states import RunState
from aflow.storage.blobs import BlobStore
from aflow.storage.factory import open_store

if TYPE_CHECKING:
    from aflow._core.settings import Settings
    from aflow.cli.session import Session
    from aflow.flow.definition import FlowDefinition
    from aflow.metadata.base import MetadataStore, RunRecord


def resume_parameters() -> list[click.Parameter]:
    """Return the parameters of `resume`: the options of `run`, and those for the run to resume."""
    return [
        click.Argument(["step_to_rerun"], required=False, metavar="[STEP_TO_RERUN]"),
        option(
            "--origin-run-id",
            metavar="RUN",
            help="The run to resume.  [default: your latest run of the flow]",
        ),
        flag(
            "--rerun-missing", help="Run tasks again whose artifacts are missing in the datastore."
        ),
        *(each for each in run_options() if each.name != "namespace"),
        flag("--clone-only/--no-clone-only", help="Reuse finished tasks, and run nothing."),
        flag(
            "--reentrant/--no-reentrant",
            help="Let several processes resume the same run: one does it, the others wait.",
        ),
        option("--run-id", metavar="NAME", help="An id for the new run; it must not be a number."),
        option(
            "--resume-identifier", metavar="NAME", help="A name that is recorded with the new run."
        ),
    ]


def resume(
    session: Session,
    changed: Mapping[str, Any],
    step_to_rerun: str | None,
    origin_run_id: str | None,
    rerun_missing: bool,
    run_id: str | None,
    resume_identifier: str | None,
    clone_only: bool,
    reentrant: bool,
    **values: Any,
) -> int:
    """`resume`. Returns the exit code. `changed` are values of parameters, by attribute, that
    replace those of the origin."""

    def origin(definition: FlowDefinition, settings: Settings) -> dict[str, Any]:
        if step_to_rerun is not None and step_to_rerun not in definition.steps:
            raise InvalidInput(
                f"{definition.name} has no step {step_to_rerun!r} to run again; its steps are: "
                f"{', '.join(definition.steps)}."
            )
        return {
            "origin_run": (
                own_latest(definition.name, settings, "--origin-run-id RUN").run
                if origin_run_id is None
                else _named(definition.name, origin_run_id, settings)
            ),
            "rerun_step": step_to_rerun,
            "rerun_missing": rerun_missing,
            "clone_only": clone_only,
            "run_id": name_of_run(run_id),
            "resume_identifier": resume_identifier,
        }

    if changed and step_to_rerun is None:
        session.note(
            f"Finished tasks keep the results that they had with the earlier {', '.join(changed)}: "
            "name the first step that is to run with the new value (resume STEP)."
        )
    if clone_only and values["dry_run"]:
        raise click.UsageError("--clone-only runs nothing, so there is nothing for --dry-run.")

    if not reentrant or values["recover"] is not None:
        return run(session, changed, origin=origin, **values)
    if run_id is None or origin_run_id is None:
        raise click.UsageError(
            "--reentrant needs --run-id and --origin-run-id: all callers name the same runs."
        )

    settings, flow, new = session.settings(), session.define().name, name_of_run(run_id) or run_id
    while True:
        ended = _wait(session, settings, flow, new)
        if ended is not None:
            announce(flow, settings, values["run_id_file"], values["runner_attribute_file"], new)
            session.note(f"{flow}/{new} is {ended.state.value}: there is nothing to resume.")
            stopped = clone_only and ended.state is RunState.CANCELLED
            return 0 if stopped or ended.state is RunState.SUCCEEDED else 1
        try:
            return run(session, changed, origin=origin, **values)
        except VersionConflict:
            session.note(f"Someone else started {flow}/{new} a moment ago.")


def _named(flow: str, given: str, settings: Settings) -> str:
    """Return the id of the run that is given as RUN or FLOW/RUN. Raises InvalidInput for a run of
    another flow; a run that does not exist is reported later."""
    of, _, run = given.rpartition("/")
    if of not in ("", flow) and of.isidentifier():
        raise _of_another(of, run, flow)
    ids.run_id(run if of in ("", flow) else given)
    if not has_runs(settings.metadata_url):
        return run
    with closing(open_metadata(settings.metadata_url)) as metadata:
        if metadata.run(flow, run) is None and not _imported(flow, run, metadata, settings):
            for other, _ in metadata.flows():
                if metadata.run(other, run) is not None:
                    raise _of_another(other, run, flow)
    return run


def _imported(flow: str, run: str, metadata: MetadataStore, settings: Settings) -> bool:
    """Import a run of Metaflow, so that it can be resumed; return whether there is one."""
    for each in histories_of(settings.metadata_url, metadata):
        with closing(each) as history:
            found = history.run(flow, run)
            if found is not None:
                place = history.open_store(found.settings["storage"])
                own = open_store(settings.storage_url)
                blobs = BlobStore(own, settings.durability == "power")
                import_run(history, found, place, metadata, blobs)
                return True
    return False


def _of_another(other: str, run: str, flow: str) -> InvalidInput:
    return InvalidInput(
        f"{other}/{run} is a run of another flow, which {flow} cannot resume: use the file of "
        f"{other}."
    )


# `resume --reentrant`: several callers resume into the same new run; one of them resumes, the
# others wait for it.
#
# The caller that records the run first resumes. If its process crashes before it has run a task,
# other than reusing results, another caller starts again, under the same id.


LOOK_AGAIN = 1.0  # seconds between polls: runs of other machines do not notify this process


def _wait(session: Session, settings: Settings, flow: str, run: str) -> RunRecord | None:
    """Return the run once it has ended; None if it does not exist, or has been removed."""
    if not settings.has_metadata:
        return None
    with closing(open_metadata(settings.metadata_url, settings.durability)) as metadata:
        is_announced = False
        while (found := metadata.run(flow, run)) is not None:
            if found.state not in (RunState.PENDING, RunState.RUNNING):
                return found
            if not is_driven(found):
                _remove(metadata, found)
                return None
            if not is_announced:
                by = found.settings.get("resume_identifier") or "another process"
                session.note(f"{flow}/{run} is being resumed by {by}; waiting until it has ended.")
                is_announced = True
            time.sleep(LOOK_AGAIN)
    return None


def _remove(metadata: MetadataStore, run: RunRecord) -> None:
    """Delete the run, so that it can be started again; raises InvalidInput if that would lose
    results of tasks."""
    for view in metadata.tasks(run.key, light=True):
        if view.task.step != PARAMETERS_STEP and not view.task.origin:
            raise InvalidInput(
                f"{run.flow}/{run.run} has run tasks of its own, and its process has ended: "
                f"resume it with --origin-run-id {run.run} and another --run-id."
            )
    metadata.delete_run(run.key)
