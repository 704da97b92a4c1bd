"""Tokens that are made, shown once, and end."""

from __future__ import annotations

import sqlite3

from aflow.metadata.sqlite import SqliteMetadata
from aflow.tokens import Token, create, known, revoke, tokens
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
        (("create", "ci"), 2, "There is a token 'ci' already"),
        (("create", "x", "--expires", "soon"), 2, "write 30m, 12h, 90d or 4w"),
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


def test_a_token_that_reads_does_not_write() -> None:
    reads = Token("x", "read", 0.0, None, "")
    assert [True, False] == [reads.allows(writing, 1e12) for writing in (False, True)]
