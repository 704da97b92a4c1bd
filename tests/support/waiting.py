"""Waiting in tests: always for the condition that is asserted, with one deadline for all."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

# Seconds that anything may take on a busy machine with few cores. It is below the time limit of a
# test (pytest-timeout), so that a test fails with what did not come, and not with a stack trace.
PATIENCE = 100.0


def select_nothing(seconds: float) -> None:
    """Let other processes have the processor for a moment."""
    select.select([], [], [], seconds)


def open_files() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def wait_until(
    holds: Callable[[], T],
    why: str | Callable[[], object] = "the condition did not become true",
    *,
    seconds: float = PATIENCE,
    interval: float = 0.02,
) -> T:
    """Wait until a condition holds.

    Args:
        holds: The condition; it is evaluated again and again.
        why: What the failure says, or a function that gives it.
        seconds: The deadline.
        interval: The pause between two evaluations.

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
