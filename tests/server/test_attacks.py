"""The corpus of attacks.py on every route of the server: each request is rejected in one sentence,
nothing is executed or written outside the permitted folders, and the server stays healthy."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import ssl
import subprocess
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aflow.server.auth import is_page
from aflow.server.run_requests import fields_of
from tests.server import attacks
from tests.server.attacks import OPEN
from tests.server.conftest import FLOW, Daemon, make_certificate

pytestmark = pytest.mark.xdist_group("attacks")  # one worker: each has servers of its own

ALL = attacks.routes(Path("/nowhere"))
# Pages and their files hold no data, and need no token; tests/ui attacks what they show.
PAGES = [route for route in ALL if is_page(route.at("x"))]
ROUTES = [route for route in ALL if route not in PAGES]
GUARDED = [route for route in ROUTES if route.path not in OPEN]
REFUSED = (400, 401, 403, 404, 405, 408, 409, 413, 415, 422)
# Anonymous, and yet these do something that is no harm, or are refused by what they would do later.
ANSWERED = (200, 201, 202, 304, *REFUSED)


class Client:
    """A client with one persistent connection, since there are many requests."""

    def __init__(self, daemon: Guarded) -> None:
        self.every = daemon.kind.every
        self.address = daemon.url.partition("://")[2]
        self.scheme = daemon.url.partition("://")[0]
        self.connection = daemon.connection()

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Send a request, and return status, headers and body."""
        try:
            return self._ask(method, path, body, headers)
        except (http.client.HTTPException, ConnectionError):  # the last answer has ended it
            self.connection.close()
            return self._ask(method, path, body, headers)

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        self.connection.putrequest(
            method, path, skip_host="Host" in headers, skip_accept_encoding=True
        )
        for name, value in {"Content-Length": str(len(body or b"")), **headers}.items():
            self.connection.putheader(name.replace("_", "-"), value)
        self.connection.endheaders(body)
        answer = self.connection.getresponse()
        with answer:
            return answer.status, answer.headers, answer.read()


@contextlib.contextmanager
def connected(daemon: Guarded) -> Iterator[Client]:
    """A client of the server."""
    client = Client(daemon)
    yield client
    client.connection.close()


class Kind(NamedTuple):
    """What a server speaks, and on which event loop. `every` says that of the names and bodies that
    are tried on each route only one in so many is: all of them are tried on the first kind, since
    the routes and what is behind them are the same in all kinds."""

    scheme: str
    loop: str
    every: int = 1


KINDS = [
    Kind("http", "uvloop"),
    Kind("https", "asyncio", every=7),
    Kind("http", "asyncio", every=7),
    Kind("https", "uvloop", every=7),
]


class Guarded(Daemon):
    """A server with tokens: one of the settings, and those that were made. What it logs is read
    meanwhile: there is more than a pipe holds."""

    kind = KINDS[0]

    def begin(self, *args: str, **env: str) -> None:
        """Start it."""
        if self.kind.scheme == "https":
            make_certificate(self.path)
            args = ("--tls-cert", "cert.pem", "--tls-key", "key.pem", *args)
        if self.kind.loop == "asyncio":
            env = {**self.without_uvloop(), **env}
        super().begin(*args, **env)
        assert self.url.startswith(f"{self.kind.scheme}:")
        assert self.process.stderr is not None
        self.log: list[str] = []
        self.reading = threading.Thread(target=self.log.extend, args=(self.process.stderr,))
        self.reading.start()

    def stop(self) -> int:
        self.process.terminate()
        code = self.process.wait(60)
        self.reading.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return code

    def start_aflow(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """Start `aflow ARGS`, which trusts the certificate."""
        return super().start_aflow(*args, **{"SSL_CERT_FILE": str(self.path / "cert.pem"), **env})

    def make(self, *words: str) -> str:
        made = self.finish(self.start_aflow("token", "create", *words))
        assert 0 == made.code, made.err
        return made.out.strip()


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind.scheme} on {kind.loop}")
def served(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Guarded]:
    """A server for this machine alone, which asks for no token, that has a run."""
    daemon = Guarded(tmp_path_factory.mktemp("served"))
    daemon.kind = request.param
    daemon.write(FLOW)
    daemon.begin("--no-auth")
    assert 0 == daemon.submit("flow.py", "--wait").code
    yield daemon
    assert 200 == daemon.ask("GET", "/readyz")[0]
    assert 0 == daemon.stop()
    daemon.check()


KEY = "canary-of-the-settings"


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind.scheme} on {kind.loop}")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Guarded]:
    daemon = Guarded(tmp_path_factory.mktemp("guarded"))
    daemon.kind = request.param
    daemon.begin(AFLOW_SERVICE_AUTH_KEY=KEY)
    yield daemon
    assert 0 == daemon.stop()


@pytest.fixture
def client(served: Guarded) -> Iterator[Client]:
    with connected(served) as client:
        yield client


@pytest.fixture
def outside(guarded: Guarded) -> Iterator[Client]:
    with connected(guarded) as client:
        yield client


def refused_in_a_sentence(body: bytes) -> bool:
    """Return whether the response is JSON of the daemon or of the metadata service."""
    reported = json.loads(body)
    return reported == {} or bool(
        reported.get("error") or reported.get("message") or reported.get("detail")
    )


def names_for(client: Client) -> list[str]:
    """Return the malicious names to try on this kind of server."""
    return [*attacks.hostile_names()][:: client.every]


def text_of_runs(client: Client) -> bytes:
    return client.ask("GET", "/v1/runs?limit=1000")[2]


# ---------------------------------------------------------------- authentication


def test_each_route_wants_a_token_and_no_other_form_of_it(
    guarded: Guarded, outside: Client
) -> None:
    writes = guarded.make("ci")
    revoked = guarded.make("revoked")
    assert 0 == guarded.finish(guarded.start_aflow("token", "revoke", "revoked")).code
    client = outside
    forms = attacks.tokens_like(writes) | {"revoked": revoked}
    for route in GUARDED:
        for what, form in forms.items():
            for headers in ({"Authorization": f"Bearer {form}"}, {"x-api-key": form}):
                status, _, body = client.ask(route.method, route.at("x"), b"", **headers)
                assert 401 == status, (what, route, body)
        for scheme in ("Basic", "Token", "", "Bearer\t"):
            header = f"{scheme} {writes}"
            assert 401 == client.ask(route.method, route.at("x"), b"", Authorization=header)[0]
        assert 401 != client.ask(route.method, route.at("x"), b"", x_api_key=writes)[0], route


def test_a_token_that_reads_changes_nothing_by_any_route(guarded: Guarded, outside: Client) -> None:
    reads = {"Authorization": f"Bearer {guarded.make('dashboard', '--scope', 'read')}"}
    for route in GUARDED:
        status, _, _ = outside.ask(route.method, route.at("commit"), b"", **reads)
        assert (route.writes or route.path == "/auth/token") == (status == 403), route


def test_no_page_of_another_site_is_answered_by_any_route(client: Client) -> None:
    before = text_of_runs(client)
    for route in GUARDED:
        for what, headers in attacks.OF_OTHER_SITES.items():
            status, said, _ = client.ask(route.method, route.at("x"), b"{}", **headers)
            assert 403 == status, (what, route)
            assert not [name for name in said if name.lower().startswith("access-control-")]
    assert before == text_of_runs(client)
    own: Any = {"Origin": f"{client.scheme}://{client.address}", "Sec-Fetch-Site": "same-origin"}
    assert 200 == client.ask("GET", "/v1/runs", **own)[0]


def test_where_the_last_token_was_revoked_nobody_comes_in(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    daemon = Guarded(tmp_path_factory.mktemp("revoked"))
    token = daemon.make("ci")
    daemon.begin("--host", "0.0.0.0")
    daemon.url = daemon.url.replace("0.0.0.0", "127.0.0.1")
    bearer = f"Bearer {token}"
    assert 200 == daemon.ask("GET", "/v1/runs", Authorization=bearer)[0]

    assert 0 == daemon.finish(daemon.start_aflow("token", "revoke", "ci")).code

    assert [401, 401] == [
        daemon.ask("GET", "/v1/runs", None, **headers)[0]
        for headers in ({"Host": "localhost"}, {"Authorization": bearer})
    ]
    assert 0 == daemon.stop()


# ------------------------------------------------------------------ names, bodies, heads


def test_hostile_names_of_pages_lead_to_the_page_or_nowhere(client: Client) -> None:
    for route in PAGES:
        for name in names_for(client):
            if not route.writes:
                status, headers, body = client.ask("GET", route.at(name))
                assert status in (200, 302, *REFUSED, 410), (status, route, name)
                assert "Set-Cookie" not in headers
                assert b"root:" not in body
                assert len(name) < 6 or name.encode() not in body


@pytest.mark.slow
def test_hostile_names_are_refused_by_every_route(client: Client) -> None:
    names, before = names_for(client), text_of_runs(client)
    for route in ROUTES:
        for name in names:
            paths = [route.at(name)] if route.takes_names else [f"{route.path}/{name}"]
            for path in [*paths, f"{paths[0]}?flow={name}&limit={name}&step={name}&_cursor={name}"]:
                status, headers, body = client.ask(route.method, path, b"")
                assert status in REFUSED, (status, route, name)
                assert "Set-Cookie" not in headers
                assert refused_in_a_sentence(body), (route, name, body)
                assert b"root:" not in body
    assert before == text_of_runs(client)


@pytest.mark.parametrize("type_", ["application/json", "application/x-tar", "application/msgpack"])
def test_bodies_that_mean_nothing_do_nothing(client: Client, tmp_path: Path, type_: str) -> None:
    before = text_of_runs(client)
    bodies = attacks.bodies(tmp_path / "ran").items()
    for number, route in enumerate(route for route in ALL if route.writes):
        for what, body in islice(bodies, number % client.every, None, client.every):
            name = "create_run" if "{call}" in route.path else "x"
            status, _, reported = client.ask(route.method, route.at(name), body, Content_Type=type_)
            assert status in ANSWERED, (status, what, route, reported)
    assert [] == [*tmp_path.iterdir()]
    assert before == text_of_runs(client)
    assert (200, {"schedules": []}) == (200, json.loads(client.ask("GET", "/v1/schedules")[2]))


def test_bodies_that_are_compressed_or_too_large_are_refused(client: Client) -> None:
    for route in ROUTES:
        if route.writes and route.path.startswith(("/v1/packages", "/aflow", "/flows")):
            for encoding in ("gzip", "deflate", "br", "zstd", "identity, gzip"):
                headers = {"Content-Encoding": encoding, "Content-Type": "application/x-tar"}
                status, _, _ = client.ask(
                    route.method, route.at("create_run"), b"\x1f\x8b", **headers
                )
                assert status in (400, 415), (status, route)
    headers = {"Content-Type": "application/json", "Content-Length": str(3 << 20)}
    for method, path in (("POST", "/v1/runs"), ("PUT", "/v1/schedules/x")):
        assert 413 == Client.ask(client, method, path, b"", **headers)[0]
        client.connection.close()


@pytest.mark.parametrize("what", attacks.HEADS)
def test_heads_that_can_be_read_in_two_ways_end_the_connection(served: Daemon, what: str) -> None:
    with served.socket() as connection:
        with contextlib.suppress(
            ConnectionError, ssl.SSLError
        ):  # the server may close the connection before everything was sent
            connection.sendall(attacks.HEADS[what])
        said = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while part := connection.recv(1 << 16):
                said += part
    assert said.startswith(b"HTTP/1.") or not said
    assert set(re.findall(rb"^HTTP/1\.\d (\d+)", said, re.MULTILINE)) <= {b"400"}


def test_a_body_in_pieces_that_is_too_large_is_read_no_further(served: Daemon) -> None:
    head = b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with served.socket() as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                connection.sendall(piece)
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_requests_that_are_no_http_do_not_fill_the_log(folder: Daemon) -> None:
    folder.begin()
    answers = []
    for _ in range(30):
        with folder.socket() as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
            answers.append(connection.recv(12))
    folder.process.terminate()
    _, log = folder.process.communicate(timeout=60)
    assert [b"HTTP/1.0 400"] * 30 == answers
    assert (10, False) == (log.count("it is not HTTP"), "Traceback" in log), log


# ------------------------------------------------------------------ archives


@pytest.mark.parametrize("what", attacks.archives(Path("/nowhere")))
def test_an_archive_that_is_no_code_is_refused_and_not_kept(
    served: Daemon, tmp_path: Path, what: str
) -> None:
    kept = files_in(served.path)
    body = attacks.archives(tmp_path)[what]()

    status, reported = served.ask("POST", "/v1/packages", body, "application/x-tar")

    assert (400, ["error"]) == (status, list(reported))
    assert "code package" in reported["error"]
    assert kept == files_in(served.path)
    assert [] == [*tmp_path.iterdir()]


def files_in(folder: Path) -> set[str]:
    """Return all files except those of the database."""
    return {
        os.path.join(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if not name.startswith("metadata.db")
    }


# ------------------------------------------------------------------ what it costs


def test_schedules_cost_what_they_say_and_no_more(client: Client) -> None:
    order = {"package": "0" * 64, "script": "flow.py", "flow": "Flow_"}
    every_minute = {"cron": "* * * * ? *", "run": order}
    for fields in (
        {**every_minute, "since": 0},
        {**every_minute, "cron": "* " * 240 + "*"},
        {**every_minute, "cron": "0 0 31 2 ? *"},
        {**every_minute, "cron": "0 0 " + ",".join(["31W"] * 100) + " 2 ? *"},
        {**every_minute, "cron": "9" * 400 + " * * * ? *"},
        {**every_minute, "cron": "*/0 * * * ? *"},
        {**every_minute, "timezone": "../../etc/passwd"},
        {**every_minute, "timezone": "/etc/localtime"},
    ):
        body = json.dumps(fields).encode()
        headers = {"Content-Type": "application/json"}
        status, _, reported = client.ask("PUT", "/v1/schedules/costly", body, **headers)
        assert (400, ["error"]) == (status, list(json.loads(reported))), fields


def test_methods_that_somebody_thinks_of_are_counted_as_one(client: Client) -> None:
    for method in ("PROPFIND", "SEARCH", "MKCOL", "REPORT", "PURGE"):
        assert 405 == client.ask(method, "/v1/runs")[0]
    assert 400 == client.ask("METHOD1", "/v1/runs")[0]
    text = client.ask("GET", "/metrics")[2].decode()
    assert 'method="other"' in text
    assert "PROPFIND" not in text
    assert "METHOD1" not in text


def test_a_client_that_reads_nothing_costs_no_memory(served: Daemon) -> None:
    served.write(PRINTS, "prints.py")
    run = served.submit("prints.py", "--wait").out.split()[0]
    before = resident(served)
    ask = f"GET /v1/runs/{run}/logs HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        for _ in range(30):  # 8 MB each
            connection = served.socket()
            stack.enter_context(connection).sendall(ask)
            assert connection.recv(10).startswith(b"HTTP/1.1 2")
        for _ in range(50):  # it answers others meanwhile
            assert 200 == served.ask("GET", f"/v1/runs/{run}")[0]
    assert 60e6 > resident(served) - before


PRINTS = """
class Flow_(FlowSpec):
    @step
    def start(self):
        for _ in range(80):
            print("\\n".join(["x" * 1000] * 100))
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def resident(daemon: Daemon) -> float:
    """Return the peak memory of the server's process in bytes."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def test_there_are_not_too_many_streams(served: Daemon) -> None:
    served.write(WAITS, "waits.py")
    gate = served.path / "gate"
    os.mkfifo(gate)
    run = served.submit("waits.py", "--gate", str(gate)).out.strip()
    path = f"/v1/runs/{run}/events?follow=1"
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stream = served.connection()
            stack.enter_context(contextlib.closing(stream)).request("GET", path)
            assert 200 == stack.enter_context(stream.getresponse()).status

        status, reported = served.ask("GET", path)

        assert (503, {"error": "100 streams go on already."}) == (status, reported)
        assert 200 == served.ask("GET", f"/v1/runs/{run}")[0]
    gate.write_text("go on")
    assert "succeeded" == served.ask("GET", f"/v1/runs/{run}?wait=60")[1]["state"]


WAITS = """
class Flow_(FlowSpec):
    gate = Parameter("gate")

    @step
    def start(self):
        open(self.gate).read()
        self.next(self.end)

    @step
    def end(self):
        pass
"""


# ------------------------------------------------------------------ what is said of it


TELLS = """
class Flow_(FlowSpec):
    @step
    def start(self):
        print("the key of the server:", os.environ.get("AFLOW_SERVICE_AUTH_KEY"))
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_the_log_is_ours_and_holds_no_secret(tmp_path_factory: pytest.TempPathFactory) -> None:
    daemon = Guarded(tmp_path_factory.mktemp("logged"))
    daemon.write(TELLS)
    daemon.begin(AFLOW_SERVICE_AUTH_KEY=KEY)
    client = Client(daemon)
    odd = "%0d%0a2026-01-01%20INFO%20all%20is%20well%1b[2J%1b]52;c;aGk=%07%e2%80%ae%c2%9b31m%7f"
    for number in range(20):
        assert 401 == client.ask("GET", f"/v1/runs/{odd}/{number}", Authorization="Bearer wrong")[0]
    reported = b""
    for path in ("/metrics", "/openapi.json", "/v1/runs", "/v1/schedules", "/version", "/healthz"):
        reported += client.ask("GET", path, x_api_key=KEY)[2]
    client.connection.close()
    submitted = daemon.submit("flow.py", "--wait", AFLOW_SERVICE_AUTH_KEY=KEY)
    assert 0 == submitted.code, submitted.err

    assert 0 == daemon.stop()

    log = "".join(daemon.log)
    assert 20 == log.count("is refused: 401")
    assert all(re.match(r"\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ |    ", line) for line in daemon.log), log
    assert [] == [each for each in log if not each.isprintable() and each != "\n"]
    assert "the key of the server: None" in submitted.out
    for secret in (KEY, "wrong"):
        assert secret not in log
    assert KEY.encode() not in reported
    for file in files_in(daemon.path):
        assert KEY.encode() not in Path(file).read_bytes()


def test_names_that_come_twice_and_numbers_that_are_none_are_no_json() -> None:
    from aflow.errors import InvalidInput

    for body in (
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
    ):
        with pytest.raises(InvalidInput, match="not valid JSON"):
            fields_of(body)
    assert {"a": [1.5, "x"]} == fields_of(b'{"a": [1.5, "x"]}')


def test_a_folder_for_code_that_others_could_write_to_is_not_used(folder: Daemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    code = folder.path / ".aflow" / "server"
    code.mkdir(parents=True)
    os.chown(code, 12345, 12345)
    refused = folder.finish(folder.start_aflow("server", "--port", "0"))
    assert (2, True) == (refused.code, "belongs to another user" in refused.err)
    code.rmdir()
    code.symlink_to(folder.path)
    refused = folder.finish(folder.start_aflow("server", "--port", "0"))
    assert (2, True) == (refused.code, "is a link" in refused.err)

    code.unlink()
    folder.begin()

    assert 0o700 == code.stat().st_mode & 0o777
    assert 0 == folder.stop()


def test_the_document_tells_of_every_route_but_those_for_machines_of_ours(served: Daemon) -> None:
    paths = served.ask("GET", "/openapi.json")[1]["paths"]
    said = {f"{method.upper()} {path}" for path, each in paths.items() for method in each}
    assert {
        "POST /aflow/v1/metadata/{call}", "POST /ui/links",
    } == {f"{route.method} {route.path}" for route in ROUTES} - said  # fmt: skip
