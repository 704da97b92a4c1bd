"""Letters between jobs and the coordinator of their run, as objects in the store.

A job writes what it has to say as numbered letters below a folder of the run; the coordinator lists
the folder, reads what is new, and deletes what it is done with. Whoever looks finds all that was
written before. Calls block, and are safe from many threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aflow.executors.letters import ReportsLetter, reports_topic, unseal_letter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aflow.storage.base import ObjectStore


class Letterbox:
    """The letters of one run."""

    def __init__(self, store: ObjectStore, flow: str, run: str) -> None:
        self._store = store
        self._folder = f"jobs/{flow}/{run}/letters/"
        self._topic = reports_topic(flow, run)

    def put(self, letter: ReportsLetter) -> None:
        """Leave a letter. Raises StorageError."""
        worker = letter.worker.replace(":", ".").replace("#", ".")
        name = f"{self._folder}{worker}/{letter.number:08d}"
        self._store.put(name, [letter.seal((), self._topic, 0.0)])

    def names(self) -> Iterator[str]:
        """The names of the letters that are there; those of one job in the order in which they
        were written. Raises StorageError."""
        return self._store.list(self._folder)

    def open(self, name: str) -> ReportsLetter:
        """The letter of this name. Raises InvalidMessage for what is none, and StorageError."""
        data = bytes(self._store.get(name))
        letter: ReportsLetter = unseal_letter(data, "reports", (), self._topic, None)
        return letter

    def remove(self, name: str) -> None:
        """Delete a letter, if it is there. Raises StorageError."""
        self._store.delete(name)
