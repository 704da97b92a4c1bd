"""The HTTP API of the web UI: runs, tasks, logs, code, comparisons, a stream."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import pickle
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aflow.executors.jobs.board import JobBoard, JobsOfRun, WaitingJob, prune
from aflow.executors.protocol import DEFAULT_POOL, tasks_topic
from aflow.metadata.base import (
    AttemptRecord,
    Batch,
    RunningTask,
    RunUpdate,
    TaskRecord,
    WorkerRecord,
)
from aflow.metadata.sqlite import SqliteMetadata
from aflow.queue.base import Message
from aflow.queue.factory import open_queue
from aflow.scheduler.states import AttemptState, RunState
from tests.contracts.metadata_stores import a_run
from tests.server.conftest import Daemon
from tests.support.waiting import select_nothing
from tests.unit.server.test_columns import decoded

JSON: Any = {"Content_Type": "application/json"}

pytestmark = pytest.mark.xdist_group("views")

FLOW = """
from aflow import card


class Flow_(FlowSpec):
    '''Squares of numbers.'''
    n = Parameter("n", default=3)
    fail = Parameter("fail", default=False)

    @step
    def start(self):
        print("counting to", self.n, flush=True)
        self.numbers = list(range(self.n))
        self.next(self.square, foreach="numbers")

    @step
    def square(self):
        print("item", self.input, flush=True)
        if self.fail and self.input == 1:
            raise ValueError("one is not allowed")
        self.result = {"square": self.input**2}
        self.next(self.join)

    @card
    @step
    def join(self, inputs):
        self.total = sum(each.result["square"] for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("total", self.total, flush=True)
"""


class Served(Daemon):
    """A daemon with three runs: two succeeded, the last one failed."""

    runs: list[str]

    def fetch(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request with these headers, and with the token of this user unless they have a
        cookie: status, headers and body of the answer."""
        if "Cookie" not in headers:
            headers["Authorization"] = f"Bearer {self.token}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(self.connect()) as connection:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)

    def get(self, path: str) -> Any:
        status, reported = self.ask("GET", path)
        assert 200 == status, reported
        return reported


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, repository: Any) -> Iterator[Served]:
    daemon = Served(tmp_path_factory.mktemp("views"))
    daemon.write(FLOW)
    path = {"PYTHONPATH": str(repository)}
    daemon.begin(**path)
    for words in (["--tag", "prod"], ["--n", "4"], ["--fail", "true"]):
        ran = daemon.submit("flow.py", "--wait", *words, **path)
        assert ran.code == ("--fail" in words), ran
    daemon.runs = [each["run"] for each in daemon.get("/v1/search")["runs"]][::-1]
    assert 3 == len(daemon.runs)
    yield daemon
    daemon.stop()


def test_runs_are_found_by_filter_words_in_pages(served: Served) -> None:
    first, second, failed = served.runs

    def found(words: str) -> list[str]:
        return [each["run"] for each in served.get(f"/v1/search?filter={words}")["runs"]]

    assert [failed, second, first] == found("")
    assert [failed] == found("state:failed")
    assert [first] == found("tag:prod")
    assert [second] == found("param.n:4")
    assert [failed, second, first] == found("flow_")
    assert [] == found("flow:Other")
    page = served.get("/v1/search?limit=2")
    rest = served.get(f"/v1/search?limit=2&cursor={page['cursor']}")
    assert [failed, second, first] == [r["run"] for r in (*page["runs"], *rest["runs"])]
    assert None is rest["cursor"]
    assert {"succeeded": 3, "failed": 1} == served.get("/v1/search?limit=1")["runs"][0]["tasks"]
    assert 400 == served.ask("GET", "/v1/search?filter=colour:red")[0]


def test_the_overview_of_a_run_has_its_graph_figures_and_failures(served: Served) -> None:
    reported = served.get(f"/v1/runs/Flow_/{served.runs[2]}/overview")

    nodes = {node["name"]: node for node in reported["graph"]["nodes"]}
    assert ["start", "square", "join", "end"] == [*nodes]
    assert (True, ["join"], "numbers") == (
        nodes["square"]["is_many"], nodes["square"]["next"], nodes["start"]["foreach"]
    )  # fmt: skip
    steps = {step["step"]: step for step in reported["steps"]}
    assert {"succeeded": 2, "failed": 1} == steps["square"]["tasks"]
    assert {} == steps["end"]["tasks"], "it has not begun"
    assert steps["square"]["max_rss"] > 1 << 20
    assert steps["end"]["max_rss"] is None
    (failure,) = reported["failures"]
    assert ("square", "ValueError") == (failure["step"], failure["error"]["type"].split(".")[-1])
    assert "one is not allowed" in failure["error"]["traceback"]
    assert {"n": "3", "fail": "True"} == {p["name"]: p["value"] for p in reported["parameters"]}
    assert "Squares of numbers." == reported["doc"]


def test_tasks_come_sorted_filtered_and_with_their_items(served: Served) -> None:
    path = f"/v1/runs/Flow_/{served.runs[1]}"
    page = served.get(f"{path}/task-page?step=square&limit=2&offset=1")

    assert 4 == page["total"]
    assert ["1", "2"] == [task["item"] for task in page["tasks"]]
    by_length = served.get(f"{path}/task-page?sort=-duration")["tasks"]
    times = [task["finished_at"] - task["started_at"] for task in by_length]
    assert sorted(times, reverse=True) == times
    assert 0 == served.get(f"{path}/task-page?state=failed")["total"]
    for wrong in ("sort=colour", "state=broken", "step=a/b", "limit=1000", "offset=-1"):
        assert 400 == served.ask("GET", f"{path}/task-page?{wrong}")[0]


def test_a_task_has_attempts_inputs_artifacts_with_previews_and_cards(served: Served) -> None:
    path = f"/v1/runs/Flow_/{served.runs[0]}"
    tasks = {t["step"]: t for t in served.get(f"{path}/task-page?sort=task")["tasks"]}
    square = served.get(f"{path}/tasks/{tasks['square']['task']}")
    (left,) = square["artifacts"]
    assert {"square": 4} == json.loads(left["preview"]["json"])
    assert {"count": 1, "tasks": [1]} == square["inputs"]
    assert ["succeeded"] == [each["state"] for each in square["tries"]]
    join = served.get(f"{path}/tasks/{tasks['join']['task']}")
    assert 3 == join["inputs"]["count"]
    (card,) = join["cards"]
    page = f"{path}/tasks/{join['task']}/cards/{card['name']}"
    status, text = served.ask("GET", page)
    assert 200 == status
    assert "join" in text
    assert 404 == served.ask("GET", f"{path}/tasks/{join['task']}/cards/..%2f..%2fsecret")[0]
    assert 404 == served.ask("GET", f"{path}/tasks/999")[0]
    assert 404 == served.ask("GET", f"{path}/tasks/{join['task']}/artifacts/nothing")[0]
    _, headers, body = served.fetch(f"{path}/tasks/{join['task']}/artifacts/total")
    assert 5 == pickle.loads(body)
    assert "chunked" == headers["Transfer-Encoding"], "a slow client has a minute for each part"


def test_columns_are_known_by_their_tag_and_by_version(served: Served) -> None:
    path = f"/v1/runs/Flow_/{served.runs[1]}/columns"
    _, headers, body = served.fetch(path)
    head, rows = decoded(body)
    assert (7, 7) == (head["count"], len(rows))
    status, _, body = served.fetch(path, If_None_Match=headers["ETag"])
    assert (304, b"") == (status, body)
    since = f"{path}?since={head['version']}"
    assert 0 == decoded(served.fetch(since)[2])[0]["count"], "nothing has changed since"


def test_logs_come_in_pages_are_searched_whole_and_downloaded(served: Served) -> None:
    path = f"/v1/runs/Flow_/{served.runs[1]}"
    page = served.get(f"{path}/log?limit=2")
    rest = served.get(f"{path}/log?after={page['next']}")
    texts = [line["text"] for line in (*page["lines"], *rest["lines"])]
    assert ["counting to 4", *(f"item {n}" for n in range(4)), "total 14"] == texts
    assert (False, True) == (page["end"], rest["end"])
    assert ["total 14"] == [
        each["text"] for each in served.get(f"{path}/log?search=TOTAL")["lines"]
    ]
    assert "counting to 4\n" == served.get(f"{path}/log.txt?task=1")
    assert "[start/1] counting to 4" in served.get(f"{path}/log.txt")
    tail = served.get(f"{path}/log?task=1&tail=1")
    assert (["counting to 4"], 0) == ([each["text"] for each in tail["lines"]], tail["skipped"])
    assert [] == served.get(f"{path}/log?task=1&after={tail['next']}")["lines"]
    for wrong in ("after=nonsense", "tail=5", "task=1&tail=9999"):
        assert 400 == served.ask("GET", f"{path}/log?{wrong}")[0]


def test_runs_are_compared_by_what_differs(served: Served) -> None:
    both = ",".join(f"Flow_/{run}" for run in served.runs[:2])
    rows = {
        (row["section"], row["name"]): row for row in served.get(f"/v1/compare?runs={both}")["rows"]
    }
    assert (["3", "4"], True) == tuple(rows["parameters", "n"][k] for k in ("values", "differ"))
    assert not rows["parameters", "fail"]["differ"]
    assert ["5", "14"] == rows["artifacts", "join.total"]["values"]
    assert 2 == len(rows["artifacts", "join.total"]["previews"])
    assert not rows["run", "code"]["differ"]
    for wrong in ("", "Flow_", f"Flow_/{served.runs[0]}", ",".join([both] * 3)):
        assert 400 == served.ask("GET", f"/v1/compare?runs={wrong}")[0]


def test_flows_code_explanations_artifacts_and_cards_are_reported(served: Served) -> None:
    path = f"/v1/runs/Flow_/{served.runs[1]}"
    (flow,) = served.get("/v1/flows")["flows"]
    assert ("Flow_", served.runs[2]) == (flow["flow"], flow["latest"]["run"])
    one = served.get("/v1/flows/Flow_")
    assert [served.runs[n] for n in (2, 1, 0)] == [each["run"] for each in one["runs"]]
    code = served.get(f"{path}/code?against={served.runs[0]}")
    assert "class Flow_" in code["files"][0]["text"]
    assert "" == code["diff"]
    lines = served.get(f"{path}/explain")["lines"]
    assert any("n changed 3 -> 4" in line["text"] for line in lines)
    steps = {each["step"]: each for each in served.get(f"{path}/artifacts")["steps"]}
    assert (4, 3) == (steps["square"]["count"], len(steps["square"]["tasks"]))
    assert ["join"] == [card["step"] for card in served.get(f"{path}/cards")["cards"]]
    found = served.get("/v1/suggest?prefix=fl")["found"]
    assert [{"kind": "flow", "text": "Flow_"}] == found
    assert 3 == len(served.get("/v1/suggest?prefix=Flow_/")["found"])
    steps = served.get(f"/v1/suggest?prefix=Flow_/{served.runs[1]}/s")["found"]
    assert ["square", "start"] == sorted(each["text"].split("/")[2] for each in steps)
    assert [] == served.get("/v1/suggest?prefix=Flow_/404/s")["found"]
    tags = served.get("/v1/suggest?prefix=tag:pr")["found"]
    assert [{"kind": "tag", "text": "tag:prod"}] == tags
    assert 404 == served.ask("GET", "/v1/flows/Nothing")[0]


def test_a_run_is_downloaded_as_a_trace_that_perfetto_shows(served: Served) -> None:
    path = f"/v1/runs/Flow_/{served.runs[1]}"
    events = served.get(f"{path}/trace.json")["traceEvents"]
    names = [event["name"] for event in events if event["ph"] == "X"]
    assert 4 == sum(name.startswith("square/") for name in names)
    assert all(event["dur"] >= 0 and event["args"]["state"] == "succeeded"
               for event in events if event["ph"] == "X")  # fmt: skip
    assert 404 == served.ask("GET", "/v1/runs/Flow_/404/trace.json")[0]


def test_tags_are_changed_and_runs_deleted_where_they_have_ended(served: Served) -> None:
    path = f"/v1/runs/Flow_/{served.runs[0]}"
    reported = served.ask(
        "PATCH", f"{path}/tags", json.dumps({"add": ["a"], "remove": ["b"]}).encode()
    )
    assert (200, ["a", "prod"]) == (reported[0], sorted(reported[1]["tags"]))
    assert 400 == served.ask("PATCH", f"{path}/tags", b'{"add": "a"}')[0]
    plan = served.get(f"/v1/deletion?runs=Flow_/{served.runs[0]},Flow_/7")
    assert [f"Flow_/{served.runs[0]}"] == plan["runs"]
    assert 400 == served.ask("GET", "/v1/deletion?runs=")[0]


def test_one_stream_brings_what_is_live_on_a_page(served: Served) -> None:
    run = f"Flow_/{served.runs[1]}"
    connection = served.connect()
    topics = f"/v1/stream?topics=runs,run:{run},logs:{run}/1"
    connection.request("GET", topics, headers={"Authorization": f"Bearer {served.token}"})
    answer = connection.getresponse()
    assert "text/event-stream" == answer.headers["Content-Type"]
    found: dict[str, Any] = {}
    name = ""
    while {"runs", "run", "lines"} - found.keys():
        line = answer.readline().decode().rstrip("\n")
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            found[name] = json.loads(line.removeprefix("data: "))
    connection.close()
    assert ("succeeded", True) == (found["run"]["state"], found["run"]["is_over"])
    assert ["counting to 4"] == [each["text"] for each in found["lines"]["lines"]]
    assert run in [path for path, _, _ in found["runs"]["runs"]]
    for wrong in ("", "colours", "run:Flow_", "logs:Flow_/1/x", ",".join(["runs"] * 9)):
        assert 400 == served.ask("GET", f"/v1/stream?topics={wrong}")[0]
    assert 404 == served.ask("GET", "/v1/stream?topics=logs:Flow_/7")[0]
    connection = served.connect()
    token = {"Authorization": f"Bearer {served.token}"}
    connection.request("GET", "/v1/stream?topics=run:Flow_/7", headers=token)
    first = connection.getresponse().readline()
    connection.close()
    assert b"event: run\n" == first, "a page of a run that was deleted is notified"


def test_answers_are_kept_by_nobody_and_tell_nothing_of_the_server(served: Served) -> None:
    for path, cookie in (
        ("/v1/runs", None),
        ("/v1/runs", ""),
        ("/no/such/page", ""),
        ("/healthz", ""),
    ):
        sent: Any = {} if cookie is None else {"Cookie": cookie}
        _, headers, _ = served.fetch(path, **sent)
        assert "aflow" == headers["Server"]
        assert "nosniff" == headers["X-Content-Type-Options"]
        assert "same-origin" == headers["Cross-Origin-Resource-Policy"]
        assert headers["Cache-Control"] in ("no-store", "private, no-cache"), path


def test_the_pages_are_served_to_anybody_under_a_strict_policy(served: Served) -> None:
    for path in ("/ui/static/app.js", "/ui/static/tokens.css"):
        status, headers, body = served.fetch(path, Cookie="")
        assert (200, "nosniff") == (status, headers["X-Content-Type-Options"])
        assert "no-cache" == headers["Cache-Control"], "it may be another one tomorrow"
    page = served.fetch("/ui/", Cookie="")[2].decode()
    script = re.findall(r'src="(static/v[^"]*app.js)"', page)[0]
    assert "immutable" in served.fetch(f"/ui/{script}", Cookie="")[1]["Cache-Control"]
    old = re.sub(r"v[0-9a-f]{12}", "v000000000000", script)
    assert "no-cache" == served.fetch(f"/ui/{old}", Cookie="")[1]["Cache-Control"]
    for path in ("/", "/ui"):
        status, headers, _ = served.fetch(path, Cookie="")
        assert (302, "/ui/") == (status, headers["Location"])
    for path in ("/ui/", "/ui/runs/Flow_/1", "/ui/static/icon.svg"):
        status, headers, body = served.fetch(path, Cookie="")
        assert 200 == status
        assert body
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
    for path in ("/ui/static/../app.py", "/ui/static/%2e%2e/app.py", "/ui/static/none.js"):
        status, _, body = served.fetch(path, Cookie="")
        assert b"import" not in body


def test_a_browser_logs_in_by_a_token_or_by_a_link_that_works_once(served: Served) -> None:
    assert 401 == served.fetch("/v1/search", Cookie="")[0]
    wrong = served.fetch("/ui/login", "POST", b'{"token": "no"}', **JSON, Cookie="")
    assert 401 == wrong[0]
    right = json.dumps({"token": served.token}).encode()
    status, headers, _ = served.fetch("/ui/login", "POST", right, **JSON, Cookie="")
    cookie = headers["Set-Cookie"]
    assert 200 == status
    assert all(word in cookie for word in ("HttpOnly", "SameSite=Strict", "Max-Age=43200"))

    code = json.loads(served.fetch("/ui/links", "POST", b"{}", **JSON)[2])["code"]
    link = f"/ui/login?code={code}&to=runs/Flow_/v1.2-rc"
    status, headers, _ = served.fetch(link, Cookie="")
    assert (303, "/ui/runs/Flow_/v1.2-rc") == (status, headers["Location"])
    cookie = headers["Set-Cookie"].partition(";")[0]
    assert 200 == served.fetch("/v1/search", Cookie=cookie)[0]
    assert 410 == served.fetch(link, Cookie="")[0], "it was used"
    assert 401 == served.fetch("/ui/links", "POST", b"{}", **JSON, Cookie="")[0]
    assert 410 == served.fetch("/ui/login?code=%C3%A9", Cookie="")[0]
    code = json.loads(served.fetch("/ui/links", "POST", b"{}", **JSON)[2])["code"]
    away = served.fetch(f"/ui/login?code={code}&to=//evil.example", Cookie="")
    assert "/ui/" == away[1]["Location"]
    code = json.loads(served.fetch("/ui/links", "POST", b"{}", **JSON)[2])["code"]
    above = served.fetch(f"/ui/login?code={code}&to=runs/../../v1/runs", Cookie="")
    assert "/ui/" == above[1]["Location"]


def test_a_cookie_alone_changes_nothing_since_any_site_can_have_it_sent(served: Served) -> None:
    cookie = f"aflow_token_{served.address[1]}={served.token}"
    path = f"/v1/runs/Flow_/{served.runs[0]}/tags"
    asked: Any = {"method": "PATCH", "body": b'{"add": ["by-cookie"]}', "Cookie": cookie}
    assert 401 == served.fetch(path, **asked, **JSON)[0]
    assert 200 == served.fetch(path, **asked, **JSON, X_Aflow_Request="1")[0]


def test_a_page_of_another_site_logs_nobody_out(served: Served) -> None:
    ours: Any = {"X_Aflow_Request": "1"}
    for status, headers in ((403, {}), (200, ours)):
        answer = served.fetch("/ui/logout", "POST", b"", **headers, Cookie="")
        assert (status, status == 200) == (answer[0], "Set-Cookie" in answer[1])


def test_the_cookies_of_two_servers_of_one_machine_do_not_replace_each_other(
    served: Served,
) -> None:
    port = served.address[1]
    link = json.loads(served.fetch("/ui/links", "POST", b"{}", **JSON)[2])["code"]
    headers = served.fetch(f"/ui/login?code={link}", Cookie="")[1]
    name = headers["Set-Cookie"].partition("=")[0]
    assert f"aflow_token_{port}" == name
    both = f"aflow_token_{port + 1}=of-another-server; {name}={served.token}"
    assert 200 == served.fetch("/v1/search", Cookie=both)[0]
    assert 401 == served.fetch("/v1/search", Cookie=f"aflow_token_{port + 1}={served.token}")[0]
    # Behind a proxy the browser knows no port.
    behind = served.fetch("/v1/search", Host="runs.example", Cookie=f"aflow_token={served.token}")
    assert 200 == behind[0]


def test_answers_say_what_the_token_of_the_request_allows(served: Served) -> None:
    asked = json.dumps({"name": "looks", "scope": "read"}).encode()
    token = served.ask("POST", "/v1/tokens", asked)[1]["token"]
    bearer = f"Bearer {token}"
    status, headers, body = served.fetch("/v1/server", Cookie="", Authorization=bearer)
    assert (200, "read") == (status, headers["X-Aflow-Scope"])
    assert {"name": "looks", "scope": "read", "expires_at": None} == json.loads(body)["caller"]
    status, headers, body = served.fetch("/v1/server")
    assert (200, "write") == (status, headers["X-Aflow-Scope"])
    assert "write" == json.loads(body)["caller"]["scope"]
    assert 200 == served.ask("DELETE", "/v1/tokens/looks")[0]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/tokens", {"name": "short", "second": 60}),
        ("POST", "/v1/gc", {"older_then": 60}),
        ("POST", "/v1/queue/release", {"ids": ["one"], "id": "two"}),
        ("PATCH", "/v1/runs/Flow_/{run}/tags", {"added": ["a"]}),
        ("POST", "/v1/runs/Flow_/{run}/resume", {"from": "join"}),
        ("POST", "/v1/runs/Flow_/{run}/rerun", {"package": "0" * 64}),
    ],
)
def test_a_field_that_no_body_has_is_refused_instead_of_left_out(
    served: Served, method: str, path: str, body: dict[str, Any]
) -> None:
    where = path.format(run=served.runs[0])
    status, reported = served.ask(method, where, json.dumps(body).encode())
    assert 400 == status
    assert "There is no field" in reported["error"]


def test_a_run_is_resumed_or_run_again_with_its_own_code_and_parameters(served: Served) -> None:
    _, second, failed = served.runs
    status, reported = served.ask("POST", f"/v1/runs/Flow_/{failed}/resume", b"{}")
    assert 201 == status, reported
    assert "failed" == served.get(f"/v1/runs/{reported['run']}?wait=60")["state"], (
        "one is not allowed"
    )
    overview = served.get(f"/v1/runs/{reported['run']}/overview")
    assert failed == overview["origin_run"]

    changed = b'{"step": "square", "parameters": {"fail": false}}'
    status, reported = served.ask("POST", f"/v1/runs/Flow_/{failed}/resume", changed)
    assert 201 == status, reported
    assert "succeeded" == served.get(f"/v1/runs/{reported['run']}?wait=60")["state"]
    overview = served.get(f"/v1/runs/{reported['run']}/overview")
    assert "False" == {e["name"]: e["value"] for e in overview["parameters"]}["fail"]
    assert [1, 0] == [each["reused"] for each in overview["steps"][:2]]

    status, reported = served.ask("POST", f"/v1/runs/Flow_/{second}/rerun", b'{"tags": ["again"]}')
    assert 201 == status, reported
    done = served.get(f"/v1/runs/{reported['run']}?wait=60")
    assert ("succeeded", ["again"]) == (done["state"], done["tags"])
    parameters = served.get(f"/v1/runs/{reported['run']}/overview")["parameters"]
    values = {each["name"]: each["value"] for each in parameters}
    assert {"n": "4", "fail": "False"} == values, "those of the run that is run again"

    changed = b'{"parameters": {"n": 2}, "max_workers": 1}'
    status, reported = served.ask("POST", f"/v1/runs/Flow_/{second}/rerun", changed)
    assert 201 == status, reported
    assert "succeeded" == served.get(f"/v1/runs/{reported['run']}?wait=60")["state"]
    first, last = served.get(f"/v1/runs/{reported['run']}/task-page?step=square")["tasks"]
    assert first["created_at"] == last["created_at"], "both were ready at the same time"
    assert first["finished_at"] <= last["started_at"], "and the last one has waited for a slot"
    for path, body in (
        (f"{failed}/resume", b'{"step": 7}'), (f"{failed}/resume", b'{"step": "a/b"}'),
        (f"{failed}/resume", b'{"colour": 7}'), (f"{failed}/resume", b'{"parameters": 7}'),
        (f"{failed}/resume", b'{"parameters": {"origin-run-id": "1"}}'),
        (f"{failed}/rerun", b'{"parameters": []}'), (f"{failed}/rerun", b'{"colour": "red"}'),
    ):  # fmt: skip
        assert 400 == served.ask("POST", f"/v1/runs/Flow_/{path}", body)[0]
    assert 404 == served.ask("POST", "/v1/runs/Flow_/7/resume", b"{}")[0]
    assert 422 == served.ask("POST", f"/v1/runs/Flow_/{failed}/resume", b'{"step": "nowhere"}')[0]


def test_a_dry_run_checks_parameters_and_counts_tasks_and_begins_nothing(served: Served) -> None:
    def foreseen(path: str, **fields: Any) -> tuple[int, Any]:
        return served.ask("POST", path, json.dumps(fields).encode())

    code = served.get("/v1/flows/Flow_")["code"]
    before = served.get("/v1/search")["runs"]
    named = {"package": code["key"], "script": code["script"], "flow": "Flow_"}
    status, found = foreseen("/v1/dry-run", **named, parameters={"n": "7"})
    assert 200 == status, found
    assert {"n": ("int", "7"), "fail": ("bool", "False")} == {
        each["name"]: (each["type"], each["value"]) for each in found["parameters"]
    }
    assert (1, 0, ["square", "join", "end"]) == (found["run"], found["reuse"], found["after"])
    status, found = foreseen("/v1/dry-run", **named, parameters={"n": "seven"})
    assert (422, True) == (status, "'seven'" in found["error"]), found
    assert 422 == foreseen("/v1/dry-run", **named, parameters={"colour": "red"})[0]
    assert 400 == foreseen("/v1/dry-run", **named, parameters={"aflow-forecast": "/tmp/x"})[0]

    status, found = foreseen(f"/v1/runs/Flow_/{served.runs[2]}/resume/dry-run")
    steps = {each["step"]: (each["run"], each["reuse"]) for each in found["steps"]}
    assert {"start": (0, 1), "square": (1, 2)} == steps, "the item that failed runs again"
    status, found = foreseen(f"/v1/runs/Flow_/{served.runs[1]}/rerun/dry-run", parameters={"n": 5})
    assert (200, "5") == (status, {e["name"]: e["value"] for e in found["parameters"]}["n"])
    assert before == served.get("/v1/search")["runs"]


def test_parameters_say_their_defaults_and_runs_are_found_by_artifacts(served: Served) -> None:
    _, second, failed = served.runs
    run = served.get(f"/v1/search?filter=id:{second}")["runs"][0]
    assert {"n": ("4", "3"), "fail": ("False", "False")} == {
        each["name"]: (each["value"], each["default"]) for each in run["parameters"]
    }
    compared = served.get(f"/v1/compare?runs=Flow_/{second},Flow_/{failed}")["rows"]
    assert [["3", "3"]] == [r["defaults"] for r in compared if r["name"] == "n"]

    def names(words: str) -> set[str]:
        return {each["run"] for each in served.get(f"/v1/search?filter={words}")["runs"]}

    assert second in names("artifact:total")
    assert failed not in names("artifact:total"), "it has not come that far"
    assert failed in names("artifact:numbers")
    assert set() == names("artifact:nothing")

    def completed(prefix: str) -> list[str]:
        return [each["text"] for each in served.get(f"/v1/suggest?prefix={prefix}")["found"]]

    assert ["artifact:total"] == completed("tot")
    assert ["artifact:numbers"] == completed("artifact:nu")
    assert [f"Flow_/{second}/join/total"] == completed(f"Flow_/{second}/join/t")


def test_what_is_done_with_all_runs_of_a_filter_is_counted_first(served: Served) -> None:
    def many(action: str, words: str, **fields: Any) -> tuple[int, Any]:
        body = {"action": action, "filter": words, **fields}
        return served.ask("POST", "/v1/batch", json.dumps(body).encode())

    with closing(SqliteMetadata(served.path / ".aflow" / "metadata.db")) as metadata:
        for number in range(450):
            of_many = a_run(flow="Many", run=str(number), state=RunState.SUCCEEDED)
            metadata.create_run(of_many, b"")
    plan = many("delete", "flow:Many", dry_run=True)[1]
    assert (450, None, 20) == (plan["count"], plan["cursor"], len(plan["runs"]))
    assert 450 == many("cancel", "flow:Many", dry_run=True)[1]["refused"][0]["count"]
    assert [] == many("tag", "flow:Many", tags=["x"], until=1)[1]["runs"], "they began later"

    done, cursor, requests = 0, None, 0
    while requests == 0 or cursor is not None:
        until = {"until": plan["until"], "cursor": cursor}
        status, changed = many("tag", "flow:Many", tags=["chosen"], **until)
        assert 200 == status, changed
        done, cursor, requests = done + changed["count"], changed["cursor"], requests + 1
    assert (450, 3) <= (done, requests)
    assert 450 == many("untag", "tag:chosen", tags=["chosen"], dry_run=True)[1]["count"]
    cursor = None
    while True:
        changed = many("delete", "flow:Many", until=plan["until"], cursor=cursor)[1]
        if (cursor := changed["cursor"]) is None:
            break
    assert [] == served.get("/v1/search?filter=flow:Many")["runs"]
    for wrong in (
        many("sell", ""), many("tag", ""), many("cancel", "", tags=["a"]),
        many("cancel", "colour:red"), many("cancel", "", cursor="x"), many("cancel", "", until="x"),
        many("cancel", "", colour=1),
    ):  # fmt: skip
        assert 400 == wrong[0]
    status, resumed = many("resume", f"id:{served.runs[0]}")
    assert (0, "succeeded: there is nothing to resume") == (
        resumed["count"], resumed["refused"][0]["reason"]
    )  # fmt: skip


def test_a_queue_is_shown_and_buried_messages_are_released_or_deleted(
    tmp_path: Any, repository: Any
) -> None:
    daemon = Served(tmp_path)
    daemon.write(FLOW)
    url = f"sqlite:///{tmp_path}/queue.db"
    bury(url, ["one", "two"])
    daemon.begin("--queue", url, PYTHONPATH=str(repository))
    reported = daemon.get("/v1/queue")
    assert [("default", 2)] == [(each["pool"], each["buried"]) for each in reported["pools"]]
    assert ["one", "two"] == sorted(each["id"] for each in reported["buried"])
    assert 1 == daemon.ask("POST", "/v1/queue/release", b'{"ids": ["one"]}')[1]["count"]
    assert 200 == daemon.ask("POST", "/v1/queue/delete", b'{"ids": ["two"]}')[0]
    with closing(SqliteMetadata(daemon.path / ".aflow" / "metadata.db")) as metadata:
        for name, ended in (("a-1", 30), ("a-2", 12)):
            pools = {DEFAULT_POOL: ended}
            metadata.beat_worker(
                WorkerRecord(
                    name, "host", 7, url, (DEFAULT_POOL,), 2, "1", "3.12", 1.0, {}, ended=pools
                ),
                60.0,
            )
    (pool,) = daemon.get("/v1/queue")["pools"]
    assert (1, 0, 42) == (pool["ready"], pool["buried"], pool["rate"])
    waiting = daemon.get("/v1/queue/messages?pool=default")
    assert (1, ["one"]) == (waiting["ready"], [each["id"] for each in waiting["messages"]])
    assert 400 == daemon.ask("GET", "/v1/queue/messages?pool=..%2fx")[0]
    for wrong in (b"{}", b'{"ids": []}', b'{"ids": [7]}'):
        assert 400 == daemon.ask("POST", "/v1/queue/delete", wrong)[0]
    assert 0 == daemon.stop()


def bury(url: str, ids: list[str]) -> None:
    """Put messages that become dead letters, since no delivery is acknowledged."""

    async def put() -> None:
        queue = open_queue(url)
        topic = tasks_topic(DEFAULT_POOL)
        await queue.put(topic, [Message(each, b"no message of ours") for each in ids])
        while (await queue.depth(topic)).buried < len(ids):
            await queue.release(await queue.lease([topic], 10, 60.0))
        await queue.close()

    asyncio.run(put())


def test_jobs_are_shown_by_queue_with_what_their_system_says(served: Served) -> None:
    assert {"queues": [], "complete": True} == served.get("/v1/jobs")
    with closing(SqliteMetadata(served.path / ".aflow" / "metadata.db")) as metadata:
        run = metadata.create_run(a_run("Jobs", "jobs"), b"", "c/1", 3600.0)
        away = AttemptRecord(1, 0, AttemptState.QUEUED, handle="77@train:0")
        attempts = [
            away,
            away._replace(task=2, handle="77@train:1"),
            away._replace(task=3, state=AttemptState.RUNNING, started_at=50.0, host="node-1",
                          handle="77@train:2"),
            away._replace(task=4, handle="name=next"),
        ]  # fmt: skip
        tasks = [TaskRecord(number, "train", 10.0) for number in range(1, 5)]
        metadata.commit(run.key, 0, Batch(tasks=tasks, attempts=attempts))
        why = "Resources <img src=x>\n" + "x" * 1000
        waits = WaitingJob("77@train", "train", 2, 20.0, why)
        at_slurm = JobsOfRun("Jobs", "jobs", "Slurm", {"train": "gpu"}, (waits,))
        JobBoard(metadata).publish(at_slurm)
        metadata.put_jobs("Jobs/gone Slurm", at_slurm.encode())
        not_a_time = at_slurm._replace(waiting=(waits._replace(since=float("nan")),))
        metadata.put_jobs("Jobs/jobs Other", not_a_time.encode())
        endless: Any = math.inf
        damaged = at_slurm._replace(waiting=(waits._replace(size=endless),))
        metadata.put_jobs("Jobs/jobs Endless", damaged.encode())
        metadata.put_jobs("damaged", b"none")

        (queue,) = served.get("/v1/jobs")["queues"]
        assert ("Slurm", "gpu", 3, 1) == tuple(
            queue[n] for n in ("system", "queue", "waiting", "running")
        )
        (step,) = queue["steps"]
        assert ("Jobs/jobs", "train", 3, 1, 20.0) == tuple(
            step[name] for name in ("run", "step", "waiting", "running", "since")
        )
        assert step["reason"].startswith("Resources <img src=x> x")
        assert 300 == len(step["reason"])
        path = "/v1/runs/Jobs/jobs/jobs"
        first, _, begun, last = served.get(path)["jobs"]
        assert ("waiting", "77@train:0", 20.0) == (first["state"], first["job"], first["since"])
        assert ("running", "node-1", 50.0, "") == (
            begun["state"], begun["host"], begun["since"], begun["reason"]
        )  # fmt: skip
        assert ("submitting", "") == (last["state"], last["job"])
        page = served.get(f"{path}?step=train&after=1&limit=2")
        assert ([2, 3], 3) == ([each["task"] for each in page["jobs"]], page["next"])
        assert {"jobs": [], "next": None} == served.get(f"{path}?step=other")
        assert 404 == served.ask("GET", "/v1/runs/Jobs/none/jobs")[0]
        prune(metadata)
        assert [at_slurm.name] == [each.name for each in metadata.jobs()]
        metadata.commit(
            run.key, 1, Batch(run=RunUpdate(state=RunState.CANCELLED, finished_at=60.0))
        )
        assert [] == served.get("/v1/jobs")["queues"]
        metadata.delete_run(run.key)


def test_workers_that_have_registered_are_shown_and_drained(served: Served) -> None:
    daemon = served
    metadata = SqliteMetadata(daemon.path / ".aflow" / "metadata.db")
    waits = RunningTask("Flow_/1/end/9", 0, 201.0, False)
    running = (RunningTask("Flow_/1/square/3", 1, 200.0), waits)
    metadata.beat_worker(
        WorkerRecord(
            "host-7-ab", "host", 7, "redis://broker/0", ("gpu",), 2, "1.0", "3.12.1", 100.0,
            {"rack": "<b>r1</b>"}, running, done=5, failed=1,
        ),
        60.0,
    )  # fmt: skip
    metadata.beat_worker(
        WorkerRecord("host-8-cd", "host", 8, "q", (), 1, "1.0", "3.12.1", 100.0, {}), 20.0
    )
    reported = daemon.get("/v1/workers")
    busy, silent = reported["workers"]
    assert (5.0, 15.0, 60.0) == (
        reported["heartbeat"],
        reported["silent_after"],
        reported["expires_after"],
    )
    assert ("host-7-ab", "busy", {"rack": "<b>r1</b>"}) == (
        busy["name"], busy["state"], busy["labels"]
    )  # fmt: skip
    assert [("Flow_/1/square/3", True), ("Flow_/1/end/9", False)] == [
        (each["task"], each["begun"]) for each in busy["running"]
    ]
    assert "silent" == silent["state"]

    status, drained = daemon.ask("POST", "/v1/workers/host-7-ab/drain", b"")
    assert (202, "draining") == (status, drained["state"])
    assert drained["drain"].endswith("has asked for it over HTTP.")
    assert "draining" == daemon.get("/v1/workers/host-7-ab")["state"]
    for name in ("host-7", "nobody", "%2e%2e"):
        assert 404 == daemon.ask("POST", f"/v1/workers/{name}/drain", b"")[0]
    metadata.close()


def test_the_server_says_what_doctor_finds_and_what_gc_would_delete(served: Served) -> None:
    found = served.ask("POST", "/v1/doctor")[1]["findings"]
    assert {"ok", "warn"} >= {each["state"] for each in found}
    assert "can be read" in next(each for each in found if each["name"] == "metadata")["message"]

    def plan(**fields: Any) -> Any:
        return served.ask("POST", "/v1/gc", json.dumps(fields).encode())

    assert (0, []) == (plan()[1]["count"], plan(older_than=3600)[1]["runs"])
    of_all = plan(older_than=0)[1]
    assert {f"Flow_/{run}" for run in served.runs} <= set(of_all["runs"])
    assert plan(older_than=0, keep=1)[1]["count"] < of_all["count"] == len(of_all["runs"])
    failed = plan(failed=True)[1]["runs"]
    assert {"failed"} == {served.get(f"/v1/runs/{run}")["state"] for run in failed}
    stored = served.ask("POST", "/v1/storage")[1]
    assert [True, "Flow_"] == [stored["complete"], stored["flows"][0]["flow"]]
    assert stored["flows"][0]["size"] > 0
    for wrong in ({"older_than": -1}, {"keep": "1"}, {"failed": 1}, {"flow": "../x"}):
        assert 400 == plan(**wrong)[0], wrong
    assert 200 == served.ask("GET", f"/v1/runs/Flow_/{served.runs[0]}")[0], "nothing was deleted"


def test_a_worker_without_metadata_is_registered_and_drained_by_the_server_of_its_queue(
    folder: Daemon, tmp_path: Path
) -> None:
    key = {"AFLOW_SIGNING_KEY": "0123456789abcdef" * 4}
    url = f"sqlite:///{tmp_path}/queue.db"
    folder.begin("--queue", url, **key)
    elsewhere = Daemon(tmp_path / "elsewhere")
    elsewhere.path.mkdir()
    worker = elsewhere.start_aflow(
        "worker", "--queue", url, "--slots", "3", "--label", "rack=r1", **key
    )

    def listed(number: int) -> list[Any]:
        for _ in range(1200):
            found = folder.ask("GET", "/v1/workers")[1]["workers"]
            if len(found) == number:
                return list(found)
            select_nothing(0.1)
        pytest.fail(f"the workers are {found}")

    (known,) = listed(1)
    assert (worker.pid, 3, {"rack": "r1"}, "idle") == tuple(
        known[each] for each in ("pid", "slots", "labels", "state")
    )
    assert 202 == folder.ask("POST", f"/v1/workers/{known['name']}/drain", b"")[0]
    assert 0 == elsewhere.finish(worker).code
    assert not (elsewhere.path / ".aflow").exists()
    listed(0)
    assert 0 == folder.stop()


_DAMAGE = [
    ("attempts", "manifest", b"none", "What task start/1 has left cannot be read"),
    ("attempts", "log", b"none", "a part of the log is damaged"),
    ("tasks", "inputs", b"none", ""),
    ("journal", "events", b"none", "The journal of the run is damaged"),
    ("metadata", "value", "none", ""),
    ("runs", "settings", '{"storage": 7}', "The record of this run is damaged"),
    ("runs", "graph", "none", "The record of this run is damaged"),
    ("runs", "graph", '{"start": {"next": ["end"]}}', ""),
]


def test_what_is_damaged_or_missing_is_said_and_hides_nothing_else(served: Served) -> None:
    """This damages each kind of record in turn, then all objects: every route responds with an
    error or with data."""
    run, other = served.runs[1], served.runs[0]
    path = f"/v1/runs/Flow_/{run}"
    card = served.get(f"{path}/cards")["cards"][0]
    asked = [
        path, *(f"{path}/{each}" for each in (
            "tasks", "events", "logs", "overview", "columns", "trace.json", "task-page",
            "artifacts", "explain", "code", "log", "log?search=x", "log.txt", "tasks/1", "tasks/2",
            "tasks/1/artifacts/numbers", f"tasks/{card['task']}/cards/{card['name']}",
        )),
        "/v1/search", "/v1/search?filter=artifact:zz", "/v1/flows/Flow_", "/v1/suggest?prefix=re",
        f"/v1/compare?runs=Flow_/{other},Flow_/{run}",
    ]  # fmt: skip

    def answers() -> str:
        found = ""
        for each in asked:
            status, _, body = served.fetch(each)
            assert status in (200, 404, 422), (each, body)
            if status != 200:
                assert {"error"} == json.loads(body).keys(), each
            found += body.decode("utf-8", "replace")
        return found

    database = served.path / ".aflow" / "metadata.db"
    key = "(SELECT key FROM runs WHERE run = ?)"
    for table, column, value, said in _DAMAGE:
        of = "key" if table == "runs" else "run_key"
        with closing(sqlite3.connect(database)) as opened, opened:
            kept = opened.execute(f"SELECT * FROM {table} WHERE {of} = {key}", [run]).fetchall()
            odd = f"UPDATE {table} SET {column} = ? WHERE {of} = {key} AND {column} IS NOT NULL"
            opened.execute(odd, [value, run])
            opened.execute("UPDATE runs SET version = version + 1 WHERE run = ?", [run])
        try:
            assert said in answers(), (table, column)
        finally:
            with closing(sqlite3.connect(database)) as opened, opened:
                number = kept[0][0]
                opened.execute(f"DELETE FROM {table} WHERE {of} = ?", [number])
                signs = ", ".join("?" * len(kept[0]))
                opened.executemany(f"INSERT INTO {table} VALUES ({signs})", kept)
    objects = {
        each: each.read_bytes()
        for folder in ("blobs", "cards")
        for each in (served.path / ".aflow" / folder).rglob("*")
        if each.is_file()
    }
    try:
        for each in objects:
            each.chmod(0o644)
            each.write_bytes(b"none")
        reported = answers()
        assert f"The code of Flow_/{run} is damaged in the datastore." in reported
        assert f"The card {card['name']} of task {card['task']} is damaged." in reported
        for each in objects:
            each.unlink()
        assert f"The code of Flow_/{run} is not in the datastore any more." in answers()
    finally:
        for each, data in objects.items():
            each.write_bytes(data)
