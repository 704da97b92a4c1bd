"""How often Python looks for cycles to collect, where the process is ours.

A command line's start makes a hundred thousand objects that all stay; looking through them again
and again takes a tenth of the start. A coordinator makes records that hold no cycles. So in these
processes the collector looks seldom. Where steps run it looks as often as it always does.
"""

from __future__ import annotations

import gc

_USUAL = gc.get_threshold()


def seldom() -> None:
    """Let the collector look seldom in this process."""
    gc.set_threshold(100_000, 50, 50)


def as_usual() -> None:
    """Let the collector look as often as it did when the process began."""
    gc.set_threshold(*_USUAL)
