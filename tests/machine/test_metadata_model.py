"""The file and memory metadata stores agree with a dictionary for any sequence of operations."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from aflow.errors import VersionConflict
from aflow.metadata.base import (
    AttemptRecord,
    Batch,
    MetadataRecord,
    MetadataStore,
    RunRecord,
    RunUpdate,
    TaskRecord,
    TaskView,
)
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.messages import NoInputs, encode_inputs
from aflow.scheduler.states import AttemptState, RunState

FLOWS = ["One", "Two"]
STEPS = ["start", "wide", "end"]
TAGS = ["a", "b", "%", "ü"]

texts = st.text(st.characters(codec="utf-8"), max_size=8)
times = st.floats(0, 2e9)
maybe_bytes = st.none() | st.binary(max_size=8)
steps = st.sets(st.sampled_from(STEPS)).map(sorted)
tags = st.sets(st.sampled_from(TAGS)).map(sorted)


@st.composite
def attempts(draw: st.DrawFn) -> AttemptRecord:
    """Generate an attempt of one of the first tasks, which may not exist."""
    return AttemptRecord(
        task=draw(st.integers(0, 12)),
        attempt=draw(st.integers(0, 3)),
        state=draw(st.sampled_from(AttemptState)),
        started_at=draw(st.none() | times),
        reason=draw(texts),
        manifest=draw(maybe_bytes),
        log=draw(maybe_bytes),
        stdout_size=draw(st.integers(0, 1 << 40)),
        pid=draw(st.none() | st.integers(1, 1 << 22)),
        cpu=draw(st.none() | times),
    )


facts = st.builds(MetadataRecord, st.integers(0, 4), st.integers(0, 2), texts, texts, texts, times)
updates = st.builds(
    RunUpdate, st.none() | st.sampled_from(RunState), st.none() | times, st.none() | texts
)


class ModelRun:
    """One run, in plain dictionaries."""

    def __init__(self, record: RunRecord, parameters: bytes) -> None:
        self.record = record
        at = record.created_at
        done = AttemptRecord(0, 0, AttemptState.SUCCEEDED, at, at, manifest=parameters)
        self.journal: list[bytes] = []
        self.tasks = {0: TaskRecord(0, "_parameters", at, inputs=encode_inputs(NoInputs()))}
        self.attempts: dict[int, dict[int, AttemptRecord]] = {0: {0: done}}
        self.facts: list[MetadataRecord] = []
        self.steps: dict[str, float] = {}

    def commit(self, batch: Batch) -> None:
        """Apply a batch."""
        if batch.events:
            self.journal.append(batch.events)
        for task in batch.tasks:
            self.tasks[task.task] = task
            self.steps.setdefault(task.step, task.created_at)
        for attempt in batch.attempts:
            self.attempts.setdefault(attempt.task, {})[attempt.attempt] = attempt
        self.facts += batch.metadata
        self.record = self.record._replace(version=self.record.version + 1)
        for name, value in (batch.run or RunUpdate())._asdict().items():
            if value is not None:
                self.record = self.record._replace(**{name: value})

    def latest(self, task: int) -> AttemptRecord | None:
        """Return a task's latest attempt."""
        there = self.attempts.get(task)
        return there[max(there)] if there else None

    def view(self, task: TaskRecord) -> TaskView:
        """Return a task with its latest attempt."""
        count = len(self.attempts.get(task.task, {}))
        return TaskView(self.record.key, task, self.latest(task.task), count)

    def views(self) -> list[TaskView]:
        """Return all tasks, in order."""
        return [self.view(self.tasks[task]) for task in sorted(self.tasks)]

    def manifests(self) -> dict[int, bytes]:
        """Return the manifests of the latest attempts that succeeded or are running."""
        return self._left_by(AttemptState.SUCCEEDED, AttemptState.RUNNING)

    def _left_by(self, *states: AttemptState) -> dict[int, bytes]:
        latest = [self.latest(task) for task in self.attempts]
        return {
            each.task: each.manifest
            for each in latest
            if each and each.state in states and each.manifest is not None
        }

    def split_manifests(self, split: int, steps: list[str]) -> list[tuple[int, int, str, bytes]]:
        """Return the inputs of a join, by index; of several tasks for one item the last one."""
        manifests = self._left_by(AttemptState.SUCCEEDED)
        return sorted(
            {
                task.index: (task.index, task.task, task.step, manifests[task.task])
                for _, task in sorted(self.tasks.items())
                if task.split == split and task.step in steps and task.task in manifests
                if task.index is not None
            }.values()
        )


class Metadata(RuleBasedStateMachine):
    """Applies the same operations to two stores and to the model, and compares them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "metadata.db"
        self.file = SqliteMetadata(self.path, durability="process")
        self.memory = SqliteMetadata(":memory:")
        self.runs: list[ModelRun] = []
        self.flows: dict[str, float] = {}

    def teardown(self) -> None:
        self.memory.close()
        self.file.close()
        self.folder.cleanup()

    def both(self, ask: Callable[[MetadataStore], Any]) -> Any:
        """Return the results of both stores, which must be equal."""
        in_file, in_memory = ask(self.file), ask(self.memory)
        assert in_memory == in_file
        return in_file

    def any_run(self, data: st.DataObject) -> ModelRun:
        return data.draw(st.sampled_from(self.runs), label="run")

    # ------------------------------------------------------------------ what is done

    @rule(
        flow=st.sampled_from(FLOWS),
        run=st.integers(1, 3).map(str),
        tags=tags,
        at=times,
        user=texts,
        parameters=st.binary(max_size=8),
    )
    def create(
        self, flow: str, run: str, tags: list[str], at: float, user: str, parameters: bytes
    ) -> None:
        record = RunRecord(
            0, flow, run, RunState.RUNNING, user, at, None, 0, tuple(tags), ("user:ann",), {}, {}
        )
        if any((each.record.flow, each.record.run) == (flow, run) for each in self.runs):
            for store in (self.file, self.memory):
                with pytest.raises(VersionConflict):
                    store.create_run(record, parameters)
            return
        made = self.both(lambda store: store.create_run(record, parameters))
        assert record._replace(key=made.key) == made
        self.flows.setdefault(flow, at)
        self.runs.append(ModelRun(made, parameters))

    @precondition(lambda self: self.runs)
    @rule(
        data=st.data(),
        events=st.binary(max_size=8),
        new=st.lists(st.tuples(st.sampled_from(STEPS), st.none() | st.integers(0, 3)), max_size=6),
        ends=st.lists(attempts(), max_size=6, unique_by=lambda each: each[:2]),
        facts=st.lists(facts, max_size=3),
        update=st.none() | updates,
        version=st.sampled_from([0, 0, 0, 0, -1, 1]),
    )
    def commit(
        self,
        data: st.DataObject,
        events: bytes,
        new: list[tuple[str, int | None]],
        ends: list[AttemptRecord],
        facts: list[MetadataRecord],
        update: RunUpdate | None,
        version: int,
    ) -> None:
        run = self.any_run(data)
        first = len(run.tasks)
        tasks = [
            TaskRecord(first + place, step, float(first), *self.place_in(split, place), b"inputs")
            for place, (step, split) in enumerate(new)
        ]
        batch = Batch(events, tasks, ends, facts, update)
        now = run.record.version
        if version:
            for store in (self.file, self.memory):
                with pytest.raises(VersionConflict):
                    store.commit(run.record.key, now + version, batch)
            return
        assert now + 1 == self.both(lambda store: store.commit(run.record.key, now, batch))
        run.commit(batch)

    @staticmethod
    def place_in(split: int | None, place: int) -> tuple[int | None, int | None]:
        """The foreach around a task and its index there: of each pair of tasks the same one."""
        return (None, None) if split is None else (split, place // 2)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), at=times)
    def beat(self, data: st.DataObject, at: float) -> None:
        run = self.any_run(data)
        goes_on = run.record.state is RunState.RUNNING
        assert goes_on == self.both(
            lambda store: store.acquire_lease(run.record.key, "me/1", 60.0, at).mine
        )
        if goes_on:
            run.record = run.record._replace(heartbeat_at=at)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), add=tags, remove=tags)
    def change_tags(self, data: st.DataObject, add: list[str], remove: list[str]) -> None:
        run = self.any_run(data)
        expected = tuple(sorted((set(run.record.tags) - set(remove)) | set(add)))
        assert expected == self.both(lambda store: store.change_tags(run.record.key, add, remove))
        run.record = run.record._replace(tags=expected)

    @rule()
    def open_again(self) -> None:
        self.file.close()
        self.file = SqliteMetadata(self.path, durability="process")

    # ------------------------------------------------------------------ what is asked

    @rule(
        flow=st.sampled_from(FLOWS),
        wanted=tags,
        states=st.sets(st.sampled_from(RunState), max_size=2).map(sorted),
        since=st.none() | times,
        limit=st.none() | st.integers(0, 2),
    )
    def runs_are_found(
        self,
        flow: str,
        wanted: list[str],
        states: list[RunState],
        since: float | None,
        limit: int | None,
    ) -> None:
        found = self.both(
            lambda store: [
                each._replace(lease=None)  # see agree_on
                for each in store.runs(flow, tags=wanted, states=states, since=since, limit=limit)
            ]
        )
        records = sorted(
            (each.record for each in self.runs), key=lambda each: (each.created_at, each.key)
        )
        expected = [
            each
            for each in reversed(records)
            if each.flow == flow
            and {*each.tags} >= {*wanted}
            and (not states or each.state in states)
            and (since is None or each.created_at >= since)
        ]
        assert expected[:limit] == found

    @precondition(lambda self: self.runs)
    @rule(
        data=st.data(),
        step=st.none() | st.sampled_from(STEPS),
        after=st.none() | st.integers(0, 8),
        limit=st.none() | st.integers(0, 4),
        light=st.booleans(),
    )
    def tasks_are_found(
        self,
        data: st.DataObject,
        step: str | None,
        after: int | None,
        limit: int | None,
        light: bool,
    ) -> None:
        run = self.any_run(data)
        found = self.both(
            lambda store: [
                *store.tasks(run.record.key, step=step, after=after, limit=limit, light=light)
            ]
        )
        expected = [
            each
            for each in run.views()
            if step in (None, each.task.step) and (after is None or each.task.task > after)
        ]
        assert [lightened(each) if light else each for each in expected[:limit]] == found

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), split=st.integers(0, 3), wanted=steps, start=st.integers(0, 2))
    def a_foreach_is_found(
        self, data: st.DataObject, split: int, wanted: list[str], start: int
    ) -> None:
        run = self.any_run(data)
        key = run.record.key
        page = [each for each in run.split_manifests(split, wanted) if each[0] >= start]
        assert page == self.both(lambda store: store.split_manifests(key, split, wanted, start))
        assert page[:1] == self.both(
            lambda store: store.split_manifests(key, split, wanted, start, 1)
        )
        inside = [
            each
            for each in run.views()
            if each.task.split == split and (not wanted or each.task.step in wanted)
        ]
        inside.sort(key=lambda each: (each.task.index, each.task.task))
        found = self.both(lambda store: [*store.tasks(key, split=split, steps=wanted)])
        assert inside == found

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), task=st.integers(0, 12), attempt=st.integers(0, 3))
    def a_task_is_found(self, data: st.DataObject, task: int, attempt: int) -> None:
        run = self.any_run(data)
        key = run.record.key
        there = run.attempts.get(task, {})
        assert [there[number] for number in sorted(there)] == self.both(
            lambda store: store.attempts(key, task)
        )
        facts = [each for each in run.facts if each.task == task]
        assert facts == self.both(lambda store: store.metadata(key, task))
        view = run.view(run.tasks[task]) if task in run.tasks else None
        assert view == self.both(lambda store: store.task(key, task))
        asked = view and view._replace(attempt=there.get(attempt))
        assert asked == self.both(lambda store: store.task(key, task, attempt))

    @invariant()
    def all_agree(self) -> None:
        expected = sorted(self.flows.items(), key=lambda each: (-each[1], each[0]))
        assert expected == self.both(lambda store: store.flows())
        for run in self.runs:
            self.agree_on(run)

    def agree_on(self, run: ModelRun) -> None:
        record, key = run.record, run.record.key

        def stored(store: Any) -> Any:
            # How long a lease lasts is by the store's own clock; tests/contracts look at leases.
            found = store.run(record.flow, record.run)
            return found._replace(lease=None)

        assert record == self.both(stored)
        assert run.journal == self.both(lambda store: [*store.journal(key)])
        assert run.manifests() == self.both(lambda store: store.manifests(key, range(13)))
        steps = [
            (step, at, sum(task.step == step for task in run.tasks.values()))
            for step, at in sorted(run.steps.items(), key=lambda each: (-each[1], each[0]))
        ]
        assert steps == self.both(lambda store: store.steps(key))


def lightened(view: TaskView) -> TaskView:
    """Return a task without manifests and logs."""
    attempt = view.attempt and view.attempt._replace(manifest=None, log=None)
    return view._replace(attempt=attempt)


TestMetadata = Metadata.TestCase
TestMetadata.settings = settings(max_examples=60, stateful_step_count=20)
