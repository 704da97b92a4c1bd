"""The checker that every test of tests/faults ends with: whatever went wrong, this has to hold.

- The run has ended as it should have, and the artifacts of its tasks are those of a run that nobody
  has disturbed.
- Each task was committed once: by the journal, and by the records, which agree with one another.
  The journal has no gap, and the database is whole.
- Nothing began again after it was committed (by the ledger, which steps write to outside of aflow).
- Every blob that a manifest refers to is there and has that digest.
- No process is left. No message waits, is leased or buried, but letters that say nothing new, where
  workers were killed or late (`late`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from aflow import backends
from aflow.executors import letters
from aflow.metadata.base import MetadataStore, RunRecord
from aflow.scheduler.codec import decode_events
from aflow.scheduler.messages import AttemptEnded
from aflow.scheduler.states import TERMINAL_ATTEMPT_STATES, AttemptState, RunState
from aflow.storage.artifacts import digest
from aflow.storage.base import ObjectStore
from aflow.storage.blobs import BlobStore
from aflow.storage.items import blobs_of_items
from aflow.storage.manifest import Manifest
from tests.faults.fleet import Fleet, file_of, wait_until

Place = tuple[str, tuple[int, ...]]  # a task by its step and where it is in its foreachs
Results = Mapping[Place, Mapping[str, str]]  # the digests of the artifacts that each task has set


class _End(NamedTuple):
    task: int
    attempt: int
    state: AttemptState


def check(
    fleet: Fleet,
    like: Results | None = None,
    *,
    state: RunState = RunState.SUCCEEDED,
    late: bool = False,
    clocks_agree: bool = True,
) -> None:
    """All of it. Workers are told to end first. `like` are the results of an undisturbed run; None
    for a run that has none to compare with. `late`: workers were killed, or came too late, so that
    letters may be left that nobody reads any more. Without `clocks_agree` the times that processes
    write down cannot be compared."""
    fleet.stop_workers()
    metadata, run = fleet.metadata, fleet.record()
    assert run is not None
    assert state is run.state, f"{run.reason}\n{fleet.said()[-4000:]}"
    ends = check_journal(metadata, run)
    if like is not None:
        check_results(like, results(metadata, run))
    if clocks_agree:
        check_ledger(fleet, ends)
    check_blobs(metadata, fleet.store(), run)
    check_database(fleet)
    check_machines(fleet)
    check_queue(fleet, run, {(end.task, end.attempt) for end in ends}, late)


def results(metadata: MetadataStore, run: RunRecord) -> Results:
    """What each task that succeeded has left."""
    found: dict[Place, Mapping[str, str]] = {}
    for view in metadata.tasks(run.key):
        assert view.attempt is not None
        if view.attempt.state is AttemptState.SUCCEEDED:
            manifest = Manifest.decode(view.attempt.manifest or b"")
            place = view.task.step, tuple(frame.index for frame in manifest.stack)
            assert place not in found, f"{place} was done twice"
            found[place] = {name: digest(each) for name, each in manifest.artifacts.items()}
    return found


def check_results(like: Results, found: Results) -> None:
    """The artifacts are the same."""
    assert [*sorted(like)] == [*sorted(found)]
    other = {place: (like[place], found[place]) for place in like if like[place] != found[place]}
    assert {} == other, other


def check_journal(metadata: MetadataStore, run: RunRecord) -> dict[_End, float]:
    """Each task is committed once, and the records say what the journal says; the ends in it."""
    batches = [*metadata.journal_after(run.key, 0)]
    versions = [version for version, _ in batches]
    assert sorted({*versions}) == versions
    assert run.version >= versions[-1]  # a commit without events is none of the journal
    events = [each for _, batch in batches if batch for each in decode_events(batch)]
    ended = [
        (_End(event.task, event.attempt, event.outcome.state), at)
        for at, event in events
        if type(event) is AttemptEnded
    ]
    assert [] == [end for end, times in Counter(end for end, _ in ended).items() if times > 1]
    recorded = {
        _End(attempt.task, attempt.attempt, attempt.state)
        for view in metadata.tasks(run.key, light=True)
        if view.task.task
        for attempt in metadata.attempts(run.key, view.task.task)
    }
    assert {end for end, _ in ended} == recorded
    assert set() == {each for each in recorded if each.state not in TERMINAL_ATTEMPT_STATES}
    succeeded = Counter(end.task for end in recorded if end.state is AttemptState.SUCCEEDED)
    assert set() == {task for task, times in succeeded.items() if times > 1}
    return dict(ended)


def check_ledger(fleet: Fleet, ends: Mapping[_End, float]) -> None:
    """Whatever has succeeded has begun, and nothing has begun after it was committed."""
    committed = {end.task: at for end, at in ends.items() if end.state is AttemptState.SUCCEEDED}
    begun = fleet.ledger.begun()
    if begun:
        assert set() == set(committed) - {each.task for each in begun}
    late = [each for each in begun if each.at > committed.get(each.task, each.at)]
    assert [] == [
        (each, [one for one in begun if one.task == each.task], committed[each.task])
        for each in late
    ]


def check_blobs(metadata: MetadataStore, store: ObjectStore, run: RunRecord) -> None:
    """Every blob that is referred to is there, with the bytes that it is named by."""
    blobs, seen = BlobStore(store), set[str]()
    for data in metadata.all_manifests(run.key):
        manifest = Manifest.decode(data)
        keys = {key for entry in manifest.artifacts.values() for key, _ in entry.blobs}
        for key in (keys | {*blobs_of_items(manifest.items, blobs, set())}) - seen:
            blobs.get(key)
            seen.add(key)


def check_database(fleet: Fleet) -> None:
    """The database of the metadata says itself that it is whole."""
    if fleet.metadata_url.startswith("sqlite"):
        import sqlite3

        with sqlite3.connect(file_of(fleet.metadata_url)) as database:
            assert [("ok",)] == database.execute("PRAGMA integrity_check").fetchall()
        database.close()
        return
    import psycopg

    url = fleet.metadata_url.partition("?")[0]
    schema = fleet.metadata_url.rpartition("schema=")[2]
    with psycopg.connect(url, autocommit=True) as database:
        database.execute("CREATE EXTENSION IF NOT EXISTS amcheck SCHEMA public")
        # Raises where an index is damaged, or a row is in no index.
        checked = database.execute(
            "SELECT count(public.bt_index_parent_check(indexrelid, true)) FROM pg_index JOIN "
            "pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam WHERE "
            "amname = 'btree' AND relnamespace = %s::regnamespace",
            (schema,),
        ).fetchone()
        assert checked is not None
        assert checked[0] > 0


def check_machines(fleet: Fleet) -> None:
    """No process is left, and no file that was being written."""
    wait_until(lambda: [] == fleet.orphans(), "a process is left")
    assert [] == [*fleet.folder.rglob(".tmp/*")]


def check_queue(fleet: Fleet, run: RunRecord, ended: set[tuple[int, int]], late: bool) -> None:
    """Nothing is left in the queue."""
    asyncio.run(_check_queue(fleet, run, ended, late))


async def _check_queue(
    fleet: Fleet, run: RunRecord, ended: set[tuple[int, int]], late: bool
) -> None:
    queue: Any = backends.open_queue(fleet.queue)
    try:
        reports = letters.reports_topic(run.flow, run.run)
        for topic in ("tasks.default", "tasks.gpu", *_topics_of_workers(fleet, run), reports):
            if topic == reports and late:
                continue
            assert (0, 0, 0) == tuple(await queue.depth(topic)), topic
        for lease in await queue.lease([reports], 10_000, 60.0):
            letter = letters.unseal_letter(lease.body, "reports", (), reports, None)
            said = {(task, attempt) for _, task, attempt, *_ in letter.events}
            assert set() == said - ended, "a letter tells of an attempt that has not ended"
            await queue.ack([lease])
    finally:
        await queue.close()


def _topics_of_workers(fleet: Fleet, run: RunRecord) -> set[str]:
    return {
        letters.worker_topic(view.attempt.handle)
        for view in fleet.metadata.tasks(run.key, light=True)
        if view.attempt is not None and view.attempt.handle
    }
