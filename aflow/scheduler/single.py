"""The machine of a run that has one task: it is launched once, and the run ends as it does."""

from __future__ import annotations

from collections.abc import Mapping

from aflow.scheduler.messages import (
    AttemptEnded,
    CancelAttempt,
    CancelRequested,
    Command,
    Event,
    FinishRun,
    LaunchAttempt,
    RunStarted,
    TaskSettled,
)
from aflow.scheduler.states import AttemptState, RunState
from aflow.scheduler.tasks import StepCounts


class SingleTask:
    """Like RunMachine, for the one task that `launch` describes."""

    def __init__(self, launch: LaunchAttempt) -> None:
        self._launch = launch
        self._begun = False
        self._ended: RunState | None = None
        self._handled: Event | None = None
        self.stopping: FinishRun | None = None
        self.wake_at: float | None = None

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in what happened; what is to be done, in order. Never raises for what an event
        says."""
        self._handled = None
        if self._ended is not None:
            return []
        if type(event) is RunStarted and not self._begun:
            return self._start(event)
        if type(event) is CancelRequested and self.stopping is None:
            return self._cancel(event)
        if type(event) is AttemptEnded and event.task == self._launch.task:
            return self._end(event)
        return []

    def journaled(self, event: Event) -> bool:
        """Whether `event`, the one that was handled last, has changed the machine."""
        return self._handled is event

    def counts(self) -> Mapping[str, StepCounts]:
        """How many tasks of the step are in which state."""
        live = self._begun and self._ended is None
        done = self._ended is RunState.SUCCEEDED
        failed = self._ended is RunState.FAILED
        cancelled = self._ended is RunState.CANCELLED
        ready = not self._begun
        return {
            self._launch.step: StepCounts(ready, live, 0, 0, done, failed, cancelled),
        }

    def _start(self, event: Event) -> list[Command]:
        self._handled = event
        self._begun = True
        return [self._launch]

    def _cancel(self, event: CancelRequested) -> list[Command]:
        self._handled = event
        reason = event.reason or "The run was cancelled."
        self.stopping = FinishRun(RunState.CANCELLED, reason)
        if self._begun:
            return [CancelAttempt(self._launch.task, self._launch.attempt)]
        self._ended = RunState.CANCELLED
        return [self.stopping]

    def _end(self, event: AttemptEnded) -> list[Command]:
        self._handled = event
        outcome, task, step = event.outcome, self._launch.task, self._launch.step
        succeeded = outcome.state is AttemptState.SUCCEEDED
        settled = TaskSettled(task, event.attempt, succeeded, outcome.reason)
        if self.stopping is None and succeeded:
            self.stopping = FinishRun(RunState.SUCCEEDED)
        elif self.stopping is None:
            self.stopping = FinishRun(RunState.FAILED, outcome.reason, step, task)
        self._ended = self.stopping.state
        return [settled, self.stopping]
