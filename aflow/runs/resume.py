"""Resume a run: a new run reuses the results of finished tasks of another run, its origin.

A task reuses the result of the corresponding task in the origin: same step, same inputs, same item
of the same foreach. So a task whose inputs were computed again is never reused, and if the graph
has changed, only the changed part and what follows it runs. A gang runs or is reused as a whole.
Blobs are shared by key; only manifests are written again, with the task numbers of the new run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING

from aflow._core.ids import PARAMETERS_STEP, PARAMETERS_TASK
from aflow.errors import InvalidInput
from aflow.flow.graph import Graph
from aflow.runs.cache.reuse import ReusableResult, ReusedGangs, blobs_in, fits
from aflow.scheduler.messages import (
    AttemptEnded,
    CancelRequested,
    Command,
    Event,
    FinishRun,
    FromBranches,
    FromForeach,
    FromTask,
    Inputs,
    LaunchAttempt,
    Outcome,
    Transition,
    encode_inputs,
)
from aflow.scheduler.states import AttemptState, TaskState
from aflow.storage.artifacts import Manifest

if TYPE_CHECKING:
    from aflow.metadata.base import RunRecord, TaskView
    from aflow.runs.cache.reuse import ReusableResults
    from aflow.scheduler.machine import RunMachine
    from aflow.scheduler.tasks import StepCounts
    from aflow.storage.blobs import BlobStore

CLAIMS = 16  # blobs of the origin that are claimed at the same time

Place = tuple[str, bytes, int | None]
"""The unique place of a task: step, inputs (by numbers of the origin's tasks) and index."""


class Finished:
    """The finished tasks of the origin, with their manifests. Excludes the tasks of the step
    `rerun`, so that they run again."""

    def __init__(self, views: Iterable[TaskView], rerun: str | None = None) -> None:
        self.tasks: dict[Place, tuple[int, bytes]] = {}
        self.parameters = b""
        for view in views:
            manifest = view.attempt.manifest if view.attempt is not None else None
            if view.state is not TaskState.SUCCEEDED or manifest is None:
                continue
            if view.task.step == PARAMETERS_STEP:
                self.parameters = manifest
            elif view.task.step != rerun:
                place = (view.task.step, view.task.inputs, view.task.index)
                self.tasks[place] = (view.task.task, manifest)

    def leave_out(self, tasks: Collection[int]) -> None:
        """Remove these tasks, so that they run again.

        Args:
            tasks: The numbers of the tasks.
        """
        self.tasks = {place: found for place, found in self.tasks.items() if found[0] not in tasks}


class ResumedRun:
    """The source of reusable results of a run that resumes `origin`."""

    def __init__(self, origin: str, finished: Finished, graph: Graph) -> None:
        self._origin = origin
        self._finished = finished.tasks
        self._graph = graph
        self._origin_of = {int(PARAMETERS_TASK): int(PARAMETERS_TASK)}
        self._number_in: dict[int, int] = {int(PARAMETERS_TASK): int(PARAMETERS_TASK)}
        self._renewed: set[int] = set()  # splits with at least one task that was not reused
        self._gangs = ReusedGangs(graph)

    def find(self, launch: LaunchAttempt) -> ReusableResult | None:
        """Return the result of the corresponding task of the origin; None if there is none."""
        inputs = self._in_origin(launch.inputs)
        found = None
        if inputs is not None:
            encoded = encode_inputs(inputs)

            def is_reusable(member: LaunchAttempt) -> bool:
                there = self._finished.get((member.step, encoded, member.index))
                return there is not None and self._fits(member.step, Manifest.decode(there[1]))

            if self._gangs.is_whole(launch, is_reusable):
                found = self._finished.get((launch.step, encoded, launch.index))
        reused = None if found is None else self._take_over(launch, *found)
        if reused is None:
            self.dismiss(launch)
        return reused

    def _fits(self, step: str, manifest: Manifest) -> bool:
        return fits(self._graph, step, Transition(*manifest.transition))

    def dismiss(self, launch: LaunchAttempt) -> None:
        """Note that the task runs, so that no task that reads its results is reused either."""
        self._origin_of.pop(launch.task, None)
        if launch.split is not None:
            self._renewed.add(launch.split)

    def _take_over(self, launch: LaunchAttempt, task: int, data: bytes) -> ReusableResult | None:
        manifest = Manifest.decode(data)
        if not self._fits(launch.step, manifest):
            return None
        self._origin_of[launch.task] = task
        self._number_in[task] = launch.task
        number_in = self._number_in
        manifest.inherited = {number_in[each]: names for each, names in manifest.inherited.items()}
        manifest.stack = tuple(
            each._replace(split=number_in[each.split]) for each in manifest.stack
        )
        origin = f"{self._origin}/{launch.step}/{task}"
        return ReusableResult(origin, manifest.encode(), Transition(*manifest.transition))

    def _in_origin(self, inputs: Inputs) -> Inputs | None:
        """Return the inputs with the origin's task numbers; None if one was computed again."""
        origin_of = self._origin_of
        if type(inputs) is FromTask:
            task = origin_of.get(inputs.task)
            return None if task is None else FromTask(task)
        if type(inputs) is FromBranches:
            tasks = tuple(origin_of[task] for task in inputs.tasks if task in origin_of)
            return FromBranches(tasks) if len(tasks) == len(inputs.tasks) else None
        if type(inputs) is FromForeach:
            split = origin_of.get(inputs.split)
            if split is None or inputs.split in self._renewed:
                return None
            return FromForeach(split, inputs.steps, inputs.count)
        return inputs

    def cache_key(self, task: int) -> bytes | None:
        """Return None: a resumed run does not use cache keys."""
        return None

    def settled(self, task: int, manifest: bytes) -> None:
        """Do nothing: results of tasks that ran do not affect what can be reused."""


# ------------------------------------------------------------ before the run starts


def check_blobs(
    finished: Finished, blobs: BlobStore, origin: RunRecord, *, leave_out: bool
) -> None:
    """Check that the blobs of all finished tasks are still in the datastore.

    Args:
        finished: The finished tasks of the origin; modified if `leave_out`.
        blobs: The blobs of the datastore, addressed by content.
        origin: The record of the origin.
        leave_out: Whether to remove tasks with a missing blob, so that they run again, instead of
            raising an error.

    Raises:
        InvalidInput: If a blob is missing and `leave_out` is False.
    """
    left = [
        (key, name, step, task)
        for (step, _, _), (task, data) in finished.tasks.items()
        for name, key in blobs_in(Manifest.decode(data))
    ]
    there = _claimed(blobs, {key for key, *_ in left})
    missing = [each for each in left if each[0] not in there]
    if missing and not leave_out:
        key, name, step, task = missing[0]
        raise InvalidInput(
            f"{origin.flow}/{origin.run} cannot be resumed as it is: blob {key} of {name}, which "
            f"task {step}/{task} left, is no longer in the store. Give --rerun-missing to run such "
            "tasks again."
        )
    finished.leave_out({task for *_, task in missing})


def _claimed(blobs: BlobStore, keys: Collection[str]) -> set[str]:
    """Return the keys of the blobs that exist, after claiming them, CLAIMS at a time: in an object
    store each takes two requests."""
    several = [*keys]
    shares = [several[start::CLAIMS] for start in range(min(CLAIMS, len(several)))]
    with ThreadPoolExecutor(CLAIMS, "aflow-claims") as pool:
        found = pool.map(lambda share: [key for key in share if blobs.claim(key)], shares)
        return set(chain.from_iterable(found))


# Reusing results without running any task: `resume --clone-only`.


AT_ONCE = 1 << 20
"""The `max_workers` of `--clone-only`: tasks without a result must not delay the others."""


class CloneOnly:
    """Both the machine of a run and its source of reusable results, for `resume --clone-only`.

    A task without a reusable result is not launched. The run is cancelled with `reason` when there
    is nothing more to reuse and such tasks remain.
    """

    def __init__(self, machine: RunMachine, reusable: ReusableResults, reason: str) -> None:
        self._machine = machine
        self._reusable = reusable
        self._reason = reason
        self._found: dict[int, ReusableResult] = {}
        self._going_on: set[int] = set()  # tasks whose results are being reused
        self._left: list[LaunchAttempt] = []
        self._handled: Event | None = None

    # ------------------------------------------------------------ the machine

    @property
    def stopping(self) -> FinishRun | None:
        """How the run will end, if it is stopping; else None."""
        return self._machine.stopping

    @property
    def wake_at(self) -> float | None:
        """Always None: no task runs, so none is retried."""
        return None

    def handle(self, event: Event, now: float) -> list[Command]:
        """Return the machine's commands, without launches of tasks that have no reusable result."""
        commands = self._machine.handle(event, now)
        self._handled = event if self._machine.journaled(event) else None
        if type(event) is AttemptEnded:
            self._going_on.discard(event.task)
        kept = [each for each in commands if type(each) is not LaunchAttempt or self._knows(each)]
        return kept if self._going_on else kept + self._end(now)

    def _knows(self, launch: LaunchAttempt) -> bool:
        reused = self._reusable.find(launch)
        if reused is None:
            self._left.append(launch)
            return False
        self._found[launch.task] = reused
        self._going_on.add(launch.task)
        return True

    def _end(self, now: float) -> list[Command]:
        """Cancel the run if it has tasks left that would have to run."""
        left, self._left = self._left, []
        commands = self._machine.handle(CancelRequested(self._reason), now) if left else []
        outcome = Outcome(AttemptState.CANCELLED, None, self._reason)
        for each in left:
            commands += self._machine.handle(AttemptEnded(each.task, each.attempt, outcome), now)
        return commands

    def journaled(self, event: Event) -> bool:
        """Return whether the event, which must be the last one handled, must be journaled."""
        return self._handled is event

    def counts(self) -> Mapping[str, StepCounts]:
        """Return the progress of each step."""
        return self._machine.counts()

    def ready_at(self, task: int) -> float | None:
        """Return when all inputs of a live task were available; None if unknown."""
        return self._machine.ready_at(task)

    # ------------------------------------------------------------ reusable results

    def find(self, launch: LaunchAttempt) -> ReusableResult | None:
        """Return the result for a task that `handle` has launched. Can be called once per task."""
        return self._found.pop(launch.task)

    def dismiss(self, launch: LaunchAttempt) -> None:
        """Pass the call on to the source of reusable results."""
        self._reusable.dismiss(launch)

    def cache_key(self, task: int) -> bytes | None:
        """Return the cache key from the source of reusable results."""
        return self._reusable.cache_key(task)

    def settled(self, task: int, manifest: bytes) -> None:
        """Pass the call on to the source of the reusable results."""
        self._reusable.settled(task, manifest)
