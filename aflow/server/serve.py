"""The daemon as a program: it listens until it is asked to stop, and then lets its runs end."""

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
from aflow.metadata.base import documents_of
from aflow.server.app import application
from aflow.server.auth import Authenticator, is_loopback
from aflow.server.listening import listening, settle
from aflow.server.metrics import Metrics
from aflow.server.recovery import RECOVERY, Sharing
from aflow.server.schedules import Scheduling
from aflow.server.workers import AnnouncedWorkers

if TYPE_CHECKING:
    import ssl

    from aiohttp import web

    from aflow.metadata.base import MetadataStore
    from aflow.queue.base import Queue
    from aflow.server.runs import Runs
    from aflow.storage.blobs import BlobStore

Mount = Callable[["web.Application"], object]
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

    async def look_on(self) -> None:
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
            # A key with a password is refused: nobody sits at the terminal of a server.
            context.load_cert_chain(cert, key, password=lambda: "")
        except (OSError, ValueError) as error:  # also those of ssl
            why = getattr(error, "strerror", None) or error
            raise InvalidSetting(
                f"TLS cannot use the certificate {cert} with the key {key}: {why}."
            ) from error
        return context


def serve(
    runs: Runs,
    blobs: BlobStore,
    metadata: MetadataStore,
    listen: Listen,
    say: Callable[[str], object],
    mounts: Sequence[Mount] = (),
    queue: Callable[[], Queue] | None = None,
    shown: MetadataStore | None = None,
    keys: Sequence[bytes] = (),
) -> None:
    """Serve until SIGTERM or SIGINT; runs that go on then may still end, until the grace is over or
    another signal comes. Port 0 takes a free one, which `say` receives. Each of `mounts` adds
    routes of its own; `queue` opens the one whose workers run tasks, `keys` sign messages to them;
    `shown` is the metadata with what Metaflow has recorded beside them. Raises InvalidSetting where
    it cannot listen."""
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_serve(runs, blobs, metadata, listen, say, mounts, queue, shown, keys))


async def _serve(
    runs: Runs,
    blobs: BlobStore,
    metadata: MetadataStore,
    listen: Listen,
    say: Callable[[str], object],
    mounts: Sequence[Mount],
    queue: Callable[[], Queue] | None,
    shown: MetadataStore | None,
    keys: Sequence[bytes],
) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()

    def stop_requested() -> None:
        (hurry if stop.is_set() else stop).set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        on_signal(asyncio.get_running_loop(), signum, stop_requested)
    scheduling = None
    documents = documents_of(metadata)
    if documents is not None:
        scheduling = Scheduling(documents, metadata, runs, blobs, SystemClock())
    metrics = Metrics(runs, metadata, queue)
    sharing = Sharing(runs, metadata, SystemClock(), listen.recovery)
    authenticator = Authenticator(
        listen.tokens,
        metadata,
        SystemClock(),
        anonymous=listen.anonymous,
        is_local=is_loopback(listen.host),
    )
    app = application(
        runs, blobs, metadata, metrics, scheduling, authenticator, sharing.watch, queue, shown
    )
    for mount in mounts:
        mount(app)
    try:
        tls = None if listen.tls is None else listen.tls.context
        async with listening(app, listen.host, listen.port, "server", tls) as port:
            scheme = "http" if listen.tls is None else "https"
            settle()
            say(f"Server on {scheme}://{listen.host}:{port}")
            loops: dict[str, Loop] = {"recovery of runs": sharing.look_on, "metrics": metrics.watch}
            if listen.tls is not None:
                loops["certificate"] = listen.tls.look_on
            if scheduling is not None:
                loops["schedules"] = scheduling.look_on
            registry: Any = metadata
            if queue is not None and hasattr(registry, "beat_worker"):
                workers = AnnouncedWorkers(registry, queue, SystemClock(), keys)
                loops["workers of the queue"] = workers.look_on
            try:
                await run_until(stop, loops)
            finally:
                await runs.close(listen.grace, hurry)
    finally:
        await metrics.close()


async def run_until(
    stop: asyncio.Event, loops: Mapping[str, Loop], backoff: Backoff = _RESTARTS
) -> None:
    """Keep the background tasks going until it is time to stop. One that fails is logged, and
    begins again. Raises AflowError where one has ended all the same: a server that does only a part
    of its work has to be started again, by whatever started it."""
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
        raise AflowError(f"A background task of the server has ended ({ended}): it stops.")


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
