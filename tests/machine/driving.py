"""Drives a machine event by event, and checks the invariants after each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aflow.flow.graph import Graph
from aflow.scheduler.machine import RunMachine
from aflow.scheduler.messages import (
    AttemptEnded,
    AttemptStarted,
    CancelAttempt,
    CancelRequested,
    Command,
    Event,
    FinishRun,
    LaunchAttempt,
    Outcome,
    RunStarted,
    TaskSettled,
    TimePassed,
    Transition,
    decode_events,
    encode_events,
)
from aflow.scheduler.retry import StepPolicy
from aflow.scheduler.states import TERMINAL_RUN_STATES, AttemptState
from tests.machine.inspection import check_invariants, snapshot


class Run:
    """One run: its machine, the time, the stored events and the commands so far."""

    def __init__(
        self,
        graph: Graph,
        policies: Mapping[str, StepPolicy] | None = None,
        *,
        max_workers: int = 16,
        **options: Any,
    ) -> None:
        self.graph = graph
        self._made_of = (graph, policies or {}), {"max_workers": max_workers, **options}
        self.machine = self.new_machine()
        self.now = 1000.0
        self.journal: list[tuple[float, Event]] = []
        self.live: dict[int, LaunchAttempt] = {}
        self.launched: list[LaunchAttempt] = []
        self.settled: dict[int, TaskSettled] = {}
        self.finish: FinishRun | None = None

    def new_machine(self) -> RunMachine:
        positional, named = self._made_of
        return RunMachine(*positional, **named)

    # ------------------------------------------------------------------ events

    def tell(self, event: Event) -> list[Command]:
        """Let the machine handle an event, check the invariants, and return its commands."""
        before = snapshot(self.machine)
        commands = self.machine.handle(event, self.now)
        if self.machine.journaled(event):
            self.journal.append((self.now, event))
        else:
            assert [] == commands
            assert before == snapshot(self.machine)
        if isinstance(event, AttemptEnded) and self.machine.journaled(event):
            del self.live[event.task]
        for command in commands:
            self._execute(command)
        check_invariants(self.machine)
        assert sorted(self.live.values(), key=lambda each: each.task) == self.machine.live()
        return commands

    def _execute(self, command: Command) -> None:
        assert self.finish is None, f"{command} after the end"
        match command:
            case LaunchAttempt(task, _, attempt):
                assert task not in self.live
                assert task not in self.settled
                assert attempt == sum(1 for each in self.launched if each.task == task)
                assert task <= max((each.task for each in self.launched), default=0) + 1
                self.live[task] = command
                self.launched.append(command)
            case TaskSettled(task):
                assert task not in self.settled
                assert task not in self.live
                assert command.succeeded == (not command.reason)
                self.settled[task] = command
            case CancelAttempt(task, attempt):
                assert attempt == self.live[task].attempt
            case FinishRun():
                assert not self.live
                assert {each.task for each in self.launched} == set(self.settled)
                assert self.machine.state is command.state in TERMINAL_RUN_STATES
                self.finish = command

    def start(self) -> list[Command]:
        return self.tell(RunStarted())

    def begin(self, task: int, handle: str = "") -> list[Command]:
        return self.tell(AttemptStarted(task, self.live[task].attempt, handle))

    def end(
        self, task: int, state: AttemptState, reason: str = "", retryable: bool = True
    ) -> list[Command]:
        """End the live attempt of the task without success."""
        outcome = Outcome(state, None, reason, retryable)
        return self.tell(AttemptEnded(task, self.live[task].attempt, outcome))

    def fail(self, task: int, reason: str = "It broke.", retryable: bool = True) -> list[Command]:
        return self.end(task, AttemptState.FAILED, reason, retryable)

    def lose(self, task: int) -> list[Command]:
        return self.end(task, AttemptState.LOST, "The machine is gone.")

    def succeed(self, task: int, *steps: str, count: int | None = None) -> list[Command]:
        """End the live attempt successfully, with a transition to `steps`, by default those of the
        graph."""
        went = Transition(steps or self.graph[self.live[task].step].next, count=count)
        return self.end_with(task, went)

    def end_with(self, task: int, transition: Transition | None) -> list[Command]:
        outcome = Outcome(AttemptState.SUCCEEDED, transition)
        return self.tell(AttemptEnded(task, self.live[task].attempt, outcome))

    def cancel(self, reason: str = "") -> list[Command]:
        return self.tell(CancelRequested(reason))

    def wake(self) -> list[Command]:
        """Advance the time to the next wake-up of the machine."""
        assert self.machine.wake_at is not None
        self.now = self.machine.wake_at
        return self.tell(TimePassed())

    # ------------------------------------------------------------------ asking

    def replayed(self) -> RunMachine:
        """Return a new machine that has replayed the encoded journal."""
        machine = self.new_machine()
        for at, event in decode_events(encode_events(self.journal)):
            machine.handle(event, at)
            assert machine.journaled(event)
        return machine

    def steps(self) -> list[str]:
        """The steps of the live attempts, by task."""
        return [launch.step for launch in self.machine.live()]


def launches(commands: list[Command]) -> list[LaunchAttempt]:
    return [command for command in commands if isinstance(command, LaunchAttempt)]
