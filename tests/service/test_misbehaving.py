"""A service that returns 500 for a while, garbage or truncated responses, or loses responses after
committing: a run continues, and nothing is lost or written twice."""

from __future__ import annotations

import http.client
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgpack
import pytest

from aflow._core.clock import SystemClock
from aflow.errors import InvalidMessage
from aflow.metadata import wire
from aflow.metadata.base import Batch
from aflow.metadata.http import ServiceMetadata
from tests.contracts.metadata_stores import a_run, succeeded, tasks_of
from tests.support.service import InThread

AWAY = 2.0  # seconds of nothing but 500
FLOW = """
from aflow import FlowSpec, step

class Wide(FlowSpec):
    @step
    def start(self):
        self.xs = list(range(30))
        self.next(self.body, foreach="xs")

    @step
    def body(self):
        self.y = self.input * 2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(each.y for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("total", self.total)

if __name__ == "__main__":
    Wide()
"""
Manner = Callable[["_Handler", bytes], None]


class Misbehaving(ThreadingHTTPServer):
    """Stands before a service, and answers each request in the manner that `next_manner` says."""

    daemon_threads = True

    def __init__(self, service: InThread) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port = service.port
        self.next_manner: Callable[[], Manner] = lambda: well
        self.manners: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, address: Any) -> None:
        """A client that goes away because it is answered like this is none of our concern."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Misbehaving

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        manner = self.server.next_manner()
        self.server.manners.append(manner.__name__)
        manner(self, body)

    def asked(self, body: bytes) -> tuple[int, bytes]:
        """Return the response of the service."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=100)
        try:
            connection.request("POST", self.path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def respond(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Tests read no log."""


def well(handler: _Handler, body: bytes) -> None:
    handler.respond(*handler.asked(body))


def refuses(handler: _Handler, body: bytes) -> None:
    handler.respond(500, b"Internal Server Error")


def hangs_up(handler: _Handler, body: bytes) -> None:
    handler.close_connection = True


def does_not_say_so(handler: _Handler, body: bytes) -> None:
    handler.asked(body)
    handler.respond(502, b"Bad Gateway")


def says_half_of_it(handler: _Handler, body: bytes) -> None:
    status, answer = handler.asked(body)
    handler.respond(status, answer[: len(answer) // 2], len(answer))
    handler.close_connection = True


def talks_nonsense(handler: _Handler, body: bytes) -> None:
    handler.asked(body)
    handler.respond(200, b"<html>Please log in</html>")


BADLY = [refuses, hangs_up, does_not_say_so, says_half_of_it, talks_nonsense]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Misbehaving]:
    behind = InThread(f"sqlite:///{tmp_path}/service/metadata.db")
    before = Misbehaving(behind)
    yield before
    before.stop()
    behind.stop()


@pytest.mark.parametrize("badly", BADLY)
def test_a_write_is_done_once_however_it_is_answered(service: Misbehaving, badly: Manner) -> None:
    manners = itertools.cycle([badly, badly, well])
    service.next_manner = lambda: next(manners)
    store = ServiceMetadata(service.url, {}, SystemClock(), patience=60)
    run = store.create_run(a_run(), b"parameters")

    for version, events in enumerate((b"0", b"", b"2", b"")):  # some tell of no event
        number = version + 1
        batch = Batch(events, tasks_of("work", [number]), [succeeded(number)])
        assert number == store.commit(run.key, version, batch)

    service.next_manner = lambda: well
    assert [b"0", b"2"] == list(store.journal(run.key))
    assert [0, 1, 2, 3, 4] == [view.task.task for view in store.tasks(run.key)]
    assert {badly.__name__, "well"} == set(service.manners)
    store.close()


def test_a_run_goes_on_where_the_service_is_broken_for_a_while(
    service: Misbehaving, tmp_path: Path
) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    calls, away_until = itertools.count(), 0.0
    odd = itertools.cycle(BADLY)

    def next_manner() -> Manner:
        nonlocal away_until
        number = next(calls)
        if number == 4:  # some time after the start of the run
            away_until = time.monotonic() + AWAY
        if time.monotonic() < away_until:
            return refuses
        return next(odd) if number % 3 == 0 else well

    service.next_manner = next_manner
    done = subprocess.run(
        [sys.executable, "flow.py", "run", "--metadata", "service"], cwd=tmp_path,
        env={**os.environ, "AFLOW_SERVICE_URL": service.url},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip

    assert 0 == done.returncode, done.stderr
    assert "total 870" in done.stdout
    assert "Traceback" not in done.stderr
    assert service.manners.count("refuses") > 3
    service.next_manner = lambda: well
    store = ServiceMetadata(service.url, {}, SystemClock())
    (run,) = store.runs("Wide")
    assert "succeeded" == run.state.value
    assert 34 == len(list(store.tasks(run.key)))
    written = list(store.journal_after(run.key, 0))  # a commit need not have events
    assert run.version >= written[-1][0]
    assert len(written) == len({number for number, _ in written}) == len({e for _, e in written})
    store.close()


@pytest.mark.slow
def test_a_call_of_which_far_too_much_would_be_made_is_refused() -> None:
    whole = wire.pack([[1, {"a": [1, 2]}], {}])
    assert [[1, {"a": [1, 2]}], {}] == wire.unpack(whole)
    count = 2 * wire.MOST_CONTAINERS
    lists = b"\x92\x91\xdd" + count.to_bytes(4, "big") + b"\x90" * count + b"\x80"
    hidden = wire.pack([[msgpack.ExtType(2, lists)], {}])
    for body in (lists, hidden):
        with pytest.raises(InvalidMessage, match="too many values"):
            wire.unpack(body)
    text = wire.pack([["\u0080" * wire.MOST_CONTAINERS], {}])  # as many bytes, and one value
    assert wire.MOST_CONTAINERS == len(wire.unpack(text)[0][0])


@pytest.mark.parametrize("lists", [0, 2 * wire.MOST_CONTAINERS])
def test_a_call_with_records_inside_of_records_without_end_is_refused(lists: int) -> None:
    """Each one is a call of C code inside of the other: the stack would overflow."""
    body = wire.pack([b"\x90" * lists])
    for _ in range(2000):
        body = wire.pack(msgpack.ExtType(2, body))
    with pytest.raises(InvalidMessage, match="too deep"):
        wire.unpack(body)
