"""Taking over what an earlier run has finished, and running nothing: `resume --clone-only`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aflow.scheduler.messages import (
    AttemptEnded,
    CancelRequested,
    Command,
    Event,
    FinishRun,
    LaunchAttempt,
    Outcome,
)
from aflow.scheduler.states import AttemptState

if TYPE_CHECKING:
    from aflow.caching.precedents import Precedent, Precedents
    from aflow.scheduler.machine import RunMachine
    from aflow.scheduler.tasks import StepCounts

AT_ONCE = 1 << 20
"""Workers that the machine is to have: tasks that are left must not be in the way of others."""


class CloneOnly:
    """The machine of a run, and who knows results for it, in one: a task without a known result is
    not launched, and the run is cancelled with `reason` when there is nothing more to take over.
    """

    def __init__(self, machine: RunMachine, precedents: Precedents, reason: str) -> None:
        self._machine = machine
        self._precedents = precedents
        self._reason = reason
        self._found: dict[int, Precedent] = {}
        self._going_on: set[int] = set()  # tasks whose results are being taken over
        self._left: list[LaunchAttempt] = []
        self._handled: Event | None = None

    # ------------------------------------------------------------ the machine

    @property
    def stopping(self) -> FinishRun | None:
        """How the run will end, once it is known to stop."""
        return self._machine.stopping

    @property
    def wake_at(self) -> float | None:
        """None: nothing is tried again where nothing runs."""
        return None

    def handle(self, event: Event, now: float) -> list[Command]:
        """What the machine says, without the launches of tasks that would have to run."""
        commands = self._machine.handle(event, now)
        self._handled = event if self._machine.journaled(event) else None
        if type(event) is AttemptEnded:
            self._going_on.discard(event.task)
        kept = [each for each in commands if type(each) is not LaunchAttempt or self._knows(each)]
        return kept if self._going_on else kept + self._end(now)

    def _knows(self, launch: LaunchAttempt) -> bool:
        precedent = self._precedents.find(launch)
        if precedent is None:
            self._left.append(launch)
            return False
        self._found[launch.task] = precedent
        self._going_on.add(launch.task)
        return True

    def _end(self, now: float) -> list[Command]:
        """End the run, if what is left are tasks that would have to run."""
        left, self._left = self._left, []
        commands = self._machine.handle(CancelRequested(self._reason), now) if left else []
        outcome = Outcome(AttemptState.CANCELLED, None, self._reason)
        for each in left:
            commands += self._machine.handle(AttemptEnded(each.task, each.attempt, outcome), now)
        return commands

    def journaled(self, event: Event) -> bool:
        """Whether the event, the one that was handled last, has changed anything."""
        return self._handled is event

    def counts(self) -> Mapping[str, StepCounts]:
        """How far each step is."""
        return self._machine.counts()

    # ------------------------------------------------------------ who knows results

    def find(self, launch: LaunchAttempt) -> Precedent | None:
        """The result for a task that was let through; asked once."""
        return self._found.pop(launch.task)

    def cache_key(self, task: int) -> bytes | None:
        """What those say who know the results."""
        return self._precedents.cache_key(task)

    def settled(self, task: int, manifest: bytes) -> None:
        """Tell those who know the results."""
        self._precedents.settled(task, manifest)
