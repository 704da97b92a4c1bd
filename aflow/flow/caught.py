"""What @catch stores in place of the exception that a step ended with."""

from __future__ import annotations


class ExceptionWrapper:
    """A record of an exception that can be stored and read anywhere.

    `type` is the qualified name of its class, `message` its text, `traceback` the formatted
    traceback. The exception itself is kept as a pickle inside: a reader who lacks its class can
    still read all the rest.
    """

    __slots__ = ("_pickled", "message", "traceback", "type")

    def __init__(self, type: str, message: str, traceback: str, pickled: bytes | None = None):
        self.type = type
        self.message = message
        self.traceback = traceback
        self._pickled = pickled

    @classmethod
    def of(cls, error: BaseException, text: str | None = None) -> ExceptionWrapper:
        """The record of an exception; `text` is its formatted traceback, made here without it."""
        import traceback  # only where a step failed: start-up does not pay for it

        kind = type(error)
        name = (
            kind.__qualname__
            if kind.__module__ == "builtins"
            else (f"{kind.__module__}.{kind.__qualname__}")
        )
        if text is None:
            text = "".join(traceback.format_exception(error))
        return cls(name, _text_of(error), text, _pickle_of(error))

    @property
    def exception(self) -> BaseException | None:
        """The exception, without its traceback; None where it cannot be stored, or not be read
        here because its class is missing."""
        if self._pickled is None:
            return None
        import pickle

        try:
            value = pickle.loads(self._pickled)  # noqa: S301 -- from the user's own store
        except Exception:  # noqa: BLE001 -- the promise: what cannot be read here is None
            return None
        return value if isinstance(value, BaseException) else None

    def __repr__(self) -> str:
        return f"<ExceptionWrapper {self.type}: {self.message}>"

    def __str__(self) -> str:
        return self.traceback


def _text_of(error: BaseException) -> str:
    """The exception's text; an exception whose own __str__ fails still has a record."""
    try:
        return str(error)
    except Exception as another:  # noqa: BLE001 -- it is the user's code, and it failed already
        return f"(no text: its __str__ raised {type(another).__name__})"


def _pickle_of(error: BaseException) -> bytes | None:
    """The exception as bytes; None for one that cannot be stored and read back."""
    import pickle

    try:
        pickled = pickle.dumps(error, protocol=5)
        # An exception whose __init__ takes other arguments than it passes on fails only here.
        pickle.loads(pickled)  # noqa: S301 -- made in the line above
    except Exception:  # noqa: BLE001 -- the promise: the record stands without it
        return None
    return pickled
