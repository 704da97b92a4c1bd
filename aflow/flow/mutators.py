"""Flows as mutators see them: a draft that they change, before the flow runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from aflow._core.records import fields, is_dataclass, replace
from aflow.errors import AflowError, InvalidDecorator, InvalidParameter
from aflow.flow.configs import evaluated, names_of
from aflow.flow.custom import Custom, FlowMutator, OnStep, StepMutator, custom_named
from aflow.flow.decorators.attach import read_options
from aflow.flow.decorators.base import DelayedDecorator, StepDecorator, build
from aflow.flow.decorators.flow_base import DelayedFlowDecorator, FlowDecorator
from aflow.flow.decorators.flow_registry import FLOW_KINDS, make_flow_decorator
from aflow.flow.decorators.registry import KINDS, kind_of
from aflow.flow.names import place, shown
from aflow.flow.parameters import Parameter

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition

Spec = tuple[str, str, list[Any], dict[str, Any]]
"""A decorator as it is described: short name, full name, options by place, options by name."""

IGNORE, ERROR, OVERRIDE = 1, 2, 3


class Draft:
    """What mutators change. `mutator` is the one whose turn it is."""

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
        self.mutator = ""

    def finished(self) -> FlowDefinition:
        """The flow as it has become."""
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
        """Put decorators from outside around every step that has none of the kind."""
        for there in self.steps.values():
            for decorator in decorators:
                if all(each.name != decorator.name for each in there):
                    there.insert(0, decorator)

    def refuse(self, text: str) -> InvalidDecorator:
        """An error of the mutator whose turn it is."""
        return InvalidDecorator(f"{self.mutator}: {text}")


# ------------------------------------------------------------ what mutators are given


class MutableStep:
    """A step, for a mutator."""

    IGNORE: ClassVar[int] = IGNORE
    ERROR: ClassVar[int] = ERROR
    OVERRIDE: ClassVar[int] = OVERRIDE

    def __init__(self, draft: Draft, name: str) -> None:
        self._draft = draft
        self.name = name

    @property
    def flow(self) -> MutableFlow:
        """The flow of the step."""
        return MutableFlow(self._draft)

    @property
    def decorator_specs(self) -> Iterator[Spec]:
        """All its decorators: short name, full name, options by place, options by name. Ours come
        first, then custom ones, then mutators; of each, those next to the step first."""
        outwards = [*reversed(self._draft.steps[self.name])]
        return map(_spec_of, sorted(outwards, key=_rank))

    def has_decorator(self, name: str) -> bool:
        """Whether it has a decorator of this name (short, or full with its dots)."""
        return bool(self.get_decorator_specs(name))

    def get_decorator_specs(self, name: str) -> list[Spec]:
        """The decorators of this name."""
        return [spec for spec in self.decorator_specs if _is_named(spec, name)]

    def add_decorator(
        self,
        deco_type: Any,
        deco_args: list[Any] | None = None,
        deco_kwargs: Mapping[str, Any] | None = None,
        duplicates: int = IGNORE,
    ) -> Any:
        """Add a decorator: itself (`retry`, a custom one), or its name, or `name:option=value`. It
        becomes the outermost.

        Where the step has one of the kind, of which it can have but one: IGNORE keeps that one,
        OVERRIDE replaces it, ERROR raises InvalidDecorator. Gives the decorator, None if ignored.
        """
        made = _made(self._draft, deco_type, deco_args or [], deco_kwargs or {})
        if isinstance(made, StepMutator) and not self._draft.pre_mutate:
            raise self._draft.refuse("mutators of steps are added in pre_mutate alone.")
        there = self._draft.steps[self.name]
        once = isinstance(made, OnStep) or not made.repeatable
        same = [each for each in there if each.name == made.name and once]
        if same and duplicates == IGNORE:
            return None
        if same and duplicates == ERROR:
            raise self._draft.refuse(f"step {self.name!r} has @{made.name} already.")
        if duplicates not in (IGNORE, ERROR, OVERRIDE):
            raise self._draft.refuse(f"duplicates cannot be {shown(duplicates)}.")
        self._draft.steps[self.name] = [made] + [each for each in there if each not in same]
        return made

    def remove_decorator(
        self,
        deco_name: str,
        deco_args: list[Any] | None = None,
        deco_kwargs: Mapping[str, Any] | None = None,
    ) -> bool:
        """Remove the decorators of this name (and options, if they are given); whether there were
        any."""
        there = self._draft.steps[self.name]
        gone = [each for each in there if _matches(each, deco_name, deco_args, deco_kwargs)]
        if not self._draft.pre_mutate and any(isinstance(each, StepMutator) for each in gone):
            raise self._draft.refuse("mutators of steps are removed in pre_mutate alone.")
        self._draft.steps[self.name] = [each for each in there if each not in gone]
        return bool(gone)


class MutableFlow:
    """A flow, for a mutator. Its steps are attributes, too: `mutable_flow.start`."""

    IGNORE: ClassVar[int] = IGNORE
    ERROR: ClassVar[int] = ERROR
    OVERRIDE: ClassVar[int] = OVERRIDE

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    @property
    def configs(self) -> Iterator[tuple[str, Any]]:
        """Name and value of every config."""
        configs = self._draft.definition.configs.values()
        return ((each.name, self._draft.configs[each.name]) for each in configs)

    @property
    def parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Attribute and declaration of every parameter."""
        return iter([*self._draft.parameters.items()])

    @property
    def steps(self) -> Iterator[tuple[str, MutableStep]]:
        """Name and step, in the order written."""
        return ((name, MutableStep(self._draft, name)) for name in self._draft.steps)

    @property
    def decorator_specs(self) -> Iterator[Spec]:
        """All decorators of the flow itself."""
        return map(_spec_of, [*self._draft.decorators])

    def has_decorator(self, name: str) -> bool:
        """Whether the flow itself has a decorator of this name."""
        return bool(self.get_decorator_specs(name))

    def get_decorator_specs(self, name: str) -> list[Spec]:
        """The flow's own decorators of this name."""
        return [spec for spec in self.decorator_specs if _is_named(spec, name)]

    def add_parameter(self, name: str, value: Parameter, overwrite: bool = False) -> None:
        """Add a parameter, which steps read as `self.<name>`. Raises InvalidDecorator where the
        name is taken (unless `overwrite`), and outside of pre_mutate."""
        definition = self._draft.definition
        if not self._draft.pre_mutate:
            raise self._draft.refuse("parameters are added in pre_mutate alone.")
        if not isinstance(value, Parameter):
            raise self._draft.refuse(f"{name!r} is {shown(value)}, which is not a Parameter.")
        taken = {*self._draft.parameters, *definition.steps, *definition.configs}
        if name in taken and not (overwrite and name in self._draft.parameters):
            raise self._draft.refuse(f"the flow has {name!r} already.")
        value.attribute = name
        self._draft.parameters[name] = value

    def remove_parameter(self, parameter_name: str) -> bool:
        """Remove a parameter; whether there was one. Raises InvalidDecorator outside of
        pre_mutate."""
        if not self._draft.pre_mutate:
            raise self._draft.refuse("parameters are removed in pre_mutate alone.")
        return self._draft.parameters.pop(parameter_name, None) is not None

    def add_decorator(
        self,
        deco_type: Any,
        deco_args: list[Any] | None = None,
        deco_kwargs: Mapping[str, Any] | None = None,
        duplicates: int = IGNORE,
    ) -> Any:
        """Add a decorator to the flow itself, or a mutator of flows (in pre_mutate alone); see
        `MutableStep.add_decorator`."""
        draft = self._draft
        if isinstance(deco_type, type) and issubclass(deco_type, FlowMutator):
            if not draft.pre_mutate:
                raise draft.refuse("mutators of flows are added in pre_mutate alone.")
            mutator = deco_type(*(deco_args or []), **(deco_kwargs or {})).begun(draft.configs)
            draft.flow_mutators.append(mutator)
            return mutator
        made = _made_for_flow(draft, deco_type, deco_kwargs or {})
        same = [each for each in draft.decorators if each.kind == made.kind and not made.repeatable]
        if same and duplicates == IGNORE:
            return None
        if same and duplicates == ERROR:
            raise draft.refuse(f"the flow has @{made.kind} already.")
        draft.decorators = [each for each in draft.decorators if each not in same] + [made]
        return made

    def remove_decorator(
        self,
        deco_name: str,
        deco_args: list[Any] | None = None,
        deco_kwargs: Mapping[str, Any] | None = None,
    ) -> bool:
        """Remove the flow's own decorators of this name; whether there were any."""
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


# ------------------------------------------------------------ decorators as described


def _spec_of(decorator: Any) -> Spec:
    if isinstance(decorator, Custom):
        path = decorator.decorator_name
        return (path.rpartition(".")[2], path, *decorator.get_args_kwargs())
    name = decorator.name if isinstance(decorator, StepDecorator) else decorator.kind
    options = {}
    if is_dataclass(decorator):
        options = {each.name: getattr(decorator, each.name) for each in fields(decorator)}
    kind = type(decorator)
    return (name, f"{kind.__module__}.{kind.__qualname__}", [], options)


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


def _made(draft: Draft, kind: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    """The step decorator that add_decorator was asked for."""
    if isinstance(kind, str):
        name, _, text = kind.partition(":")
        if text and (args or kwargs):
            raise draft.refuse(f"{kind!r} has options already: give no others.")
        return named(name, args, {**read_options(text), **kwargs}, draft.configs)
    if isinstance(kind, type) and issubclass(kind, OnStep):
        return kind(*args, **kwargs).begun(draft.configs)
    name = getattr(kind, "__name__", "")
    if name in KINDS and not args:
        return build(kind_of(name), evaluated(dict(kwargs), draft.configs))
    raise draft.refuse(f"{shown(kind)} is not a step decorator with these options.")


def named(
    name: str, args: list[Any], kwargs: Mapping[str, Any], configs: Mapping[str, Any]
) -> StepDecorator | OnStep:
    """The step decorator of this name, ours or a custom one; raises InvalidDecorator."""
    if name not in KINDS:
        custom = custom_named(name)
        if custom is not None:
            made: OnStep = custom(*args, **kwargs).begun(configs)
            return made
    return build(kind_of(name), kwargs)


def _made_for_flow(draft: Draft, kind: Any, kwargs: Mapping[str, Any]) -> FlowDecorator:
    if isinstance(kind, str):
        name, _, text = kind.partition(":")
        return make_flow_decorator(name, {**read_options(text), **kwargs})
    name = getattr(kind.func if isinstance(kind, partial) else kind, "__name__", "")
    if name in FLOW_KINDS:
        return make_flow_decorator(name, evaluated(dict(kwargs), draft.configs))
    raise draft.refuse(f"{shown(kind)} is not a decorator of flows.")


# ------------------------------------------------------------ all of them, in order


def mutated(definition: FlowDefinition, attached: Sequence[Any] = ()) -> FlowDefinition:
    """The flow after its mutators: pre_mutate of those of the flow, then of steps; then mutate in
    the same order. `attached` are decorators from outside, which mutate sees on every step.

    Raises InvalidDecorator, naming the mutator that failed.
    """
    draft = Draft(_evaluated(definition))
    for name in draft.steps:
        draft.steps[name] = [
            each.begun(draft.configs) if isinstance(each, OnStep) else each
            for each in draft.steps[name]
        ]
    for mutator in draft.flow_mutators:  # which may add others
        _turn(draft, mutator, mutator.pre_mutate, MutableFlow(draft))
    _of_steps(draft, "pre_mutate")
    draft.attach(attached)
    _of_steps(draft, "pre_mutate", [each for each in attached if isinstance(each, StepMutator)])
    draft.pre_mutate = False
    for mutator in draft.flow_mutators:
        _turn(draft, mutator, mutator.mutate, MutableFlow(draft))
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
            mutator = mutators[-1]  # the one next to the step comes first
            done.append(mutator)
            _turn(draft, mutator, getattr(mutator, method), MutableStep(draft, name))


def _turn(draft: Draft, mutator: Custom, act: Callable[[Any], object], subject: Any) -> None:
    draft.mutator = mutator.decorator_name
    try:
        act(subject)
    except (InvalidDecorator, InvalidParameter):
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, AflowError) else f"{type(error).__name__}: {error}"
        raise InvalidDecorator(
            f"The mutator {mutator.decorator_name} failed in {act.__name__}{place(error)}: {reason}"
        ) from error


def _evaluated(definition: FlowDefinition) -> FlowDefinition:
    """The flow with what was delayed in its decorators evaluated."""
    configs = names_of(definition.configs, definition.config_values or {})
    steps = {
        name: replace(
            step,
            decorators=tuple(
                each.resolved(configs) if isinstance(each, DelayedDecorator) else each
                for each in step.decorators
            ),
        )
        for name, step in definition.steps.items()
    }
    decorators = tuple(
        each.resolved(configs) if isinstance(each, DelayedFlowDecorator) else each
        for each in definition.decorators
    )
    return replace(definition, steps=steps, decorators=decorators)
