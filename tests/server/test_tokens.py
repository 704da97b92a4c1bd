"""Tokens: created, shown once, expired, revoked."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from aflow.errors import InvalidSetting, MetadataUnavailable
from aflow.metadata.sqlite import SqliteMetadata
from aflow.metadata.tokens import Token, create, known, local_token, revoke, tokens
from tests.flows.conftest import Ran
from tests.server.conftest import Daemon

RUNS = "/v1/runs"


def token(daemon: Daemon, *words: str) -> Ran:
    return daemon.finish(daemon.start_aflow("token", *words))


def test_a_server_asks_for_the_tokens_that_were_made(folder: Daemon) -> None:
    writes = token(folder, "create", "ci", "--expires", "90d").out.strip()
    reads = token(folder, "create", "dashboard", "--scope", "read").out.strip()
    folder.begin()

    def get(secret: str) -> int:
        return folder.ask("GET", RUNS, Authorization=f"Bearer {secret}")[0]

    assert [401, 401, 200, 200] == [get(""), get(writes[:-1]), get(reads), get(writes)]
    wait = ("flow.py", "--wait")
    assert 1 == (refused := folder.submit(*wait, AFLOW_SERVICE_AUTH_KEY=reads)).code
    assert "does not allow this" in refused.err
    assert 0 == folder.submit(*wait, AFLOW_SERVICE_AUTH_KEY=writes).code
    assert 0 == folder.call("runs", AFLOW_SERVICE_AUTH_KEY=reads).code
    assert "ci         write" in (listed := token(folder, "list").out)
    assert writes not in listed
    assert 0 == token(folder, "revoke", "ci").code
    assert [401, 200] == [get(writes), get(reads)]
    assert 0 == folder.stop()


def test_the_store_holds_no_token(folder: Daemon) -> None:
    secret = token(folder, "create", "ci").out.strip()

    with sqlite3.connect(folder.path / ".aflow" / "metadata.db") as database:
        dump = "\n".join(database.iterdump())
    database.close()

    assert "'token'" in dump
    assert secret not in dump
    assert secret.removeprefix("aflow_") not in dump


def test_what_cannot_be_is_said(folder: Daemon) -> None:
    token(folder, "create", "ci")
    for words, code, sentence in [
        (("create", "ci"), 2, "The token 'ci' already exists"),
        (("create", "x", "--expires", "soon"), 2, "'soon' is not a number and a unit"),
        (("create", "\n"), 2, "needs a name"),
        (("revoke", "nobody"), 1, "There is no token 'nobody'"),
        (("list", "--metadata", "http://127.0.0.1:1"), 2, "made where the metadata are"),
    ]:
        ran = token(folder, *words)
        assert (code, True) == (ran.code, sentence in ran.err), ran.err


def test_a_token_ends_at_its_time() -> None:
    store = SqliteMetadata(":memory:")
    secret = create(store, "ci", "write", now=100.0, seconds=50.0)
    kept = known(store, secret)

    assert kept is not None
    assert [True, True, False] == [kept.allows(True, now) for now in (100.0, 149.9, 150.0)]
    assert [kept] == tokens(store)
    revoke(store, "ci")
    assert None is known(store, secret)


def test_a_token_whose_document_is_damaged_is_revoked_by_the_name_that_the_error_has() -> None:
    store = SqliteMetadata(":memory:")
    create(store, "ci", "read", now=100.0)
    store.put_document("token", "ab12", b"{}")

    with pytest.raises(MetadataUnavailable, match="The token ab12 is damaged: revoke it"):
        tokens(store)
    revoke(store, "ab12")
    assert ["ci"] == [each.name for each in tokens(store)]


def test_a_token_that_reads_does_not_write() -> None:
    reads = Token("x", "read", 0.0, None, "")
    assert [True, False] == [reads.allows(writing, 1e12) for writing in (False, True)]


# ------------------------------------------------------------------ the token of this user


def test_a_server_makes_a_token_that_only_its_user_can_read(folder: Daemon) -> None:
    folder.begin()
    file = folder.path / "home" / "server-token"

    assert (0o600, 0o700) == (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777)
    assert [401, 200] == [
        folder.ask("GET", RUNS, Authorization=f"Bearer {each}")[0] for each in ("", folder.token)
    ]
    assert 0 == folder.call("runs").code  # commands of the user send it by themselves
    made = folder.token
    assert 0 == folder.stop()
    folder.begin()
    assert made == folder.token
    assert 0 == folder.stop()


@pytest.mark.parametrize("spoil", ["open to others", "a link", "no token"])
def test_a_token_file_that_others_may_have_made_is_not_used(tmp_path: Path, spoil: str) -> None:
    token = local_token(tmp_path)
    assert token == local_token(tmp_path)
    file = tmp_path / "server-token"
    if spoil == "open to others":
        file.chmod(0o644)
    elif spoil == "a link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        file.write_text("aflow_short")

    with pytest.raises(InvalidSetting, match="server-token"):
        local_token(tmp_path)


def test_strangers_are_answered_on_no_network(folder: Daemon) -> None:
    for words in (
        ("server", "--host", "0.0.0.0", "--port", "0"),
        ("server", "--host", "0.0.0.0", "--port", "0", "--no-auth"),
        ("metadata-service", "--host", "0.0.0.0", "--port", "0"),
        ("metadata-service", "--host", "::", "--port", "0"),
    ):
        refused = folder.finish(folder.start_aflow(*words))
        assert (2, True) == (refused.code, "aflow token create NAME" in refused.err), refused.err
    both = folder.start_aflow("server", "--no-auth", "--port", "0", AFLOW_SERVICE_AUTH_KEY="x" * 20)
    assert "leave one out" in folder.finish(both).err
    short = folder.start_aflow(
        "metadata-service", "--host", "0.0.0.0", "--port", "0", AFLOW_SERVICE_AUTH_KEY="x" * 7
    )
    refused = folder.finish(short)
    assert (2, True) == (refused.code, "could guess the key" in refused.err), refused.err


def test_a_command_follows_no_redirect_with_its_token(folder: Daemon) -> None:
    asked: list[tuple[str, str | None]] = []

    class Redirects(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(307)
            self.send_header("Location", f"http://localhost:{server.server_port}/stolen")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Redirects) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        key = {"AFLOW_SERVICE_AUTH_KEY": "secret-of-server"}
        ran = folder.finish(folder.start_aflow("schedule", "list", "--server", url, **key))
        server.shutdown()
        thread.join()

    assert (1, True) == (ran.code, "redirects to" in ran.err), ran.err
    assert [("/v1/schedules", "Bearer secret-of-server")] == asked


def test_a_stream_ends_when_its_token_is_revoked(folder: Daemon) -> None:
    folder.write(TICKS)
    folder.begin()
    secret = token(folder, "create", "reader", "--scope", "read").out.strip()
    run = folder.submit("flow.py").out.strip()
    connection = folder.connection()
    path = f"/v1/runs/{run}/logs?follow=1"
    connection.request("GET", path, headers={"Authorization": f"Bearer {secret}"})
    answer = connection.getresponse()
    assert b"tick" in b"".join(answer.readline() for _ in range(3))

    assert 0 == token(folder, "revoke", "reader").code

    with suppress(HTTPException, ConnectionError):  # it is cut off, before the run has ended
        while line := answer.readline():
            assert b"event: end" not in line
    connection.close()
    assert 401 == folder.ask("GET", path, Authorization=f"Bearer {secret}")[0]
    assert 0 == folder.call("cancel", run).code
    assert 0 == folder.stop()


TICKS = """
class Flow_(FlowSpec):
    @step
    def start(self):
        while True:
            print("tick", flush=True)
            time.sleep(0.1)
        self.next(self.end)

    @step
    def end(self):
        pass
"""
