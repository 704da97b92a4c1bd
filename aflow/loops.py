"""Which event loop to use where the choice is ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


def fastest_kind() -> type[asyncio.AbstractEventLoop]:
    """The class of that event loop, to derive from."""
    try:
        import uvloop
    except ImportError:
        import asyncio

        return asyncio.SelectorEventLoop
    return uvloop.Loop


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes an event loop: uvloop's where it is installed, else None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def on_signal(
    loop: asyncio.AbstractEventLoop, signum: int, callback: Callable[..., object], *args: object
) -> None:
    """Call back when the signal comes. One that is ignored stays so: under nohup and the like."""
    import signal

    if signal.getsignal(signum) is not signal.SIG_IGN:
        loop.add_signal_handler(signum, callback, *args)
