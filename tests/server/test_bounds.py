"""What a server allows those who connect: how many, how long, how much; in this process, with
bounds that are soon reached."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from aflow import package
from aflow.cli.logbook import Plain
from aflow.errors import CommandFailed
from aflow.server.orders import Order
from aflow.server.runs import Place, Runs
from aflow.service.bodies import body_of
from aflow.service.listening import Bounds, listening, room
from aflow.storage.blobs import BlobStore
from aflow.storage.memory import MemoryStore
from tests.flows.conftest import processes_in

READS = 0.2  # seconds that the body of a request may take here


@asynccontextmanager
async def served(bounds: Bounds) -> AsyncIterator[int]:
    """A server that says how long a body is; its port."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await body_of(request, 1000, READS))))

    app = web.Application()
    app.router.add_post("/", answer)
    async with listening(app, "127.0.0.1", 0, "server", bounds=bounds) as port:
        yield port


@pytest.mark.parametrize("sent", [b"", b"POST / HT", b"POST / HTTP/1.1\r\nHost: x\r\nX-A: a"])
async def test_who_does_not_come_to_the_point_is_left(sent: bytes) -> None:
    async with served(Bounds(10, idle=0.2)) as port:
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


async def test_a_connection_too_many_is_told_so_and_there_is_room_again() -> None:
    async with served(Bounds(2)) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for reader, writer in held:  # they are connected when they are answered
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na")
            assert b"HTTP/1.1 200 OK\r\n" == await reader.readline()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert b"HTTP/1.1 503 Service Unavailable\r\n" == await reader.readline()
        writer.close()

        reader, writer = held[0]
        writer.write(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nConnection: close\r\n\r\na"
        )
        assert (await reader.read()).endswith(b"1")

        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na")
        assert b"HTTP/1.1 200 OK\r\n" == await reader.readline()
        for _, each in (*held, (reader, writer)):
            each.close()


def test_connections_leave_descriptors_for_the_work() -> None:
    assert 0 < room() <= 1000


# ------------------------------------------------------------------ runs that do not begin


def runs_with(code: str, folder: Path, patience: float) -> tuple[Runs, Order]:
    """Runs, and the order of one whose flow file holds this."""
    file = folder / "flow.py"
    file.write_text(code)
    blobs = BlobStore(MemoryStore())
    key = blobs.put(package.pack({"flow.py": file}))
    return Runs(Place(folder, {}), blobs, 1, patience), Order(key, "flow.py", None, ())


FOREVER = "import signal\nprint('imported', flush=True)\nwhile True:\n    signal.pause()\n"


async def test_a_run_whose_file_never_ends_is_killed(tmp_path: Path) -> None:
    runs, order = runs_with(FOREVER, tmp_path, 0.5)

    with pytest.raises(CommandFailed, match="has not begun within"):
        await runs.begin(order)

    assert runs.has_room
    assert [] == processes_in(tmp_path / "server" / "code" / order.package)


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
    assert expected == Plain("%(message)s").format(record)
