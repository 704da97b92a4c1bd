"""The main program of a server: listen until a signal arrives, then shut down gracefully.

Starts both `aflow server`, which runs flows and stores metadata, and `aflow metadata-service`,
which only stores metadata; they differ in their APIs and background tasks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core.backoff import Backoff, Tries
from aflow._core.clock import SystemClock
from aflow._core.process import fastest_loop, on_signal
from aflow.errors import AflowError, InvalidSetting
from aflow.metadata.base import documents_of, registry_of
from aflow.server.api import AflowApi, Daemon
from aflow.server.app import Api, application
from aflow.server.auth import Authenticator, is_loopback
from aflow.server.listening import listening, settle
from aflow.server.metrics import Metrics
from aflow.server.recovery import RECOVERY, RunRecovery
from aflow.server.schedules import Scheduling
from aflow.server.workers import AnnouncedWorkers

if TYPE_CHECKING:
    import ssl

    from aflow.metadata.base import MetadataStore
    from aflow.server.metaflow.api import MetaflowApi

Loop = Callable[[], Coroutine[Any, Any, None]]

_CERTIFICATE_LOOK = 2.0  # seconds between checks for replaced files
_RESTARTS = Backoff(1.0, 60.0)  # of failed background tasks

_log = logging.getLogger("aflow.server")


class Listen(NamedTuple):
    """The address of a server and its options.

    `tokens` are the keys that clients may send, unless requests are `anonymous`. At shutdown,
    active runs may continue for `grace` seconds. A run that cannot be recovered for `recovery`
    seconds is recorded as failed."""

    host: str
    port: int
    tokens: Sequence[str]
    grace: float
    tls: Certificate | None = None
    recovery: float = RECOVERY
    anonymous: bool = False


class Certificate:
    """A TLS certificate and its key, both PEM files. They are reloaded when replaced, which is
    common every few weeks; open connections keep the old certificate. Raises InvalidSetting if the
    files cannot be used."""

    def __init__(self, cert: str, key: str) -> None:
        self._files = cert, key
        self._stamp = self._look()
        self.context = self._load(None)

    async def run_forever(self) -> None:
        """Reload the files periodically if they have changed. An invalid new certificate is logged,
        and the previous one remains in use."""
        while True:
            await asyncio.sleep(_CERTIFICATE_LOOK)
            await asyncio.to_thread(self._renew)

    def _renew(self) -> None:
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._load(None)  # test first: a mismatched key would corrupt the active context
            self._load(self.context)
        except InvalidSetting as error:
            _log.warning("The files of TLS were replaced, and the earlier ones stay: %s", error)
        else:
            _log.info("The certificate %s is used from now on.", self._files[0])

    def _look(self) -> list[tuple[int, int, int]]:
        """Return inode, time and size of the files, to detect changes."""
        found = []
        for file in self._files:
            with suppress(OSError):  # it is missing while it is replaced
                status = os.stat(file)
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return found

    def _load(self, context: ssl.SSLContext | None) -> ssl.SSLContext:
        import ssl

        if context is None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.options |= ssl.OP_NO_RENEGOTIATION
        cert, key = self._files
        try:
            # A key with a password is refused: a server has no terminal to ask for it.
            context.load_cert_chain(cert, key, password=lambda: "")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            why = getattr(error, "strerror", None) or error
            raise InvalidSetting(
                f"TLS cannot use the certificate {cert} with the key {key}: {why}."
            ) from error
        return context


def serve(
    title: str,
    listen: Listen,
    echo: Callable[[str], object],
    store: MetadataStore | None,
    service: MetaflowApi | None,
    daemon: Daemon | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Then requests in progress are completed, and active runs may continue until the grace time is
    over or a second signal arrives.

    Args:
        title: The name of the server, shown with its URL.
        listen: The address, keys and options of the server. Port 0 selects a free one.
        echo: Called with the line `TITLE on URL` once the server is listening.
        store: The metadata store with the tokens; None if only keys from the settings are valid.
        service: The API of Metaflow's metadata service; None to leave it out.
        daemon: The parts that run flows; None for a server without runs.

    Raises:
        InvalidSetting: If the address cannot be bound.
        AflowError: If a background task has ended unexpectedly.
    """

    async def serving() -> None:
        stop, hurry = asyncio.Event(), asyncio.Event()

        def stop_requested() -> None:
            # The first signal requests a graceful shutdown, the second one ends the grace time.
            (hurry if stop.is_set() else stop).set()

        for signum in (signal.SIGTERM, signal.SIGINT):
            on_signal(asyncio.get_running_loop(), signum, stop_requested)
        is_local = is_loopback(listen.host)
        authenticator = Authenticator(
            listen.tokens, store, SystemClock(), anonymous=listen.anonymous, is_local=is_local
        )
        apis: list[Api] = [] if service is None else [service]
        loops: dict[str, Loop] = {}
        metrics = None
        if daemon is not None:
            metrics = Metrics(daemon.runs, daemon.metadata, daemon.queue)
            apis.insert(0, _with_loops(daemon, listen, authenticator, metrics, loops))
        tls = None
        if listen.tls is not None:
            tls = listen.tls.context
            loops["certificate"] = listen.tls.run_forever
        app = application(apis, authenticator, metrics)
        try:
            async with listening(app, listen.host, listen.port, title.lower(), tls) as port:
                settle()
                echo(f"{title} on {'http' if tls is None else 'https'}://{listen.host}:{port}")
                try:
                    await run_until(stop, loops)
                finally:
                    # Also after an error: active runs get their grace time, or are left to another
                    # server.
                    if daemon is not None:
                        await daemon.runs.close(listen.grace, hurry)
        finally:
            if metrics is not None:
                await metrics.close()

    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(serving())


def _with_loops(
    daemon: Daemon,
    listen: Listen,
    authenticator: Authenticator,
    metrics: Metrics,
    loops: dict[str, Loop],
) -> AflowApi:
    """Create the API of a daemon, and add its background tasks to `loops`."""
    runs, blobs, metadata, queue, _, keys = daemon
    clock = SystemClock()
    recovery = RunRecovery(runs, metadata, clock, listen.recovery)
    loops |= {"recovery of runs": recovery.run_forever, "metrics": metrics.run_forever}
    scheduling = None
    documents = documents_of(metadata)
    if documents is not None:
        scheduling = Scheduling(documents, metadata, runs, blobs, clock)
        loops["schedules"] = scheduling.run_forever
    registry = registry_of(metadata)
    if queue is not None and registry is not None:
        loops["workers of the queue"] = AnnouncedWorkers(registry, queue, clock, keys).run_forever
    return AflowApi(daemon, metrics, scheduling, authenticator, recovery.watch)


async def run_until(
    stop: asyncio.Event, loops: Mapping[str, Loop], backoff: Backoff = _RESTARTS
) -> None:
    """Run the background tasks until `stop` is set. A task that fails is logged and restarted.

    Args:
        stop: Set to stop the tasks.
        loops: The background tasks, by name.
        backoff: The delays before a failed task is restarted.

    Raises:
        AflowError: If a task has ended unexpectedly: a server must not continue with only some of
            them.
    """
    async with asyncio.TaskGroup() as group:
        doing = {
            group.create_task(_kept_going(name, loop, backoff)): name
            for name, loop in loops.items()
        }
        stopping = group.create_task(_set(stop))
        done, _ = await asyncio.wait([stopping, *doing], return_when=asyncio.FIRST_COMPLETED)
        for each in (stopping, *doing):
            each.cancel()
    if stopping not in done:
        ended = ", ".join(doing[each] for each in done)
        raise AflowError(f"A background task of the server has ended ({ended}): the server stops.")


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def _kept_going(name: str, loop: Loop, backoff: Backoff) -> None:
    tries, clock = Tries(backoff), SystemClock()
    while True:
        began = clock.monotonic()
        try:
            await loop()
        except Exception:  # noqa: BLE001 -- logged; the task is restarted
            _log.exception("The background task for %s failed; it begins again.", name)
        if clock.monotonic() - began > backoff.longest:
            tries.succeeded()  # a rare failure is retried without a growing delay
        await asyncio.sleep(tries.failed() or 0.0)
