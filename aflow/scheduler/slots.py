"""Decide which attempts may start on one machine, by the resources that they request. No I/O.

A machine has amounts of named resources (`cpu`, `gpu`, `memory`, and custom names); an attempt
requests some of them and holds them until it ends. Attempts that fit start in the order of their
arrival. An attempt that does not fit waits, and later ones may overtake it, with one exception: no
attempt may take a resource that the longest-waiting attempt lacks. So small attempts cannot starve
a large one, and attempts that do not need the scarce resource are not delayed.

Attempts with equal requests wait in one queue, so that the cost of a decision does not depend on
the number of waiting attempts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Mapping, Sequence

from aflow._core.records import NamedTuple

UNIT = 1000  # amounts are integers, in thousandths, so that sums are exact
GPU = "gpu"

Demand = tuple[tuple[str, int], ...]  # (name, thousandths), sorted by name, without zeros
NOTHING: Demand = ()


def demand_of(amounts: Mapping[str, float]) -> Demand:
    """Return the demand for these amounts; a fraction of a GPU is rounded up to a whole one.

    Args:
        amounts: The amounts, by resource.
    """
    return tuple(
        (name, math.ceil(amount) * UNIT if name == GPU else math.ceil(amount * UNIT))
        for name, amount in sorted(amounts.items())
        if amount > 0
    )


def shown(demand: Demand) -> str:
    """Return a demand as text for messages: `gpu=1, memory=4000`.

    Args:
        demand: The resources that an attempt requests.
    """
    return ", ".join(f"{name}={amount / UNIT:g}" for name, amount in demand) or "nothing"


class Grant(NamedTuple):
    """The permission to start an attempt; `devices` are the GPUs that it holds until it ends."""

    key: Hashable
    devices: tuple[str, ...]


class _WaitingAttempts(NamedTuple):
    """Attempts that start together: one, or all members of a gang."""

    number: int  # in order of arrival
    keys: tuple[Hashable, ...]
    each: Demand


class Slots:
    """The resources of one machine, and the attempts that hold them or wait for them.

    `devices` are the ids of its GPUs; at most `capacity["gpu"]` of them are used. At most `workers`
    attempts run at the same time.
    """

    def __init__(
        self, capacity: Mapping[str, float], devices: Sequence[str] = (), workers: int | None = None
    ) -> None:
        self._capacity = {name: round(amount * UNIT) for name, amount in capacity.items()}
        self._free = dict(self._capacity)
        self._devices = [*devices][: self._capacity.get(GPU, 0) // UNIT]
        self._places = workers if workers is not None else 1 << 62
        self._workers = self._places
        self._held: dict[Hashable, tuple[Demand, tuple[str, ...]]] = {}
        self._lines: dict[
            Demand, deque[_WaitingAttempts]
        ] = {}  # queues, by the total demand of an entry
        self._waiting: dict[Hashable, Demand] = {}
        self._number = 0
        # Whether an attempt might start since the last check; one behind a waiting one cannot.
        self._may_start = False

    @property
    def offered(self) -> Demand:
        """The total resources of the machine."""
        return tuple(sorted(self._capacity.items()))

    def lacking(self, demand: Demand, count: int = 1) -> Demand:
        """Return the resources of which the machine has too little even if it is idle.

        Args:
            demand: The resources that each attempt requests.
            count: The number of attempts that run at the same time.

        Returns:
            The part of the total demand that can never be met, with the amounts requested.
        """
        return tuple(
            (name, amount * count)
            for name, amount in demand
            if amount * count > self._capacity.get(name, 0)
        )

    def clipped(self, demand: Demand) -> Demand:
        """Return the demand, with each amount limited to what the machine has.

        Args:
            demand: The resources that an attempt requests.
        """
        least = ((name, min(amount, self._capacity.get(name, 0))) for name, amount in demand)
        return tuple((name, amount) for name, amount in least if amount)

    def at_once(self, demand: Demand) -> int | None:
        """Return how many attempts with this demand fit at the same time; None if unlimited.

        Args:
            demand: The resources that each attempt requests.
        """
        if not demand:
            return None
        return min(self._capacity.get(name, 0) // amount for name, amount in demand)

    def add(self, keys: Sequence[Hashable], each: Demand) -> None:
        """Add attempts that wait for resources and start together.

        Args:
            keys: The identities of the attempts.
            each: The resources that each of them requests.
        """
        whole = each
        if len(keys) > 1:
            whole = tuple((name, amount * len(keys)) for name, amount in each)
        self._number += 1
        entry = _WaitingAttempts(self._number, tuple(keys), each)
        line = self._lines.get(whole)
        if line is None:
            line = self._lines[whole] = deque()
            self._may_start = True
        line.append(entry)
        for key in keys:
            self._waiting[key] = whole

    def remove(self, key: Hashable) -> bool:
        """Remove a waiting attempt; attempts that were added with it keep waiting without it.

        Args:
            key: The identity of the attempt.

        Returns:
            True if the attempt was waiting.
        """
        whole = self._waiting.pop(key, None)
        if whole is None:
            return False
        line = self._lines[whole]
        for at, entry in enumerate(line):
            if key in entry.keys:
                rest = tuple(each for each in entry.keys if each != key)
                if rest:
                    line[at] = entry._replace(keys=rest)
                else:
                    del line[at]
                break
        if not line:
            del self._lines[whole]
        self._may_start = True
        return True

    def release(self, key: Hashable) -> None:
        """Release the resources of an attempt that has ended; no effect if it had not started.

        Args:
            key: The identity of the attempt.
        """
        held = self._held.pop(key, None)
        if held is None:
            return
        demand, devices = held
        self._may_start = True
        self._workers += 1
        for name, amount in demand:
            self._free[name] += amount
        if devices:
            self._devices.extend(devices)
            self._devices.sort(key=_natural)

    def start(self) -> list[Grant]:
        """Allocate resources to all attempts that can start now.

        Returns:
            Their grants, in the order in which they start.
        """
        grants: list[Grant] = []
        while self._may_start and self._workers > 0:
            entry = self._next()
            if entry is None:
                self._may_start = False
                break
            for key in entry.keys:
                del self._waiting[key]
                grants.append(self._give(key, entry.each))
        return grants

    def _next(self) -> _WaitingAttempts | None:
        first: Demand | None = None  # the demand of the longest-waiting entry
        for whole, line in sorted(self._lines.items(), key=_came):
            is_wide = len(line[0].keys) > self._workers
            if is_wide and first is None and self._fits(whole):
                return None  # a gang that lacks only workers: no other entry may take one
            if not is_wide and self._fits(whole) and (first is None or self._spares(whole, first)):
                entry = line.popleft()
                if not line:
                    del self._lines[whole]
                return entry
            if first is None:
                first = whole
        return None

    def _fits(self, whole: Demand) -> bool:
        free = self._free
        # A loop, because this runs for each queue each time.
        for name, amount in whole:  # noqa: SIM110
            if amount > free.get(name, 0):
                return False
        return True

    def _spares(self, whole: Demand, first: Demand) -> bool:
        """Return whether starting this entry leaves all resources that the first one needs."""
        needed = dict(first)
        return all(
            self._free.get(name, 0) - amount >= needed[name]
            for name, amount in whole
            if name in needed
        )

    def _give(self, key: Hashable, demand: Demand) -> Grant:
        self._workers -= 1
        gpus = 0
        for name, amount in demand:
            self._free[name] -= amount
            if name == GPU:
                gpus = amount // UNIT
        devices = tuple(self._devices[:gpus])
        del self._devices[:gpus]
        self._held[key] = demand, devices
        return Grant(key, devices)


def _came(item: tuple[Demand, deque[_WaitingAttempts]]) -> int:
    return item[1][0].number


def _natural(device: str) -> tuple[int, str]:
    """Sort numeric ids by value, before all others."""
    return (int(device), "") if device.isdigit() else (1 << 30, device)
