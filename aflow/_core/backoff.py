"""How long to wait before something is tried again, and when to give up.

Every loop of aflow that tries again, or looks again, takes its times from here. `Backoff` is the
rule, and pure. `Tries` is one series of tries: it counts failures, draws the jitter, and keeps the
deadline. Two places have rules of their own, on purpose: `scheduler/retry.py` is what users
configure for their steps, and `environments/boot.py` runs in a container before aflow is there.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from aflow._core.clock import SystemClock
from aflow._core.records import dataclass
from aflow._core.waiting import Waiting

if TYPE_CHECKING:
    from aflow._core.clock import Clock

T = TypeVar("T")
Errors = type[Exception] | tuple[type[Exception], ...]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with jitter.

    At most `first` seconds pass after the first failure, and `growth` times as many after each
    further one, up to `longest`. A random part of `jitter` of that time is left out: all of it
    ("full jitter") unless another share is given. So many clients that lose a service at the same
    moment do not come back to it at the same moment."""

    first: float
    longest: float
    growth: float = 2.0
    jitter: float = 1.0

    def bound(self, failures: int) -> float:
        """Return the longest delay, in seconds, after `failures` (1 or more) in a row.

        Args:
            failures: How many tries have failed in a row, 1 or more.
        """
        try:
            return min(self.longest, self.first * self.growth ** max(failures - 1, 0))
        except OverflowError:
            return self.longest

    def after(self, previous: float) -> float:
        """Return the bound that follows one of `previous` seconds.

        Args:
            previous: The bound of the last delay, in seconds.
        """
        return min(self.longest, max(self.first, previous * self.growth))

    def spread(self, bound: float, share: float) -> float:
        """Return the delay within a bound; `share` is a random number between 0 and 1.

        Args:
            bound: The longest delay, in seconds.
            share: A random number between 0 and 1.
        """
        return bound * (1.0 - self.jitter * (1.0 - share))

    def delay(self, failures: int, share: float) -> float:
        """Return the seconds to wait before the next try.

        Args:
            failures: How many tries have failed in a row, 1 or more.
            share: A random number between 0 and 1.
        """
        return self.spread(self.bound(failures), share)


class Tries:
    """One series of tries.

    Args:
        backoff: The delays between them.
        most: How many tries are made in all; None for no limit.
        patience: For how many seconds they are made, from now on or from the last success; None
            for no limit. The last try is made when they are over.
        waiting_for: What is waited for: a `Waiting` says so where it takes long.
        log: Called with each sentence for people; without it they go to the logger `aflow`.
        clock: Where the time comes from.
        share: Gives random numbers between 0 and 1.
    """

    def __init__(
        self,
        backoff: Backoff,
        *,
        most: int | None = None,
        patience: float | None = None,
        waiting_for: str = "",
        log: Callable[[str], object] | None = None,
        clock: Clock | None = None,
        share: Callable[[], float] = random.random,
    ) -> None:
        self._backoff = backoff
        self._most = most
        self._patience = patience
        self._waiting_for = waiting_for
        self._waiting: Waiting | None = None
        self._log = log
        self._clock = clock or SystemClock()
        self._share = share
        self._began = self._clock.monotonic()
        self.failures = 0  # in a row

    def failed(self, error: object = "") -> float | None:
        """Note a failure.

        Args:
            error: What failed; the warning about a long wait ends with it.

        Returns:
            Seconds until the next try; None where no try is left.
        """
        self.failures += 1
        if self._most is not None and self.failures >= self._most:
            return None
        delay = self._backoff.delay(self.failures, self._share())
        if self._patience is not None:
            left = self._began + self._patience - self._clock.monotonic()
            if left <= 0:
                return None
            delay = min(delay, left)
        if self._waiting_for:
            self._waiting = self._waiting or Waiting(self._waiting_for, self._clock, self._log)
            self._waiting.still(str(error))
        return delay

    def succeeded(self) -> None:
        """Note a success: the next failure is the first one again."""
        if self._waiting is not None:
            self._waiting.over()
        self.failures, self._waiting = 0, None
        if self._patience is not None:
            self._began = self._clock.monotonic()

    def retry(
        self,
        call: Callable[[], T],
        on: Errors,
        *,
        unless: Errors = (),
        pause: Callable[[float], object] | None = None,
    ) -> T:
        """Call a function until it succeeds. Blocks between the tries.

        Args:
            call: The function.
            on: The errors after which it is called again. When no try is left, the last one is
                raised.
            unless: Those of them that no further try can repair: they are raised at once.
            pause: Waits for a number of seconds; by default it blocks the thread.

        Returns:
            What the function returned.
        """
        pause = pause or threading.Event().wait
        while True:
            try:
                found = call()
            except on as error:
                delay = None if isinstance(error, unless) else self.failed(error)
                if delay is None:
                    raise
                pause(delay)
            else:
                self.succeeded()
                return found

    async def retry_async(self, call: Callable[[], Awaitable[T]], on: Errors) -> T:
        """Await a call until it succeeds, with `asyncio.sleep` between the tries.

        Args:
            call: Makes the awaitable of one try.
            on: The errors after which there is another try. When none is left, the last one is
                raised.

        Returns:
            What the call returned.
        """
        while True:
            try:
                found = await call()
            except on as error:
                delay = self.failed(error)
                if delay is None:
                    raise
                await asyncio.sleep(delay)
            else:
                self.succeeded()
                return found
