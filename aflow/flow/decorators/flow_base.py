"""What all flow decorators have in common, and how they stand on a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from aflow._core.records import dataclass, fields
from aflow.errors import InvalidDecorator
from aflow.flow.configs import evaluated, is_delayed
from aflow.flow.names import did_you_mean, plain, shown

C = TypeVar("C", bound=type)

_MARK = "_aflow_flow_decorators"


@dataclass(frozen=True, slots=True)
class FlowDecorator:
    """What all flow decorators have in common: a kind, and options that are checked when made."""

    kind: ClassVar[str] = ""
    repeatable: ClassVar[bool] = False  # whether a flow may have several of the kind
    is_late: ClassVar[bool] = False  # whether it is not what it will be once configs are known

    def as_dict(self) -> dict[str, Any]:
        """Return its kind and options as values that JSON can hold; a function is its name."""
        options = {each.name: plain(getattr(self, each.name)) for each in fields(self)}
        return {"type": self.kind, "options": options}

    def _set(self, option: str, value: object) -> None:
        """Keep an option in its checked form (the value is frozen for everybody else)."""
        object.__setattr__(self, option, value)

    def _fault(self, option: str, expected: str) -> InvalidDecorator:
        value = getattr(self, option)
        return InvalidDecorator(f"@{self.kind}: {option} must be {expected}, not {shown(value)}.")


def build(kind: type[FlowDecorator], options: Mapping[str, Any]) -> FlowDecorator:
    """Return a decorator with these options.

    Args:
        kind: A subclass of FlowDecorator, a dataclass whose fields are the options.
        options: The options, by name.

    Raises:
        InvalidDecorator: An option is unknown, or its value cannot be used.
    """
    known = [each.name for each in fields(kind)]
    for option in options:
        if option not in known and not option.startswith("_aflow_unpacked_"):
            raise InvalidDecorator(
                f"@{kind.kind} has no option {option!r}.{did_you_mean(option, known)} "
                f"Its options are: {', '.join(known)}."
            )
    if is_delayed(options):
        return DelayedFlowDecorator(kind, options)
    return kind(**options)


@dataclass(frozen=True, slots=True)
class DelayedFlowDecorator(FlowDecorator):
    """A decorator whose options are expressions of configs."""

    is_late: ClassVar[bool] = True
    of: type[FlowDecorator]
    options: Mapping[str, Any]

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The kind of the decorator that it will be."""
        return self.of.kind

    @property
    def repeatable(self) -> bool:  # type: ignore[override]
        """Whether a flow may have several of the kind."""
        return self.of.repeatable

    def resolved(self, configs: Mapping[str, Any]) -> FlowDecorator:
        """Return the decorator.

        Args:
            configs: The configs, by name.

        Raises:
            InvalidConfig: The config cannot be used.
            InvalidDecorator: An evaluated option cannot be used.
        """
        return build(self.of, evaluated(self.options, configs))


def decorate_flow(kind: type[FlowDecorator], flow: object, options: Mapping[str, Any]) -> Any:
    """Add a decorator to a class; without one, return what does so (`@schedule` and
    `@schedule(...)`).

    Args:
        kind: A subclass of FlowDecorator, a dataclass whose fields are the options.
        flow: What stands below the decorator; None where it was called with options alone.
        options: The options, by name.

    Returns:
        `flow` itself, marked; or, without it, a decorator that marks one.

    Raises:
        InvalidDecorator: `flow` is not a class, or an option cannot be used.
    """
    if flow is None:
        decorator = build(kind, options)

        def put(flow: C) -> C:
            add(flow, decorator)
            return flow

        return put
    add(flow, build(kind, options))
    return flow


def add(flow: object, decorator: FlowDecorator) -> None:
    """Put a decorator outside of those that the class has.

    Args:
        flow: What stands below the decorator, which should be a class.
        decorator: The decorator, with its options checked; it becomes the outermost one.

    Raises:
        InvalidDecorator: `flow` is not a class, or already has one of a kind that is not
            repeatable.
    """
    if not isinstance(flow, type):
        raise InvalidDecorator(
            f"@{decorator.kind} stands on the class of a flow, and takes its options by name; it "
            f"was given {shown(flow)}."
        )
    own: tuple[FlowDecorator, ...] = vars(flow).get(_MARK, ())
    if not decorator.repeatable and any(each.kind == decorator.kind for each in own):
        raise InvalidDecorator(
            f"Flow {flow.__name__} has @{decorator.kind} twice: keep one of them."
        )
    setattr(flow, _MARK, (decorator, *own))


def flow_decorators_of(flow: type) -> tuple[FlowDecorator, ...]:
    """Return the decorators of a flow class and of its bases, the nearest class first.

    Of a kind that is not repeatable the nearest class has the say.

    Args:
        flow: A subclass of FlowSpec; FlowSpec and `object` themselves have none.
    """
    found: list[FlowDecorator] = []
    for each in flow.__mro__:
        kinds = {decorator.kind for decorator in found if not decorator.repeatable}
        found += [one for one in vars(each).get(_MARK, ()) if one.kind not in kinds]
    return tuple(found)
