"""Deleting runs, and then what nothing refers to.

What is referred to is known from two places: the runs in the metadata, and the roots in the store
(`aflow/storage/roots.py`), which deployed flows and schedules declare for what they need.

Safe while other runs are written: a blob is removed only if no manifest refers to it and nobody has
written or touched it for a while (`grace`). A process that is about to refer to a blob that is
there already touches it first (`BlobStore.put`, `BlobStore.claim`); the store sees to it that a
touch and a removal at the same time end in one of the two. The idea is that of Nix's garbage
collector, with times in place of locks.

A run whose record or manifest is damaged may refer to any blob. While it is there no blob is
removed: what it refers to could not be had again when the damage is repaired, or be salvaged. It is
named, and everything else goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from aflow.environments.record import blobs_of
from aflow.errors import AflowError, CorruptBlob, MetadataError, StoreUnavailable
from aflow.metadata.base import DAMAGED, FIRST_KEY, LEASE, SPIN
from aflow.metadata.metaflow import copies
from aflow.runs.liveness import holder_named, is_deployed, is_driven, left_for
from aflow.scheduler.states import TERMINAL_RUN_STATES, RunState
from aflow.storage import roots
from aflow.storage.artifacts import Manifest
from aflow.storage.blobs import BlobStore, blob_name
from aflow.storage.items import blobs_of_items

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore, RunRecord
    from aflow.storage.base import ObjectStore

GRACE = 3600.0  # seconds


class RunsToDelete(NamedTuple):
    """Which runs are to go: those for which all that is given holds. None of them if nothing is.

    `run` is the id of the only one, of `flow`. `before` is when they have ended at the latest
    (seconds since the epoch), `tags` they have all of, `failed` says that they did not succeed,
    `keep` how many of the newest of each flow stay in any case, `spins` whether only spins are
    meant.
    """

    flow: str | None = None
    run: str | None = None
    before: float | None = None
    tags: Sequence[str] = ()
    failed: bool = False
    keep: int = 0
    spins: bool = False

    @property
    def is_nothing(self) -> bool:
        """Whether no run is meant."""
        return self == RunsToDelete()


class Removed(NamedTuple):
    """What was removed, or would be: runs, objects in the store and their bytes. `young` objects
    are referred to by nothing either, but were touched too short a time ago. `damaged` are runs of
    which nobody knows what they refer to, with the reason: no blob was removed then."""

    runs: list[RunRecord]
    objects: int
    size: int
    young: int
    damaged: list[tuple[RunRecord, str]]


class FlowSize(NamedTuple):
    """What the runs of a flow take: `objects` of the datastore, each counted once, and bytes."""

    flow: str
    runs: int
    objects: int
    size: int


class StorageSizes(NamedTuple):
    """What flows take, the largest first; `objects` and `size` are those of all together, of which
    some belong to several flows. `complete`: all runs were looked at."""

    flows: list[FlowSize]
    objects: int
    size: int
    complete: bool


def sizes(metadata: MetadataStore, give_up: Callable[[], bool]) -> StorageSizes:
    """Return how much the artifacts and the code of each flow take, by the manifests of its runs,
    until there is no more time. What cannot be read of a damaged run is left out.

    Args:
        metadata: The metadata store; all its flows are measured.
        give_up: Says whether the time is over; asked before each run.
    """
    found, everything, complete = [], dict[bytes, int](), True
    for flow, _ in metadata.flows():
        own: dict[bytes, int] = {}
        runs = _runs_of(metadata, flow)
        for number, run in enumerate(runs):
            if run.key >= FIRST_KEY:  # Metaflow's data are elsewhere
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
    """All runs of a flow, spins included."""
    return [run for kind in ("", SPIN) for run in metadata.runs(flow, kind=kind)]


def _sizes_of(metadata: MetadataStore, run: RunRecord) -> Iterator[tuple[bytes, int]]:
    """The blobs that a run refers to, each by half of its key, and their sizes."""
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
    """Return the runs that are to go. Never one that goes on, or that one which goes on has
    resumed; a run without a coordinator may still be recovered for `grace` seconds.

    Args:
        metadata: The metadata store, of which all flows are read where none is named.
        selection: Which runs of which flow to delete, by age, number and state.
        grace: For how many seconds a run without a coordinator is kept, since it may be recovered.
    """
    if selection.is_nothing:
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
    """Delete the run; whether this was done. One that has not ended has to be ours first: somebody
    may be about to recover it."""
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
    """Delete runs, then every object that nothing refers to and nobody has touched for `grace`
    seconds. May be interrupted, and called again.

    Args:
        metadata: The metadata store, from which the runs are deleted first.
        store: The datastore, from which objects are deleted that no remaining run refers to.
        selection: Which runs to delete; none to delete unused objects only.
        now: The present time, in seconds since the epoch.
        grace: How old an object has to be, in seconds: a run that begins may have written it and
            not yet recorded it.
        dry_run: Whether only to say what would be done.

    Returns:
        What was, or would be, deleted.
    """
    runs = runs_to_delete(metadata, selection, grace)
    if not dry_run:
        runs = [run for run in runs if _deleted(metadata, run, now)]
    gone = {run.key for run in runs}
    # Before the runs are looked at: what moves from a root to a run meanwhile is seen in one.
    declared = list(roots.roots(store))
    # Runs that begin from here on have written or touched all they refer to a moment ago.
    left = [
        run
        for flow, _ in metadata.flows()
        for run in _runs_of(metadata, flow)
        if run.key not in gone
    ]
    used, damaged = _used(metadata, BlobStore(store), left)
    used.update(map(blob_name, roots.kept(declared, now)))
    if not dry_run:
        for name in roots.expired(declared, now):
            roots.withdraw(store, name)
    removed = size = young = 0
    known = {(run.flow, run.run) for run in left}
    for name in _unused(store, None if damaged else used, known):
        taken = store.remove_untouched(name, now - grace, dry_run=dry_run)
        if taken is not None:
            removed, size = removed + 1, size + taken
        else:
            young += 1
    for name, wait in copies.kept_for(store, known, grace):
        taken = store.remove_untouched(name, now - wait, dry_run=dry_run)
        if taken is not None:
            removed, size = removed + 1, size + taken
    return Removed(runs, removed, size, young, damaged)


def _used(
    metadata: MetadataStore, blobs: BlobStore, runs: Iterable[RunRecord]
) -> tuple[set[str], list[tuple[RunRecord, str]]]:
    """The names of all blobs that these runs refer to; and the runs of which that cannot be known,
    with the reason."""
    used: set[str] = set()
    seen: set[str] = set()  # segments of items, which several manifests may share
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
            raise  # it may be whole
        except (AflowError, ValueError, TypeError, LookupError, AttributeError) as error:
            damaged.append((run, str(error) or type(error).__name__))
    return used, damaged


def _unused(
    store: ObjectStore, used: set[str] | None, known: set[tuple[str, str]]
) -> Iterable[str]:
    """The objects that nothing refers to. None for `used`: nobody knows of blobs."""
    if used is not None:
        yield from (name for name in store.list("blobs/") if name not in used)
    for folder in ("logs/", "cards/", "commits/", "jobs/"):
        for name in store.list(folder):
            _, *of = name.split("/", 3)
            # Whatever does not belong to a run was not put there by aflow.
            if len(of) == 3 and (of[0], of[1]) not in known:
                yield name
