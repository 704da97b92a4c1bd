"""Bearer tokens: what each caller of a server may do. The store has their digests alone.

A server that listens to its own machine and has no other token takes the *local token* of its user,
in a file that nobody else can read: commands of that user send it by themselves.

A token is `aflow_` and 256 random bits, so that its SHA-256 gives nothing away. The document of a
token is named by its digest; what people call it, what it allows and until when stand in it.
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
_LISTENS = "0A"  # the state of a socket that listens, in /proc/net/tcp

Scope = Literal["read", "write"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class Token(NamedTuple):
    """What is kept of a token. `scope` is `read`, or `write` for all; times are in seconds since
    the epoch, `expires_at` None for never. `digest` tells tokens apart, and is not a secret."""

    name: str
    scope: Scope
    created_at: float
    expires_at: float | None
    digest: str

    def allows(self, writing: bool, now: float) -> bool:
        """Return whether a request with this token is allowed.

        Args:
            writing: Whether the request changes something.
            now: The present time, in seconds since the epoch.
        """
        if self.expires_at is not None and now >= self.expires_at:
            return False
        return self.scope == "write" or not writing


def create(
    store: Documents, name: str, scope: Scope, now: float, seconds: float | None = None
) -> str:
    """Make a token. Its text is returned this once: the store keeps its digest alone.

    Args:
        store: The store of the tokens.
        name: What people call the token; no two have the same name.
        scope: What it allows: `read` or `write`.
        now: The present time, in seconds since the epoch.
        seconds: After how many seconds it expires; None for never.

    Returns:
        The text of the token.

    Raises:
        InvalidInput: The name is taken, or not allowed.
        MetadataError: The store does not answer.
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
    """Revoke a token: from now on no request with it is allowed.

    Args:
        store: The store of the tokens.
        name: The name of the token; of one whose document is damaged, its digest.

    Raises:
        NotFound: There is no token of this name.
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
        store: The store of the tokens.
    """
    return sorted(map(_read, store.documents(KIND)))


def known(store: Documents, secret: str) -> Token | None:
    """Return the token of a request; None where it is unknown. It is looked up by its digest: how
    long that takes reveals nothing of the token.

    Args:
        store: The store of the tokens.
        secret: The text that the request carries.
    """
    return of_digest(store, digest(secret))


def of_digest(store: Documents, digest: str) -> Token | None:
    """Return the token with this digest; None where there is none, or it was revoked.

    Args:
        store: The store of the tokens.
        digest: The digest, as `digest` makes it.
    """
    found = store.document(KIND, digest)
    return None if found is None else _read(found)


def digest(secret: str) -> str:
    """Return the digest by which the store knows a token: its SHA-256 in hex.

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
    """Return the token of this user for servers on this machine, and make it if there is none.

    Args:
        folder: The folder that keeps it; None for the user's own.

    Raises:
        InvalidSetting: It cannot be kept, or others can read it.
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
    """The token in the file; None where there is none. Raises OSError and InvalidSetting."""
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
    """Return the headers of this program's requests to a server or service: the key of the
    settings; without one, the local token, if a server of this user listens there.

    Args:
        url: The URL of the server.

    Raises:
        InvalidSetting: The settings of the key cannot be used.
    """
    headers = service_headers(url)
    if "x-api-key" not in headers:
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:  # the port is not a number, a bracket is not closed
            raise InvalidSetting(f"{as_mentioned(url)} is not an address of a server.") from None
        if is_this_machine(parts.hostname or "") and _is_own_server(port):
            try:
                token = _read_local(user_folder() / _LOCAL)
            except OSError:  # a home that this user cannot look into
                token = None
            if token is not None:
                headers["x-api-key"] = token
    return headers


def is_this_machine(host: str) -> bool:
    """Return whether a host is this machine, by a name that cannot mean another.

    Args:
        host: The name or the address of a host, as in a URL.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_own_server(port: int) -> bool:
    """Whether only this user, or root, listens on the port: another user that does, while no server
    runs there, would be sent the token. Where that cannot be seen (as it is in Linux), it is
    assumed."""
    for table in ("net/tcp", "net/tcp6"):
        for line in (read_proc(table) or b"").splitlines()[1:]:
            fields = line.decode().split()
            listens = fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port
            if listens and int(fields[7]) not in (0, os.geteuid()):
                return False
    return True
