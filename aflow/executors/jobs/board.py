"""What a run says of its jobs to people who look at them: which queue each step uses, and which
jobs wait, since when and why.

Attempts are in the records of the run. What is here only the job system knows: it is a small
document in the metadata store, which the run's coordinator updates now and then, and removes when
no job is left. Readers take none of it on trust: other programs can write there.
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

MOST_WAITING = 20  # jobs, or arrays of them, that are named
_LONGEST_REASON = 300  # characters
_PRUNED = 100  # documents of other runs that one run looks at


class WaitingJob(NamedTuple):
    """A job, or an array, of which `size` attempts have not begun; `reason` may be empty."""

    job: str
    step: str
    size: int
    since: float
    reason: str


class JobsOfRun(NamedTuple):
    """The jobs of a run at one system: `queues` by step, and some of those that wait."""

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
        """Return what a document says; None for one that is damaged.

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
        except (ValueError, TypeError, KeyError, AttributeError, AflowError):
            return None


def _waiting(job: str, step: str, size: int, since: float, reason: str) -> WaitingJob:
    """A job that waits, in values that can be shown whatever was written."""
    if not 0 <= since <= LATEST:
        raise ValueError(f"{since} is not a time")
    shown = " ".join(str(reason).split())[:_LONGEST_REASON]
    return WaitingJob(str(job), ids.step_name(step), int(size), float(since), shown)


class JobBoard:
    """Keeps the document of one run as it is now. Blocks."""

    def __init__(self, metadata: MetadataStore) -> None:
        self._metadata = metadata
        self._written: bytes | None = None  # what another coordinator has left is not known

    def publish(self, now: JobsOfRun) -> None:
        """Write what has changed since the last time; without queues nothing is left.

        Args:
            now: What is known of the jobs now.

        Raises:
            MetadataError: The metadata store does not answer.
        """
        data = now.encode() if now.queues else b""
        if data != self._written:
            self._metadata.put_jobs(now.name, data)
            self._written = data


def of_runs_that_go_on(found: Iterable[Document]) -> dict[tuple[str, str], list[JobsOfRun]]:
    """Return what documents say, by flow and run.

    Args:
        found: The documents, as `MetadataStore.jobs` returns them; damaged ones are left out.
    """
    jobs: dict[tuple[str, str], list[JobsOfRun]] = {}
    for document in found:
        if (read := JobsOfRun.decode(document)) is not None:
            jobs.setdefault((read.flow, read.run), []).append(read)
    return jobs


def prune(metadata: MetadataStore) -> None:
    """Remove documents of runs that ended, or were deleted, without a coordinator.

    Args:
        metadata: The metadata store that has the documents, of which the first 100 are looked at.
    """
    for document in metadata.jobs()[:_PRUNED]:
        read = JobsOfRun.decode(document)
        run = None if read is None else metadata.run(read.flow, read.run)
        if run is None or run.state in TERMINAL_RUN_STATES:
            metadata.put_jobs(document.name, b"")
