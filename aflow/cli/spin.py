"""`spin`: run one step again, alone, with the inputs that it had in an earlier run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aflow._core.settings import SpinOptions
from aflow.cli.checks import CodeCheck
from aflow.cli.options import flag, option, run_options
from aflow.cli.run import execute
from aflow.cli.session import Session
from aflow.errors import FlowFileError, InvalidInput
from aflow.runs.spin import alone

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition

_SHARED = ("max_log_size", "run_id_file", "runner_attribute_file", "namespace", "progress")


def spin_parameters() -> list[click.Parameter]:
    """Return the parameters of `spin`."""
    return [
        click.Argument(["path"], metavar="STEP|RUN/STEP[/TASK]"),
        flag("--skip-decorators/--no-skip-decorators", help="Run the step without decorators."),
        option(
            "--artifacts-module",
            metavar="FILE",
            type=click.Path(dir_okay=False, exists=True),
            help="A Python file with a dict ARTIFACTS that replaces artifacts of the inputs.",
        ),
        option(
            "--persist/--no-persist",
            default=None,
            help="Store the artifacts of the step.  [default: persist]",
        ),
        flag(
            "--debug",
            "debugged",
            help="Give the terminal to the step: for breakpoint(), pdb and input().",
        ),
        *(each for each in run_options() if each.name in _SHARED),
    ]


def spin(
    session: Session,
    path: str,
    skip_decorators: bool,
    artifacts_module: str | None,
    persist: bool | None,
    debugged: bool,
    **values: Any,
) -> int:
    """`spin`. Returns the exit code."""
    settings = session.settings(
        max_log_size=values.pop("max_log_size"),
        spin_persist=persist,
        progress=values.pop("progress"),
    )
    definition = session.define()
    which = _which(path, definition)
    with CodeCheck(definition.file, enabled=session.wants_code_check) as code:
        code.finish(session.note)
    artifacts = {} if artifacts_module is None else _artifacts(Path(artifacts_module))
    spun = alone(definition, which["step"], bare=skip_decorators)
    return execute(
        session,
        spun,
        settings,
        debug_step=which["step"] if debugged else None,
        spin=SpinOptions(**which, artifacts=artifacts, persist=settings.spin_persist),
        **values,
    )


def _which(path: str, definition: FlowDefinition) -> dict[str, Any]:
    """Return step, run and task of `step`, `run/step` or `run/step/task`, with an optional flow."""
    parts = path.removeprefix(f"{definition.name}/").split("/")
    run, step, task = (None, *parts, None) if len(parts) == 1 else (*parts, None, None)[:3]
    if len(parts) > 3 or not step or (task is not None and not re.fullmatch(r"\d+", task)):
        raise click.BadParameter(f"{path!r} names no step: give STEP, RUN/STEP or RUN/STEP/TASK.")
    if step not in definition.steps:
        raise InvalidInput(
            f"{definition.name} has no step {step!r} to spin; its steps are: "
            f"{', '.join(definition.steps)}."
        )
    return {"step": step, "run": run, "task": None if task is None else int(task)}


def _artifacts(file: Path) -> dict[str, Any]:
    """Return the artifacts by which the module replaces those of the inputs."""
    import runpy

    try:
        values = runpy.run_path(str(file)).get("ARTIFACTS")
    except (Exception, SystemExit) as error:
        raise FlowFileError(f"{file} does not run: {type(error).__name__}: {error}.") from error
    if not isinstance(values, dict):
        raise FlowFileError(f"{file} must have a dict ARTIFACTS of values by name.")
    return values
