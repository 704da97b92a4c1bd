"""The health check of a container with a worker or a server.

    python -m aflow _health

AFLOW_HEALTH_FILE is a file that a worker touches periodically from its event loop,
AFLOW_HEALTH_URL a URL at which a server responds. The exit code is 0 if the process is healthy;
otherwise it is 1, and a message is printed. This module imports as little as possible, since the
check is a new process every few seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from aflow._core.clock import SystemClock
from aflow._core.settings import Settings
from aflow.errors import AflowError, InvalidSetting

EVERY = 5.0  # seconds between the heartbeats of a worker
WITHIN = 30.0  # seconds since the last heartbeat after which a worker is unhealthy
TIMEOUT = 4.0  # seconds within which a server must respond


async def beat(path: Path) -> None:
    """Touch the file immediately and every few seconds, until cancelled.

    Args:
        path: The health file, which is created if it does not exist.

    Raises:
        InvalidSetting: If the file cannot be touched; the message has the reason.
    """
    import asyncio  # not needed by the check itself

    while True:
        try:
            await asyncio.to_thread(path.touch)
        except OSError as error:
            raise InvalidSetting(
                f"The health file {path} cannot be touched: {error.strerror}. Set "
                "AFLOW_HEALTH_FILE to a file in a folder that can be written to, or unset it."
            ) from error
        await asyncio.sleep(EVERY)


def trouble(file: Path | None, url: str | None, now: float) -> str:
    """Return the problem of the worker that touches the file, or of the server at the URL, in one
    sentence; "" if it is healthy.

    Args:
        file: AFLOW_HEALTH_FILE; None if it is not set.
        url: AFLOW_HEALTH_URL, which takes precedence; None if it is not set.
        now: The current time, in seconds since the epoch.
    """
    if url is not None:
        return _trouble_with_url(url)
    if file is not None:
        return _trouble_with_file(file, now)
    return "Nothing to look at: set AFLOW_HEALTH_FILE for a worker, AFLOW_HEALTH_URL for a server."


def _trouble_with_file(path: Path, now: float) -> str:
    try:
        age = now - path.stat().st_mtime
    except OSError as error:
        return f"No heartbeat of a worker was found: {path}: {error.strerror}."
    if age > WITHIN:
        return f"The worker's last heartbeat ({path}) is {age:.0f} s old."
    return ""


def _trouble_with_url(url: str) -> str:
    # Imported here, because the check of a file does not need these.
    from http.client import HTTPException
    from urllib.request import ProxyHandler, build_opener

    # The server is in the same container, which a proxy cannot reach.
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT):
            return ""
    except (OSError, ValueError, HTTPException) as error:
        return f"The server does not answer at {url}: {error}."


def main() -> int:
    """Run the health check, and print a problem to stderr.

    Returns:
        The exit code.
    """
    try:
        settings = Settings.load()
        file = Path(settings.health_file) if settings.health_file else None
        found = trouble(file, settings.health_url, SystemClock().now())
    except AflowError as error:
        found = str(error)
    if found:
        sys.stderr.write(found + "\n")
    return 1 if found else 0
