"""Random flows with random events: in any order of events, the invariants of the run hold."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from aflow.scheduler.messages import (
    AttemptEnded,
    AttemptStarted,
    Outcome,
    RunStarted,
    TimePassed,
    Transition,
)
from aflow.scheduler.states import AttemptState, RunState
from tests.machine.graphs import graphs, policies
from tests.machine.inspection import handles, snapshot
from tests.machine.world import World, expected_visits

OURS = [AttemptState.INTERRUPTED, AttemptState.CANCELLED]
THEIRS = [AttemptState.FAILED, AttemptState.TIMED_OUT, AttemptState.LOST]


class RandomRun(RuleBasedStateMachine):
    """One run of a random flow; the rules are the possible events."""

    world: World

    @initialize(
        data=st.data(),
        seed=st.integers(0, 1000),
        workers=st.integers(1, 5),
        lookahead=st.integers(0, 2),
        fail_fast=st.booleans(),
    )
    def create(
        self, data: st.DataObject, seed: int, workers: int, lookahead: int, fail_fast: bool
    ) -> None:
        flow = data.draw(graphs())
        self.world = World(
            flow,
            data.draw(policies(flow)),
            seed,
            max_workers=workers,
            lookahead=lookahead,
            fail_fast=fail_fast,
        )
        self.world.start()

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.world.live)))

    @precondition(lambda self: self.world.live)
    @rule(data=st.data(), handle=st.sampled_from(["", "job-1"]))
    def an_attempt_begins(self, data: st.DataObject, handle: str) -> None:
        self.world.begin(self.pick(data), handle)

    @precondition(lambda self: self.world.live)
    @rule(data=st.data(), times=st.integers(1, 10))
    def attempts_succeed(self, data: st.DataObject, times: int) -> None:
        for _ in range(times):
            if self.world.live:
                self.world.succeed_as_chosen(self.pick(data))

    @precondition(lambda self: self.world.live)
    @rule(data=st.data(), some=st.integers(1, 3))
    def items_come_before_the_end(self, data: st.DataObject, some: int) -> None:
        self.world.stream(self.pick(data), some)

    @precondition(lambda self: self.world.live)
    @rule(data=st.data(), state=st.sampled_from(OURS))
    def an_attempt_is_cut_short(self, data: st.DataObject, state: AttemptState) -> None:
        alive = [task for task in sorted(self.world.live) if task not in self.world.streamed]
        if alive:
            self.world.end_badly(data.draw(st.sampled_from(alive)), state, True)

    @precondition(lambda self: self.world.live)
    @rule(data=st.data(), state=st.sampled_from(THEIRS))
    def an_attempt_that_may_be_tried_again_ends_badly(
        self, data: st.DataObject, state: AttemptState
    ) -> None:
        alive = [task for task in sorted(self.world.live) if self.survives(task, state)]
        if alive:
            self.world.end_badly(data.draw(st.sampled_from(alive)), state, True)

    def survives(self, task: int, state: AttemptState) -> bool:
        if task in self.world.streamed:
            return False
        seen, launch = self.world.seen[task], self.world.live[task]
        return seen.losses < 2 if state is AttemptState.LOST else not launch.final

    @precondition(lambda self: self.world.live)
    @rule(
        data=st.data(),
        state=st.sampled_from(THEIRS),
        retryable=st.booleans(),
        rare=st.integers(0, 9),
    )
    def an_attempt_ends_badly(
        self, data: st.DataObject, state: AttemptState, retryable: bool, rare: int
    ) -> None:
        if rare == 9:
            self.world.end_badly(self.pick(data), state, retryable)

    @precondition(lambda self: self.world.live)
    @rule(data=st.data(), rare=st.integers(0, 29))
    def an_attempt_goes_nowhere_that_is(self, data: st.DataObject, rare: int) -> None:
        if rare == 29:
            task = self.pick(data)
            self.world.end_with(task, Transition(("nowhere",)))
            assert not self.world.settled[task].succeeded

    @precondition(lambda self: self.world.machine.wake_at is not None)
    @rule(early=st.booleans())
    def time_passes(self, early: bool) -> None:
        wake_at = self.world.machine.wake_at
        assert wake_at is not None
        self.world.now = max(self.world.now, wake_at - 0.5 if early else wake_at)
        self.world.tell(TimePassed())

    @rule(
        task=st.integers(0, 40),
        attempt=st.integers(-1, 5),
        state=st.sampled_from(list(AttemptState)),
    )
    def a_report_comes_that_nobody_waits_for(
        self, task: int, attempt: int, state: AttemptState
    ) -> None:
        live = self.world.live.get(task)
        if live is None or live.attempt != attempt:
            ended = AttemptEnded(task, attempt, Outcome(state, Transition(("end",))))
            assert [] == self.world.tell(ended)
            assert [] == self.world.tell(AttemptStarted(task, attempt, "late"))

    @rule()
    def the_run_is_started_again(self) -> None:
        assert [] == self.world.tell(RunStarted())

    @rule(rare=st.integers(0, 29))
    def somebody_cancels(self, rare: int) -> None:
        if rare == 29:
            self.world.cancel("Enough.")
            assert self.world.machine.stopping is not None

    @rule()
    def the_coordinator_restarts(self) -> None:
        replayed = self.world.replayed()
        assert self.world.machine.live() == replayed.live()
        assert handles(self.world.machine) == handles(replayed)
        assert snapshot(self.world.machine) == snapshot(replayed)
        self.world.machine = replayed

    @invariant()
    def bounds_are_kept(self) -> None:
        world = self.world
        assert len(world.live) <= world.machine._board.limit
        for step, policy in world.policies.items():
            live = sum(1 for launch in world.live.values() if launch.step == step)
            assert policy.max_workers is None or live <= policy.max_workers

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.run_out()
            self.world.check_the_end()
            assert snapshot(self.world.machine) == snapshot(self.world.replayed())


TestRandomRuns: Any = RandomRun.TestCase


@given(
    data=st.data(), seed=st.integers(0, 10_000), workers=st.integers(1, 8), backwards=st.booleans()
)
def test_a_run_without_failures_does_what_the_graph_says(
    data: st.DataObject, seed: int, workers: int, backwards: bool
) -> None:
    flow = data.draw(graphs())
    world = World(flow, {}, seed, max_workers=workers)
    world.start()

    while world.live:
        world.succeed_as_chosen(max(world.live) if backwards else min(world.live))

    assert world.finish is not None
    assert RunState.SUCCEEDED is world.finish.state
    assert expected_visits(flow, world.choices).total() == len(world.seen)
    world.check_the_end()


@given(data=st.data(), seed=st.integers(0, 10_000))
def test_a_replay_is_equal_after_every_event(data: st.DataObject, seed: int) -> None:
    flow = data.draw(graphs())
    world = World(flow, {}, seed, max_workers=2)
    world.start()
    twin = world.new_machine()
    fed = 0

    while world.live:
        world.succeed_as_chosen(min(world.live))
        for at, event in world.journal[fed:]:
            twin.handle(event, at)
        fed = len(world.journal)
        assert snapshot(world.machine) == snapshot(twin)
        assert world.machine.live() == twin.live()
