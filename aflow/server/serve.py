"""The daemon as a program: it listens until it is asked to stop, and then lets its runs end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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

_LONGEST_PAUSE = 60.0  # seconds until a background task that failed begins again

_log = logging.getLogger("aflow.server")


class Listen(NamedTuple):
    """Where to listen, the keys that clients may send (`anonymous`: they need none), how many
    seconds runs may still take at the end, and after how many a run that cannot be recovered has
    failed."""

    host: str
    port: int
    tokens: Sequence[str]
    grace: float
    tls: ssl.SSLContext | None = None
    recovery: float = RECOVERY
    anonymous: bool = False


def tls_context(cert: str, key: str) -> ssl.SSLContext:
    """TLS with this certificate and this key, both files in PEM form; raises InvalidSetting where
    they cannot be used."""
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
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
        async with listening(app, listen.host, listen.port, "server", listen.tls) as port:
            scheme = "http" if listen.tls is None else "https"
            settle()
            say(f"Server on {scheme}://{listen.host}:{port}")
            loops: dict[str, Loop] = {"recovery of runs": sharing.look_on, "metrics": metrics.watch}
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


async def run_until(stop: asyncio.Event, loops: Mapping[str, Loop], pause: float = 1.0) -> None:
    """Keep the background tasks going until it is time to stop. One that fails is logged, and
    begins again. Raises AflowError where one has ended all the same: a server that does only a part
    of its work has to be started again, by whatever started it."""
    async with asyncio.TaskGroup() as group:
        doing = {
            group.create_task(_kept_going(name, loop, pause)): name for name, loop in loops.items()
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


async def _kept_going(name: str, loop: Loop, pause: float) -> None:
    while True:
        try:
            await loop()
        except Exception:  # noqa: BLE001 -- logged; the server goes on without
            _log.exception("The background task for %s failed; it begins again.", name)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
