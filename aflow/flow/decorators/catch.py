"""@catch: go on when a step has failed for good. Carried out by the scheduler and the runner."""

from __future__ import annotations

from typing import ClassVar

from aflow._core.records import dataclass
from aflow.flow.decorators.base import StepDecorator, written
from aflow.flow.names import is_artifact_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Catch(StepDecorator):
    """Let the flow go on when the step has failed for good.

    `self.<var>` is then an ExceptionWrapper, and None when the step succeeded. `print_exception`
    says whether the exception is printed into the task's log.
    """

    decorator_name: ClassVar[str] = "catch"
    var: str | None = None
    print_exception: bool = True

    def __post_init__(self) -> None:
        if self.var is not None and not is_artifact_name(self.var):
            raise self._fault("var", "the name of an artifact, which is not a reserved name")
        if not isinstance(self.print_exception, bool):
            raise self._fault("print_exception", "True or False")


catch = written(Catch)
"""Let the flow go on when the step has failed for good; see Catch."""


# What @catch stores in place of the exception that a step ended with.


class FailureHandledByCatch(Exception):
    """The process that ran the step has died, and @catch has settled the step."""


class ExceptionWrapper(Exception):
    """A record of an exception that can be stored and read anywhere.

    `type` is the name of its class, with the module ("builtins.ValueError"), `exception` its text
    and `stacktrace` the formatted traceback, as in Metaflow; `message` and `traceback` are the same
    two. The exception itself is kept as a pickle inside: a reader who lacks its class can still
    read all the rest.
    """

    def __init__(self, type: str, message: str, traceback: str, pickled: bytes | None = None):
        super().__init__(message)
        self.type = type
        self.exception = self.message = message
        self.stacktrace = self.traceback = traceback
        self._pickled = pickled

    @classmethod
    def of(
        cls, error: BaseException, text: str | None = None, name: str | None = None
    ) -> ExceptionWrapper:
        """Return the record of an exception. `text` is its formatted traceback and `name` that of
        its class, both made here without them.

        Args:
            error: The exception that the step has raised.
            text: Its formatted traceback; None to format it here.
            name: Its class, qualified by the module; None to take that of `error`.
        """
        import traceback  # only where a step failed: start-up does not pay for it

        kind = type(error)
        if text is None:
            text = "".join(traceback.format_exception(error))
        name = name or f"{kind.__module__}.{kind.__qualname__}"
        return cls(name, _text_of(error), text, _pickle_of(error))

    @property
    def original(self) -> BaseException | None:
        """The exception itself, without its traceback; None where it cannot be stored, or not be
        read here because its class is missing."""
        if self._pickled is None:
            return None
        import pickle

        try:
            value = pickle.loads(self._pickled)  # noqa: S301 -- from the user's own store
        except Exception:  # noqa: BLE001 -- the promise: what cannot be read here is None
            return None
        return value if isinstance(value, BaseException) else None

    def __reduce__(self) -> tuple[type[ExceptionWrapper], tuple[object, ...]]:
        return ExceptionWrapper, (self.type, self.message, self.traceback, self._pickled)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExceptionWrapper):
            return NotImplemented
        return self._said == other._said

    def __hash__(self) -> int:
        return hash(self._said)

    @property
    def _said(self) -> tuple[str, str, str]:
        return self.type, self.message, self.traceback

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
