"""The one HTTP application of `aflow server` and `aflow metadata-service`.

An application serves one or more APIs: the daemon's (`server/api.py`) and that of Metaflow's
metadata service (`server/metaflow/api.py`). All share one middleware chain (connections, metrics,
errors, authentication), the same error handling and one OpenAPI document. Each API defines which
paths belong to it and the format of its error responses.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache
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

# The first that fits counts: some are subclasses of the last ones.
_STATUSES: dict[int, tuple[type[AflowError], ...]] = {
    400: (InvalidInput, InvalidMessage, CodePackageError),
    404: (NotFound, ObjectNotFound),
    409: (VersionConflict,),
    429: (CoordinatorFull,),
    503: (
        CoordinatorClosed, MetadataUnavailable, MetadataTooNew, StoreUnavailable, QueueUnavailable
    ),
    # The code of a run fails, or its records are damaged: a retry would fail, too.
    422: (CommandFailed, MetadataError, StorageError, ArtifactNotLoadable),
}  # fmt: skip

# These errors are caused by the server's machine, not by the request.
_OF_THE_MACHINE = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE,
        errno.ENOMEM, errno.EACCES, errno.EPERM,
    }
)  # fmt: skip

_log = logging.getLogger("aflow.server")


class Api(Protocol):
    """A group of routes with their description and error format."""

    def owns(self, path: str) -> bool:
        """Return whether a path belongs to this API, even if it matches no route.

        Args:
            path: The decoded path of the URL.
        """

    def add_to(self, app: web.Application) -> None:
        """Register the routes and the shutdown handlers.

        Args:
            app: The application, which has not started yet.
        """

    def description(self) -> Description:
        """Return the OpenAPI description of the routes."""

    def refused(self, status: int, sentence: str, headers: Mapping[str, str]) -> web.Response:
        """Return an error response in the format that the API's clients expect.

        Args:
            status: The HTTP status, 4xx or 5xx.
            sentence: The error, in one sentence.
            headers: Additional headers of the response.
        """


def application(
    apis: Sequence[Api], authenticator: Authenticator, metrics: Metrics | None = None
) -> web.Application:
    """Return an application that serves these APIs.

    Args:
        apis: The APIs. The first one handles requests for paths that belong to none of them.
        authenticator: Decides which requests are allowed.
        metrics: Counts the requests; None to disable counting.
    """
    counted = [] if metrics is None else [metrics]
    app = web.Application(middlewares=[*counted, _Errors(apis), authenticator])
    for api in apis:
        api.add_to(app)
    app.router.add_get("/openapi.json", _document(apis))
    return app


class _Errors:
    """A middleware that turns every error into a JSON response with one sentence.

    Details of internal errors are logged and sent to authenticated clients only."""

    __middleware_version__ = 1

    def __init__(self, apis: Sequence[Api]) -> None:
        self._apis = apis

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        headers: dict[str, str] = {}
        try:
            return await handler(request)
        except ConnectionResetError:  # the client has disconnected
            return web.Response(status=499)
        except RegistrationRefused as refused:  # its body has the format of Metaflow's service
            return web.json_response(refused.body, status=refused.status)
        except web.HTTPException as refused:  # raised by aiohttp: no such route, body too large
            status, sentence = refused.status, refused.reason
            if "Allow" in refused.headers:
                headers["Allow"] = refused.headers["Allow"]
        except AflowError as error:
            status, sentence = _status_of(error), str(error)
            if status >= 500:
                _log.error("%s %s: %s", request.method, request.path, error)
        except OSError as error:  # no descriptor left, disk full
            _log.error("%s %s: %s", request.method, request.path, error)
            status, sentence = 503, f"The machine of the server refuses: {error.strerror}."
        except Exception:  # noqa: BLE001 -- logged; the server continues
            _log.exception("%s %s", request.method, request.path)
            status, sentence = 500, "The server failed unexpectedly: its log says more."
        if status >= 500 and caller_of(request) is None:
            sentence = "The server cannot answer now: its log says why."
        api = next((each for each in self._apis if each.owns(request.path)), self._apis[0])
        return api.refused(status, sentence, headers)


def _status_of(error: AflowError) -> int:
    """Return the HTTP status for an error."""
    cause = error.__cause__
    if isinstance(cause, StoreUnavailable):
        return 503
    if isinstance(cause, OSError) and cause.errno in _OF_THE_MACHINE:
        return 503
    return next((status for status, kinds in _STATUSES.items() if isinstance(error, kinds)), 500)


def _document(apis: Sequence[Api]) -> Handler:
    """Return the handler of the OpenAPI document.

    The document is built at the first request, in a thread: it is rarely requested, and building it
    would block other requests."""

    @cache
    def made() -> bytes:
        from aflow.server.openapi import document  # imported late: rarely requested

        return json.dumps(document(*(each.description() for each in apis))).encode()

    async def answer(_: web.Request) -> web.StreamResponse:
        body = await asyncio.to_thread(made)
        return web.Response(body=body, content_type="application/json")

    return answer
