"""@resources: the resources that a step needs on the machine that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, overload

from aflow._core.records import dataclass, field, fields
from aflow.errors import InvalidDecorator
from aflow.flow.decorators.base import F, Number, StepDecorator, as_number, written
from aflow.flow.names import shown

Amount = Number | Callable[[int], Number]

POSITIVE = ("cpu", "memory")
AMOUNTS = (*POSITIVE, "gpu", "disk")  # resources that the tasks on a machine divide among them


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources(StepDecorator):
    """Request CPUs, GPUs, memory, disk and shared memory (in MB), and custom resources.

    `custom` resources have any name, such as licences. An amount may be a function of the attempt
    (from 0), so that a task that ran out of memory gets more in the next attempt. A task on a local
    machine or worker starts when its resources are free; a job is submitted with them. An amount of
    None is not requested; a job then gets the defaults of 1 CPU and 4096 MB.
    """

    decorator_name: ClassVar[str] = "resources"
    open_options: ClassVar[str] = "custom"
    cpu: Amount | None = None
    gpu: Amount | None = None
    disk: Amount | None = None
    memory: Amount | None = None
    shared_memory: Amount | None = None
    custom: Mapping[str, Amount] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name != "custom" and value is not None and not callable(value):
                self._number(each.name, positive=each.name in POSITIVE)
        checked: dict[str, Amount] = {}
        for name, value in self.custom.items():
            amount = value if callable(value) else as_number(value)
            if amount is None or (not callable(amount) and amount < 0):
                raise InvalidDecorator(
                    f"@resources: {name} must be a number of 0 or more, not {shown(value)}."
                )
            checked[name] = amount
        self._set("custom", checked)

    def shapes_result(self) -> None:
        """Return None: the result does not depend on the resources."""

    @property
    def grows(self) -> bool:
        """Whether an amount depends on the attempt."""
        values = (getattr(self, each.name) for each in fields(self) if each.name != "custom")
        return any(callable(each) for each in (*values, *self.custom.values()))

    def amount(self, option: str, attempt: int = 0) -> float | None:
        """Return the amount of a resource that an attempt requests; None if it requests none.

        Args:
            option: `cpu`, `gpu`, `memory`, `disk` or another field of this decorator; memory and
                disk are in MB.
            attempt: The number of the attempt, from 0.

        Raises:
            InvalidDecorator: If the user's function raises, or returns an invalid amount.
        """
        return self._at(option, getattr(self, option), attempt)

    def custom_amounts(self, attempt: int = 0) -> dict[str, float]:
        """Return the amounts of the custom resources that an attempt requests, by name.

        Args:
            attempt: The number of the attempt, from 0.

        Raises:
            InvalidDecorator: If the user's function raises, or returns an invalid amount.
        """
        found = {name: self._at(name, value, attempt) for name, value in self.custom.items()}
        return {name: value for name, value in found.items() if value is not None}

    def amounts(self, attempt: int = 0) -> dict[str, float]:
        """Return the amounts that must be free on a machine to start an attempt, by name.

        Args:
            attempt: The number of the attempt, from 0.

        Raises:
            InvalidDecorator: If the user's function raises, or returns an invalid amount.
        """
        found = {option: self.amount(option, attempt) for option in AMOUNTS}
        amounts = {name: value for name, value in found.items() if value is not None}
        return {**amounts, **self.custom_amounts(attempt)}

    def _at(self, option: str, value: Amount | None, attempt: int) -> float | None:
        if not callable(value):
            return value  # type: ignore[return-value]  # __post_init__ has converted it
        try:
            returned = value(attempt)
        except Exception as error:
            raise InvalidDecorator(
                f"@resources: the function of {option} raised {type(error).__name__} for attempt "
                f"{attempt}: {error}"
            ) from error
        number = as_number(returned)
        if number is None or number < 0 or (number == 0 and option in POSITIVE):
            raise InvalidDecorator(
                f"@resources: the function of {option} must give a number for each attempt, and "
                f"gave {shown(returned)} for attempt {attempt}."
            )
        return float(number)


_resources = written(Resources)


@overload
def resources(function: F) -> F: ...
@overload
def resources(
    *,
    cpu: Amount | None = None,
    gpu: Amount | None = None,
    disk: Amount | None = None,
    memory: Amount | None = None,
    shared_memory: Amount | None = None,
    **custom: Amount,
) -> Callable[[F], F]: ...
def resources(*function: Any, **options: Any) -> Any:
    """Request resources for the step; see Resources.

    Args:
        *function: The decorated function; nothing if options are given.
        **options: The options, by name.

    Returns:
        The decorated function, or a decorator if options are given.
    """
    return _resources(*function, **options)
