"""SQS beyond the contract of queues: large bodies, foreign messages, denied requests."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from aflow.errors import InvalidMessage, InvalidSetting, LeaseLost, QueueUnavailable
from aflow.queue.base import Depth, Lease, Message
from aflow.queue.factory import open_queue
from aflow.queue.sqs import (
    LARGEST,
    LARGEST_BUNDLE,
    MOST,
    SqsMessage,
    SqsQueue,
    bundled,
    calls_of,
    read,
    write,
)
from aflow.storage.local import LocalStore
from tests.support.clocks import FakeClock
from tests.support.s3 import ACCESS
from tests.support.servers import Server, free_port, moto_server

LONG = 60.0
pytestmark = pytest.mark.asyncio


@pytest.fixture
def url(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in ACCESS.items():
        monkeypatch.setenv(name, value)
    prefix = f"test-{uuid.uuid4().hex[:8]}"
    return f"sqs+http://127.0.0.1:{s3_server.port}/{prefix}?region=us-east-1"


@pytest_asyncio.fixture
async def queue(url: str) -> AsyncIterator[SqsQueue]:
    opened = SqsQueue(url)
    yield opened
    await opened.close()


def stored(folder: Path) -> list[str]:
    return [name for _, _, names in os.walk(folder) for name in names]


async def test_a_body_that_is_too_large_goes_to_the_store_and_leaves_it_when_acknowledged(
    url: str, tmp_path: Path
) -> None:
    body = os.urandom(LARGEST)
    queue = open_queue(f"{url}&bodies={quote(f'file://{tmp_path}/bodies', safe='')}")
    await queue.put("t", [Message("large", body), Message("small", b"")])
    assert 1 == len(stored(tmp_path / "bodies"))

    leases = await queue.lease(["t"], 2, LONG)
    assert {"large": body, "small": b""} == {each.id: each.body for each in leases}
    await queue.release(leases, counted=False)
    leases = await queue.lease(["t"], 2, LONG)
    assert {"large": body, "small": b""} == {each.id: each.body for each in leases}
    await queue.ack(leases)
    assert [] == stored(tmp_path / "bodies")
    await queue.close()


async def many(queue: SqsQueue, count: int) -> list[str]:
    """Put this many messages in one call, and return their ids."""
    names = [f"{number:03}" for number in range(count)]
    await queue.put("t", [Message(name, name.encode()) for name in names])
    return names


async def test_what_is_put_together_travels_in_a_few_messages(queue: SqsQueue) -> None:
    names = await many(queue, 200)
    assert Depth(MOST, 0, 0) == await queue.depth("t")

    leases = await queue.lease(["t"], 200, LONG)
    assert names == sorted(each.id for each in leases)
    assert [each.id.encode() for each in leases] == [each.body for each in leases]
    assert 200 == len({each.token for each in leases})
    leases = await queue.extend(leases, LONG)
    await queue.ack(leases[:150])
    await queue.ack(leases[150:])
    assert Depth(0, 0, 0) == await queue.depth("t")
    with pytest.raises(LeaseLost):
        await queue.ack(leases[:1])


async def test_who_takes_fewer_than_a_message_has_leaves_the_others_to_others(
    url: str, queue: SqsQueue
) -> None:
    names = await many(queue, 40)
    (mine,) = await queue.lease(["t"], 1, LONG)
    other = SqsQueue(url)
    theirs: list[Lease] = []
    while more := await other.lease(["t"], 3, LONG):
        assert len(more) <= 3
        theirs += more
    await other.close()

    assert names == sorted(each.id for each in [mine, *theirs])
    assert {1} == {each.deliveries for each in theirs}


async def test_what_is_left_of_a_message_comes_again_each_by_itself(queue: SqsQueue) -> None:
    await many(queue, 11)  # two in each message but the last
    leases = await queue.lease(["t"], 2, 1.0)
    await queue.ack(leases[:1])
    others = await queue.lease(["t"], 9, LONG)
    assert {each.id for each in leases}.isdisjoint(each.id for each in others)

    again: list[Lease] = []
    while leases[1].id not in {each.id for each in again}:
        again += await queue.lease(["t"], 1, LONG, 5.0)

    assert {2} == {each.deliveries for each in again}
    await queue.ack([*others, *again])


async def test_a_part_of_a_message_is_given_back_by_itself(queue: SqsQueue) -> None:
    await many(queue, 11)
    mine, kept = await queue.lease(["t"], 2, LONG)
    await queue.ack(await queue.lease(["t"], 9, LONG))
    await queue.release([mine])
    (again,) = await queue.lease(["t"], 9, LONG)
    assert (mine.id, 2) == (again.id, again.deliveries)
    await queue.release([again, kept], counted=False)

    leases = await queue.lease(["t"], 9, LONG)
    assert {mine.id: 2, kept.id: 1} == {each.id: each.deliveries for each in leases}
    await queue.ack(leases)
    assert Depth(0, 0, 0) == await queue.depth("t")


@pytest.mark.parametrize("sizes", [[0] * 250, [5000] * 90, [LARGEST_BUNDLE, 0, LARGEST], [0], []])
async def test_bundles_hold_each_message_once_and_no_more_than_a_call_takes(
    sizes: list[int],
) -> None:
    entries = [SqsMessage(str(number), bytes(size)) for number, size in enumerate(sizes)]
    bundles = bundled(entries)

    assert entries == [each for bundle in bundles for each in bundle]
    assert min(len(entries), MOST) <= len(bundles)
    assert all(len(write(each)) <= LARGEST_BUNDLE for each in bundles if len(each) > 1)
    assert bundles == [read(write(each)) for each in bundles]


async def test_a_body_that_is_too_large_is_refused_where_there_is_no_store(queue: SqsQueue) -> None:
    with pytest.raises(InvalidMessage, match=r"too large for SQS: name a store"):
        await queue.put("t", [Message("small", b""), Message("large", bytes(LARGEST))])
    assert Depth(0, 0, 0) == await queue.depth("t")


async def test_a_missing_store_of_bodies_is_reported(
    url: str, queue: SqsQueue, tmp_path: Path
) -> None:
    sender = SqsQueue(f"{url}&bodies=there", open_store=lambda _: LocalStore(tmp_path))
    await sender.put("t", [Message("large", bytes(LARGEST))])
    with pytest.raises(QueueUnavailable, match="has its body in a store: name it"):
        await queue.lease(["t"], 1, 1.0)
    await sender.close()


async def test_a_message_whose_body_is_gone_is_buried(url: str, tmp_path: Path) -> None:
    queue = SqsQueue(f"{url}&bodies=there", open_store=lambda _: LocalStore(tmp_path))
    await queue.put("t", [Message("large", bytes(LARGEST))])
    for name in tmp_path.rglob("*"):
        if name.is_file():
            name.unlink()

    assert [] == await queue.lease(["t"], 1, LONG)
    assert [("large", b"")] == [each[1:3] for each in await queue.buried("t")]
    await queue.close()


@pytest.mark.parametrize("text", ["{not json", "x" * 200_000, "kwE=", "ü"])
async def test_what_is_no_message_of_ours_is_buried_and_the_others_come(
    queue: SqsQueue, text: str
) -> None:
    there = await queue._service.url_of(queue._name("t"))
    await queue._service.call("send_message", QueueUrl=there, MessageBody=text)
    await queue.put("t", [Message("a", b"")])

    leases = await queue.lease(["t"], 5, LONG)

    assert ["a"] == [each.id for each in leases]
    (buried,) = await queue.buried("t")
    assert text.encode().startswith(buried.body)
    await queue.remove("t", [buried.id])
    assert [] == await queue.buried("t")


async def test_a_lease_of_somebody_else_is_not_acknowledged(url: str, queue: SqsQueue) -> None:
    other = SqsQueue(url)
    await queue.put("t", [Message("a", b"")])
    (lease,) = await queue.lease(["t"], 1, LONG)
    with pytest.raises(LeaseLost):
        await other.ack([lease])
    await queue.ack([lease])
    await other.close()


async def test_a_queue_that_was_deleted_is_named_and_made_anew(queue: SqsQueue) -> None:
    await queue.put("t", [Message("a", b"")])
    await queue._service.call(
        "delete_queue", QueueUrl=await queue._service.url_of(queue._name("t"))
    )
    with pytest.raises(QueueUnavailable, match="was deleted: try again"):
        await queue.put("t", [Message("a", b"")])
    await queue.put("t", [Message("a", b"")])
    assert 1 == len(await queue.lease(["t"], 5, LONG))


async def test_long_names_of_topics_stay_apart(queue: SqsQueue) -> None:
    names = ["a" * 63 + "b", "a" * 64, "tasks.gpu", "tasks-gpu", "tasks_gpu"]
    made = [queue._name(each) for each in names]
    assert len(names) == len(set(made))
    assert 80 >= max(len(each) + len("-buried") for each in made)


async def test_an_endpoint_that_is_not_there_is_named(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = SqsQueue(f"sqs+http://127.0.0.1:{free_port()}/prefix?region=us-east-1")
    with pytest.raises(QueueUnavailable, match=r"prefix.* does not answer"):
        await queue.put("t", [Message("a", b"")])
    await queue.close()


async def test_missing_credentials_are_reported(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ACCESS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    queue = SqsQueue(url)
    with pytest.raises(QueueUnavailable, match=r"refuses us .*check the credentials"):
        await queue.lease(["t"], 1, LONG)
    await queue.close()


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A stand-in that checks credentials."""
    monkeypatch.setenv("INITIAL_NO_AUTH_ACTION_COUNT", "0")
    server = moto_server(tmp_path)
    yield server
    server.kill()


async def test_wrong_credentials_are_refused_in_a_sentence(url: str, guarded: Server) -> None:
    queue = SqsQueue(f"sqs+http://127.0.0.1:{guarded.port}/prefix?region=us-east-1")
    with pytest.raises(QueueUnavailable, match=r"refuses us .*check the credentials"):
        await queue.lease(["t"], 1, LONG)
    await queue.close()


@pytest.mark.parametrize(
    "url",
    ["sqs://", "sqs://eu-west-1", "sqs://eu-west-1/a.b", "sqs://key:secret@eu-west-1/prefix",
     "sqs+http:///prefix", "sqs://eu-west-1/prefix?colour=red"],
)  # fmt: skip
async def test_what_is_no_place_is_refused_without_what_is_secret(url: str) -> None:
    with pytest.raises(InvalidSetting, match="write sqs://region/prefix") as caught:
        open_queue(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "calls"),
    [
        ([], []),
        ([1], [range(1)]),
        ([1] * (MOST + 1), [range(MOST), range(MOST, MOST + 1)]),
        ([LARGEST, LARGEST], [range(1), range(1, 2)]),
        ([LARGEST // 2, LARGEST // 2, 1], [range(2), range(2, 3)]),
    ],
)
async def test_calls_hold_no_more_than_sqs_takes(sizes: list[int], calls: list[Any]) -> None:
    assert calls == list(calls_of(sizes))


class Slow(SqsQueue):
    """A queue whose leases end, and are forgotten, while it sends a message to SQS."""

    def __init__(self, url: str) -> None:
        self.clock = FakeClock()
        self.is_slow = False
        super().__init__(url, clock=self.clock)

    async def _send(self, *values: Any) -> None:
        await super()._send(*values)
        if self.is_slow:
            self.is_slow = False
            self.clock.advance(2 * LONG)
            await self.lease(["another"], 1, LONG)


@pytest.mark.parametrize("end", ["bury", "release"])
async def test_leases_that_end_during_a_call_are_reported_as_lost(url: str, end: str) -> None:
    queue = Slow(url)
    await queue.put("t", [Message("a", b"1"), Message("b", b"2")])
    leases: list[Lease] = []
    while len(leases) < 2:
        leases += await queue.lease(["t"], 2, LONG)
    queue.is_slow = True
    with pytest.raises(LeaseLost):
        await (queue.bury(leases) if end == "bury" else queue.release(leases, counted=False))
    await queue.close()
