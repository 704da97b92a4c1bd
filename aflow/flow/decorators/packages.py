"""@conda and @pypi: the packages that a step requires.

A run without `--environment` uses the installed packages, and warns if their versions differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from aflow._core.records import dataclass, field
from aflow.flow.decorators.base import Decorator, FlowDecorator, StepDecorator, written

Packages = Mapping[str, Any]  # versions by name; numbers are converted to text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pypi(Decorator):
    """The options of @pypi and @pypi_base, which convert names and versions to text."""

    packages: Packages = field(default_factory=dict)
    python: str | None = None
    disabled: bool | None = None

    def __post_init__(self) -> None:
        for option in ("packages", "libraries"):
            value = getattr(self, option, {})
            if not isinstance(value, Mapping):
                raise self._fault(option, 'a mapping such as {"numpy": "1.26"}')
            if value:
                self._set(option, {str(key): str(each) for key, each in value.items()})
        if self.disabled not in (True, False, None):
            flags = {
                "true": True,
                "false": False,
                "none": None,
            }  # a config may contain them as text
            if str(self.disabled).lower() not in flags:
                raise self._fault("disabled", "True or False")
            self._set("disabled", flags[str(self.disabled).lower()])
        if self.python is not None:
            self._set("python", str(self.python))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conda(_Pypi):
    """The options of @conda and @conda_base."""

    libraries: Packages = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pypi(_Pypi, StepDecorator):
    """Require packages from PyPI: `packages` are versions by name, `python` the version of Python.

    With `disabled=True` the step does not use the packages of the flow (`@pypi_base`).
    """

    decorator_name: ClassVar[str] = "pypi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conda(_Conda, StepDecorator):
    """Require packages from conda; `libraries` is an older name for `packages`."""

    decorator_name: ClassVar[str] = "conda"


pypi = written(Pypi)
"""Require packages from PyPI; see Pypi."""


conda = written(Conda)
"""Require packages from conda; see Conda."""


# @conda_base and @pypi_base: the packages that all steps of a flow require.


@dataclass(frozen=True, slots=True, kw_only=True)
class PypiBase(_Pypi, FlowDecorator):
    """Like `@pypi`, for all steps; the packages of a step are added."""

    decorator_name: ClassVar[str] = "pypi_base"


@dataclass(frozen=True, slots=True, kw_only=True)
class CondaBase(_Conda, FlowDecorator):
    """Like `@conda`, for all steps; the packages of a step are added."""

    decorator_name: ClassVar[str] = "conda_base"


pypi_base = written(PypiBase)
"""Require packages from PyPI for all steps; see PypiBase."""


conda_base = written(CondaBase)
"""Require packages from conda for all steps; see CondaBase."""
