"""The server's limits for clients: number, duration and size; in this process, with small limits
that are quickly reached."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from aflow.cli.server import LogFormatter
from aflow.errors import CommandFailed
from aflow.server.listening import Bounds, listening, room
from aflow.server.request_bodies import body_of
from aflow.server.run_requests import RunRequest
from aflow.server.runs import Runs, RunsLocation
from aflow.server.serve import Certificate
from aflow.storage.blobs import BlobStore
from aflow.storage.memory import MemoryStore
from aflow.task import code_package
from tests.flows.conftest import processes_in
from tests.server.conftest import make_certificate

READS = 0.2  # seconds that the body of a request may take here


@asynccontextmanager
async def served(bounds: Bounds, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Run a server that responds with the length of the body, and return its port."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await body_of(request, 1000, READS))))

    app = web.Application()
    app.router.add_post("/", answer)
    async with listening(app, "127.0.0.1", 0, "server", tls, bounds) as port:
        yield port


@pytest.mark.parametrize("sent", [b"", b"POST / HT", b"POST / HTTP/1.1\r\nHost: x\r\nX-A: a"])
async def test_who_does_not_come_to_the_point_is_left(sent: bytes) -> None:
    async with served(Bounds(10, head=0.2)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert b"" == await reader.read()
        writer.close()


@pytest.mark.parametrize(
    "pieces", [b"Content-Length: 10\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"]
)
async def test_a_body_that_does_not_end_is_refused(pieces: bytes) -> None:
    async with served(Bounds(10)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n" + pieces)
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_a_body_that_breaks_off_holds_up_nobody() -> None:
    async with served(Bounds(10)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        writer.close()
        async with (
            ClientSession() as session,
            session.post(f"http://127.0.0.1:{port}", data=b"abc") as answer,
        ):
            assert (200, "3") == (answer.status, await answer.text())


OK, FULL = b"HTTP/1.1 200 OK", b"HTTP/1.1 503 Service Unavailable"
REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\na"


async def asked(port: int, **more: Any) -> bytes:
    """Return the first line of the response to a request on a separate connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **more)
    writer.write(REQUEST)
    line = (await reader.read()).partition(b"\r\n")[0]
    writer.close()
    return line


@asynccontextmanager
async def busy(bounds: Bounds, count: int) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A server some of whose connections carry a request until the event is set; its port."""
    begun, gate = asyncio.Semaphore(0), asyncio.Event()

    async def hold(_: web.Request) -> web.Response:
        begun.release()
        await gate.wait()
        return web.Response()

    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/hold", hold)
    app.router.add_post("/", answer)
    async with listening(app, "127.0.0.1", 0, "server", bounds=bounds) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
        for _, writer in held:
            writer.write(b"GET /hold HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await begun.acquire()
        yield port, gate
        gate.set()
        for reader, writer in held:
            assert (await reader.read()).startswith(OK)
            writer.close()


async def test_a_connection_too_many_is_answered_and_there_is_room_again() -> None:
    async with busy(Bounds(2), 2) as (port, gate):
        assert FULL == await asked(port)
        gate.set()
        while FULL == (line := await asked(port)):
            pass
        assert OK == line


async def test_one_address_takes_its_share_and_no_more() -> None:
    async with busy(Bounds(4, per_address=2), 2) as (port, _):
        assert FULL == await asked(port)
        assert OK == await asked(port, local_addr=("127.0.0.2", 0))


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nX-A: "])
async def test_connections_that_ask_nothing_keep_nobody_out(sent: bytes) -> None:
    async with served(Bounds(5, grace=0)) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        for _, writer in held:
            writer.write(sent)

        assert [OK] * 8 == [await asked(port) for _ in range(8)]

        for _, writer in held:
            writer.close()


async def test_connections_without_a_tls_handshake_are_counted_and_end(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    tls = Certificate(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")).context
    async with served(Bounds(5, head=0.5, grace=0), tls) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE

        assert OK == await asked(port, ssl=trusting)

        for reader, writer in held:  # all end, without a word of theirs
            with contextlib.suppress(ConnectionResetError):
                assert b"" == await reader.read()
            writer.close()


async def test_a_client_that_does_not_read_the_answer_is_cut_off() -> None:
    cut_off = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(1 << 20))
        except ConnectionResetError:
            cut_off.set()
        return response

    app = web.Application()
    app.router.add_get("/", answer)
    async with listening(app, "127.0.0.1", 0, "server", bounds=Bounds(2, unread=0.2)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

        assert await cut_off.wait()

        writer.close()


def test_connections_leave_descriptors_for_the_work() -> None:
    assert 0 < room() <= 1000


# ------------------------------------------------------------------ runs that do not start


def runs_with(code: str, folder: Path, patience: float) -> tuple[Runs, RunRequest]:
    """Runs, and the order of one whose flow file holds this."""
    file = folder / "flow.py"
    file.write_text(code)
    blobs = BlobStore(MemoryStore())
    key = blobs.put(code_package.pack({"flow.py": file}))
    return Runs(RunsLocation(folder, {}), blobs, 1, patience), RunRequest(key, "flow.py", None, ())


FOREVER = "import signal\nprint('imported', flush=True)\nwhile True:\n    signal.pause()\n"


async def test_a_run_whose_file_never_ends_is_killed(tmp_path: Path) -> None:
    runs, order = runs_with(FOREVER, tmp_path, 0.5)

    with pytest.raises(CommandFailed, match="did not start within"):
        await runs.begin(order)

    assert runs.has_room
    while processes_in(tmp_path / "server" / "code" / order.package):
        await asyncio.sleep(0)  # those that it has started end right after it


async def test_a_run_that_is_not_to_begin_after_all_leaves_no_process(tmp_path: Path) -> None:
    runs, order = runs_with(FOREVER, tmp_path, 60.0)
    begins = asyncio.create_task(runs.begin(order))
    code = tmp_path / "server" / "code" / order.package
    while not (code.is_dir() and processes_in(code)):
        await asyncio.sleep(0)

    begins.cancel()

    with pytest.raises(asyncio.CancelledError):
        await begins
    assert [] == processes_in(code)
    await runs.close(0.0, asyncio.Event())


@pytest.mark.parametrize(
    "said",
    ["no JSON", "{}", '{"flow_name": "../x", "run_id": "1"}', '{"flow_name": 1, "run_id": []}'],
)
async def test_a_file_that_announces_what_is_no_run_has_begun_none(
    tmp_path: Path, said: str
) -> None:
    code = (
        "import sys\n"
        "file = sys.argv[sys.argv.index('--runner-attribute-file') + 1]\n"
        f"open(file, 'w').write({said!r})\n"
    )
    runs, order = runs_with(code, tmp_path, 60.0)

    with pytest.raises(CommandFailed, match="announced no run"):
        await runs.begin(order)


# ------------------------------------------------------------------ the log


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("plain", "plain"),
        ("é 漢", "é 漢"),
        ("a\r\n2026 INFO all is well", "a\\r\n    2026 INFO all is well"),
        ("\x1b[2J\x1b]52;c;aGk=\x07", "\\x1b[2J\\x1b]52;c;aGk=\\x07"),
        ("\u202ewolf\u2066", "\\u202ewolf\\u2066"),
        ("\u2028\x85\x9b31m\x7f\0", "\\u2028\\x85\\x9b31m\\x7f\\x00"),
        ("\ud800", "\\ud800"),
    ],
)
def test_a_line_of_the_log_is_one_whatever_it_tells_of(message: str, expected: str) -> None:
    record = logging.LogRecord("aflow", logging.INFO, "", 0, "%s", (message,), None)
    assert expected == LogFormatter("%(message)s").format(record)
