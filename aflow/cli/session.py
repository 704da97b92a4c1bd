"""One call of a command: its options, and the settings and the definition that result. Without
click, which a plain run has no need of (plain.py)."""

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
# What every command takes, before its name or after it.
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
    """Return the environment variables that stand for an option, the strongest first.

    Args:
        name: The long name of the option, with its dashes.
        scope: "" for options of the flow, `run_` for those of `run`.
    """
    plain = (scope + name.lstrip("-")).replace("-", "_").upper()
    return [f"AFLOW_{plain}", f"METAFLOW_{plain}"]


class Defined:
    """The definition of a flow, as its configs and mutators make it: made once, when it is asked
    for. `flow` is None for commands that were given a pathspec alone."""

    def __init__(self, flow: type[FlowSpec] | None, configs: GivenConfigs) -> None:
        self._flow = flow
        self._configs = configs
        self._definition: FlowDefinition | None = None

    def __call__(self, values: Mapping[str, Any] | None = None) -> FlowDefinition:
        """The flow with the configs that were given; or with those of another run, by attribute.
        Raises InvalidFlow where the source cannot be read, InvalidConfig, InvalidDecorator, and a
        usage error for configs beside those of the other run."""
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
    """One call of a command. `flow` is None for commands that were given a pathspec alone. `argv`
    are those of the command line behind the flow's file."""

    flow: type[FlowSpec] | None
    script: str
    top: dict[str, Any]
    defined: Defined
    argv: tuple[str, ...] = ()

    def settings(self, **more: Any) -> Settings:
        """Return the settings as the command line has them; `more` are those of the command itself.

        Args:
            **more: Options that win over the settings.
        """
        return Settings.load(**{name: self.top.get(name) for name in _OF_SETTINGS}, **more)

    def define(self, configs: Mapping[str, Any] | None = None) -> FlowDefinition:
        """Return the flow's definition, as its configs and mutators make it; `configs` are values
        by attribute, of an earlier run.

        Args:
            configs: The configs that were given; None for none.

        Raises:
            InvalidFlow: Where the source cannot be read, InvalidConfig and InvalidDecorator.
        """
        return self.defined(configs)

    @property
    def wants_code_check(self) -> bool:
        """Whether the code is to be looked at before a run."""
        return self.top.get("pylint") is not False

    def note(self, text: str, *, magenta: bool = False) -> None:
        """Say something about what is being done, on stderr; nothing if --quiet. It is `magenta` on
        a terminal.

        Args:
            text: The line, without its end.
            magenta: Whether the line is coloured on a terminal.
        """
        if not self.top.get("quiet"):
            _echo(text, magenta=magenta)


def _echo(text: str, *, magenta: bool) -> None:
    """Write a line on stderr, as click.echo does."""
    stream = sys.stderr
    # Streams that are replaced, and texts that may have to be encoded otherwise, are click's.
    is_plain = text.isascii() and "\x1b" not in text
    if type(stream) is io.TextIOWrapper and not stream.closed and is_plain:
        colored = magenta and is_terminal(stream)
        stream.write(f"\x1b[35m{text}\x1b[0m\n" if colored else f"{text}\n")
        stream.flush()
        return
    import click  # see plain.py

    click.secho(text, fg="magenta" if magenta else None, err=True)
