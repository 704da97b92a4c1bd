"""Calls to Amazon SQS: one client, queues by name, and its errors in our words."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from aflow.errors import MissingExtra, QueueUnavailable
from aflow.queue.letters import calls_of

try:
    import aiohttp
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession
    from botocore import exceptions as faults
except ImportError as error:
    raise MissingExtra("A queue in SQS needs aiobotocore: install aflow-runtime[aws].") from error

T = TypeVar("T")

LONGEST_WAIT = 20  # seconds of one call, as SQS has it
KEPT_DAYS = 14  # that SQS keeps a message
CALLS_AT_ONCE = 8
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


class SqsService:
    """SQS in a region, or at another endpoint. `place` is the URL that sentences name. Its calls
    raise QueueUnavailable."""

    def __init__(self, place: str, region: str | None, endpoint: str | None) -> None:
        self._place = place
        self._region = region
        self._endpoint = endpoint
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

    async def url_of(self, name: str) -> str:
        """The URL of the queue of this name, which is made if it is not there."""
        if name not in self._urls:
            try:
                answer = await self.call("get_queue_url", QueueName=name)
            except _NoQueue:
                kept = {"MessageRetentionPeriod": str(KEPT_DAYS * 86_400)}
                answer = await self.call("create_queue", QueueName=name, Attributes=kept)
            self._urls[name] = answer["QueueUrl"]
        return self._urls[name]

    async def delete(self, name: str) -> None:
        """Delete the queue of this name, if it is there."""
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
        """Do it in as many calls as it takes: the codes of those that failed, by number."""
        if not entries:
            return {}
        url = await self.url_of(name)

        async def one(numbers: range) -> Any:
            part = [{"Id": str(number), **entries[number]} for number in numbers]
            async with self._slots:
                return await self.call(call, QueueUrl=url, Entries=part)

        sizes = [len(each.get("MessageBody", "")) for each in entries]
        answers = await _together(one(numbers) for numbers in calls_of(sizes))
        failed = [each for answer in answers for each in answer.get("Failed", ())]
        return {int(each["Id"]): str(each["Code"]) for each in failed}

    async def call(self, name: str, **values: Any) -> Any:
        """What SQS answers to one call."""
        try:
            if self._sqs is None:
                await self._open()
            return await getattr(self._sqs, name)(**values)
        except _AWAY as error:
            code = error.response["Error"]["Code"] if isinstance(error, faults.ClientError) else ""
            if code in _NO_QUEUE:
                self._urls.clear()
                raise _NoQueue(f"The queue {self._place} was deleted: try again.") from error
            told = " ".join(str(error).split())[:500] or type(error).__name__
            if _REFUSED.search(code) or isinstance(error, _NO_CREDENTIALS):
                raise QueueUnavailable(
                    f"The queue {self._place} refuses us ({told}): check the credentials (AWS_* "
                    "variables, ~/.aws) and what their policy allows."
                ) from error
            raise QueueUnavailable(
                f"The queue {self._place} does not answer ({told}): see whether the endpoint and "
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
        """Let go of connections. May be called twice."""
        self._sqs = None
        await self._stack.aclose()


def code_of(error: QueueUnavailable) -> str:
    """The code with which SQS has refused a call; empty where it did not."""
    cause = error.__cause__
    return str(cause.response["Error"]["Code"]) if isinstance(cause, faults.ClientError) else ""


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
