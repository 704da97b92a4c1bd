"""`explain`: show why tasks ran or were reused; and `run --dry-run`, which predicts it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from aflow._core.clock import SystemClock
from aflow.cli.errors import printable
from aflow.cli.options import write_file
from aflow.cli.selection import pathspec, pathspec_argument, recorded_run
from aflow.cli.session import Session
from aflow.errors import NotFound
from aflow.metadata.factory import open_metadata
from aflow.runs.cache.explain import explain as explained
from aflow.runs.create import Creation
from aflow.runs.dry_run import DryRun, counted
from aflow.storage.artifacts import Manifest
from aflow.storage.blobs import BlobStore
from aflow.storage.factory import open_recorded_store, open_store
from aflow.storage.memory import MemoryStore

if TYPE_CHECKING:
    from aflow._core.settings import RunOptions, Settings
    from aflow.flow.definition import FlowDefinition
    from aflow.metadata.base import MetadataStore

_NAMED = 3  # maximum number of tasks that are named on a line


def explain_parameters() -> list[click.Parameter]:
    """Return the argument of `explain`."""
    return [pathspec_argument()]


def explain(session: Session, path: str) -> None:
    """Print for every task of the path why it ran, or why its result was reused."""
    spec = pathspec(session, path)
    settings = session.settings()
    with closing(open_metadata(settings.metadata_url, read_only=True)) as metadata:
        run = recorded_run(metadata, spec)
        blobs = BlobStore(open_recorded_store(run.settings["storage"]))
        task = None if spec.task is None else int(spec.task)
        found = [*explained(metadata, blobs, run, step=spec.step, task=task)]
    if not found:
        raise NotFound(f"There is no task {spec} in {settings.metadata_url}.")
    for line in _grouped((each.step, each.pathspec, each.text) for each in found):
        click.echo(printable(line))


def dry_run(
    definition: FlowDefinition,
    options: RunOptions,
    settings: Settings,
    file: str | None = None,
) -> None:
    """Print which tasks a run with these options would run, and why. Nothing is run or recorded.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        options: The options of the run.
        settings: The settings; their metadata and datastore are only read.
        file: A JSON file to write the result to; None for none.
    """
    with _metadata(settings) as metadata:
        store = open_store(settings.storage_url)
        creation = Creation(metadata, store, settings.durability, settings.user, SystemClock())
        plan = creation.plan(definition, options, options.parameters, MemoryStore())
        blobs = BlobStore(store)
        dry = DryRun(definition, plan, metadata, blobs, options)
        forecasts = [*dry.forecasts()]
        after = dry.unforeseen(each.step for each in forecasts)
    if file is not None:
        found = {
            "parameters": _parameters(definition, plan.parameters),
            **counted(forecasts),
            "after": after,
        }
        write_file(file, json.dumps(found))
    lines = ((each.step, _named(each.step, each.position), each.text) for each in forecasts)
    for line in _grouped(lines):
        click.echo(printable(line))
    for step in after:
        click.echo(f"{step} depends on the results of those that would run")


def _parameters(definition: FlowDefinition, manifest: bytes) -> list[dict[str, str]]:
    """Return the parameters of the run: name, type, and a short text of the value."""
    entries = Manifest.decode(manifest).artifacts
    return [
        {
            "name": each.name,
            "type": entries[attribute].type,
            "value": str(entries[attribute].preview.get("repr", f"<{entries[attribute].type}>")),
        }
        for attribute, each in definition.parameters.items()
        if attribute in entries
    ]


def _named(step: str, position: tuple[int, ...]) -> str:
    return f"{step}[{']['.join(map(str, position))}]" if position else step


@contextmanager
def _metadata(settings: Settings) -> Iterator[MetadataStore]:
    """Yield the metadata, opened for reading; empty metadata if there is none yet."""
    with TemporaryDirectory() as folder:
        known = settings.has_metadata
        url = settings.metadata_url if known else f"sqlite:///{folder}/metadata.db"
        with closing(open_metadata(url, read_only=known)) as metadata:
            yield metadata


def _grouped(lines: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Yield one line for all tasks of a step with the same text."""
    groups: dict[tuple[str, str], list[str]] = {}
    for step, name, text in lines:
        groups.setdefault((step, text), []).append(name)
    for (_, text), names in groups.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"{', '.join(names[:_NAMED])}{more} {text}"
