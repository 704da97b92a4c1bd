"""Pools of workers in clusters: the logic that needs no cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aflow.errors import InvalidInput, WorkersLost
from aflow.executors.clusters import (
    HEALTHY,
    Crew,
    Ended,
    Event,
    Lost,
    WorkerStarted,
    check_answers,
    keep,
    lacking,
    roomiest,
)


class Clock:
    """A clock that advances by one second each time it is read."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        self.at += 1.0
        return self.at


class Scripted:
    """A cluster with a script of events, one per poll."""

    name = "a cluster"

    def __init__(self, *looks: list[tuple[int, Event]]) -> None:
        self._looks: Iterator[list[tuple[int, Event]]] = iter(looks)
        self.done: list[tuple[str, int]] = []

    def lacking(self, count: int) -> str | None:
        return None

    def start(self, number: int) -> None:
        self.done.append(("start", number))

    def look(self, seconds: float) -> list[tuple[int, Event]]:
        return next(self._looks)

    def stop(self, number: int) -> None:
        self.done.append(("stop", number))

    def kill(self, number: int) -> None:
        self.done.append(("kill", number))

    def close(self) -> None:
        self.done.append(("close", 0))


def test_a_worker_that_is_lost_is_replaced_and_one_that_was_drained_is_not() -> None:
    said: list[str] = []
    cluster = Scripted(
        [(1, WorkerStarted("a")), (2, WorkerStarted("b"))],
        [(1, Lost("a has left.")), (2, Ended(0, ""))],
        [(3, WorkerStarted("c"))],
        [(3, Ended(0, ""))],
    )
    keep(cluster, Crew(2, said.append), Clock(), lambda: 0)

    assert [("start", 1), ("start", 2), ("start", 3)] == cluster.done
    assert "Worker 1 on a is lost: a has left. Another one is started." in said
    assert "Worker 2 on b has ended." in said


def test_the_first_signal_stops_those_that_run_and_the_second_ends_them() -> None:
    signals = iter([0, 1, 1, 1])
    cluster = Scripted([(1, WorkerStarted("a"))], [(1, Lost("it is gone"))], [])
    keep(cluster, Crew(2, lambda text: None), Clock(), lambda: next(signals))
    assert [("start", 1), ("start", 2), ("kill", 2), ("stop", 1)] == cluster.done

    signals = iter([0, 1, 2])
    cluster = Scripted([(1, WorkerStarted("a")), (2, WorkerStarted("b"))], [], [])
    keep(cluster, Crew(2, lambda text: None), Clock(), lambda: next(signals))
    assert [("stop", 1), ("stop", 2), ("kill", 1), ("kill", 2)] == cluster.done[2:]


def test_workers_that_end_at_once_are_started_later_and_later_and_then_given_up() -> None:
    broken = Ended(1, "The queue does not answer.")
    looks: list[list[tuple[int, Event]]] = []
    for number in (1, 2, 3):
        looks += [[(number, WorkerStarted("a"))], [(number, broken)], *([[]] * 9)]
    clock, cluster = Clock(), Scripted(*looks)
    with pytest.raises(WorkersLost, match=r"3 workers in a row .* code 1: The queue does"):
        keep(cluster, Crew(1, lambda text: None), clock, lambda: 0)
    assert [("start", 1), ("start", 2), ("start", 3)] == cluster.done


def test_a_worker_that_has_worked_for_a_while_may_fail_again_and_again() -> None:
    crew = Crew(1, lambda text: None)
    now = 0.0
    for number in range(1, 20):
        assert [number] == crew.to_start(now)
        crew.note(number, WorkerStarted("a"), now)
        now += HEALTHY + 1
        crew.note(number, Ended(1, "out of memory"), now)
        assert crew.failure is None
        assert [] == crew.to_start(now), "not at once"
        now += 3


def test_what_a_cluster_lacks_is_said_with_its_largest_node() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0, "memory": 8.0 * 2**30}, {"CPU": 2.0, "memory": 2.0**30}]
    asked = {"CPU": 2.0, "memory": 2.0**30}
    assert lacking(3, asked, nodes, "Ray") is None
    assert lacking(4, asked, nodes, "Ray") == (
        "Ray has room for 3 of 4 workers that ask for CPU=2, memory=1024 each: it has 2 nodes, "
        "the largest with CPU=4, memory=8192"
    )
    assert "0 of 1 worker that ask for licence=1" in str(lacking(1, {"licence": 1.0}, nodes, "Ray"))
    assert "it has 0 nodes" in str(lacking(1, asked, [], "Ray"))


def test_workers_are_spread_over_nodes_as_far_as_these_have_room() -> None:
    offers = {"a": {"thread": 2.0}, "b": {"thread": 1.0, "GPU": 1.0}}
    asked = {"thread": 1.0}
    assert "a" == roomiest(offers, asked, [])
    assert "b" == roomiest(offers, asked, ["a"])
    assert "a" == roomiest(offers, asked, ["a", "b"])
    assert roomiest(offers, asked, ["a", "b", "a"]) is None
    assert "b" == roomiest(offers, {"thread": 1.0, "GPU": 1.0}, [])


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "Nothing answers at 127.0.0.1:1 .*refused.*`ray start --head`"),
        ("tcp://127.0.0.1:1", "Nothing answers at tcp://127.0.0.1:1 "),
        ("tcp://127.0.0.1:port", "write HOST:PORT"),
        ("127.0.0.1:99999", "Nothing answers at 127.0.0.1:99999 "),
    ],
)
def test_an_address_at_which_nothing_answers_is_one_sentence(address: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        check_answers(address, "ray start --head")
    check_answers("auto", "ray start --head")
