"""The inputs of a task: manifests that are missing, or are older than the item of the task."""

from __future__ import annotations

from typing import Any

import pytest

from aflow import FlowSpec, catch, step
from aflow._core.clock import SystemClock
from aflow._core.records import replace
from aflow.errors import ArtifactNotFound, StorageError
from aflow.flow.spec import define
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.messages import FromForeach, FromTask, NoInputs, encode_inputs
from aflow.storage.artifacts import ArtifactReader, Manifest
from aflow.storage.blobs import BlobStore
from aflow.storage.items import ItemReader
from aflow.storage.memory import MemoryStore
from aflow.task.config_binding import configured
from aflow.task.inputs import PAGE, InputTask, JoinInputs, KnownManifests, TaskArtifacts
from aflow.task.outputs import StepContext
from aflow.task.remote import Payloads, RemoteRunner, StoredManifests, pack_manifests
from aflow.task.runner import AttemptRunner
from aflow.task.spec import NO_RUN, AttemptSpec


class Caught(FlowSpec):
    @step
    def start(self) -> None:
        self.next(self.work)

    @catch(var="problem")
    @step
    def work(self) -> None:
        self.next(self.end)

    @step
    def end(self) -> None:
        pass


def spec_of(step: str, **fields: Any) -> AttemptSpec:
    spec = AttemptSpec(
        step=step,
        task=3,
        attempt=0,
        inputs=encode_inputs(FromTask(2)),
        split=None,
        split_index=None,
        splits=None,
        opens_index=False,
        final=True,
        fallback=False,
        manifests={0: Manifest().encode()},
    )
    return spec._replace(**fields)


@pytest.mark.parametrize("fallback", [False, True])
def test_a_step_with_catch_whose_inputs_are_missing_fails_for_that_reason(fallback: bool) -> None:
    metadata = SqliteMetadata(":memory:")
    runner = AttemptRunner(NO_RUN, BlobStore(MemoryStore()), lambda: metadata, SystemClock())
    runner.definition = configured(Caught)

    report = runner.run(spec_of("work", fallback=fallback))

    assert "failed" == report.state
    assert "Task 2 has no manifest" in report.reason


def test_workers_read_a_grown_foreach_from_the_payload_that_has_the_item() -> None:
    payloads = Payloads(MemoryStore(), "Flow", "1")
    manifests = StoredManifests(payloads)
    keys = [
        payloads.put(pack_manifests({1: Manifest(items=[count, b"items"]).encode()}))
        for count in (1, 2, 3)
    ]
    manifests.expect(spec_of("work", more=keys[0]))
    assert 1 == manifests.with_item(1, 0).items[0]

    manifests.expect(spec_of("work", task=5, more=keys[2]))
    manifests.expect(spec_of("work", task=4, more=keys[1]))  # delivered again

    assert 3 == manifests.with_item(1, 2).items[0]
    assert 3 == manifests.with_item(1, 1).items[0]


def test_a_process_of_a_worker_finds_what_came_with_an_attempt_however_many_it_has_run() -> None:
    runner = RemoteRunner(NO_RUN, BlobStore(MemoryStore()), SystemClock())

    class Reads(Caught):
        @step
        def work(self) -> None:
            runner.manifests.of(0)  # sent with each attempt; the process has it since the first
            self.next(self.end)

    runner.definition = configured(Reads)
    for parent in range(1, 1100):
        along = {0: Manifest().encode(), parent: Manifest(step="start").encode()}
        inputs = encode_inputs(FromTask(parent))
        report = runner.run(spec_of("work", task=2000 + parent, inputs=inputs, manifests=along))
        assert ("succeeded", "") == (report.state, report.reason)

    with pytest.raises(StorageError, match="task 4000 did not come"):
        runner.manifests.of(4000)


def test_the_join_of_an_empty_foreach_on_a_worker_has_no_inputs() -> None:
    manifests = StoredManifests(Payloads(MemoryStore(), "Flow", "1"))
    inputs = FromForeach(2, ("work",), 0)
    manifests.expect(spec_of("join", inputs=encode_inputs(inputs)))

    assert [] == manifests.page(inputs, 0)


def test_an_attribute_of_the_inputs_is_the_last_input_from_that_step_on_any_page() -> None:
    known, reader = KnownManifests(Manifest()), ArtifactReader(BlobStore(MemoryStore()))

    def page(start: int) -> list[InputTask]:
        steps = ["rare" if each == PAGE else "work" for each in range(start, start + PAGE)]
        tasks = (TaskArtifacts(start + each, Manifest(), known, reader) for each in range(PAGE))
        return [InputTask(*each, lambda frame: None) for each in zip(steps, tasks, strict=True)]

    inputs = JoinInputs(2 * PAGE, page)

    assert (f"<input rare/{PAGE}>", f"<input work/{2 * PAGE - 1}>") == (
        repr(inputs.rare),
        repr(inputs.work),
    )
    with pytest.raises(ArtifactNotFound, match="no input from a step 'none'"):
        inputs.none  # noqa: B018


def test_an_attempt_with_a_damaged_manifest_fails_and_its_process_goes_on() -> None:
    metadata = SqliteMetadata(":memory:")
    runner = AttemptRunner(NO_RUN, BlobStore(MemoryStore()), lambda: metadata, SystemClock())
    runner.definition = configured(Caught)

    report = runner.run(spec_of("work", manifests={0: b"\xc1"}))

    assert ("failed", 3) == (report.state, report.task)


def test_names_that_a_step_may_not_set_are_those_of_its_own_flow() -> None:
    blobs = BlobStore(MemoryStore())
    for number in range(50):  # a definition may have the address of an earlier one
        definition = replace(define(Caught), constants={f"n{number}": 1})
        known = KnownManifests(Manifest())
        reader, items = ArtifactReader(blobs), ItemReader(blobs)
        context = StepContext(definition, spec_of("start"), NoInputs(), known, blobs, reader, items)
        assert {f"n{number}"} == context.read_only
