"""Waiting in tests: always for the asserted condition, with the same deadline everywhere."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

# The maximum seconds of any wait, enough for a busy machine with few cores. It is less than the
# time limit of a test (pytest-timeout), so that a test fails with a message, not a stack trace.
PATIENCE = 100.0


def select_nothing(seconds: float) -> None:
    """Sleep for some seconds, so that other processes can run."""
    select.select([], [], [], seconds)


def open_files() -> int:
    """Return the number of open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def wait_until(
    holds: Callable[[], T],
    why: str | Callable[[], object] = "the condition did not become true",
    *,
    seconds: float = PATIENCE,
    interval: float = 0.02,
) -> T:
    """Wait until a condition is true.

    Args:
        holds: The condition; it is evaluated repeatedly.
        why: The message of the failure, or a function that returns it.
        seconds: The timeout.
        interval: The seconds between two evaluations.

    Returns:
        The first true value of the condition.
    """
    give_up_at = time.monotonic() + seconds
    while True:
        if found := holds():
            return found
        if time.monotonic() > give_up_at:
            pytest.fail(f"after {seconds:g} s: {why() if callable(why) else why}")
        select_nothing(interval)
