"""`dump`: show the artifacts of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aflow.cli.errors import printable
from aflow.cli.options import count_option, file_option, flag, option, write_file
from aflow.cli.selection import pathspec_argument, tasks_of
from aflow.cli.session import Session

if TYPE_CHECKING:
    from aflow.client import DataArtifact, Task


def dump_parameters() -> list[click.Parameter]:
    """Return the parameters of `dump`."""
    return [
        pathspec_argument(),
        flag("--private/--no-private", help="Include artifacts whose names begin with _."),
        count_option(
            "--max-value-size",
            least=0,
            metavar="BYTES",
            default=1000,
            help="Show values up to this size; 0: only names.",
        ),
        option("--include", metavar="A,B", default="", help="Only these artifacts."),
        file_option("--file", "Write the values to this file: a pickle of {task: {name: value}}."),
    ]


def dump(
    session: Session, path: str, private: bool, max_value_size: int, include: str, file: str | None
) -> None:
    """Show the artifacts of each task, sorted by name; or write all values to a file."""
    names = {name.strip() for name in include.split(",") if name.strip()}
    values: dict[str, dict[str, Any]] = {}
    for task in tasks_of(session, path):
        artifacts = _artifacts(task, private, names)
        if file is None:
            _show(session, task, artifacts, max_value_size)
        else:
            # Without the flow's name, as programs written for Metaflow expect.
            known = task.pathspec.partition("/")[2]
            values[known] = {artifact.id: artifact.data for artifact in artifacts}
    if file is not None:
        import pickle  # only needed with --file

        write_file(file, pickle.dumps(values, protocol=pickle.HIGHEST_PROTOCOL))
        session.note(f"Artifacts written to {file}")


def _artifacts(task: Task, private: bool, names: set[str]) -> list[DataArtifact]:
    shown = (each for each in task if private or not each.id.startswith("_"))
    chosen = (each for each in shown if not names or each.id in names)
    return sorted(chosen, key=lambda artifact: artifact.id)


def _show(session: Session, task: Task, artifacts: list[DataArtifact], max_value_size: int) -> None:
    session.note(f"Dumping output of {task.pathspec}")
    for artifact in artifacts:
        facts = f"{artifact.id} [size: {artifact.size} type: {artifact.type}]"
        if artifact.size > max_value_size:
            click.echo(f"{facts} < artifact too large >" if max_value_size else artifact.id)
        else:
            click.echo(printable(f"{facts} = {artifact.data!r}"))
