"""A queue in Amazon SQS: a standard queue per topic, created when it is first used.

    sqs://region/prefix        sqs+http://host:port/prefix?region=name        (sqs+https)

Credentials are found by botocore (AWS_* variables, ~/.aws, the role of the machine). Bodies that
are too large for SQS are stored in an object store: `?bodies=` with its quoted URL.

SQS lacks some functions, so this backend differs from the port in the following ways:

- Messages of one `put` are bundled, up to twenty in one SQS message, since SQS limits and charges
  by messages. A client that leases fewer puts the others again. Each can be acknowledged
  individually; if the worker goes away before all are, all are redelivered, each individually from
  then on.
- A `put` of more than two hundred messages takes several calls; if it raises, some of the messages
  may have been added. A message that is put again is duplicated. The order is approximate.
- SQS does not distinguish old receipts from new ones. So only the object that returned a lease
  knows it, and the lease ends there a second before it ends in SQS.
- Only buried messages can be removed. Others are delivered, and their worker finds that there is
  nothing left to do. SQS cannot list messages (`known`, `peek`), topics (names of queues are
  truncated) or workers. Only CloudWatch reports how long the oldest message has waited
  (ApproximateAgeOfOldestMessage).
- There are no priorities. Groups take turns only if SQS supports fair queues: a message carries its
  group if the service accepts that. Messages of skipped groups are received and released, which is
  not counted.
- Times are whole seconds, rounded up; a lease with its extensions ends after 12 hours. `depth` is
  an estimate, and counts SQS messages. A worker of several topics polls them in turn, a second
  each.
- A call of `lease` that is cancelled may leave messages leased until the lease expires.

Messages that are delivered too often go to a second queue, whose name ends in `-buried`; so do
messages that are not aflow's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import math
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, urlsplit

import msgpack

from aflow._core.clock import Clock, SystemClock
from aflow._core.secret import as_mentioned
from aflow._core.threads import in_thread, some_at_once
from aflow.errors import (
    InvalidMessage,
    InvalidSetting,
    LeaseLost,
    MissingExtra,
    ObjectNotFound,
    QueueUnavailable,
    StorageError,
)
from aflow.queue.base import (
    MAX_DELIVERIES,
    Buried,
    Depth,
    Lease,
    Message,
    Queue,
    check_messages,
    check_topic,
    group_of,
)

if TYPE_CHECKING:
    from aflow.storage.base import ObjectStore

# The format of an SQS message, whose body is text of a limited size.
#
# It is base64 of msgpack: one message, `[1, id, deliveries, buried_at, kept, body]`, or a bundle,
# `[2, [[id, deliveries, body], ...]]`. Bundles exist because SQS charges by messages, and accepts
# only ten in a call.
#
# `deliveries` are those that SQS does not count: a message that is released without being counted,
# or buried, becomes a new message in SQS. `kept` is the name of the object with the body, if that
# is too large.


LARGEST = 250_000  # maximum characters of a message, and of all messages of one call
MOST = 10  # maximum messages of a call
LARGEST_BUNDLE = LARGEST // MOST  # characters, so that MOST bundles fit into one call
_MOST_IN_BUNDLE = 20  # entries
_ONE, _BUNDLE = 1, 2


class SqsMessage(NamedTuple):
    """A message as it is stored in SQS."""

    id: str
    body: bytes
    deliveries: int = 0
    buried_at: float = 0.0
    kept: str = ""


def write(entries: Sequence[SqsMessage]) -> str:
    """Return the text of one entry, or of a bundle of several entries.

    Args:
        entries: The entries; those of a bundle must not be buried, and must have their bodies in
            SQS.
    """
    fields: list[Any]
    if len(entries) == 1:
        (entry,) = entries
        fields = [
            _ONE, entry.id, entry.deliveries, entry.buried_at, entry.kept,
            b"" if entry.kept else entry.body,
        ]  # fmt: skip
    else:
        fields = [_BUNDLE, [[each.id, each.deliveries, each.body] for each in entries]]
    return base64.b64encode(msgpack.packb(fields)).decode()


def read(text: str) -> list[SqsMessage]:
    """Return the entries in a text.

    Args:
        text: The body of an SQS message.

    Raises:
        InvalidMessage: If the text is malformed.
    """
    try:
        version, *rest = msgpack.unpackb(base64.b64decode(text, validate=True))
        if version == _ONE:
            name, deliveries, buried_at, kept, body = rest
            entries = [SqsMessage(name, body, deliveries, buried_at, kept)]
        else:
            (several,) = rest
            entries = [SqsMessage(name, body, deliveries) for name, deliveries, body in several]
    except Exception as error:
        raise InvalidMessage(f"A message is damaged: {type(error).__name__}.") from error
    kinds = [str, bytes, int, float, str]
    are_ours = all([type(each) for each in entry] == kinds for entry in entries)
    if version not in (_ONE, _BUNDLE) or not entries or not are_ours:
        raise InvalidMessage("A message is not from aflow, or has an unknown version.")
    return entries


def bundled(entries: Sequence[SqsMessage]) -> list[list[SqsMessage]]:
    """Return the entries grouped into SQS messages. Entries are bundled only if there are more of
    them than messages in a call, so that a few entries can reach as many workers.

    Args:
        entries: The entries of a call of `put`, in order.
    """
    most = min(-(-len(entries) // MOST), _MOST_IN_BUNDLE)
    bundles: list[list[SqsMessage]] = []
    room = 0
    for entry in entries:
        weight = size_of(entry)
        is_alone = bool(entry.kept) or weight > LARGEST_BUNDLE
        if not bundles or is_alone or len(bundles[-1]) >= most or weight > room:
            bundles.append([])
            room = 0 if is_alone else LARGEST_BUNDLE
        bundles[-1].append(entry)
        room -= weight
    return bundles


def size_of(entry: SqsMessage) -> int:
    """Return the maximum number of characters of the entry, including its body.

    Args:
        entry: The entry, with its whole body.
    """
    return (len(entry.body) + len(entry.id) + len(entry.kept) + 64) * 4 // 3


def calls_of(sizes: Sequence[int]) -> Iterator[range]:
    """Yield the ranges of messages that fit into one call.

    Args:
        sizes: The size of each message, in characters.
    """
    first = total = 0
    for number, size in enumerate(sizes):
        if number > first and (number - first == MOST or total + size > LARGEST):
            yield range(first, number)
            first, total = number, 0
        total += size
    if sizes:
        yield range(first, len(sizes))


# Calls of Amazon SQS: the client, the URLs of queues by name, and errors.


try:
    import aiohttp
    from aiobotocore.config import AioConfig

    from aflow._core.aws import (
        LOST_CREDENTIALS,
        NO_CREDENTIALS,
        Refusal,
        faults,
        new_session,
    )
except ImportError as error:
    raise MissingExtra("A queue in SQS needs aiobotocore: install aflow-runtime[aws].") from error

T = TypeVar("T")

LONGEST_WAIT = 20  # maximum seconds of a receiving call in SQS
KEPT_DAYS = 14  # for which SQS keeps a message
CALLS_AT_ONCE = 8
_NO_QUEUE = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})
_NO_CREDENTIALS = (*NO_CREDENTIALS, *LOST_CREDENTIALS)
# ValueError: the endpoint cannot be one.
_AWAY = (
    faults.BotoCoreError, faults.ClientError, aiohttp.ClientError, OSError, TimeoutError, ValueError
)  # fmt: skip


class SqsService:
    """SQS in a region, or at another endpoint. `place` is the URL for error messages. Its calls
    raise QueueUnavailable."""

    def __init__(self, place: str, region: str | None, endpoint: str | None) -> None:
        self._place = place
        self._region = region
        self._endpoint = endpoint
        # Created here rather than in a call: it reads large files, which blocks the event loop.
        self._session = new_session("sqs")
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(CALLS_AT_ONCE)
        self._stack = contextlib.AsyncExitStack()
        self._sqs: Any = None
        self._urls: dict[str, str] = {}

    async def url_of(self, name: str) -> str:
        """Return the URL of a queue, which is created if it does not exist.

        Args:
            name: The queue's name in SQS: prefix, topic and, for buried messages, a suffix.
        """
        if name not in self._urls:
            try:
                answer = await self.call("get_queue_url", QueueName=name)
            except _NoQueue:
                kept = {"MessageRetentionPeriod": str(KEPT_DAYS * 86_400)}
                answer = await self.call("create_queue", QueueName=name, Attributes=kept)
            self._urls[name] = answer["QueueUrl"]
        return self._urls[name]

    async def delete(self, name: str) -> None:
        """Delete a queue, if it exists."""
        try:
            found = (
                self._urls.get(name)
                or (await self.call("get_queue_url", QueueName=name))["QueueUrl"]
            )
            await self.call("delete_queue", QueueUrl=found)
        except _NoQueue:
            return
        finally:
            self._urls.pop(name, None)

    async def in_calls(
        self, call: str, name: str, entries: Sequence[dict[str, Any]]
    ) -> dict[int, str]:
        """Send entries in as many batch calls as necessary, concurrently.

        Args:
            call: The name of the call in botocore, which takes `Entries`.
            name: The queue's name in SQS: prefix, topic and, for buried messages, a suffix.
            entries: The entries, without their ids.

        Returns:
            The error codes of the entries that failed, by their index in `entries`.
        """
        if not entries:
            return {}
        url = await self.url_of(name)

        async def one(numbers: range) -> Any:
            part = [{"Id": str(number), **entries[number]} for number in numbers]
            async with self._slots:
                return await self.call(call, QueueUrl=url, Entries=part)

        sizes = [len(each.get("MessageBody", "")) for each in entries]
        calls = (one(numbers) for numbers in calls_of(sizes))
        answers = await some_at_once(calls, CALLS_AT_ONCE)
        failed = [each for answer in answers for each in answer.get("Failed", ())]
        return {int(each["Id"]): str(each["Code"]) for each in failed}

    async def call(self, name: str, **values: Any) -> Any:
        """Call SQS.

        Args:
            name: A method of botocore's client, such as `receive_message`.
            **values: Its parameters.

        Returns:
            The response.

        Raises:
            QueueUnavailable: If SQS rejects the call, or does not respond.
        """
        try:
            if self._sqs is None:
                await self._open()
            return await getattr(self._sqs, name)(**values)
        except _AWAY as error:
            refusal = Refusal.of(error) if isinstance(error, faults.ClientError) else None
            if refusal is not None and refusal.code in _NO_QUEUE:
                self._urls.clear()
                raise _NoQueue(f"The queue {self._place} was deleted: try again.") from error
            detail = " ".join(str(error).split())[:500] or type(error).__name__
            if (refusal and refusal.is_denied) or isinstance(error, _NO_CREDENTIALS):
                raise QueueUnavailable(
                    f"The queue {self._place} refuses us ({detail}): check the credentials (AWS_* "
                    "variables, ~/.aws) and what their policy allows."
                ) from error
            raise QueueUnavailable(
                f"The queue {self._place} does not answer ({detail}): see whether the endpoint and "
                "the region are right."
            ) from error

    async def _open(self) -> None:
        async with self._opening:
            if self._sqs is None:
                config = AioConfig(
                    max_pool_connections=4 * CALLS_AT_ONCE,
                    retries={"total_max_attempts": 1},
                    connect_timeout=10,
                    read_timeout=LONGEST_WAIT + 20,
                )
                self._sqs = await self._stack.enter_async_context(
                    self._session.create_client(
                        "sqs", region_name=self._region, endpoint_url=self._endpoint, config=config
                    )
                )

    async def close(self) -> None:
        """Close connections. Idempotent."""
        self._sqs = None
        await self._stack.aclose()


def code_of(error: QueueUnavailable) -> str:
    """Return the code with which SQS has rejected a call; empty if the call failed otherwise.

    Args:
        error: An error that `SqsService.call` raised.
    """
    cause = error.__cause__
    return Refusal.of(cause).code if isinstance(cause, faults.ClientError) else ""


class _NoQueue(QueueUnavailable):
    """SQS has no queue of that name."""


TURN = 1  # seconds of a receiving call if there are several topics
LONGEST_LEASE = 43_200
LONGEST_DELAY = 900  # of a message that is put
_BURIED = "-buried"
_REST = "rest"  # represents the entries of a message that were left to other clients
_LOOK = 30.0  # seconds for which buried messages are invisible to others while they are read
_CHANGE, _DELETE = "change_message_visibility_batch", "delete_message_batch"
_NAME = re.compile(r"[A-Za-z0-9_\-]{1,40}\Z")
_SKIPPED = 15.0  # seconds for which messages of skipped groups are invisible
# Error codes of services that do not support fair queues.
_NOT_FAIR = frozenset({"InvalidParameterValue", "InvalidParameter", "InvalidParameterCombination"})
_LOST = frozenset({"ReceiptHandleIsInvalid", "InvalidParameterValue", "MessageNotInflight"})


class _LeaseState(NamedTuple):
    """The state of a lease: until when it is valid (by the monotonic clock), the object with its
    body, and the receipt of its SQS message, which may contain the entries of other leases."""

    until: float
    kept: str
    handle: str


class _Rest(NamedTuple):
    """The parts of received messages that must be put again, bundled or individually, and the
    receipts of the messages of which a part, or the whole, is put again."""

    entries: list[SqsMessage]
    alone: list[SqsMessage]
    parts: list[str]
    whole: list[str]


class SqsQueue(Queue):
    """The queue at `url`; see the module docstring. `open_store` opens the URL in `?bodies=`."""

    def __init__(
        self,
        url: str,
        max_deliveries: int = MAX_DELIVERIES,
        *,
        open_store: Callable[[str], ObjectStore] | None = None,
        clock: Clock | None = None,
    ) -> None:
        refused = InvalidSetting(
            f"{as_mentioned(url)!r} is not a place of a queue: write sqs://region/prefix, or "
            "sqs+http://host:port/prefix?region=name; credentials come from AWS_* variables."
        )
        try:
            parts = urlsplit(url)
        except ValueError:  # an unclosed bracket
            raise refused from None
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        protocol = parts.scheme.partition("+")[2]
        region = options.pop("region", None) if protocol else parts.netloc
        endpoint = f"{protocol}://{parts.netloc}" if protocol else None
        bodies = options.pop("bodies", None)
        self._prefix = parts.path.strip("/")
        if not parts.netloc or "@" in parts.netloc or options or not _NAME.match(self._prefix):
            raise refused
        self._url = url
        self._max_deliveries = max_deliveries
        self._clock = clock or SystemClock()
        self._store: ObjectStore | None = open_store(bodies) if bodies and open_store else None
        self._service = SqsService(url, region, endpoint)
        self._held: dict[str, _LeaseState] = {}
        self._unsettled: dict[str, set[str]] = {}  # by receipt, the unfinished leases of a message
        self._is_fair = True  # until the service has rejected groups
        self._usual: dict[str, int] = {}  # by topic, the number of entries of the last message

    @property
    def url(self) -> str:
        """The URL, unchanged, since it contains no credentials."""
        return self._url

    @property
    def largest(self) -> int | None:
        """The limit of SQS; None if there is a store for larger bodies."""
        return None if self._store is not None else (LARGEST * 3 // 4) - 1024

    # ------------------------------------------------------------------ put and lease

    async def put(self, topic: str, messages: Sequence[Message]) -> None:
        """Add messages; see the port, and the module docstring for the differences."""
        check_topic(topic)
        check_messages(messages)
        entries = [
            await self._fitting(topic, SqsMessage(message.id, message.body)) for message in messages
        ]
        await self._send(self._name(topic), bundled(entries))

    async def _fitting(self, topic: str, entry: SqsMessage) -> SqsMessage:
        """Return the entry, with its body moved to the store if it is too large for SQS."""
        if size_of(entry) <= LARGEST:
            return entry
        if self._store is None:
            raise InvalidMessage(
                f"The message {entry.id} of {len(entry.body)} bytes is too large for SQS: name a "
                "store for such bodies in the queue's URL, as in ?bodies=s3%3A%2F%2Fbucket%2Fpath."
            )
        kept = f"bodies/{topic}/{uuid.uuid4().hex}"
        await self._keep(self._store.put, kept, [entry.body])
        return entry._replace(kept=kept)

    async def _send(
        self, name: str, bundles: Sequence[Sequence[SqsMessage]], delay: int = 0
    ) -> None:
        entries = [
            {"MessageBody": write(each), "DelaySeconds": delay, **self._group(each)}
            for each in bundles
        ]
        failed = await self._sent(name, entries)
        if self._is_fair and set(failed.values()) & _NOT_FAIR:
            self._is_fair = False
            for each in entries:
                each.pop("MessageGroupId", None)
            failed = await self._sent(name, [entries[number] for number in failed])
        if failed:
            raise QueueUnavailable(
                f"The queue {self._url} has not taken {len(failed)} of {len(entries)} messages "
                f"({next(iter(failed.values()))}): put them again."
            )

    async def _sent(self, name: str, entries: Sequence[dict[str, Any]]) -> dict[int, str]:
        """Send the entries; the error codes of those that failed, by index."""
        try:
            return await self._service.in_calls("send_message_batch", name, entries)
        except QueueUnavailable as error:
            code = code_of(error)
            if self._is_fair and code in _NOT_FAIR:  # then all of them are rejected
                return dict.fromkeys(range(len(entries)), code)
            raise

    def _group(self, bundle: Sequence[SqsMessage]) -> dict[str, str]:
        """Return the group of a message for SQS's fair queues; a bundle has its first entry's."""
        group = group_of(bundle[0].id) if self._is_fair else ""
        return {"MessageGroupId": group[:128]} if group else {}

    async def lease(
        self,
        topics: Sequence[str],
        limit: int,
        ttl: float,
        wait: float = 0.0,
        skip: Collection[str] = (),
    ) -> list[Lease]:
        """Lease messages; see the port."""
        for topic in topics:
            check_topic(topic)
        give_up_at = self._clock.monotonic() + wait
        while True:
            left = max(0.0, give_up_at - self._clock.monotonic())
            taken = await self._lease(topics, limit, ttl, left)
            skipped = [each for each in taken if group_of(each.id) in skip] if skip else []
            if not skipped:
                return taken
            with contextlib.suppress(LeaseLost):
                await self.release(skipped, delay=_SKIPPED, counted=False)
            if len(skipped) < len(taken) or give_up_at <= self._clock.monotonic():
                return [each for each in taken if each not in skipped]

    async def _lease(
        self, topics: Sequence[str], limit: int, ttl: float, wait: float
    ) -> list[Lease]:
        self._forget_ended()
        give_up_at = self._clock.monotonic() + wait
        taken: list[Lease] = []
        if wait <= 0 or len(topics) > 1:
            for topic in topics:
                if len(taken) < limit:
                    taken += await self._take(topic, limit - len(taken), ttl, 0)
        longest = LONGEST_WAIT if len(topics) == 1 else TURN
        while not taken and give_up_at > self._clock.monotonic():
            for topic in topics:
                left = math.ceil(give_up_at - self._clock.monotonic())
                if not taken and left > 0:
                    taken = await self._take(topic, limit, ttl, min(left, longest))
        return taken

    async def _take(self, topic: str, limit: int, ttl: float, wait: int) -> list[Lease]:
        """Lease available messages, up to `limit`; wait in SQS for the first."""
        taken: list[Lease] = []
        while len(taken) < limit:
            asked = min(MOST, -(-(limit - len(taken)) // self._usual.get(topic, 1)))
            try:
                found = await self._receive(self._name(topic), asked, ttl, 0 if taken else wait)
                rest = _Rest([], [], [], [])
                for each in found:
                    taken += await self._leased(topic, each, ttl, limit - len(taken), rest)
                await self._put_again(self._name(topic), rest)
            except QueueUnavailable:
                if taken:
                    break  # the next call raises
                raise
            if len(found) < asked:
                break
        return taken

    async def _put_again(self, name: str, rest: _Rest) -> None:
        """Return entries that were received but not leased to the queue, for other clients."""
        bundles = [*bundled(rest.entries), *([each] for each in rest.alone)]
        await self._send(name, bundles)
        # Only after the put: if it fails, these entries must be redelivered with the message.
        for handle in rest.parts:
            self._unsettled.get(handle, set()).discard(_REST)
        await self._service.in_calls(_DELETE, name, [_entry(handle) for handle in rest.whole])

    async def _receive(self, name: str, limit: int, ttl: float, wait: int) -> list[Any]:
        answer = await self._service.call(
            "receive_message",
            QueueUrl=await self._service.url_of(name),
            MaxNumberOfMessages=limit,
            WaitTimeSeconds=wait,
            VisibilityTimeout=_visible(ttl),
            AttributeNames=["ApproximateReceiveCount"],
        )
        found: list[Any] = answer.get("Messages", [])
        return found

    async def _leased(
        self, topic: str, message: Any, ttl: float, limit: int, rest: _Rest
    ) -> list[Lease]:
        """Lease up to `limit` entries of a received message; add the others to `rest`. Returns no
        leases if the message is buried instead."""
        handle = message["ReceiptHandle"]
        entries, are_ours = _entries_of(message)
        if not are_ours:
            await self._bury(topic, entries[0], 1)
            await self._delete(self._name(topic), handle)
            return []
        self._usual[topic] = len(entries)
        before = int(message["Attributes"]["ApproximateReceiveCount"]) - 1
        if len(entries) == 1 and limit > 0:
            return await self._leased_alone(topic, handle, entries[0], before + 1, ttl)
        if before:
            # One of the entries may have crashed the previous worker: deliver each individually.
            again = [each._replace(deliveries=each.deliveries + before) for each in entries]
            rest.alone.extend(again)
            entries = []
        ends = self._clock.monotonic() + ttl, self._clock.now() + ttl
        leases = [
            self._held_from_now(topic, each, f"{handle} {number}", each.deliveries + 1, ends)
            for number, each in enumerate(entries[: max(limit, 0)])
        ]
        rest.entries.extend(entries[len(leases) :])
        if not leases:
            rest.whole.append(handle)
        elif len(leases) < len(entries):
            rest.parts.append(handle)
            self._unsettled[handle].add(_REST)
        return leases

    async def _leased_alone(
        self, topic: str, handle: str, entry: SqsMessage, count: int, ttl: float
    ) -> list[Lease]:
        """Lease a message with a single entry; returns no lease if it is buried instead."""
        ends = self._clock.monotonic() + ttl, self._clock.now() + ttl
        deliveries = entry.deliveries + count
        spent = deliveries > self._max_deliveries
        with contextlib.suppress(ObjectNotFound):  # without its body it cannot be processed
            entry = await self._whole(entry)
            if not spent:
                return [self._held_from_now(topic, entry, handle, deliveries, ends)]
        await self._bury(topic, entry, deliveries - spent)
        await self._delete(self._name(topic), handle)
        return []

    def _held_from_now(
        self, topic: str, entry: SqsMessage, token: str, deliveries: int, ends: tuple[float, float]
    ) -> Lease:
        """Return a new lease of an entry. `ends`: by the monotonic clock and since the epoch."""
        until, expires_at = ends
        lease = Lease(
            topic=topic,
            id=entry.id,
            token=token,
            body=entry.body,
            deliveries=deliveries,
            expires_at=expires_at,
        )
        handle = _handle_of(lease)
        self._held[token] = _LeaseState(until, entry.kept, handle)
        self._unsettled.setdefault(handle, set()).add(token)
        return lease

    async def _whole(self, entry: SqsMessage) -> SqsMessage:
        """Return the entry with its body; raises ObjectNotFound."""
        if not entry.kept:
            return entry
        if self._store is None:
            raise QueueUnavailable(
                f"A message of {self._url} has its body in a store: name it in the queue's URL, as "
                "in ?bodies=s3%3A%2F%2Fbucket%2Fpath."
            )
        body = await self._keep(self._store.get, entry.kept)
        return entry._replace(body=bytes(body))

    async def _bury(self, topic: str, entry: SqsMessage, deliveries: int) -> None:
        now = self._clock.now()
        buried = entry._replace(deliveries=deliveries, buried_at=now)
        if not buried.kept and len(write([buried])) > LARGEST:  # not aflow's: its form is longer
            buried = buried._replace(body=buried.body[: LARGEST // 2])
        await self._send(self._name(topic) + _BURIED, [[buried]])

    async def _delete(self, name: str, handle: str) -> None:
        await self._service.in_calls(_DELETE, name, [_entry(handle)])

    # ------------------------------------------------------------------ the ends of leases

    async def extend(self, leases: Sequence[Lease], ttl: float) -> list[Lease]:
        """Extend leases; see the port."""
        mine, lost = self._mine(leases)
        until, expires_at = self._clock.monotonic() + ttl, self._clock.now() + ttl
        held = {each.token: self._held[each.token] for each in mine}
        lost += await self._change(mine, _CHANGE, VisibilityTimeout=_visible(ttl))
        extended = [each._replace(expires_at=expires_at) for each in mine if each not in lost]
        self._held |= {each.token: held[each.token]._replace(until=until) for each in extended}
        _check(lost, extended)
        return extended

    async def ack(self, leases: Sequence[Lease]) -> None:
        """Delete messages; see the port."""
        mine, lost = self._mine(leases)
        kept = {each.token: self._held[each.token].kept for each in mine}
        gone = await self._settle(mine)
        for each in mine:
            if kept[each.token] and self._store is not None and each not in gone:
                await self._keep(self._store.delete, kept[each.token])
        _check(lost + gone)

    async def release(
        self, leases: Sequence[Lease], *, delay: float = 0.0, counted: bool = True
    ) -> None:
        """Make messages available for redelivery; see the port."""
        mine, lost = self._mine(leases)
        states = {each.token: self._held[each.token] for each in mine}  # they may end meanwhile
        again: list[Lease] = []
        renewed: dict[str, list[SqsMessage]] = {}
        for each in mine:
            held = states[each.token]
            if counted and each.deliveries >= self._max_deliveries:
                entry = SqsMessage(each.id, each.body, kept=held.kept)
                await self._bury(each.topic, entry, each.deliveries)
            elif counted and held.handle == each.token:
                again.append(each)
            else:
                # SQS always counts deliveries, and counts them by message. So an entry that must
                # not be counted, or is a part of a bundle, becomes a new message.
                spent = each.deliveries - (not counted)
                entry = SqsMessage(each.id, each.body, spent, kept=held.kept)
                renewed.setdefault(each.topic, []).append(entry)
        for topic, entries in renewed.items():
            seconds = min(math.ceil(delay), LONGEST_DELAY)
            await self._send(self._name(topic), [[each] for each in entries], seconds)
        seconds = min(math.ceil(delay), LONGEST_LEASE)
        lost += await self._change(again, _CHANGE, VisibilityTimeout=seconds)
        for each in again:
            self._held.pop(each.token, None)
        lost += await self._settle([each for each in mine if each not in again])
        _check(lost)

    def _mine(self, leases: Sequence[Lease]) -> tuple[list[Lease], list[Lease]]:
        """Return the leases that have not ended, and those that have."""
        self._forget_ended()
        mine = [each for each in leases if each.token in self._held]
        return mine, [each for each in leases if each.token not in self._held]

    def _forget_ended(self) -> None:
        now = self._clock.monotonic()
        for token in [token for token, held in self._held.items() if held.until <= now]:
            del self._held[token]
        handles = {held.handle for held in self._held.values()}
        for handle in self._unsettled.keys() - handles:
            del self._unsettled[handle]

    async def _settle(self, leases: Sequence[Lease]) -> list[Lease]:
        """Finish leases, and delete the messages all of whose leases are finished. Returns the
        leases whose messages SQS no longer knows. A message with an expired lease is redelivered as
        a whole."""
        done = {each.token for each in leases}
        whole = {_handle_of(each): each for each in leases}
        # The leases may have ended since the caller has checked them.
        gone = whole.keys() - self._unsettled.keys()
        whole = {
            key: each
            for key, each in whole.items()
            if key not in gone and self._unsettled[key] <= done
        }
        gone |= {_handle_of(each) for each in await self._change([*whole.values()], _DELETE)}
        for each in leases:
            self._held.pop(each.token, None)
            self._unsettled.get(_handle_of(each), set()).discard(each.token)
        for handle in whole:
            self._unsettled.pop(handle, None)
        return [each for each in leases if _handle_of(each) in gone]

    async def _change(self, leases: Sequence[Lease], call: str, **values: int) -> list[Lease]:
        """Make a batch call for the leases' messages; return those that SQS no longer knows."""
        lost: list[Lease] = []
        for topic in dict.fromkeys(each.topic for each in leases):
            group = [each for each in leases if each.topic == topic]
            handles = [*dict.fromkeys(_handle_of(each) for each in group)]
            entries = [_entry(handle) | values for handle in handles]
            failed = await self._service.in_calls(call, self._name(topic), entries)
            others = set(failed.values()) - _LOST
            if others:
                raise QueueUnavailable(
                    f"The queue {self._url} has not done all that was asked ({min(others)})."
                )
            gone = {handles[number] for number in failed}
            lost += [each for each in group if _handle_of(each) in gone]
        return lost

    # ------------------------------------------------------------------ inspection

    async def bury(self, leases: Sequence[Lease]) -> None:
        """Keep messages for inspection; see the port."""
        mine, lost = self._mine(leases)
        kept = {each.token: self._held[each.token].kept for each in mine}  # they may end meanwhile
        for each in mine:
            entry = SqsMessage(each.id, each.body, kept=kept[each.token])
            await self._bury(each.topic, entry, each.deliveries)
        _check(lost + await self._settle(mine))

    async def remove(self, topic: str, ids: Sequence[str], *, leased: bool = False) -> None:
        """Delete buried messages; others are kept, see the module docstring."""
        if not ids:
            return
        name = self._name(check_topic(topic)) + _BURIED
        found = await self._look(name, None)
        gone = [(handle, entry) for handle, entry in found if entry.id in set(ids)]
        await self._service.in_calls(_DELETE, name, [_entry(handle) for handle, _ in gone])
        for _, entry in gone:
            if entry.kept and self._store is not None:
                await self._keep(self._store.delete, entry.kept)
        await self._give_back(name, [each for each in found if each not in gone])

    async def buried(self, topic: str, limit: int = 100) -> list[Buried]:
        """Return the buried messages; concurrent readers may miss some of them."""
        name = self._name(check_topic(topic)) + _BURIED
        looked = await self._look(name, limit)
        await self._give_back(name, looked)
        found = []
        for _, entry in looked[:limit]:
            with contextlib.suppress(ObjectNotFound):  # possibly the reason why it was buried
                entry = await self._whole(entry)
            at = entry.buried_at
            found.append(Buried(topic, entry.id, entry.body, entry.deliveries, at))
        return sorted(found, key=lambda each: each.buried_at)

    async def redrive(self, topic: str, ids: Sequence[str]) -> int:
        """Make buried messages ready; see the port."""
        name = self._name(check_topic(topic)) + _BURIED
        found = await self._look(name, None)
        again = [(handle, entry) for handle, entry in found if entry.id in set(ids)]
        entries = [entry._replace(deliveries=0, buried_at=0.0) for _, entry in again]
        await self._send(self._name(topic), [[each] for each in entries])
        await self._service.in_calls(_DELETE, name, [_entry(handle) for handle, _ in again])
        await self._give_back(name, [each for each in found if each not in again])
        return len(again)

    async def drop(self, topic: str) -> None:
        """Delete the queues of the topic; see the port."""
        name = self._name(check_topic(topic))
        await self._service.delete(name)
        await self._service.delete(name + _BURIED)

    async def announce(self, name: str, body: bytes, ttl: float) -> None:
        """Do nothing: SQS cannot store records of workers."""

    async def _look(self, name: str, limit: int | None) -> list[tuple[str, SqsMessage]]:
        """Receive the messages of a queue, all or at least `limit`, with their receipts. The caller
        must give them back."""
        found: list[Any] = []
        while limit is None or len(found) < limit:
            more = await self._receive(name, MOST, _LOOK, 0)
            found += more
            if not more:
                break
        return [(each["ReceiptHandle"], _entries_of(each)[0][0]) for each in found]

    async def _give_back(self, name: str, looked: Sequence[tuple[str, SqsMessage]]) -> None:
        entries = [_entry(handle) | {"VisibilityTimeout": 0} for handle, _ in looked]
        await self._service.in_calls(_CHANGE, name, entries)

    async def depth(self, topic: str) -> Depth:
        """Return the numbers of messages of the topic, as estimated by SQS."""
        name = self._name(check_topic(topic))
        ready, leased = await self._counts(name)
        return Depth(ready, leased, sum(await self._counts(name + _BURIED)))

    async def _counts(self, name: str) -> tuple[int, int]:
        what = "ApproximateNumberOfMessages"
        answer = await self._service.call(
            "get_queue_attributes", QueueUrl=await self._service.url_of(name),
            AttributeNames=[what, f"{what}Delayed", f"{what}NotVisible"],
        )  # fmt: skip
        counts = answer["Attributes"]
        return int(counts[what]) + int(counts[f"{what}Delayed"]), int(counts[f"{what}NotVisible"])

    async def close(self) -> None:
        """Close connections; see the port."""
        await self._service.close()

    # ------------------------------------------------------------------ helpers

    def _name(self, topic: str) -> str:
        """Return the name of the topic's queue, which may have 80 characters and no dots."""
        plain = topic.replace(".", "-")
        room = 80 - len(self._prefix) - len(_BURIED) - len("--12345678")
        if plain == topic and len(plain) <= room:
            return f"{self._prefix}-{plain}"
        digest = hashlib.sha256(topic.encode()).hexdigest()[:8]
        return f"{self._prefix}-{plain[:room]}-{digest}"

    async def _keep(self, call: Callable[..., T], *values: Any) -> T:
        """Call the object store, in a thread."""
        try:
            return await in_thread(call, *values)
        except ObjectNotFound:
            raise
        except StorageError as error:
            raise QueueUnavailable(f"Bodies of {self._url} cannot be kept: {error}") from error


def _entries_of(message: Any) -> tuple[list[SqsMessage], bool]:
    """Return the entries of a received message, and whether it is aflow's."""
    try:
        return read(message["Body"]), True
    except InvalidMessage:
        return [SqsMessage(message["MessageId"], message["Body"].encode())], False


def _entry(handle: str) -> dict[str, Any]:
    return {"ReceiptHandle": handle}


def _handle_of(lease: Lease) -> str:
    """Return the receipt of the lease's message."""
    return lease.token.partition(" ")[0]


def _visible(ttl: float) -> int:
    """Return the visibility timeout for a lease, a second longer than the lease."""
    return min(math.ceil(ttl) + 1, LONGEST_LEASE)


def _check(lost: Sequence[Lease], extended: Sequence[Lease] = ()) -> None:
    if lost:
        raise LeaseLost.of([each.id for each in lost], extended)
