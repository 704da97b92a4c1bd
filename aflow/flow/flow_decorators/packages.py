"""@conda_base and @pypi_base: which packages all steps of a flow ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from aflow.flow.decorators.packages import Packages, check_packages
from aflow.flow.flow_decorators.base import FlowDecorator, decorate


@dataclass(frozen=True, slots=True)
class PypiBase(FlowDecorator):
    """What `@pypi` says, for all steps; a step's own packages come on top."""

    kind: ClassVar[str] = "pypi_base"
    packages: Packages = field(default_factory=dict)
    python: str | None = None
    disabled: bool | None = None

    def __post_init__(self) -> None:
        check_packages(self)


@dataclass(frozen=True, slots=True)
class CondaBase(FlowDecorator):
    """What `@conda` says, for all steps; a step's own packages come on top."""

    kind: ClassVar[str] = "conda_base"
    packages: Packages = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    python: str | None = None
    disabled: bool | None = None

    def __post_init__(self) -> None:
        check_packages(self)


def pypi_base(flow: Any = None, **options: Any) -> Any:
    """Ask for packages from PyPI for all steps; see PypiBase."""
    return decorate(PypiBase, flow, options)


def conda_base(flow: Any = None, **options: Any) -> Any:
    """Ask for packages from conda for all steps; see CondaBase."""
    return decorate(CondaBase, flow, options)
