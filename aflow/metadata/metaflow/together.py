"""Combines aflow's own metadata, the runs that jobs have recorded in the object store, and
Metaflow's runs into one store for reading."""

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

_STEP = 1 << 56  # number of keys that each history can use

Beside = MetaflowHistory | StoreMetadata


def store_of_history(metadata: object, url: str) -> ObjectStore | None:
    """Return the object store at `url` if it belongs to a run of Metaflow's, which only its history
    can open; None if it belongs to a run of aflow's.

    Args:
        metadata: A metadata store, possibly combined with histories.
        url: The setting `storage` of a run's record.
    """
    return metadata.open_store(url) if isinstance(metadata, WithHistory) else None


class WithHistory:
    """Reads aflow's own metadata and the histories; writes go to aflow's own. If a run exists in
    both, aflow's is shown: it may have been imported from Metaflow's to be resumed."""

    def __init__(self, own: MetadataStore, histories: Sequence[Beside]) -> None:
        self._own = own
        self._histories = histories

    @property
    def url(self) -> str:
        """The URL of aflow's own metadata, for messages."""
        return self._own.url

    @property
    def address(self) -> str:
        """The URL that opens aflow's own metadata in another process."""
        return self._own.address

    def close(self) -> None:
        """Close all stores. Idempotent."""
        for each in (*self._histories, self._own):
            each.close()

    def flows(self) -> list[tuple[str, float]]:
        """Return name and time of creation of every flow, newest first."""
        found: dict[str, float] = {}
        for flow, at in (each for store in self._all() for each in store.flows()):
            found[flow] = min(found.get(flow, at), at)
        return sorted(found.items(), key=lambda each: each[1], reverse=True)

    def _all(self) -> Iterator[MetadataStore | Beside]:
        yield self._own
        yield from self._histories

    def runs(self, flow: str | None, **which: Any) -> list[RunRecord]:
        """Return runs, newest first; see `Records.runs`.

        Args:
            flow: The flow's name; None for all flows.
            **which: The fields of RunFilter.
        """
        runs = self._own.runs(flow, **which)
        known = {(run.flow, run.run) for run in runs}
        after = which.pop("after", None)
        for history in self._histories:
            # Each history compares with the key that the previous page's last run would have there.
            shifted = after and (after[0], after[1] - self._shift(history))
            for run in self._marked(history, history.runs(flow, after=shifted, **which)):
                taken_over = (run.flow, run.run) in known
                if not taken_over and self._own.run(run.flow, run.run) is None:
                    runs.append(run)
                    known.add((run.flow, run.run))
        runs.sort(key=lambda run: (run.created_at, run.key), reverse=True)
        return list(islice(runs, which.get("limit")))

    def run(self, flow: str, run: str) -> RunRecord | None:
        """Return one run with its graph, or None if there is none."""
        found = self._own.run(flow, run)
        if found is not None:
            return found
        for history in self._histories:
            theirs = history.run(flow, run)
            if theirs is not None:
                return next(self._marked(history, [theirs]))
        return None

    def _shift(self, history: Beside) -> int:
        """Return the difference between the keys of a history's runs here and there."""
        first = FIRST_KEY if isinstance(history, StoreMetadata) else 0
        return first + self._histories.index(history) * _STEP

    def _marked(self, history: Beside, runs: list[RunRecord]) -> Iterator[RunRecord]:
        """Yield the runs, with keys and storage URLs that identify their history."""
        number = self._histories.index(history)
        for run in runs:
            storage = str(run.settings.get("storage") or "")
            settings = run.settings
            if storage.startswith(SCHEME):
                settings = {**settings, "storage": f"{number}:{storage}"}
            yield run._replace(key=run.key + self._shift(history), settings=settings)

    def open_store(self, url: str) -> ObjectStore | None:
        """Return the object store of a run of a history; None for a run of aflow's own.

        Args:
            url: The setting `storage` of a run's record.
        """
        number, _, rest = url.partition(":")
        if not number.isdigit() or not rest.startswith(SCHEME):
            return None
        history = self._histories[int(number)]
        return history.open_store(rest) if isinstance(history, MetaflowHistory) else None

    def __getattr__(self, name: str) -> Any:
        """Forward calls with a run's key to the store of the run, all others to aflow's own."""
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
