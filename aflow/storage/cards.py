"""Where cards are kept: one object each, beside the logs of the run."""

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
    """One card: its place among those of the step, type, id, a hash of its content, and the
    object's name."""

    number: int
    type: str
    id: str
    hash: str
    name: str


def prefix(flow: str, run: str, *task: int | str) -> str:
    """Return what the names of the cards of a task, or of all tasks of a run, begin with.

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
    """Keep a card, in place of what was kept under its number. `update` is what pages that are open
    need to know, as values for JSON.

    Args:
        store: The datastore.
        folder: The folder of the task's cards in the datastore.
        number: The number of the card in its step.
        type: The type of card, which the name of its file has.
        id: The id of the card; None for none.
        html: The page.
        update: The data of an update while the step runs; None for a whole page.

    Returns:
        The hash of its content.
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
    """Return the latest data of a card that was refreshed; None of one that was not.

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
    """Return the cards in a folder: those of a task in the order of their decorators.

    Args:
        store: The datastore.
        folder: What the names of the cards begin with: `prefix` of a task, or of a whole run.
    """
    found = []
    for name in store.list(folder):
        card = _NAME.fullmatch(name.rpartition("/")[2])
        if card is not None:  # else the data of a card that was refreshed, or none of ours
            found.append(StoredCard(int(card[1]), card[2], card[3], card[4], name))
    return sorted(found)
