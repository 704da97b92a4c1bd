"""The records of one run, which many independent jobs write concurrently."""

from __future__ import annotations

import random
import time
from itertools import islice
from typing import TYPE_CHECKING

from aflow._core.backoff import Backoff
from aflow.errors import MetadataUnavailable, NotFound, VersionConflict
from aflow.metadata.base import AttemptRecord, Batch, RunUpdate, TaskRecord
from aflow.metadata.factory import open_metadata
from aflow.metadata.metaflow.service import RegisteringMetadata
from aflow.metadata.object_store import SCHEME as STORE
from aflow.scheduler.states import AttemptState

if TYPE_CHECKING:
    from aflow._core.settings import Settings
    from aflow.metadata.base import MetadataStore, RunRecord, TaskView
    from aflow.scheduler.states import RunState

TRIES = 200  # attempts of a commit that conflicts with those of other jobs
_BACKOFF = Backoff(0.005, 1.0, growth=1.2)  # the jobs of a wide foreach end at the same time
PAGE = 500  # tasks whose results are taken over in one commit


def open_records(settings: Settings) -> MetadataStore:
    """Return the open metadata store in which jobs of state machines record runs. That is the
    object store if the metadata service is one of Metaflow, which cannot store aflow's records.

    Args:
        settings: The settings of this program, with its metadata store and datastore.

    Raises:
        MetadataError: If the metadata store does not respond.
    """
    metadata = open_metadata(settings.metadata_url)
    if not isinstance(metadata, RegisteringMetadata):
        return metadata
    metadata.close()
    return open_metadata(f"{STORE}{settings.storage_url}")


class Records:
    """The records of one run. All methods block."""

    def __init__(self, metadata: MetadataStore, run: RunRecord) -> None:
        self.metadata = metadata
        self.run = run

    @classmethod
    def of(cls, metadata: MetadataStore, flow: str, run: str) -> Records:
        """Return the records of a run.

        Args:
            metadata: The open metadata store; the caller closes it.
            flow: The name of the flow.
            run: The id of the run.

        Raises:
            NotFound: If the run is not recorded, because its first job failed.
        """
        found = metadata.run(flow, run)
        if found is None:
            raise NotFound(f"There is no run {flow}/{run} in {metadata.url}: its start has failed.")
        return cls(metadata, found)

    def commit(self, batch: Batch) -> None:
        """Commit a batch; retry if another job has changed the run's version.

        Args:
            batch: The records to write, which must not depend on concurrent commits.

        Raises:
            NotFound: If the run was deleted.
            MetadataUnavailable: If all attempts conflicted with commits of other jobs.
        """
        version = self.run.version
        for tried in range(TRIES):
            try:
                version = self.metadata.commit(self.run.key, version, batch)
            except VersionConflict:
                time.sleep(_BACKOFF.delay(tried + 1, random.random()))
                now = self.metadata.run(self.run.flow, self.run.run)
                if now is None:
                    raise NotFound(
                        f"The run {self.run.flow}/{self.run.run} was deleted while it ran."
                    ) from None
                version = now.version
            else:
                self.run = self.run._replace(version=version)
                return
        raise MetadataUnavailable(
            f"The records of {self.run.flow}/{self.run.run} could not be written to "
            f"{self.metadata.url} in {TRIES} tries: others write to them all the time."
        )

    def attempts(self, task: int) -> tuple[bool, list[AttemptRecord]]:
        """Return whether the task is recorded, and its attempts, oldest first.

        Args:
            task: The number of the task within its run.
        """
        there = self.metadata.task(self.run.key, task) is not None
        return there, self.metadata.attempts(self.run.key, task) if there else []

    def take_over(self, origin: RunRecord, now: float) -> int:
        """Record the finished tasks of an earlier run of the flow as finished in this run.
        Idempotent: tasks that are recorded already are skipped.

        Args:
            origin: The run that is resumed.
            now: The present time, in seconds since the epoch.

        Returns:
            The number of tasks that were recorded.
        """
        there = {view.task.task for view in self.metadata.tasks(self.run.key, light=True)}
        count = 0
        finished = (
            view
            for view in self.metadata.tasks(origin.key)
            if _succeeded(view) and view.task.task not in there
        )
        while page := list(islice(finished, PAGE)):
            self.commit(_taken_over(page, origin.run, now))
            count += len(page)
        return count

    def end(self, state: RunState, reason: str, now: float, *, of_tasks: str) -> None:
        """Record the end of the run, and its running tasks as cancelled.

        Args:
            state: The final state of the run.
            reason: The reason for the state of the run, as one sentence.
            now: The present time, in seconds since the epoch.
            of_tasks: The reason for the cancellation of tasks, as one sentence.
        """
        cancelled = [
            view.attempt._replace(state=AttemptState.CANCELLED, finished_at=now, reason=of_tasks)
            for view in self.metadata.tasks(self.run.key, light=True)
            if view.attempt is not None and view.attempt.state is AttemptState.RUNNING
        ]
        self.commit(Batch(attempts=cancelled, run=RunUpdate(state, now, reason)))


def _succeeded(view: TaskView) -> bool:
    attempt = view.attempt
    return view.task.task > 0 and attempt is not None and attempt.state is AttemptState.SUCCEEDED


def _taken_over(views: list[TaskView], origin: str, now: float) -> Batch:
    batch = Batch()
    for task, attempt in ((view.task, view.attempt) for view in views):
        assert attempt is not None, "it has succeeded"
        batch.tasks.append(
            TaskRecord(
                task=task.task,
                step=task.step,
                created_at=now,
                split=task.split,
                index=task.index,
                inputs=task.inputs,
                origin=f"{origin}/{task.step}/{task.task}",
            )
        )
        batch.attempts.append(
            AttemptRecord(task.task, 0, AttemptState.SUCCEEDED, now, now, manifest=attempt.manifest)
        )
    return batch
