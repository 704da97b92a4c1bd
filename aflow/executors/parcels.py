"""What travels with an attempt to a machine that has no metadata.

A task reads the manifests of its inputs, of the tasks that set what these pass on, and of those
that opened the foreachs around it. Small ones that are at hand ride in the spec; the others go into
a parcel, which all tasks with the same inputs share. The inputs of a join come in pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from aflow.attempt.inputs import PAGE
from aflow.attempt.remote import Parcels, pack_manifests
from aflow.ids import PARAMETERS_TASK
from aflow.scheduler.codec import decode_inputs
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, Inputs
from aflow.storage.manifest import Manifest

if TYPE_CHECKING:
    from aflow.attempt.spec import AttemptSpec
    from aflow.metadata.base import MetadataStore

_AT_ONCE = 500  # manifests a query
_KEPT = 256  # parcels whose keys are remembered


class Packer:
    """Completes specs, so that a worker needs nothing but the store. Calls block; one thread."""

    def __init__(self, metadata: MetadataStore, run_key: int, parcels: Parcels) -> None:
        self._metadata = metadata
        self._run_key = run_key
        self._parcels = parcels
        self._known: dict[tuple[int, ...], str] = {}

    def complete(self, spec: AttemptSpec, *, apart: bool = False) -> AttemptSpec:
        """The spec with the parcels that its attempt may need; with `apart` it carries no manifest
        itself, so that it is small."""
        inputs = decode_inputs(spec.inputs)
        pages: tuple[str, ...] = ()
        if isinstance(inputs, FromForeach):
            pages = tuple(self._page(inputs, start) for start in range(0, inputs.count, PAGE))
        along = {task: Manifest.decode(data) for task, data in spec.manifests.items()}
        needed = {int(PARAMETERS_TASK), *_inputs_of(inputs)}
        needed.update(_behind(along[task] for task in needed if task in along))
        missing = self._all_behind(sorted(needed - along.keys()), set(along))
        if apart:
            missing.update(spec.manifests)
            spec = spec._replace(manifests={})
        return spec._replace(pages=pages, more=self._parcel(missing) if missing else None)

    def _all_behind(self, tasks: Iterable[int], there: set[int]) -> dict[int, bytes]:
        """The manifests of these tasks, and of those that they lead to, but for those there."""
        found: dict[int, bytes] = {}
        wanted = sorted(set(tasks) - there)
        while wanted:
            for at in range(0, len(wanted), _AT_ONCE):
                part = wanted[at : at + _AT_ONCE]
                found.update(self._metadata.manifests(self._run_key, part))
            read = [Manifest.decode(found[task]) for task in wanted if task in found]
            wanted = sorted(_behind(read) - found.keys() - there - set(wanted))
        return found

    def _page(self, inputs: FromForeach, start: int) -> str:
        rows = self._metadata.split_manifests(
            self._run_key, inputs.split, inputs.steps, start, PAGE
        )
        behind = _behind(Manifest.decode(data) for *_, data in rows)
        return self._parcels.put(pack_manifests(self._all_behind(behind, set()), rows))

    def _parcel(self, manifests: dict[int, bytes]) -> str:
        """The key of a parcel; tasks with the same inputs share it, unless these have grown."""
        name = tuple(each for task in sorted(manifests) for each in (task, len(manifests[task])))
        key = self._known.get(name)
        if key is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            key = self._known[name] = self._parcels.put(pack_manifests(manifests))
        return key


def _inputs_of(inputs: Inputs) -> tuple[int, ...]:
    if isinstance(inputs, FromTask):
        return (inputs.task,)
    if isinstance(inputs, FromBranches):
        return inputs.tasks
    return (inputs.split,) if isinstance(inputs, FromForeach) else ()


def _behind(manifests: Iterable[Manifest]) -> set[int]:
    """The tasks that manifests lead to: who set what they pass on, who opened their foreachs."""
    found: set[int] = set()
    for manifest in manifests:
        found.update(manifest.inherited)
        found.update(frame.split for frame in manifest.stack)
    return found
