"""HTTP calls of a service that may be away for a while."""

from __future__ import annotations

import http.client
import os
import random
import select
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from aflow.clock import duration
from aflow.errors import InvalidMessage, InvalidSetting, MetadataUnavailable
from aflow.metadata.wire import frames
from aflow.waiting import FIRST, Waiting

if TYPE_CHECKING:
    from aflow.clock import Clock

T = TypeVar("T")

PATIENCE = 120.0  # seconds that a service may be away
_TIMEOUT = 60.0  # seconds without a byte
_CONNECTING = 10.0  # seconds
_LONGEST_WAIT = 8.0
_CHUNK = 1 << 16


class Answered(NamedTuple):
    """The frames of an answer; `again` says that an earlier try may have been done as well."""

    frames: Iterator[list[Any]]
    again: bool


class Caller:
    """Calls one service. Safe from many threads; a process that is forked makes connections of its
    own."""

    not_there = "it is no service of aflow, or an older one"

    def __init__(
        self, url: str, headers: Mapping[str, str], clock: Clock, patience: float = PATIENCE
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidSetting(f"{url!r} is no address of a metadata service: use http(s)://host")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._path = parts.path.rstrip("/")
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{self._path}"
        self._headers = dict(headers)
        self._clock = clock
        self._patience = patience
        self._never = threading.Event()
        self._idle: list[http.client.HTTPConnection] = []
        self._process = os.getpid()

    def call(self, path: str, body: bytes) -> Answered:
        """POST until the service answers. Raises MetadataUnavailable if it does not within the
        patience, or turns the call down."""
        return Answered(*self.patiently(lambda waiting: self._post(path, body, waiting)))

    def patiently(self, attempt: Callable[[Waiting], T]) -> tuple[T, bool]:
        """What an attempt gives at last, and whether it was not the first. It is given the wait
        that it is part of. Raises MetadataUnavailable as `call` does."""
        give_up_at, wait, again = self._clock.monotonic() + self._patience, 0.1, False
        waiting = Waiting(f"the metadata service at {self.url}", self._clock)
        while True:
            try:
                found = attempt(waiting)
                waiting.over()
                return found, again
            except (OSError, http.client.HTTPException, InvalidMessage) as error:
                if self._clock.monotonic() + wait > give_up_at:
                    raise MetadataUnavailable(
                        f"The metadata service at {self.url} cannot be used: {_why(error)}, for "
                        f"{duration(self._patience)}. Check that it runs, and its address."
                    ) from error
                waiting.still(_why(error), "Check that it runs, and its address.")
            again = True
            self._never.wait(waiting.capped(wait * random.uniform(0.5, 1.0)))
            wait = min(wait * 2, _LONGEST_WAIT)

    def _post(self, path: str, body: bytes, waiting: Waiting) -> Iterator[list[Any]]:
        connection = self._connection()
        try:
            headers = {**self._headers, "Content-Type": "application/msgpack"}
            connection.request("POST", self._path + path, body, headers)
            self._until_readable(connection, waiting)
            response = connection.getresponse()
            if response.status != 200:
                self._turned_down(response, response.read(1000))
            answer = frames(iter(lambda: response.read1(_CHUNK), b""))
            first = next(answer)
        except BaseException:
            connection.close()
            raise
        return self._rest(connection, response, first, answer)

    def _until_readable(self, connection: http.client.HTTPConnection, waiting: Waiting) -> None:
        """Wait for the first byte of an answer, and say so where it is late."""
        poll = select.poll()
        poll.register(connection.sock, select.POLLIN)
        for _ in range(int(_TIMEOUT / FIRST)):
            if poll.poll(FIRST * 1000):
                return
            waiting.still("it has taken the call, and does not answer")
        raise TimeoutError(f"it has not answered within {_TIMEOUT:g} seconds")

    def _rest(
        self,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        first: list[Any],
        answer: Iterator[list[Any]],
    ) -> Iterator[list[Any]]:
        whole = False
        try:
            yield first
            yield from answer
            whole = not response.read()
        except (OSError, http.client.HTTPException, InvalidMessage) as error:
            raise MetadataUnavailable(
                f"The metadata service at {self.url} stopped in the middle: {_why(error)}."
            ) from error
        finally:
            self._give_back(connection, whole)

    def _turned_down(self, response: http.client.HTTPResponse, body: bytes) -> None:
        said = body.decode("utf-8", "replace")
        if response.status >= 500 and response.status != 501:
            raise http.client.HTTPException(f"it answers {response.status} {response.reason}")
        advice = {401: "AFLOW_SERVICE_AUTH_KEY is missing or wrong", 403: "access is denied"}
        advice |= dict.fromkeys((404, 405), self.not_there)
        raise MetadataUnavailable(
            f"The metadata service at {self.url} answers {response.status}: "
            f"{advice.get(response.status, said)}."
        )

    def _connection(self) -> http.client.HTTPConnection:
        if self._process != os.getpid():
            self._idle, self._process = [], os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            connection = kind(self._host, self._port, timeout=_CONNECTING)
            connection.connect()
            connection.sock.settimeout(_TIMEOUT)
            return connection

    def _give_back(self, connection: http.client.HTTPConnection, usable: bool) -> None:
        if usable and self._process == os.getpid():
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Let go of the connections. May be called twice."""
        while self._idle:
            self._idle.pop().close()


def _why(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
