"""aflow's own metadata, what jobs have recorded in the object store, and what Metaflow has left:
one store to read from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from aflow.errors import InvalidInput
from aflow.metadata.base import FIRST_KEY, READ_ONLY
from aflow.metadata.metaflow.history import SCHEME, MetaflowHistory
from aflow.metadata.object_store import StoreMetadata

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore, RunRecord
    from aflow.storage.base import ObjectStore

_STEP = 1 << 56  # keys that each has for itself

Beside = MetaflowHistory | StoreMetadata


def store_of_history(metadata: object, url: str) -> ObjectStore | None:
    """Return the object store at `url` where that is one of a run of Metaflow's, which its history
    alone opens; None for one of aflow's.

    Args:
        metadata: The metadata store, which may include histories.
        url: The URL in the record of a run.
    """
    return metadata.open_store(url) if isinstance(metadata, WithHistory) else None


class WithHistory:
    """Reads both. Of two runs of the same name aflow's is shown: it may have been taken
    over from Metaflow's to be resumed. What is written goes to aflow's own."""

    def __init__(self, own: MetadataStore, histories: Sequence[Beside]) -> None:
        self._own = own
        self._histories = histories

    @property
    def url(self) -> str:
        """Where aflow's own metadata is, for people."""
        return self._own.url

    @property
    def address(self) -> str:
        """The URL that opens aflow's own metadata in another process."""
        return self._own.address

    def close(self) -> None:
        """Release everything. May be called twice."""
        for each in (*self._histories, self._own):
            each.close()

    def flows(self) -> list[tuple[str, float]]:
        """Name and time of creation of every flow, newest first."""
        found: dict[str, float] = {}
        for flow, at in (each for store in self._all() for each in store.flows()):
            found[flow] = min(found.get(flow, at), at)
        return sorted(found.items(), key=lambda each: each[1], reverse=True)

    def _all(self) -> Iterator[MetadataStore | Beside]:
        yield self._own
        yield from self._histories

    def runs(self, flow: str | None, **which: Any) -> list[RunRecord]:
        """Return the runs, newest first; see MetadataStore.

        Args:
            flow: The name of the flow; None for all.
            **which: The options of the port.
        """
        runs = self._own.runs(flow, **which)
        known = {(run.flow, run.run) for run in runs}
        after = which.pop("after", None)
        for history in self._histories:
            # Each compares with the key that the last run of the page before would have there.
            shifted = after and (after[0], after[1] - self._shift(history))
            for run in self._marked(history, history.runs(flow, after=shifted, **which)):
                taken_over = (run.flow, run.run) in known
                if not taken_over and self._own.run(run.flow, run.run) is None:
                    runs.append(run)
                    known.add((run.flow, run.run))
        runs.sort(key=lambda run: (run.created_at, run.key), reverse=True)
        return list(islice(runs, which.get("limit")))

    def run(self, flow: str, run: str) -> RunRecord | None:
        """One run, whole; None where there is none."""
        found = self._own.run(flow, run)
        if found is not None:
            return found
        for history in self._histories:
            theirs = history.run(flow, run)
            if theirs is not None:
                return next(self._marked(history, [theirs]))
        return None

    def _shift(self, history: Beside) -> int:
        """How much greater keys of the runs of a history are here than there."""
        first = FIRST_KEY if isinstance(history, StoreMetadata) else 0
        return first + self._histories.index(history) * _STEP

    def _marked(self, history: Beside, runs: list[RunRecord]) -> Iterator[RunRecord]:
        """With keys and stores that say which history they are of."""
        number = self._histories.index(history)
        for run in runs:
            storage = str(run.settings.get("storage") or "")
            settings = run.settings
            if storage.startswith(SCHEME):
                settings = {**settings, "storage": f"{number}:{storage}"}
            yield run._replace(key=run.key + self._shift(history), settings=settings)

    def open_store(self, url: str) -> ObjectStore | None:
        """Return the object store of a run of a history; None for one of aflow's own.

        Args:
            url: The URL in the record of a run.
        """
        number, _, rest = url.partition(":")
        if not number.isdigit() or not rest.startswith(SCHEME):
            return None
        history = self._histories[int(number)]
        return history.open_store(rest) if isinstance(history, MetaflowHistory) else None

    def __getattr__(self, name: str) -> Any:
        """All that is asked of a run by its key, and what only aflow's own has."""
        own = getattr(self._own, name)
        if name.startswith("_") or not callable(own):
            return own

        def call(*values: Any, **more: Any) -> Any:
            key = values[0] if values else more.get("run_key")
            if not isinstance(key, int) or key < FIRST_KEY:
                return own(*values, **more)
            history = self._histories[(key - FIRST_KEY) // _STEP]
            method = getattr(history, name, None)
            if method is None:
                raise InvalidInput(READ_ONLY)
            return method(key - self._shift(history), *values[1:], **more)

        return call
