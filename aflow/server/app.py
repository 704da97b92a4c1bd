"""The one HTTP application of `aflow server` and `aflow metadata-service`.

An application answers one API or several: the daemon's (`server/api.py`) and that of Metaflow's
metadata service (`server/metaflow/api.py`). All of them have the same chain of middleware
(connections, metrics, errors, authentication), the same rules for errors and one OpenAPI document.
An API says which paths are its own, and how its clients read a refusal.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from aflow.errors import (
    AflowError,
    ArtifactNotLoadable,
    CodePackageError,
    CommandFailed,
    CoordinatorClosed,
    CoordinatorFull,
    InvalidInput,
    InvalidMessage,
    MetadataError,
    MetadataTooNew,
    MetadataUnavailable,
    MissingExtra,
    NotFound,
    ObjectNotFound,
    QueueUnavailable,
    RegistrationRefused,
    StorageError,
    StoreUnavailable,
    VersionConflict,
)
from aflow.server.auth import Authenticator, caller_of
from aflow.server.listening import Handler

try:
    from aiohttp import web
except ImportError as error:
    raise MissingExtra("Servers need aiohttp: install aflow-runtime[server].") from error

if TYPE_CHECKING:
    from aflow.server.metrics import Metrics
    from aflow.server.openapi import Description

_STATUSES: list[tuple[type[AflowError], int]] = [
    (InvalidInput, 400),
    (InvalidMessage, 400),
    (CodePackageError, 400),
    (CommandFailed, 422),
    (NotFound, 404),
    (CoordinatorFull, 429),
    (CoordinatorClosed, 503),
    (VersionConflict, 409),
    (MetadataUnavailable, 503),
    (MetadataTooNew, 503),
    (StoreUnavailable, 503),
    (QueueUnavailable, 503),
    (ObjectNotFound, 404),
    # What is kept of a run is damaged: asking again does not help.
    (MetadataError, 422),
    (StorageError, 422),
    (ArtifactNotLoadable, 422),
]

# What refuses is the machine of the server, and not what was sent.
_OF_THE_MACHINE = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE,
        errno.ENOMEM, errno.EACCES, errno.EPERM,
    }
)  # fmt: skip

_log = logging.getLogger("aflow.server")


class Api(Protocol):
    """Routes that belong together."""

    def owns(self, path: str) -> bool:
        """Return whether a path is one of this API, also where no route has it.

        Args:
            path: The path of the URL, decoded.
        """

    def add_to(self, app: web.Application) -> None:
        """Add the routes, and what is to be done when the application ends.

        Args:
            app: The application, which is not yet running.
        """

    def description(self) -> Description:
        """Return what its routes take and answer."""

    def refused(self, status: int, sentence: str, headers: Mapping[str, str]) -> web.Response:
        """Return a refusal or a failure, in the form that its clients read.

        Args:
            status: The HTTP status, 4xx or 5xx.
            sentence: What was wrong, in one sentence.
            headers: More headers of the answer.
        """


def application(
    apis: Sequence[Api], authenticator: Authenticator, metrics: Metrics | None = None
) -> web.Application:
    """Return an application that answers these APIs. Paths that none of them owns are refused as
    the first one does. `metrics` counts requests.

    Args:
        apis: The APIs; paths that none of them owns are refused as the first one does.
        authenticator: Decides which requests are allowed.
        metrics: Counts the requests; None to count none.
    """
    counted = [] if metrics is None else [metrics]
    app = web.Application(middlewares=[*counted, _Errors(apis), authenticator])
    for api in apis:
        api.add_to(app)
    app.router.add_get("/openapi.json", _Document(apis).answer)
    return app


class _Errors:
    """A middleware: every refusal and failure is a sentence in JSON. What has failed inside of the
    server is for its log, and for authenticated clients: others learn nothing of it."""

    __middleware_version__ = 1

    def __init__(self, apis: Sequence[Api]) -> None:
        self._apis = apis

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        headers: dict[str, str] = {}
        try:
            return await handler(request)
        except ConnectionResetError:  # the client has gone and reads no response
            return web.Response(status=499)
        except RegistrationRefused as refused:  # its body is that of Metaflow's service
            return web.json_response(refused.body, status=refused.status)
        except web.HTTPException as refused:  # of aiohttp: no such route, too large a body
            status, sentence = refused.status, refused.reason
            if "Allow" in refused.headers:
                headers["Allow"] = refused.headers["Allow"]
        except AflowError as error:
            status, sentence = _status_of(error), str(error)
            if status >= 500:
                _log.error("%s %s: %s", request.method, request.path, error)
        except OSError as error:  # no descriptor left, a full disk
            _log.error("%s %s: %s", request.method, request.path, error)
            status, sentence = 503, f"The machine of the server refuses: {error.strerror}."
        except Exception:  # noqa: BLE001 -- logged; the server goes on
            _log.exception("%s %s", request.method, request.path)
            status, sentence = 500, "The server failed unexpectedly: its log says more."
        if status >= 500 and caller_of(request) is None:
            sentence = "The server cannot answer now: its log says why."
        api = next((each for each in self._apis if each.owns(request.path)), self._apis[0])
        return api.refused(status, sentence, headers)


def _status_of(error: AflowError) -> int:
    """The status of the answer that says this."""
    cause = error.__cause__
    if isinstance(cause, StoreUnavailable):
        return 503
    if isinstance(cause, OSError) and cause.errno in _OF_THE_MACHINE:
        return 503
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


class _Document:
    """The OpenAPI document. It is made when it is first asked for, in a thread: few ask for it, and
    that takes long enough to block other requests."""

    def __init__(self, apis: Sequence[Api]) -> None:
        self._apis = apis
        self._body = b""

    async def answer(self, _: web.Request) -> web.StreamResponse:
        """What there is, for programs."""
        if not self._body:
            self._body = await asyncio.to_thread(self._made)
        return web.Response(body=self._body, content_type="application/json")

    def _made(self) -> bytes:
        from aflow.server.openapi import document  # few servers are ever asked for it

        return json.dumps(document(*(each.description() for each in self._apis))).encode()
