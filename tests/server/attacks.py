"""Malicious requests for tests of servers: names, archives, bodies, headers, tokens."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgpack

from aflow._core.clock import SystemClock
from aflow.metadata.sqlite import SqliteMetadata
from aflow.server.api import AflowApi, Daemon
from aflow.server.app import Api, application
from aflow.server.auth import OPEN, Authenticator
from aflow.server.metaflow.api import MetaflowApi
from aflow.server.metaflow.database import open_database
from aflow.server.metrics import Metrics
from aflow.server.runs import Runs, RunsLocation
from aflow.storage.blobs import BlobStore
from aflow.storage.memory import MemoryStore

__all__ = ["OPEN"]


class Route(NamedTuple):
    """A route of the server's router."""

    method: str
    path: str

    def at(self, name: str) -> str:
        """Return the path, with this in place of each name."""
        parts = [name if part.startswith("{") else part for part in self.path.split("/")]
        return "/".join(parts)

    @property
    def takes_names(self) -> bool:
        return "{" in self.path

    @property
    def writes(self) -> bool:
        return self.method != "GET"


def routes(folder: Path) -> list[Route]:
    """Return all routes of the server's router, so that new routes are attacked, too."""
    metadata, blobs = SqliteMetadata(":memory:"), BlobStore(MemoryStore())
    runs = Runs(RunsLocation(folder, {}), blobs, 1)
    authenticator = Authenticator([], metadata, SystemClock())
    metrics = Metrics(runs, metadata, None)
    apis: list[Api] = [
        AflowApi(Daemon(runs, blobs, metadata), metrics, None, authenticator),
        MetaflowApi(open_database("memory:", "process"), SystemClock(), metadata),
    ]
    app = application(apis, authenticator, metrics)
    found = [
        Route(each.method, each.resource.canonical)
        for each in app.router.routes()
        if each.resource is not None and each.method != "HEAD"
    ]
    metadata.close()
    return found


# ------------------------------------------------------------------ names

_UPWARD = ["../../etc/passwd", "..", "..;/etc", "....//", "/etc/passwd", "file:///etc/passwd"]
_ODD = [
    "\0", "a\r\nSet-Cookie: x=1", "\x1b]52;c;aGk=\x07", "\u202eflow", "a" * 600, "\U0001f4a9",
    "'; DROP TABLE runs;--", "1 OR 1=1", "{{7*7}}", "${jndi:ldap://127.0.0.1/a}", "$(id)", "`id`",
    "-rf", "--with=x", "%00", "%", "_ or 1", "\\\\host\\share", ".git",
]  # fmt: skip


def hostile_names() -> Iterator[str]:
    """Return malicious names in URL paths: path traversal in several encodings, and others."""
    for upward in _UPWARD:
        once = quote(upward, safe="").replace(".", "%2e")
        yield from {
            quote(upward, safe=""), once, once.upper(), once.replace("%", "%25"),
            upward.replace("/", "%5c"), upward.replace("/", "%c0%af"),
            upward.replace("/", "%ef%bc%8f"), upward.replace(".", "%c0%ae").replace("/", "%2f"),
            upward.replace("/", "%2f%00"), upward.replace("/", "%e0%80%af"),
        }  # fmt: skip
    yield from (quote(each, safe="") for each in _ODD)
    yield "%ff%fe"


# ------------------------------------------------------------------ archives


class Bomb:
    """An object that writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def archives(outside: Path) -> dict[str, Callable[[], bytes]]:
    """Return malicious archives by description: they write outside their folder, or too much. Each
    is created on demand, since some take a tenth of a second. `outside` is a folder to which
    nothing may be written."""

    def tar(*members: tarfile.TarInfo, mode: Any = "w") -> bytes:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode=mode) as archive:
            for each in members:
                archive.addfile(each, io.BytesIO(b"x" * each.size))
        return data.getvalue()

    def member(name: str, type_: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
        found = tarfile.TarInfo(name)
        found.type, found.linkname = type_, to
        return found

    def zipped(name: str) -> bytes:
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr(name, "x")
        return data.getvalue()

    flow = member("flow.py")
    huge = member("huge")
    huge.size = 10 << 20
    holes = member("holes.py", tarfile.GNUTYPE_SPARSE)
    named = member("x")
    named.pax_headers = {"path": "../../escaped"}
    digits = member("x")
    digits.pax_headers = {"comment": "1" * 60_000}
    many = [member("y") for _ in range(20)]
    for each in many:
        each.pax_headers = {"comment": "1" * 2000}

    def pax(text: bytes) -> bytes:
        """Return a pax header with this text, and a file."""
        head = member("p", tarfile.XHDTYPE)
        head.size = len(text)
        padded = text.ljust(-(-len(text) // 512) * 512, b"\0")
        return head.tobuf(tarfile.USTAR_FORMAT) + padded + tar(flow)

    def signed() -> bytes:
        """Return an archive with a negative size."""
        sizes = [member("z"), member("z")]
        sizes[0].size = 512
        odd = bytearray(tar(*sizes))
        odd[124:136] = b"-0000001000\0"
        return bytes(odd)

    return {
        "a long row of digits": lambda: tar(flow, digits),
        "many rows of digits": lambda: tar(*many * 100),
        "digits alone": lambda: pax(b"1" * 60_000),
        "a huge size": lambda: pax(b"40 size=100000000000000000000000000000\n"),
        "another size": lambda: pax(b"12 size=10\n\n"),
        "another character set": lambda: pax(b"21 hdrcharset=LATIN1\n"),
        "a length that is none": lambda: pax(b"9999 path=x\n"),
        "a size with a sign": signed,
        "headers without end": lambda: pax(b"12 path=abc\n")[:1024] * 2000 + tar(flow),
        "holes in a pax header": lambda: pax(b"25 GNU.sparse.major=1\n\n\n"),
        "upward": lambda: tar(flow, member("../../escaped")),
        "absolute": lambda: tar(flow, member(f"{outside}/escaped")),
        "upward in a pax header": lambda: tar(flow, named),
        "link and through it": lambda: tar(
            flow, member("a", tarfile.SYMTYPE, str(outside)), member("a/escaped")
        ),
        "hard link": lambda: tar(flow, member("a", tarfile.LNKTYPE, "/etc/passwd")),
        "device": lambda: tar(flow, member("a", tarfile.CHRTYPE)),
        "pipe": lambda: tar(flow, member("a", tarfile.FIFOTYPE)),
        "folder": lambda: tar(flow, member("a", tarfile.DIRTYPE)),
        "holes": lambda: tar(flow, holes),
        "compressed bomb": lambda: gzip.compress(tar(flow, huge)),
        "xz bomb": lambda: tar(flow, huge, mode="w:xz"),
        "cut off": lambda: tar(flow, huge)[:4096],
        "deep": lambda: tar(flow, member("a/" * 3000 + "b")),
        "zip": lambda: zipped("flow.py"),
        "zip upward": lambda: zipped("../../escaped"),
        "zip absolute": lambda: zipped(f"{outside}/escaped"),
        "zip of a zip": lambda: zipped("flow.zip"),
        "none": lambda: b"no archive",
        "empty": lambda: b"",
    }


# ------------------------------------------------------------------ bodies


def _nested_extensions(depth: int) -> bytes:
    body = msgpack.packb([])
    for _ in range(depth):
        body = msgpack.packb(msgpack.ExtType(2, body))
    return bytes(body)


def bodies(mark: Path) -> dict[str, bytes]:
    """Return malformed or expensive bodies. `mark` is a file that must not be written."""
    return {
        "pickle": pickle.dumps(Bomb(mark)),
        "zeros": b"\0" * 1000,
        "deep lists": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "closed deep lists": b"[" * 100_000 + b"]" * 100_000,
        "a huge number": b'{"tags": ' + b"9" * 100_000 + b"}",
        "a huge exponent": b'{"max_workers": 1e999999, "since": -1e999999}',
        "no number": b'{"max_workers": NaN, "since": Infinity}',
        "twice": b'{"script": "flow.py", "script": "../x.py", "paused": true, "paused": false}',
        "no UTF-8": b'"\xff\xfe"',
        "half a character": b'"\\ud800"',
        "prototype": b'{"__proto__": {"x": 1}, "constructor": {"prototype": {}}}',
        "null": b"null",
        "empty object": b"{}",
        "empty list": b"[]",
        "msgpack that claims a long list": b"\xdd\xff\xff\xff\xff",
        "msgpack that claims a long map": b"\xdf\xff\xff\xff\xff",
        "msgpack that claims long bytes": b"\xc6\xff\xff\xff\xff",
        "msgpack that is deep": b"\x91" * 100_000,
        "msgpack with an extension": msgpack.packb(msgpack.ExtType(5, b"x" * 100)),
        "msgpack with extensions without end": _nested_extensions(2000),
        "msgpack with a time": msgpack.packb(msgpack.Timestamp(1 << 33, 0)),
        "code": b"__import__('os').system('id')",
    }


# ------------------------------------------------------------------ heads

_GET = b"GET /v1/runs HTTP/1.1\r\nHost: localhost\r\n"
_POST = b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_SMUGGLED = b"DELETE /v1/schedules/x HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEADS = {
    "two lengths": _POST + b"Content-Length: 2\r\nContent-Length: 70\r\n\r\n{}" + _SMUGGLED,
    "length and chunks": _POST
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _SMUGGLED,
    "odd chunks": _POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + _SMUGGLED,
    "a length with a sign": _POST + b"Content-Length: +2\r\n\r\n{}",
    "a length below zero": _POST + b"Content-Length: -1\r\n\r\n",
    "a length that is huge": _POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "a blank before the colon": _POST + b"Content-Length : 2\r\n\r\n{}",
    "a folded line": _GET + b"X-A: 1\r\n  Authorization: Bearer x\r\n\r\n",
    "a NUL": _GET + b"X-A: a\0b\r\n\r\n",
    "a line that ends early": _GET + b"X-A: a\rX-B: b\r\n\r\n",
    "a chunk with a bad size": _POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a line of 100 kB": _GET + b"X-A: " + b"a" * 100_000 + b"\r\n\r\n",
    "a thousand lines": _GET + b"".join(b"X-%d: a\r\n" % n for n in range(1000)) + b"\r\n",
    "a path of 100 kB": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100 + b"\r\n\r\n",
    "another version": b"GET /v1/runs HTTP/9.9\r\nHost: localhost\r\n\r\n",
}  # fmt: skip
"""Heads of requests that servers and proxies read differently, or that are too large."""


# ------------------------------------------------------------------ tokens and pages


def tokens_like(token: str) -> dict[str, str]:
    """Return strings that resemble the token."""
    return {
        "none": "",
        "null": "null",
        "undefined": "undefined",
        "true": "true",
        "its beginning": token[:-1],
        "its beginning and more": token[:-1] + "~",
        "more than it": token + "x",
        "its other case": token.swapcase(),
        "with a blank inside": token[:8] + " " + token[8:],
        "twice": f"{token}, {token}",
        "with unicode": token[:-1] + "\xe9",
        "a digest": "0" * 64,
        "a star": "*",
        "SQL": "' OR 1=1 --",
        "long": "a" * 7000,
    }


OF_OTHER_SITES = {
    "origin": {"Origin": "https://evil.example"},
    "no origin": {"Origin": "null"},
    "another port": {"Origin": "http://localhost:3000"},
    "an image of another site": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    "a page of another port": {"Sec-Fetch-Site": "same-site"},
    "a name that was bound again": {"Host": "evil.example:8180"},
    "a name that ends well": {"Host": "evil.localhost"},
    "a name that begins well": {"Host": "localhost.evil.example"},
    "an address of the network": {"Host": "192.168.0.7:8180"},
    "no name": {"Host": ""},
}
