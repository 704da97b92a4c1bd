"""Bearer tokens: what each caller of a server is allowed to do. The store holds only their digests.

A server that listens on localhost and has no other token accepts the *local token* of its user,
which is in a file that only this user can read. Commands of that user send it automatically.

A token is `aflow_` and 256 random bits, so that its SHA-256 reveals nothing about it. The document
of a token is named by the digest, and contains the token's name, scope and expiry.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args
from urllib.parse import urlsplit

from aflow._core.secret import as_mentioned
from aflow._core.settings import service_headers, user_folder
from aflow._core.system import read_proc
from aflow.errors import InvalidInput, InvalidSetting, MetadataUnavailable, NotFound

if TYPE_CHECKING:
    from aflow.metadata.base import Document, Documents

KIND = "token"
_HEAD = "aflow_"
_LOCAL = "server-token"  # the file of the local token
_LISTENS = "0A"  # the state of a listening socket in /proc/net/tcp

Scope = Literal["read", "write"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class Token(NamedTuple):
    """The stored data of a token. `scope` is `read`, or `write`, which includes reading. Times are
    in seconds since the epoch; `expires_at` is None if the token never expires. `digest` identifies
    the token, and is not a secret."""

    name: str
    scope: Scope
    created_at: float
    expires_at: float | None
    digest: str

    def allows(self, writing: bool, now: float) -> bool:
        """Return whether a request with this token is allowed.

        Args:
            writing: Whether the request changes something.
            now: The current time, in seconds since the epoch.
        """
        if self.expires_at is not None and now >= self.expires_at:
            return False
        return self.scope == "write" or not writing


def create(
    store: Documents, name: str, scope: Scope, now: float, seconds: float | None = None
) -> str:
    """Create a token. Its text is returned only here: the store holds only the digest.

    Args:
        store: The document store of the tokens.
        name: A unique name for users, at most 100 printable characters.
        scope: `read`, or `write`, which includes reading.
        now: The current time, in seconds since the epoch.
        seconds: Lifetime in seconds; None for an unlimited one.

    Returns:
        The text of the token.

    Raises:
        InvalidInput: If the name is taken or not allowed.
        MetadataError: If the store does not respond.
    """
    if not name or len(name) > 100 or not name.isprintable():
        raise InvalidInput("A token needs a name of at most 100 printable characters.")
    if any(each.name == name for each in tokens(store)):
        raise InvalidInput(f"The token {name!r} already exists: revoke it, or choose another name.")
    secret = _HEAD + secrets.token_urlsafe(32)
    until = None if seconds is None else now + seconds
    kept = Token(name, scope, now, until, digest(secret))
    fields = {field: value for field, value in kept._asdict().items() if field != "digest"}
    store.put_document(KIND, kept.digest, json.dumps(fields).encode())
    return secret


def revoke(store: Documents, name: str) -> None:
    """Revoke a token: requests with it are rejected from now on.

    Args:
        store: The document store of the tokens.
        name: The name of the token, or its digest if its document is damaged.

    Raises:
        NotFound: If there is no such token.
    """
    found = [each.name for each in store.documents(KIND) if name in (each.name, _name_in(each))]
    if not found:
        raise NotFound(f"There is no token {name!r}.")
    for each in found:
        store.delete_document(KIND, each)


def _name_in(document: Document) -> str | None:
    with contextlib.suppress(MetadataUnavailable):
        return _read(document).name
    return None


def tokens(store: Documents) -> list[Token]:
    """Return all tokens, by name.

    Args:
        store: The document store of the tokens.
    """
    return sorted(map(_read, store.documents(KIND)))


def known(store: Documents, secret: str) -> Token | None:
    """Return the token of a request, or None if it is unknown. It is looked up by its digest, so
    that the duration reveals nothing about the token.

    Args:
        store: The document store of the tokens.
        secret: The text of the token in the request.
    """
    return of_digest(store, digest(secret))


def of_digest(store: Documents, digest: str) -> Token | None:
    """Return the token with this digest, or None if there is none or it was revoked.

    Args:
        store: The document store of the tokens.
        digest: The result of `digest`.
    """
    found = store.document(KIND, digest)
    return None if found is None else _read(found)


def digest(secret: str) -> str:
    """Return the digest of a token, by which it is stored: its SHA-256 in hex.

    Args:
        secret: The text of the token.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _read(document: Document) -> Token:
    try:
        return Token(**json.loads(document.data), digest=document.name)
    except (ValueError, TypeError) as error:
        raise MetadataUnavailable(f"The token {document.name} is damaged: revoke it.") from error


# ------------------------------------------------------------------ the token of this user


def local_token(folder: Path | None = None) -> str:
    """Return the token of this user for servers on this machine; create it if there is none.

    Args:
        folder: The folder of the token's file; None for the user's folder (AFLOW_HOME).

    Raises:
        InvalidSetting: If the file cannot be written, or others can read it.
    """
    folder = folder or user_folder()
    file = folder / _LOCAL
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (found := _read_local(file)) is not None:
            return found
        descriptor, made = tempfile.mkstemp(prefix=f".{_LOCAL}-", dir=folder)  # with mode 600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as new:
                new.write(_HEAD + secrets.token_urlsafe(32) + "\n")
            with contextlib.suppress(FileExistsError):  # another server was first
                os.link(made, file)
        finally:
            os.unlink(made)
        kept = _read_local(file)
    except OSError as error:
        raise InvalidSetting(
            f"The token of this server cannot be kept in {file} ({error.strerror}): set AFLOW_HOME "
            "to a folder that can be written, make a token (aflow token create NAME), set "
            "AFLOW_SERVICE_AUTH_KEY to one, or start the server with --no-auth."
        ) from error
    assert kept is not None, "it was just made"
    return kept


def _read_local(file: Path) -> str | None:
    """Return the token in the file, or None if there is none. Raises OSError, InvalidSetting."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with os.fdopen(descriptor, "rb") as opened:
        found = os.fstat(descriptor)
        is_own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        text = opened.read(200) if is_own else b""
    token = text.decode("ascii", "replace").strip()
    if not is_own or found.st_mode & 0o077 or not re.fullmatch(rf"{_HEAD}[\w-]{{40,100}}", token):
        raise InvalidSetting(
            f"{file} is not a token that only this user can read: remove it, and start the server "
            "again, which makes another."
        )
    return token


def headers_for(url: str) -> dict[str, str]:
    """Return the headers for requests to a server or service: the key from the settings, or else
    the local token if a server of this user listens at the URL.

    Args:
        url: The URL of the server; without a port, the default of its scheme applies.

    Raises:
        InvalidSetting: If the URL or the setting of the key is invalid, or others can read the file
            of the local token.
    """
    headers = service_headers(url)
    if "x-api-key" not in headers:
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:  # an invalid port, or an unclosed bracket
            raise InvalidSetting(f"{as_mentioned(url)} is not an address of a server.") from None
        if is_this_machine(parts.hostname or "") and _is_own_server(port):
            try:
                token = _read_local(user_folder() / _LOCAL)
            except OSError:  # the user may not read the home folder
                token = None
            if token is not None:
                headers["x-api-key"] = token
    return headers


def is_this_machine(host: str) -> bool:
    """Return whether a host name certainly denotes this machine: a loopback address, or
    `localhost`.

    Args:
        host: The host name or address in a URL.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_own_server(port: int) -> bool:
    """Return whether only processes of this user or root listen on the port. Otherwise the token
    could be sent to another user, who listens while no server runs. True if /proc is not
    available."""
    for table in ("net/tcp", "net/tcp6"):
        for line in (read_proc(table) or b"").splitlines()[1:]:
            fields = line.decode().split()
            listens = fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port
            if listens and int(fields[7]) not in (0, os.geteuid()):
                return False
    return True
