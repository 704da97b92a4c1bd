"""Whether a worker or a server is well: what a container runs as its health check.

    python -m aflow _health

AFLOW_HEALTH_FILE is a file that a worker touches as long as its event loop goes round,
AFLOW_HEALTH_URL an address that a server answers. Exit code 0 is well, 1 is not, with a sentence.
It imports as little as it can: it is a new process every few seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from aflow._core.clock import SystemClock
from aflow._core.settings import Settings
from aflow.errors import AflowError, InvalidSetting

EVERY = 5.0  # seconds between two signs of life of a worker
WITHIN = 30.0  # seconds since the last one after which a worker is taken for ill
TIMEOUT = 4.0  # seconds that a server has to answer


async def beat(path: Path) -> None:
    """Touch the file now and every few seconds, until cancelled.

    Args:
        path: The health file; made if it does not exist.

    Raises:
        InvalidSetting: The file cannot be touched; the error says why.
    """
    import asyncio  # the check, which is run every few seconds, has no use for it

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
    """Return what is wrong with the worker that touches the file, or with the server at the
    address, in a sentence; "" if nothing is.

    Args:
        file: AFLOW_HEALTH_FILE, which a worker touches; None where it is not set.
        url: AFLOW_HEALTH_URL, which a server answers; None where it is not set. It takes
            precedence.
        now: The present time, in seconds since the epoch.
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
    # What looks at a file alone need not import these.
    from http.client import HTTPException
    from urllib.request import ProxyHandler, build_opener

    # The server of this very container, which no proxy can reach.
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT):
            return ""
    except (OSError, ValueError, HTTPException) as error:
        return f"The server does not answer at {url}: {error}."


def main() -> int:
    """Look, say what is wrong.

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
