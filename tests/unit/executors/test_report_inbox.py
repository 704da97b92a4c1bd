"""Reports of workers, in any order in which a queue delivers them."""

from __future__ import annotations

import pytest

from aflow.executors import protocol
from aflow.executors.mailbox import ReportInbox
from aflow.executors.protocol import ReportsMessage
from tests.support.clocks import FakeClock

STARTED = protocol.STARTED, 1, 0, 17, 5.0
LOGGED = protocol.LOGGED, 1, 0, 0, 5.5, b"said\n"
ENDED = protocol.ENDED, 1, 0, None, None, "succeeded", "", True, ["end"]


class Recorded:
    """Records the reports, by the names of the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> object:
        return lambda *_: self.calls.append(name)


@pytest.mark.parametrize(
    "order", [(STARTED, LOGGED, ENDED), (ENDED, STARTED, LOGGED), (LOGGED, ENDED, STARTED)]
)
async def test_an_end_is_never_lost_whatever_comes_first(order: tuple[tuple[object, ...]]) -> None:
    recorder = Recorded()
    mail = ReportInbox[int](FakeClock())
    mail.begin(recorder)  # type: ignore[arg-type]
    mail.send((1, 0), "work")
    for number, event in enumerate(order):
        mail.receive(ReportsMessage("Flow", "1", "worker", "host", number, [event]), number)

    assert (1, 1) == (recorder.calls.count("started"), recorder.calls.count("ended"))
    assert recorder.calls.index("started") < recorder.calls.index("ended")
    assert {} == mail.away
    mail.forget((1, 0))
    assert [0, 1, 2] == sorted(mail.done)


async def test_a_step_is_declined_by_workers_that_have_not_begun_it_since() -> None:
    mail = ReportInbox[int](FakeClock())
    mail.begin(Recorded())  # type: ignore[arg-type]
    mail.send((1, 0), "act")
    mail.send((2, 0), "train")
    events = [(protocol.DECLINED, task, 0, "no such library") for task in (1, 2)]
    for number, (worker, event) in enumerate(
        [("a", events[0]), ("b", events[0]), ("b", STARTED), ("c", events[1])]
    ):
        mail.receive(ReportsMessage("Flow", "1", worker, "host", number, [event]), number)

    assert {"act": {"a": "no such library"}, "train": {"c": "no such library"}} == mail.declined
