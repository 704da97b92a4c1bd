"""IncludeFile: a parameter whose value is what a file holds when the run starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aflow.errors import InvalidParameter
from aflow.flow.names import shown
from aflow.flow.parameters import Parameter


class IncludedFile:
    """What Metaflow keeps of an included file in place of its content. aflow keeps the content
    itself, so that none is ever made here: programs ask whether a value is one."""

    def __init__(self, descriptor: dict[str, Any]) -> None:
        self.descriptor = descriptor


class IncludeFile(Parameter):
    """A file that a run is started with: `data = IncludeFile("data", default="data.csv")`.

    On the command line it is a path; `self.data` is what the file holds, as a text (in `encoding`,
    UTF-8 by default) or, with `is_text=False`, as bytes; with a `parser` (a function, or its dotted
    path) what that makes of it. The file is read once, when the run starts.
    """

    def __init__(
        self,
        name: str,
        required: bool | None = None,
        is_text: bool | None = None,
        encoding: str | None = None,
        help: str | None = None,
        parser: str | Callable[[Any], Any] | None = None,
        default: Any = None,
        show_default: bool | None = None,
        **click_options: Any,
    ) -> None:
        super().__init__(
            name,
            default=default,
            type=str,
            help=help,
            required=required,
            show_default=show_default,
            **click_options,
        )
        self.is_text = True if is_text is None else is_text
        self.encoding = encoding or "utf-8"
        self.parser = parser

    def content(self, path: str, read: Callable[[str], bytes]) -> Any:
        """The value: what the file at `path` holds. Raises InvalidParameter where it cannot be
        read, decoded or parsed."""
        try:
            data = read(path)
        except OSError as error:
            raise InvalidParameter(
                f"The file {path} of parameter {self.name!r} cannot be read: {error.strerror}."
            ) from error
        try:
            value: Any = data.decode(self.encoding) if self.is_text else data
        except (UnicodeDecodeError, LookupError) as error:
            raise InvalidParameter(
                f"The file {path} of parameter {self.name!r} is no text in {self.encoding}: give "
                "another encoding=, or is_text=False."
            ) from error
        return value if self.parser is None else self._parsed(path, value)

    def _parsed(self, path: str, value: Any) -> Any:
        try:
            return self._function()(value)
        except Exception as error:
            raise InvalidParameter(
                f"The file {path} of parameter {self.name!r} does not parse: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _function(self) -> Callable[[Any], Any]:
        if callable(self.parser):
            return self.parser
        from importlib import import_module

        module, _, name = str(self.parser).rpartition(".")
        function: Any = getattr(import_module(module or "aflow.flow.parsers"), name)
        if not callable(function):
            raise TypeError(f"{shown(function)} is no function")
        made: Callable[[Any], Any] = function
        return made
