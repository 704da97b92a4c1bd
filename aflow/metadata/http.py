"""The client of the metadata service: the metadata port over HTTP, served by `aflow
metadata-service`.

A call is retried while the service does not respond, for up to PATIENCE seconds. The response to a
completed write may be lost: a commit has a mark by which the store recognizes it, and a run that
already exists is compared with the one that was sent.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from aflow._core.backoff import Backoff, Tries
from aflow._core.clock import duration
from aflow._core.secret import as_mentioned
from aflow._core.waiting import FIRST, Waiting
from aflow.errors import InvalidMessage, InvalidSetting, MetadataUnavailable, VersionConflict
from aflow.metadata.base import Batch, RunRecord
from aflow.metadata.wire import CALLS, STREAMS, frames, pack, raise_received

if TYPE_CHECKING:
    from aflow._core.clock import Clock

# HTTP calls to a service that may be unavailable for a while.


T = TypeVar("T")

PATIENCE = 120.0  # seconds for which calls are retried
TIMEOUT = 60.0  # seconds without a byte
_CONNECTING = 10.0  # timeout of a connection attempt, in seconds
_BACKOFF = Backoff(0.1, 8.0)
_CHUNK = 1 << 16


class ServiceClient:
    """Calls one service. Thread-safe; a forked process opens its own connections."""

    not_there = "it is not a service of aflow, or an older one"

    def __init__(
        self, url: str, headers: Mapping[str, str], clock: Clock, patience: float = PATIENCE
    ) -> None:
        refused = InvalidSetting(
            f"{as_mentioned(url)!r} is not an address of a metadata service: use http(s)://host"
        )
        try:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                raise refused
            parts.hostname.encode("idna")  # as a connection will
        except ValueError:  # an invalid port or name of a host, or an unclosed bracket
            raise refused from None
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._path = quote(parts.path.rstrip("/"), safe="/%!$&'()*+,:;=@~")
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{self._path}"
        self._headers = dict(headers)
        self._clock = clock
        self._patience = patience
        self._never = threading.Event()
        self._answered = False  # whether the service has ever responded
        self._idle: list[http.client.HTTPConnection] = []
        self._process = os.getpid()

    def call(self, path: str, body: bytes) -> tuple[Iterator[list[Any]], bool]:
        """POST a request, retrying until the service responds.

        Args:
            path: The path below the URL of the service, beginning with a slash.
            body: The body, as msgpack.

        Returns:
            The frames of the response, and whether the request was retried, so that the service may
            have executed it twice.

        Raises:
            MetadataUnavailable: If the service does not respond in time, or rejects the request.
        """
        return self.patiently(lambda waiting: self._post(path, body, waiting))

    def patiently(self, attempt: Callable[[Waiting], T]) -> tuple[T, bool]:
        """Make attempts until one succeeds or the patience is exhausted.

        Args:
            attempt: Makes one attempt. Its argument logs that the call is still waiting.

        Returns:
            The result of the attempt, and whether there were failed attempts before it.

        Raises:
            MetadataUnavailable: See `call`.
        """
        waiting = Waiting(f"the metadata service at {self.url}", self._clock)
        tries = Tries(_BACKOFF, patience=self._patience, clock=self._clock)
        while True:
            try:
                found = attempt(waiting)
                self._answered = True
                waiting.over()
                return found, tries.failures > 0
            except (OSError, http.client.HTTPException, InvalidMessage) as error:
                if self._is_stranger(error):
                    raise MetadataUnavailable(
                        f"The metadata service at {self.url} cannot be trusted: {_why(error)}. "
                        "Check its address, its certificate, and SSL_CERT_FILE."
                    ) from error
                self.close()  # a service that has restarted has closed all idle connections
                delay = tries.failed()
                if delay is None:
                    raise MetadataUnavailable(
                        f"The metadata service at {self.url} cannot be used: {_why(error)}, for "
                        f"{duration(self._patience)}. Check that it runs, and its address."
                    ) from error
                waiting.still(_why(error), "Check that it runs, and its address.")
            self._never.wait(waiting.capped(delay))

    def _is_stranger(self, error: Exception) -> bool:
        """Return whether the server has shown an invalid certificate without ever having responded.
        If it has responded before, its certificate may have expired and be renewed while the run
        waits."""
        return not self._answered and type(error).__name__ == "SSLCertVerificationError"

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

    def _get(self, path: str) -> tuple[http.client.HTTPResponse, Any]:
        """GET with retries; return the response and its JSON, which is None for a 404."""
        return self.patiently(lambda _: self._got(path))[0]

    def _got(self, path: str) -> tuple[http.client.HTTPResponse, Any]:
        response, content = self._exchange("GET", path)
        if response.status == 404:
            return response, None
        if response.status != 200:
            self._turned_down(response, content)
        try:
            return response, json.loads(content)
        except ValueError as error:
            raise http.client.HTTPException("its answer is not valid JSON") from error

    def _exchange(
        self, method: str, path: str, body: bytes | None = None, seconds: float = TIMEOUT
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Send one request without retries, and read the whole response. `seconds` is the timeout
        of each of its steps."""
        connection = self._connection(seconds)
        usable = False
        try:
            headers = {**self._headers, "Content-Type": "application/json"}
            connection.request(method, self._path + path, body, headers)
            response = connection.getresponse()
            content = response.read()
            usable = not response.will_close
        finally:
            self._give_back(connection, usable)
        return response, content

    def _until_readable(self, connection: http.client.HTTPConnection, waiting: Waiting) -> None:
        """Wait for the first byte of a response, and log it if that is late."""
        poll = select.poll()
        poll.register(connection.sock, select.POLLIN)
        for _ in range(int(TIMEOUT / FIRST)):
            if poll.poll(FIRST * 1000):
                return
            waiting.still("it has taken the call, and does not answer")
        raise TimeoutError(f"it has not answered within {TIMEOUT:g} seconds")

    def _rest(
        self,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        first: list[Any],
        answer: Iterator[list[Any]],
    ) -> Iterator[list[Any]]:
        whole, is_complete = False, first[0] == "value"
        try:
            yield first
            yield from answer
            whole = not response.read()
        except (OSError, http.client.HTTPException, InvalidMessage) as error:
            if is_complete:
                return  # only the end of the body is missing: the value was complete
            raise MetadataUnavailable(
                f"The metadata service at {self.url} stopped in the middle: {_why(error)}."
            ) from error
        finally:
            self._give_back(connection, whole)

    def _turned_down(self, response: http.client.HTTPResponse, body: bytes) -> None:
        if 300 <= response.status < 400:
            raise MetadataUnavailable(
                f"The metadata service at {self.url} redirects to "
                f"{response.getheader('Location', '')[:200]!r}. A key is sent nowhere but to the "
                "address that was given: give that one, if it is the right one."
            )
        if response.status >= 500 and response.status != 501:
            raise http.client.HTTPException(f"it answers {response.status} {response.reason}")
        advice = {401: "AFLOW_SERVICE_AUTH_KEY is missing or wrong", 403: "access is denied"}
        advice |= dict.fromkeys((404, 405), self.not_there)
        detail = advice.get(response.status) or body[:1000].decode("utf-8", "replace")
        raise MetadataUnavailable(
            f"The metadata service at {self.url} answers {response.status}: {detail}."
        )

    def _connection(self, seconds: float = TIMEOUT) -> http.client.HTTPConnection:
        if self._process != os.getpid():
            self._idle, self._process = [], os.getpid()
        try:
            connection = self._idle.pop()
        except IndexError:
            kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            connection = kind(self._host, self._port, timeout=min(seconds, _CONNECTING))
        if connection.sock is None:  # new, or closed after the last response
            connection.connect()
        connection.sock.settimeout(seconds)
        return connection

    def _give_back(self, connection: http.client.HTTPConnection, usable: bool) -> None:
        if usable and self._process == os.getpid():
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close the connections. Idempotent."""
        idle, self._idle = self._idle, []
        for each in idle:
            each.close()


def _why(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")


PATH = "/aflow/v1/metadata"


# For type checkers: the generated methods have the signatures of the port.
_Port: Any = object


class ServiceMetadata(_Port):  # type: ignore[misc]
    """The metadata of the service at `http(s)://host:port/prefix`. The other methods of the ports
    are generated below; each sends one request."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        clock: Clock,
        patience: float = PATIENCE,
    ) -> None:
        self._caller = ServiceClient(url, headers, clock, patience)

    @property
    def url(self) -> str:
        """The URL of the service."""
        return self._caller.url

    @property
    def address(self) -> str:
        """The URL of the service. It contains no key; keys are in the settings."""
        return self._caller.url

    def _call(self, name: str, *values: Any, **named: Any) -> Any:
        return _value(self._answer(name, *values, **named)[0])

    def _answer(self, name: str, *values: Any, **named: Any) -> tuple[Iterator[list[Any]], bool]:
        return self._caller.call(f"{PATH}/{name}", pack([list(values), named]))

    def create_run(
        self, run: RunRecord, parameters: bytes, holder: str = "", seconds: float = 0.0
    ) -> RunRecord:
        """Record a new run with its parameters; see `Journal`."""
        answer, again = self._answer("create_run", run, parameters, holder, seconds)
        try:
            made: RunRecord = _value(answer)
        except VersionConflict:
            there: RunRecord | None = self.run(run.flow, run.run) if again else None
            if there is None or _holder_of(there) != holder or _as_read(there) != _as_read(run):
                raise
            return run._replace(key=there.key, version=there.version)
        return made

    def commit(self, run_key: int, version: int, batch: Batch, mark: str = "") -> int:
        """Write the batch if the run is at `version`; see `Journal`."""
        return int(self._call("commit", run_key, version, batch, mark or uuid.uuid4().hex))

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._caller.close()


def _holder_of(run: RunRecord) -> str:
    return "" if run.lease is None else run.lease.holder


def _as_read(run: RunRecord) -> RunRecord:
    """Return a run as a store returns it, without the fields that the store fills in."""
    return run._replace(
        key=0,
        version=0,
        tags=tuple(sorted({*run.tags})),
        system_tags=tuple(sorted({*run.system_tags})),
        graph=json.loads(json.dumps(run.graph)),
        settings=json.loads(json.dumps(run.settings)),
        lease=None,
    )


def _calls(name: str) -> Callable[..., Any]:
    """Return a method that sends the call of this name to the service."""

    def method(self: ServiceMetadata, *values: Any, **named: Any) -> Any:
        return self._call(name, *values, **named)

    def stream(self: ServiceMetadata, *values: Any, **named: Any) -> Iterator[Any]:
        for frame in self._answer(name, *values, **named)[0]:
            raise_received(frame)
            if frame[0] == "items":
                yield from frame[1]

    return stream if name in STREAMS else method


for _name in (CALLS | STREAMS) - vars(ServiceMetadata).keys():
    setattr(ServiceMetadata, _name, _calls(_name))


def _value(answer: Iterator[list[Any]]) -> Any:
    found = None
    for frame in answer:
        raise_received(frame)
        found = frame[1]
    return found
