"""How long a piece of code takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aflow._core.clock import SystemClock


@contextmanager
def profile(label: str, stats_dict: dict[str, float] | None = None) -> Iterator[None]:
    """Print how many milliseconds the block has taken; with `stats_dict` add them to its value of
    the label instead.

    Args:
        label: What the lines begin with.
        stats_dict: Takes the milliseconds under the label; None to print them.
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
