"""Run the mutators of a flow, and the mutable view of the flow that they change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, assert_never

from aflow._core.records import fields, replace
from aflow.errors import AflowError, InvalidDecorator
from aflow.flow.configs import evaluated, names_of
from aflow.flow.custom import Custom, FlowMutator, OnStep, StepMutator, custom_named
from aflow.flow.decorators.attach import added, read_options
from aflow.flow.decorators.base import DelayedDecorator
from aflow.flow.decorators.registry import FLOW_KINDS, KINDS, make
from aflow.flow.names import place, shown
from aflow.flow.parameters import Parameter

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition

Spec = tuple[str, str, list[Any], dict[str, Any]]
"""A decorator as plain values: short name, full name, positional and keyword arguments."""


class Duplicates(IntEnum):
    """How to add a decorator if there is already one of its kind."""

    IGNORE = 1
    ERROR = 2
    OVERRIDE = 3


class Draft:
    """The mutable state of a flow while its mutators run."""

    def __init__(self, definition: FlowDefinition) -> None:
        self.definition = definition
        self.configs = names_of(definition.configs, definition.config_values or {})
        self.parameters = dict(definition.parameters)
        self.steps: dict[str, list[Any]] = {
            name: list(step.decorators) for name, step in definition.steps.items()
        }
        self.decorators = list(definition.decorators)
        self.flow_mutators = [each.begun(self.configs) for each in definition.mutators]
        self.pre_mutate = True

    def finished(self) -> FlowDefinition:
        """Return the changed flow."""
        steps = {
            name: replace(step, decorators=tuple(self.steps[name]))
            for name, step in self.definition.steps.items()
        }
        return replace(
            self.definition,
            steps=steps,
            parameters=self.parameters,
            decorators=tuple(self.decorators),
            mutators=tuple(self.flow_mutators),
        )

    def attach(self, decorators: Sequence[Any]) -> None:
        """Add decorators to every step that does not have one of the same name.

        Args:
            decorators: Decorators from `--with` or the settings.
        """
        for name, there in self.steps.items():
            self.steps[name] = [*added(there, decorators)]

    def only_in_pre_mutate(self, what: str) -> None:
        """Check that the mutators are in their `pre_mutate` phase.

        Args:
            what: A description of the change, for the error.

        Raises:
            InvalidDecorator: If the phase is over.
        """
        if not self.pre_mutate:
            raise InvalidDecorator(f"{what} in pre_mutate alone.")


def _others(there: Sequence[Any], made: Any, duplicates: int, where: str) -> list[Any] | None:
    """Return the existing decorators that remain when `made` is added; None if it is ignored.

    Raises InvalidDecorator for Duplicates.ERROR.
    """
    try:
        policy = Duplicates(duplicates)
    except ValueError:
        raise InvalidDecorator(
            f"duplicates cannot be {shown(duplicates)}: use IGNORE, ERROR or OVERRIDE."
        ) from None
    once = isinstance(made, Custom) or not made.repeatable
    same = [each for each in there if once and each.decorator_name == made.decorator_name]
    if not same:
        return list(there)
    match policy:
        case Duplicates.IGNORE:
            return None
        case Duplicates.ERROR:
            raise InvalidDecorator(f"{where} has @{_spec_of(same[0])[0]} already.")
        case Duplicates.OVERRIDE:
            return [each for each in there if each not in same]
        case _:
            assert_never(policy)


# ------------------------------------------------------------ the arguments of mutators


class _Mutable:
    IGNORE: ClassVar[int] = Duplicates.IGNORE
    ERROR: ClassVar[int] = Duplicates.ERROR
    OVERRIDE: ClassVar[int] = Duplicates.OVERRIDE

    if TYPE_CHECKING:

        @property
        def decorator_specs(self) -> Iterator[Spec]: ...

    def has_decorator(self, name: str) -> bool:
        """Return whether it has a decorator of this name (short, or the dotted path)."""
        return bool(self.get_decorator_specs(name))

    def get_decorator_specs(self, name: str) -> list[Spec]:
        """Return the descriptions of the decorators of this name (short, or the dotted path)."""
        return [spec for spec in self.decorator_specs if _is_named(spec, name)]


class MutableStep(_Mutable):
    """The view of a step that mutators receive."""

    def __init__(self, draft: Draft, name: str) -> None:
        self._draft = draft
        self.name = name

    @property
    def flow(self) -> MutableFlow:
        """The flow of the step."""
        return MutableFlow(self._draft)

    @property
    def decorator_specs(self) -> Iterator[Spec]:
        """All decorators as (short name, full name, positional arguments, options by name).

        Decorators of aflow are first, then custom ones, then mutators; each group from the
        innermost to the outermost.
        """
        outwards = [*reversed(self._draft.steps[self.name])]
        return map(_spec_of, sorted(outwards, key=_rank))

    def add_decorator(
        self,
        deco_type: Any,
        deco_args: list[Any] | None = None,
        deco_kwargs: Mapping[str, Any] | None = None,
        duplicates: int = Duplicates.IGNORE,
    ) -> Any:
        """Add a decorator as the outermost one.

        Args:
            deco_type: The decorator (`retry`, or a custom one), its name, or `name:option=value`.
            deco_args: Positional arguments for a custom decorator; None for none.
            deco_kwargs: Options by name; None for none.
            duplicates: What to do if the step already has one of a kind that is not repeatable:
                IGNORE keeps that one, OVERRIDE replaces it, ERROR raises InvalidDecorator.

        Returns:
            The decorator; None if it was ignored.

        Raises:
            InvalidDecorator: If the decorator is unknown or cannot be used here, or if there is
                already one and `duplicates` is ERROR.
        """
        draft = self._draft
        made = decorator_of(deco_type, deco_args or [], deco_kwargs or {}, draft.configs)
        if isinstance(made, StepMutator):
            draft.only_in_pre_mutate("mutators of steps are added")
        others = _others(draft.steps[self.name], made, duplicates, f"step {self.name!r}")
        if others is None:
            return None
        draft.steps[self.name] = [made, *others]
        return made

    def remove_decorator(
        self,
        deco_name: str,
        deco_args: list[Any] | None = None,
        deco_kwargs: Mapping[str, Any] | None = None,
    ) -> bool:
        """Remove the decorators of this name, or those of them that have certain options.

        Args:
            deco_name: The name after the @; for a custom one, the dotted path or its last part.
            deco_args: Only remove decorators with exactly these positional arguments; None for any.
            deco_kwargs: Only remove decorators that have these options; None for any.

        Returns:
            True if at least one was removed.
        """
        there = self._draft.steps[self.name]
        gone = [each for each in there if _matches(each, deco_name, deco_args, deco_kwargs)]
        if any(isinstance(each, StepMutator) for each in gone):
            self._draft.only_in_pre_mutate("mutators of steps are removed")
        self._draft.steps[self.name] = [each for each in there if each not in gone]
        return bool(gone)


class MutableFlow(_Mutable):
    """The view of a flow that mutators receive.

    Steps, parameters and configs are also attributes: `mutable_flow.start`.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    @property
    def configs(self) -> Iterator[tuple[str, Any]]:
        """(name, value) of each config."""
        configs = self._draft.definition.configs.values()
        return ((each.name, self._draft.configs[each.name]) for each in configs)

    @property
    def parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(attribute, declaration) of each parameter."""
        return iter([*self._draft.parameters.items()])

    @property
    def steps(self) -> Iterator[tuple[str, MutableStep]]:
        """(name, step) of each step, in source order."""
        return ((name, MutableStep(self._draft, name)) for name in self._draft.steps)

    @property
    def decorator_specs(self) -> Iterator[Spec]:
        """All decorators and mutators of the flow itself, as for `MutableStep.decorator_specs`."""
        return map(_spec_of, [*self._draft.decorators, *self._draft.flow_mutators])

    def add_parameter(self, name: str, value: Parameter, overwrite: bool = False) -> None:
        """Add a parameter, which steps read as `self.<name>`.

        Args:
            name: The attribute by which steps read the parameter.
            value: The declaration of the parameter; its `attribute` is set to `name`.
            overwrite: Whether to replace an existing parameter of this name.

        Raises:
            InvalidDecorator: If `value` is not a Parameter, if the class has an attribute of this
                name, if there is such a parameter and `overwrite` is False, or after pre_mutate.
        """
        definition = self._draft.definition
        self._draft.only_in_pre_mutate("parameters are added")
        if not isinstance(value, Parameter):
            raise InvalidDecorator(f"{name!r} is {shown(value)}, which is not a Parameter.")
        is_parameter = name in self._draft.parameters
        of_class = hasattr(definition.cls, name) and name not in definition.parameters
        if of_class or (is_parameter and not overwrite):
            raise InvalidDecorator(f"the flow has {name!r} already.")
        value.attribute = name
        self._draft.parameters[name] = value

    def remove_parameter(self, parameter_name: str) -> bool:
        """Remove a parameter.

        Args:
            parameter_name: The name on the command line, or the attribute.

        Returns:
            True if there was such a parameter.

        Raises:
            InvalidDecorator: If it is called after pre_mutate.
        """
        self._draft.only_in_pre_mutate("parameters are removed")
        there = self._draft.parameters
        by_name = [attribute for attribute, each in there.items() if each.name == parameter_name]
        return there.pop(by_name[0] if by_name else parameter_name, None) is not None

    def add_decorator(
        self,
        deco_type: Any,
        deco_args: list[Any] | None = None,
        deco_kwargs: Mapping[str, Any] | None = None,
        duplicates: int = Duplicates.IGNORE,
    ) -> Any:
        """Add a decorator to the flow itself, or, only in pre_mutate, a mutator of flows.

        Args:
            deco_type: The decorator or mutator, or its name, also with options.
            deco_args: Positional arguments for a mutator; None for none.
            deco_kwargs: Options by name; None for none.
            duplicates: As for `MutableStep.add_decorator`.

        Returns:
            The decorator; None if it was ignored.

        Raises:
            InvalidDecorator: If the decorator is unknown or cannot be used here, or if there is
                already one and `duplicates` is ERROR.
        """
        draft = self._draft
        made = decorator_of(
            deco_type, deco_args or [], deco_kwargs or {}, draft.configs, FlowMutator
        )
        is_mutator = isinstance(made, FlowMutator)
        if is_mutator:
            draft.only_in_pre_mutate("mutators of flows are added")
        there = draft.flow_mutators if is_mutator else draft.decorators
        others = _others(there, made, duplicates, "the flow")
        if others is None:
            return None
        there[:] = [*others, made]
        return made

    def remove_decorator(
        self,
        deco_name: str,
        deco_args: list[Any] | None = None,
        deco_kwargs: Mapping[str, Any] | None = None,
    ) -> bool:
        """Remove the flow's own decorators of this name.

        Args:
            deco_name: The name after the @, such as `schedule`.
            deco_args: Only remove decorators with exactly these positional arguments; None for any.
            deco_kwargs: Only remove decorators that have these options; None for any.

        Returns:
            True if at least one was removed.

        Raises:
            InvalidDecorator: If the name is that of a mutator; mutators cannot be removed.
        """
        if any(_matches(each, deco_name, None, None) for each in self._draft.flow_mutators):
            raise InvalidDecorator(f"{deco_name!r} is a mutator of the flow, which stays.")
        there = self._draft.decorators
        gone = [each for each in there if _matches(each, deco_name, deco_args, deco_kwargs)]
        self._draft.decorators = [each for each in there if each not in gone]
        return bool(gone)

    def __getattr__(self, name: str) -> Any:
        draft = self._draft
        if name in draft.steps:
            return MutableStep(draft, name)
        if name in draft.parameters:
            return draft.parameters[name]
        if name in draft.configs:
            return draft.configs[name]
        raise AttributeError(f"The flow has no step, parameter or config {name!r}.")


# ------------------------------------------------------------ descriptions of decorators


def _spec_of(decorator: Any) -> Spec:
    if isinstance(decorator, Custom):
        path = decorator.decorator_name
        return (path.rpartition(".")[2], path, *decorator.get_args_kwargs())
    options = {each.name: getattr(decorator, each.name) for each in fields(decorator)}
    kind = type(decorator)
    return (decorator.decorator_name, f"{kind.__module__}.{kind.__qualname__}", [], options)


def _rank(decorator: Any) -> int:
    if isinstance(decorator, StepMutator):
        return 2
    return int(isinstance(decorator, OnStep))


def _is_named(spec: Spec, name: str) -> bool:
    return spec[1] == name if "." in name else spec[0] == name


def _matches(
    decorator: Any, name: str, args: list[Any] | None, kwargs: Mapping[str, Any] | None
) -> bool:
    spec = _spec_of(decorator)
    return (
        _is_named(spec, name)
        and (args is None or list(args) == spec[2])
        and (kwargs is None or dict(kwargs).items() <= spec[3].items())
    )


def _described(
    text: str, args: list[Any], kwargs: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]]:
    """Return the name and the options: those in `name:option=value`, or else `kwargs`."""
    name, _, options = text.partition(":")
    if options and (args or kwargs):
        raise InvalidDecorator(f"{text!r} has options already: give no others.")
    return name, kwargs or read_options(options)


def decorator_of(
    kind: Any,
    args: list[Any],
    kwargs: Mapping[str, Any],
    configs: Mapping[str, Any],
    custom: type[OnStep] | type[FlowMutator] = OnStep,
) -> Any:
    """Return the decorator or mutator for the arguments of `add_decorator` or `--with`.

    Args:
        kind: A decorator of aflow, a custom class, a name (`retry`, or as for `custom_named`), or
            `name:option=value`.
        args: Positional arguments; only custom decorators have any.
        kwargs: Options by name; config expressions in them are evaluated.
        configs: The values of the flow's configs, by name and by attribute.
        custom: OnStep for a step, FlowMutator for a flow.

    Raises:
        InvalidDecorator: If the decorator is unknown, or an option is invalid.
    """
    of_step = custom is OnStep
    kinds = KINDS if of_step else FLOW_KINDS
    if isinstance(kind, str):
        name, kwargs = _described(kind, args, kwargs)
        kind = None if name in kinds else custom_named(name, custom)
    else:
        name = getattr(kind, "__name__", "")
    if isinstance(kind, type) and issubclass(kind, custom):
        return kind(*args, **kwargs).begun(configs)
    if name not in kinds and kind is not None:
        raise InvalidDecorator(f"{shown(kind)} is not a {'step' if of_step else 'flow'} decorator.")
    if args:
        raise InvalidDecorator(f"@{name} takes its options by name: give no deco_args.")
    return make(name, evaluated(kwargs, configs), kinds)


# ------------------------------------------------------------ running all mutators, in order


def mutated(definition: FlowDefinition, attached: Sequence[Any] = ()) -> FlowDefinition:
    """Return the flow after evaluating config expressions and running its mutators.

    `pre_mutate` of the mutators of the flow runs first, then that of the mutators of steps; then
    `mutate` in the same order.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        attached: Decorators from `--with`, which are added to each step between the two phases.

    Raises:
        InvalidDecorator: If a mutator fails; the error names it.
    """
    draft = Draft(_evaluated(definition))
    for name in draft.steps:
        draft.steps[name] = [
            each.begun(draft.configs) if isinstance(each, OnStep) else each
            for each in draft.steps[name]
        ]
    done: list[FlowMutator] = []
    while more := [each for each in draft.flow_mutators if each not in done]:  # each may add others
        done.append(more[0])
        _turn(more[0], more[0].pre_mutate, MutableFlow(draft))
    _of_steps(draft, "pre_mutate")
    draft.attach(attached)
    _of_steps(draft, "pre_mutate", [each for each in attached if isinstance(each, StepMutator)])
    draft.pre_mutate = False
    for mutator in draft.flow_mutators:
        _turn(mutator, mutator.mutate, MutableFlow(draft))
    _of_steps(draft, "mutate")
    return replace(draft.finished(), unmutated=definition)


def _of_steps(draft: Draft, method: str, chosen: Sequence[StepMutator] | None = None) -> None:
    for name in draft.steps:
        done: list[StepMutator] = []
        while mutators := [
            each
            for each in draft.steps[name]
            if isinstance(each, StepMutator)
            and each not in done
            and (chosen is None or each in chosen)
        ]:
            mutator = mutators[-1]  # the innermost one first
            done.append(mutator)
            _turn(mutator, getattr(mutator, method), MutableStep(draft, name))


def _turn(mutator: Custom, act: Callable[[Any], object], subject: Any) -> None:
    try:
        act(subject)
    except Exception as error:
        reason = str(error) if isinstance(error, AflowError) else f"{type(error).__name__}: {error}"
        raise InvalidDecorator(
            f"The mutator {mutator.decorator_name} failed in {act.__name__}{place(error)}: {reason}"
        ) from error


def _evaluated(definition: FlowDefinition) -> FlowDefinition:
    """Return the flow with the config expressions in its decorators evaluated."""
    configs = names_of(definition.configs, definition.config_values or {})

    def resolved(decorators: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(
            each.resolved(configs) if isinstance(each, DelayedDecorator) else each
            for each in decorators
        )

    steps = {
        name: replace(step, decorators=resolved(step.decorators))
        for name, step in definition.steps.items()
    }
    return replace(definition, steps=steps, decorators=resolved(definition.decorators))
