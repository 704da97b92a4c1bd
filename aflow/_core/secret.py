"""Types that keep keys and passwords out of logs, error messages, JSON and pickles."""

from __future__ import annotations

import re
from typing import Any, NoReturn

_SHOWN = "****"


class Secret:
    """A key or a password. Only `reveal` returns the text.

    Its repr, also in logs, tracebacks and f-strings, is four stars. It cannot be written as JSON,
    pickled or copied.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text, for code that sends or compares it."""
        return self._text

    def __repr__(self) -> str:
        return _SHOWN

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        import hmac  # imports OpenSSL, which most programs do not need

        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("A secret is not pickled: store what it is needed for, not the secret.")


# ------------------------------------------------------------ URLs with a password


class SecretUrl(str):
    """A URL with a password, whose value as a str is the URL without the password.

    It is therefore shown, compared, hashed, pickled and written as JSON without the password. Only
    `revealed` returns the whole URL. If code forgets to call it, its connection is rejected, but
    the password is not disclosed.
    """

    __slots__ = ("_whole",)

    _whole: str

    def __new__(cls, url: str) -> SecretUrl:
        """Create it from a URL of a user; special characters in the password are quoted."""
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
    """Return a URL, as a SecretUrl if it contains a password.

    Args:
        url: The URL.
    """
    return SecretUrl(url) if without_passwords(url) != url else url


def revealed(url: str) -> str:
    """Return a URL with its password, to connect or to pass it to a child process.

    Args:
        url: The URL.
    """
    return url._whole if isinstance(url, SecretUrl) else url


# Patterns as text, which `re` compiles when they are first used: most programs have no such URL.
# Options with a password of libpq and others: password, sslpassword, oauth_client_secret.
_OPTION = r"[\w.-]*(?:password|passwd|pwd|secret|token)[\w.-]*=[^&#\s]*"
_OPTIONS = rf"(?i)([?&]){_OPTION}(?:&{_OPTION})*(&?)"
_URL = r"(?i)(\b[a-z][a-z0-9+.-]*://)([^\s'\"<>]*)"
# URLs of databases. Their passwords are often not quoted, and may contain slashes and spaces; so an
# argument that starts with such a URL is one URL up to its end.
_DATABASE = r"(?:postgres|redis)[a-z0-9+.-]*://"
_WORD = rf"(?is)((?:--?[\w-]+=)?{_DATABASE})(.*)"
_HOST = r"(?:\[[^\]]*\]|[^:@\[\]]*)(?::\d*)?"


def without_passwords(text: str) -> str:
    """Return a text without the passwords of the URLs in it, to record it or send it to others.

    Args:
        text: A command-line argument, a URL, or an error message.
    """
    text = str(text)
    if "://" not in text or (text.count(":") == 1 and "@" not in text and "=" not in text):
        return text
    word = re.fullmatch(_WORD, text)
    text = word[1] + _without(word[1], word[2]) if word else re.sub(_URL, _shown, text)
    return re.sub(_OPTIONS, lambda found: found[1] if found[2] else "", text)


def without_credentials(text: str) -> str:
    """Return a text without user names, passwords and tokens in its URLs, for packages and indexes.

    Args:
        text: A URL, or lines that may contain URLs, such as the output of uv.
    """
    # Up to the last @ of the host: a password may contain others.
    return re.sub(r"(?i)([a-z][a-z0-9+.-]*://)[^/?#\s]+@", r"\1", text)


def without_account(url: str) -> str:
    """Return the URL of a server without user and password, and without secret options.

    Args:
        url: The URL.
    """
    scheme, mark, rest = without_passwords(url).partition("://")
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    return f"{scheme}{mark}{rest[place.rfind('@') + 1 :]}"


def as_mentioned(text: str) -> str:
    """Return a malformed URL without possible passwords, for error messages.

    Everything between a colon and an @ counts as a password.

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
    """Return the URL with the special characters in its password quoted."""
    from urllib.parse import quote  # imported here to keep the start fast

    scheme, mark, rest = url.partition("://")
    user, password, place = _divided(scheme + mark, rest)
    if password is None or "@" not in rest:
        return url
    password = quote(re.sub(r"%(?![0-9a-fA-F]{2})", "%25", password), safe="%!$&'()*+,;=:~")
    return f"{scheme}{mark}{user}:{password}@{place}"


def _divided(scheme: str, rest: str) -> tuple[str, str | None, str]:
    """Return user, password (or None) and the rest of a URL, from the text after the scheme."""
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    end = place.rfind("@")
    if re.match(_DATABASE, scheme.rpartition("=")[2], re.IGNORECASE):
        end = re.split(r"[?#][\w.-]+=", rest, maxsplit=1)[0].rfind("@")
        if end < 0 and not all(re.fullmatch(_HOST, each) for each in place.split(",")):
            end = rest.rfind("@")
            if end < 0:  # no valid host: the text after the colon may be a password
                return place.partition(":")[0], place.partition(":")[2], rest[len(place) :]
    user, colon, password = rest[: max(end, 0)].partition(":")
    return user, password if colon else None, rest[end + 1 :]
