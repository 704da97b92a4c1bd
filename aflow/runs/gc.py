"""Garbage collection: delete runs, then all objects that nothing refers to.

References come from two places: the runs in the metadata store, and the roots in the datastore
(`aflow/storage/roots.py`), which deployed flows and schedules declare for the objects they need.

Safe during other runs: a blob is removed only if no manifest refers to it and it was not written or
touched for `grace` seconds, or since `grace` seconds before the start of a task that still runs. A
process touches an existing blob before it refers to it (`BlobStore.put`, `BlobStore.claim`); the
store makes a concurrent touch and removal atomic, so that only one of the two takes effect. This is
the design of Nix's garbage collector with timestamps instead of locks.

A run with a damaged record or manifest may refer to any blob. As long as it exists no blob is
removed, because its blobs would be lost even if the damage was repaired. Such runs are reported;
objects other than blobs are still removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from aflow.environments.record import blobs_of
from aflow.errors import AflowError, CorruptBlob, MetadataError, StoreUnavailable
from aflow.metadata.base import DAMAGED, FIRST_KEY, LEASE, SPIN
from aflow.metadata.metaflow import copies
from aflow.runs.liveness import holder_named, is_deployed, is_driven, left_for
from aflow.scheduler.states import TERMINAL_RUN_STATES, RunState, TaskState
from aflow.storage import roots
from aflow.storage.artifacts import Manifest
from aflow.storage.blobs import BlobStore, blob_name
from aflow.storage.items import blobs_of_items

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore, RunRecord
    from aflow.storage.base import ObjectStore

GRACE = 3600.0  # seconds for which untouched objects and orphaned runs are kept


class RunsToDelete(NamedTuple):
    """The criteria for the runs to delete; a run must match all of them. Without any criterion, no
    run is deleted.

    `flow` and `run` (the id of one run of `flow`) select by name. `before` is the latest end of a
    run, in seconds since the epoch; `tags` are required tags; `failed` excludes runs that
    succeeded; `keep` is the number of the newest runs of each flow that are always kept; `spins`
    selects spins, for which `keep` is ignored, instead of ordinary runs.
    """

    flow: str | None = None
    run: str | None = None
    before: float | None = None
    tags: Sequence[str] = ()
    failed: bool = False
    keep: int = 0
    spins: bool = False


class Removed(NamedTuple):
    """What was removed, or would be in a dry run: runs, and the number and bytes of objects.

    `young` is the number of unreferenced objects that were kept because they were touched within
    the grace period. `damaged` are the runs whose references are unknown, with the reason; if there
    are any, no blob was removed.
    """

    runs: list[RunRecord]
    objects: int
    size: int
    young: int
    damaged: list[tuple[RunRecord, str]]


class FlowSize(NamedTuple):
    """The storage use of a flow's runs: the number of `objects`, each counted once, and bytes."""

    flow: str
    runs: int
    objects: int
    size: int


class StorageSizes(NamedTuple):
    """The storage use of all flows, largest first. `objects` and `size` are totals, which count
    objects shared by several flows once. `complete` is False if some runs were not measured."""

    flows: list[FlowSize]
    objects: int
    size: int
    complete: bool


def sizes(metadata: MetadataStore, give_up: Callable[[], bool]) -> StorageSizes:
    """Return the storage use of the artifacts and the code of each flow, computed from manifests.
    Unreadable manifests of damaged runs are not counted.

    Args:
        metadata: The metadata store; all its flows are measured.
        give_up: Called before each run; returns True to stop early.
    """
    found, everything, complete = [], dict[bytes, int](), True
    for flow, _ in metadata.flows():
        own: dict[bytes, int] = {}
        runs = _runs_of(metadata, flow)
        for number, run in enumerate(runs):
            if run.key >= FIRST_KEY:  # a run of Metaflow: its data are in another datastore
                continue
            if give_up():
                complete, runs = False, runs[:number]
                break
            own.update(_sizes_of(metadata, run))
        everything |= own
        found.append(FlowSize(flow, len(runs), len(own), sum(own.values())))
        if not complete:
            break
    found.sort(key=lambda each: (-each.size, each.flow))
    return StorageSizes(found, len(everything), sum(everything.values()), complete)


def _runs_of(metadata: MetadataStore, flow: str) -> list[RunRecord]:
    """Return all runs of a flow, including spins."""
    return [run for kind in ("", SPIN) for run in metadata.runs(flow, kind=kind)]


def _sizes_of(metadata: MetadataStore, run: RunRecord) -> Iterator[tuple[bytes, int]]:
    """Yield the blobs that a run refers to, each as the first half of its key, and their sizes.
    (Half a key suffices to count blobs once, and takes less memory.)"""
    code = run.settings.get("code") or {}
    if isinstance(code.get("key"), str) and isinstance(code.get("size"), int):
        yield bytes.fromhex(code["key"][:32]), code["size"]
    for data in metadata.all_manifests(run.key):
        try:
            manifest = Manifest.decode(data)
        except AflowError:
            continue
        for entry in manifest.artifacts.values():
            for key, size in entry.blobs:
                yield bytes.fromhex(key[:32]), size


def runs_to_delete(
    metadata: MetadataStore, selection: RunsToDelete, grace: float = GRACE
) -> list[RunRecord]:
    """Return the runs to delete. Never includes a run that is still running, or the origin of one;
    an orphaned run counts as running for `grace` seconds, because it may be recovered.

    Args:
        metadata: The metadata store; all its flows are searched if `selection` has no flow.
        selection: The criteria for the runs to delete.
        grace: The time in seconds for which a run without a coordinator is kept.
    """
    if selection == RunsToDelete():
        return []
    flows = (
        [selection.flow] if selection.flow is not None else [flow for flow, _ in metadata.flows()]
    )
    return [run for flow in flows for run in _of_flow(metadata, flow, selection, grace)]


def _of_flow(
    metadata: MetadataStore, flow: str, selection: RunsToDelete, grace: float
) -> Iterator[RunRecord]:
    runs = metadata.runs(flow)
    spins = metadata.runs(flow, kind=SPIN)
    alive = [run for run in (*runs, *spins) if _may_go_on(run, grace)]
    needed = {run.run for run in alive} | {run.origin_run for run in alive}
    for run in spins if selection.spins else runs[selection.keep :]:
        if run.run not in needed and _is_meant(run, selection):
            yield run


def _may_go_on(run: RunRecord, grace: float) -> bool:
    if run.state in TERMINAL_RUN_STATES:
        return False
    return is_driven(run) or left_for(run) < grace


def _deleted(metadata: MetadataStore, run: RunRecord, now: float) -> bool:
    """Delete the run and return whether it was deleted. An unfinished run is deleted only if its
    lease can be acquired, because a coordinator may be about to recover it."""
    has_lease = run.state not in TERMINAL_RUN_STATES and not is_deployed(run)
    if has_lease and not metadata.acquire_lease(run.key, holder_named("gc"), LEASE, now).mine:
        return False
    metadata.delete_run(run.key)
    return True


def _is_meant(run: RunRecord, selection: RunsToDelete) -> bool:
    if selection.run is not None and run.run != selection.run:
        return False
    ended = run.finished_at or run.heartbeat_at or run.created_at
    if selection.before is not None and ended > selection.before:
        return False
    if selection.failed and run.state is RunState.SUCCEEDED:
        return False
    return set(selection.tags) <= {*run.tags, *run.system_tags}


def collect(
    metadata: MetadataStore,
    store: ObjectStore,
    selection: RunsToDelete,
    now: float,
    *,
    grace: float = GRACE,
    dry_run: bool = False,
) -> Removed:
    """Delete runs, then every unreferenced object that was not touched for `grace` seconds, nor
    since that long before the start of a running task. Safe to interrupt and call again.

    Args:
        metadata: The metadata store, from which the runs are deleted first.
        store: The datastore, from which objects are deleted that no remaining run refers to.
        selection: The criteria for the runs to delete; without any, only objects are deleted.
        now: The present time, in seconds since the epoch.
        grace: The minimum age of an object to be deleted, in seconds: a new run may have written
            it and not yet recorded the reference.
        dry_run: Whether to return what would be deleted, without deleting it.

    Returns:
        What was, or would be, deleted.
    """
    runs = runs_to_delete(metadata, selection, grace)
    if not dry_run:
        runs = [run for run in runs if _deleted(metadata, run, now)]
    gone = {run.key for run in runs}
    # Read before the runs: a reference that moves from a root to a run in between is still seen.
    declared = list(roots.roots(store))
    # The blobs of runs that start after this point were written or touched within `grace`.
    left = [
        run
        for flow, _ in metadata.flows()
        for run in _runs_of(metadata, flow)
        if run.key not in gone
    ]
    # Before the manifests: that of a task that ends in between is still seen.
    since = min(now, _earliest_start(metadata, left, grace)) - grace
    used, damaged = _used(metadata, BlobStore(store), left)
    for name, root in declared:
        if not root.has_expired(now):
            used.update(map(blob_name, root.blobs))
        elif not dry_run:
            # It may have been renewed while the runs were read.
            present = roots.declared(store, name)
            if present is not None and present.has_expired(now):
                roots.withdraw(store, name)
    known = {(run.flow, run.run) for run in left}
    results = [
        store.remove_untouched(name, since, dry_run=dry_run)
        for name in _unused(store, None if damaged else used, known)
    ]
    young = results.count(None)
    results += [
        store.remove_untouched(name, now - wait, dry_run=dry_run)
        for name, wait in copies.kept_for(store, known, grace)
    ]
    taken = [size for size in results if size is not None]
    return Removed(runs, len(taken), sum(taken), young, damaged)


def _earliest_start(metadata: MetadataStore, runs: Iterable[RunRecord], grace: float) -> float:
    """Return when the earliest of the running tasks started; infinity if none runs. A manifest
    refers to what such a task has stored since then only when the task ends, which may take long:
    a step may wait for the items of its foreach for hours."""
    views = (
        view
        for run in runs
        if _may_go_on(run, grace)
        for view in metadata.newest_tasks(run.key, states=[TaskState.RUNNING], light=True)
    )
    starts = (view.attempt.started_at for view in views if view.attempt is not None)
    return min((at for at in starts if at is not None), default=float("inf"))  # None: queued


def _used(
    metadata: MetadataStore, blobs: BlobStore, runs: Iterable[RunRecord]
) -> tuple[set[str], list[tuple[RunRecord, str]]]:
    """Return the names of all blobs that these runs refer to, and the damaged runs whose references
    are unknown, with the reason."""
    used: set[str] = set()
    seen: set[str] = set()  # segments of items; several manifests may share one
    damaged: list[tuple[RunRecord, str]] = []
    for run in runs:
        try:
            if run.settings == DAMAGED:
                raise CorruptBlob("its record is damaged")
            code = run.settings.get("code", {}).get("key")
            if code:
                used.add(blob_name(code))
            used.update(map(blob_name, blobs_of(run.settings)))
            for data in metadata.all_manifests(run.key):
                manifest = Manifest.decode(data)
                for entry in manifest.artifacts.values():
                    used.update(blob_name(key) for key, _ in entry.blobs)
                used.update(map(blob_name, blobs_of_items(manifest.items, blobs, seen)))
        except (StoreUnavailable, MetadataError):
            raise  # a store failed: the run itself may be undamaged
        except (AflowError, ValueError, TypeError, LookupError, AttributeError) as error:
            damaged.append((run, str(error) or type(error).__name__))
    return used, damaged


def _unused(
    store: ObjectStore, used: set[str] | None, known: set[tuple[str, str]]
) -> Iterable[str]:
    """Yield the objects that nothing refers to; without blobs if `used` is None (unknown)."""
    if used is not None:
        yield from (name for name in store.list("blobs/") if name not in used)
    for folder in ("logs/", "cards/", "commits/", "jobs/"):
        for name in store.list(folder):
            _, *of = name.split("/", 3)
            # Names of another form were not written by aflow, and are kept.
            if len(of) == 3 and (of[0], of[1]) not in known:
                yield name
