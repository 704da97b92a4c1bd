"""`explain`: why tasks ran, or did not; and `run --dry-run`, which says it before."""

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
from aflow.storage.factory import open_store
from aflow.storage.memory import MemoryStore

if TYPE_CHECKING:
    from aflow._core.settings import RunOptions, Settings
    from aflow.flow.definition import FlowDefinition
    from aflow.metadata.base import MetadataStore

_NAMED = 3  # tasks that are named where many share one line


def explain_parameters() -> list[click.Parameter]:
    """Return the argument of `explain`."""
    return [pathspec_argument()]


def explain(session: Session, path: str) -> None:
    """Say of every task that the path means why it ran, or did not."""
    spec = pathspec(session, path)
    settings = session.settings()
    with _metadata(settings) as metadata:
        run = recorded_run(metadata, spec)
        blobs = BlobStore(open_store(settings.storage_url))
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
    """Say which tasks a run with these options would run, and why; nothing is run or recorded. It
    is written to `file` as well, if one is named, as JSON.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        options: The options of the run that is foreseen.
        settings: The settings of this program; its metadata and datastore are only read.
        file: The path of the JSON file; None for none.
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
    """The parameters that the run would have: name, type, and the value as a short text."""
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
    """The metadata, to be read; that of no run at all where nothing has run yet."""
    if settings.has_metadata:
        with closing(open_metadata(settings.metadata_url, read_only=True)) as metadata:
            yield metadata
        return
    with (
        TemporaryDirectory() as folder,
        closing(open_metadata(f"sqlite:///{folder}/metadata.db")) as metadata,
    ):
        yield metadata


def _grouped(lines: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """One line for all tasks of a step that have the same text."""
    groups: dict[tuple[str, str], list[str]] = {}
    for step, name, text in lines:
        groups.setdefault((step, text), []).append(name)
    for (_, text), names in groups.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"{', '.join(names[:_NAMED])}{more} {text}"
