"""What a job of a state machine does: `python -m aflow.deploy.inside`, told by its variables.

It finds its task by step and place, reads inputs from the metadata and the store, runs one attempt
and records it. It ends with 0 where the task has succeeded (now or before), with 1 where Batch
shall try again, and with 202 where that would be of no use.

The first job of a run records the run; the last one, or the job that notes a failure, records its
end and calls the exit hooks.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aflow import backends, compat, package
from aflow.attempt.spec import AttemptSpec, RunContext
from aflow.clock import Clock, SystemClock
from aflow.config import RunOptions, looked_up
from aflow.configured import with_values
from aflow.deploy.attempt import OneAttempt
from aflow.deploy.chances import next_chance
from aflow.deploy.given import Given, given_by
from aflow.deploy.inputs import Numbers, Standing
from aflow.deploy.limits import too_many_items
from aflow.deploy.machine import FINAL_EXIT_CODE
from aflow.deploy.order import NOBODY, Told, read_order
from aflow.deploy.places import ROOT
from aflow.deploy.records import Records
from aflow.deploy.words import (
    WORD_OF_FAILURE,
    state_after,
    word_name,
    word_of_foreach,
    word_of_switch,
)
from aflow.errors import AflowError, InvalidInput, VersionConflict
from aflow.executors.job import python_version
from aflow.executors.local.program import class_from, placed
from aflow.executors.local.start import EarlyGround, fork_ground
from aflow.exit_hooks import run_hooks
from aflow.flow.decorators.attach import attach
from aflow.flow.graph import Graph, Kind
from aflow.flow.spec import define
from aflow.metadata.base import AttemptRecord, Batch, RunUpdate, TaskRecord
from aflow.runs.creation import Creation, Driving
from aflow.runs.flow_values import told as told_of
from aflow.runs.liveness import ENGINE
from aflow.scheduler.codec import encode_inputs
from aflow.scheduler.messages import FromForeach
from aflow.scheduler.policy import StepPolicy
from aflow.scheduler.states import TERMINAL_RUN_STATES, AttemptState, RunState, TaskState
from aflow.storage.blobs import BlobStore
from aflow.storage.manifest import Manifest

if TYPE_CHECKING:
    from aflow.deploy.order import Order
    from aflow.flow.definition import FlowDefinition
    from aflow.metadata.base import MetadataStore
    from aflow.storage.base import ObjectStore

AGAIN = 1  # Batch tries the job again


def main() -> int:
    """Do what this process was told; its exit code."""
    try:
        told = Told.load()
        if looked_up("SERVICE_AUTH_KEY_SECRET") is not None:
            from aflow.attempt.secrets_manager import fetch_service_key  # few jobs have one

            fetch_service_key()
        store = backends.open_store(told.storage)  # now, for the ground to have it, too
        # Before the folder is made: a process that was forked after would remove it at its end.
        ground = EarlyGround(fork_ground())
        with ExitStack() as made:
            folder = made.enter_context(tempfile.TemporaryDirectory(prefix="aflow-"))
            made.callback(ground.close)
            sys.path.insert(0, folder)
            job = Job(told, SystemClock(), Path(folder), store, ground)
            made.callback(job.close)
            return job.note_failure() if told.step is None else job.run(told.step)
    except InvalidInput as error:  # it is as wrong the next time
        print(f"aflow: {error}", file=sys.stderr)  # noqa: T201 -- the log of the job
        return FINAL_EXIT_CODE
    except AflowError as error:
        print(f"aflow: {error}", file=sys.stderr)  # noqa: T201 -- the log of the job
        return AGAIN


class Job:
    """One job. The code of the flow is put into the folder, from which its task runs it."""

    def __init__(
        self,
        told: Told,
        clock: Clock,
        folder: Path,
        store: ObjectStore,
        ground: EarlyGround,
    ) -> None:
        self._told = told
        self._clock = clock
        self._ground = ground
        self._store = store
        self._metadata: MetadataStore = backends.open_metadata(told.metadata, own=True)
        self._order: Order = read_order(self._store, told.order)
        if self._order.python != python_version():
            raise InvalidInput(
                f"The flow was deployed with Python {self._order.python}, and the image of the job "
                f"has {python_version()}: use an image that has the same."
            )
        self._graph = Graph.from_dict(self._order.graph)
        self._numbers = Numbers(self._graph)
        self._unpack(folder)
        self._loaded: FlowDefinition | None = None

    def close(self) -> None:
        """Let go of the metadata."""
        self._metadata.close()

    def _unpack(self, folder: Path) -> None:
        order = self._order
        package.unpack(package.fetch(BlobStore(self._store), order.code), folder)
        source = placed(order.request.source, folder, package.inside(order.script))
        self._order = order._replace(request=order.request._replace(source=source))

    def _definition(self) -> FlowDefinition:
        """The flow itself, imported: few jobs need it in this process."""
        if self._loaded is None:
            request = self._order.request
            if request.is_metaflow:
                compat.install()
            definition = define(class_from(request.source))
            if request.configs is not None:
                # From the order, which the user's own deployment has written.
                definition = with_values(definition, pickle.loads(request.configs))  # noqa: S301
            self._loaded = attach(definition, request.decospecs)
        return self._loaded

    # ------------------------------------------------------------ a task

    def run(self, step: str) -> int:
        """Run the task, if it has not succeeded already; the exit code of the job."""
        told, order = self._told, self._order
        if step == self._graph.start:
            self._begin_run()
        records = Records.of(self._metadata, order.flow, told.run)
        standing = self._numbers.standing(step, told.place, told.came_from, told.branches)
        there, attempts = records.attempts(standing.task)
        last = attempts[-1] if attempts else None
        if last is not None and last.state is AttemptState.SUCCEEDED:
            return self._went_on(records, step, standing, last, over=False)
        if records.run.state in TERMINAL_RUN_STATES:
            raise InvalidInput(f"The run {order.flow}/{told.run} is {records.run.state.value}.")
        self._note_lost(records, attempts)
        chance = next_chance(StepPolicy.from_dict(order.policies[step]), attempts)
        if chance is None:
            raise InvalidInput(f"Task {step}/{standing.task} has failed as often as it may.")
        standing = self._counted(step, standing, records)
        manifest = None if standing.split is None else self._manifest(standing.split)
        spec = AttemptSpec(
            step,
            standing.task,
            chance.attempt,
            encode_inputs(standing.inputs),
            standing.split,
            standing.index,
            None if manifest is None else manifest.transition[2],
            standing.opens_index,
            chance.final,
            chance.fallback,
            {},
        )
        new = None if there else self._task_record(step, standing, spec)
        time.sleep(max(0.0, chance.not_before - self._clock.now()))
        attempt = OneAttempt(order, records, self._store, self._clock, self._ground.start)
        report, record = asyncio.run(attempt.run(spec, self._context(records), new))
        fault = too_many_items(self._graph, step, report.splits, distributed=order.distributed)
        if fault is not None:
            report = report._replace(retryable=False)
            record = record._replace(state=AttemptState.FAILED, reason=fault, manifest=None)
        if record.state is AttemptState.SUCCEEDED:
            return self._went_on(records, step, standing, record, over=True)
        records.commit(Batch(attempts=[record]))
        print(f"aflow: {record.reason}", file=sys.stderr)  # noqa: T201 -- the log of the job
        if record.state is AttemptState.INTERRUPTED and self._is_over():
            return self.note_failure()
        again = next_chance(StepPolicy.from_dict(order.policies[step]), [*attempts, record])
        return AGAIN if again and report.retryable else FINAL_EXIT_CODE

    def _is_over(self) -> bool:
        """Whether the execution has had the time that it has: AWS stops its jobs then, and nobody
        else is left to say so."""
        started, limit = self._told.started, self._told.limit
        if started is None or limit is None:
            return False
        # Other interpreters than that of AWS put it in quotes.
        begun = datetime.fromisoformat(started.strip('"'))
        return self._clock.now() >= begun.timestamp() + limit

    def _task_record(self, step: str, standing: Standing, spec: AttemptSpec) -> TaskRecord:
        now = self._clock.now()
        return TaskRecord(standing.task, step, now, standing.split, standing.index, spec.inputs)

    def _counted(self, step: str, standing: Standing, records: Records) -> Standing:
        """With the number of items that a join over a foreach reads. Raises InvalidInput where
        some are not there: a map may have been told to tolerate failures."""
        inputs = standing.inputs
        if not isinstance(inputs, FromForeach):
            return standing
        count = self._manifest(inputs.split).transition[2] or 0
        tasks = self._metadata.tasks(
            records.run.key, split=inputs.split, steps=inputs.steps, light=True
        )
        there = {view.task.index for view in tasks if view.state is TaskState.SUCCEEDED}
        if len(there) != count:
            raise InvalidInput(f"Step {step} cannot join: {len(there)} of {count} items are there.")
        return standing._replace(inputs=inputs._replace(count=count))

    def _manifest(self, task: int) -> Manifest:
        records = Records.of(self._metadata, self._order.flow, self._told.run)
        data = self._metadata.manifests(records.run.key, [task]).get(task)
        if data is None:
            raise AflowError(f"Task {task}, which comes before this one, has not succeeded.")
        return Manifest.decode(data)

    def _note_lost(self, records: Records, attempts: list[AttemptRecord]) -> None:
        """What never told of its end has lost its machine."""
        lost = [each for each in attempts if each.state is AttemptState.RUNNING]
        if not lost:
            return
        now = self._clock.now()
        reason = "The task was lost: its job ended without a word (its machine went away?)."
        ended = [
            each._replace(state=AttemptState.LOST, finished_at=now, reason=reason) for each in lost
        ]
        records.commit(Batch(attempts=ended))
        attempts[:] = [next((e for e in ended if e.attempt == a.attempt), a) for a in attempts]

    def _context(self, records: Records) -> RunContext:
        run, order = records.run, self._order
        return RunContext(
            order.flow, run.run, run.key, run.user, order.namespace, run.tags, self._store.url,
            self._metadata.address, "power", order.max_num_splits, run.origin_run, told_of(run),
            previews=order.previews,
        )  # fmt: skip

    # ------------------------------------------------------------ what follows

    def _went_on(
        self,
        records: Records,
        step: str,
        standing: Standing,
        record: AttemptRecord,
        *,
        over: bool,
    ) -> int:
        """The task has succeeded: its word is left before that is recorded, since who comes next
        may read it at once."""
        assert record.manifest is not None, "a task that succeeds leaves a manifest"
        manifest, node = Manifest.decode(record.manifest), self._graph[step]
        if node.kind in (Kind.FOREACH, Kind.SWITCH):
            self._leave_word(records, step, standing.task, manifest)
        batch = Batch(attempts=[record] if over else [])
        ends = node.kind is Kind.END
        if ends:
            batch.run = RunUpdate(RunState.SUCCEEDED, self._clock.now(), "")
        if over or (ends and records.run.state not in TERMINAL_RUN_STATES):
            records.commit(batch)
            if ends:
                self._call_hooks(succeeded=True)
        return 0

    def _leave_word(self, records: Records, step: str, task: int, manifest: Manifest) -> None:
        told = self._told
        if self._graph[step].kind is Kind.SWITCH:
            after = self._numbers.after(step, told.place)
            state = state_after(told.run, step, after, told.started)
            said: Any = word_of_switch(state, manifest.transition[0][0])
        else:
            state = state_after(told.run, step, told.place, told.started)
            items = self._items_to_do(records, step, task, manifest)
            said = word_of_foreach(state, items, distributed=self._order.distributed)
        self._leave(step, told.place, said)

    def _leave(self, step: str, place: str, said: Any) -> None:
        data = json.dumps(said, separators=(",", ":")).encode()
        self._store.put(word_name(self._order.flow, self._told.run, step, place), [data])

    def _items_to_do(self, records: Records, step: str, task: int, manifest: Manifest) -> list[int]:
        """The items of a foreach that are not finished already (in a run that is resumed)."""
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
        """Record the run, unless an attempt before this one has."""
        order, told = self._order, self._told
        if self._metadata.run(order.flow, told.run) is not None:
            return
        given = given_by(told.given, order.events, order.flows)
        definition = self._definition()
        options = RunOptions(
            tags=order.tags,
            origin_run=given.origin,
            run_id=told.run,
            branch=order.branch,
            production=order.production,
            max_num_splits=order.max_num_splits,
            namespace=order.namespace,
            script=order.script,
            trigger=given.runs,
        )
        creation = Creation(
            self._metadata, self._store, "power", NOBODY, self._clock, deployed_by=order.user
        )
        engine = {"machine": order.machine, "execution": told.execution}
        owner = Driving(f"{ENGINE}/{told.run}", 0, engine)
        try:
            new = creation.create(definition, options, given.parameters, owner)
        except VersionConflict:  # an attempt before this one, whose answer was lost
            return
        records = Records(self._metadata, new.record)
        records.commit(Batch(metadata=[new.facts]))
        if given.origin is not None:
            self._take_over(records, given)

    def _take_over(self, records: Records, given: Given) -> None:
        assert given.origin is not None, "there is a run to resume"
        origin = self._metadata.run(self._order.flow, given.origin)
        assert origin is not None, "the run was created from it"
        if _shape(Graph.from_dict(origin.graph)) != _shape(self._graph):
            raise InvalidInput(
                f"{origin.flow}/{origin.run} cannot be resumed: the steps of the flow are others "
                "now. Begin a new run."
            )
        records.take_over(origin, self._clock.now())

    def note_failure(self) -> int:
        """Record that the run has failed, and call the exit hooks."""
        if self._metadata.run(self._order.flow, self._told.run) is None:
            raise InvalidInput(
                f"The run {self._told.run} was never recorded: its start has failed."
            )
        records = Records.of(self._metadata, self._order.flow, self._told.run)
        if records.run.state in TERMINAL_RUN_STATES:
            self._leave(WORD_OF_FAILURE, ROOT, {"reason": records.run.reason})
            return 0
        now = self._clock.now()
        reason = self._reason(records)
        self._leave(WORD_OF_FAILURE, ROOT, {"reason": reason})
        stopped = "The task was cancelled: another one has failed."
        ended = [
            each._replace(state=AttemptState.CANCELLED, finished_at=now, reason=stopped)
            for each in records.unfinished()
        ]
        records.commit(Batch(attempts=ended, run=RunUpdate(RunState.FAILED, now, reason)))
        self._call_hooks(succeeded=False)
        return 0

    def _reason(self, records: Records) -> str:
        if self._is_over():
            return f"The run took longer than {self._told.limit} seconds (--workflow-timeout)."
        failed = records.metadata.newest_tasks(
            records.run.key, states=[TaskState.FAILED], limit=1, light=True
        )
        for view in failed:
            assert view.attempt is not None, "a task fails by an attempt"
            where = f"{self._order.flow}/{self._told.run}/{view.task.step}/{view.task.task}"
            return f"Task {where} failed: {view.attempt.reason}"
        return (
            f"Step Functions ended the run with {self._told.error}: the execution "
            f"{self._told.execution} of {self._order.machine} tells why."
        )

    def _call_hooks(self, *, succeeded: bool) -> None:
        run_hooks(
            self._definition(),
            f"{self._order.flow}/{self._told.run}",
            succeeded=succeeded,
            metadata_url=self._metadata.address,
            say=lambda text: print(text, file=sys.stderr),  # noqa: T201 -- the log of the job
        )


def _shape(graph: Graph) -> dict[str, tuple[Any, ...]]:
    """What of a graph the numbers of tasks depend on."""
    return {name: (node.kind, node.next) for name, node in graph.nodes.items()}


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: the threads of clients do not hold us up
