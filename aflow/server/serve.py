"""A server as a program: it listens until it is asked to stop, and then lets its runs end.

`aflow server` runs flows and keeps metadata, `aflow metadata-service` keeps metadata alone: both
are started here, and differ in which APIs and background tasks they have.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core.backoff import Backoff, Tries
from aflow._core.clock import SystemClock
from aflow._core.process import fastest_loop, on_signal
from aflow.errors import AflowError, InvalidSetting
from aflow.metadata.base import documents_of, registry_of
from aflow.server.api import AflowApi
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
    from aflow.queue.base import Queue
    from aflow.server.metaflow.api import MetaflowApi
    from aflow.server.runs import Runs
    from aflow.storage.blobs import BlobStore

Loop = Callable[[], Coroutine[Any, Any, None]]

_CERTIFICATE_LOOK = 2.0  # seconds between looks whether it was replaced
_RESTARTS = Backoff(1.0, 60.0)  # of a background task that has failed

_log = logging.getLogger("aflow.server")


class Listen(NamedTuple):
    """Where to listen, the keys that clients may send (`anonymous`: they need none), how many
    seconds runs may still take at the end, and after how many a run that cannot be recovered has
    failed."""

    host: str
    port: int
    tokens: Sequence[str]
    grace: float
    tls: Certificate | None = None
    recovery: float = RECOVERY
    anonymous: bool = False


class Certificate:
    """TLS with this certificate and this key, both files in PEM form. They are read again when they
    are replaced, as is usual every few weeks: connections that are open keep what they began with.
    Raises InvalidSetting where they cannot be used."""

    def __init__(self, cert: str, key: str) -> None:
        self._files = cert, key
        self._stamp = self._look()
        self.context = self._load(None)

    async def run_forever(self) -> None:
        """Look whether the files were replaced, again and again. Those that cannot be used are
        logged, and the earlier ones stay."""
        while True:
            await asyncio.sleep(_CERTIFICATE_LOOK)
            await asyncio.to_thread(self._renew)

    def _renew(self) -> None:
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._load(None)  # a certificate without its key would spoil the context that is used
            self._load(self.context)
        except InvalidSetting as error:
            _log.warning("The files of TLS were replaced, and the earlier ones stay: %s", error)
        else:
            _log.info("The certificate %s is used from now on.", self._files[0])

    def _look(self) -> list[tuple[int, int, int] | None]:
        """What tells one state of the files from the next."""
        found: list[tuple[int, int, int] | None] = []
        for file in self._files:
            try:
                status = os.stat(file)
            except OSError:
                found.append(None)
            else:
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
        except (OSError, ValueError) as error:  # also those of ssl
            why = getattr(error, "strerror", None) or error
            raise InvalidSetting(
                f"TLS cannot use the certificate {cert} with the key {key}: {why}."
            ) from error
        return context


class Daemon(NamedTuple):
    """What runs flows: where runs and their artifacts are, the queue whose workers run tasks, the
    metadata with what Metaflow has recorded beside them, and the keys that sign messages to
    workers."""

    runs: Runs
    blobs: BlobStore
    metadata: MetadataStore
    queue: Callable[[], Queue] | None = None
    shown: MetadataStore | None = None
    keys: Sequence[bytes] = ()


def serve(
    title: str,
    listen: Listen,
    echo: Callable[[str], object],
    store: MetadataStore | None,
    service: MetaflowApi | None,
    daemon: Daemon | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Requests that are being answered then still are; runs that go on may still end, until the grace
    time is over or another signal comes.

    Args:
        title: What it is, in the line that says where it listens.
        listen: Where to listen, and for whom. Port 0 takes a free one.
        echo: Called with the line `TITLE on URL` when it listens.
        store: The metadata store whose tokens are valid; None where only keys of the settings are.
        service: The API of Metaflow's metadata service; None where it is not served.
        daemon: The daemon that runs flows; None where the server runs none.

    Raises:
        InvalidSetting: It cannot listen there.
        AflowError: A background task has ended.
    """
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_serve(title, listen, echo, store, service, daemon))


async def _serve(
    title: str,
    listen: Listen,
    echo: Callable[[str], object],
    store: MetadataStore | None,
    service: MetaflowApi | None,
    daemon: Daemon | None,
) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()

    def stop_requested() -> None:
        # The first signal asks for a graceful end, the second one cuts the grace time short.
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
                # Whatever has ended the server: runs get their grace time, or are left to the next
                # server.
                if daemon is not None:
                    await daemon.runs.close(listen.grace, hurry)
    finally:
        if metrics is not None:
            await metrics.close()


def _with_loops(
    daemon: Daemon,
    listen: Listen,
    authenticator: Authenticator,
    metrics: Metrics,
    loops: dict[str, Loop],
) -> AflowApi:
    """The API of a daemon; its background tasks are added to `loops`."""
    runs, blobs, metadata, queue, shown, keys = daemon
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
    return AflowApi(
        runs, blobs, metadata, metrics, scheduling, authenticator,
        watch=recovery.watch, queue=queue, shown=shown,
    )  # fmt: skip


async def run_until(
    stop: asyncio.Event, loops: Mapping[str, Loop], backoff: Backoff = _RESTARTS
) -> None:
    """Keep the background tasks going until it is time to stop. One that fails is logged, and
    begins again.

    Args:
        stop: Set when it is time to stop.
        loops: The background tasks, by name.
        backoff: The delays before a loop that failed begins again.

    Raises:
        AflowError: Where one has ended all the same: a server that does only a part of its work has
            to be started again, by whatever started it.
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
        except Exception:  # noqa: BLE001 -- logged; the server goes on without
            _log.exception("The background task for %s failed; it begins again.", name)
        if clock.monotonic() - began > backoff.longest:
            tries.succeeded()  # what fails once a day begins again at once
        await asyncio.sleep(tries.failed() or 0.0)
