"""Which attempts may start on one machine, by what they need of it: pure.

A machine offers amounts of named resources (`cpu`, `gpu`, `memory`, and names of the user's own);
an attempt asks for some of them and has them until it ends. What fits starts in the order in which
it came. What does not fit waits, and others may go before it, with one exception: nothing may take
what the attempt lacks that has waited for the longest time. So small attempts cannot keep a large
one waiting for ever, and what needs none of that goes on.

Attempts that ask for the same wait in one line, so that a decision costs the same however many
wait.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Mapping, Sequence

from aflow._core.records import NamedTuple

UNIT = 1000  # amounts are counted in thousandths: sums of whole numbers are exact
GPU = "gpu"

Demand = tuple[tuple[str, int], ...]  # by name, in thousandths; sorted, without what is 0
NOTHING: Demand = ()


def demand_of(amounts: Mapping[str, float]) -> Demand:
    """Return a demand for these amounts. GPUs are given as a whole.

    Args:
        amounts: The amounts, by resource.
    """
    return tuple(
        (name, math.ceil(amount) * UNIT if name == GPU else math.ceil(amount * UNIT))
        for name, amount in sorted(amounts.items())
        if amount > 0
    )


def shown(demand: Demand) -> str:
    """Return the resources as people write them: `gpu=1, memory=4000`.

    Args:
        demand: The resources that a task asks for.
    """
    return ", ".join(f"{name}={amount / UNIT:g}" for name, amount in demand) or "nothing"


class Grant(NamedTuple):
    """An attempt may start; `devices` are the GPUs that are its own until it ends."""

    key: Hashable
    devices: tuple[str, ...]


class _WaitingAttempts(NamedTuple):
    """Attempts that start together: one, or all members of a gang."""

    number: int  # in the order in which they came
    keys: tuple[Hashable, ...]
    each: Demand


class Slots:
    """What one machine offers, and which attempt has it. `devices` are the ids of its GPUs, of
    which `gpu` of the capacity may be in use. At most `workers` attempts run at a time."""

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
        ] = {}  # by what all of an entry need together
        self._waiting: dict[Hashable, Demand] = {}
        self._number = 0
        # Whether something may start since the last look: what joins a line that waits does not.
        self._may_start = False

    @property
    def offered(self) -> Demand:
        """All that the machine has."""
        return tuple(sorted(self._capacity.items()))

    def lacking(self, demand: Demand, count: int = 1) -> Demand:
        """Return what of the demand of this many attempts together the machine could never give.

        Args:
            demand: The resources that a task asks for.
            count: How many.
        """
        return tuple(
            (name, amount * count)
            for name, amount in demand
            if amount * count > self._capacity.get(name, 0)
        )

    def clipped(self, demand: Demand) -> Demand:
        """Return the demand, but of nothing more than there is.

        Args:
            demand: The resources that a task asks for.
        """
        least = ((name, min(amount, self._capacity.get(name, 0))) for name, amount in demand)
        return tuple((name, amount) for name, amount in least if amount)

    def at_once(self, demand: Demand) -> int | None:
        """Return how many attempts with this demand fit at the same time; None where nothing bounds
        it.

        Args:
            demand: The resources that a task asks for.
        """
        if not demand:
            return None
        return min(self._capacity.get(name, 0) // amount for name, amount in demand)

    def add(self, keys: Sequence[Hashable], each: Demand) -> None:
        """These attempts wait from now on, and start together; each needs so much.

        Args:
            keys: What the holders are known by.
            each: The resources that each of them asks for.
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
        """Return this attempt waits no longer; False if it did not. What is to start together with
        it goes on without it.

        Args:
            key: What the holder is known by.
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
        """This attempt has ended; nothing happens if it had not started.

        Args:
            key: What the holder is known by.
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
        """Return the grants of those that can start now, in order: their slots are taken from now
        on.
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
        first: Demand | None = None  # what the one needs that has waited for the longest time
        for whole, line in sorted(self._lines.items(), key=_came):
            is_wide = len(line[0].keys) > self._workers
            if is_wide and first is None and self._fits(whole):
                return None  # a gang that lacks workers alone: nobody else may take one
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
        # Written out: it is asked of each line, each time.
        for name, amount in whole:  # noqa: SIM110
            if amount > free.get(name, 0):
                return False
        return True

    def _spares(self, whole: Demand, first: Demand) -> bool:
        """Whether this one takes nothing that the first one lacks, or would lack then."""
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
    """Numbers in their order, before all that is none."""
    return (int(device), "") if device.isdigit() else (1 << 30, device)
