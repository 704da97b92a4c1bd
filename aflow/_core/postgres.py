"""The driver, connection settings and error codes of PostgreSQL, for metadata and queues.

Importing this module raises MissingExtra if the driver is not installed.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from aflow._core.secret import revealed, sealed, without_passwords
from aflow.errors import MissingExtra

try:
    import psycopg
    from psycopg.rows import dict_row
    from psycopg.types.string import StrDumper, TextBinaryLoader, TextLoader
except ImportError as error:
    raise MissingExtra(
        "PostgreSQL needs the package psycopg: install aflow-runtime[postgres]."
    ) from error

__all__ = [
    "REFUSALS", "ROLLED_BACK", "TextBinaryLoader", "adapt_texts", "advice", "connection_options",
    "dict_row", "line", "psycopg", "state_of", "unescaped",
]  # fmt: skip

_SETTINGS: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
    "application_name": "aflow",
}
"""The options of each connection. They detect the loss of a server within half a minute."""
REFUSALS = ("28", "3D000")
"""Results of `state_of` if the server rejected the connection: a retry would not help."""
ROLLED_BACK = ("40001", "40P01")
"""Results of `state_of` if the server has rolled a transaction back, so that others could continue:
a serialization failure, or a deadlock. It may be repeated."""

# Advice by the prefix of an SQLSTATE.
_ADVICE = {
    "28": "the user or the password is wrong: check them in the URL",
    "3D000": "there is no such database: create it with `createdb`",
    "53100": "the disk of the server is full: free some space and resume the run",
    "53300": "the server has too many connections: raise its max_connections",
    "25006": "it is read-only: name the primary server",
    "42501": "the user may not do this: grant it CREATE on the database",
    "55P03": "it was kept locked for too long: see what else runs there",
    "57P01": "the server was shut down: start it and resume the run",
    "57P02": "the server has crashed: start it and resume the run",
    "57P03": "the server is starting: try again in a moment",
    "XX": "it is damaged: see the log of the server",
}


def connection_options(url: str) -> tuple[dict[str, Any], str | None]:
    """Return the options of libpq in a URL, with aflow's defaults, and its option `schema`, which
    is aflow's own; None if it has none.

    Args:
        url: The URL: all forms of libpq, such as several hosts or the folder of a socket.

    Raises:
        ValueError: If libpq cannot read the URL; the text of the error contains no password.
    """
    address, _, query = revealed(sealed(url)).partition("?")
    schema, kept = None, []
    for option in filter(None, query.split("&")):
        name, _, value = option.partition("=")
        if name == "schema":
            schema = unquote(value)
        else:
            kept.append(option)
    try:
        given = psycopg.conninfo.conninfo_to_dict(f"{address}?{'&'.join(kept)}")
    except psycopg.ProgrammingError as error:
        raise ValueError(line(error)) from None
    for host in str(given.get("host", "")).split(","):
        if not host.startswith("/"):  # otherwise the folder of a socket
            host.encode("idna")  # as a connection will; raises UnicodeError
    return {**_SETTINGS, **given}, schema


def state_of(error: psycopg.Error) -> str:
    """Return the SQLSTATE of an error; empty if it is not known.

    libpq reports none for a failed connection; in that case it is derived from the message of the
    server.

    Args:
        error: The error of the driver.
    """
    if error.sqlstate:
        return error.sqlstate
    text = str(error)
    if "authentication failed" in text or "no password supplied" in text:
        return "28"
    if "database" in text and "does not exist" in text:
        return "3D000"
    return "57P03" if "starting up" in text else ""


def advice(error: psycopg.Error) -> str | None:
    """Return what is wrong and what to do, if it is known for the SQLSTATE of an error.

    Args:
        error: The error of the driver.
    """
    state = state_of(error)
    return next((text for prefix, text in _ADVICE.items() if state.startswith(prefix)), None)


def line(error: psycopg.Error) -> str:
    """Return the message of an error in one line, without passwords.

    Args:
        error: The error of the driver.
    """
    text = without_passwords(" ".join(str(error).split())).rstrip(".?")
    return text or "the server cannot be reached"


def adapt_texts(adapters: psycopg.adapt.AdaptersMap) -> None:
    """Make a connection escape NUL characters in texts, which PostgreSQL cannot store.

    Args:
        adapters: The adapters of a connection, which are changed.
    """
    adapters.register_dumper(str, _Dumper)
    adapters.register_loader("text", _EscapedTextLoader)
    adapters.register_loader("text", _BinaryLoader)


class _Dumper(StrDumper):
    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\x1a", "\x1a1").replace("\0", "\x1a0"))


class _EscapedTextLoader(TextLoader):
    def load(self, data: Any) -> str:
        return unescaped(str(super().load(data)))


class _BinaryLoader(TextBinaryLoader):
    def load(self, data: Any) -> str:
        return unescaped(str(super().load(data)))


def unescaped(text: str) -> str:
    """Return a text from the database without the escapes of `adapt_texts`.

    Args:
        text: The escaped text.
    """
    return text.replace("\x1a0", "\0").replace("\x1a1", "\x1a") if "\x1a" in text else text
