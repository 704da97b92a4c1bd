"""`aflow token`: create, list and revoke API tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import click

from aflow._core.clock import SystemClock
from aflow._core.private_folders import make_private
from aflow._core.settings import Settings
from aflow.cli import tables
from aflow.cli.options import Subcommand, command_group, option, timespan_option
from aflow.errors import InvalidInput, InvalidSetting
from aflow.metadata import tokens
from aflow.metadata.factory import open_metadata

_HELP = """Create, list and revoke API tokens.

Clients send a token to a server. The metadata have only digests of tokens. A change takes effect at
once on every server with the same metadata.

\b
  aflow token create ci --expires 90d
  aflow token create dashboard --scope read
  aflow token list
  aflow token revoke ci
"""


def token() -> click.Command:
    """Return the command `token`."""
    place = option(
        "--metadata",
        metavar="URL",
        help="The metadata of the server.  [default: those of the settings]",
    )
    name = click.Argument(["name"])
    scope = option(
        "--scope",
        type=click.Choice(["read", "write"]),
        default="write",
        help="read: read everything; write: also submit, change and cancel.",
    )
    expires = timespan_option(
        "--expires", "Lifetime of the token, such as 90d.  [default: unlimited]"
    )
    return command_group(
        "token",
        _HELP,
        {
            "create": Subcommand(
                "Create a token and print it. It is not shown again.",
                [name, scope, expires, place],
                _create,
            ),
            "list": Subcommand("List the tokens.", [place], _list),
            "revoke": Subcommand("Revoke a token at once.", [name, place], _revoke),
        },
    )


def _create(name: str, scope: Any, expires: float | None, metadata: str | None) -> None:
    if expires == 0:
        raise InvalidInput("A token whose lifetime (--expires) is 0 is of no use.")
    with _documents(metadata) as store:
        secret = tokens.create(store, name, scope, SystemClock.now(), expires)
    click.echo(secret)
    click.echo("Keep it: it is not shown again.", err=True)


def _list(metadata: str | None) -> None:
    now = SystemClock.now()
    with _documents(metadata) as store:
        found = tokens.tokens(store)
    rows = []
    for each in found:
        over = each.expires_at is not None and each.expires_at <= now
        until = "never" if each.expires_at is None else tables.local(each.expires_at)
        until += " (over)" if over else ""
        rows.append((each.name, each.scope, tables.local(each.created_at), until))
    if rows:
        tables.show(("NAME", "SCOPE", "CREATED", "EXPIRES"), rows)
    else:
        click.echo("No tokens.")


def _revoke(name: str, metadata: str | None) -> None:
    with _documents(metadata) as store:
        tokens.revoke(store, name)
    click.echo(f"The token {name} is revoked.")


@contextmanager
def _documents(metadata: str | None) -> Iterator[Any]:
    settings = Settings.load(metadata=metadata)
    url = settings.metadata_url
    if url.startswith(("http://", "https://")):
        raise InvalidSetting(
            "Tokens are made where the metadata are: give --metadata postgresql://..., or make "
            "them on the machine of the server."
        )
    make_private(settings.root)
    with closing(open_metadata(url, settings.durability)) as store:
        yield store
