"""Attempts of one run in several places: each step has its executor."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aflow.attempt.spec import AttemptSpec, RunContext
    from aflow.executors.base import Executor, Orphan, Reports


class ByStep:
    """One executor made of several; `executors` has one for each step. What settles a step without
    running it (@catch, where its process died) is done by `fallbacks`, if that is there: what broke
    the step's own place does not break this one."""

    def __init__(
        self, executors: Mapping[str, Executor], fallbacks: Executor | None = None
    ) -> None:
        self._of_step = executors
        self._fallbacks = fallbacks
        others = [] if fallbacks is None else [fallbacks]
        self._all = [*dict.fromkeys([*executors.values(), *others])]

    def _of(self, spec: AttemptSpec) -> Executor:
        if spec.fallback and self._fallbacks is not None:
            return self._fallbacks
        return self._of_step[spec.step]

    @property
    def lookahead(self) -> int:
        """As many as the one that wants the fewest: the others do well with less."""
        return min(each.lookahead for each in self._all)

    def recover(self, orphans: Sequence[Orphan]) -> Sequence[Orphan]:
        """Give each to the executor of its step; those that are lost."""
        lost: list[Orphan] = []
        for each in self._all:
            lost += each.recover([o for o in orphans if self._of(o.spec) is each])
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
        self._of(spec).launch(spec)

    def cancel(self, task: int, attempt: int) -> None:
        """Stop this attempt; those who do not have it take no notice."""
        for each in self._all:
            each.cancel(task, attempt)

    async def conclude(self) -> None:
        """Tell all of them."""
        await asyncio.gather(*(each.conclude() for each in self._all))

    async def leave(self) -> None:
        """Leave all of them."""
        await asyncio.gather(*(each.leave() for each in self._all))

    async def stop(self) -> None:
        """Stop all that is still running. May be called twice."""
        await asyncio.gather(*(each.stop() for each in self._all))
