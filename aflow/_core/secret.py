"""A text that is not to be seen: it shows stars, and whatever would write it down fails."""

from __future__ import annotations

from typing import Any, NoReturn

_SHOWN = "****"


class Secret:
    """Holds a key or a password. `reveal` alone gives it; a log, a traceback, an f-string or JSON
    of it shows four stars or fails, and it can neither be pickled nor copied into an artifact."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one place that sends or compares it."""
        return self._text

    def __repr__(self) -> str:
        return _SHOWN

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        import hmac  # loads OpenSSL, and most settings hold no secret

        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("A secret is not pickled: store what it is needed for, not the secret.")
