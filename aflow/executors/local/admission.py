"""The resources of this machine: how attempts wait for them, and how they get and see them.

Resources are CPUs, GPUs, memory, disk, and names that the user defines. `scheduler/slots.py`, which
is pure, decides which attempts may start.

The amounts of a machine are detected, or set with `--resources`. A detected amount caps a larger
demand, so that a flow written for large machines runs here, too. An amount that the user has set,
or a name that only the user knows, is binding: a demand that can never be met is an error at the
start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from aflow._core.records import NamedTuple
from aflow._core.settings import environment_value
from aflow._core.system import usable_cpus
from aflow.errors import InvalidInput
from aflow.scheduler.slots import GPU, NOTHING, UNIT, Demand, Slots, demand_of, shown

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition
    from aflow.task.spec import AttemptSpec

FOUND = ("cpu", "disk", GPU, "memory")  # resources that are detected
# The variables that limit the threads of a library, which by default starts one for each core.
THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS", "LOKY_MAX_CPU_COUNT",
)  # fmt: skip
NVIDIA, AMD = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"
HIP = "HIP_VISIBLE_DEVICES"
_DEVICE = r"\d+|(GPU|MIG)-[\w/-]+"  # a number, or a UUID or the prefix of one
MOST_KINDS = 1000  # distinct demands that are cached
_ASKING = 10.0  # timeout in seconds of a tool that lists GPUs
_MB = 1 << 20


class MachineCapacity(NamedTuple):
    """The resources of a machine.

    `amounts` are by name, memory and disk in MB. `devices` are the ids of its GPUs, which tasks get
    in the environment `variables`. `binding` are the names whose amounts the user has set.
    """

    amounts: dict[str, float]
    devices: tuple[str, ...]
    variables: tuple[str, ...]
    binding: frozenset[str]


def machine_with(given: Mapping[str, float], folder: Path | None = None) -> MachineCapacity:
    """Return the resources of this machine. Blocks.

    Args:
        given: The amounts that were set, by resource; they replace detected ones.
        folder: The folder whose disk counts; None for the working folder.

    Raises:
        InvalidInput: If more GPUs are set than the variable that restricts them names.
    """
    devices, variables, named_by = _gpus()
    memory = _memory()
    import shutil  # few runs request a disk

    found = {"cpu": float(usable_cpus()), GPU: float(len(devices))}
    if memory is not None:
        found["memory"] = memory / _MB
    try:
        found["disk"] = shutil.disk_usage(folder or Path.cwd()).free / _MB
    except OSError:  # the folder was removed
        pass
    count = int(given.get(GPU, len(devices)))
    if named_by is not None and count > len(devices):
        raise InvalidInput(
            f"--resources says gpu={count}, and {named_by} names {len(devices)} of them: name as "
            "many there, or unset it."
        )
    # Detected, visible GPUs come first; if more are set, the others are numbered.
    more = (str(number) for number in range(count) if str(number) not in devices)
    named = (*devices, *more)[:count]
    return MachineCapacity({**found, **given}, named, variables, frozenset(given))


def _gpus() -> tuple[tuple[str, ...], tuple[str, ...], str | None]:
    """Return the ids of the GPUs of this process, the variables that assign them, and their source.

    The ids are as the environment or the tools name them. The variables assign a task its GPUs. The
    source is the variable that names the GPUs of this process, or None.
    """
    amd = _amd_count()
    # On a machine with AMD GPUs, HIP_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES choose, by index,
    # among those that ROCR_VISIBLE_DEVICES has left: outer variables are left unchanged.
    for variable in (HIP, NVIDIA, AMD) if amd else (NVIDIA, AMD, HIP):
        value = environment_value(variable)
        if value is not None:
            both = not amd and variable != HIP
            return visible_devices(value), (NVIDIA, AMD) if both else (variable,), variable
    import shutil  # imported here, like the next: few runs have steps that request GPUs
    import subprocess

    program = shutil.which("nvidia-smi")
    if program is not None:
        try:
            listed = subprocess.run(
                [program, "--query-gpu=index", "--format=csv,noheader"],
                capture_output=True, encoding="utf-8", timeout=_ASKING, check=False,
            )  # fmt: skip
            found = tuple(re.findall(r"^\d+$", listed.stdout, re.MULTILINE))
            if found:
                return found, (NVIDIA, AMD), None
        except (OSError, subprocess.SubprocessError):  # a driver that does not respond
            pass
    return tuple(map(str, range(amd))), (AMD,) if amd else (NVIDIA, AMD), None


def visible_devices(value: str) -> tuple[str, ...]:
    """Return the ids in a variable that restricts the visible GPUs, parsed as the drivers do.

    The list ends before the first entry that is not an id (-1, NoDevFiles, none, void). Each id is
    returned once.

    Args:
        value: The value of CUDA_VISIBLE_DEVICES or its like; "" hides all GPUs.
    """
    found: dict[str, None] = {}
    for each in map(str.strip, value.split(",")):
        if not re.fullmatch(_DEVICE, each):
            break
        found[each] = None
    return tuple(found)


def _amd_count() -> int:
    """Return how many GPUs AMD's kernel driver lists: topology nodes with SIMDs."""
    count = 0
    for properties in Path("/sys/class/kfd/kfd/topology/nodes").glob("*/properties"):
        try:
            found = re.search(r"^simd_count (\d+)", properties.read_text("utf-8"), re.MULTILINE)
        except OSError:  # it belongs to another container
            continue
        count += found is not None and int(found[1]) > 0
    return count


def _memory() -> int | None:
    """Return the memory in bytes of this machine, or of the container of this process."""
    limits = []
    try:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):  # not reported by this system
        pass
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            value = Path(file).read_text(encoding="utf-8").strip()
        except OSError:  # not this version of cgroups
            continue
        if value.isdigit():
            limits.append(int(value))
    return min(limits, default=None)


# ------------------------------------------------------------------ demands


class Demands:
    """The resources that the steps of a flow request, on one machine."""

    def __init__(
        self, definition: FlowDefinition, machine: MachineCapacity, steps: Sequence[str]
    ) -> None:
        self._machine = machine
        self._resources = {
            name: found
            for name in steps
            if (found := definition.steps[name].decorator("resources")) is not None
        }

    def amounts(self, step: str, attempt: int) -> dict[str, float]:
        """Return the resources that an attempt requests, capped by detected amounts.

        Args:
            step: The name of the step; one without @resources requests nothing.
            attempt: The number of the attempt, from 0.

        Raises:
            InvalidDecorator: If the amounts of @resources are invalid.
        """
        found = self._resources.get(step)
        return {} if found is None else bounded(found.amounts(attempt), self._machine)

    def check(self, slots: Slots) -> None:
        """Check that no step requests more than the machine has.

        Args:
            slots: The slots of the machine; none are taken.

        Raises:
            InvalidInput: If a step does; the error names it.
        """
        for name in self._resources:
            lacking = slots.lacking(demand_of(self.amounts(name, 0)))
            if lacking:
                raise InvalidInput(f"Step {name} {too_much(lacking, slots)}")

    def notes(self) -> list[str]:
        """Return a sentence for each step that gets less here than it requests."""
        notes = []
        for name, found in self._resources.items():
            asked, given = found.amounts(0), self.amounts(name, 0)
            less = {key: amount for key, amount in given.items() if amount < asked[key]}
            if less:
                asks = ", ".join(f"{key}={asked[key]:g}" for key in less)
                there = ", ".join(f"{key}={amount:.0f}" for key, amount in less.items())
                notes.append(
                    f"@resources: {name} asks for {asks}; there is {there} here, which it gets."
                )
        return notes

    def bounds(self, slots: Slots, most: int) -> dict[str, int]:
        """Return how many attempts of a step can run at once, if resources allow fewer than `most`.

        Args:
            slots: The slots of the machine.
            most: How many attempts run at once regardless of resources.
        """
        bounds: dict[str, int] = {}
        for name in self._resources:
            at_once = slots.at_once(demand_of(self.amounts(name, 0)))
            if at_once is not None and at_once < most:
                bounds[name] = max(1, at_once)
        return bounds


def bounded(amounts: Mapping[str, float], machine: MachineCapacity) -> dict[str, float]:
    """Return the amounts, with detected resources capped at what the machine has.

    Args:
        amounts: The amounts, by resource.
        machine: The resources of this machine; those that the user has set are not capped.
    """
    return {
        name: amount
        if name in machine.binding or name not in FOUND
        else min(amount, machine.amounts.get(name, amount))
        for name, amount in amounts.items()
    }


def too_much(lacking: Demand, slots: Slots) -> str:
    """Return the reason why a demand can never be met, as the rest of a sentence.

    Args:
        lacking: The part of the demand that exceeds the machine.
        slots: The slots of the machine, for the sentence.
    """
    there = dict(slots.offered)
    offered = ", ".join(f"{name}={there.get(name, 0) / UNIT:g}" for name, _ in lacking)
    return (
        f"asks for {shown(lacking)}, and there is {offered}: ask for less, or say what there is "
        "with --resources."
    )


# ------------------------------------------------------------------ admission


class Granted(NamedTuple):
    """The resources of an attempt that may start.

    `early` are variables that its process has from its start, `late` are those that are set after
    the fork, and `memory` is its limit in bytes, or None.
    """

    early: dict[str, str]
    late: dict[str, str]
    memory: int | None


FREE = Granted({}, {}, None)

Begin = Callable[["AttemptSpec", Granted], None]


class _Waiting(NamedTuple):
    spec: AttemptSpec
    amounts: dict[str, float]
    begin: Begin


class SlotQueue:
    """The slots of one machine, shared by all executors that run attempts on it."""

    def __init__(self, slots: Slots, machine: MachineCapacity) -> None:
        self.slots = slots
        self.machine = machine
        self._waiting: dict[Hashable, _Waiting] = {}
        self._threads = [name for name in THREADS if environment_value(name) is None]
        self._demand = lru_cache(MOST_KINDS)(lambda amounts: demand_of(dict(amounts)))

    def submit(
        self, keys: Sequence[Hashable], specs: Sequence[AttemptSpec], amounts: dict[str, float],
        begin: Begin,
    ) -> None:  # fmt: skip
        """Call `begin` for each of these attempts as soon as all of them can start together.

        Args:
            keys: One for each attempt; unique among all that wait or run.
            specs: The specs of the attempts.
            amounts: The resources that each of them needs; empty if it needs only a slot.
            begin: Called with the attempt and what was granted to it, possibly before `submit`
                returns.
        """
        for key, spec in zip(keys, specs, strict=True):
            self._waiting[key] = _Waiting(spec, amounts, begin)
        self.slots.add(keys, self._demand((*amounts.items(),)) if amounts else NOTHING)
        self._start()

    def withdraw(self, key: Hashable) -> AttemptSpec | None:
        """Return an attempt after removing it from the queue; None if it has already started.

        Args:
            key: The key that it was submitted with.
        """
        waiting = self._waiting.pop(key, None)
        if waiting is None:
            return None
        self.slots.remove(key)
        self._start()
        return waiting.spec

    def withdraw_all(self, executor: int) -> list[AttemptSpec]:
        """Return all attempts of an executor that have not started, after removing them.

        Args:
            executor: The id of the executor, the first part of the keys of its attempts.
        """
        keys = [key for key in self._waiting if isinstance(key, tuple) and key[0] == executor]
        specs = [self._waiting.pop(key).spec for key in keys]
        for key in keys:
            self.slots.remove(key)
        if keys:
            self._start()
        return specs

    def release(self, key: Hashable) -> None:
        """Release the slots of a finished attempt. May be called again.

        Args:
            key: The key that it was submitted with.
        """
        self.slots.release(key)
        self._start()

    def _start(self) -> None:
        for grant in self.slots.start():
            spec, amounts, begin = self._waiting.pop(grant.key)
            begin(spec, self._granted(amounts, grant.devices))

    def _granted(self, amounts: Mapping[str, float], devices: Sequence[str]) -> Granted:
        early: dict[str, str] = {}
        late: dict[str, str] = {}
        if "cpu" in amounts:
            threads = str(max(1, int(amounts["cpu"])))
            early = dict.fromkeys(self._threads, threads)
        if devices:
            joined = ",".join(devices)
            late = dict.fromkeys(self.machine.variables, joined)
        memory = amounts.get("memory")
        return Granted(early, late, None if memory is None else int(memory * _MB))


class Starter(Protocol):
    """Starts attempts that wait in a queue of its own."""

    @property
    def at_once(self) -> int:
        """The number of its attempts that run at the same time."""

    @property
    def is_waiting(self) -> bool:
        """Whether it has attempts that could start."""

    def feed(self) -> None:
        """Start waiting attempts, unless the limit is reached."""


class ConcurrencyLimit:
    """Limits how many attempts run at the same time, in the processes of all its starters.

    Processes that run many attempts hold some in advance, so the number of attempts that were
    launched is no limit.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._starters: list[Starter] = []  # the latest one that has started an attempt is last

    def add(self, starter: Starter) -> None:
        """Count the attempts of a starter.

        Args:
            starter: The processes of one executor, or of one kind of steps.
        """
        self._starters.append(starter)

    def remove(self, starter: Starter) -> None:
        """Count the attempts of a starter no longer, since its processes have ended.

        Args:
            starter: One that was added.
        """
        self._starters.remove(starter)

    @property
    def is_reached(self) -> bool:
        """Whether another attempt must wait until one has ended."""
        return sum(each.at_once for each in self._starters) >= self._most

    def is_contended(self, starter: Starter) -> bool:
        """Return whether attempts of other starters wait, too.

        Args:
            starter: The one that asks.
        """
        return any(each.is_waiting for each in self._starters if each is not starter)

    def feed(self) -> None:
        """Start waiting attempts after one has ended, in turn those of each starter."""
        for each in [*self._starters]:
            before = each.at_once
            each.feed()
            if each.at_once > before:
                self._starters.remove(each)
                self._starters.append(each)


def admission_for(
    definition: FlowDefinition,
    steps: Sequence[str],
    given: Mapping[str, float] | None,
    max_workers: int | None,
) -> tuple[SlotQueue, Demands] | None:
    """Return the slots and the demands of these steps; None if no step has @resources. Blocks.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        steps: The names of the steps that run on this machine.
        given: The amounts of `--resources`, by name; None to use detected ones.
        max_workers: How many tasks run at a time; None for as many as there are processors.

    Raises:
        InvalidInput: If a step requests more than the machine will ever have.
    """
    if not any(definition.steps[name].decorator("resources") for name in steps):
        return None
    machine = machine_with(given or {})
    slots = Slots(machine.amounts, machine.devices, max_workers)
    demands = Demands(definition, machine, steps)
    demands.check(slots)
    return SlotQueue(slots, machine), demands
