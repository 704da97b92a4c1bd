"""@conda and @pypi: which packages a step asks for. A local run uses what is installed, and says so
where that is something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from aflow._core.records import dataclass, field
from aflow.flow.decorators.base import FlowDecorator, StepDecorator, written

Packages = Mapping[str, Any]  # versions by name; numbers become texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Pypi(StepDecorator):
    """Packages from PyPI: `packages` are versions by name, `python` is Python's version.

    `disabled=True` lets a step do without what the flow asks for (`@pypi_base`).
    """

    decorator_name: ClassVar[str] = "pypi"
    packages: Packages = field(default_factory=dict)
    python: str | None = None
    disabled: bool | None = None

    def __post_init__(self) -> None:
        check_packages(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conda(StepDecorator):
    """Packages from conda; `libraries` is an older word for `packages`."""

    decorator_name: ClassVar[str] = "conda"
    packages: Packages = field(default_factory=dict)
    libraries: Packages = field(default_factory=dict)
    python: str | None = None
    disabled: bool | None = None

    def __post_init__(self) -> None:
        check_packages(self)


def check_packages(decorator: Any) -> None:
    """Check the options that all these decorators have.

    Args:
        decorator: One of these decorators; its mappings are replaced by ones of text to text.

    Raises:
        InvalidDecorator: `packages`, `libraries`, `python` or `disabled` has a value that cannot be
            used.
    """
    for option in ("packages", "libraries"):
        value = getattr(decorator, option, {})
        if not isinstance(value, Mapping):
            raise decorator._fault(option, 'a mapping such as {"numpy": "1.26"}')
        if value:
            decorator._set(option, {str(key): str(each) for key, each in value.items()})
    if decorator.disabled not in (True, False, None):
        flags = {"true": True, "false": False, "none": None}  # as they come out of a config
        if str(decorator.disabled).lower() not in flags:
            raise decorator._fault("disabled", "True or False")
        decorator._set("disabled", flags[str(decorator.disabled).lower()])
    if decorator.python is not None:
        decorator._set("python", str(decorator.python))


pypi = written(Pypi)
"""Ask for packages from PyPI; see Pypi."""


conda = written(Conda)
"""Ask for packages from conda; see Conda."""


# @conda_base and @pypi_base: which packages all steps of a flow ask for.


@dataclass(frozen=True, slots=True, kw_only=True)
class PypiBase(FlowDecorator):
    """What `@pypi` says, for all steps; a step's own packages come on top."""

    decorator_name: ClassVar[str] = "pypi_base"
    packages: Packages = field(default_factory=dict)
    python: str | None = None
    disabled: bool | None = None

    def __post_init__(self) -> None:
        check_packages(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CondaBase(FlowDecorator):
    """What `@conda` says, for all steps; a step's own packages come on top."""

    decorator_name: ClassVar[str] = "conda_base"
    packages: Packages = field(default_factory=dict)
    libraries: Packages = field(default_factory=dict)
    python: str | None = None
    disabled: bool | None = None

    def __post_init__(self) -> None:
        check_packages(self)


pypi_base = written(PypiBase)
"""Ask for packages from PyPI for all steps; see PypiBase."""


conda_base = written(CondaBase)
"""Ask for packages from conda for all steps; see CondaBase."""
