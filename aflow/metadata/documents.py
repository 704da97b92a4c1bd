"""Small documents beside the runs: how one is written, whatever the database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aflow.errors import VersionConflict

if TYPE_CHECKING:
    from aflow.metadata.base import Documents


def document_change(
    sql: Mapping[str, str], kind: str, name: str, data: bytes, version: int
) -> tuple[str, tuple[Any, ...]]:
    """The statement that writes a document, and its values."""
    if version == 0:
        return sql["add_document"], (kind, name, data)
    return sql["change_document"], (data, kind, name, version)


def document_conflict(kind: str, name: str, version: int) -> VersionConflict:
    """Why that has written nothing."""
    if version == 0:
        return VersionConflict(f"There is a {kind} {name} already.")
    return VersionConflict(f"The {kind} {name} was changed or removed by somebody else meanwhile.")


def documents_of(store: object) -> Documents | None:
    """The documents that a metadata store keeps; None for one over a service, which keeps none."""
    kept: Any = store
    return kept if hasattr(store, "put_document") else None
