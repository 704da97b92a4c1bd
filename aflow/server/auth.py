"""The one authenticator of `aflow server` and `aflow metadata-service`.

A request carries a key from the settings or a token, as `Authorization: Bearer TOKEN` or
`x-api-key: TOKEN`. Requests without one are accepted only if the server was configured so
(`anonymous`), and never if a page of another site made the browser send them.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from aflow.errors import AflowError, InvalidSetting, MetadataUnavailable, MissingExtra
from aflow.metadata import tokens
from aflow.metadata.base import documents_of
from aflow.metadata.wire import WRITES

try:
    from aiohttp import web

    from aflow.server.listening import Handler
except ImportError as error:
    raise MissingExtra("Servers need aiohttp: install aflow-runtime[server].") from error

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.metadata.base import Documents

T = TypeVar("T")

OWN_CALLS = "/aflow/v1/metadata/"
OPEN = frozenset({"/healthz", "/readyz", "/ping", "/healthcheck"})  # probes send no token
SCOPE_HEADER = "X-Aflow-Scope"  # response header: what the token of the request allows
PAGE_HEADER = "X-Aflow-Request"  # sent by aflow's pages; a form of another site cannot send it
LOOK = 0.5  # seconds between checks of the connection and the token of a long request
_ANONYMOUS_LOOK = 2.0  # seconds between checks whether tokens were created
_SHORTEST_KEY = 8  # characters, if other machines can reach the server
_SHOWN = 200  # characters of a path in the log
_LOGGED = 100  # refusals logged per _LOGGED_IN seconds
_LOGGED_IN = 10.0

_log = logging.getLogger("aflow.server")


class Caller(NamedTuple):
    """The sender of a request.

    `token` is a token of the store, or None for a key from the settings and for anonymous requests.
    `name` is used in the log and as the author of what the caller creates."""

    name: str
    token: tokens.Token | None = None

    @property
    def scope(self) -> tokens.Scope:
        """What the caller may do; a key from the settings and an anonymous request allow
        everything."""
        return "write" if self.token is None else self.token.scope


CALLER = web.RequestKey("caller", Caller)
IS_VALID: web.RequestKey[Any] = web.RequestKey("is_valid")


class Authenticator:
    """A middleware that rejects unauthenticated requests.

    A request without a valid key or token is rejected with 401; one whose token has expired, or has
    a scope that does not cover the request, with 403. `store` holds the tokens; it is queried for
    each request, so that a revoked token is rejected immediately. With `anonymous`, requests
    without a token are accepted while no tokens exist, except (403) requests from pages of other
    sites and, if the server `is_local`, requests that name another host."""

    __middleware_version__ = 1

    def __init__(
        self,
        keys: Sequence[str],
        store: Any,
        clock: Clock,
        *,
        anonymous: bool = False,
        is_local: bool = True,
    ) -> None:
        self._keys = [key.encode() for key in keys]
        self._store: Documents | None = documents_of(store)
        self._clock = clock
        self._anonymous = anonymous and not keys
        self._is_local = is_local
        self._look_again_at = float("-inf")
        self._logged_since, self._logged = float("-inf"), 0

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Authenticate a request, then pass it to the handler."""
        if request.path not in OPEN and not is_page(request.path):
            refused = await self._refused(request)
            if refused is not None:
                self._log(request, refused.status)
                return refused
        response = await handler(request)
        if (caller := caller_of(request)) is not None and not response.prepared:
            response.headers[SCOPE_HEADER] = caller.scope
        return response

    async def _refused(self, request: web.Request) -> web.Response | None:
        sent = [each for each in (*tokens_sent(request), _token_of_cookie(request)) if each]
        if any([self._is_key(each) for each in sent]):  # noqa: C419 -- a list: constant time
            request[CALLER] = Caller("a key of the settings")
            return None
        found = await self._known(sent)
        for each in found:
            if each.allows(_writes(request), self._clock.now()):
                request[CALLER] = Caller(each.name, each)
                request[IS_VALID] = partial(self._is_valid, each)
                return None
        if found:
            return refusal(403, f"The token {found[0].name} has expired, or does not allow this.")
        if not await self._answers_anonymous():
            sentence = "Missing or invalid token: send Authorization: Bearer TOKEN, or x-api-key."
            return refusal(401, sentence, {"WWW-Authenticate": "Bearer"})
        if self._is_local and not names_this_machine(request):
            return refusal(403, "This server answers requests to localhost alone.")
        if is_of_another_site(request):
            return refusal(403, "This server answers no pages of other sites.")
        request[CALLER] = Caller("anybody")
        return None

    async def allows(self, token: str) -> bool:
        """Return whether a token is valid, for any scope.

        Args:
            token: The secret sent by the client; compared in constant time.
        """
        if self._is_key(token):
            return True
        return any(each.allows(False, self._clock.now()) for each in await self._known([token]))

    def _is_key(self, secret: str) -> bool:
        data = secret.encode("utf-8", "surrogateescape")
        return any([hmac.compare_digest(data, key) for key in self._keys])  # noqa: C419 -- all

    async def _known(self, secrets: Sequence[str]) -> list[tokens.Token]:
        store = self._store
        if store is None or not secrets:
            return []
        found = await asyncio.to_thread(lambda: [tokens.known(store, each) for each in secrets])
        return [each for each in found if each is not None]

    async def _answers_anonymous(self) -> bool:
        now = self._clock.monotonic()
        if self._anonymous and self._store is not None and now >= self._look_again_at:
            # Once a token exists, requests need one even after the last one is revoked.
            self._anonymous = not await asyncio.to_thread(self._store.documents, tokens.KIND)
            self._look_again_at = now + _ANONYMOUS_LOOK
        return self._anonymous

    async def _is_valid(self, token: tokens.Token) -> bool:
        """Return whether a token that was valid at the start of its request still is."""
        if not token.allows(False, self._clock.now()):
            return False
        store = self._store
        assert store is not None, "the token is of it"
        try:
            document = await asyncio.to_thread(store.document, tokens.KIND, token.digest)
        except MetadataUnavailable:  # unknown; reading the records will fail with this error
            return True
        return document is not None

    def _log(self, request: web.Request, status: int) -> None:
        """Log a rejected request, with a rate limit, so that strangers cannot fill the disk."""
        now = self._clock.monotonic()
        if now - self._logged_since > _LOGGED_IN:
            if self._logged > _LOGGED:
                _log.warning("%d more requests were refused.", self._logged - _LOGGED)
            self._logged_since, self._logged = now, 0
        self._logged += 1
        if self._logged <= _LOGGED:
            _log.warning(
                "%s %s of %s is refused: %d",
                request.method, request.path[:_SHOWN], request.remote, status,
            )  # fmt: skip


def check_guarded(host: str, keys: Sequence[str], store: Any, *, anonymous: bool) -> None:
    """Check that a server listening on this host requires authentication from other machines.

    Args:
        host: The name or address of the host.
        keys: The secrets from the settings; empty for none.
        store: The metadata store, which may keep tokens.
        anonymous: Whether requests without a token are allowed.

    Raises:
        InvalidSetting: If other machines can reach the host and no keys or tokens are required, or
            a key is too short.
    """
    if is_loopback(host):
        return
    kept = documents_of(store)
    if anonymous:
        raise InvalidSetting(
            f"--no-auth would let everyone who reaches {host} run code here or change records: "
            "listen on 127.0.0.1, or make tokens (aflow token create NAME)."
        )
    if any(len(key) < _SHORTEST_KEY for key in keys):
        raise InvalidSetting(
            f"Everyone who reaches {host} could guess the key: AFLOW_SERVICE_AUTH_KEY needs at "
            f"least {_SHORTEST_KEY} characters there (`openssl rand -hex 32` makes one)."
        )
    if not keys and (kept is None or not kept.documents(tokens.KIND)):
        raise InvalidSetting(
            f"Everyone who reaches {host} could run code here or change records: make a token "
            "that clients have to send (aflow token create NAME), set AFLOW_SERVICE_AUTH_KEY to "
            "one, or listen on 127.0.0.1."
        )


def refusal(
    status: int,
    sentence: str,
    headers: Mapping[str, str] | None = None,
    fields: Sequence[str] = ("error", "message"),
) -> web.Response:
    """Return an uncacheable error response.

    Clients of aflow's routes read the field `error`, those of Metaflow's service `message`; routes
    that both use send both fields.

    Args:
        status: The HTTP status, 4xx or 5xx.
        sentence: The error, in one sentence.
        headers: Additional headers of the response, or None.
        fields: The names of the fields that contain the sentence.
    """
    return web.json_response(
        dict.fromkeys(fields, sentence),
        status=status,
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def caller_of(request: web.Request) -> Caller | None:
    """Return the caller who sent the request; None for a request that was not authenticated.

    Args:
        request: The request, after it has passed the authenticator.
    """
    return request.get(CALLER)


async def attended(request: web.Request, work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; cancel it if the client disconnects or its token becomes invalid.

    Args:
        request: The request; its connection and its token are checked every `LOOK` seconds.
        work: The coroutine that produces the response.

    Returns:
        What the coroutine returned.

    Raises:
        ConnectionResetError: If the client has disconnected.
        HTTPUnauthorized: If the token was revoked or has expired in the meantime.
    """
    is_valid = request.get(IS_VALID)
    task = asyncio.get_running_loop().create_task(work)
    try:
        while not (await asyncio.wait([task], timeout=LOOK))[0]:
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("The client has gone.")
            if is_valid is not None and not await is_valid():
                raise web.HTTPUnauthorized(reason="The token was revoked, or has expired.")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


async def send_stream(
    request: web.Request, response: web.StreamResponse, work: Coroutine[Any, Any, None]
) -> web.StreamResponse:
    """Run the coroutine that writes a prepared response, and finish the response.

    The status is sent already, so an error cannot be reported to the client: if the token becomes
    invalid, the client stops reading or the records cannot be read, the connection is aborted and
    the reason logged."""
    try:
        await attended(request, work)
        await response.write_eof()
    except ConnectionResetError:  # the client has disconnected
        pass
    except (TimeoutError, AflowError, web.HTTPUnauthorized) as error:
        why = error.reason if isinstance(error, web.HTTPUnauthorized) else str(error)
        _log.warning(
            "A stream of %s is cut off: %s", request.remote, why or "its client does not read it."
        )
        if request.transport is not None:
            request.transport.abort()
    return response


def tokens_sent(request: web.Request) -> tuple[str, str]:
    """Return the tokens in the headers `Authorization: Bearer` and `x-api-key` (Metaflow's
    clients); an empty string for each that is missing.

    Args:
        request: The request.
    """
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return bearer, request.headers.get("x-api-key", "").strip()


def _token_of_cookie(request: web.Request) -> str:
    """Return the token in the cookie of a logged-in browser.

    Empty if the request may change data and lacks the header that only aflow's pages send."""
    is_safe = request.method in ("GET", "HEAD", "OPTIONS")
    is_ours = is_safe or PAGE_HEADER in request.headers
    return request.cookies.get(cookie_of(request), "") if is_ours else ""


def cookie_of(request: web.Request) -> str:
    """Return the name of the login cookie, which contains the port as the browser sees it.

    Browsers share cookies between the ports of a host: without the port in the name, two servers on
    one machine would overwrite each other's cookie.

    Args:
        request: The request; its header `Host` contains the port.
    """
    _, colon, port = request.host.rpartition(":")
    has_port = colon and port.isascii() and port.isdigit() and len(port) <= 5
    return f"aflow_token_{port}" if has_port else "aflow_token"


def is_page(path: str) -> bool:
    """Return whether a path belongs to the pages of the web UI or their files, which hold no data.

    Args:
        path: The decoded path of the URL.
    """
    return path in ("/", "/ui") or (path.startswith("/ui/") and path != "/ui/links")


def _writes(request: web.Request) -> bool:
    """Return whether the request changes data. Calls of the metadata port are all POST."""
    if request.path.startswith(OWN_CALLS):
        return request.path.removeprefix(OWN_CALLS) in WRITES
    return request.method not in ("GET", "HEAD", "OPTIONS")


# ------------------------------------------------------------------ requests of browsers

# A page of any site can make its visitor's browser send requests to the visitor's own machine
# (CSRF). A server without tokens detects them by the headers that browsers add.


def is_loopback(host: str) -> bool:
    """Return whether the host is a loopback name or address.

    Args:
        host: The name or address of the host.
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def names_this_machine(request: web.Request) -> bool:
    """Return whether a request is addressed to `localhost` or a loopback address. Other names can
    be made to resolve to 127.0.0.1 by their owner (DNS rebinding).

    Args:
        request: The request; browsers set its header `Host` from the address of the page.
    """
    host = request.host
    name, colon, port = host.rpartition(":")
    return is_loopback(name if colon and port.isdigit() else host)


def is_of_another_site(request: web.Request) -> bool:
    """Return whether a browser sent the request for a page of another site.

    Args:
        request: The request; without the headers that browsers add, the result is False.
    """
    if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        return True
    origin = request.headers.get("Origin")
    return origin is not None and origin != f"{request.scheme}://{request.host}"
