"""Bearer tokens: who may ask a server for what. The store knows their digests alone.

A token is `aflow_` and 256 random bits, so that its SHA-256 gives nothing away. The document of a
token is named by its digest; what people call it, what it allows and until when stand in it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from aflow.errors import InvalidInput, MetadataUnavailable, NotFound

if TYPE_CHECKING:
    from aflow.metadata.base import Document, Documents

KIND = "token"
_HEAD = "aflow_"

Scope = Literal["read", "write"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class Token(NamedTuple):
    """What is kept of a token. `scope` is `read`, or `write` for all; times are in seconds since
    the epoch, `expires_at` None for never. `digest` tells tokens apart, and is no secret."""

    name: str
    scope: Scope
    created_at: float
    expires_at: float | None
    digest: str

    def allows(self, writing: bool, now: float) -> bool:
        """Whether a request may be answered whose token this is."""
        if self.expires_at is not None and now >= self.expires_at:
            return False
        return self.scope == "write" or not writing


def create(
    store: Documents, name: str, scope: Scope, now: float, seconds: float | None = None
) -> str:
    """Make a token that lasts so long; it is told this once. Raises InvalidInput for a name that is
    taken, and MetadataError."""
    if not name or len(name) > 100 or not name.isprintable():
        raise InvalidInput("A token needs a name of at most 100 printable characters.")
    if any(each.name == name for each in tokens(store)):
        raise InvalidInput(f"There is a token {name!r} already: revoke it, or take another name.")
    secret = _HEAD + secrets.token_urlsafe(32)
    until = None if seconds is None else now + seconds
    kept = Token(name, scope, now, until, digest(secret))
    fields = {field: value for field, value in kept._asdict().items() if field != "digest"}
    store.put_document(KIND, kept.digest, json.dumps(fields).encode())
    return secret


def revoke(store: Documents, name: str) -> None:
    """From now on nobody gets in by the token of this name. Raises NotFound."""
    found = [each for each in tokens(store) if each.name == name]
    if not found:
        raise NotFound(f"There is no token {name!r}.")
    for each in found:
        store.delete_document(KIND, each.digest)


def tokens(store: Documents) -> list[Token]:
    """All tokens, by name."""
    return sorted(map(_read, store.documents(KIND)))


def known(store: Documents, secret: str) -> Token | None:
    """The token that somebody shows; None where it is none. It is looked for by its digest: how
    long that takes tells nothing of the token."""
    found = store.document(KIND, digest(secret))
    return None if found is None else _read(found)


def digest(secret: str) -> str:
    """What the store knows of a token."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _read(document: Document) -> Token:
    try:
        return Token(**json.loads(document.data), digest=document.name)
    except (ValueError, TypeError) as error:
        raise MetadataUnavailable(f"The token {document.name} is damaged: revoke it.") from error
