"""Lists: pages, filters, streamed responses, and conditional requests."""

from __future__ import annotations

from typing import Any

import pytest

from aflow.server.metaflow.messages import CHUNK
from tests.service.conftest import WHO, Service


async def pages(service: Service, path: str, **query: str) -> list[list[Any]]:
    """Return all pages of a list."""
    found, cursor = [], None
    while True:
        more: dict[str, Any] = {} if cursor is None else {"_cursor": cursor}
        response = await service.http.get(path, params={**query, **more})
        assert 200 == response.status, await response.text()
        assert query.get("_limit", "50") == response.headers["X-Limit"]
        found.append(await response.json())
        cursor = response.headers.get("X-Next-Cursor")
        if cursor is None:
            return found


async def test_pages_begin_with_the_newest(service: Service) -> None:
    await service.post("/flows/F")
    numbers = [(await service.post("/flows/F/run"))["run_number"] for _ in range(5)]

    found = await pages(service, "/flows/F/runs", _limit="2")

    assert [2, 2, 1] == [len(page) for page in found]
    assert numbers[::-1] == [run["run_number"] for page in found for run in page]
    assert numbers == [run["run_number"] for run in await service.get("/flows/F/runs")]


async def test_flows_and_steps_come_in_pages(service: Service) -> None:
    run = (await service.task()).partition("/steps/")[0]
    await service.post("/flows/G")
    await service.post(f"{run}/steps/end/step")

    flows = await pages(service, "/flows", _limit="1")
    steps = await pages(service, f"{run}/steps", _limit="1")

    assert {"F", "G"} == {flow["flow_id"] for page in flows for flow in page}
    assert {"start", "end"} == {step["step_name"] for page in steps for step in page}


async def test_a_long_list_comes_whole(service: Service) -> None:
    task = await service.task()
    said = [{"field_name": f"f{n}", "value": "v"} for n in range(2 * CHUNK + 5)]
    await service.post(f"{task}/metadata", said)

    reported = await service.get(f"{task}/metadata")

    assert [each["field_name"] for each in said] == [each["field_name"] for each in reported]


@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, 2 * CHUNK])
async def test_no_length_of_a_list_breaks_it(service: Service, count: int) -> None:
    task = await service.task()
    await service.post(f"{task}/metadata", [{"field_name": "f"}] * count)

    assert count == len(await service.get(f"{task}/metadata"))


async def test_what_a_client_has_is_not_sent_again(service: Service) -> None:
    task = await service.task()
    tag = (await service.http.get(task)).headers["ETag"]

    again = await service.http.get(task, headers={"If-None-Match": tag})
    await service.post(f"{task}/heartbeat", {})
    changed = await service.http.get(task, headers={"If-None-Match": tag})

    assert (304, b"") == (again.status, await again.read())
    assert (200, False) == (changed.status, tag == changed.headers["ETag"])


async def test_runs_are_filtered(service: Service) -> None:
    await service.post("/flows/F")
    for user, tags in (("ada", ["x"]), ("bob", ["x", "y"]), ("a_a", [])):
        await service.post("/flows/F/run", {**WHO, "user_name": user, "tags": tags})
        service.clock.advance(1)
    start = 1_700_000_000_000

    async def found(**query: str) -> list[str]:
        named = {key.replace("__", ":"): value for key, value in query.items()}
        return [run["user_name"] for run in await service.get("/flows/F/runs", params=named)]

    assert ["bob"] == await found(user="bob")
    assert ["ada", "a_a"] == await found(user__ne="bob")
    assert ["a_a"] == await found(user__co="_")
    assert ["ada", "a_a"] == await found(user__sw="a")
    assert ["bob", "a_a"] == await found(ts_epoch__gt=str(start))
    assert ["ada", "bob"] == await found(_tags__any="x,y")
    assert ["bob"] == await found(_tags__all="x,y")
    assert ["ada", "bob", "a_a"] == await found(_tags="user:ada")
    assert [] == await found(user="bob", _tags__all="z")


async def test_runs_are_filtered_by_status(service: Service) -> None:
    runs = [(await service.task()).partition("/steps/")[0] for _ in range(2)]
    done = f"{runs[0]}/steps/end"
    await service.post(f"{done}/step")
    task = (await service.post(f"{done}/task"))["task_id"]
    said = [{"field_name": "attempt_ok", "value": "True"}]
    await service.post(f"{done}/tasks/{task}/metadata", said)

    async def found(status: str) -> list[str]:
        path = f"/flows/F/runs?status:eq={status}"
        return [f"/flows/F/runs/{run['run_number']}" for run in await service.get(path)]

    assert ([runs[0]], [runs[1]]) == (await found("completed"), await found("running"))
    service.clock.advance(100)
    assert ([], [runs[1]]) == (await found("running"), await found("failed"))
    await service.post(f"{runs[1]}/heartbeat", {})
    assert [runs[1]] == await found("running")


@pytest.mark.parametrize(
    "query",
    [
        "_limit=0", "_limit=x", "_cursor=x", "_cursor=eyJhZnRlciI6ICJ4In0=", "what=1",
        "user:like=a", "ts_epoch=now", "status=odd", "_tags:some=a", "user;DROP TABLE x=1",
        "user=%00",
    ],
)  # fmt: skip
async def test_a_query_that_means_nothing_is_refused(service: Service, query: str) -> None:
    assert "message" in await service.get(f"/flows/F/runs?{query}", 400)
