"""@conda and @pypi: the packages that a step requires.

A run without `--environment` uses the installed packages, and warns if their versions differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from aflow._core.records import dataclass, field
from aflow.flow.decorators.base import FlowDecorator, StepDecorator, written

Packages = Mapping[str, Any]  # versions by name; numbers are converted to text


@dataclass(frozen=True, slots=True, kw_only=True)
class Pypi(StepDecorator):
    """Require packages from PyPI: `packages` are versions by name, `python` the version of Python.

    With `disabled=True` the step does not use the packages of the flow (`@pypi_base`).
    """

    decorator_name: ClassVar[str] = "pypi"
    packages: Packages = field(default_factory=dict)
    python: str | None = None
    disabled: bool | None = None

    def __post_init__(self) -> None:
        check_packages(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conda(StepDecorator):
    """Require packages from conda; `libraries` is an older name for `packages`."""

    decorator_name: ClassVar[str] = "conda"
    packages: Packages = field(default_factory=dict)
    libraries: Packages = field(default_factory=dict)
    python: str | None = None
    disabled: bool | None = None

    def __post_init__(self) -> None:
        check_packages(self)


def check_packages(decorator: Any) -> None:
    """Check and convert the options that the decorators of this module share.

    Args:
        decorator: A decorator of this module; names and versions are converted to text.

    Raises:
        InvalidDecorator: If `packages`, `libraries` or `disabled` is invalid.
    """
    for option in ("packages", "libraries"):
        value = getattr(decorator, option, {})
        if not isinstance(value, Mapping):
            raise decorator._fault(option, 'a mapping such as {"numpy": "1.26"}')
        if value:
            decorator._set(option, {str(key): str(each) for key, each in value.items()})
    if decorator.disabled not in (True, False, None):
        flags = {"true": True, "false": False, "none": None}  # a config may contain them as text
        if str(decorator.disabled).lower() not in flags:
            raise decorator._fault("disabled", "True or False")
        decorator._set("disabled", flags[str(decorator.disabled).lower()])
    if decorator.python is not None:
        decorator._set("python", str(decorator.python))


pypi = written(Pypi)
"""Require packages from PyPI; see Pypi."""


conda = written(Conda)
"""Require packages from conda; see Conda."""


# @conda_base and @pypi_base: the packages that all steps of a flow require.


@dataclass(frozen=True, slots=True, kw_only=True)
class PypiBase(FlowDecorator):
    """Like `@pypi`, for all steps; the packages of a step are added."""

    decorator_name: ClassVar[str] = "pypi_base"
    packages: Packages = field(default_factory=dict)
    python: str | None = None
    disabled: bool | None = None

    def __post_init__(self) -> None:
        check_packages(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CondaBase(FlowDecorator):
    """Like `@conda`, for all steps; the packages of a step are added."""

    decorator_name: ClassVar[str] = "conda_base"
    packages: Packages = field(default_factory=dict)
    libraries: Packages = field(default_factory=dict)
    python: str | None = None
    disabled: bool | None = None

    def __post_init__(self) -> None:
        check_packages(self)


pypi_base = written(PypiBase)
"""Require packages from PyPI for all steps; see PypiBase."""


conda_base = written(CondaBase)
"""Require packages from conda for all steps; see CondaBase."""
