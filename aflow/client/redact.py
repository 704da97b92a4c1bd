"""Redact the output of tasks: replace each stream by a single line that marks it as redacted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from aflow.client import task as logs
from aflow.metadata.base import ReplacedLog
from aflow.metadata.metaflow import copies
from aflow.scheduler.states import TERMINAL_ATTEMPT_STATES
from aflow.storage.logs import STREAMS, LogBuffer, chunk_name, read_chunks, read_log

if TYPE_CHECKING:
    from aflow.client.source import RunSource
    from aflow.client.task import Task
    from aflow.metadata.base import AttemptRecord, MetadataStore, RunRecord, TaskRecord
    from aflow.storage.base import ObjectStore

_NO_LIMIT = 1 << 62


def redact_attempt(
    metadata: MetadataStore,
    store: ObjectStore,
    run: RunRecord,
    task: TaskRecord,
    attempt: AttemptRecord,
    streams: Collection[str],
) -> bool:
    """Replace these streams of an attempt by the line `[REDACTED task STREAM]`. An attempt that
    still runs keeps writing to its log.

    May be repeated after an interruption: streams that were not redacted are unchanged.

    Args:
        metadata: The metadata store of the run.
        store: The datastore of the run.
        run: The run of the task.
        task: The task of the attempt.
        attempt: The attempt to redact.
        streams: `stdout`, `stderr` or both.

    Returns:
        Whether the attempt had output to redact.
    """
    place = run.flow, run.run, task.step, task.task, attempt.attempt
    inline = attempt.log is not None
    chunks: Iterable[bytes] = (
        (attempt.log,)
        if attempt.log is not None
        else read_chunks(store, *place, attempt.log_chunks)
    )
    buffer = LogBuffer(_NO_LIMIT)
    redacted: set[str] = set()
    log = b""
    for number, chunk in enumerate(chunks):
        _redact(chunk, streams, redacted, buffer)
        log = buffer.take_chunk()
        if not inline:  # first: concurrent readers of the record must find no secret
            store.put(chunk_name(*place, number), [log])
    if redacted and attempt.state in TERMINAL_ATTEMPT_STATES:
        replaced = ReplacedLog(
            task=task.task,
            attempt=attempt.attempt,
            log=log if inline else None,
            log_chunks=attempt.log_chunks,
            stdout_size=buffer.stdout_size,
            stderr_size=buffer.stderr_size,
        )
        metadata.replace_logs(run.key, [replaced])
    return bool(redacted)


def _redact(chunk: bytes, streams: Collection[str], redacted: set[str], buffer: LogBuffer) -> None:
    """Add the lines of other streams to the buffer, and one line for each redacted stream. Each
    chunk keeps its own lines: none is stored twice if the redaction is interrupted."""
    for line in read_log(chunk):
        stream = STREAMS.index(line.stream)
        if line.stream not in streams:
            buffer.add(line.at, stream, line.text, line.whole)
        elif line.stream not in redacted:
            redacted.add(line.stream)
            buffer.add(line.at, stream, b"[REDACTED task %b]" % line.stream.encode())


def redact_tasks(
    tasks: Iterable[Task], streams: Collection[str], *, every_attempt: bool = False
) -> Iterator[str]:
    """Redact these streams of the attempts of tasks of one flow, or of all their attempts.

    If a task reuses the result of another one, the log of that task is redacted. May be repeated
    after an interruption. Raises StorageError and MetadataError.

    Args:
        tasks: The tasks, read just now.
        streams: `stdout`, `stderr` or both.
        every_attempt: Whether to redact earlier attempts too.

    Returns:
        The attempts that had output to redact, as text to display, each when it is redacted.
    """
    source: RunSource | None = None
    for task in tasks:
        source, view = logs.owner(task._source, task._now)
        if every_attempt:
            attempts = source.metadata.attempts(source.key, view.task.task)
        else:
            attempts = [view.attempt] if view.attempt is not None else []
        with source.place.writing() as metadata:
            for attempt in attempts:
                place = metadata, source.blobs.store, source.record, view.task
                if redact_attempt(*place, attempt, streams):
                    path = f"{source.pathspec}/{view.task.step}/{view.task.task}"
                    yield f"{path} - attempt {attempt.attempt}"
        task._settled = False  # the task's cached records are stale now
    if source is not None:
        copies.delete_logs(source.blobs.store, source.record.flow)
