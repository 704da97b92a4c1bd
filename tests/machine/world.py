"""A simulated environment of a machine, and an independent model of its correct behaviour.

The behaviour of steps (how many items, which case) is a function of the task's position. So the
expected run can be computed in advance by walking the graph, without a scheduler:
`expected_visits`. During the run, the world tracks every task by its inputs only, and checks the
inputs with which it is launched.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aflow.flow.graph import Graph, Kind
from aflow.scheduler.messages import (
    AttemptEnded,
    Command,
    FromBranches,
    FromForeach,
    FromTask,
    ItemsReady,
    LaunchAttempt,
    NoInputs,
    Outcome,
    RetryAttempt,
    Transition,
)
from aflow.scheduler.retry import StepPolicy
from aflow.scheduler.states import AttemptState, RunState
from tests.machine.driving import Run
from tests.machine.graphs import FAN_OUT, OPENERS

Stack = tuple[tuple[str, int], ...]
"""The open splits around a task, outermost first: the step that opened it, the index in it."""

Visit = tuple[str, Stack, int]
"""A task, by what it is: its step, its stack, and how often its step went back to itself before."""


@dataclass(frozen=True)
class Choices:
    """The behaviour of the steps of a run, determined by a seed."""

    graph: Graph
    seed: int
    widest: int = 3
    largest_gang: int = 3
    bounds: Mapping[str, int | None] = field(default_factory=dict)

    def transition(self, visit: Visit) -> Transition:
        step, _, iteration = visit
        node = self.graph[step]
        dice = zlib.crc32(repr((self.seed, visit)).encode())
        if node.kind is Kind.SWITCH:
            cases = node.next if iteration < 3 else [case for case in node.next if case != step]
            return Transition((cases[dice % len(cases)],))
        if node.kind in FAN_OUT:
            widest = self.widest
            if node.kind is Kind.PARALLEL:
                widest = min(self.largest_gang, self.bounds.get(node.next[0]) or self.largest_gang)
            return Transition(node.next, node.foreach, dice % (widest + 1))
        return Transition(node.next)


def expected_visits(graph: Graph, choices: Choices) -> Counter[Visit]:
    """Return all tasks of a successful run."""
    visits: Counter[Visit] = Counter()

    def walk(step: str, stack: Stack, until: str | None) -> None:
        iteration = 0
        while step != until:
            visit = (step, stack, iteration)
            visits[visit] += 1
            went = choices.transition(visit)
            node = graph[step]
            if node.kind in OPENERS:
                count = went.count if node.kind in FAN_OUT else len(node.next)
                for index in range(count or 0):
                    body = node.next[0 if node.kind in FAN_OUT else index]
                    walk(body, (*stack, (step, index)), node.join)
                after = node.join
            else:
                after = went.steps[0] if went.steps else until
            iteration = iteration + 1 if after == step else 0
            if after is None:
                return
            step = after

    walk(graph.start, (), None)
    return visits


@dataclass
class Seen:
    """A task as the world knows it. `openers` are the tasks that opened the splits of `stack`."""

    visit: Visit
    openers: tuple[int, ...]
    failures: int = 0
    losses: int = 0
    fallbacks: int = 0
    ready_at: float = 0.0


class World(Run):
    """A run in which every launch is checked against the events that caused it."""

    def __init__(
        self, graph: Graph, policies: Mapping[str, StepPolicy], seed: int, **options: Any
    ) -> None:
        super().__init__(graph, policies, **options)
        # A gang that is larger than the limit of running tasks is rejected.
        self.choices = Choices(
            graph,
            seed,
            largest_gang=min(3, options.get("max_workers", 16)),
            bounds={name: policy.max_workers for name, policy in policies.items()},
        )
        self.policies = policies
        self.seen: dict[int, Seen] = {}
        self.went: dict[int, Transition] = {}
        self.arrived: dict[int, dict[int, int]] = defaultdict(dict)  # by opener: index -> task
        self.joined: set[int] = set()
        self.retries: dict[int, float] = {}
        self.streamed: dict[int, int] = {}  # by opener: items that came before its end

    def _execute(self, command: Command) -> None:
        super()._execute(command)
        if isinstance(command, LaunchAttempt):
            self._check_launch(command)
        elif isinstance(command, RetryAttempt):
            self.retries[command.task] = command.at

    # ------------------------------------------------------------------ launches

    def _check_launch(self, launch: LaunchAttempt) -> None:
        if launch.attempt == 0:
            assert launch.task == len(self.seen) + 1
            self.seen[launch.task] = self._first_sight(launch)
        seen = self.seen[launch.task]
        policy = self._policy(launch.step)
        assert self.now >= seen.ready_at
        assert launch.fallback is (seen.fallbacks > 0)
        if launch.fallback:
            assert launch.final is (seen.fallbacks == 3)
        else:
            assert launch.final is (seen.failures == policy.retries)
        assert self._place(seen) == (launch.split, launch.index, launch.count)
        source = launch.inputs.task if isinstance(launch.inputs, FromTask) else None
        opened = source is not None and self._kind(source) in FAN_OUT
        assert launch.opens_index is opened

    def _first_sight(self, launch: LaunchAttempt) -> Seen:
        match launch.inputs:
            case NoInputs():
                assert launch.step == self.graph.start
                return Seen((launch.step, (), 0), ())
            case FromTask(source):
                return self._follower(launch, source)
            case FromBranches(tasks):
                return self._join_of_branches(launch, tasks)
            case FromForeach():
                return self._join_of_items(launch, launch.inputs)

    def _follower(self, launch: LaunchAttempt, source: int) -> Seen:
        assert launch.step in self.went[source].steps
        before = self.seen[source]
        step, stack, iteration = before.visit
        kind = self._kind(source)
        if kind in OPENERS:
            if kind is Kind.SPLIT:
                index = self.graph[step].next.index(launch.step)
            else:
                assert launch.index is not None
                index = launch.index
            visit = (launch.step, (*stack, (step, index)), 0)
            return Seen(visit, (*before.openers, source))
        again = iteration + 1 if step == launch.step else 0
        return Seen((launch.step, stack, again), before.openers)

    def _join_of_branches(self, launch: LaunchAttempt, tasks: tuple[int, ...]) -> Seen:
        opener = self.seen[tasks[0]].openers[-1]
        assert self._kind(opener) is Kind.SPLIT
        assert tasks == tuple(self.arrived[opener][index] for index in range(len(tasks)))
        assert len(tasks) == len(self.went[opener].steps)
        return self._joined(launch, opener)

    def _join_of_items(self, launch: LaunchAttempt, inputs: FromForeach) -> Seen:
        arrived = self.arrived[inputs.split]
        assert inputs.count == self.went[inputs.split].count
        assert set(arrived) == set(range(inputs.count))
        assert set(inputs.steps) == set(self.graph[launch.step].previous)
        # Readers find an item's last task as the highest number among these steps.
        found: dict[int, int] = {}
        for task, seen in self.seen.items():
            split, index, _ = self._place(seen)
            if split == inputs.split and index is not None and seen.visit[0] in inputs.steps:
                found[index] = max(task, found.get(index, 0))
        assert found == arrived
        return self._joined(launch, inputs.split)

    def _joined(self, launch: LaunchAttempt, opener: int) -> Seen:
        assert opener not in self.joined, "a join is launched once"
        self.joined.add(opener)
        before = self.seen[opener]
        assert launch.step == self.graph[before.visit[0]].join
        return Seen((launch.step, before.visit[1], 0), before.openers)

    def _place(self, seen: Seen) -> tuple[int | None, int | None, int | None]:
        """Return the innermost foreach around a task: its opener, the index, the width."""
        _, stack, _ = seen.visit
        for (step, index), opener in reversed(list(zip(stack, seen.openers, strict=True))):
            if self.graph[step].kind in FAN_OUT:
                # The number is unknown while the opener still produces items.
                return opener, index, None if opener in self.live else self.went[opener].count
        return None, None, None

    def _kind(self, task: int) -> Kind:
        return self.graph[self.seen[task].visit[0]].kind

    def _policy(self, step: str) -> StepPolicy:
        return self.policies.get(step, StepPolicy())

    # ------------------------------------------------------------------ ends of attempts

    def succeed_as_chosen(self, task: int) -> None:
        """End the live attempt of the task successfully, with the chosen transition."""
        seen = self.seen[task]
        went = self.choices.transition(seen.visit)
        self.went[task] = went
        stack = seen.visit[1]
        if stack and went.steps == (self.graph[stack[-1][0]].join,):
            self.arrived[seen.openers[-1]][stack[-1][1]] = task
        self.end_with(task, went)
        assert self.settled[task].succeeded

    def stream(self, task: int, some: int) -> None:
        """If the live attempt opens a foreach, report some more items."""
        seen, launch = self.seen[task], self.live[task]
        went = self.choices.transition(seen.visit)
        if self._kind(task) is not Kind.FOREACH:
            assert [] == self.tell(ItemsReady(task, launch.attempt, some))
            return
        count = min(went.count or 0, self.streamed.get(task, 0) + some)
        policy = self._policy(launch.step)
        if policy.retries or policy.catches or self.machine.stopping is not None:
            assert [] == self.tell(ItemsReady(task, launch.attempt, count))
            return
        self.went[task] = went
        event = ItemsReady(task, launch.attempt, count)
        self.tell(event)
        assert self.machine.journaled(event) is (count > self.streamed.get(task, 0))
        if count:
            self.streamed[task] = count

    def end_badly(self, task: int, state: AttemptState, retryable: bool) -> None:
        """End the live attempt without success, and check the machine's reaction."""
        launch = self.live[task]
        stopping = self.machine.stopping is not None
        over = stopping or task in self.streamed
        wait = None if over else self._expected_wait(launch, state, retryable)
        self.retries.pop(task, None)
        if wait is not None:
            self.seen[task].ready_at = self.now + wait
        outcome = Outcome(state, None, "It ended.", retryable)
        self.tell(AttemptEnded(task, launch.attempt, outcome))
        if wait is None:
            assert not self.settled[task].succeeded
            assert self.machine.stopping is not None
        else:
            assert self.retries[task] == self.now + wait
            assert task not in self.settled

    def _expected_wait(
        self, launch: LaunchAttempt, state: AttemptState, retryable: bool
    ) -> float | None:
        seen, policy = self.seen[launch.task], self._policy(launch.step)
        if state in (AttemptState.INTERRUPTED, AttemptState.CANCELLED):
            return 0.0
        if not launch.fallback and retryable:
            if state is AttemptState.LOST:
                seen.losses += 1
                if seen.losses < 3:
                    return 0.0
            elif seen.failures < policy.retries:
                seen.failures += 1
                return policy.wait
        if policy.catches and seen.fallbacks < 3:
            seen.fallbacks += 1
            return 0.0
        return None

    # ------------------------------------------------------------------ the whole run

    def run_out(self) -> None:
        """End everything that is live successfully, until the run is over."""
        while self.finish is None:
            if self.live:
                self.succeed_as_chosen(next(iter(self.live)))
            else:
                self.wake()

    def check_the_end(self) -> None:
        """Check the finished run: if it succeeded, it executed exactly the expected tasks."""
        assert self.finish is not None
        visits = Counter(seen.visit for seen in self.seen.values())
        expected = expected_visits(self.graph, self.choices)
        if self.finish.state is RunState.SUCCEEDED:
            assert expected == visits
        else:
            assert not visits - expected
