"""Results that need not be computed again: what a driver asks before it launches a task.

Two things give them: a resumed run, which takes over what its origin has finished (`resumed.py`),
and the cache, which knows what was computed from the same code and inputs (`cached.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from aflow.scheduler.messages import Transition

if TYPE_CHECKING:
    from aflow.scheduler.messages import LaunchAttempt


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
