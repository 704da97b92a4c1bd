"""A call of a command: its options, and the resulting settings and definition. Does not import
click, which a plain run does not need (plain.py)."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aflow._core.process import is_terminal
from aflow._core.records import dataclass
from aflow._core.settings import Settings

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition
    from aflow.flow.spec import FlowSpec
    from aflow.task.config_binding import GivenConfigs

_OF_SETTINGS = ("metadata", "environment", "datastore", "datastore_root", "package_suffixes")
# Options of every command, before or after its name.
TOP_NAMES = (
    "quiet",
    *_OF_SETTINGS,
    "with_",
    "pylint",
    "event_logger",
    "monitor",
    "branch",
    "production",
    "trigger",
)


def environment_names(name: str, scope: str = "") -> list[str]:
    """Return the environment variables of an option, in order of precedence.

    Args:
        name: The long name of the option, with its dashes.
        scope: "" for options of every command, `run_` for those of `run`.
    """
    plain = (scope + name.lstrip("-")).replace("-", "_").upper()
    return [f"AFLOW_{plain}", f"METAFLOW_{plain}"]


class Defined:
    """The definition of a flow after its configs and mutators were applied, created on first use.
    `flow` is None for commands that have only a pathspec."""

    def __init__(self, flow: type[FlowSpec] | None, configs: GivenConfigs) -> None:
        self._flow = flow
        self._configs = configs
        self._definition: FlowDefinition | None = None

    def __call__(self, values: Mapping[str, Any] | None = None) -> FlowDefinition:
        """Return the flow with the given configs, or with those of another run, by attribute.
        Raises InvalidFlow if the source cannot be read, InvalidConfig, InvalidDecorator, and a
        usage error if configs were given in addition to those of another run."""
        from aflow.flow.spec import define
        from aflow.task.config_binding import configured, with_values

        assert self._flow is not None, "only flows are run"
        if values is not None:
            if self._configs.files or self._configs.values:
                from click import UsageError  # see plain.py

                raise UsageError("A resumed run has the configs of its origin: give none.")
            return with_values(define(self._flow), values)
        if self._definition is None:
            self._definition = configured(self._flow, self._configs)
        return self._definition


@dataclass(frozen=True, slots=True)
class Session:
    """A call of a command. `flow` is None for commands that have only a pathspec. `define` returns
    the flow's definition. `argv` are the arguments after the flow's file."""

    flow: type[FlowSpec] | None
    script: str
    top: dict[str, Any]
    define: Defined
    argv: tuple[str, ...] = ()

    def settings(self, **more: Any) -> Settings:
        """Return the settings with the options of the command line.

        Args:
            **more: Options of the command itself that override settings.
        """
        return Settings.load(**{name: self.top.get(name) for name in _OF_SETTINGS}, **more)

    @property
    def wants_code_check(self) -> bool:
        """Whether to check the code before a run."""
        return self.top.get("pylint") is not False

    def note(self, text: str, *, magenta: bool = False) -> None:
        """Print a line about the progress of the command to stderr, unless --quiet is given.

        Args:
            text: The line, without its newline.
            magenta: Whether the line is magenta on a terminal.
        """
        if self.top.get("quiet"):
            return
        stream = sys.stderr
        # Replaced streams, and text that may not be encodable, are left to click.
        is_plain = text.isascii() and "\x1b" not in text
        if type(stream) is io.TextIOWrapper and not stream.closed and is_plain:
            colored = magenta and is_terminal(stream)
            stream.write(f"\x1b[35m{text}\x1b[0m\n" if colored else f"{text}\n")
            stream.flush()
            return
        import click  # see plain.py

        click.secho(text, fg="magenta" if magenta else None, err=True)
