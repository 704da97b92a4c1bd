"""The routes of Metaflow's service also list the runs that aflow itself has recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aflow.metadata.base import Batch, MetadataRecord, MetadataStore, RunRecord, RunUpdate
from aflow.metadata.factory import open_metadata
from aflow.scheduler.states import RunState
from aflow.server.metaflow.database import open_database
from aflow.storage.artifacts import Entry, Manifest
from tests.contracts.metadata_stores import a_run, succeeded, tasks_of
from tests.service.conftest import WHO, Service
from tests.service.test_lists import pages

LEFT = Manifest("work", {"x": Entry("pickle5", 5, "int", {}, b"12345")}).encode()
WIDTH = 1200


@pytest.fixture
def store(url: str) -> MetadataStore:
    """aflow's metadata in the same database; the service closes it."""
    return open_metadata(url, "process")


@pytest.fixture
def run(store: MetadataStore) -> RunRecord:
    made = store.create_run(a_run(run="77", tags=("mine",), system_tags=("user:ann",)), LEFT)
    tasks = tasks_of("work", range(1, WIDTH + 1))
    said = [MetadataRecord(1, 0, "colour", "blue", "colour", 5.0)]
    attempts = [succeeded(task.task, LEFT) for task in tasks]
    done = RunUpdate(RunState.SUCCEEDED, 300.0)
    store.commit(made.key, 0, Batch(b"e", tasks, attempts, said, done))
    return made


@pytest.fixture
async def service(
    serve: Callable[..., Any], url: str, store: MetadataStore, run: RunRecord
) -> Service:
    started: Service = await serve(open_database(url, "process"), store=store)
    return started


async def test_flows_and_runs_stand_beside_those_that_are_registered(
    service: Service, store: MetadataStore
) -> None:
    store.create_run(a_run(run="78", created_at=200.0), LEFT)
    for flow in ("Flow", "Another"):
        await service.post(f"/flows/{flow}")
        await service.post(f"/flows/{flow}/run")
    number = (await service.post("/flows/Flow/run"))["run_number"]
    found = await pages(service, "/flows/Flow/runs", _limit="1")

    assert ["Another", "Flow"] == [each["flow_id"] for each in await service.get("/flows")]
    assert ["78", "77", number, number - 2] == [
        each["run_number"] for page in found for each in page
    ]
    assert [number - 2, number, "77", "78"] == [
        each["run_number"] for each in await service.get("/flows/Flow/runs")
    ]

    async def filtered(query: str) -> list[Any]:
        return [each["run_number"] for each in await service.get(f"/flows/Flow/runs?{query}")]

    assert ["77"] == await filtered("status:eq=completed")
    assert ["77"] == await filtered("_tags:all=mine,user:ann")
    assert ["77", "78"] == await filtered("user=ann")
    assert ["77"] == await filtered("ts_epoch:lt=150000")
    assert [] == await filtered("user:co=bob&_limit=5")
    # Tasks are filtered here alone, since the run is not registered.
    for query in (
        "ts_epoch:co=1",
        "last_heartbeat_ts:sw=1",
        "user:like=a",
        f"ts_epoch={'9' * 5000}",
    ):
        await service.get(f"/flows/Flow/runs/77/steps/work/tasks?{query}", 400)


async def test_a_run_is_reported_with_its_steps_and_tasks(service: Service) -> None:
    head = {"flow_id": "Flow", "run_number": "77", "tags": ["mine"], "system_tags": ["user:ann"]}
    run = "/flows/Flow/runs/77"
    tasks = await service.get(f"{run}/steps/work/tasks")
    found = await pages(service, f"{run}/steps/work/tasks", _limit="500")

    assert {**head, "user_name": "ann", "ts_epoch": 100_000, "last_heartbeat_ts": None} == (
        await service.get(run)
    )
    assert ["_parameters", "work"] == [
        each["step_name"] for each in await service.get(f"{run}/steps")
    ]
    assert {**head, "step_name": "work"}.items() <= (await service.get(f"{run}/steps/work")).items()
    assert [*range(1, WIDTH + 1)] == [each["task_id"] for each in tasks]
    assert [*range(WIDTH, 0, -1)] == [each["task_id"] for page in found for each in page]
    assert tasks[4] == await service.get(f"{run}/steps/work/tasks/5")
    assert {**head, "step_name": "work", "task_id": 5}.items() <= tasks[4].items()
    for path in ("78", "77/steps/other", "77/steps/other/tasks/5", "77/steps/work/tasks/5000"):
        assert {} == await service.get(f"/flows/Flow/runs/{path}", 404)
    assert [] == await service.get("/flows/Flow/runs/78/steps")
    await service.get(f"{run}/steps/work/tasks?what=1", 400)


async def test_what_tasks_have_said_and_left_is_reported(service: Service) -> None:
    task = "/flows/Flow/runs/77/steps/work/tasks/1"
    facts = {each["field_name"]: each["value"] for each in await service.get(f"{task}/metadata")}
    everything = await service.get("/flows/Flow/runs/77/artifacts")
    filtered = "/flows/Flow/runs/77/steps/work/filtered_tasks"

    assert {"attempt": "0", "attempt_ok": "True", "colour": "blue"}.items() <= facts.items()
    assert WIDTH + 1 == len(everything)
    assert WIDTH + 1 == len({each["task_id"] for each in everything})
    assert ["x"] == [each["name"] for each in await service.get(f"{task}/artifacts")]
    assert ["x"] == [each["name"] for each in await service.get(f"{task}/attempt/0/artifacts")]
    assert "pickle5" == (await service.get(f"{task}/artifacts/x"))["content_type"]
    assert {} == await service.get(f"{task}/artifacts/y", 404)
    assert ["Flow/77/work/1"] == await service.get(f"{filtered}?metadata_field_name=colour")
    assert [] == await service.get(f"{filtered}?pattern=^green$")
    assert len(await service.get("/flows/Flow/runs/77/metadata")) > 3 * WIDTH


async def test_tags_of_own_runs_are_changed(service: Service, store: MetadataStore) -> None:
    mutate = "/flows/Flow/runs/77/tag/mutate"

    assert {"tags": ["good"]} == await service.patch(
        mutate, {"tags_to_add": ["good"], "tags_to_remove": ["mine"]}
    )
    found = store.run("Flow", "77")
    assert found is not None
    assert ("good",) == found.tags
    assert "user:ann" in await service.patch(mutate, {"tags_to_remove": ["user:ann"]}, 422)


async def test_nothing_is_registered_in_own_runs(service: Service) -> None:
    refused = await service.post("/flows/Flow/runs/77/steps/work/tasks/1/metadata", [], 400)

    assert {} == await service.post("/flows/Flow/runs/77/steps/more/step", WHO, 404)
    assert {"message": "need to register run_id and task_id first"} == refused
