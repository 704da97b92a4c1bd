"""Attempts of one run in several places: each step has its executor."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aflow.attempt import AttemptSpec, RunContext
    from aflow.executors.base import Executor, Orphan, Reports


class ByStep:
    """One executor made of several; `executors` has one for each step."""

    def __init__(self, executors: Mapping[str, Executor]) -> None:
        self._of_step = executors
        self._all = [*dict.fromkeys(executors.values())]

    @property
    def lookahead(self) -> int:
        """As many as the one that wants the fewest: the others do well with less."""
        return min(each.lookahead for each in self._all)

    def recover(self, orphans: Sequence[Orphan]) -> Sequence[Orphan]:
        """Give each to the executor of its step; those that are lost."""
        lost: list[Orphan] = []
        for each in self._all:
            lost += each.recover([o for o in orphans if self._of_step[o.spec.step] is each])
        return lost

    def forget(self, task: int, attempt: int) -> None:
        """Whoever had it knows."""
        for each in self._all:
            each.forget(task, attempt)

    async def start(self, context: RunContext, reports: Reports) -> None:
        """Get all of them ready; what one of them raises is raised, and `stop` is still to come."""
        for each in self._all:
            await each.start(context, reports)

    def launch(self, spec: AttemptSpec) -> None:
        """Start this attempt where its step belongs."""
        self._of_step[spec.step].launch(spec)

    def cancel(self, task: int, attempt: int) -> None:
        """Stop this attempt; those who do not have it take no notice."""
        for each in self._all:
            each.cancel(task, attempt)

    async def leave(self) -> None:
        """Leave all of them."""
        await asyncio.gather(*(each.leave() for each in self._all))

    async def stop(self) -> None:
        """Stop all that is still running. May be called twice."""
        await asyncio.gather(*(each.stop() for each in self._all))
