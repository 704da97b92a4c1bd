"""Wrappers of ports whose calls fail, or whose caller dies, at a numbered point.

    points = Points(stop_at=17, how="after")
    store = Failing(store, points, StoreUnavailable)

Each call of any method of any port that shares the points passes one. At the one that is named the
call fails *before* it has done anything, *after* it has done all of it (its answer is lost), or
*half* of it is done where it is a call with many things. With `dies` all later calls fail as well:
what made them is as good as killed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Literal

How = Literal["before", "half", "after"]


class Killed(Exception):
    """Who made the call is dead, and does not know it."""


class Points:
    """The points that calls pass, by number from 0."""

    def __init__(self, stop_at: int | None = None, how: How = "before", dies: bool = True) -> None:
        self.stop_at = stop_at
        self.how = how
        self.dies = dies
        self.passed: list[str] = []  # the names of the calls
        self.halved = False

    @property
    def reached(self) -> bool:
        """Whether the point has been passed that was named."""
        return self.stop_at is not None and len(self.passed) > self.stop_at

    def stops(self, name: str) -> bool:
        """Pass a point: whether it is the one."""
        if self.dies and self.reached:
            raise Killed(f"{name}, after {self.passed[-1]}")
        self.passed.append(name)
        return len(self.passed) - 1 == self.stop_at


class Failing:
    """A port. `error` is what it raises where its calls fail and nobody dies."""

    def __init__(
        self, port: Any, points: Points, error: type[Exception], but: Sequence[str] = ()
    ) -> None:
        self._port = port
        self._points = points
        self._error = error
        self._but = {"close", *but}  # what is no point

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._port, name)
        if not callable(value) or name in self._but or name.startswith("_"):
            return value
        called = f"{type(self._port).__name__}.{name}"

        async def later(*args: Any, **options: Any) -> Any:
            if not self._points.stops(called):
                answer = await value(*args, **options)
                self._refuse_if_dead(called)
                return answer
            for some in self._done(args):
                await value(*some, **options)
            raise self._fault(called)

        def now(*args: Any, **options: Any) -> Any:
            if not self._points.stops(called):
                answer = value(*args, **options)
                self._refuse_if_dead(called)
                return answer
            for some in self._done(args):
                answer = value(*some, **options)
                if inspect.isgenerator(answer):
                    answer.close()
            raise self._fault(called)

        return later if inspect.iscoroutinefunction(value) else now

    def _refuse_if_dead(self, called: str) -> None:
        """The answer to a call that was on its way when its caller died reaches nobody."""
        if self._points.dies and self._points.reached:
            raise Killed(called)

    def _done(self, args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        """The arguments of what is carried out at the point: none, all, or the first half."""
        if self._points.how == "after":
            yield args
        elif self._points.how == "half":
            for at, many in enumerate(args):
                if type(many) in (list, tuple) and len(many) > 1:
                    self._points.halved = True
                    yield (*args[:at], many[: len(many) // 2], *args[at + 1 :])
                    return

    def _fault(self, called: str) -> Exception:
        kind = Killed if self._points.dies else self._error
        return kind(f"{called} failed, as the test wants.")
