"""How the events of a worker are grouped into messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aflow.errors import InvalidMessage, QueueError
from aflow.executors import protocol
from aflow.executors.base import NO_USAGE
from aflow.executors.mailbox import ReportInbox
from aflow.executors.protocol import (
    CancelMessage,
    Presence,
    ReportsMessage,
    TaskMessage,
    open_message,
)
from aflow.queue.messages import seal
from aflow.runs.attempts import LiveAttempt
from aflow.scheduler.messages import FromTask, encode_inputs
from aflow.storage.artifacts import Entry, Manifest
from aflow.task.spec import AttemptReport, AttemptSpec
from tests.support.clocks import FakeClock

events = st.lists(st.tuples(st.integers(), st.binary(max_size=8).map(lambda b: b * 100_000)))


@given(events)
def test_letters_have_all_events_in_their_order_and_none_is_too_large(said: list[object]) -> None:
    parts = [*protocol.parts(said)]  # type: ignore[arg-type]
    assert said == [event for part in parts for event in part]
    assert all(len(part) == 1 or sum(len(data) for _, data in part) <= 1 << 20 for part in parts)


def test_many_small_events_are_not_one_message() -> None:
    assert [500, 500, 1] == [len(part) for part in protocol.parts([(1, b"x")] * 1001)]


# ------------------------------------------------------------------ what others may write

NOW = 1_800_000_000.0
RUN = ("Flow", "1700000000000000")
REPLY = protocol.reports_topic(*RUN)
MANIFEST = Manifest(
    "work", {"x": Entry("pickle5", 3, "int", {}, b"abc")}, {1: ["y"]}, (("end",), None, None)
).encode()
SPEC = AttemptSpec(
    "work", 3, 0, encode_inputs(FromTask(1)), 1, 0, 2, True, False, False, {1: MANIFEST}, "0" * 64,
    ("1" * 64,),
)  # fmt: skip
TASK = TaskMessage("file:///store", *RUN, "a" * 64, REPLY, SPEC.encode(), 0)
EVENTS = [
    [protocol.STARTED, 3, 0, 17, NOW],
    [protocol.LOGGED, 3, 0, 1, NOW, b"text"],
    [protocol.GROWN, 3, 0, 2, MANIFEST],
    [protocol.ENDED, 3, 0, 1024, 0.5, "succeeded", "", True, ["end"], None, None, MANIFEST, NOW,
     NOW, [["a", "b", "c"]], False],
    [protocol.DECLINED, 3, 0, "why"],
]  # fmt: skip
REPORTS = ReportsMessage(*RUN, "worker-1", "host", 1, EVENTS)
CANCEL = CancelMessage([[*RUN, 3, 0]])
GOOD = [
    ("task", "tasks.default", TASK),
    ("reports", REPLY, REPORTS),
    ("cancel", "worker.x", CANCEL),
]
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=5),
    st.binary(max_size=5), st.just([]), st.just({}), st.just([[1]]), st.just({"a": 1}),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield all positions in a value, including those in packed data."""
    yield path
    inner = opened(value)
    if inner is not None:
        yield from places(inner, (*path, "*"))
    elif isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def opened(value: Any) -> Any:
    if not isinstance(value, bytes) or len(value) < 9:
        return None
    try:
        inner = msgpack.unpackb(value, strict_map_key=False)
    except Exception:  # it is what it is
        return None
    return inner if isinstance(inner, dict | list) else None


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return the value with another one at this position."""
    if not path:
        return new
    first, *rest = path
    if first == "*":
        return msgpack.packb(changed(opened(value), tuple(rest), new))
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[first] = changed(value[first], tuple(rest), new)
    return copy


@pytest.mark.parametrize(("kind", "topic", "message"), GOOD, ids=[each[0] for each in GOOD])
@settings(max_examples=300)
@given(data=st.data())
def test_a_message_with_any_value_in_any_place_is_refused_or_is_one(
    kind: str, topic: str, message: Any, data: st.DataObject
) -> None:
    fields = msgpack.unpackb(msgpack.packb(message._asdict()), strict_map_key=False)
    path = data.draw(st.sampled_from([*places(fields)]))
    odd = changed(fields, path, data.draw(ODD))
    body = seal(kind, topic, NOW, odd if isinstance(odd, dict) else {"x": odd})

    try:
        found = open_message(body, kind, (), topic, NOW)
        if kind == "task":
            spec = found.attempt
            assert AttemptSpec.decode(spec.encode())._replace(again=spec.again) == spec
    except QueueError:
        return
    assert type(found) is type(message)
    if kind == "reports":
        heard(found)
    elif kind == "cancel":
        assert all(hash((flow, run, task, no)) for flow, run, task, no in found.attempts)


def heard(message: ReportsMessage) -> None:
    """Let a coordinator receive a message: all of its contents can be recorded."""
    recorder = Recorded()
    mail = ReportInbox[int](FakeClock())
    mail.begin(recorder)
    mail.send((3, 0), "work")
    mail.receive(message, 1)
    for report in recorder.reports:
        assert report.outcome
        assert report.state != "interrupted"
        LiveAttempt("work", False).ended(report, NO_USAGE, None, NOW)


class Recorded:
    """Records the reports."""

    def __init__(self) -> None:
        self.reports: list[AttemptReport] = []

    def ended(self, report: AttemptReport, usage: object) -> None:
        self.reports.append(report)

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.mark.parametrize(("kind", "topic", "message"), GOOD, ids=[each[0] for each in GOOD])
def test_good_messages_come_as_they_were_written(kind: str, topic: str, message: Any) -> None:
    found = open_message(message.seal((), topic, NOW), kind, (), topic, NOW)
    assert message._replace(**({} if kind == "task" else {message._fields[-1]: found[-1]})) == found
    if kind == "task":
        assert SPEC == found.attempt


def test_a_task_reports_to_its_own_run_alone() -> None:
    other = TASK._replace(reply=protocol.reports_topic("Flow", "2"))
    with pytest.raises(InvalidMessage, match="another place for its reports"):
        open_message(other.seal((), "t", NOW), "task", (), "t", NOW)


@given(st.binary(max_size=200))
def test_what_a_worker_is_said_to_be_is_read_or_nothing(data: bytes) -> None:
    assert Presence.decode(data) is None
    assert Presence.decode(msgpack.packb([1, [], 1, [[]] * 200_000, {}, ""])) is None
    presence = Presence(["default"], 4, ["a:1:0"], {"group": "why"})
    assert presence == Presence.decode(presence.encode())


def test_output_is_divided_for_queues_that_take_little_and_nothing_of_it_is_lost() -> None:
    output = bytes(range(256)) * 2000
    events = [(protocol.LOGGED, 1, 0, 0, NOW, output), (protocol.STARTED, 2, 0, 1, NOW)]
    parts = [*protocol.parts(events, 100_000)]
    for part in parts:
        body = ReportsMessage(*RUN, "w", "h", 1, part).seal((b"key",), REPLY, NOW)
        assert len(body) <= 100_000
    said = [event for part in parts for event in part]
    assert output == b"".join(event[5] for event in said if event[0] == protocol.LOGGED)
    assert events[1] == said[-1]
