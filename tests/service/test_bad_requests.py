"""For any invalid request, the response is one sentence and never has status 500."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aflow.metadata.factory import open_metadata
from aflow.metadata.tokens import create
from aflow.server.metaflow.database import Database, open_database
from aflow.server.metaflow.routes import ROUTES
from tests.server.attacks import OF_OTHER_SITES
from tests.service.conftest import Service

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["user_name", "tags", "system_tags", "run_number", "task_id", "field_name", "value", "type",
     "name", "attempt_id", "sha", "tags_to_add", "tags_to_remove"]
)  # fmt: skip
BODY = JSON | st.dictionaries(KEYS, JSON) | st.lists(st.dictionaries(KEYS, JSON), max_size=3)
NAME = st.sampled_from(["F", "1", "start", "0"]) | st.text(min_size=1, max_size=20)
QUERY = st.dictionaries(
    st.sampled_from(["_limit", "_cursor", "user:eq", "ts_epoch:ge", "_tags:any", "pattern",
                     "metadata_field_name", "status", "value:co"]) | st.text(min_size=1),
    st.text(),
    max_size=2,
)  # fmt: skip
NASTY = ["x'; DROP TABLE service_runs; --", '"', "a b", "é", "x" * 300, "%", "\0", "\n"]


@pytest.mark.parametrize("name", NASTY)
async def test_names_that_are_none_are_refused(service: Service, name: str) -> None:
    quoted = quote(name, safe="")

    assert "message" in await service.post(f"/flows/{quoted}", status=400)
    assert "message" in await service.get(f"/flows/F/runs/{quoted}", 400)
    await service.task()
    assert "message" in await service.post("/flows/F/run", {"run_number": name}, 400)


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'"x"', b"\xff", b'{"user_name": "\\u0000"}', b'{"user_name": "\\ud800"}',
     b'{"tags": "x"}', b'{"tags": [1]}', b"[" * 100_000],
)  # fmt: skip
async def test_bodies_that_are_none_are_refused(service: Service, body: bytes) -> None:
    response = await service.http.post("/flows/F", data=body)

    assert 400 == response.status, await response.text()
    assert "message" in await response.json()


async def test_a_route_that_is_none_is_answered_in_json(service: Service) -> None:
    assert {"message": "Not Found"} == await service.get("/flows/F/cats", 404)
    assert {"message": "Method Not Allowed"} == await service.patch("/flows/F", {}, 405)


async def test_one_wrong_item_leaves_nothing(service: Service) -> None:
    task = await service.task()
    items = [{"name": "x"}, {"name": "y", "attempt_id": -1}]

    await service.post(f"{task}/artifact", items, 400)

    assert [] == await service.get(f"{task}/artifacts")


async def test_a_key_is_wanted_where_there_are_keys(
    serve: Callable[..., Any], database: Database
) -> None:
    service = await serve(database, keys=["one", "two"])

    async def status(path: str, **headers: str) -> int:
        response = await service.http.get(
            path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        found: int = response.status
        return found

    assert 401 == await status("/flows")
    assert 401 == await status("/flows", x_api_key="three")
    assert 401 == await status("/flows", Authorization="Basic one")
    assert 200 == await status("/flows", x_api_key="two")
    assert 200 == await status("/flows", Authorization="Bearer one")
    assert (200, 200) == (await status("/ping"), await status("/healthcheck"))


async def test_tokens_that_were_made_open_the_service_too(
    serve: Callable[..., Any], url: str
) -> None:
    store: Any = open_metadata(url, "process")
    service = await serve(open_database(url, "process"), store=store)

    async def status(method: str, path: str, token: str) -> int:
        headers = {"x-api-key": token} if token else {}
        response = await service.http.request(method, path, headers=headers, json={})
        found: int = response.status
        return found

    assert 200 == await status("GET", "/flows", "")
    writes = create(store, "ci", "write", 0.0, 1e12)
    reads = create(store, "look", "read", 0.0, 1e12)
    over = create(store, "over", "write", 0.0, 1.0)
    service.clock.advance(3)

    assert [401, 401, 403, 200, 200] == [
        await status("GET", "/flows", each) for each in ("", writes[:-1], over, reads, writes)
    ]
    assert [403, 200] == [await status("POST", "/flows/F", each) for each in (reads, writes)]
    assert [400, 403] == [  # without a body; runs may be asked for, and not deleted
        await status("POST", f"/aflow/v1/metadata/{call}", reads) for call in ("runs", "delete_run")
    ]


async def test_pages_of_other_sites_are_not_answered_where_no_key_is_wanted(
    serve: Callable[..., Any], database: Database
) -> None:
    service = await serve(database, is_local=True)
    for headers in OF_OTHER_SITES.values():
        response = await service.http.post("/flows/F", headers=headers, json={})
        assert 403 == response.status
    await service.get("/flows/F", 404)


async def test_an_expression_takes_no_longer_than_its_text(service: Service) -> None:
    task = await service.task()
    said = [{"field_name": "x", "value": "a" * 5000 + "!"}]
    await service.post(f"{task}/metadata", said)
    step = task.rpartition("/tasks/")[0]

    assert [] == await service.get(f"{step}/filtered_tasks", params={"pattern": "^(a+)+$"})
    for odd in ("(?=a)a", r"(a)\1", "a{9999}", "(((x{100}){100}){100})", "a" * 1001):
        refused = await service.get(f"{step}/filtered_tasks", 400, params={"pattern": odd})
        assert "regular expression" in refused["message"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(data=st.data())
async def test_nothing_that_is_sent_breaks_the_service(
    service: Service, data: st.DataObject
) -> None:
    await service.task()
    route = data.draw(st.sampled_from(ROUTES))
    path = route.path
    for kind in ("flow_id", "run_number", "step_name", "task_id", "attempt_id", "artifact_name"):
        path = path.replace("{" + kind + "}", quote(data.draw(NAME), safe=""))

    response = await service.http.request(
        route.method,
        path,
        params=data.draw(QUERY),
        json=data.draw(BODY) if route.writes else None,
    )

    assert 500 > response.status, (route, path, await response.text())
    await response.read()
