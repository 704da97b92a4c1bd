"""`card`: list, show, fetch and make the cards of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from aflow.cli.options import flag, option
from aflow.cli.selection import pathspec_argument, tasks_of
from aflow.cli.session import Session
from aflow.errors import NotFound

if TYPE_CHECKING:
    from aflow.cards.get import FoundCard


class Command(NamedTuple):
    """One of the commands below `card`."""

    help: str
    parameters: list[click.Parameter]
    body: Callable[..., object]


def card_commands() -> dict[str, Command]:
    """The commands below `card`, by name."""
    which = [
        option("--id", metavar="ID", help="Only the card with this id."),
        option("--type", metavar="TYPE", help="Only cards of this type."),
        option("--hash", metavar="HASH", help="Only the card whose hash begins like this."),
        option(
            "--follow-resumed/--no-follow-resumed",
            default=True,
            help="Cards of a task that was taken over are its origin's.  [default: follow]",
        ),
    ]
    file = click.Argument(["file"], required=False, type=click.Path(dir_okay=False))
    port = option("--port", type=int, default=8324, show_default=True, help="Port of the server.")
    return {
        "view": Command("Show a card in a browser.", [pathspec_argument(), *which], view),
        "get": Command(
            "Print a card, or write it to FILE.", [pathspec_argument(), file, *which], get
        ),
        "list": Command(
            "List the cards of tasks.",
            [pathspec_argument(), *which, flag("--as-json", help="As JSON.")],
            list_,
        ),
        "create": Command(
            "Make a card of a task that has run, without storing it.",
            [
                pathspec_argument(),
                option("--type", default="default", show_default=True, help="Kind of the card."),
                option("--file", metavar="FILE", help="Write it to this file."),
            ],
            create,
        ),
        "server": Command(
            "Show the cards of the latest runs in a browser, as they come.",
            [port, option("--run-id", metavar="RUN", help="Only those of this run.")],
            server,
        ),
    }


def view(session: Session, path: str, **which: str | None) -> None:
    """Show the first of the cards."""
    _one(session, path, which).view()


def get(session: Session, path: str, file: str | None, **which: str | None) -> None:
    """Print the page, or write it."""
    card = _one(session, path, which)
    if file is None:
        click.echo(card.html)
    else:
        card.write(Path(file))
        session.note(f"Card written to {file}")


def list_(session: Session, path: str, as_json: bool, **which: str | None) -> None:
    """A line a card: its task, type, id and hash."""
    cards = [*_cards(session, path, which)]
    if as_json:
        import json

        fields = ("pathspec", "type", "id", "hash", "path")
        click.echo(json.dumps([{name: getattr(each, name) for name in fields} for each in cards]))
        return
    if not cards:
        raise NotFound(f"There are no cards of {path} (with these options).")
    for each in cards:
        click.echo("  ".join([each.pathspec, each.type, each.id or "-", each.hash]))


def create(session: Session, path: str, type: str, file: str | None) -> None:
    """Make a page of a finished task."""
    from aflow.cards.afterwards import page_of

    html = page_of(next(iter(tasks_of(session, path))), type)
    if file is None:
        click.echo(html)
    else:
        Path(file).write_text(html, encoding="utf-8")
        session.note(f"Card written to {file}")


def server(session: Session, port: int, run_id: str | None) -> None:
    """Serve until it is interrupted."""
    from aflow.cards.server import serve

    flow = session.flow.__name__ if session.flow else None
    url = f"http://127.0.0.1:{port}/"
    click.echo(f"Cards are at {url} (Ctrl-C stops)")
    serve(f"local@{session.settings().root}", flow, run_id, port)


def _one(session: Session, path: str, which: dict[str, str | None]) -> FoundCard:
    found = next(_cards(session, path, which), None)
    if found is None:
        raise NotFound(f"There is no card of {path} (with these options). See: card list {path}")
    return found


def _cards(session: Session, path: str, which: dict[str, str | None]) -> Iterator[FoundCard]:
    from aflow.cards.get import get_cards

    for task in tasks_of(session, path):
        follow = bool(which.get("follow_resumed"))
        for card in get_cards(task, which["id"], which["type"], follow_resumed=follow):
            if card.hash.startswith(which.get("hash") or ""):
                yield card
