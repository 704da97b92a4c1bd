"""What a run says of its jobs to people who look at them: which queue each step uses, and which
jobs wait, since when and why.

Attempts are in the records of the run. What is here the job system alone knows: it is a small
document beside the run, written by its coordinator now and then, and removed when no job is left.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from aflow._core import ids
from aflow.errors import AflowError, VersionConflict
from aflow.scheduler.states import TERMINAL_RUN_STATES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aflow.metadata.base import Document, Documents, MetadataStore

KIND = "jobs"
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
        waiting = [
            each._replace(reason=" ".join(each.reason.split())[:_LONGEST_REASON])
            for each in self.waiting[:MOST_WAITING]
        ]
        return json.dumps({"queues": self.queues, "waiting": waiting}).encode()

    @classmethod
    def decode(cls, document: Document) -> JobsOfRun | None:
        """Return what a document says; None for one that is damaged.

        Args:
            document: A document of the kind `jobs`, which another version of aflow may have
                written.
        """
        path, _, system = document.name.partition(" ")
        flow, _, run = path.partition("/")
        try:
            fields = json.loads(document.data)
            return cls(
                ids.flow_name(flow), ids.run_id(run), system,
                {str(step): str(queue) for step, queue in fields["queues"].items()},
                tuple(
                    WaitingJob(str(job), str(step), int(size), float(since), str(reason))
                    for job, step, size, since, reason in fields["waiting"]
                ),
            )  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError, AflowError):
            return None


class JobBoard:
    """Keeps the document of one run as it is now. Blocks."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._written: bytes | None = b""  # what stands there is not known yet

    def publish(self, now: JobsOfRun) -> None:
        """Write what has changed since the last time; without queues nothing is left. Raises
        MetadataError.

        Args:
            now: What is known of the jobs now.
        """
        data = now.encode() if now.queues else None
        if data == self._written:
            return
        if data is None:
            self._documents.delete_document(KIND, now.name)
        else:
            there = self._documents.document(KIND, now.name)  # maybe of another coordinator
            try:
                self._documents.put_document(KIND, now.name, data, there.version if there else 0)
            except VersionConflict:  # that one writes it still: it is written again later
                return
        self._written = data


def of_runs_that_go_on(found: Iterable[Document]) -> dict[tuple[str, str], list[JobsOfRun]]:
    """Return what documents say, by flow and run.

    Args:
        found: Documents of the kind `jobs`; damaged ones are left out.
    """
    jobs: dict[tuple[str, str], list[JobsOfRun]] = {}
    for document in found:
        if (read := JobsOfRun.decode(document)) is not None:
            jobs.setdefault((read.flow, read.run), []).append(read)
    return jobs


def prune(documents: Documents, metadata: MetadataStore) -> None:
    """Remove documents of runs that ended, or were deleted, without a coordinator.

    Args:
        documents: The documents of the metadata store.
        metadata: The metadata store that says which runs have ended; a limited number of documents
            is looked at.
    """
    for document in documents.documents(KIND)[:_PRUNED]:
        read = JobsOfRun.decode(document)
        run = None if read is None else metadata.run(read.flow, read.run)
        if run is None or run.state in TERMINAL_RUN_STATES:
            documents.delete_document(KIND, document.name)
