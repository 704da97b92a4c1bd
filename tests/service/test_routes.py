"""Every route of Metaflow's service: bodies, responses and status codes."""

from __future__ import annotations

import json
from typing import Any

from tests.service.conftest import WHO, Service

NOW = 1_700_000_000


async def test_it_says_that_it_is_there(service: Service) -> None:
    for path, said in (("/ping", "pong"), ("/version", "2.5.1"), ("/healthcheck", '"UP"')):
        response = await service.http.get(path)

        assert 200 == response.status
        assert said in await response.text()
        assert "2.5.1" == response.headers["METADATA_SERVICE_VERSION"]


async def test_a_flow_is_registered_once(service: Service) -> None:
    expected = {"flow_id": "F", "ts_epoch": NOW * 1000, **WHO}

    assert expected == await service.post("/flows/F")
    assert expected == await service.get("/flows/F")
    assert [expected] == await service.get("/flows")
    assert "23505" == json.loads(await service.post("/flows/F", status=409))["err_msg"]["pgcode"]
    assert {} == await service.get("/flows/G", 404)


async def test_runs_are_numbered_or_named(service: Service) -> None:
    assert isinstance(await service.post("/flows/F/run", status=404), str)
    await service.post("/flows/F")

    numbered = await service.post("/flows/F/run")
    named = await service.post("/flows/F/run", {**WHO, "run_number": "sfn-abc"})

    expected = {"flow_id": "F", "ts_epoch": NOW * 1000, "last_heartbeat_ts": None, **WHO}
    assert {**expected, "run_number": numbered["run_number"]} == numbered
    assert {**expected, "run_number": "sfn-abc"} == named
    assert numbered == await service.get(f"/flows/F/runs/{numbered['run_number']}")
    assert named == await service.get(f"/flows/F/runs/{numbered['run_number'] + 1}")
    assert named == await service.get("/flows/F/runs/sfn-abc")
    assert [numbered, named] == await service.get("/flows/F/runs")
    assert isinstance(
        await service.post("/flows/F/run", {**WHO, "run_number": "sfn-abc"}, 409), str
    )
    assert {} == await service.get("/flows/F/runs/999", 404)
    assert {} == await service.get(f"/flows/F/runs/{'9' * 40}", 404)
    assert [] == await service.get("/flows/G/runs")
    await service.post("/flows/F/run", {**WHO, "run_number": "17"}, 400)


async def test_steps_and_tasks_have_the_tags_of_their_run(service: Service) -> None:
    task = await service.task()
    step = task.partition("/tasks/")[0]
    run = step.partition("/steps/")[0]
    await service.patch(f"{run}/tag/mutate", {"tags_to_add": ["new"], "tags_to_remove": ["t"]})

    reported = await service.get(task)

    assert ["new"] == reported["tags"]
    assert ["user:ada"] == reported["system_tags"]
    assert ("start", None) == (reported["step_name"], reported["last_heartbeat_ts"])
    assert [reported] == await service.get(f"{step}/tasks")
    assert ["new"] == (await service.get(step))["tags"]
    assert [await service.get(step)] == await service.get(f"{run}/steps")
    assert isinstance(await service.post(f"{step}/step", status=409), str)
    assert isinstance(await service.post(f"{run}/steps/other/task", status=404), str)
    assert {} == await service.post("/flows/F/runs/999/steps/start/task", status=404)
    assert {} == await service.get(f"{run}/steps/other", 404)
    assert {} == await service.get(f"{step}/tasks/999999", 404)
    assert [] == await service.get(f"{run}/steps/other/tasks")


async def test_tasks_may_have_names(service: Service) -> None:
    step = (await service.task()).partition("/tasks/")[0]

    named = await service.post(f"{step}/task", {**WHO, "task_id": "control-1"})

    assert "control-1" == named["task_id"]
    assert named == await service.get(f"{step}/tasks/control-1")
    assert isinstance(await service.post(f"{step}/task", {"task_id": "control-1"}, 409), str)
    assert {"message": "provided task_id may not be a numeric"} == await service.post(
        f"{step}/task", {"task_id": "12"}, 400
    )


async def test_a_heartbeat_of_a_task_is_one_of_its_run(service: Service) -> None:
    task = await service.task()
    run = task.partition("/steps/")[0]

    reported = await service.post(f"{run}/heartbeat", {})

    assert {"wait_time_in_seconds": 10} == json.loads(reported)
    assert NOW == (await service.get(run))["last_heartbeat_ts"]
    service.clock.advance(30)
    await service.post(f"{task}/heartbeat", {})
    assert NOW + 30 == (await service.get(run))["last_heartbeat_ts"]
    assert NOW + 30 == (await service.get(task))["last_heartbeat_ts"]
    await service.post("/flows/F/runs/999/heartbeat", {}, 404)


async def test_tags_are_changed_in_one_step(service: Service) -> None:
    run = (await service.task()).partition("/steps/")[0]
    mutate = f"{run}/tag/mutate"

    body = {"tags_to_add": ["b", "a", "user:ada"], "tags_to_remove": ["t", "a"]}

    assert {"tags": ["a", "b"]} == await service.patch(mutate, body)
    assert ["a", "b"] == (await service.get(run))["tags"]
    await service.patch(mutate, {"tags_to_add": [], "tags_to_remove": ["user:ada"]}, 422)
    wrong: Any
    for wrong in ({}, [], {"tags_to_add": "a"}, {"tags_to_add": [1]}):
        await service.patch(mutate, wrong, 400)
    await service.patch("/flows/F/runs/999/tag/mutate", {"tags_to_add": ["a"]}, 404)


async def test_metadata_are_reported_in_order(service: Service) -> None:
    task = await service.task()
    run = task.partition("/steps/")[0]
    said = [
        {"field_name": "attempt", "value": "0", "type": "attempt", "user_name": "ada"},
        {"field_name": "stack", "value": ["a:1"], "type": "stack"},
    ]

    assert {"metadata_created": 2} == await service.post(f"{task}/metadata", said)

    reported = await service.get(f"{task}/metadata")
    assert [("attempt", "0", "ada"), ("stack", '["a:1"]', None)] == [
        (each["field_name"], each["value"], each["user_name"]) for each in reported
    ]
    assert reported == await service.get(f"{run}/metadata")
    assert {"metadata_created": 0} == await service.post(f"{task}/metadata", [])
    unknown = await service.post(f"{run}/steps/start/tasks/999999/metadata", said, 400)
    assert {"message": "need to register run_id and task_id first"} == unknown
    assert [] == await service.get(f"{run}/steps/start/tasks/999999/metadata")


async def test_artifacts_are_those_of_the_latest_attempt(service: Service) -> None:
    task = await service.task()
    step = task.partition("/tasks/")[0]
    run = step.partition("/steps/")[0]

    def artifact(name: str, attempt: int) -> dict[str, object]:
        return {
            "name": name, "location": f"s3://b/{name}", "ds_type": "s3", "sha": f"{name}{attempt}",
            "type": "metaflow.artifact", "content_type": "gzip+pickle-v4", "attempt_id": attempt,
            "user_name": "ada",
        }  # fmt: skip

    first, second = [artifact("x", 0), artifact("y", 0)], [artifact("x", 1)]

    assert {"artifacts_created": 2} == await service.post(f"{task}/artifact", first)
    assert {"artifacts_created": 0} == await service.post(f"{task}/artifact", first)
    assert {"artifacts_created": 1} == await service.post(f"{task}/artifact", second)

    for path in (task, step, run):
        reported = await service.get(f"{path}/artifacts")
        assert ["x1"] == [each["sha"] for each in reported]
        assert second[0].items() <= reported[0].items()
        assert {"flow_id": "F", "step_name": "start", "tags": ["t"]}.items() <= reported[0].items()
    sha = {
        path: (await service.get(f"{task}/artifacts/{path}"))["sha"]
        for path in ("x", "y", "x/attempt/0")
    }
    assert {"x": "x1", "y": "y0", "x/attempt/0": "x0"} == sha
    assert 2 == len(await service.get(f"{task}/attempt/0/artifacts"))
    assert {} == await service.get(f"{task}/artifacts/z", 404)
    assert {} == await service.get(f"{task}/artifacts/y/attempt/1", 404)


async def test_tasks_are_found_by_their_metadata(service: Service) -> None:
    task = await service.task()
    step, _, number = task.partition("/tasks/")
    other = (await service.post(f"{step}/task"))["task_id"]
    said = [{"field_name": "path", "value": "start:a,body:1"}, {"field_name": "n", "value": "1"}]
    await service.post(f"{task}/metadata", said)
    head = "/".join(step.split("/")[2::2])

    async def found(**query: str) -> list[str]:
        answer: list[str] = await service.get(f"{step}/filtered_tasks", params=query)
        return answer

    assert [f"{head}/{number}", f"{head}/{other}"] == await found()
    assert [f"{head}/{number}"] == await found(metadata_field_name="path")
    assert [f"{head}/{number}"] == await found(metadata_field_name="path", pattern="body:[0-9]$")
    assert [f"{head}/{number}"] == await found(pattern="^1$")
    assert [] == await found(metadata_field_name="n", pattern="^(?:body.*)$")
    await service.get(f"{step}/filtered_tasks", 400, params={"pattern": "("})
