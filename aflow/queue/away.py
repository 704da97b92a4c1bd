"""How long who uses a queue waits while its broker is away."""

from __future__ import annotations

import asyncio
import random

AWAY = 1.0  # seconds between tries


def wait_before_next_try(share: float) -> float:
    """Seconds to wait; `share` is a number between 0 and 1. All users of a broker lose it at the
    same moment, and are not to come back to it at the same moment as well."""
    return AWAY * (0.5 + share)


async def pause() -> None:
    """Wait so long, by lot."""
    await asyncio.sleep(wait_before_next_try(random.random()))
