"""Run attempts on other machines: read inputs and commit results without the metadata.

A worker has no access to the metadata. The manifests that a task reads are sent with its spec, or
stored in objects that the spec names. The coordinator writes these objects, one for each page of a
join.

A queue may deliver an attempt twice, and two workers then run it. So the result of a successful
attempt is written under the name of its task with put-if-absent. The first writer settles the task,
and all others report its result instead of their own. An attempt that may be a second delivery
checks for a result before it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgpack

from aflow._core.ids import blob_key
from aflow.errors import CorruptBlob, StorageError
from aflow.scheduler.messages import FromForeach, decode_inputs
from aflow.scheduler.states import AttemptState
from aflow.storage.artifacts import Manifest
from aflow.storage.blobs import digest_of
from aflow.task.inputs import PAGE, Manifests, no_metadata
from aflow.task.runner import AttemptRunner, sentence
from aflow.task.spec import AttemptKey, AttemptReport, AttemptSpec, RunContext

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.storage.base import ObjectStore
    from aflow.storage.blobs import BlobStore

Row = tuple[int, int, str, bytes]  # split index, task, step, manifest


class Payloads:
    """Objects of one run for data that is too large for a message, or shared by many messages.

    Each is named by the digest of its bytes. Calls block; any thread may make them.
    """

    def __init__(self, store: ObjectStore, flow: str, run: str) -> None:
        self._store = store
        self._folder = f"jobs/{flow}/{run}"

    def put(self, data: bytes) -> str:
        """Store a payload. May be called twice with the same bytes.

        Args:
            data: The bytes of the payload.

        Returns:
            The key of the payload.
        """
        key = digest_of([data], len(data))
        self._store.put(f"{self._folder}/{key}", [data])
        return key

    def part(self, key: str, start: int, length: int) -> bytes:
        """Return a part of a payload, without verifying it.

        Args:
            key: The key: the blake3 of the bytes in hex.
            start: The position of the first byte.
            length: How many bytes.

        Raises:
            ObjectNotFound: If the datastore has no such object.
        """
        return bytes(self._store.get(f"{self._folder}/{blob_key(key)}", start, length))

    def get(self, key: str) -> bytes:
        """Return the bytes of a payload.

        Args:
            key: The key: the blake3 of the bytes in hex.

        Raises:
            ObjectNotFound: If the datastore has no such object.
            CorruptBlob: If the bytes do not match the key.
        """
        data = bytes(self._store.get(f"{self._folder}/{blob_key(key)}"))
        if digest_of([data], len(data)) != key:
            raise CorruptBlob(f"{self._folder}/{key} in {self._store.url} is damaged.")
        return data


def pack_manifests(manifests: dict[int, bytes], rows: Sequence[Row] = ()) -> bytes:
    """Return a payload of manifests: by task, and a page of a join's inputs.

    Args:
        manifests: The manifests, by task.
        rows: The page of the join's inputs: index, task, step and manifest.
    """
    return msgpack.packb((1, manifests, rows))  # type: ignore[no-any-return]


def commit_name(flow: str, run: str, task: int) -> str:
    """Return the name of the object that settles a task.

    Args:
        flow: The name of the flow.
        run: The id of the run.
        task: The number of the task within its run.
    """
    return f"commits/{flow}/{run}/{task}"


def mark_over(store: ObjectStore, flow: str, run: str) -> None:
    """Mark the run as ended, so that workers do not run its remaining messages. Blocks.

    Args:
        store: The datastore of the run.
        flow: The name of the flow.
        run: The id of the run.

    Raises:
        StorageError: If the datastore does not respond.
    """
    store.put(_over_name(flow, run), [b"over"])


def is_over(store: ObjectStore, flow: str, run: str) -> bool:
    """Return whether the run has been marked as ended. Blocks.

    Args:
        store: The datastore of the run.
        flow: The name of the flow.
        run: The id of the run.

    Raises:
        StorageError: If the datastore does not respond.
    """
    return store.size(_over_name(flow, run)) is not None


def _over_name(flow: str, run: str) -> str:
    return f"jobs/{flow}/{run}/over"


def committed(
    store: ObjectStore, context: RunContext, task: int, attempt: int
) -> AttemptReport | None:
    """Return the committed result of a task, as the report of this attempt; None if there is none.

    Args:
        store: The datastore of the run.
        context: The values that all attempts of the run share.
        task: The number of the task within its run.
        attempt: The number of the attempt, from 0.
    """
    found = _report_in(store, commit_name(context.flow, context.run, task))
    return None if found is None else found._replace(attempt=attempt)


def record_end(store: ObjectStore, flow: str, run: str, report: AttemptReport) -> None:
    """Record the end of an unsuccessful attempt, so that a replayed message does not run it again.

    Blocks.

    Args:
        store: The datastore of the run.
        flow: The name of the flow.
        run: The id of the run.
        report: How the attempt has ended.

    Raises:
        StorageError: If the datastore does not respond.
    """
    name = _end_name(flow, run, report.task, report.attempt)
    store.put_if_absent(name, [msgpack.packb(report, unicode_errors="surrogatepass")])


def _end_name(flow: str, run: str, task: int, attempt: int) -> str:
    return f"jobs/{flow}/{run}/ended/{task}-{attempt}"


def _report_in(store: ObjectStore, name: str) -> AttemptReport | None:
    if store.size(name) is None:
        return None
    data = bytes(store.get(name))
    return AttemptReport(*msgpack.unpackb(data, use_list=False, unicode_errors="surrogatepass"))


class StoredManifests(Manifests):
    """The manifests of a run's tasks: sent with the spec, or read from payloads that specs name.

    Every manifest that an attempt may read is in its spec, or in a payload of its spec. So the
    specs of running attempts are kept: this is the only place of a manifest that the cache has
    evicted.
    """

    def __init__(self, payloads: Payloads) -> None:
        super().__init__(no_metadata, 0)
        self._payloads = payloads
        self._running: dict[AttemptKey, AttemptSpec] = {}  # the latest last
        self._read: tuple[str, dict[int, bytes], list[Row]] | None = None

    def expect(self, spec: AttemptSpec) -> None:
        """Note where the manifests are that an attempt may read.

        Args:
            spec: The spec of the attempt.
        """
        self._running.pop(spec.attempt_key, None)
        self._running[spec.attempt_key] = spec

    def forget(self, spec: AttemptSpec) -> None:
        """Drop what `expect` has noted: the attempt has ended.

        Args:
            spec: The spec of the attempt.
        """
        self._running.pop(spec.attempt_key, None)

    def of(self, task: int) -> Manifest:
        """Return the manifest of a task that succeeded."""
        if not self.knows(task):
            data = next(self._sent(task), None)
            if data is None:
                raise StorageError(f"The manifest of task {task} did not come with the attempt.")
            self.remember(task, Manifest.decode(data))
        return super().of(task)

    def with_item(self, task: int, index: int) -> Manifest:
        """Return the manifest of a task that opens a foreach, with the item at `index`."""
        manifest = self.of(task)
        if manifest.items is None or index < manifest.items[0]:
            return manifest
        # What was sent for earlier items has the manifest as it was then.
        for data in self._sent(task):
            found = Manifest.decode(data)
            if found.items is not None and index < found.items[0]:
                self.remember(task, found)
                return found
        return manifest

    def page(self, inputs: FromForeach, start: int) -> list[tuple[int, int, str, Manifest]]:
        """Return up to PAGE inputs of a foreach join, starting at split index `start`."""
        if not inputs.count:
            return []
        pages = next(spec.pages for spec in self._specs() if decode_inputs(spec.inputs) == inputs)
        _, rows = self._opened(pages[start // PAGE])
        return [(index, task, step, Manifest.decode(data)) for index, task, step, data in rows]

    def _specs(self) -> list[AttemptSpec]:
        """Return the specs of the running attempts, the latest first."""
        return [*self._running.values()][::-1]

    def _sent(self, task: int) -> Iterator[bytes]:
        """Yield the manifests of a task that came with running attempts, the latest first."""
        specs = self._specs()
        yield from (spec.manifests[task] for spec in specs if task in spec.manifests)
        last = [self._read[0]] if self._read else []
        named = (key for spec in specs for key in (spec.more, *reversed(spec.pages)) if key)
        for key in dict.fromkeys([*last, *named]):
            manifests, _ = self._opened(key)
            if task in manifests:
                yield manifests[task]

    def _opened(self, key: str) -> tuple[dict[int, bytes], list[Row]]:
        """Return the contents of a payload; the last one is cached, since it is read repeatedly."""
        if self._read is None or self._read[0] != key:
            _, manifests, rows = msgpack.unpackb(self._payloads.get(key), strict_map_key=False)
            self._read = key, manifests, rows
        return self._read[1], self._read[2]


class RemoteRunner(AttemptRunner):
    """Runs attempts of one run without the metadata, and commits their results to the store."""

    def __init__(self, context: RunContext, blobs: BlobStore, clock: Clock) -> None:
        super().__init__(context, blobs, no_metadata, clock)
        self._stored = StoredManifests(Payloads(blobs.store, context.flow, context.run))
        self.manifests = self._stored

    def run(self, spec: AttemptSpec) -> AttemptReport:
        """Run one attempt to its end, unless its task is settled already."""
        try:
            return self._settled(spec) or self._commit(spec, super().run(spec))
        finally:
            self._stored.forget(spec)

    async def run_async(
        self, spec: AttemptSpec, is_cancelled: Callable[[], bool] = lambda: False
    ) -> AttemptReport:
        """Run one attempt of a coroutine step, unless its task is settled already."""
        try:
            settled = self._settled(spec)
            return settled or self._commit(spec, await super().run_async(spec, is_cancelled))
        finally:
            self._stored.forget(spec)

    def _settled(self, spec: AttemptSpec) -> AttemptReport | None:
        try:
            self._stored.expect(spec)
            if not spec.again:
                return None
            store, context = self._blobs.store, self.context
            ended = _end_name(context.flow, context.run, spec.task, spec.attempt)
            return committed(store, context, *spec.attempt_key) or _report_in(store, ended)
        except Exception as error:  # if the store fails, so does the attempt
            return self._unstored(spec, error)

    def _commit(self, spec: AttemptSpec, report: AttemptReport) -> AttemptReport:
        """Commit a successful report; return it, or the report of the attempt that was first."""
        if report.state != AttemptState.SUCCEEDED.value:
            return report
        name = commit_name(self.context.flow, self.context.run, report.task)
        data = msgpack.packb(report, unicode_errors="surrogatepass")
        try:
            # Decides which attempt was first. The coordinator's commit is the one that is durable.
            if self._blobs.store.put_if_absent(name, [data]):
                return report
            return committed(self._blobs.store, self.context, *spec.attempt_key) or report
        except Exception as error:  # as in `_settled`
            return self._unstored(spec, error)

    def _unstored(self, spec: AttemptSpec, error: Exception) -> AttemptReport:
        now = self._clock.now()
        return AttemptReport(
            spec.task,
            spec.attempt,
            AttemptState.FAILED.value,
            sentence(error),
            started_at=now,
            finished_at=now,
        )
