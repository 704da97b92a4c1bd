"""Results that need not be computed again: what a driver asks before it launches a task.

Two things give them: a resumed run, which takes over what its origin has finished (`resumed.py`),
and the cache, which knows what was computed from the same code and inputs (`cached.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aflow.flow.graph import Graph, Kind
from aflow.scheduler.messages import Transition

if TYPE_CHECKING:
    from aflow.scheduler.messages import LaunchAttempt
    from aflow.storage.manifest import Manifest


class Precedent(NamedTuple):
    """The result of a task of another run, fit to be the result of one in this run.

    `origin` is `run/step/task` of the same flow. `manifest` is encoded, and refers to tasks by
    their numbers in this run; `transition` is what it says. `cached` tells the cache from a resume.
    """

    origin: str
    manifest: bytes
    transition: Transition
    cached: bool = False


class Precedents(Protocol):
    """Who knows results. All calls are made in the order in which the run goes on."""

    def find(self, launch: LaunchAttempt) -> Precedent | None:
        """The result that a task, about to be launched for the first time, may take over."""

    def cache_key(self, task: int) -> bytes | None:
        """The key under which the cache will find this task, which `find` has seen; None if it
        will not."""

    def settled(self, task: int, manifest: bytes) -> None:
        """A task of this run has succeeded: launched, or by what `find` gave."""


class InTurn:
    """Several that know results, asked in turn: the first answer counts."""

    def __init__(self, *precedents: Precedents) -> None:
        self._all = precedents

    def find(self, launch: LaunchAttempt) -> Precedent | None:
        """The first result that is found; all are asked, since all keep account."""
        found = [each.find(launch) for each in self._all]
        return next(filter(None, found), None)

    def cache_key(self, task: int) -> bytes | None:
        """The first key that there is."""
        keys = [each.cache_key(task) for each in self._all]
        return next(filter(None, keys), None)

    def settled(self, task: int, manifest: bytes) -> None:
        """Tell all."""
        for each in self._all:
            each.settled(task, manifest)


def fits(graph: Graph, step: str, transition: Transition) -> bool:
    """Whether the step, as the flow has it now, may have gone on like this."""
    node = graph.nodes.get(step)
    if node is None:
        return False
    if node.kind is Kind.SWITCH:
        return len(transition.steps) == 1 and transition.steps[0] in node.next
    counted = node.kind in (Kind.FOREACH, Kind.PARALLEL)
    return tuple(transition.steps) == node.next and counted is (transition.count is not None)


def blobs_in(manifest: Manifest) -> Iterable[tuple[str, str]]:
    """What each blob that the manifest itself refers to is of, and its key."""
    for name, entry in manifest.artifacts.items():
        for key, _ in entry.blobs:
            yield f"artifact {name!r}", key
    for segment in (manifest.items or (0,))[1:]:
        if not isinstance(segment, bytes):
            yield "the items of its foreach", segment[0]
