"""The published status of a run's jobs: their queues, and since when and why jobs wait.

Only the job system knows this; the state of attempts is in the records of the run. It is a small
document in the metadata store, which the coordinator of the run updates periodically, and deletes
when no job is left. Readers validate it, since other programs can write there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from aflow._core import ids
from aflow._core.clock import LATEST
from aflow.errors import AflowError
from aflow.scheduler.states import TERMINAL_RUN_STATES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aflow.metadata.base import Document, MetadataStore

MOST_WAITING = 20  # jobs, or arrays of jobs, that are listed
_LONGEST_REASON = 300  # characters
_PRUNED = 100  # documents of other runs that a run checks


class WaitingJob(NamedTuple):
    """A job or an array with `size` attempts that have not started; `reason` may be empty."""

    job: str
    step: str
    size: int
    since: float
    reason: str


class JobsOfRun(NamedTuple):
    """The jobs of a run in one system: `queues` by step, and some of the waiting jobs."""

    flow: str
    run: str
    system: str
    queues: dict[str, str]
    waiting: tuple[WaitingJob, ...] = ()

    @property
    def name(self) -> str:
        """The name of the document."""
        return f"{self.flow}/{self.run} {self.system}"

    def encode(self) -> bytes:
        """Return the data of the document that publishes these jobs; `decode` reads it."""
        return json.dumps({"queues": self.queues, "waiting": self.waiting}).encode()

    @classmethod
    def decode(cls, document: Document) -> JobsOfRun | None:
        """Return the jobs that a document describes; None if it is malformed.

        Args:
            document: A document of `MetadataStore.jobs`, which another version of aflow, or another
                program, may have written.
        """
        path, _, system = document.name.partition(" ")
        flow, _, run = path.partition("/")
        try:
            fields = json.loads(document.data)
            return cls(
                ids.flow_name(flow), ids.run_id(run), system[:_LONGEST_REASON],
                {ids.step_name(step): str(queue) for step, queue in fields["queues"].items()},
                tuple(_waiting(*each) for each in fields["waiting"][:MOST_WAITING]),
            )  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, AflowError):
            return None


def _waiting(job: str, step: str, size: int, since: float, reason: str) -> WaitingJob:
    """Return a waiting job with validated fields."""
    if not 0 <= since <= LATEST:
        raise ValueError(f"{since} is not a time")
    shown = " ".join(str(reason).split())[:_LONGEST_REASON]
    return WaitingJob(str(job), ids.step_name(step), int(size), float(since), shown)


class JobBoard:
    """Publishes the document of one run. Blocks."""

    def __init__(self, metadata: MetadataStore) -> None:
        self._metadata = metadata
        self._written: bytes | None = None  # an earlier coordinator may have left one

    def publish(self, now: JobsOfRun) -> None:
        """Write the document if it has changed; delete it if there are no queues.

        Args:
            now: The current jobs.

        Raises:
            MetadataError: If the metadata store does not respond.
        """
        data = now.encode() if now.queues else b""
        if data != self._written:
            self._metadata.put_jobs(now.name, data)
            self._written = data


def of_runs_that_go_on(found: Iterable[Document]) -> dict[tuple[str, str], list[JobsOfRun]]:
    """Return the jobs that documents describe, by flow and run.

    Args:
        found: The documents, as `MetadataStore.jobs` returns them; malformed ones are skipped.
    """
    jobs: dict[tuple[str, str], list[JobsOfRun]] = {}
    for document in found:
        if (read := JobsOfRun.decode(document)) is not None:
            jobs.setdefault((read.flow, read.run), []).append(read)
    return jobs


def prune(metadata: MetadataStore) -> None:
    """Delete documents of runs that have ended, or were deleted, without a coordinator.

    Args:
        metadata: The metadata store; its first 100 documents are checked.
    """
    for document in metadata.jobs()[:_PRUNED]:
        read = JobsOfRun.decode(document)
        run = None if read is None else metadata.run(read.flow, read.run)
        if run is None or run.state in TERMINAL_RUN_STATES:
            metadata.put_jobs(document.name, b"")
