"""Restore the state of an orphaned run, so that another coordinator can continue it.

The state machine is restored by replaying the journal; the attempts that have not ended are looked
up in the metadata store. Committed tasks never run again, since only live attempts and tasks that
were never launched remain.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from aflow._core.records import NamedTuple, replace
from aflow._core.settings import RECORDED_OPTIONS
from aflow.errors import InvalidInput
from aflow.flow.graph import Graph
from aflow.metadata.base import SPIN, TaskView
from aflow.scheduler.messages import (
    AttemptEnded,
    CancelAttempt,
    Command,
    Event,
    ItemsReady,
    LaunchAttempt,
    decode_events,
)
from aflow.scheduler.states import TERMINAL_RUN_STATES, AttemptState, TaskState

if TYPE_CHECKING:
    from aflow._core.settings import RunOptions
    from aflow.flow.definition import FlowDefinition
    from aflow.metadata.base import AttemptRecord, MetadataStore, RunRecord
    from aflow.runs.cache.reuse import ReusableResult, ReusableResults
    from aflow.scheduler.machine import RunMachine


class Unfinished(NamedTuple):
    """A launched attempt that has not ended: its record if it has started, the result to reuse if
    the task should not run, and whether the attempt has been cancelled."""

    launch: LaunchAttempt
    record: AttemptRecord | None
    reused: ReusableResult | None
    cancelled: bool


def check_recoverable(run: RunRecord, definition: FlowDefinition) -> None:
    """Check that a run can be recovered.

    Args:
        run: The record of the run.
        definition: The flow: its class, steps, parameters and decorators.

    Raises:
        InvalidInput: If the run has ended, its steps differ from the flow's, or it is of a kind
            that cannot be recovered.
    """
    name = f"{run.flow}/{run.run}"
    if run.state in TERMINAL_RUN_STATES:
        raise InvalidInput(f"{name} has ended: it is {run.state.value}. Resume it instead.")
    if run.kind == SPIN or "lookahead" not in run.settings:
        raise InvalidInput(f"{name} is not a run that can be recovered: begin it again.")
    if run.settings.get("clone_only"):
        raise InvalidInput(
            f"{name} runs no tasks (--clone-only), so it cannot be recovered: resume its origin "
            "again."
        )
    if _shape(Graph.from_dict(run.graph)) != _shape(definition.graph):
        raise InvalidInput(
            f"{name} was begun with other steps than {definition.name} has now: recover it with "
            "the code that it was begun with, or resume it."
        )


def _shape(graph: Graph) -> object:
    """Return the parts of the graph that the scheduler depends on; without source locations."""
    nodes = sorted(graph.nodes.values(), key=lambda node: node.name)
    steps = [(node.name, node.kind, node.next, node.cases, node.splits) for node in nodes]
    return graph.start, graph.end, steps


def as_recorded(options: RunOptions, run: RunRecord) -> RunOptions:
    """Return the options, with those in RECORDED_OPTIONS taken from the run's record.

    Args:
        options: The options of the coordinator that recovers the run.
        run: The run, whose settings contain the options of its first coordinator.
    """
    recorded = {name: run.settings[name] for name in RECORDED_OPTIONS if name in run.settings}
    return replace(options, origin_run=run.origin_run, run_id=run.run, **recorded)


def replay(
    machine: RunMachine, metadata: MetadataStore, run: RunRecord, reusable: ReusableResults | None
) -> list[Unfinished]:
    """Replay the run's journal on a new machine, and the calls of `reusable` that it implies.
    Blocks. Raises MetadataError.

    Args:
        machine: The machine of the run in its initial state; modified.
        metadata: The metadata store that has the journal.
        run: The run, whose lease this coordinator has acquired.
        reusable: The source of reusable results; None if the run reuses none.

    Returns:
        The attempts that were launched and have not ended.
    """
    account = None if reusable is None else _Account(reusable, metadata, run)
    cancelled: set[tuple[int, int]] = set()
    journal = map(decode_events, metadata.journal(run.key))
    for at, event in chain.from_iterable(journal):
        commands = machine.handle(event, at)
        if account is not None:
            account.take_down(event, commands)
        cancelled.update((c.task, c.attempt) for c in commands if type(c) is CancelAttempt)
    out = machine.live()
    states = (TaskState.READY, TaskState.RUNNING)
    not_ended = metadata.newest_tasks(run.key, states=states) if out else ()
    views = {view.task.task: view for view in not_ended}
    return [_unfinished(each, views.get(each.task), account, cancelled) for each in out]


def _unfinished(
    launch: LaunchAttempt,
    view: TaskView | None,
    account: _Account | None,
    cancelled: set[tuple[int, int]],
) -> Unfinished:
    record = None if view is None else view.attempt
    if record is not None and record.attempt != launch.attempt:
        record = None
    reused = None
    if account is not None and view is not None and view.task.origin and record is None:
        reused = account.found.get(launch.task)
    return Unfinished(launch, record, reused, (launch.task, launch.attempt) in cancelled)


class _Account:
    """Repeats the calls that the run made to its source of reusable results, in the same order."""

    def __init__(self, reusable: ReusableResults, metadata: MetadataStore, run: RunRecord) -> None:
        self._reusable = reusable
        self._metadata = metadata
        self._run_key = run.key
        views = () if run.origin_run is None else metadata.tasks(run.key, light=True)
        self._ran = {view.task.task for view in views if not view.task.origin}
        self._is_complete = True
        self.found: dict[int, ReusableResult] = {}  # by task, for tasks that have not ended

    def take_down(self, event: Event, commands: list[Command]) -> None:
        """Repeat the calls for one event of the journal and the machine's commands for it."""
        if type(event) is AttemptEnded:
            self.found.pop(event.task, None)
        if type(event) is ItemsReady or (
            type(event) is AttemptEnded and event.outcome.state is AttemptState.SUCCEEDED
        ):
            manifest = self._metadata.manifests(self._run_key, [event.task]).get(event.task)
            if manifest is None:
                # The task has failed after it had announced items. The run is failing, and results
                # for tasks of these items can no longer be found.
                self._is_complete = False
            elif self._is_complete:
                self._reusable.settled(event.task, manifest)
        if not self._is_complete:
            return
        for command in commands:
            if type(command) is LaunchAttempt and command.attempt == 0:
                reused = self._reusable.find(command)
                if command.task in self._ran:  # it ran, even if a result would be found now
                    self._reusable.dismiss(command)
                elif reused is not None:
                    self.found[command.task] = reused
