"""`card`: list, view, get and create the cards of tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from aflow.cards.create import keep, page_of
from aflow.cards.get import get_cards
from aflow.cli.options import (
    Subcommand,
    count_option,
    flag,
    option,
    port_option,
    seconds_option,
    write_file,
)
from aflow.cli.selection import pathspec_argument, tasks_of
from aflow.cli.session import Session
from aflow.errors import CardNotFound

if TYPE_CHECKING:
    from aflow.cards.get import FoundCard


def card_commands() -> dict[str, Subcommand]:
    """Return the subcommands of `card`, by name."""
    which = [
        option("--id", metavar="ID", help="Only the card with this id."),
        option("--type", metavar="TYPE", help="Only cards of this type."),
        option("--hash", metavar="HASH", help="Only the card whose hash begins with this."),
        option(
            "--follow-resumed/--no-follow-resumed",
            default=True,
            help="Show the cards of the origin for a task whose result was reused.  [default: "
            "follow]",
        ),
    ]
    file = click.Argument(["file"], required=False, type=click.Path(dir_okay=False))
    return {
        "view": Subcommand("Show a card in a browser.", [pathspec_argument(), *which], view),
        "get": Subcommand(
            "Print a card, or write it to FILE.", [pathspec_argument(), file, *which], get
        ),
        "list": Subcommand(
            "List the cards of tasks.",
            [
                pathspec_argument(),
                *which,
                flag("--as-json", help="Print JSON."),
                option("--file", metavar="FILE", help="Write the list to this file."),
            ],
            list_,
        ),
        "create": Subcommand(
            "Create another card of a task that has run.", _create_parameters(), create
        ),
        "server": Subcommand(
            "Show the cards of the latest runs in a browser, and update them.",
            _server_parameters(),
            server,
        ),
    }


def _create_parameters() -> list[click.Parameter]:
    return [
        pathspec_argument(),
        option("--type", default="default", metavar="TYPE", help="Type of the card."),
        option("--id", metavar="ID", help="Id of the card."),
        option("--options", metavar="JSON", help="Options of the card (a JSON object)."),
        seconds_option("--timeout", "Time limit for rendering.", least=0.001),
        flag("--render-error-card", help="If rendering fails, create a card with the error."),
        option(
            "--file", metavar="FILE", help="Write the card to this file instead of the datastore."
        ),
    ]


def _server_parameters() -> list[click.Parameter]:
    reload = "Seconds between reloads of the page."
    return [
        port_option("Port of the server; 0: a free one.", 8324),
        option("--run-id", metavar="RUN", help="Only cards of this run."),
        option("--namespace", metavar="NAME", help="Only cards of runs in this namespace."),
        count_option("--max-cards", default=30, help="The most cards, newest first."),
        count_option("--poll-interval", metavar="SECONDS", default=5, help=reload),
    ]


def view(session: Session, path: str, **which: str | None) -> None:
    """Show the first matching card in a browser."""
    file, shown = _one(session, path, which).view()
    how = "" if shown else " No browser was found here: open it in one yourself."
    click.echo(f"The card is in {file}.{how}")


def get(session: Session, path: str, file: str | None, **which: str | None) -> None:
    """Print the card, or write it to a file."""
    card = _one(session, path, which)
    if file is None:
        click.echo(card.html)
    else:
        _write(session, file, card.html, "Card")


def list_(
    session: Session, path: str, as_json: bool, file: str | None, **which: str | None
) -> None:
    """Print one line per card: its task, type, id and hash."""
    cards = [*_cards(session, path, which)]
    if not cards:
        raise CardNotFound(f"There are no cards of {path} (with these options).")
    if as_json:
        text = _as_json(cards)
    else:
        columns = [(each.pathspec, each.type, each.id or "-", each.hash) for each in cards]
        text = "\n".join(map("  ".join, columns))
    if file is None:
        click.echo(text)
    else:
        _write(session, file, text + "\n", "List")


def _as_json(cards: Sequence[FoundCard]) -> str:
    """Return the cards by task as JSON; for a single task only its object, as in Metaflow."""
    tasks: dict[str, list[dict[str, str | None]]] = {}
    for each in cards:
        filename = each.path.rpartition("/")[2]
        facts = {"hash": each.hash, "id": each.id, "type": each.type, "filename": filename}
        tasks.setdefault(each.pathspec, []).append(facts)
    found = [{"pathspec": pathspec, "cards": of} for pathspec, of in tasks.items()]
    return json.dumps(found[0] if len(found) == 1 else found, indent=4)


def create(
    session: Session,
    path: str,
    type: str,
    id: str | None,
    options: str | None,
    timeout: float | None,
    render_error_card: bool,
    file: str | None,
) -> None:
    """Create a card of a finished task, and store it."""
    given = _options(options)
    if id is not None and not id.isidentifier():
        raise click.BadParameter(f"{id!r} cannot be the id of a card: use letters, digits and _.")
    task = next(iter(tasks_of(session, path)))
    html = page_of(task, type, given, timeout, save_errors=render_error_card)
    if file is None:
        click.echo(f"Card created with type: {type} and hash: {keep(task, type, id, html)}")
    else:
        _write(session, file, html, "Card")


def _options(text: str | None) -> dict[str, Any]:
    try:
        options = {} if text is None else json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"--options is not valid JSON: {error}.") from error
    if not isinstance(options, dict):
        raise click.BadParameter("--options takes a JSON object of options by name.")
    return options


def _write(session: Session, file: str, text: str, what: str) -> None:
    write_file(file, text)
    session.note(f"{what} written to {file}")


def server(
    session: Session,
    port: int,
    run_id: str | None,
    namespace: str | None,
    max_cards: int,
    poll_interval: int,
) -> None:
    """Serve cards until the command is interrupted."""
    flow = session.flow.__name__ if session.flow else None
    from aflow.cards.server import Shown, serve  # `card view` must work without the extra server

    shown = Shown(session.settings().place, flow, run_id, namespace, max_cards)
    serve(shown, port, poll_interval, click.echo)


def _one(session: Session, path: str, which: dict[str, str | None]) -> FoundCard:
    found = next(_cards(session, path, which), None)
    if found is None:
        raise CardNotFound(
            f"There is no card of {path} (with these options). See: card list {path}"
        )
    return found


def _cards(session: Session, path: str, which: dict[str, str | None]) -> Iterator[FoundCard]:
    for task in tasks_of(session, path):
        follow = bool(which.get("follow_resumed"))
        for card in get_cards(task, which["id"], which["type"], follow_resumed=follow):
            if card.hash.startswith(which.get("hash") or ""):
                yield card
