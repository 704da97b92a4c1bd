"""Wrappers of ports that inject a failure, or a crash of the caller, at a numbered point.

    points = Points(stop_at=17, how="after")
    store = Failing(store, points, StoreUnavailable)

Each call of a method of any port that shares the points passes one point. At the chosen point the
call fails *before* it has any effect, *after* it has completed (its result is lost), or in the
middle: *half* of the items of a bulk call are processed. With `dies`, all later calls fail as well,
as if their caller had been killed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Literal

How = Literal["before", "half", "after"]


class Killed(Exception):
    """The caller counts as killed: the call has no effect."""


class Points:
    """The points that calls pass, numbered from 0."""

    def __init__(self, stop_at: int | None = None, how: How = "before", dies: bool = True) -> None:
        self.stop_at = stop_at
        self.how = how
        self.dies = dies
        self.passed: list[str] = []  # the names of the calls
        self.halved = False

    @property
    def reached(self) -> bool:
        """Whether the chosen point has been passed."""
        return self.stop_at is not None and len(self.passed) > self.stop_at

    def stops(self, name: str) -> bool:
        """Pass a point, and return whether it is the chosen one."""
        if self.dies and self.reached:
            raise Killed(f"{name}, after {self.passed[-1]}")
        self.passed.append(name)
        return len(self.passed) - 1 == self.stop_at


class Failing:
    """A wrapper of a port. `error` is raised at the chosen point, unless the caller dies there."""

    def __init__(
        self, port: Any, points: Points, error: type[Exception], but: Sequence[str] = ()
    ) -> None:
        self._port = port
        self._points = points
        self._error = error
        self._but = {"close", *but}  # methods that pass no point

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
        """Raise Killed if the caller has died during the call: it must not receive the result."""
        if self._points.dies and self._points.reached:
            raise Killed(called)

    def _done(self, args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        """Yield the arguments to process at the point: none, all, or the first half."""
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
