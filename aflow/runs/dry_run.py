"""Simulate a run: which tasks would run, and why.

The scheduler's machine is driven as in a real run. Tasks with reusable results end immediately; the
simulation stops at all others, because what follows them depends on their results.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow.runs.cache.explain import why
from aflow.runs.cache.history import History, TaskPosition, TaskPositions, item_value
from aflow.runs.cache.key import key_inputs_of
from aflow.scheduler.machine import RunMachine
from aflow.scheduler.messages import AttemptEnded, FromTask, LaunchAttempt, Outcome, RunStarted
from aflow.scheduler.retry import policies_from
from aflow.scheduler.states import AttemptState
from aflow.storage.artifacts import ArtifactReader, Manifest
from aflow.storage.items import ItemReader
from aflow.task.inputs import KnownManifests

if TYPE_CHECKING:
    from aflow._core.settings import RunOptions
    from aflow.flow.definition import FlowDefinition
    from aflow.metadata.base import MetadataStore
    from aflow.runs.cache.key import Value
    from aflow.runs.cache.reuse import ReusableResult
    from aflow.runs.create import RunInputs
    from aflow.scheduler.messages import Command
    from aflow.storage.blobs import BlobStore

AT_ONCE = 1 << 20  # simulated workers: no task has to wait for one
_REASONS = 10  # reasons per step that are listed


class Forecast(NamedTuple):
    """Whether one task would run, with the reason as text."""

    step: str
    position: tuple[int, ...]
    runs: bool
    text: str


def counted(forecasts: Iterable[Forecast]) -> dict[str, Any]:
    """Return a summary of the forecasts as plain values: for each step the number of tasks that
    would run (`run`) and that would not (`reuse`), and the most frequent reasons with the number of
    their tasks.

    Args:
        forecasts: The forecasts of the tasks; iterated once and not kept in memory.
    """
    steps: dict[str, dict[str, Any]] = {}
    reasons: dict[str, Counter[str]] = {}
    for each in forecasts:
        step = steps.setdefault(each.step, {"step": each.step, "run": 0, "reuse": 0})
        step["run" if each.runs else "reuse"] += 1
        reasons.setdefault(each.step, Counter())[each.text] += 1
    for name, step in steps.items():
        most = reasons[name].most_common(_REASONS)
        step["reasons"] = [{"text": text, "count": count} for text, count in most]
    found = [*steps.values()]
    return {
        "run": sum(each["run"] for each in found),
        "reuse": sum(each["reuse"] for each in found),
        "steps": found,
    }


class DryRun:
    """One simulated run of a flow."""

    def __init__(
        self,
        definition: FlowDefinition,
        plan: RunInputs,
        metadata: MetadataStore,
        blobs: BlobStore,
        options: RunOptions,
    ) -> None:
        self._definition = definition
        self._plan = plan
        self._origin_run = options.origin_run
        self._blobs = blobs
        self._reader = ArtifactReader(blobs)
        self._items = ItemReader(blobs, hold=True)
        self._settled = KnownManifests(Manifest.decode(plan.parameters))
        self._history = History(metadata, blobs, metadata.runs(definition.name))
        self._places = TaskPositions()
        self._machine = RunMachine(
            definition.graph,
            policies_from(definition),
            max_workers=AT_ONCE,
            max_num_splits=options.max_num_splits,
        )

    def forecasts(self) -> Iterator[Forecast]:
        """Yield a forecast for every task that is known in advance, in the order of their start."""
        commands = deque(self._machine.handle(RunStarted(), 0.0))
        while commands:
            command = commands.popleft()
            if not isinstance(command, LaunchAttempt):
                continue
            reusable = self._plan.reusable
            reused = None if reusable is None else reusable.find(command)
            yield self._forecast(command, reused)
            if reused is not None:
                commands += self._take_over(command, reused)

    def unforeseen(self, seen: Iterable[str]) -> list[str]:
        """Return the steps without a forecast: they come after steps that would run.

        Args:
            seen: The steps that have a forecast.
        """
        known = set(seen)
        return [step for step in self._definition.steps if step not in known]

    def _forecast(self, launch: LaunchAttempt, reused: ReusableResult | None) -> Forecast:
        place = self._places.of(launch.task, launch.step, launch.split, launch.index)
        if reused is None:
            return Forecast(
                place.step, place.position, True, f"would run: {self._why(launch, place)}"
            )
        run = f"{self._definition.name}/{reused.origin.split('/')[0]}"
        known = f"nothing has changed since {run}" if reused.cached else f"{run} has finished it"
        return Forecast(place.step, place.position, False, f"would not run: {known}")

    def _why(self, launch: LaunchAttempt, place: TaskPosition) -> str:
        reusable = self._plan.reusable
        key = None if reusable is None else reusable.cache_key(launch.task)
        flow = self._definition.name
        if key is None and self._origin_run is not None:
            return f"{flow}/{self._origin_run} has not finished it with these inputs"
        code, item = self._plan.code(), self._item(launch)
        now = key_inputs_of(launch.step, launch.inputs, item, code, self._settled, self._reader)
        return why(now, key, self._history.find(place), flow)

    def _take_over(self, launch: LaunchAttempt, reused: ReusableResult) -> list[Command]:
        manifest = Manifest.decode(reused.manifest)
        self._settled.add(launch.task, manifest, launch.step, launch.split, launch.index)
        if self._plan.reusable is not None:
            self._plan.reusable.settled(launch.task, reused.manifest)
        outcome = Outcome(AttemptState.SUCCEEDED, reused.transition)
        return self._machine.handle(AttemptEnded(launch.task, launch.attempt, outcome), 0.0)

    def _item(self, launch: LaunchAttempt) -> Value | None:
        if not launch.opens_index or launch.index is None or type(launch.inputs) is not FromTask:
            return None
        items = self._settled.of(launch.inputs.task).items
        return None if items is None else item_value(self._items, items, launch.index)
