"""The program of a state machine's job: `python -m aflow _state`, configured by variables.

It determines its task from the step and the place, reads the inputs from the metadata store and the
datastore, runs one attempt and records it. The exit code is 0 if the task has succeeded (now or in
an earlier attempt of the job), 1 if Batch should retry the job, and 202 if a retry cannot succeed.

The first job of a run records the run. The last one, or the job that records a failure, records the
end of the run and calls the exit hooks.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from aflow._core.clock import Clock, SystemClock
from aflow._core.settings import RunOptions
from aflow.compat import metaflow
from aflow.environments import transport
from aflow.errors import AflowError, InvalidInput, VersionConflict
from aflow.executors.base import stopped
from aflow.executors.protocol import python_version
from aflow.executors.remote.attempt import (
    AGAIN,
    Container,
    JobAttempt,
    leave,
    log_line,
    run_job,
    unpacked_in,
    with_code,
)
from aflow.flow.decorators.attach import attach
from aflow.flow.graph import Graph, Kind
from aflow.flow.spec import define
from aflow.metadata.base import Batch, RunUpdate, TaskRecord
from aflow.metadata.factory import open_metadata
from aflow.runs.attempts import AttemptLogs, LiveAttempt
from aflow.runs.create import Creation, Driving, current_facts
from aflow.runs.exit_hooks import run_hooks
from aflow.runs.liveness import ENGINE
from aflow.scheduler.messages import FromForeach, encode_inputs
from aflow.scheduler.retry import StepPolicy
from aflow.scheduler.states import TERMINAL_RUN_STATES, AttemptState, RunState, TaskState
from aflow.step_functions.names import too_many_items
from aflow.step_functions.records import Records
from aflow.step_functions.spec import (
    FAILURE_RESULT,
    NOBODY,
    StateJobVariables,
    TriggerPayload,
    foreach_result,
    payload_of,
    read_spec,
    result_name,
    state_after,
    switch_result,
)
from aflow.step_functions.tasks import ROOT, Numbers, TaskReference, next_attempt
from aflow.storage.artifacts import Manifest
from aflow.task.config_binding import with_values
from aflow.task.environment import Variables
from aflow.task.program import class_from
from aflow.task.spec import NO_RETRY_EXIT_CODE, AttemptSpec, RunContext

if TYPE_CHECKING:
    from aflow.executors.base import Usage
    from aflow.executors.local.executor import StartZygote
    from aflow.flow.definition import FlowDefinition
    from aflow.metadata.base import AttemptRecord, MetadataStore
    from aflow.step_functions.spec import DeploymentSpec
    from aflow.task.spec import AttemptReport

BEAT = 10.0  # seconds between heartbeats
LEASE = 60.0  # seconds without a heartbeat after which the lease of a run expires


class RecordedAttempt(JobAttempt):
    """The attempt of one job. There is no coordinator: the job itself records heartbeats, the start
    and the end of its attempt in the metadata store."""

    def __init__(
        self, container: Container, clock: Clock, records: Records, deployment: DeploymentSpec
    ) -> None:
        super().__init__(container, clock)
        self._deployment = deployment
        self._records = records
        self._new: list[TaskRecord] = []
        self._recorded = 0  # the recorded number of log chunks

    async def run(
        self, spec: AttemptSpec, context: RunContext, start: StartZygote, new: TaskRecord | None
    ) -> tuple[AttemptReport, AttemptRecord]:
        """Run the attempt to its end; the caller must record the end.

        Args:
            spec: The specification of the attempt.
            context: The run that the attempt belongs to.
            start: The starter of zygotes.
            new: The record of the task, if it is not recorded yet; else None.

        Returns:
            The report and the record of the end.

        Raises:
            AflowError: If the metadata store or the datastore does not respond.
        """
        self.listen()
        self._spec = spec
        self._new = [new] if new is not None else []
        self._live = LiveAttempt(
            spec.step, spec.fallback, pid=os.getpid(), started_at=self._clock.now()
        )
        deployment = self._deployment
        self._logs = AttemptLogs(
            self._store, context.flow, context.run, deployment.max_log_size, self._stored
        )
        await asyncio.to_thread(self._note_running)
        executor = await self.begin(context, deployment.needs, deployment.request, start)
        # One task group, so that a failing heartbeat ends the attempt: its lease would expire.
        try:
            async with asyncio.TaskGroup() as group:
                beating = group.create_task(self._beat())
                report, usage = await self.finish(executor, spec)
                beating.cancel()
        except ExceptionGroup as errors:  # Python before 3.11.4 raises a group in an `except*`
            raise errors.exceptions[0] from None
        record = await self._finished(report, usage)
        await self._logs.close()
        return report, record

    async def _beat(self) -> None:
        """Renew the lease of the run periodically, and stop the attempt if the run is cancelled."""
        key, holder = self._records.run.key, f"step-functions/{self._records.run.run}"
        while True:
            metadata = self._records.metadata
            lease = await asyncio.to_thread(
                metadata.acquire_lease, key, holder, LEASE, self._clock.now()
            )
            if lease.cancel is not None:
                self._stopping.set()
            if self._live.chunks > self._recorded:
                await asyncio.to_thread(self._note_running)
            await asyncio.sleep(BEAT)

    def _note_running(self) -> None:
        record = self._live.running(self._spec.task, self._spec.attempt)
        self._records.commit(Batch(tasks=self._new, attempts=[record]))
        self._new, self._recorded = [], record.log_chunks

    def logged(self, task: int, attempt: int, stream: int, at: float, chunk: bytes) -> None:
        """Add output of the attempt to its log."""
        self._logs.feed(self._spec.step, task, attempt, stream, at, chunk)
        super().logged(task, attempt, stream, at, chunk)

    def _stored(self, task: int, attempt: int, chunks: int, error: Exception | None) -> None:
        if error is None:
            self._live.chunks = chunks
        elif not self._end.done():
            self._end.set_exception(error)

    async def _finished(self, report: AttemptReport, usage: Usage) -> AttemptRecord:
        """Wait until the log is stored, and return the final record of the attempt."""
        _, log = self._logs.finish(report.task, report.attempt, self._clock.now())
        if log is not None and log.unstored is not None:
            await log.unstored
        if self._stopping.is_set() and report.state == AttemptState.CANCELLED.value:
            interrupted, reason = AttemptState.INTERRUPTED.value, "The job of the task was stopped."
            report = report._replace(state=interrupted, reason=reason)
        return self._live.ended(report, usage, log, self._clock.now())


def main() -> NoReturn:
    """Run the job that the variables of this process describe, and exit with its exit code."""

    def work(variables: StateJobVariables, container: Container) -> int:
        sys.path.insert(0, str(container.folder))
        job = StateMachineJob(variables, SystemClock(), container)
        try:
            return job.note_failure() if variables.step is None else job.run(variables.step)
        finally:
            job.close()

    leave(run_job(StateJobVariables.load, lambda variables: variables.storage, work))


class StateMachineJob:
    """One job: determines its task, runs an attempt, and stores the result for the next state."""

    def __init__(self, variables: StateJobVariables, clock: Clock, container: Container) -> None:
        self._variables = variables
        self._clock = clock
        self._container = container
        self._store = store = container.store
        self._metadata: MetadataStore = open_metadata(variables.metadata, own=True)
        deployment: DeploymentSpec = read_spec(store, variables.deployment)
        if deployment.python != python_version():
            raise InvalidInput(
                f"The flow was deployed with Python {deployment.python}, and the image of the job "
                f"has {python_version()}: use an image that has the same."
            )
        self._graph = Graph.from_dict(deployment.graph)
        self._numbers = Numbers(self._graph)
        unpack = unpacked_in(container.folder)
        code, script = deployment.code, deployment.script
        request, _ = with_code(store, deployment.request, code, script, unpack)
        self._deployment = deployment._replace(request=request)
        self._flow, self._run = deployment.flow, variables.run
        self._loaded: FlowDefinition | None = None

    def close(self) -> None:
        """Close the metadata store."""
        self._metadata.close()

    def _definition(self) -> FlowDefinition:
        """Return the flow's definition. Imports the flow, which few jobs need in this process."""
        if self._loaded is None:
            request = self._deployment.request
            needs = self._deployment.needs.get(self._variables.step or "")
            if needs is not None:
                Variables("environment").take(needs.environment)
            if request.is_metaflow:
                metaflow.install()
            definition = define(class_from(request.source))
            if request.configs is not None:
                # Trusted: the user wrote it when deploying.
                definition = with_values(definition, pickle.loads(request.configs))  # noqa: S301
            self._loaded = attach(definition, request.decospecs)
        return self._loaded

    def _records(self) -> Records:
        return Records.of(self._metadata, self._flow, self._run)

    # ------------------------------------------------------------ a task

    def run(self, step: str) -> int:
        """Run the task, unless it has already succeeded.

        Args:
            step: The name of the step, from the job's variables.

        Returns:
            The exit code of the job; 0 if the task has succeeded, now or in an earlier attempt.

        Raises:
            InvalidInput: If the job's variables are malformed, the flow has no such step, the run
                has ended, or the task has no attempts left.
        """
        variables, deployment = self._variables, self._deployment
        if step == self._graph.start:
            self._begin_run()
        records = self._records()
        reference = self._numbers.reference(
            step, variables.place, variables.came_from, variables.branches
        )
        there, attempts = records.attempts(reference.task)
        last = attempts[-1] if attempts else None
        # AWS Batch may retry a job whose success is recorded: then only the result for the state
        # machine is stored again.
        if last is not None and last.state is AttemptState.SUCCEEDED:
            return self._went_on(records, step, reference, last, over=False)
        if records.run.state in TERMINAL_RUN_STATES:
            raise InvalidInput(f"The run {self._flow}/{self._run} is {records.run.state.value}.")
        self._note_lost(records, attempts)
        upcoming = next_attempt(StepPolicy.from_dict(deployment.policies[step]), attempts)
        if upcoming is None:
            raise InvalidInput(f"Task {step}/{reference.task} has failed as often as it may.")
        reference = self._counted(step, reference, records)
        manifest = None if reference.split is None else self._manifest(reference.split)
        spec = AttemptSpec(
            step=step,
            task=reference.task,
            attempt=upcoming.attempt,
            inputs=encode_inputs(reference.inputs),
            split=reference.split,
            split_index=reference.index,
            splits=None if manifest is None else manifest.transition[2],
            opens_index=reference.opens_index,
            final=upcoming.final,
            fallback=upcoming.fallback,
            manifests={},
        )
        new = None
        if not there:
            new = TaskRecord(
                task=reference.task,
                step=step,
                created_at=self._clock.now(),
                split=reference.split,
                index=reference.index,
                inputs=spec.inputs,
            )
        # Wait for the backoff of @retry here, because AWS Batch retries a job immediately.
        time.sleep(max(0.0, upcoming.not_before - self._clock.now()))
        attempt = RecordedAttempt(self._container, self._clock, records, deployment)
        try:
            start = attempt.start_of(step, deployment.environments.get(step), deployment.python)
        except AflowError as error:
            return self._never_ran(records, spec, new, f"The job cannot run the task: {error}")
        report, record = asyncio.run(attempt.run(spec, self._context(records), start, new))
        # Checked after the attempt, because the step determines the number of items.
        fault = too_many_items(self._graph, step, report.splits, distributed=deployment.distributed)
        if fault is not None:
            report = report._replace(retryable=False)
            record = record._replace(state=AttemptState.FAILED, reason=fault, manifest=None)
        if record.state is AttemptState.SUCCEEDED:
            return self._went_on(records, step, reference, record, over=True)
        records.commit(Batch(attempts=[record]))
        log_line(record.reason)
        if record.state is AttemptState.INTERRUPTED and self._is_over():
            return self.note_failure()
        again = next_attempt(StepPolicy.from_dict(deployment.policies[step]), [*attempts, record])
        return AGAIN if again and report.retryable else NO_RETRY_EXIT_CODE

    def _never_ran(
        self, records: Records, spec: AttemptSpec, new: TaskRecord | None, reason: str
    ) -> int:
        """Record an attempt that this job could not start. Returns the exit code for a retry, by
        Batch and perhaps on another host."""
        now = self._clock.now()
        live = LiveAttempt(spec.step, spec.fallback, pid=os.getpid(), started_at=now)
        report = stopped(spec.task, spec.attempt, AttemptState.FAILED, reason, now, now)
        failed = live.ended(report, None, None, now)
        records.commit(Batch(tasks=[] if new is None else [new], attempts=[failed]))
        log_line(reason)
        return AGAIN

    def _is_over(self) -> bool:
        """Return whether the execution has exceeded its timeout. AWS then stops its jobs, and only
        a job can record the end of the run."""
        started, limit = self._variables.started, self._variables.limit
        if started is None or limit is None:
            return False
        # Emulators of Step Functions may pass it in quotes.
        begun = datetime.fromisoformat(started.strip('"'))
        return self._clock.now() >= begun.timestamp() + limit

    def _counted(self, step: str, reference: TaskReference, records: Records) -> TaskReference:
        """Return the reference with the number of items if the step joins a foreach. Raises
        InvalidInput if items are missing: a map may be configured to tolerate failures."""
        inputs = reference.inputs
        if not isinstance(inputs, FromForeach):
            return reference
        count = self._manifest(inputs.split).transition[2] or 0
        tasks = self._metadata.tasks(
            records.run.key, split=inputs.split, steps=inputs.steps, light=True
        )
        there = {view.task.index for view in tasks if view.state is TaskState.SUCCEEDED}
        if len(there) != count:
            raise InvalidInput(f"Step {step} cannot join: {len(there)} of {count} items are there.")
        return reference._replace(inputs=inputs._replace(count=count))

    def _manifest(self, task: int) -> Manifest:
        data = self._metadata.manifests(self._records().run.key, [task]).get(task)
        if data is None:
            raise AflowError(f"Task {task}, which comes before this one, has not succeeded.")
        return Manifest.decode(data)

    def _note_lost(self, records: Records, attempts: list[AttemptRecord]) -> None:
        """Record running attempts of earlier jobs as lost: they ended without a report."""
        now = self._clock.now()
        reason = "The task was lost: its job ended without a report (its machine may have failed)."
        lost = {
            each.attempt: each._replace(state=AttemptState.LOST, finished_at=now, reason=reason)
            for each in attempts
            if each.state is AttemptState.RUNNING
        }
        if lost:
            records.commit(Batch(attempts=[*lost.values()]))
            attempts[:] = [lost.get(each.attempt, each) for each in attempts]

    def _context(self, records: Records) -> RunContext:
        run, deployment = records.run, self._deployment
        return RunContext(
            flow=deployment.flow,
            run=run.run,
            run_key=run.key,
            user=run.user,
            namespace=deployment.namespace,
            tags=run.tags,
            storage_url=self._store.url,
            metadata_url=self._metadata.address,
            durability="power",
            max_num_splits=deployment.max_num_splits,
            origin_run=run.origin_run,
            current_facts=current_facts(run),
            previews=deployment.previews,
        )

    # ------------------------------------------------------------ after a task

    def _went_on(
        self,
        records: Records,
        step: str,
        reference: TaskReference,
        record: AttemptRecord,
        *,
        over: bool,
    ) -> int:
        """Finish a task that has succeeded: store its result, then record its success. With the end
        step, also record the end of the run and call the exit hooks.

        `over` is True if this job ran the attempt, so that its success is not recorded yet. The
        result is stored first, so that a recorded success implies that the next state can read it.
        """
        assert record.manifest is not None, "a task that succeeds leaves a manifest"
        manifest, node = Manifest.decode(record.manifest), self._graph[step]
        if node.kind in (Kind.FOREACH, Kind.SWITCH):
            self._store_result(records, step, reference.task, manifest)
        batch = Batch(attempts=[record] if over else [])
        ends = node.kind is Kind.END
        if ends:
            batch.run = RunUpdate(RunState.SUCCEEDED, self._clock.now(), "")
        if over or (ends and records.run.state not in TERMINAL_RUN_STATES):
            records.commit(batch)
            if ends:
                self._call_hooks(succeeded=True)
        return 0

    def _store_result(self, records: Records, step: str, task: int, manifest: Manifest) -> None:
        variables = self._variables
        if self._graph[step].kind is Kind.SWITCH:
            after = self._numbers.after(step, variables.place)
            state = state_after(variables.run, step, after, variables.started)
            result: Any = switch_result(state, manifest.transition[0][0])
        else:
            state = state_after(variables.run, step, variables.place, variables.started)
            items = self._items_to_do(records, step, task, manifest)
            result = foreach_result(state, items, distributed=self._deployment.distributed)
        self._leave(step, variables.place, result)

    def _leave(self, step: str, place: str, result: Any) -> None:
        data = json.dumps(result, separators=(",", ":")).encode()
        self._store.put(result_name(self._flow, self._run, step, place), [data])

    def _items_to_do(self, records: Records, step: str, task: int, manifest: Manifest) -> list[int]:
        """Return the items of a foreach that have to run; a resumed run has finished ones."""
        count = manifest.transition[2] or 0
        join = self._graph[step].join
        assert join is not None, "every foreach has a join"
        last = self._graph[join].previous
        done: set[int] = set()
        if not any(self._numbers.loops(each) for each in last):
            start = 0
            while page := self._metadata.split_manifests(records.run.key, task, last, start, 1000):
                done.update(row[0] for row in page)
                start = page[-1][0] + 1
        return [index for index in range(count) if index not in done]

    # ------------------------------------------------------------ the run

    def _begin_run(self) -> None:
        """Record the run, and the finished tasks of the run that it resumes, unless an earlier
        attempt of this job has done so."""
        deployment, variables = self._deployment, self._variables
        payload = payload_of(variables.payload, deployment.events, deployment.flows)
        if self._metadata.run(self._flow, self._run) is None:
            self._create_run(payload)
        if payload.origin is not None:
            self._take_over(payload.origin)

    def _create_run(self, payload: TriggerPayload) -> None:
        deployment, variables = self._deployment, self._variables
        definition = self._definition()
        options = RunOptions(
            tags=deployment.tags,
            origin_run=payload.origin,
            run_id=variables.run,
            branch=deployment.branch,
            production=deployment.production,
            max_num_splits=deployment.max_num_splits,
            namespace=deployment.namespace,
            script=deployment.script,
            trigger=payload.runs,
            locks=transport.locks(deployment.environments, self._store),
        )
        creation = Creation(
            self._metadata, self._store, "power", NOBODY, self._clock, deployed_by=deployment.user
        )
        engine = {"machine": deployment.machine, "execution": variables.execution}
        driving = Driving(f"{ENGINE}/{variables.run}", 0, engine)
        try:
            new = creation.create(definition, options, payload.parameters, driving)
        except VersionConflict:  # an earlier attempt of this job has recorded it
            return
        Records(self._metadata, new.record).commit(Batch(metadata=[new.facts()]))

    def _take_over(self, resumed: str) -> None:
        origin = self._metadata.run(self._flow, resumed)
        if origin is None:
            raise InvalidInput(f"The run {self._flow}/{resumed}, which is resumed, was deleted.")
        if _shape(Graph.from_dict(origin.graph)) != _shape(self._graph):
            raise InvalidInput(
                f"{origin.flow}/{origin.run} cannot be resumed: the steps of the flow are others "
                "now. Begin a new run."
            )
        self._records().take_over(origin, self._clock.now())

    def note_failure(self) -> int:
        """Record that the run has failed, and call the exit hooks.

        Returns:
            The exit code of the job.

        Raises:
            InvalidInput: If the run is not recorded.
        """
        if self._metadata.run(self._flow, self._run) is None:
            raise InvalidInput(f"The run {self._run} was never recorded: its start has failed.")
        records = self._records()
        if records.run.state in TERMINAL_RUN_STATES:
            self._leave(FAILURE_RESULT, ROOT, {"reason": records.run.reason})
            return 0
        reason = self._reason(records)
        self._leave(FAILURE_RESULT, ROOT, {"reason": reason})
        of_tasks = "The task was cancelled: another one has failed."
        records.end(RunState.FAILED, reason, self._clock.now(), of_tasks=of_tasks)
        self._call_hooks(succeeded=False)
        return 0

    def _reason(self, records: Records) -> str:
        if self._is_over():
            return f"The run took longer than {self._variables.limit} seconds (--workflow-timeout)."
        failed = records.metadata.newest_tasks(
            records.run.key, states=[TaskState.FAILED], limit=1, light=True
        )
        for view in failed:
            assert view.attempt is not None, "a task fails by an attempt"
            where = f"{self._flow}/{self._run}/{view.task.step}/{view.task.task}"
            return f"Task {where} failed: {view.attempt.reason}"
        return (
            f"Step Functions ended the run with {self._variables.error}: the execution "
            f"{self._variables.execution} of {self._deployment.machine} tells why."
        )

    def _call_hooks(self, *, succeeded: bool) -> None:
        run_hooks(
            self._definition(),
            f"{self._flow}/{self._run}",
            succeeded=succeeded,
            metadata_url=self._metadata.address,
            log=lambda text: print(text, file=sys.stderr),  # noqa: T201 -- the log of the job
        )


def _shape(graph: Graph) -> dict[str, tuple[Any, ...]]:
    """Return the parts of a graph that task numbers depend on."""
    return {name: (node.kind, node.next) for name, node in graph.nodes.items()}
