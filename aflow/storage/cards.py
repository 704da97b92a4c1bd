"""The storage of cards: one object per card, in the datastore of the run."""

from __future__ import annotations

import json
import re
from hashlib import sha1
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow.errors import ObjectNotFound

if TYPE_CHECKING:
    from aflow.storage.base import ObjectStore


_NAME = re.compile(r"(\d+)-(.+)-([^-]*)-([^-]*)\.html")  # the name of a type may have hyphens


class StoredCard(NamedTuple):
    """One card: its number among the cards of the step, its type, its id, the hash of its content,
    and the name of its object."""

    number: int
    type: str
    id: str
    hash: str
    name: str


def prefix(flow: str, run: str, *task: int | str) -> str:
    """Return the prefix of the object names of a task's cards, or of all cards of a run.

    Args:
        flow: The name of the flow.
        run: The id of the run.
        *task: The name of the step and the number of the task; left out for the whole run.
    """
    return "".join(f"{part}/" for part in ("cards", flow, run, *task))


def put(
    store: ObjectStore,
    folder: str,
    number: int,
    type: str,
    id: str | None,
    html: str,
    update: Any = None,
) -> str:
    """Store a card; it replaces the card that has the same number.

    Args:
        store: The datastore.
        folder: The prefix of the names of the task's cards, as `prefix` returns it.
        number: The number of the card in its step.
        type: The type of the card, which becomes part of the object's name.
        id: The id of the card; None for none.
        html: The page.
        update: JSON data with which open pages update themselves while the step runs; None if the
            card was not refreshed.

    Returns:
        The hash of the card's content.
    """
    if update is not None:
        store.put(_data_name(folder, number), [json.dumps(update, default=str).encode()])
    data = html.encode("utf-8", "surrogatepass")
    digest = sha1(data, usedforsecurity=False).hexdigest()[:10]
    name = f"{folder}{number}-{type}-{id or ''}-{digest}.html"
    before = [each.name for each in listed(store, folder) if each.number == number]
    store.put(name, [data])
    for each in before:
        if each != name:
            store.delete(each)
    return digest


def data_of(store: ObjectStore, card: StoredCard) -> Any:
    """Return the latest data of a refreshed card; None if the card was not refreshed.

    Args:
        store: The datastore.
        card: The stored card.
    """
    try:
        data = store.get(_data_name(card.name.rpartition("/")[0] + "/", card.number))
    except ObjectNotFound:
        return None
    return json.loads(bytes(data))


def _data_name(folder: str, number: int) -> str:
    return f"{folder}{number}.data.json"


def listed(store: ObjectStore, folder: str) -> list[StoredCard]:
    """Return the cards in a folder; the cards of a task are in the order of their decorators.

    Args:
        store: The datastore.
        folder: The prefix of the object names: `prefix` of a task, or of a whole run.
    """
    found = []
    for name in store.list(folder):
        card = _NAME.fullmatch(name.rpartition("/")[2])
        if card is not None:  # otherwise the data of a refreshed card, or a foreign object
            found.append(StoredCard(int(card[1]), card[2], card[3], card[4], name))
    return sorted(found)
