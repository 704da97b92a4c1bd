"""What the options of every command come to, wherever on the line they stood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from aflow.cli.options import GENERAL, TOP_NAMES
from aflow.config import Settings

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition
    from aflow.flow.spec import FlowSpec


@dataclass(frozen=True, slots=True)
class Session:
    """One call of a command. `flow` is None for commands that were given a pathspec alone. `words`
    are those of the command line behind the flow's file."""

    flow: type[FlowSpec] | None
    script: str
    top: dict[str, Any]
    defined: Callable[[Mapping[str, Any] | None], FlowDefinition]
    words: tuple[str, ...] = ()

    def settings(self, **more: Any) -> Settings:
        """The settings as the command line has them; `more` are those of the command itself."""
        top = {
            name: self.top.get(name)
            for name in (
                "metadata",
                "environment",
                "datastore",
                "datastore_root",
                "package_suffixes",
            )
        }
        return Settings.load(**top, **more)

    def define(self, configs: Mapping[str, Any] | None = None) -> FlowDefinition:
        """The flow's definition, as its configs and mutators make it; `configs` are values by
        attribute, of an earlier run. Raises InvalidFlow where the source cannot be read,
        InvalidConfig and InvalidDecorator."""
        return self.defined(configs)

    @property
    def wants_code_check(self) -> bool:
        """Whether the code is to be looked at before a run."""
        return self.top.get("pylint") is not False

    def note(self, text: str) -> None:
        """Say something about what is being done, on stderr; nothing if --quiet."""
        if not self.top.get("quiet"):
            click.echo(text, err=True)


Body = Callable[..., object]


def bound(
    body: Body,
    flow: type[FlowSpec] | None,
    script: str,
    defined: Callable[[Mapping[str, Any] | None], FlowDefinition],
    words: tuple[str, ...] = (),
) -> Callable[..., object]:
    """`body(session, **values of the command's own options)` as a callback for click."""

    @click.pass_context
    def call(ctx: click.Context, /, **values: Any) -> object:
        top = _top_values(ctx)
        shared = {"with_", *(each.name for each in ctx.command.params if _is_general(each))}
        own = {name: value for name, value in values.items() if name not in shared}
        return body(Session(flow, script, top, defined, words), **own)

    return call


def _is_general(parameter: click.Parameter) -> bool:
    return getattr(parameter, "section", None) == GENERAL


def _top_values(ctx: click.Context) -> dict[str, Any]:
    """The options of every command: those behind the command's name before those ahead of it."""
    ahead = ctx.find_root().params if ctx.parent is not None else {}
    top = {name: ahead.get(name) for name in TOP_NAMES}
    for name in (each.name for each in ctx.command.params if _is_general(each)):
        if name in top and ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            top[name] = ctx.params[name]
    # These add up, wherever they were given.
    for name in ("with_", "trigger"):
        top[name] = (*(ahead.get(name) or ()), *(ctx.params.get(name) or ()))
    return top
