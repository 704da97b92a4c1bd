"""The records of one run that many jobs write to, none of which knows of the others."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from aflow._core.backoff import Backoff
from aflow.errors import MetadataUnavailable, NotFound, VersionConflict
from aflow.metadata.base import AttemptRecord, Batch, TaskRecord
from aflow.scheduler.states import AttemptState

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore, RunRecord, TaskView

TRIES = 200  # to write a record, while others do so, too
_BACKOFF = Backoff(0.005, 1.0, growth=1.2)  # the jobs of a wide foreach end together
PAGE = 500  # tasks whose results are reused in one commit


class Records:
    """The records of one run. Calls block; `sleep` is between tries to write."""

    def __init__(
        self,
        metadata: MetadataStore,
        run: RunRecord,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._metadata = metadata
        self._sleep = sleep
        self.run = run

    @classmethod
    def of(
        cls,
        metadata: MetadataStore,
        flow: str,
        run: str,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Records:
        """Return the records of a run.

        Args:
            metadata: The open metadata store; it stays open.
            flow: The name of the flow.
            run: The id of the run, which the execution's name is.
            sleep: Blocks for a number of seconds; a test gives one that does not wait.

        Raises:
            NotFound: The run was not recorded: the job that begins it has failed.
        """
        found = metadata.run(flow, run)
        if found is None:
            raise NotFound(f"There is no run {flow}/{run} in {metadata.url}: its start has failed.")
        return cls(metadata, found, sleep)

    @property
    def metadata(self) -> MetadataStore:
        """Where they are."""
        return self._metadata

    def commit(self, batch: Batch) -> None:
        """Write a batch that does not depend on what others have written meanwhile.

        Args:
            batch: The records to write. It is tried again where the run's version has changed
                meanwhile.

        Raises:
            NotFound: The run does not exist.
            MetadataUnavailable: Other jobs have written before every try.
        """
        version = self.run.version
        for tried in range(TRIES):
            try:
                version = self._metadata.commit(self.run.key, version, batch)
            except VersionConflict:
                self._sleep(_BACKOFF.delay(tried + 1, random.random()))
                now = self._metadata.run(self.run.flow, self.run.run)
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
            f"{self._metadata.url} in {TRIES} tries: others write to them all the time."
        )

    def attempts(self, task: int) -> tuple[bool, list[AttemptRecord]]:
        """Return whether the task is recorded, and its attempts, oldest first.

        Args:
            task: The number of the task within its run.
        """
        there = self._metadata.task(self.run.key, task) is not None
        return there, self._metadata.attempts(self.run.key, task) if there else []

    def take_over(self, origin: RunRecord, now: float) -> int:
        """Record the tasks that an earlier run of the flow has finished as finished in this run,
        too. May be called again: what is recorded already is skipped.

        Args:
            origin: The run that is resumed.
            now: The present time, in seconds since the epoch.

        Returns:
            How many tasks were recorded.
        """
        there = {view.task.task for view in self._metadata.tasks(self.run.key, light=True)}
        count = 0
        finished = (
            view
            for view in self._metadata.tasks(origin.key)
            if _succeeded(view) and view.task.task not in there
        )
        while page := list(islice(finished, PAGE)):
            self.commit(_taken_over(page, origin.run, now))
            count += len(page)
        return count

    def unfinished(self) -> Iterator[AttemptRecord]:
        """Yield the latest attempts of tasks that have not ended."""
        for view in self._metadata.tasks(self.run.key, light=True):
            if view.attempt is not None and view.attempt.state is AttemptState.RUNNING:
                yield view.attempt


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
