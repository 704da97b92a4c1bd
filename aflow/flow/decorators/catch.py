"""@catch: continue after a step has failed. Implemented by the scheduler and the runner."""

from __future__ import annotations

from typing import ClassVar

from aflow._core.records import dataclass
from aflow.flow.decorators.base import StepDecorator, written
from aflow.flow.names import is_artifact_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Catch(StepDecorator):
    """Continue the flow after all attempts of the step have failed.

    `self.<var>` is then an ExceptionWrapper; it is None if the step succeeded. With
    `print_exception` the exception is written to the log of the task.
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
"""Continue the flow after all attempts of the step have failed; see Catch."""


# The values that @catch stores for the exception of a step.


class FailureHandledByCatch(Exception):
    """Recorded by @catch if the process of the step ended without an exception."""


class ExceptionWrapper(Exception):
    """A record of an exception that can be stored and read in any process.

    As in Metaflow, `type` is the qualified name of its class ("builtins.ValueError"), `exception`
    its text and `stacktrace` the formatted traceback; `message` and `traceback` are aliases of the
    last two. The exception itself is inside as a pickle, so that a reader without its class can
    read everything else.
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
        """Return the record of an exception.

        Args:
            error: The exception that the step raised.
            text: The formatted traceback; None to format that of `error`.
            name: The qualified name of the class; None to use the class of `error`.
        """
        import traceback  # only imported for errors, to keep the start fast

        kind = type(error)
        if text is None:
            text = "".join(traceback.format_exception(error))
        name = name or f"{kind.__module__}.{kind.__qualname__}"
        return cls(name, _text_of(error), text, _pickle_of(error))

    @property
    def original(self) -> BaseException | None:
        """The exception itself, without its traceback.

        None if it could not be pickled, or cannot be unpickled here because its class is missing.
        """
        if self._pickled is None:
            return None
        import pickle

        try:
            value = pickle.loads(self._pickled)  # noqa: S301 -- from the user's own store
        except Exception:  # noqa: BLE001 -- unpickling the user's class may raise anything
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
    """Return the text of an exception, even if its `__str__` raises."""
    try:
        return str(error)
    except Exception as another:  # noqa: BLE001 -- `__str__` of the user may raise anything
        return f"(no text: its __str__ raised {type(another).__name__})"


def _pickle_of(error: BaseException) -> bytes | None:
    """Return the pickled exception; None if it cannot be pickled and unpickled."""
    import pickle

    try:
        pickled = pickle.dumps(error, protocol=5)
        # Fails for a class whose __init__ does not pass all of its arguments to super().__init__.
        pickle.loads(pickled)  # noqa: S301 -- created in the line above
    except Exception:  # noqa: BLE001 -- pickling the user's class may raise anything
        return None
    return pickled
