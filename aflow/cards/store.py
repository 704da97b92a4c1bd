"""Where cards are kept: one object each, beside the logs of the run."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha1
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from aflow.storage.base import ObjectStore


class StoredCard(NamedTuple):
    """One card: its place among those of the step, type, id, a hash of its content, and the
    object's name."""

    number: int
    type: str
    id: str
    hash: str
    name: str


def prefix(flow: str, run: str, step: str, task: int | str) -> str:
    """What the names of a task's cards begin with."""
    return f"cards/{flow}/{run}/{step}/{task}/"


def put(store: ObjectStore, folder: str, number: int, type: str, id: str | None, html: str) -> str:
    """Keep a card, in place of what was kept under its number; the hash of its content."""
    data = html.encode("utf-8", "surrogatepass")
    digest = sha1(data, usedforsecurity=False).hexdigest()[:10]
    name = f"{folder}{number}-{type}-{id or ''}-{digest}.html"
    before = [each.name for each in listed(store, folder) if each.number == number]
    store.put(name, [data])
    for each in before:
        if each != name:
            store.delete(each)
    return digest


def listed(store: ObjectStore, folder: str) -> Iterator[StoredCard]:
    """The cards of a task, in the order of their decorators."""
    found = []
    for name in store.list(folder):
        number, _, rest = name.rpartition("/")[2].partition("-")
        type, id, digest = rest.rsplit("-", 2)  # the name of a type may have hyphens
        found.append(StoredCard(int(number), type, id, digest.removesuffix(".html"), name))
    yield from sorted(found)
