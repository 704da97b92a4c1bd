"""Retries with exponential backoff and jitter.

All loops of aflow that retry or poll use this module. `Backoff` computes delays and does no I/O.
`Tries` is one series of tries: it counts failures, adds the jitter, and checks the deadline. There
are two exceptions: `scheduler/retry.py` has the retries of steps, which users configure, and
`environments/boot.py` runs in a container before aflow is installed.
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

    The maximum delay is `first` seconds after the first failure, and grows by the factor `growth`
    with each further one, up to `longest`. The actual delay is shorter by a random part of the
    share `jitter` of it; the default of 1 is "full jitter". So clients that lose a service at the
    same time do not all reconnect at the same time.
    """

    first: float
    longest: float
    growth: float = 2.0
    jitter: float = 1.0

    def bound(self, failures: int) -> float:
        """Return the maximum delay, in seconds, after a number of failures.

        Args:
            failures: The number of consecutive failures, 1 or more.
        """
        try:
            return min(self.longest, self.first * self.growth ** max(failures - 1, 0))
        except OverflowError:
            return self.longest

    def after(self, previous: float) -> float:
        """Return the maximum of the next delay, in seconds.

        Args:
            previous: The maximum of the previous delay, in seconds.
        """
        return min(self.longest, max(self.first, previous * self.growth))

    def spread(self, bound: float, share: float) -> float:
        """Return a delay with jitter, in seconds.

        Args:
            bound: The maximum delay, in seconds.
            share: A random number between 0 and 1.
        """
        return bound * (1.0 - self.jitter * (1.0 - share))

    def delay(self, failures: int, share: float) -> float:
        """Return the delay before the next try, in seconds.

        Args:
            failures: The number of consecutive failures, 1 or more.
            share: A random number between 0 and 1.
        """
        return self.spread(self.bound(failures), share)


class Tries:
    """One series of tries.

    Args:
        backoff: The delays between the tries.
        most: The maximum number of tries; None for no limit.
        patience: The timeout in seconds, from now or from the last success; None for no limit. The
            last try starts at the timeout.
        waiting_for: A description of what is waited for; if it is given, long waits are logged.
        log: Called with each log message; None uses the logger `aflow`.
        clock: The source of the time; None for the system clock.
        share: Returns random numbers between 0 and 1.
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
        """Count a failure.

        Args:
            error: The error, for the warning about a long wait.

        Returns:
            Seconds until the next try; None if there must be no further try.
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
        """Count a success: reset the failures and the timeout."""
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
        """Call a function until it succeeds, blocking between the tries.

        Args:
            call: The function.
            on: The errors after which it is called again. After the last try, the error is raised.
            unless: Subclasses of `on` that are raised immediately.
            pause: Waits for a number of seconds; the default blocks the thread.

        Returns:
            The result of the function.
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
            call: Creates the awaitable of one try.
            on: The errors after which there is another try. After the last try, the error is
                raised.

        Returns:
            The result of the call.
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
