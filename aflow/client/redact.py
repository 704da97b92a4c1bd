"""Redacting what tasks have printed."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from aflow.client import logs
from aflow.scrubbing import Printed
from aflow.scrubbing import scrub as scrub_attempts

if TYPE_CHECKING:
    from aflow.client.task import Task


def scrub(task: Task, streams: Collection[str], *, every_attempt: bool = False) -> list[str]:
    """Put a line that says so in the place of these streams of the task's attempt, or of all of its
    attempts; which attempts had something to redact, in words. Of a task that was taken over the
    log is that of its origin, which is redacted then. May be called twice.

    Raises StorageError and MetadataError; what was not redacted is left as it was.
    """
    source, view = logs.owner(task._source, task._now)
    metadata = source.metadata
    if every_attempt:
        attempts = metadata.attempts(source.key, view.task.task)
    else:
        attempts = [view.attempt] if view.attempt is not None else []
    done = []
    with source.place.writing() as store:
        for attempt in attempts:
            printed = [Printed(view.task, attempt)]
            if scrub_attempts(store, source.blobs.store, source.record, printed, streams):
                path = f"{source.pathspec}/{view.task.step}/{view.task.task}"
                done.append(f"{path} - attempt {attempt.attempt}")
    task._settled = False  # what it has read is not true any more
    return done
