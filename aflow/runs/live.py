"""What a driver knows of an attempt between its launch and its end, and how that is recorded."""

from __future__ import annotations

import socket
from functools import cache
from typing import TYPE_CHECKING

from aflow.metadata.base import AttemptRecord
from aflow.scheduler.states import AttemptState

if TYPE_CHECKING:
    from aflow.attempt.spec import AttemptReport
    from aflow.executors.base import Usage
    from aflow.runs.attempt_logs import Kept


class LiveAttempt:
    """An attempt that is out. `fallback` if @catch settles its task; `is_over` once its end has
    been reported, while its log is being stored."""

    __slots__ = (
        "chunks", "fallback", "handle", "host", "is_over", "manifest", "pid", "started_at", "step"
    )  # fmt: skip

    def __init__(self, step: str, fallback: bool) -> None:
        self.step = step
        self.fallback = fallback
        self.is_over = False
        self.handle = ""  # by which another executor finds it: a worker, or a job
        self.host = _host()  # the machine that runs it: this one, unless a worker says another
        self.pid: int | None = None
        self.started_at: float | None = None
        self.chunks = 0  # of its log, in the store
        self.manifest: bytes | None = None  # what it has left already

    def go_on(self, record: AttemptRecord) -> None:
        """This is recorded of it, by a coordinator that is gone."""
        self.handle, self.pid, self.started_at = record.handle, record.pid, record.started_at
        self.chunks, self.manifest = record.log_chunks, record.manifest
        self.host = record.host or self.host

    def running(self, task: int, attempt: int) -> AttemptRecord:
        """The record of an attempt that has not ended."""
        return AttemptRecord(
            task,
            attempt,
            AttemptState.QUEUED if self.started_at is None else AttemptState.RUNNING,
            self.started_at,
            manifest=self.manifest,
            log_chunks=self.chunks,
            host=self.host,
            pid=self.pid,
            handle=self.handle,
        )

    def ended(
        self, report: AttemptReport, usage: Usage | None, log: Kept | None, now: float
    ) -> AttemptRecord:
        """The record of the same one when it has."""
        return AttemptRecord(
            report.task,
            report.attempt,
            AttemptState(report.state),
            self.started_at,
            report.finished_at or now,
            report.reason,
            report.manifest,
            log.inline if log else None,
            log.chunks if log else 0,
            log.stdout_size if log else 0,
            log.stderr_size if log else 0,
            self.host,
            self.pid,
            self.handle,
            usage.max_rss if usage else None,
            usage.cpu if usage else None,
        )


@cache
def _host() -> str:
    return socket.gethostname()
