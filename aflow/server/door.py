"""Who may come in, and for what."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import web

from aflow import tokens
from aflow.metadata.documents import documents_of
from aflow.metadata.wire import WRITES
from aflow.server.demands import refusal
from aflow.service.origins import is_of_another_site, names_this_machine

if TYPE_CHECKING:
    from aflow.clock import Clock

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_OPEN = frozenset({"/healthz", "/readyz", "/ping"})  # to those who watch, who have no token
_CALLS = "/aflow/v1/metadata/"
_SHOWN = 200  # characters of a path in the log

_log = logging.getLogger("aflow.server")


class Door:
    """Turns away who may not come in. With a token in the settings (`keys`), or one that was made
    (`store` knows them, if it keeps any), a request has to carry one (401) which allows it (403);
    so it does where others reach the server (`is_local` is False), and where there have been tokens
    that are revoked. Without, it has to be addressed to this machine by a name that no other site
    can take, and may not be sent by a browser for a page of another site (403)."""

    __middleware_version__ = 1

    def __init__(
        self, keys: Sequence[str], store: Any, clock: Clock, *, is_local: bool = True
    ) -> None:
        self._keys = [key.encode() for key in keys]
        self._store = documents_of(store)
        self._clock = clock
        self._wants_token = bool(keys) or not is_local

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer, or refuse."""
        if request.path not in _OPEN:
            refused = await self._refused(request)
            if refused is not None:
                _log.warning(
                    "%s %s of %s is refused: %d",
                    request.method, request.path[:_SHOWN], request.remote, refused.status,
                )  # fmt: skip
                return refused
        return await handler(request)

    async def _refused(self, request: web.Request) -> web.Response | None:
        given = _given(request)
        data = given.encode("utf-8", "surrogateescape")
        matches = [hmac.compare_digest(data, key) for key in self._keys]  # all of them
        if any(matches):
            return None
        kept = None if self._store is None or not given else await self._kept(given)
        if kept is not None:
            self._wants_token = True
            if kept.allows(_writes(request), self._clock.now()):
                return None
            return refusal(403, f"The token {kept.name} is over, or does not allow this.")
        if self._wants_token or await self._has_tokens():
            self._wants_token = True
            return refusal(401, "This server wants a token: Authorization: Bearer TOKEN.")
        if not names_this_machine(request):
            return refusal(403, "This server answers requests to localhost alone.")
        if is_of_another_site(request):
            return refusal(403, "This server answers no pages of other sites.")
        return None

    async def _kept(self, given: str) -> tokens.Token | None:
        assert self._store is not None, "it was asked for"
        return await asyncio.to_thread(tokens.known, self._store, given)

    async def _has_tokens(self) -> bool:
        if self._store is None:
            return False
        return bool(await asyncio.to_thread(self._store.documents, tokens.KIND))


def _given(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":  # clients of the metadata service have another header
        token = request.headers.get("x-api-key", "")
    return token.strip()


def _writes(request: web.Request) -> bool:
    """Whether the request changes anything. Calls of the metadata port are all POST."""
    if request.path.startswith(_CALLS):
        return request.path.removeprefix(_CALLS) in WRITES
    return request.method not in ("GET", "HEAD", "OPTIONS")
