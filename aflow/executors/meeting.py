"""Where the members of a gang, which are jobs on several machines, find each other: the store.

Member 0 says its address, and the others wait for that, also those that are tried again in a job
of their own. The end of a multi-node job's main node is the end of all: so the others say when they
are done. Calls block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aflow.errors import ObjectNotFound

if TYPE_CHECKING:
    from aflow.storage.base import ObjectStore


class Meeting:
    """The gangs of one run; a gang is known by the task of its member 0."""

    def __init__(self, store: ObjectStore, flow: str, run: str) -> None:
        self._store = store
        self._folder = f"jobs/{flow}/{run}/gangs"

    def say(self, control: int, address: str) -> None:
        """Here is member 0 of the gang. Raises StorageError."""
        self._store.put(f"{self._folder}/{control}/address", [address.encode()])

    def address(self, control: int) -> str | None:
        """Where member 0 of the gang is; None where it has not said so yet. Raises StorageError."""
        try:
            return bytes(self._store.get(f"{self._folder}/{control}/address")).decode()
        except ObjectNotFound:
            return None

    def leave(self, job: str, node: int) -> None:
        """This node of a job is done. Raises StorageError."""
        self._store.put(f"{self._folder}/{job}/nodes/{node}", [b"done"])

    def left(self, job: str) -> int:
        """How many nodes of a job are done. Raises StorageError."""
        return sum(1 for _ in self._store.list(f"{self._folder}/{job}/nodes/"))
