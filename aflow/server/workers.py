"""Registration of workers that can reach only the queue: a server with the same queue registers
them in the metadata, and forwards requests to drain to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from aflow.errors import AflowError, InvalidName
from aflow.executors.protocol import DrainMessage, Presence, worker_topic
from aflow.executors.queue_status import HEARTBEAT
from aflow.metadata.base import WORKER_EXPIRY
from aflow.metadata.sql import worker_record
from aflow.queue.base import Message

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.metadata.base import WorkerRecord, WorkerRegistry
    from aflow.queue.base import Queue

_MOST = 1000  # workers: announcements are not signed, so limit their number

_log = logging.getLogger("aflow.server")


class AnnouncedWorkers:
    """Registers the workers that are announced in a queue and cannot register themselves. The first
    of `keys` signs the messages to them."""

    def __init__(
        self,
        registry: WorkerRegistry,
        queue: Callable[[], Queue],
        clock: Clock,
        keys: Sequence[bytes] = (),
    ) -> None:
        self._registry = registry
        self._open = queue
        self._clock = clock
        self._keys = keys
        self._failed = False
        self._registered: set[str] = set()  # registered by this server

    async def run_forever(self) -> None:
        """Register announced workers periodically."""
        queue = await asyncio.to_thread(self._open)
        try:
            while True:
                try:
                    await self._look(queue)
                    self._failed = False
                except AflowError as error:
                    if not self._failed:  # logged once per outage
                        _log.warning("Workers of the queue are not registered now: %s", error)
                    self._failed = True
                await asyncio.sleep(HEARTBEAT)
        finally:
            await queue.close()

    async def _look(self, queue: Queue) -> None:
        announced = await queue.announced() or {}
        for name, data in [*announced.items()][:_MOST]:
            presence = Presence.decode(data)
            about = presence and presence.about  # empty: the worker registers itself
            worker = worker_record((name, about, 0.0, 0.0, None)) if about else None
            if worker is None:
                continue
            try:
                await self._register(queue, worker)
            except InvalidName as error:
                _log.warning("A worker is not registered: %s", error)
            else:
                self._registered.add(name)
        for name in self._registered - announced.keys():
            await asyncio.to_thread(self._registry.remove_worker, name)
            self._registered.discard(name)

    async def _register(self, queue: Queue, worker: WorkerRecord) -> None:
        reason = await asyncio.to_thread(self._registry.beat_worker, worker, WORKER_EXPIRY)
        if reason is not None and not worker.draining:
            topic = worker_topic(worker.name)[:64]
            body = DrainMessage(reason[:2000]).seal(self._keys, topic, self._clock.now())
            await queue.put(topic, [Message("drain", body)])  # ignored while one with this id waits
