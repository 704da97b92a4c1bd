"""Texts that are not to be seen: a key shows stars and cannot be written down, and the URL of a
server shows itself without its password, wherever it goes."""

from __future__ import annotations

import re
from typing import Any, NoReturn

_SHOWN = "****"


class Secret:
    """Holds a key or a password. `reveal` alone gives it; a log, a traceback, an f-string or JSON
    of it shows four stars or fails, and it can neither be pickled nor copied into an artifact."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself, for the one place that sends or compares it."""
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


# ------------------------------------------------------------ URLs with a password


class SecretUrl(str):
    """A URL with a password. As a text it has none: so it is shown, compared, hashed, pickled, and
    written as JSON. `revealed` alone gives the whole, to what connects: a place that forgets to ask
    for it is refused by the server, and gives nothing away."""

    __slots__ = ("_whole",)

    _whole: str

    def __new__(cls, url: str) -> SecretUrl:
        """The URL as a user has written it: what is not quoted in its password is quoted."""
        self = super().__new__(cls, without_passwords(url))
        self._whole = revealed(url) if isinstance(url, SecretUrl) else _quoted(url)
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return str, (str(self),)

    def __copy__(self) -> SecretUrl:
        return self

    def __deepcopy__(self, memo: Any) -> SecretUrl:
        return self


def sealed(url: str) -> str:
    """Return the URL, as a SecretUrl if it holds a password.

    Args:
        url: The URL.
    """
    return SecretUrl(url) if without_passwords(url) != url else url


def revealed(url: str) -> str:
    """Return the URL with its password, for what connects, or starts a program that does.

    Args:
        url: The URL.
    """
    return url._whole if isinstance(url, SecretUrl) else url


# Texts, which `re` compiles when the first URL has to be looked at: most programs have none.
# Options of libpq and others that hold a password: password, sslpassword, oauth_client_secret.
_OPTION = r"[\w.-]*(?:password|passwd|pwd|secret|token)[\w.-]*=[^&#\s]*"
_OPTIONS = rf"(?i)([?&]){_OPTION}(?:&{_OPTION})*(&?)"
_URL = r"(?i)(\b[a-z][a-z0-9+.-]*://)([^\s'\"<>]*)"
# Those of databases. A password in them is often written as it is, with a slash or a blank; so a
# word that is one such URL is one from its start to its end.
_DATABASE = r"(?:postgres|redis)[a-z0-9+.-]*://"
_WORD = rf"(?is)((?:--?[\w-]+=)?{_DATABASE})(.*)"
_HOST = r"(?:\[[^\]]*\]|[^:@\[\]]*)(?::\d*)?"


def without_passwords(text: str) -> str:
    """Return a text (a word of a command line, a URL, an error) without the passwords of its URLs,
    as it may be recorded and sent to others.

    Args:
        text: A word of a command line, a URL, or the text of an error.
    """
    text = str(text)
    if "://" not in text or (text.count(":") == 1 and "@" not in text and "=" not in text):
        return text
    word = re.fullmatch(_WORD, text)
    text = word[1] + _without(word[1], word[2]) if word else re.sub(_URL, _shown, text)
    return re.sub(_OPTIONS, lambda found: found[1] if found[2] else "", text)


def without_account(url: str) -> str:
    """Return the URL of a server without user and password, and without options that are secret.

    Args:
        url: The URL.
    """
    from urllib.parse import urlsplit, urlunsplit  # for those alone who have a queue on a server

    parts = urlsplit(without_passwords(url))
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def as_mentioned(text: str) -> str:
    """Return a text that is not a well-formed URL without what may be a password, for the error
    that mentions it: whatever stands between a colon and an @ counts as one.

    Args:
        text: The text.
    """
    return re.sub(r":(?!//)\S*@", ":****@", without_passwords(text))


def _shown(found: re.Match[str]) -> str:
    return found[1] + _without(found[1], found[2])


def _without(scheme: str, rest: str) -> str:
    user, password, place = _divided(scheme, rest)
    return rest if password is None else f"{user}@{place}" if user and place else user or place


def _quoted(url: str) -> str:
    """The URL with each character of its password quoted that means something in a URL."""
    from urllib.parse import quote  # few programs have such a URL

    scheme, mark, rest = url.partition("://")
    user, password, place = _divided(scheme + mark, rest)
    if password is None or "@" not in rest:
        return url
    password = quote(re.sub(r"%(?![0-9a-fA-F]{2})", "%25", password), safe="%!$&'()*+,;=:~")
    return f"{scheme}{mark}{user}:{password}@{place}"


def _divided(scheme: str, rest: str) -> tuple[str, str | None, str]:
    """User, password and place in what follows the scheme of a URL."""
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    end = place.rfind("@")
    if re.match(_DATABASE, scheme.rpartition("=")[2], re.IGNORECASE):
        end = re.split(r"[?#][\w.-]+=", rest, maxsplit=1)[0].rfind("@")
        if end < 0 and not all(re.fullmatch(_HOST, each) for each in place.split(",")):
            end = rest.rfind("@")
            if end < 0:  # a host is missing, or its port is not a number: it may be a password
                return place.partition(":")[0], place.partition(":")[2], rest[len(place) :]
    user, colon, password = rest[: max(end, 0)].partition(":")
    return user, password if colon else None, rest[end + 1 :]
