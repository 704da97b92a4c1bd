"""The inputs of a task: manifests that are missing, or are older than the item of the task."""

from __future__ import annotations

from typing import Any

import pytest

from aflow import FlowSpec, catch, step
from aflow._core.clock import SystemClock
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.messages import FromTask, encode_inputs
from aflow.storage.artifacts import Manifest
from aflow.storage.blobs import BlobStore
from aflow.storage.memory import MemoryStore
from aflow.task.config_binding import configured
from aflow.task.remote import Payloads, StoredManifests, pack_manifests
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

    manifests.expect(spec_of("work", more=keys[2]))
    manifests.expect(spec_of("work", more=keys[1]))  # delivered again

    assert 3 == manifests.with_item(1, 2).items[0]
    assert 3 == manifests.with_item(1, 1).items[0]
