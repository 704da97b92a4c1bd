"""Who may use the service: those who have a key of the settings, or a token."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import web

from aflow import tokens
from aflow.metadata.wire import WRITES
from aflow.service.origins import is_of_another_site, names_this_machine

if TYPE_CHECKING:
    from aflow.clock import Clock
    from aflow.metadata.base import Documents

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

OWN_CALLS = "/aflow/v1/metadata/"
_LOOK = 2.0  # seconds after which a service without keys looks again whether there are tokens
_OPEN = frozenset({"/ping", "/healthcheck"})  # to load balancers, which have no key


class Keys:
    """Turns away who has neither one of the keys nor a token (401) that allows what is asked (403).
    Where there are neither keys nor tokens, nobody is turned away but pages of others in a browser
    (403), and, of a service that `is_local`, requests that name another machine (403). `store`
    knows the tokens, if it keeps any."""

    __middleware_version__ = 1

    def __init__(
        self, keys: Sequence[str], store: Any, clock: Clock, *, is_local: bool = False
    ) -> None:
        self._keys = [key.encode() for key in keys]
        self._store: Documents | None = store if hasattr(store, "documents") else None
        self._clock = clock
        self._is_local = is_local
        self._open_until = -1.0  # by the monotonic clock
        self._are_wanted = bool(keys)  # and stay so when the last token is revoked

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer, or refuse."""
        refused = None if request.path in _OPEN else await self._refused(request)
        return await handler(request) if refused is None else refused

    async def _refused(self, request: web.Request) -> web.Response | None:
        given = _given(request)
        if any(self._is_key(each) for each in given):
            return None
        if self._store is not None:
            found = await asyncio.to_thread(self._tokens, self._store, given)
            if any(each.allows(_writes(request), self._clock.now()) for each in found):
                return None
            if found:
                return _refusal(403, "the token is over, or does not allow this")
        if not await self._wanted():
            return self._of_others(request)
        return _refusal(401, "this service wants a key: x-api-key, or Authorization: Bearer")

    def _of_others(self, request: web.Request) -> web.Response | None:
        if is_of_another_site(request) or (self._is_local and not names_this_machine(request)):
            return _refusal(403, "this service answers no pages of other sites")
        return None

    def _is_key(self, given: str) -> bool:
        data = given.encode("utf-8", "surrogateescape")
        matches = [hmac.compare_digest(data, key) for key in self._keys]
        return any(matches)

    def _tokens(self, store: Documents, given: Sequence[str]) -> list[tokens.Token]:
        found = [tokens.known(store, each) for each in given]
        return [each for each in found if each is not None]

    async def _wanted(self) -> bool:
        now = self._clock.monotonic()
        if not self._are_wanted and self._store is not None and now >= self._open_until:
            self._are_wanted = bool(await asyncio.to_thread(self._store.documents, tokens.KIND))
            self._open_until = now + _LOOK
        return self._are_wanted


def _given(request: web.Request) -> list[str]:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return [each for each in (request.headers.get("x-api-key", ""), bearer) if each]


def _writes(request: web.Request) -> bool:
    """Whether the request changes anything. Calls of the metadata port are all POST."""
    if request.path.startswith(OWN_CALLS):
        return request.path.removeprefix(OWN_CALLS) in WRITES
    return request.method not in ("GET", "HEAD", "OPTIONS")


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response({"message": message}, status=status)
