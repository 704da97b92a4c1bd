"""The notices of a run, handed on once a turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from aflow.runs.notices import Notice

Watch = Callable[[Sequence[Notice]], None]


class Telling:
    """Tells a watcher, if there is one. What the watcher raises goes to `broken`, and it is told
    nothing more."""

    def __init__(self, watch: Watch | None, broken: Callable[[Exception], None]) -> None:
        self._watch = watch
        self._broken = broken
        self._notices: list[Notice] = []
        self._loop = asyncio.get_running_loop()

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens."""
        return self._watch is not None

    def tell(self, notice: Notice) -> None:
        """Tell this with the next turn of the loop."""
        if self._watch is None:
            return
        if not self._notices:
            self._loop.call_soon(self.flush)
        self._notices.append(notice)

    def flush(self) -> None:
        """Tell what there is to tell now."""
        if not self._notices or self._watch is None:
            return
        notices, self._notices = self._notices, []
        try:
            self._watch(notices)
        except Exception as error:  # noqa: BLE001 -- a watcher that cannot watch (its terminal is gone, say)
            self._watch = None
            self._broken(error)
