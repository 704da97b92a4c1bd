"""The manifest: what one attempt left, as one small msgpack map.

It is the commit record of an attempt. It never holds bulk data: values whose pickles are small
ride inside, all others are keys of blobs. Reading a manifest never unpickles anything.

Format (docs/storage_format.md): a map with the keys

    v   1
    s   the step
    a   {name: entry}                      what this attempt set
    i   {task: [names]}                    what it passes on, by the task that set it
    t   [[steps], foreach, count]          its transition
    f   [[step, var, splits, index, value, split]...]  its foreach stack, outermost first; `value`
        is a short text of the item, `split` the task that opened the foreach
    x   items of the foreach it opens (`storage.items`), or nil
    e   {type, message, traceback, caught}  the exception it ended with, or nil

    entry = [encoding, size, type, preview, inline bytes or nil, [[blob key, size]...], content]

`encoding` is "pickle5": the pickle is the inline bytes, or the first blob where these are nil; the
other blobs are its out-of-band buffers, in order. `size` counts pickle and buffers together, in
bytes, uncompressed. `type` is the qualified name of the value's class; `preview` a map of plain
values for people: `repr` (short), `len`, `shape`, `dtype`, `columns`, whatever applies. `content`
is the digest of the content of a value with sets, whose pickles differ from process to process;
empty for all others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack

from aflow.errors import StorageError

VERSION = 1


class Entry(NamedTuple):
    """One artifact as the manifest knows it."""

    encoding: str
    size: int
    type: str
    preview: dict[str, Any]
    inline: bytes | None
    blobs: tuple[tuple[str, int], ...] = ()
    content: str = ""


class ForeachFrame(NamedTuple):
    """One level of a task's foreach stack, outermost first."""

    step: str
    var: str
    num_splits: int | None
    index: int  # type: ignore[assignment]  # the word that users know
    value: str
    split: int


@dataclass(slots=True)
class Manifest:
    """What one attempt left."""

    step: str = ""
    artifacts: dict[str, Entry] = field(default_factory=dict)
    inherited: dict[int, list[str]] = field(default_factory=dict)
    transition: tuple[tuple[str, ...], str | None, int | None] = ((), None, None)
    stack: tuple[ForeachFrame, ...] = ()
    items: Any = None
    error: dict[str, Any] | None = None

    def encode(self) -> bytes:
        """The manifest as bytes; the same manifest gives the same bytes."""
        return msgpack.packb(  # type: ignore[no-any-return]
            {
                "v": VERSION,
                "s": self.step,
                "a": self.artifacts,
                "i": self.inherited,
                "t": self.transition,
                "f": self.stack,
                "x": self.items,
                "e": self.error,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """The manifest that `encode` gave; raises StorageError for anything else."""
        try:
            raw = msgpack.unpackb(data, strict_map_key=False, use_list=False)
            if raw["v"] > VERSION:
                raise StorageError(
                    f"A manifest of version {raw['v']} was written by a newer aflow; "
                    f"this one reads up to version {VERSION}. Upgrade aflow."
                )
            return cls(
                step=raw["s"],
                artifacts={name: Entry(*entry) for name, entry in raw["a"].items()},
                inherited={task: list(names) for task, names in raw["i"].items()},
                transition=raw["t"],
                stack=tuple(ForeachFrame(*frame) for frame in raw["f"]),
                items=raw["x"],
                error=raw["e"],
            )
        except StorageError:
            raise
        except Exception as error:
            raise StorageError(f"A manifest is damaged: {error}.") from error

    def names(self) -> set[str]:
        """The names of all artifacts that a later task can read from this one."""
        return set(self.artifacts).union(*self.inherited.values())

    def origins(self) -> dict[str, int]:
        """The task that set each inherited artifact, by name."""
        return {name: task for task, names in self.inherited.items() for name in names}

    def origin(self, name: str) -> int | None:
        """The task that set an inherited artifact; None if it is this one's own, or unknown."""
        if name in self.artifacts:
            return None
        return next((task for task, names in self.inherited.items() if name in names), None)
