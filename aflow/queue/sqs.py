"""A queue in Amazon SQS: a standard queue for each topic, made when it is first used.

    sqs://region/prefix        sqs+http://host:port/prefix?region=name        (sqs+https)

Credentials come from where botocore finds them (AWS_* variables, ~/.aws, the role of the machine).
A body that is too large for SQS goes to an object store: `?bodies=` and its URL, quoted.

What SQS cannot, and so is otherwise than the port says:

- A put of more than ten messages is several calls: one that raises may have put some of them. A
  message that is put again is there twice. The order is rough.
- SQS does not tell an old receipt from a new one. So a lease is known only to the object that gave
  it, and ends there a second before it ends in SQS.
- Only buried messages can be removed. Others come, and whoever gets them finds that nobody waits.
- Times are whole seconds, rounded up; a lease with its extensions ends after 12 hours. `depth` is
  an estimate. Who waits for several topics looks at them in turn, a second each.
- A call of `lease` that is cancelled in the middle may hold messages until their time has passed.

Messages that come back too often go to a second queue, whose name ends in `-buried`; so does what
is no message of aflow's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import re
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import parse_qs, urlsplit

from aflow.clock import Clock, SystemClock
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
    check_messages,
    check_topic,
)
from aflow.queue.letters import LARGEST, MOST, Letter, calls_of, read, write

try:
    import aiohttp
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession
    from botocore import exceptions as faults
except ImportError as error:
    raise MissingExtra("A queue in SQS needs aiobotocore: install aflow[aws].") from error

T = TypeVar("T")

LONGEST_WAIT = 20  # seconds of one call, as SQS has it
TURN = 1  # the same where several topics are waited for
LONGEST_LEASE = 43_200
LONGEST_DELAY = 900  # of a message that is put
KEPT_DAYS = 14  # that SQS keeps a message
CALLS_AT_ONCE = 8
_BURIED = "-buried"
_LOOK = 30.0  # seconds for which buried messages are out of sight while somebody looks at them
_CHANGE, _DELETE = "change_message_visibility_batch", "delete_message_batch"
_NAME = re.compile(r"[A-Za-z0-9_\-]{1,40}\Z")
_LOST = frozenset({"ReceiptHandleIsInvalid", "InvalidParameterValue", "MessageNotInflight"})
_NO_QUEUE = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})
_REFUSED = re.compile(
    "AccessDenied|Unauthorized|InvalidClientTokenId|UnrecognizedClient|SignatureDoesNotMatch"
    "|ExpiredToken|InvalidAccessKey|AuthFailure|InvalidSecurity|OptInRequired|^40[13]$"
)
_NO_CREDENTIALS = (
    faults.NoCredentialsError,
    faults.PartialCredentialsError,
    faults.CredentialRetrievalError,
)
_AWAY = (faults.BotoCoreError, faults.ClientError, aiohttp.ClientError, OSError, TimeoutError)


class Store(Protocol):
    """Where large bodies are kept: these calls of the object store's port, which block."""

    def put(self, name: str, parts: Sequence[bytes]) -> object:
        """Write an object."""

    def get(self, name: str) -> Any:
        """Its bytes; raises ObjectNotFound."""

    def delete(self, name: str) -> None:
        """Remove it, if it is there."""


class _Held(NamedTuple):
    """What is known of a lease: until when it is trusted (monotonic), and where its body is."""

    until: float
    kept: str


class SqsQueue:
    """The queue at `url`; see the module's text. `open_store` opens what `?bodies=` names."""

    def __init__(
        self,
        url: str,
        max_deliveries: int = MAX_DELIVERIES,
        *,
        open_store: Callable[[str], Any] | None = None,
        clock: Clock | None = None,
    ) -> None:
        parts = urlsplit(url)
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        protocol = parts.scheme.partition("+")[2]
        self._region = options.pop("region", None) if protocol else parts.netloc
        self._endpoint = f"{protocol}://{parts.netloc}" if protocol else None
        bodies = options.pop("bodies", None)
        self._prefix = parts.path.strip("/")
        if not parts.netloc or "@" in parts.netloc or options or not _NAME.match(self._prefix):
            raise InvalidSetting(
                f"{url.rpartition('@')[2]!r} is no place of a queue: write sqs://region/prefix, or "
                "sqs+http://host:port/prefix?region=name; credentials come from AWS_* variables."
            )
        self._url = url
        self._max_deliveries = max_deliveries
        self._clock = clock or SystemClock()
        self._store: Store | None = open_store(bodies) if bodies and open_store else None
        self._session = AioSession()
        # These are large files: to read them here does not hold up whoever shares the event loop.
        loader = self._session.get_component("data_loader")
        for kind in ("service-2", "endpoint-rule-set-1"):
            loader.load_service_model("sqs", kind)
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(CALLS_AT_ONCE)
        self._stack = contextlib.AsyncExitStack()
        self._sqs: Any = None
        self._urls: dict[str, str] = {}
        self._held: dict[str, _Held] = {}

    @property
    def url(self) -> str:
        """As it was given: there are no credentials in it."""
        return self._url

    # ------------------------------------------------------------------ put and lease

    async def put(self, topic: str, messages: Sequence[Message]) -> None:
        """Add messages; see the port, and what this module says of it."""
        check_topic(topic)
        check_messages(messages)
        letters = [await self._fitting(topic, Letter(*message)) for message in messages]
        await self._send(self._name(topic), letters)

    async def _fitting(self, topic: str, letter: Letter) -> Letter:
        """The letter, its body in the store if it is too large for SQS."""
        if len(letter.body) * 4 // 3 + 1000 <= LARGEST:
            return letter
        if self._store is None:
            raise InvalidMessage(
                f"The message {letter.id} of {len(letter.body)} bytes is too large for SQS: name a "
                "store for such bodies in the queue's URL, as in ?bodies=s3%3A%2F%2Fbucket%2Fpath."
            )
        kept = f"bodies/{topic}/{uuid.uuid4().hex}"
        await self._keep(self._store.put, kept, [letter.body])
        return letter._replace(kept=kept)

    async def _send(self, name: str, letters: Sequence[Letter], delay: int = 0) -> None:
        entries = [{"MessageBody": write(each), "DelaySeconds": delay} for each in letters]
        failed = await self._in_calls("send_message_batch", name, entries)
        if failed:
            raise QueueUnavailable(
                f"The queue {self._url} has not taken {len(failed)} of {len(letters)} messages "
                f"({next(iter(failed.values()))}): put them again."
            )

    async def lease(
        self, topics: Sequence[str], limit: int, ttl: float, wait: float = 0.0
    ) -> list[Lease]:
        """Up to `limit` messages; see the port."""
        for topic in topics:
            check_topic(topic)
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
        """What is there, up to `limit`; waits for the first in SQS."""
        taken: list[Lease] = []
        while len(taken) < limit:
            asked = min(MOST, limit - len(taken))
            try:
                found = await self._receive(self._name(topic), asked, ttl, 0 if taken else wait)
            except QueueUnavailable:
                if taken:
                    break  # the next call says it
                raise
            for each in found:
                lease = await self._leased(topic, each, ttl)
                taken += [lease] if lease else []
            if len(found) < asked:
                break
        return taken

    async def _receive(self, name: str, limit: int, ttl: float, wait: int) -> list[Any]:
        answer = await self._call(
            "receive_message",
            QueueUrl=await self._url_of(name),
            MaxNumberOfMessages=limit,
            WaitTimeSeconds=wait,
            VisibilityTimeout=_visible(ttl),
            AttributeNames=["ApproximateReceiveCount"],
        )
        found: list[Any] = answer.get("Messages", [])
        return found

    async def _leased(self, topic: str, message: Any, ttl: float) -> Lease | None:
        """The lease of a message that has come; None for one that is buried instead."""
        until, expires_at = self._clock.monotonic() + ttl, self._clock.now() + ttl
        handle = message["ReceiptHandle"]
        letter, is_ours = _letter_of(message)
        if not is_ours:
            await self._bury(topic, handle, letter, 1)
            return None
        deliveries = letter.deliveries + int(message["Attributes"]["ApproximateReceiveCount"])
        try:
            letter = await self._whole(letter)
        except ObjectNotFound:
            await self._bury(topic, handle, letter, deliveries)
            return None
        if deliveries > self._max_deliveries:
            await self._bury(topic, handle, letter, deliveries - 1)
            return None
        self._held[handle] = _Held(until, letter.kept)
        return Lease(topic, letter.id, handle, letter.body, deliveries, expires_at)

    async def _whole(self, letter: Letter) -> Letter:
        """The letter with its body; raises ObjectNotFound."""
        if not letter.kept:
            return letter
        if self._store is None:
            raise QueueUnavailable(
                f"A message of {self._url} has its body in a store: name it in the queue's URL, as "
                "in ?bodies=s3%3A%2F%2Fbucket%2Fpath."
            )
        body = await self._keep(self._store.get, letter.kept)
        return letter._replace(body=bytes(body))

    async def _bury(self, topic: str, handle: str, letter: Letter, deliveries: int) -> None:
        now = self._clock.now()
        buried = letter._replace(deliveries=deliveries, buried_at=now)
        if not buried.kept and len(write(buried)) > LARGEST:  # a stranger, longer as one of ours
            buried = buried._replace(body=buried.body[: LARGEST // 2])
        await self._send(self._name(topic) + _BURIED, [buried])
        await self._in_calls(_DELETE, self._name(topic), [_entry(handle)])

    # ------------------------------------------------------------------ the ends of leases

    async def extend(self, leases: Sequence[Lease], ttl: float) -> list[Lease]:
        """Keep leases for longer; see the port."""
        mine, lost = self._mine(leases)
        until, expires_at = self._clock.monotonic() + ttl, self._clock.now() + ttl
        kept = self._kept(mine)
        lost += await self._end(mine, _CHANGE, VisibilityTimeout=_visible(ttl))
        extended = [each._replace(expires_at=expires_at) for each in mine if each not in lost]
        self._held |= {each.token: _Held(until, kept[each.token]) for each in extended}
        if lost:
            raise LeaseLost.of([each.id for each in lost], extended)
        return extended

    async def ack(self, leases: Sequence[Lease]) -> None:
        """The messages are done with; see the port."""
        mine, lost = self._mine(leases)
        kept = self._kept(mine)
        gone = await self._end(mine, _DELETE)
        for each in mine:
            self._held.pop(each.token, None)
            if kept[each.token] and self._store is not None and each not in gone:
                await self._keep(self._store.delete, kept[each.token])
        _check(lost + gone)

    async def release(
        self, leases: Sequence[Lease], *, delay: float = 0.0, counted: bool = True
    ) -> None:
        """Give messages back; see the port."""
        mine, lost = self._mine(leases)
        kept = self._kept(mine)
        spent = [each for each in mine if counted and each.deliveries >= self._max_deliveries]
        for each in spent:
            letter = Letter(each.id, each.body, kept=kept[each.token])
            await self._bury(each.topic, each.token, letter, each.deliveries)
        rest = [each for each in mine if each not in spent]
        if counted:
            seconds = min(math.ceil(delay), LONGEST_LEASE)
            lost += await self._end(rest, _CHANGE, VisibilityTimeout=seconds)
        else:
            # SQS counts on: what is to cost nothing becomes a new message.
            for each in rest:
                letter = Letter(each.id, each.body, each.deliveries - 1, kept=kept[each.token])
                seconds = min(math.ceil(delay), LONGEST_DELAY)
                await self._send(self._name(each.topic), [letter], seconds)
            lost += await self._end(rest, _DELETE)
        for each in mine:
            self._held.pop(each.token, None)
        _check(lost)

    def _mine(self, leases: Sequence[Lease]) -> tuple[list[Lease], list[Lease]]:
        """The leases that have not ended, and those that have."""
        self._forget_ended()
        mine = [each for each in leases if each.token in self._held]
        return mine, [each for each in leases if each.token not in self._held]

    def _kept(self, leases: Sequence[Lease]) -> dict[str, str]:
        """By token, where the bodies of these leases are."""
        return {each.token: self._held[each.token].kept for each in leases}

    def _forget_ended(self) -> None:
        now = self._clock.monotonic()
        for token in [token for token, held in self._held.items() if held.until <= now]:
            del self._held[token]

    async def _end(self, leases: Sequence[Lease], call: str, **values: int) -> list[Lease]:
        """Do it to the messages of these leases; those of them that SQS knows no more."""
        lost: list[Lease] = []
        for topic in dict.fromkeys(each.topic for each in leases):
            group = [each for each in leases if each.topic == topic]
            entries = [_entry(each.token) | values for each in group]
            failed = await self._in_calls(call, self._name(topic), entries)
            others = set(failed.values()) - _LOST
            if others:
                raise QueueUnavailable(
                    f"The queue {self._url} has not done all that was asked ({min(others)})."
                )
            lost += [group[number] for number in sorted(failed)]
        return lost

    # ------------------------------------------------------------------ looking

    async def remove(self, topic: str, ids: Sequence[str]) -> None:
        """Forget buried messages; others stay, see the module's text."""
        if not ids:
            return
        name = self._name(check_topic(topic)) + _BURIED
        found = await self._look(name, None)
        gone = [(handle, letter) for handle, letter in found if letter.id in set(ids)]
        await self._in_calls(_DELETE, name, [_entry(handle) for handle, _ in gone])
        for _, letter in gone:
            if letter.kept and self._store is not None:
                await self._keep(self._store.delete, letter.kept)
        await self._give_back(name, [each for each in found if each not in gone])

    async def buried(self, topic: str, limit: int = 100) -> list[Buried]:
        """The buried messages; who looks at the same time may not see all of them."""
        name = self._name(check_topic(topic)) + _BURIED
        looked = await self._look(name, limit)
        await self._give_back(name, looked)
        found = []
        for _, letter in looked[:limit]:
            with contextlib.suppress(ObjectNotFound):  # that may be why it was buried
                letter = await self._whole(letter)
            at = letter.buried_at
            found.append(Buried(topic, letter.id, letter.body, letter.deliveries, at))
        return sorted(found, key=lambda each: each.buried_at)

    async def _look(self, name: str, limit: int | None) -> list[tuple[str, Letter]]:
        """Receipts and messages of a queue, all or at least so many; they are to be given back."""
        found: list[Any] = []
        while limit is None or len(found) < limit:
            more = await self._receive(name, MOST, _LOOK, 0)
            found += more
            if not more:
                break
        return [(each["ReceiptHandle"], _letter_of(each)[0]) for each in found]

    async def _give_back(self, name: str, looked: Sequence[tuple[str, Letter]]) -> None:
        entries = [_entry(handle) | {"VisibilityTimeout": 0} for handle, _ in looked]
        await self._in_calls(_CHANGE, name, entries)

    async def depth(self, topic: str) -> Depth:
        """How many messages the topic has, as SQS estimates it."""
        name = self._name(check_topic(topic))
        ready, leased = await self._counts(name)
        return Depth(ready, leased, sum(await self._counts(name + _BURIED)))

    async def _counts(self, name: str) -> tuple[int, int]:
        what = "ApproximateNumberOfMessages"
        answer = await self._call(
            "get_queue_attributes", QueueUrl=await self._url_of(name),
            AttributeNames=[what, f"{what}Delayed", f"{what}NotVisible"],
        )  # fmt: skip
        counts = answer["Attributes"]
        return int(counts[what]) + int(counts[f"{what}Delayed"]), int(counts[f"{what}NotVisible"])

    async def close(self) -> None:
        """Let go of connections; see the port."""
        self._sqs = None
        await self._stack.aclose()

    # ------------------------------------------------------------------ the service

    def _name(self, topic: str) -> str:
        """The name of the topic's queue: SQS has no dots in names, and 80 characters."""
        plain = topic.replace(".", "-")
        room = 80 - len(self._prefix) - len(_BURIED) - len("--12345678")
        if plain == topic and len(plain) <= room:
            return f"{self._prefix}-{plain}"
        digest = hashlib.sha256(topic.encode()).hexdigest()[:8]
        return f"{self._prefix}-{plain[:room]}-{digest}"

    async def _url_of(self, name: str) -> str:
        """The URL of the queue of this name, which is made if it is not there."""
        if name not in self._urls:
            try:
                answer = await self._call("get_queue_url", QueueName=name)
            except _NoQueue:
                kept = {"MessageRetentionPeriod": str(KEPT_DAYS * 86_400)}
                answer = await self._call("create_queue", QueueName=name, Attributes=kept)
            self._urls[name] = answer["QueueUrl"]
        return self._urls[name]

    async def _in_calls(
        self, call: str, name: str, entries: Sequence[dict[str, Any]]
    ) -> dict[int, str]:
        """Do it in as many calls as it takes: the codes of those that failed, by number."""
        if not entries:
            return {}
        url = await self._url_of(name)

        async def one(numbers: range) -> Any:
            part = [{"Id": str(number), **entries[number]} for number in numbers]
            async with self._slots:
                return await self._call(call, QueueUrl=url, Entries=part)

        sizes = [len(each.get("MessageBody", "")) for each in entries]
        answers = await _together(one(numbers) for numbers in calls_of(sizes))
        failed = [each for answer in answers for each in answer.get("Failed", ())]
        return {int(each["Id"]): str(each["Code"]) for each in failed}

    async def _keep(self, call: Callable[..., T], *values: Any) -> T:
        """Ask the store, in a thread."""
        try:
            return await asyncio.to_thread(call, *values)
        except ObjectNotFound:
            raise
        except StorageError as error:
            raise QueueUnavailable(f"Bodies of {self._url} cannot be kept: {error}") from error

    async def _call(self, name: str, **values: Any) -> Any:
        try:
            if self._sqs is None:
                await self._open()
            return await getattr(self._sqs, name)(**values)
        except _AWAY as error:
            code = error.response["Error"]["Code"] if isinstance(error, faults.ClientError) else ""
            if code in _NO_QUEUE:
                self._urls.clear()
                raise _NoQueue(f"The queue {self._url} was deleted: try again.") from error
            told = " ".join(str(error).split())[:500] or type(error).__name__
            if _REFUSED.search(code) or isinstance(error, _NO_CREDENTIALS):
                raise QueueUnavailable(
                    f"The queue {self._url} refuses us ({told}): check the credentials (AWS_* "
                    "variables, ~/.aws) and what their policy allows."
                ) from error
            raise QueueUnavailable(
                f"The queue {self._url} does not answer ({told}): see whether the endpoint and the "
                "region are right."
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


class _NoQueue(QueueUnavailable):
    """SQS has no queue of that name."""


async def _together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All of these, side by side; raises the first failure."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in calls]
    except ExceptionGroup as several:
        raise several.exceptions[0] from several
    return [task.result() for task in tasks]


def _letter_of(message: Any) -> tuple[Letter, bool]:
    """What has come, and whether it is a message of ours."""
    try:
        return read(message["Body"]), True
    except InvalidMessage:
        return Letter(message["MessageId"], message["Body"].encode()), False


def _entry(handle: str) -> dict[str, Any]:
    return {"ReceiptHandle": handle}


def _visible(ttl: float) -> int:
    """How long SQS is to keep a message for us: a second longer than we trust it to."""
    return min(math.ceil(ttl) + 1, LONGEST_LEASE)


def _check(lost: Sequence[Lease]) -> None:
    if lost:
        raise LeaseLost.of([each.id for each in lost])
