"""Coordinators and workers with one queue, in this process: their behaviour if the queue loses
messages, if messages are for others, and if parts of themselves fail."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aflow._core.clock import SystemClock
from aflow._core.waiting import FIRST
from aflow.errors import CodePackageError, QueueUnavailable
from aflow.executors import protocol, queue_workers
from aflow.executors.local.executor import needs_of
from aflow.executors.protocol import (
    Job,
    Presence,
    ReportsMessage,
    TaskMessage,
    open_message,
    python_version,
)
from aflow.executors.queue_workers import QueueExecutor
from aflow.executors.remote import runtime
from aflow.executors.remote.reports import ReportSender
from aflow.flow.spec import define
from aflow.metadata.sqlite import SqliteMetadata
from aflow.queue.base import Depth, Lease, Message, group_of
from aflow.queue.sqlite import SqliteQueue
from aflow.scheduler.messages import NoInputs, encode_inputs
from aflow.storage.artifacts import Manifest
from aflow.storage.local import LocalStore
from aflow.task.program import request_of
from aflow.task.remote import Payloads, is_over, mark_over
from aflow.task.spec import AttemptSpec
from aflow.worker import Worker, WorkerOptions
from tests.contracts.executing import Recorder, context_in
from tests.contracts.flow_of_actions import ActionFlow
from tests.support.waiting import select_nothing

pytestmark = pytest.mark.asyncio
TASKS = protocol.tasks_topic("default")
REPORTS = protocol.reports_topic("ActionFlow", "1")
KEY, OTHER = b"k" * 32, b"o" * 32


class Shared(SqliteQueue):
    """The queue of a test, which stays open for others when it is closed. Calls can be made to fail
    by name."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: dict[str, Callable[[Any], BaseException | None]] = {}

    def _fail(self, name: str, about: Any = None) -> None:
        error = self.failing[name](about) if name in self.failing else None
        if error is not None:
            raise error

    async def put(self, topic: str, messages: Sequence[Message]) -> None:
        self._fail("put", topic)
        await super().put(topic, messages)

    async def lease(
        self, topics: Sequence[str], limit: int, ttl: float, wait: float = 0.0, skip: Any = ()
    ) -> list[Lease]:
        self._fail("lease", topics[0])
        return await super().lease(topics, limit, ttl, wait, skip)

    async def extend(self, leases: Sequence[Lease], ttl: float) -> list[Lease]:
        self._fail("extend")
        return await super().extend(leases, ttl)

    async def announce(self, name: str, body: bytes, ttl: float) -> None:
        self._fail("announce")
        await super().announce(name, body, ttl)

    async def known(self, topic: str, ids: Sequence[str]) -> set[str] | None:
        self._fail("known")
        return await super().known(topic, ids)


@pytest_asyncio.fixture
async def queue() -> AsyncIterator[Shared]:
    made = Shared()
    yield made
    await made.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(queue_workers, "LOOK", 0.02)
    monkeypatch.setattr(queue_workers, "WATCH", 0.02)
    monkeypatch.setattr(queue_workers, "_UNSURE", 0.05)
    return tmp_path


class Side:
    """A coordinator, and the recorder of its reports."""

    def __init__(self, executor: QueueExecutor, folder: Path) -> None:
        self.executor = executor
        self.recorder = Recorder()
        self.store = LocalStore(folder / "store")

    def launch(self, task: int = 1, step: str = "act") -> None:
        self.executor.launch(
            AttemptSpec(
                step, task, 0, encode_inputs(NoInputs()), None, None, None, False, True, False, {}
            )
        )


@asynccontextmanager
async def coordinator(
    queue: SqliteQueue, folder: Path, keys: Sequence[bytes] = (), **options: Any
) -> AsyncIterator[Side]:
    definition = define(ActionFlow)

    def job(context: Any) -> Job:
        request, needs = request_of(definition), needs_of(definition)
        return Job(context, request, needs, None, "", "task", python_version(), 1 << 20)

    made = QueueExecutor(
        lambda: queue, LocalStore(folder / "store"), SqliteMetadata(":memory:"), job,
        lambda step: "default", SystemClock(), keys=keys, grace=0.05, **options,
    )  # fmt: skip
    side = Side(made, folder)
    await made.start(context_in(folder), side.recorder)
    try:
        yield side
    finally:
        await made.stop()


def sealed(spec: AttemptSpec, store: str, keys: Sequence[bytes] = (), job: str = "0" * 64) -> bytes:
    """Return the signed message of an attempt."""
    reply = protocol.reports_topic("ActionFlow", "1")
    message = TaskMessage(store, "ActionFlow", "1", job, reply, spec.encode(), 0)
    return message.seal(keys, TASKS, time.time())


async def until(truth: Callable[[], Any]) -> Any:
    """Wait until a condition is true, and return its value."""
    while True:
        found = truth()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        await asyncio.to_thread(select_nothing, 0.005)


async def waiting(queue: SqliteQueue) -> list[str]:
    return [each.id for each in await queue.peek(TASKS) or []]


# ------------------------------------------------------------------ the coordinator


async def test_what_the_queue_has_forgotten_is_put_again(queue: Shared, folder: Path) -> None:
    async with coordinator(queue, folder, priority=7) as side:
        side.launch()
        (name,) = await until(lambda: waiting(queue))
        await queue.drop(TASKS)

        assert [name] == await until(lambda: waiting(queue))
        (lease,) = await queue.lease([TASKS], 5, 60)
        again: TaskMessage = open_message(lease.body, "task", (), TASKS, None)
        assert (name, True) == (lease.id, again.attempt.again)


async def test_what_a_worker_says_that_it_has_is_not_put_again(
    queue: Shared, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with coordinator(queue, folder) as side:
        side.launch()
        (name,) = await until(lambda: waiting(queue))
        presence = Presence(["default"], 1, [name], {})
        await queue.announce("worker", presence.encode(), 60)
        looks = 0

        def look(_: Any) -> None:
            nonlocal looks
            looks += 1

        await queue.drop(TASKS)
        queue.failing["known"] = look
        await until(lambda: looks > 5)
        assert [] == await waiting(queue)

        await queue.announce("worker", b"", 0)  # it is gone, and what it had with it
        assert [name] == await until(lambda: waiting(queue))


async def test_a_task_fails_when_no_worker_that_is_known_can_run_it_and_they_are_named(
    queue: Shared, folder: Path
) -> None:
    async with coordinator(queue, folder) as side:
        side.launch()
        (name,) = await until(lambda: waiting(queue))
        sick = Presence(["default"], 1, [], {group_of(name): "No module named\n\x1b[31m'torch'"})
        await queue.announce("sick", sick.encode(), 60)
        await queue.announce("well", Presence(["default"], 1, [], {}).encode(), 60)
        await queue.announce("other", Presence(["gpu"], 1, [], {}).encode(), 60)
        await asyncio.to_thread(select_nothing, 0.2)
        assert {} == side.recorder.reports

        await queue.announce("well", b"", 0)
        report = await until(lambda: side.recorder.reports.get(1))
        assert ("failed", False) == (report.state, report.retryable)
        recorder = "No worker of pool default can run the task: sick: No module named [31m'torch'"
        assert recorder == report.reason
        await until(lambda: no(waiting(queue)))


async def no(found: Any) -> bool:
    return not await found


async def test_a_queue_that_does_not_tell_which_workers_there_are_is_believed_what_they_report(
    queue: Shared, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody_knows() -> None:
        return None

    monkeypatch.setattr(queue, "announced", nobody_knows)
    async with coordinator(queue, folder) as side:
        side.launch()
        (lease,) = await until(lambda: queue.lease([TASKS], 1, 60))
        events = [[protocol.STARTED, 1, 0, 5, 1.0], [protocol.DECLINED, 1, 0, "no such library"]]
        said = ReportsMessage("ActionFlow", "1", "sick", "host", 1, events)
        topic = protocol.reports_topic("ActionFlow", "1")
        await queue.put(topic, [Message("r", said.seal((), topic, time.time()))])
        await queue.release([lease], counted=False)

        report = await until(lambda: side.recorder.reports.get(1))
        assert "sick: no such library" in report.reason


async def test_reports_of_other_runs_and_odd_ones_are_refused_and_the_run_goes_on(
    queue: Shared, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ended = [protocol.ENDED, 1, 0, None, None, "failed", "not ours", True]
    mine = protocol.reports_topic("ActionFlow", "1")
    async with coordinator(queue, folder, keys=[KEY, OTHER]) as side:
        side.launch()
        await until(lambda: waiting(queue))

        async def say(name: str, run: str, topic: str, key: bytes, *event: Any) -> None:
            message = ReportsMessage("ActionFlow", run, name, "host", 1, [event])
            await queue.put(mine, [Message(name, message.seal([key], topic, time.time()))])

        await say("other-run", "2", protocol.reports_topic("ActionFlow", "2"), KEY, *ended)
        await say("other-run-here", "2", mine, KEY, *ended)
        await say("no-key-of-ours", "1", mine, b"x" * 32, *ended)
        await say("odd", "1", mine, KEY, *ended[:5], "finished", "", True)
        await queue.put(mine, [Message("nothing", b"AFM2\x01")])
        await until(lambda: caplog.text.count("is refused") == 5)
        assert {} == side.recorder.reports

        await say("the-older-key", "1", mine, OTHER, *ended[:6], "ours", True)
        assert "ours" == (await until(lambda: side.recorder.reports.get(1))).reason


async def test_what_is_waited_for_is_said(
    queue: Shared,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aflow._core.waiting.FIRST", 0.0)
    async with coordinator(queue, folder) as side:
        side.launch()
        await until(lambda: "Waiting for workers" in caplog.text)
        assert (
            "1 task waits for a worker of pool default: no worker takes tasks of it" in caplog.text
        )
        assert "aflow worker --queue 'memory:' --pool default" in caplog.text
        caplog.clear()

        queue.failing["lease"] = lambda _: QueueUnavailable("The broker is full.")
        queue.failing["known"] = queue.failing["lease"]
        await until(lambda: "Waiting for the queue memory:" in caplog.text)
        assert "The broker is full." in caplog.text
        del queue.failing["known"], queue.failing["lease"]
    assert FIRST == 5.0


@pytest.mark.parametrize("part", ["lease", "known", "put"])
async def test_a_part_of_the_coordinator_that_fails_ends_what_it_was_for(
    part: str, queue: Shared, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with coordinator(queue, folder) as side:
        queue.failing[part] = lambda _: RuntimeError("a fault of ours")
        side.launch(1)
        if part == "lease":
            await queue.put(protocol.reports_topic("ActionFlow", "1"), [Message("any", b"")])
        report = await until(lambda: side.recorder.reports.get(1))
        assert "lost" == report.state
        assert "no more reports of it can arrive (RuntimeError: a fault of ours)" in report.reason
        side.launch(2)
        assert "lost" == (await until(lambda: side.recorder.reports.get(2))).state
        assert "A part of the coordinator has failed" in caplog.text


async def test_what_is_cancelled_is_taken_out_though_a_dead_worker_has_it(
    queue: Shared, folder: Path
) -> None:
    async with coordinator(queue, folder) as side:
        side.launch()
        await until(lambda: queue.lease([TASKS], 1, 60))
        topic = protocol.reports_topic("ActionFlow", "1")
        said = ReportsMessage(
            "ActionFlow", "1", "dead", "host", 1, [[protocol.STARTED, 1, 0, 5, 1.0]]
        )
        await queue.put(topic, [Message("r", said.seal((), topic, time.time()))])
        await until(lambda: side.recorder.said.get(1))
        side.executor.cancel(1, 0)
        assert "cancelled" == (await until(lambda: side.recorder.reports.get(1))).state

        assert Depth(0, 0, 0) == await queue.depth(TASKS)
        assert not is_over(side.store, "ActionFlow", "1")
        await side.executor.conclude()
        assert is_over(side.store, "ActionFlow", "1")
        assert [] == await queue.topics()


async def test_a_dead_letter_is_found_behind_many_of_other_runs(
    queue: Shared, folder: Path
) -> None:
    await queue.put(TASKS, [Message(f"other:{number}:0", b"") for number in range(1000)])
    await queue.bury(await queue.lease([TASKS], 1000, 60))
    async with coordinator(queue, folder) as side:
        side.launch()
        await queue.bury(await until(lambda: queue.lease([TASKS], 1, 60)))
        report = await until(lambda: side.recorder.reports.get(1))
        assert ("failed", False) == (report.state, report.retryable)
        assert "was refused by a worker" in report.reason
        await until(lambda: buried_are(queue, 1000))


async def buried_are(queue: SqliteQueue, count: int) -> bool:
    return (await queue.depth(TASKS)).buried == count


def started(*tasks: int) -> Message:
    """Return the report of a worker that it has started these tasks, and will not respond."""
    events = [[protocol.STARTED, task, 0, 5, 1.0] for task in tasks]
    report = ReportsMessage("ActionFlow", "1", "dead", "host", 1, events)
    return Message("r", report.seal((), REPORTS, time.time()))


async def test_a_task_is_cancelled_though_an_earlier_cancel_message_is_still_in_the_queue(
    queue: Shared, folder: Path
) -> None:
    topic = protocol.worker_topic("dead")
    async with coordinator(queue, folder) as side:
        side.launch(1)
        side.launch(2)
        await until(lambda: queue.lease([TASKS], 2, 60))
        await queue.put(REPORTS, [started(1, 2)])
        await until(lambda: len(side.recorder.said) == 2)
        side.executor.cancel(1, 0)
        await until(lambda: queue.peek(topic))
        side.executor.cancel(1, 0)
        side.executor.cancel(2, 0)
        await until(lambda: len(side.recorder.reports) == 2)
        messages = [
            open_message(each.body, "cancel", (), topic, None)
            for each in await queue.peek(topic) or ()
        ]
        assert {1, 2} == {task for each in messages for _, _, task, _ in each.attempts}


async def test_the_time_without_a_capable_worker_starts_again_after_one_has_run_something(
    queue: Shared, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody_knows() -> None:
        return None

    monkeypatch.setattr(queue_workers, "_UNSURE", 3600.0)
    monkeypatch.setattr(queue, "announced", nobody_knows)
    async with coordinator(queue, folder) as side:
        side.launch()
        await until(lambda: queue.lease([TASKS], 1, 60))
        events = [[protocol.DECLINED, 1, 0, "no such library"]]
        declined = ReportsMessage("ActionFlow", "1", "sick", "host", 1, events)
        await queue.put(REPORTS, [Message("d", declined.seal((), REPORTS, time.time()))])
        await until(lambda: "default" in side.executor._unfit_since)
        await queue.put(REPORTS, [started(1)])
        await until(lambda: not side.executor._unfit_since)
        assert {} == side.recorder.reports


async def test_a_worker_that_cancels_without_our_asking_has_lost_the_task(
    queue: Shared, folder: Path
) -> None:
    async with coordinator(queue, folder) as side:
        side.launch()
        await until(lambda: waiting(queue))
        topic = protocol.reports_topic("ActionFlow", "1")
        ended = [protocol.ENDED, 1, 0, None, None, "cancelled", "", True]
        said = ReportsMessage("ActionFlow", "1", "odd", "host", 1, [ended])
        await queue.put(topic, [Message("r", said.seal((), topic, time.time()))])
        report = await until(lambda: side.recorder.reports.get(1))
        assert ("lost", "The task was lost: odd cancelled it without our asking.") == (
            report.state, report.reason
        )  # fmt: skip


# ------------------------------------------------------------------ the worker

SPEC = AttemptSpec("act", 1, 0, encode_inputs(NoInputs()), None, None, None, False, True, False, {})


@asynccontextmanager
async def working(
    queue: SqliteQueue,
    folder: Path,
    *,
    keys: tuple[bytes, ...] = (),
    lease: float = 30.0,
    slots: int = 1,
) -> AsyncIterator[tuple[Worker, list[str], asyncio.Task[None]]]:
    said: list[str] = []
    options = WorkerOptions(("default",), slots, 0.1, lease, folder / "code", keys)
    worker = Worker(queue, options, SystemClock(), said.append)
    task = asyncio.ensure_future(worker.run())
    try:
        yield worker, said, task
    finally:
        worker.drain()
        await asyncio.gather(task, return_exceptions=True)


def store_in(folder: Path) -> str:
    return (folder / "store").as_uri()


async def presence_of(queue: SqliteQueue) -> Presence | None:
    found = [Presence.decode(data) for data in (await queue.announced() or {}).values()]
    return found[0] if found else None


@pytest.mark.parametrize(
    ("keys", "message_keys", "recorder"),
    [
        ((), (KEY,), "no AFLOW_SIGNING_KEY is set here"),
        ((OTHER,), (KEY,), "signed with another key"),
        ((KEY,), (), "is not signed"),
    ],
)
async def test_a_worker_without_the_key_gives_back_uncounted_and_leaves_the_run_to_others(
    keys: tuple[bytes, ...],
    message_keys: tuple[bytes, ...],
    recorder: str,
    queue: Shared,
    folder: Path,
) -> None:
    body = sealed(SPEC, store_in(folder), message_keys)
    await queue.put(TASKS, [Message(f"run:{number}:0", body) for number in range(3)])
    async with working(queue, folder, keys=keys) as (_, said, _):
        await until(lambda: any(recorder in line for line in said))
        presence = await until(lambda: presence_declining(queue))
        assert {"run"} == presence.declined.keys()
        assert recorder in presence.declined["run"]
        await until(lambda: ready(queue, 3))

        got = await queue.lease([TASKS], 5, 60)
        assert [1, 1, 1] == [each.deliveries for each in got]
        assert sum("is refused" in line for line in said) <= 3
    assert {} == await queue.announced()


async def presence_declining(queue: SqliteQueue) -> Presence | None:
    found = await presence_of(queue)
    return found if found is not None and found.declined else None


async def ready(queue: SqliteQueue, count: int) -> bool:
    return (await queue.depth(TASKS)).ready == count


async def test_a_worker_that_cannot_get_the_code_gives_back_and_reports_that(
    queue: Shared, folder: Path
) -> None:
    (folder / "store").mkdir()
    await queue.put(TASKS, [Message("run:1:0", sealed(SPEC, store_in(folder)))])
    async with working(queue, folder) as (worker, said, _):
        topic = protocol.reports_topic("ActionFlow", "1")
        (report,) = await until(lambda: queue.lease([topic], 1, 60))
        message: ReportsMessage = open_message(report.body, "reports", (), topic, None)
        ((kind, task, attempt, why),) = message.events
        assert (protocol.DECLINED, 1, 0, worker.id) == (kind, task, attempt, message.worker)
        assert any("leaves it to others" in line and why in line for line in said)
        await until(lambda: ready(queue, 1))
        (again,) = await queue.lease([TASKS], 1, 60)
        assert 1 == again.deliveries


async def test_an_attempt_that_arrives_while_its_run_fails_to_start_is_given_back_too(
    queue: Shared, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    is_second_there, has_first_failed = threading.Event(), threading.Event()
    checks: list[str] = []
    second = Message("run:2:0", sealed(SPEC._replace(task=2), store_in(folder)))

    def check(*_: object) -> bool:
        checks.append("")
        if len(checks) == 2:  # for the second attempt, while the first waits for the code
            is_second_there.set()
            has_first_failed.wait(60)
        return False

    def fetch(*_: object) -> None:
        asyncio.run_coroutine_threadsafe(queue.put(TASKS, [second]), loop).result(60)
        is_second_there.wait(60)
        raise CodePackageError("the code is gone.")

    monkeypatch.setattr(runtime, "LOOK", 0.0)
    monkeypatch.setattr(runtime, "is_over", check)
    monkeypatch.setattr(runtime, "delivered", fetch)
    await queue.put(TASKS, [Message("run:1:0", sealed(SPEC, store_in(folder)))])
    async with working(queue, folder, slots=2) as (_, said, _):
        await until(lambda: any("the code is gone" in line for line in said))
        has_first_failed.set()
        await until(lambda: ready(queue, 2))
        got = await queue.lease([TASKS], 5, 60)
        assert ["run:1:0", "run:2:0"] == sorted(each.id for each in got)


async def test_what_is_malformed_is_buried_at_once_and_the_worker_goes_on(
    queue: Shared, folder: Path
) -> None:
    odd = {
        "none": b"nothing of ours",
        "run:1:0": sealed(SPEC, store_in(folder), job="../../etc/passwd"),
        "run:2:0": sealed(SPEC._replace(task="one"), store_in(folder)),  # type: ignore[arg-type]
        "no-group": sealed(SPEC, store_in(folder), (KEY,)),
    }
    await queue.put(TASKS, [Message(name, body) for name, body in odd.items()])
    async with working(queue, folder) as (_, said, task):
        await until(lambda: buried(queue, len(odd)))
        assert {1} == {each.deliveries for each in await queue.buried(TASKS)}
        assert len(odd) == sum("is refused" in line for line in said)
        assert not task.done()


async def buried(queue: SqliteQueue, count: int) -> bool:
    return len(await queue.buried(TASKS)) == count


async def test_what_is_left_of_a_run_that_has_ended_is_dropped_and_not_run(
    queue: Shared, folder: Path
) -> None:
    store = LocalStore(folder / "store")
    mark_over(store, "ActionFlow", "1")
    body = sealed(SPEC, store_in(folder))
    await queue.put(TASKS, [Message(f"run:{number}:0", body) for number in range(3)])
    async with working(queue, folder) as (_, said, _):
        await until(lambda: any("ActionFlow/1 has ended" in line for line in said))
        while tuple(await queue.depth(TASKS)) != (0, 0, 0):
            await asyncio.to_thread(select_nothing, 0.005)
        assert [] == await queue.topics()  # nothing was reported


@pytest.mark.parametrize("part", ["extend", "lease", "announce", "put"])
async def test_a_part_of_a_worker_that_fails_ends_it_and_its_tasks_go_back(
    part: str, queue: Shared, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aflow.worker.ANNOUNCED", 0.05)
    failed = asyncio.Event()

    def fail(about: Any) -> BaseException | None:
        if part == "lease" and not str(about).startswith("worker."):
            return None
        failed.set()
        return RuntimeError("a fault of ours")

    store = LocalStore(folder / "store")
    key = Payloads(store, "ActionFlow", "1").put(b"what describes the run")
    described = folder / "store" / "jobs" / "ActionFlow" / "1" / key
    described.unlink()
    answers = threading.Event()
    if part != "put":  # then the worker waits for it, and has the task meanwhile

        def slow(self: LocalStore, name: str, *rest: Any) -> Any:
            answers.wait(60)
            return get(self, name, *rest)

        get = LocalStore.get
        monkeypatch.setattr(LocalStore, "get", slow)
    body = sealed(SPEC, store_in(folder), job=key)
    queue.failing["put"] = fail if part == "put" else lambda _: None
    await SqliteQueue.put(queue, TASKS, [Message("run:1:0", body)])
    async with working(queue, folder, lease=0.3) as (worker, _, task):
        if part != "put":
            while (await queue.depth(TASKS)).leased == 0:
                await asyncio.to_thread(select_nothing, 0.005)
            queue.failing[part] = fail
        odd = [Message("odd", b"")]
        await SqliteQueue.put(queue, protocol.worker_topic(worker.id)[:64], odd)  # wakes it
        await failed.wait()
        is_late = part == "extend"  # its lease has ended when the worker gives it back
        while is_late and (await queue.depth(TASKS)).leased:
            await asyncio.to_thread(select_nothing, 0.005)
        answers.set()
        with pytest.raises(RuntimeError, match="a fault of ours"):
            await task
        (lease,) = await queue.lease([TASKS], 1, 60)
        assert ("run:1:0", 1 + is_late) == (lease.id, lease.deliveries)
        assert part == "announce" or {} == await queue.announced(), "it is gone"


async def test_a_report_that_is_too_large_for_the_queue_is_cut_or_fails_its_attempt(
    queue: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shared, "largest", 10_000)
    sender = ReportSender(queue, "worker", (), SystemClock())
    sending = asyncio.ensure_future(sender.send())
    task = TaskMessage("file:///store", "ActionFlow", "1", "0" * 64, REPORTS, b"", 0)
    large = Manifest("act", error={"message": "z" * 50_000}).encode()
    error: list[Any]
    done: list[Any]
    error = [protocol.ENDED, 1, 0, None, None, "failed", "z" * 50_000, True, [], None, None, large]
    done = [protocol.ENDED, 2, 0, None, None, "succeeded", "", True, ["end"], None, None, large]
    printed = [protocol.LOGGED, 1, 0, 0, 1.0, b"o" * 50_000]
    for event in (printed, error, [protocol.GROWN, 2, 0, 5, large], done):
        sender.add(task, event)
    sender.close()
    await sending

    leases = await queue.lease([REPORTS], 100, 60)
    assert max(len(each.body) for each in leases) <= 10_000
    recorder = [open_message(each.body, "reports", (), REPORTS, None).events for each in leases]
    events = [event for several in recorder for event in several]
    assert 50_000 == sum(len(each[5]) for each in events if each[0] == protocol.LOGGED)
    cut, refused = (each for each in events if each[0] == protocol.ENDED)
    assert ("failed", True) == (cut[5], cut[7])
    assert "z... (of 50000 characters)" in cut[6]
    assert ("failed", False, []) == (refused[5], refused[7], refused[8])
    assert "larger than the queue memory: takes" in refused[6]
    assert not [each for each in events if each[0] == protocol.GROWN]


async def test_ends_that_exceed_the_queue_s_limit_only_together_are_sent_in_several_messages(
    queue: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shared, "largest", 10_000)
    sender = ReportSender(queue, "worker", (), SystemClock())
    task = TaskMessage("file:///store", "ActionFlow", "1", "0" * 64, REPORTS, b"", 0)
    metadata = [["name", "v" * 400, "type"]] * 5
    manifest = Manifest("act").encode()
    for number in range(20):
        sender.add(
            task,
            [protocol.ENDED, number, 0, None, None, "succeeded", "", True, ["end"], None, None,
             manifest, 1.0, 2.0, metadata],
        )  # fmt: skip
    sender.close()
    await sender.send()

    leases = await queue.lease([REPORTS], 100, 60)
    assert max(len(each.body) for each in leases) <= 10_000
    several = [open_message(each.body, "reports", (), REPORTS, None).events for each in leases]
    ends = [(event[1], event[5]) for events in several for event in events]
    assert [(number, "succeeded") for number in range(20)] == ends


async def test_a_worker_keeps_its_grace_time_while_the_broker_is_away(
    queue: Shared, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aflow.worker.ENDING", 0.2)
    await queue.put(TASKS, [Message("run:1:0", sealed(SPEC, store_in(folder)))])
    away = QueueUnavailable("The broker is away.")
    queue.failing["put"] = lambda _: away
    async with working(queue, folder) as (worker, said, task):
        await until(lambda: any("leaves it to others" in line for line in said))
        worker.drain()
        await task
        assert any("could not send all" in line for line in said)


async def test_a_worker_says_that_the_broker_is_away_and_that_it_is_there_again(
    queue: Shared, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aflow._core.waiting.FIRST", 0.01)
    monkeypatch.setattr("aflow.worker.ANNOUNCED", 0.05)
    away = QueueUnavailable("The broker is away.")
    async with working(queue, folder) as (_, said, _):
        await until(lambda: presence_of(queue))
        queue.failing["lease"] = queue.failing["announce"] = lambda _: away
        await queue.put(TASKS, [Message("any", b"")])  # wakes it
        await until(lambda: any("Waiting for the queue memory:" in line for line in said))
        queue.failing.clear()
        await until(lambda: any("is available again" in line for line in said))
        assert not queue.failing
