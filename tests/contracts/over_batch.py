"""An executor whose attempts are jobs of a stand-in for AWS Batch that runs them as processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aflow._core.clock import SystemClock
from aflow.aws.client import ONCE, AwsClient
from aflow.aws.settings import AwsSettings
from aflow.executors.base import Orphan, Reports
from aflow.executors.jobs.batch.definitions import step_job
from aflow.executors.jobs.batch.job_system import BatchSystem
from aflow.executors.jobs.executor import JobExecutor
from aflow.executors.local.executor import needs_of
from aflow.executors.protocol import Job, python_version
from aflow.flow.definition import FlowDefinition
from aflow.metadata.sqlite import SqliteMetadata
from aflow.storage.local import LocalStore
from aflow.task.program import request_of
from aflow.task.spec import AttemptSpec, RunContext


class OverBatch:
    """The executor. Local jobs can also access the folder of the run's store."""

    lookahead = 0

    def __init__(self, definition: FlowDefinition, grace: float) -> None:
        self._definition = definition
        self._grace = grace
        self._metadata = SqliteMetadata(":memory:")
        self._made: JobExecutor | None = None
        self._orphans: Sequence[Orphan] = ()

    async def start(self, context: RunContext, reports: Reports) -> None:
        settings = AwsSettings.load()
        steps = self._definition.steps.items()
        # There is no code package: jobs import the flow from its file.
        found = {"PYTHONPATH": str(Path(__file__).parents[2])}
        jobs = {name: step_job(step, settings, found) for name, step in steps}
        self._made = JobExecutor(
            BatchSystem(AwsClient(manner=ONCE)),
            lambda step, attempt: jobs[step],
            LocalStore(Path(context.storage_url.removeprefix("file://"))),
            self._metadata,
            self._job,
            SystemClock(),
            grace=self._grace,
        )
        assert () == self._made.recover(self._orphans), "jobs are never lost with us"
        await self._made.start(context, reports)

    def _job(self, context: RunContext) -> Job:
        request, needs = request_of(self._definition), needs_of(self._definition)
        return Job(context, request, needs, None, "", "task", python_version(), 1 << 30)

    def recover(self, orphans: Sequence[Orphan]) -> Sequence[Orphan]:
        self._orphans = orphans
        return ()

    def forget(self, task: int, attempt: int) -> None:
        self._executor.forget(task, attempt)

    def launch(self, spec: AttemptSpec) -> None:
        self._executor.launch(spec)

    def cancel(self, task: int, attempt: int) -> None:
        self._executor.cancel(task, attempt)

    async def leave(self) -> None:
        await self._executor.leave()

    async def stop(self) -> None:
        if self._made is not None:
            await self._made.stop()
        self._metadata.close()

    @property
    def _executor(self) -> Any:
        assert self._made is not None, "it was started"
        return self._made
