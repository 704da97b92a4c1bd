"""The pages of the web UI: static files, the page itself and the login.

The pages are clients of the public HTTP API. A logged-in browser keeps its token in a cookie that
scripts cannot read; requests that change data must carry a header that forms of other sites cannot
send. `aflow ui` logs a browser in with a single-use link.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from aflow.server.auth import PAGE_HEADER, cookie_of, refusal, tokens_sent
from aflow.server.request_bodies import json_of
from aflow.server.run_requests import fields_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

STATIC = Path(__file__).parent / "static"
_DAY = 12 * 3600  # lifetime of a login, in seconds
_CODE_LASTS = 60.0  # lifetime of a login link, in seconds
_MOST_CODES = 100
_TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".html": "text/html",
}
_PARTS = frozenset({".js", ".css"})
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_FILE = "{path:[a-z][a-z0-9/_-]{0,80}\\.[a-z]{2,4}}"
_INSIDE = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_./-]{0,600}")
_UNBUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>aflow</title>
<body><h1>The pages were not built</h1>
<p>This installation lacks the libraries of the web UI, which the build of the package brings from
npm. In a clone with npm on the machine: <code>python build_backend/aflow_build.py</code>. The API
of this server works without them (<a href="/openapi.json">its description</a>).</p></body></html>
"""


def _version() -> str:
    """Return a version of all static files, for their URLs."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(STATIC.rglob("*")):
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return f"v{digest.hexdigest()}"


class Pages:
    """Serves the pages. `allows(token)` returns whether a token is valid."""

    def __init__(self, allows: Callable[[str], Awaitable[bool]]) -> None:
        self._allows = allows
        self._codes: dict[str, tuple[float, str]] = {}  # login links: expiry and token by code

    def add_to(self, app: web.Application) -> None:
        """Register the routes of the pages."""
        app.router.add_get("/", self._home)
        app.router.add_get("/ui", self._home)
        app.router.add_get(f"/ui/static/{{version:v[0-9a-f]{{12}}}}/{_FILE}", self._file)
        app.router.add_get(f"/ui/static/{_FILE}", self._file)
        app.router.add_post("/ui/login", self._login)
        app.router.add_get("/ui/login", self._login_by_link)
        app.router.add_post("/ui/logout", self._logout)
        app.router.add_post("/ui/links", self._make_link)
        app.router.add_get("/ui/{path:.*}", self._page)

    async def _home(self, _: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/ui/"})

    async def _page(self, request: web.Request) -> web.StreamResponse:
        if not (STATIC / "vendor" / "preact.js").exists():
            return web.Response(text=_UNBUILT, content_type="text/html", status=501)
        text = (STATIC / "index.html").read_text("utf-8")
        # Pages have paths of several levels, so links to static files are relative to the top. The
        # URLs contain the version of the files, so that browsers can cache them forever.
        depth = request.match_info["path"].count("/")
        text = text.replace('"static/', f'"{"../" * depth}static/{_version()}/')
        headers = {**_HEADERS, "Cache-Control": "no-cache"}
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        path = STATIC / request.match_info["path"]
        kind = _TYPES.get(path.suffix)
        if kind is None or not path.is_file():
            return refusal(404, "There is no such file.")
        stat = path.stat()
        tag = f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"'
        is_current = request.match_info.get("version") == _version()
        cached = "public, max-age=31536000, immutable" if is_current else "no-cache"
        # Only documents that a browser renders need the policy; it shows scripts and style sheets
        # as text.
        guards = {"X-Content-Type-Options": "nosniff"} if path.suffix in _PARTS else _HEADERS
        headers = {**guards, "ETag": tag, "Cache-Control": cached, "Vary": "Accept-Encoding"}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        response = web.Response(
            body=path.read_bytes(), content_type=kind, charset="utf-8", headers=headers
        )
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async def _login(self, request: web.Request) -> web.StreamResponse:
        """Set the login cookie for a browser that sends a valid token (JSON, `token`)."""
        token = fields_of(await json_of(request)).get("token")
        if not isinstance(token, str) or not await self._allows(token):
            await asyncio.sleep(0.2)  # slows down guessing
            return refusal(401, "This token is not valid: it may have been revoked, or mistyped.")
        return self._logged_in(request, web.json_response({"status": "logged in"}), token)

    async def _make_link(self, request: web.Request) -> web.StreamResponse:
        """Return a code for a single login within a minute, with the token of this request."""
        now = asyncio.get_running_loop().time()
        self._codes = {c: e for c, e in self._codes.items() if e[0] > now}
        if len(self._codes) >= _MOST_CODES:
            return refusal(429, "Too many links were asked for: try again in a minute.")
        code = secrets.token_urlsafe(24)
        self._codes[code] = (now + _CODE_LASTS, next(filter(None, tokens_sent(request)), ""))
        return web.json_response({"code": code})

    async def _login_by_link(self, request: web.Request) -> web.StreamResponse:
        until, token = self._codes.pop(request.query.get("code", ""), (0.0, ""))
        to = request.query.get("to", "")
        target = f"/ui/{to}" if _INSIDE.fullmatch(to) else "/ui/"
        if until < asyncio.get_running_loop().time():
            return web.Response(
                text="This link was used already, or is too old: run `aflow ui` again.\n",
                status=410,
            )
        response = web.Response(status=303, headers={"Location": target})
        return self._logged_in(request, response, token) if token else response

    def _logged_in(self, request: web.Request, response: web.Response, token: str) -> web.Response:
        response.set_cookie(
            cookie_of(request), token, max_age=_DAY, httponly=True, samesite="Strict",
            secure=request.scheme == "https", path="/",
        )  # fmt: skip
        return response

    async def _logout(self, request: web.Request) -> web.StreamResponse:
        if PAGE_HEADER not in request.headers:  # a form of any site could log its visitors out
            return refusal(403, "Only the pages of this server log a browser out.")
        response = web.json_response({"status": "logged out"})
        response.del_cookie(cookie_of(request), path="/")
        return response
