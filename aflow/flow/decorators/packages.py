"""@conda and @pypi: which packages a step asks for. A local run uses what is installed, and says so
where that is something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, overload

from aflow._core.records import dataclass, field
from aflow.flow.decorators.base import F, StepDecorator, decorate
from aflow.flow.decorators.flow_base import FlowDecorator, decorate_flow

Packages = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Pypi(StepDecorator):
    """Packages from PyPI: `packages` are versions by name, `python` is Python's version.

    `disabled=True` lets a step do without what the flow asks for (`@pypi_base`).
    """

    name: ClassVar[str] = "pypi"
    packages: Packages = field(default_factory=dict)
    python: str | None = None
    disabled: bool | None = None

    def __post_init__(self) -> None:
        check_packages(self)


@dataclass(frozen=True, slots=True)
class Conda(StepDecorator):
    """Packages from conda; `libraries` is an older word for `packages`."""

    name: ClassVar[str] = "conda"
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
        words = {"true": True, "false": False, "none": None}  # as they come out of a config
        if str(decorator.disabled).lower() not in words:
            raise decorator._fault("disabled", "True or False")
        decorator._set("disabled", words[str(decorator.disabled).lower()])
    if decorator.python is not None:
        decorator._set("python", str(decorator.python))


@overload
def pypi(function: F) -> F: ...
@overload
def pypi(
    *, packages: Packages = ..., python: str | None = None, disabled: bool | None = None
) -> Callable[[F], F]: ...
def pypi(function: object = None, **options: Any) -> Any:
    """Ask for packages from PyPI; see Pypi.

    Args:
        function: The function that is decorated; None where options are given.
        **options: The options, by name.

    Returns:
        The decorated function or class; with options alone, what decorates one.
    """
    return decorate(Pypi, function, options)


@overload
def conda(function: F) -> F: ...
@overload
def conda(
    *,
    packages: Packages = ...,
    libraries: Packages = ...,
    python: str | None = None,
    disabled: bool | None = None,
) -> Callable[[F], F]: ...
def conda(function: object = None, **options: Any) -> Any:
    """Ask for packages from conda; see Conda.

    Args:
        function: The function that is decorated; None where options are given.
        **options: The options, by name.

    Returns:
        The decorated function or class; with options alone, what decorates one.
    """
    return decorate(Conda, function, options)


# @conda_base and @pypi_base: which packages all steps of a flow ask for.


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
    """Ask for packages from PyPI for all steps; see PypiBase.

    Args:
        flow: The class of the flow; None where the decorator is called with options.
        **options: The options, by name.

    Returns:
        The decorated class; with options alone, what decorates one.
    """
    return decorate_flow(PypiBase, flow, options)


def conda_base(flow: Any = None, **options: Any) -> Any:
    """Ask for packages from conda for all steps; see CondaBase.

    Args:
        flow: The class of the flow; None where the decorator is called with options.
        **options: The options, by name.

    Returns:
        The decorated class; with options alone, what decorates one.
    """
    return decorate_flow(CondaBase, flow, options)
