"""`aflow gc`: delete runs, and then data without references."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import click

from aflow._core import ids
from aflow._core.clock import SystemClock, duration
from aflow._core.settings import Settings, choices_of
from aflow._core.wording import plural, size_text
from aflow.cli.errors import printable
from aflow.cli.options import count_option, flag, option, tags_option, timespan_option
from aflow.environments.build import Environments, cache_folder
from aflow.errors import InvalidInput
from aflow.metadata.factory import open_all_own
from aflow.runs.gc import RunsToDelete, collect
from aflow.storage.factory import open_store
from aflow.task import code_package

if TYPE_CHECKING:
    from aflow.runs.gc import Removed

_SHOWN = 20  # maximum number of runs that are printed


def gc() -> click.Command:
    """Return the command `gc`."""
    return click.Command("gc", params=_parameters(), callback=_gc, help=_HELP)


_HELP = """Delete runs, and then artifacts, logs and cards without references.

A run is deleted if all of the filters match it. Without a filter no run is deleted. Active runs and
the origins of active runs are never deleted. `aflow gc` may be used while runs are active.

\b
  aflow gc --older-than 30d --dry-run     show what would be deleted, and how much
  aflow gc --failed --keep 5              failed runs, except the 5 newest of each flow
  aflow gc                                only data without references
"""


def _parameters() -> list[click.Parameter]:
    return [
        option("--flow", metavar="NAME", help="Only runs of this flow."),
        option("--run", metavar="FLOW/RUN", help="Only this run."),
        timespan_option(
            "--older-than", "Only runs that ended at least this long ago: 12h, 30d, 8w."
        ),
        tags_option("Only runs with this tag; may be given several times."),
        flag("--failed", help="Only runs that did not succeed."),
        count_option("--keep", least=0, default=0, help="Keep the N newest runs of each flow."),
        flag("--spins", help="Delete runs of `spin` instead of other runs."),
        timespan_option(
            "--grace", "Keep data that were written or used within this time.", default="1h"
        ),
        timespan_option(
            "--environments",
            "Delete environments of steps (@pypi, @conda) that were unused for this long.",
            default="30d",
        ),
        option(
            "--datastore",
            type=click.Choice(choices_of("datastore")),
            help="Where the artifacts are stored.",
        ),
        option(
            "--datastore-root",
            metavar="PATH",
            help="Folder of the datastore, or s3://bucket/prefix.",
        ),
        flag(
            "--sole-owner",
            help="Confirm that no other metadata has runs in the datastore (required in S3).",
        ),
        flag("--dry-run", help="Only show what would be deleted."),
    ]


def _gc(
    flow: str | None,
    run: str | None,
    older_than: float | None,
    tags: tuple[str, ...],
    failed: bool,
    keep: int,
    spins: bool,
    grace: float,
    environments: float,
    datastore: str | None,
    datastore_root: str | None,
    sole_owner: bool,
    dry_run: bool,
) -> None:
    settings = Settings.load(datastore=datastore, datastore_root=datastore_root)
    if settings.datastore != "local" and settings.metadata == "local" and not sole_owner:
        raise InvalidInput(
            f"{settings.storage_url} may be shared with others, of whose runs the metadata in "
            f"{settings.root} knows nothing: what only they need would be deleted. Give "
            "--sole-owner if nobody else has runs there."
        )
    now = SystemClock.now()
    before = None if older_than is None else now - older_than
    if run is not None:
        of, slash, run = run.partition("/")
        if not slash or not run or flow not in (None, of):
            raise click.BadParameter("--run takes the flow and the id of one run, as MyFlow/1234.")
        flow, run = of, ids.run_id(run)
    if flow is not None:
        ids.flow_name(flow)
    if not settings.has_metadata:
        click.echo(f"Nothing has run here yet: there is no datastore {settings.root}.")
        return
    chosen = RunsToDelete(
        flow=flow, run=run, before=before, tags=tags, failed=failed, keep=keep, spins=spins
    )
    opened = open_all_own(settings.metadata_url, settings.durability, read_only=dry_run)
    with closing(opened) as metadata:
        store = open_store(settings.storage_url)
        removed = collect(metadata, store, chosen, now, grace=grace, dry_run=dry_run)
    _print_result(removed, dry_run, grace)
    _warn(removed)
    _sweep_code(settings, grace, now, dry_run=dry_run)
    _sweep_environments(settings, environments, now, dry_run=dry_run)


def _sweep_environments(settings: Settings, age: float, now: float, *, dry_run: bool) -> None:
    """Delete the unused environments of this user."""
    count, size = Environments(cache_folder(settings)).sweep(age, now, dry_run=dry_run)
    if count:
        _print_deleted(f"{plural(count, 'environment')} of steps", size, dry_run)


def _sweep_code(settings: Settings, kept: float, now: float, *, dry_run: bool) -> None:
    """Delete the unused code that servers, workers and `recover` have unpacked here."""
    # All projects of this user share the cache, so keep its code at least as long as workers do.
    cache = settings.cache / "code"
    below = {settings.root / "server" / "code": kept, cache: max(kept, code_package.KEPT_UNUSED)}
    found = [code_package.sweep(each, age, now, dry_run=dry_run) for each, age in below.items()]
    counts, sizes = zip(*found, strict=True)
    if sum(counts):
        _print_deleted(f"{plural(sum(counts), 'folder')} of unpacked code", sum(sizes), dry_run)


def _print_deleted(what: str, size: float, dry_run: bool) -> None:
    verb = "would be deleted" if dry_run else "deleted"
    click.echo(f"{what} {verb}: {size_text(size)}.")


def _print_result(removed: Removed, dry_run: bool, grace: float) -> None:
    for run in removed.runs[:_SHOWN]:
        click.echo(printable(f"{run.flow}/{run.run}  {run.state.value}", lines=False))
    if len(removed.runs) > _SHOWN:
        click.echo(f"and {len(removed.runs) - _SHOWN} more")
    runs, objects = plural(len(removed.runs), "run"), plural(removed.objects, "object")
    _print_deleted(f"{runs} and {objects}", removed.size, dry_run)
    if removed.young:
        young = plural(removed.young, "object")
        click.echo(
            f"Nothing refers to {young} more, written or used in the last {duration(grace)} "
            "(--grace), or since a task that still runs has started."
        )


def _warn(removed: Removed) -> None:
    """Report the damaged runs, because of which no blob was deleted."""
    for run, reason in removed.damaged[:_SHOWN]:
        name = printable(f"{run.flow}/{run.run}", lines=False)
        click.echo(
            f"{name} cannot be read: {printable(reason, lines=False).rstrip('.')}.", err=True
        )
    if removed.damaged:
        click.echo(
            f"{plural(len(removed.damaged), 'run')} may refer to any artifact, so no artifact was "
            "deleted. Restore the metadata, or delete what is damaged: aflow gc --run FLOW/RUN",
            err=True,
        )
