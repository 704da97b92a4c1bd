"""Measure how long a block of code takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aflow._core.clock import SystemClock


@contextmanager
def profile(label: str, stats_dict: dict[str, float] | None = None) -> Iterator[None]:
    """Print the duration of the block in milliseconds, or add it to `stats_dict`.

    Args:
        label: The label of the lines, or the key in `stats_dict`.
        stats_dict: A dict of milliseconds by label; None to print them.
    """
    if stats_dict is None:
        print(f"PROFILE: {label} starting")
    began = SystemClock.monotonic()
    yield
    took = (SystemClock.monotonic() - began) * 1e3
    if stats_dict is None:
        print(f"PROFILE: {label} completed in {int(took)}ms")
    else:
        stats_dict[label] = stats_dict.get(label, 0) + took
