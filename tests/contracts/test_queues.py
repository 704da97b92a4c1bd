"""The contract of every queue; a new backend is a few lines in queue_backends.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from aflow.errors import InvalidName, LeaseLost
from aflow.queue.base import Depth, Lease, Message, Queue
from tests.contracts.queue_backends import BACKENDS, MAX_DELIVERIES, Backend, postgres, sqs
from tests.support.s3 import ACCESS
from tests.support.waiting import select_nothing

LONG = 60.0  # seconds of a lease that does not expire during the test
WAIT = 20.0  # seconds after which a test would fail
pytestmark = pytest.mark.asyncio


@pytest.fixture(params=[*BACKENDS, "postgres", "sqs"])
def backend(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Backend]:
    if request.param == "postgres":
        made = postgres(request.getfixturevalue("postgres_server"))
    elif request.param == "sqs":
        for name, value in ACCESS.items():
            monkeypatch.setenv(name, value)
        made = sqs(request.getfixturevalue("s3_server"))
    else:
        made = BACKENDS[request.param](tmp_path)
    with made as found:
        yield found


@pytest_asyncio.fixture
async def queue(backend: Backend) -> AsyncIterator[Queue]:
    opened = backend.open()
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def other(backend: Backend) -> AsyncIterator[Queue]:
    """Another client of the same queue."""
    opened = backend.open()
    yield opened
    await opened.close()


def messages(*names: str) -> list[Message]:
    return [Message(name, f"body of {name}".encode()) for name in names]


def ids(leases: list[Lease]) -> list[str]:
    return [lease.id for lease in leases]


def strict(backend: Backend) -> None:
    if not backend.strict:
        pytest.skip("this broker cannot: its page says so")


async def one(queue: Queue, ttl: float = LONG, topic: str = "t") -> Lease:
    """Wait for the next message of the topic, and return it."""
    (lease,) = await queue.lease([topic], 1, ttl, WAIT)
    return lease


# ------------------------------------------------------------------ put and lease


async def test_what_is_put_is_leased_by_somebody_else_byte_for_byte(
    queue: Queue, other: Queue
) -> None:
    body = bytes(range(256)) * 100
    await queue.put("t", [Message("run/1:a", body)])

    lease = await one(other)

    assert ("t", "run/1:a", body, 1) == (lease.topic, lease.id, lease.body, lease.deliveries)


async def test_messages_come_in_the_order_in_which_they_were_put(queue: Queue) -> None:
    await queue.put("t", messages("a", "b"))
    await queue.put("t", messages("c"))

    assert ["a", "b"] == ids(await queue.lease(["t"], 2, LONG))
    assert ["c"] == ids(await queue.lease(["t"], 2, LONG))
    assert [] == await queue.lease(["t"], 2, LONG)


async def test_many_messages_are_all_delivered_once(
    queue: Queue, other: Queue, backend: Backend
) -> None:
    await queue.put("t", messages(*map(str, range(backend.many))))
    found: list[str] = []
    while leases := await (other if len(found) % 3 else queue).lease(["t"], 77, LONG):
        found += ids(leases)

    assert sorted(map(str, range(backend.many))) == sorted(found)


async def test_a_message_that_is_there_is_not_put_again(queue: Queue, backend: Backend) -> None:
    strict(backend)
    await queue.put("t", messages("a"))
    await queue.put("t", messages("a", "b"))
    first = await queue.lease(["t"], 5, LONG)
    await queue.put("t", messages("a"))

    assert ["a", "b"] == sorted(ids(first))
    assert [] == await queue.lease(["t"], 5, LONG)
    await queue.ack(first)
    await queue.put("t", messages("a"))
    assert ["a"] == ids([await one(queue)])


async def test_topics_are_apart_and_the_first_goes_first(queue: Queue) -> None:
    await queue.put("t", messages("a", "b"))
    await queue.put("u", messages("a"))

    leases = await queue.lease(["u", "t", "empty"], 2, LONG)

    assert [("u", "a"), ("t", "a")] == [(each.topic, each.id) for each in leases]
    assert [("t", "b")] == [(each.topic, each.id) for each in await queue.lease(["t"], 9, LONG)]


async def test_putting_and_ending_nothing_is_fine(queue: Queue) -> None:
    await queue.put("t", [])
    await queue.ack([])
    await queue.release([])
    await queue.remove("t", [])

    assert [] == await queue.extend([], LONG)
    assert [] == await queue.lease(["t"], 1, LONG)


@pytest.mark.parametrize("topic", ["", "a b", "a/b", "x" * 65, "ü", "a\n"])
async def test_what_cannot_be_a_topic_is_refused(queue: Queue, topic: str) -> None:
    with pytest.raises(InvalidName, match="topic"):
        await queue.put(topic, messages("a"))
    with pytest.raises(InvalidName, match="topic"):
        await queue.lease([topic], 1, LONG)


@pytest.mark.parametrize("name", ["", "a b", "x" * 257, "ü", "a\n"])
async def test_what_cannot_be_an_id_is_refused_and_nothing_of_it_is_put(
    queue: Queue, name: str
) -> None:
    with pytest.raises(InvalidName, match="id of a message"):
        await queue.put("t", [*messages("good"), Message(name, b"")])
    assert Depth(0, 0, 0) == await queue.depth("t")


# ------------------------------------------------------------------ turns


def of(group: str, count: int, priority: int = 0) -> list[Message]:
    """Return this many messages of a group."""
    return [Message(f"{group}:{each}", b"", priority) for each in range(count)]


async def test_groups_take_turns_and_one_with_few_messages_does_not_wait_for_one_with_many(
    queue: Queue, backend: Backend
) -> None:
    strict(backend)
    await queue.put("t", of("wide", 40))
    assert ["wide:0", "wide:1"] == ids(await queue.lease(["t"], 2, LONG))
    await queue.put("t", of("small", 3))

    got = [await one(queue) for _ in range(8)]

    small = [place for place, each in enumerate(got) if each.id.startswith("small")]
    assert [0, 2, 4] == [place // 2 * 2 for place in small]
    assert ["small:0", "small:1", "small:2"] == [got[place].id for place in small]
    rest = [each.id for each in got if each.id.startswith("wide")]
    assert [f"wide:{number}" for number in range(2, 7)] == rest


async def test_a_group_whose_messages_were_handed_out_begins_again_beside_the_others(
    queue: Queue, backend: Backend
) -> None:
    strict(backend)
    await queue.put("t", of("first", 30))
    await queue.lease(["t"], 30, LONG)
    await queue.put("t", of("second", 4))
    await queue.put("t", [Message(f"first:{number}", b"") for number in range(30, 34)])

    got = ids(await queue.lease(["t"], 4, LONG))

    assert {"first:30", "first:31", "second:0", "second:1"} == set(got)


async def test_a_higher_priority_goes_first_and_within_one_groups_take_turns(
    queue: Queue, backend: Backend
) -> None:
    strict(backend)
    await queue.put("t", of("plain", 2))
    await queue.put("t", of("low", 1, -5))
    await queue.put("t", of("urgent", 3, 7))
    await queue.put("t", of("urgent-too", 1, 7))

    got = ids(await queue.lease(["t"], 9, LONG))

    assert {"urgent:0", "urgent-too:0"} == set(got[:2])
    assert ["urgent:1", "urgent:2", "plain:0", "plain:1", "low:0"] == got[2:]


async def test_what_comes_back_goes_before_the_others_of_its_priority(
    queue: Queue, backend: Backend
) -> None:
    strict(backend)
    await queue.put("t", of("urgent", 1, 3))
    await queue.put("t", of("wide", 4))
    urgent, first, second = await queue.lease(["t"], 3, LONG)
    await queue.put("t", of("wider", 4))
    await queue.release([first], counted=False)
    await queue.release([urgent])

    assert "urgent:0" == (await one(queue)).id
    assert "wide:0" in ids(await queue.lease(["t"], 2, LONG))
    await queue.ack([second])


async def test_a_priority_has_bounds(queue: Queue) -> None:
    with pytest.raises(InvalidName, match="101 cannot be a priority"):
        await queue.put("t", [Message("a", b"", 101)])


@pytest.mark.slow
async def test_groups_that_are_skipped_are_left_to_others(queue: Queue, other: Queue) -> None:
    await queue.put("t", of("odd", 2))
    await queue.put("t", of("good", 1))

    lease = (await queue.lease(["t"], 1, LONG, WAIT, skip={"odd", "odder"}))[0]
    assert "good:0" == lease.id
    assert [] == await queue.lease(["t"], 5, LONG, skip={"odd"})
    await queue.ack([lease])

    got: list[Lease] = []
    while len(got) < 2:
        got += await other.lease(["t"], 5, LONG, WAIT)
    assert ["odd:0", "odd:1"] == sorted(ids(got))
    assert [1, 1] == [each.deliveries for each in got]


async def test_who_skips_all_that_there_is_waits_for_more(
    queue: Queue, other: Queue, backend: Backend
) -> None:
    strict(backend)
    await queue.put("t", of("odd", 300))
    waiting = asyncio.ensure_future(queue.lease(["t"], 1, LONG, WAIT, skip={"odd"}))
    await asyncio.to_thread(select_nothing, 0.05)
    await other.put("t", of("good", 1))
    assert ["good:0"] == ids(await waiting)


async def test_a_client_that_skips_a_message_does_not_keep_it_from_one_that_waits_for_it(
    queue: Queue, other: Queue, backend: Backend
) -> None:
    strict(backend)
    await queue.put("t", of("odd", 1))
    await queue.ack(await other.lease(["t"], 1, LONG))
    skipping = asyncio.ensure_future(queue.lease(["t"], 1, LONG, WAIT, skip={"odd"}))
    await asyncio.to_thread(select_nothing, 0.05)
    able = asyncio.ensure_future(other.lease(["t"], 1, LONG, WAIT))
    await asyncio.to_thread(select_nothing, 0.05)
    await queue.put("t", of("odd", 1))
    await asyncio.wait([able], timeout=WAIT / 2)
    assert able.done()
    assert ["odd:0"] == ids(await able)

    await other.put("t", of("good", 1))
    assert ["good:0"] == ids(await skipping)


# ------------------------------------------------------------------ looking, and taking out


async def test_what_the_topic_has_is_known_and_what_was_forgotten_is_not(
    queue: Queue, backend: Backend
) -> None:
    if not backend.strict:
        assert await queue.known("t", ["a"]) is None
        return
    await queue.put("t", messages("ready", "leased", "done", "buried"))
    leases = {each.id: each for each in await queue.lease(["t"], 4, LONG)}
    await queue.ack([leases["done"]])
    await queue.release([leases["ready"]])
    for _ in range(MAX_DELIVERIES - 1):
        await queue.release([leases["buried"]])
        leases |= {each.id: each for each in await queue.lease(["t"], 9, LONG)}
    await queue.release([leases["buried"]])

    names = ["ready", "leased", "done", "buried", "never"]
    assert {"ready", "leased", "buried"} == await queue.known("t", names)
    assert set() == await queue.known("t", [])
    assert set() == await queue.known("other", names)


async def test_a_message_can_be_taken_from_who_has_leased_it(
    queue: Queue, other: Queue, backend: Backend
) -> None:
    strict(backend)
    await queue.put("t", messages("a", "b"))
    lease, _ = await queue.lease(["t"], 2, LONG)
    await other.remove("t", ["a", "b"])
    assert Depth(0, 2, 0) == await other.depth("t")

    await other.remove("t", ["a"], leased=True)

    assert Depth(0, 1, 0) == await other.depth("t")
    with pytest.raises(LeaseLost):
        await queue.extend([lease], LONG)
    await queue.put("t", messages("a"))
    assert 1 == (await one(queue)).deliveries


async def test_a_topic_is_dropped_with_all_of_its_messages(queue: Queue, backend: Backend) -> None:
    await queue.put("t", messages("a", "b", "c"))
    await queue.put("other", messages("a"))
    await queue.lease(["t"], 1, LONG)

    await queue.drop("t")
    await queue.drop("never")

    assert "a" == (await one(queue, topic="other")).id
    if backend.strict:
        assert Depth(0, 0, 0) == await queue.depth("t")
        assert ["other"] == await queue.topics()


async def test_what_nobody_can_do_is_buried_at_once(queue: Queue, other: Queue) -> None:
    await queue.put("t", messages("a"))
    lease = await one(queue)

    await queue.bury([lease])

    while not (buried := await other.buried("t")):
        await asyncio.to_thread(select_nothing, 0.05)
    assert [("a", b"body of a", 1)] == [(each.id, each.body, each.deliveries) for each in buried]
    assert [] == await other.lease(["t"], 1, LONG)
    with pytest.raises(LeaseLost):
        await queue.ack([lease])


async def test_what_was_buried_can_be_made_ready_again(
    queue: Queue, other: Queue, backend: Backend
) -> None:
    await queue.put("t", messages("a"))
    await queue.put("t", messages("b"))
    for _ in range(MAX_DELIVERIES):
        for lease in [await one(queue), await one(queue)]:
            await queue.release([lease])
    while len(await queue.buried("t")) < 2:
        assert [] == await queue.lease(["t"], 5, LONG, 0.1)

    waiting = asyncio.ensure_future(other.lease(["t"], 5, LONG, WAIT))
    assert 1 == await queue.redrive("t", ["a", "never"])

    (again,) = await waiting
    assert ("a", 1, b"body of a") == (again.id, again.deliveries, again.body)
    assert ["b"] == [each.id for each in await queue.buried("t")]


async def test_what_waits_can_be_looked_at_in_the_order_in_which_it_comes(
    queue: Queue, other: Queue, backend: Backend
) -> None:
    await queue.put("t", messages("c", "a"))
    await queue.put("t", [Message("b", b"first", 9)])
    seen = await other.peek("t", 2)
    if not backend.strict:
        assert seen is None
        return
    assert seen is not None
    assert [("b", b"first"), ("c", b"body of c")] == [(each.id, each.body) for each in seen]
    assert ["b", "c", "a"] == ids(await queue.lease(["t"], 3, LONG))
    assert [] == await other.peek("t")


async def test_a_topic_says_how_long_its_oldest_message_waits(
    queue: Queue, other: Queue, backend: Backend
) -> None:
    if not backend.strict:
        assert await other.longest_wait("t") is None
        return
    assert 0.0 == await other.longest_wait("t")
    await queue.put("t", [Message("t", b"the later, and first", 50)])
    (first,) = await queue.lease(["t"], 1, LONG)
    await queue.put("t", messages("a"))

    async def until_it_waits(seconds: float) -> float:
        while (waits := await other.longest_wait("t") or 0.0) <= seconds:
            await asyncio.to_thread(select_nothing, backend.shortest / 2)
        return waits

    waits = await until_it_waits(2 * backend.shortest)
    await queue.put("t", [Message("b", b"", 90)])  # goes first, and has not waited
    assert waits <= (await other.longest_wait("t") or 0.0)
    assert ["b", "a"] == ids(await queue.lease(["t"], 2, LONG))
    assert 0.0 == await other.longest_wait("t")
    await queue.release([first])  # what has come back waits since then
    assert 0.0 < await until_it_waits(0.0) < LONG


async def test_what_a_worker_announces_is_seen_until_its_time_is_over(
    queue: Queue, other: Queue, backend: Backend
) -> None:
    await queue.announce("worker-1", b"one", LONG)
    if not backend.strict:
        assert await other.announced() is None
        return
    await queue.announce("worker-2", b"two", backend.shortest)
    await queue.announce("worker-3", b"three", LONG)
    await queue.announce("worker-1", b"one more", LONG)
    await queue.announce("worker-3", b"", LONG)
    while len(await other.announced() or {}) > 1:
        await asyncio.to_thread(select_nothing, backend.shortest / 2)
    assert {"worker-1": b"one more"} == await other.announced()
    assert [] == await queue.topics()


# ------------------------------------------------------------------ waiting


async def test_who_waits_is_woken_by_a_put(queue: Queue, other: Queue) -> None:
    waiting = asyncio.create_task(one(queue))
    await asyncio.sleep(0)

    await other.put("t", messages("a"))

    assert "a" == (await waiting).id


async def test_one_message_wakes_one_of_many(queue: Queue, other: Queue) -> None:
    waiting = [asyncio.create_task(other.lease(["t"], 1, LONG, WAIT)) for _ in range(3)]
    for name in ("a", "b", "c"):
        await queue.put("t", messages(name))

    found = [ids(leases) for leases in await asyncio.gather(*waiting)]

    assert [["a"], ["b"], ["c"]] == sorted(found)


async def test_waiting_ends_with_its_time(queue: Queue) -> None:
    assert [] == await queue.lease(["t"], 1, LONG, 0.1)


async def test_a_lease_that_is_cancelled_ends_at_whatever_moment_that_is(queue: Queue) -> None:
    await queue.depth("t")  # connected
    for turns in range(40):
        waiting = asyncio.create_task(queue.lease(["t"], 1, LONG, WAIT))
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        done, _ = await asyncio.wait([waiting], timeout=WAIT / 2)
        assert {waiting} == done, f"cancelled after {turns} turns of the loop"


async def test_a_lease_that_is_cancelled_keeps_no_message(queue: Queue, backend: Backend) -> None:
    strict(backend)
    await queue.put("t", messages("a"))
    for turns in range(20):
        leasing = asyncio.create_task(queue.lease(["t"], 1, LONG))
        for _ in range(turns):
            await asyncio.sleep(0)
        leasing.cancel()
        await asyncio.wait([leasing])
        leases = await queue.lease(["t"], 1, LONG) if leasing.cancelled() else leasing.result()
        assert [("a", 1)] == [(each.id, each.deliveries) for each in leases]
        await queue.release(leases, counted=False)


async def test_waiting_can_be_cancelled_and_loses_nothing(queue: Queue, other: Queue) -> None:
    waiting = asyncio.create_task(one(queue))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await other.put("t", messages("a"))

    assert "a" == (await one(other)).id


# ------------------------------------------------------------------ expiry of leases


async def test_an_acknowledged_message_is_gone(queue: Queue, backend: Backend) -> None:
    await queue.put("t", messages("a", "b"))
    lease = await one(queue, backend.shortest)
    await queue.ack([lease])

    assert "b" == (await one(queue)).id
    assert Depth(0, 1, 0) == await queue.depth("t")
    with pytest.raises(LeaseLost, match="a had ended"):
        await queue.ack([lease])


async def test_a_lease_whose_time_has_passed_is_delivered_again(
    queue: Queue, other: Queue, backend: Backend
) -> None:
    await queue.put("t", messages("a"))
    first = await one(queue, backend.shortest)

    second = await one(other)

    assert ("a", 2) == (second.id, second.deliveries)
    assert first.token != second.token


async def test_who_has_lost_a_lease_changes_nothing(
    queue: Queue, other: Queue, backend: Backend
) -> None:
    await queue.put("t", messages("a", "b"))
    mine = await one(queue)  # first: the other lease may expire before the next call
    late = await one(queue, backend.shortest)
    again = await one(other)
    assert late.id == again.id

    for act in (queue.ack, queue.release):
        with pytest.raises(LeaseLost) as caught:
            await act([late])
        assert (late.id,) == caught.value.lost
    with pytest.raises(LeaseLost) as caught:
        await queue.extend([late, mine], LONG)
    assert (late.id,) == caught.value.lost
    assert [mine.id] == [lease.id for lease in caught.value.held]  # type: ignore[attr-defined]

    await other.ack([again])
    await queue.ack([mine])
    assert Depth(0, 0, 0) == await queue.depth("t")


async def test_a_lease_that_is_extended_does_not_end(
    queue: Queue, other: Queue, backend: Backend
) -> None:
    await queue.put("t", messages("a"))
    for ttl in (backend.shortest, 1.0, LONG):  # the first may expire early on a busy machine
        lease = await one(queue, ttl)
        try:
            (longer,) = await queue.extend([lease], 2 * LONG)
            break
        except LeaseLost:
            continue

    assert longer.expires_at > lease.expires_at
    assert [] == await other.lease(["t"], 1, LONG, 3 * ttl if ttl < LONG else 0.0)
    await queue.ack([longer])


async def test_a_released_message_is_delivered_again_at_once(queue: Queue, other: Queue) -> None:
    await queue.put("t", messages("a"))
    await queue.release([await one(queue)])

    again = await one(other)
    assert ("a", 2) == (again.id, again.deliveries)


async def test_a_release_wakes_who_waits(queue: Queue, other: Queue) -> None:
    await queue.put("t", messages("a"))
    lease = await one(queue)
    waiting = asyncio.create_task(one(other))
    await asyncio.sleep(0)

    await queue.release([lease])

    assert "a" == (await waiting).id


async def test_a_release_may_be_delayed(queue: Queue, backend: Backend) -> None:
    await queue.put("t", messages("a"))
    await queue.release([await one(queue)], delay=backend.shortest)
    again = await one(queue)
    assert ("a", 2) == (again.id, again.deliveries)

    await queue.release([again], delay=LONG)
    assert [] == await queue.lease(["t"], 1, LONG, backend.shortest)
    ready, leased, buried = await queue.depth("t")
    assert (1, 0) == (ready + leased, buried)
    assert ready or not backend.strict


async def test_a_release_that_is_not_counted_takes_its_delivery_back(queue: Queue) -> None:
    await queue.put("t", messages("a"))
    for _ in range(2 * MAX_DELIVERIES):
        lease = await one(queue)
        assert 1 == lease.deliveries
        await queue.release([lease], counted=False)


# ------------------------------------------------------------------ poison


async def test_what_comes_back_too_often_is_buried(queue: Queue, other: Queue) -> None:
    await queue.put("t", messages("poison"))
    for number in range(MAX_DELIVERIES):
        lease = await one(queue)
        assert number + 1 == lease.deliveries
        await queue.release([lease])

    assert [] == await queue.lease(["t"], 1, LONG)
    (buried,) = await other.buried("t")
    assert ("t", "poison", b"body of poison", MAX_DELIVERIES) == buried[:4]
    assert Depth(0, 0, 1) == await queue.depth("t")


@pytest.mark.slow
async def test_what_kills_its_worker_each_time_is_buried(queue: Queue, backend: Backend) -> None:
    await queue.put("t", messages("poison"))
    for _ in range(MAX_DELIVERIES):
        await one(queue, backend.shortest)

    assert [] == await queue.lease(["t"], 1, LONG, 4 * backend.shortest)
    assert ["poison"] == [each.id for each in await queue.buried("t")]


async def test_buried_messages_are_removed_when_somebody_says_so(queue: Queue) -> None:
    await queue.put("t", messages("poison"))
    for _ in range(MAX_DELIVERIES):
        await queue.release([await one(queue)])
    await queue.remove("t", ["poison", "no such message"])

    assert [] == await queue.buried("t")
    await queue.put("t", messages("poison"))
    assert 1 == (await one(queue)).deliveries


async def test_what_is_leased_is_not_removed(queue: Queue, backend: Backend) -> None:
    await queue.put("t", messages("a", "b"))
    lease = await one(queue)
    await queue.remove("t", ["a", "b"])

    assert Depth(0 if backend.strict else 1, 1, 0) == await queue.depth("t")
    await queue.ack([lease])


# ------------------------------------------------------------------ the end


async def test_closing_twice_is_fine_and_leaves_leases_to_their_time(
    queue: Queue, other: Queue, backend: Backend
) -> None:
    await queue.put("t", messages("a"))
    await one(queue, backend.shortest)
    await queue.close()
    await queue.close()

    assert 2 == (await one(other)).deliveries


async def test_the_url_names_no_password(queue: Queue) -> None:
    assert "secret" not in queue.url
    assert ":" in queue.url
