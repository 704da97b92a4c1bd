"""Parameters: the values that a run is started with, and that no step may change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin

from aflow.errors import InvalidParameter
from aflow.flow.names import did_you_mean, shown

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition

# Options of `run`: a parameter of such a name could not be told from it.
RESERVED = frozenset(
    {
        "decospecs",
        "fail_fast",
        "help",
        "isolation",
        "max_log_size",
        "max_num_splits",
        "max_workers",
        "namespace",
        "obj",
        "origin_run_id",
        "params",
        "progress",
        "run_id",
        "run_id_file",
        "runner_attribute_file",
        "tag",
        "tags",
        "user_namespace",
        "with",
    }
)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]{0,199}\Z")
_BOOLS = {
    **dict.fromkeys(("true", "1", "yes", "y", "on", "t"), True),
    **dict.fromkeys(("false", "0", "no", "n", "off", "f"), False),
}


class JSONTypeClass:
    """The type of a parameter whose value is written as JSON."""

    name = "JSON"

    def __repr__(self) -> str:
        return "JSONType"


JSONType = JSONTypeClass()


class ParameterContext(NamedTuple):
    """What a default that is a function is called with."""

    flow_name: str
    user_name: str
    parameter_name: str
    logger: Callable[[str], None]
    ds_type: str
    configs: Mapping[str, Any]


class Parameter:
    """A value that a run of the flow is started with: `alpha = Parameter("alpha", default=0.1)`.

    `type` is str, int, float, bool or JSONType; where it is None, the type of the default, else
    str. `default` is a value or a function of a ParameterContext, called when a run starts.
    Without a default the value is None, unless the parameter is `required`. With a `separator`
    the value is a list of values of the type. With `choices`, or the type `Literal["a", "b"]`, the
    value is one of these. Raises InvalidParameter for a declaration that
    cannot be used.

    `name` is what people write (`--name`), `attribute` the name in the flow class.
    """

    def __init__(
        self,
        name: str,
        default: Any = None,
        type: Any = None,
        help: str | None = None,
        required: bool | None = None,
        show_default: bool | None = None,
        separator: str | None = None,
        choices: Sequence[Any] | None = None,
    ) -> None:
        self.name = self.attribute = _checked_name(name)
        self.help = help
        self.required = bool(required)
        self.show_default = True if show_default is None else show_default
        self.separator = _checked_separator(name, separator)
        type, choices = _literal(type, choices)
        self.infers_type = type is None
        sample = default[0] if separator and isinstance(default, list) and default else default
        self.type = _checked_type(name, type, sample)
        if choices is not None and (isinstance(choices, str) or not isinstance(choices, Iterable)):
            raise InvalidParameter(f"Parameter {name}: choices={choices!r} is no list of values.")
        self.choices = None if choices is None else [self._convert_one(each) for each in choices]
        self.default = default
        if default is not None and not callable(default):
            self.default = self.convert(default)

    def __set_name__(self, owner: Any, attribute: str) -> None:
        self.attribute = attribute

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        # No __set__: once it is read, the value in the instance's __dict__ comes first.
        return self if instance is None else instance.__getattr__(self.attribute)

    def convert(self, value: Any) -> Any:
        """The value in the parameter's type, from what was written or from a value of Python.

        Raises InvalidParameter, which names the parameter, the value and what is expected.
        """
        if self.separator is None:
            return self._convert_one(value)
        if isinstance(value, str):
            parts: Any = value.split(self.separator) if value else []
        elif isinstance(value, list | tuple):
            parts = value
        else:
            parts = [value]
        return [self._convert_one(part) for part in parts]

    @staticmethod
    def type_of(value: Any) -> Any:
        """The type that a parameter with this default has, if it declares none."""
        return _type_of(value)

    def value_of_default(self, context: Callable[[str], ParameterContext]) -> Any:
        """The value where none was given; raises InvalidParameter where a function as the default
        fails, or gives a value of another type."""
        if not callable(self.default):
            return self.default
        try:
            value = self.default(context(self.name))
        except Exception as error:
            raise InvalidParameter(
                f"The default of parameter {self.name!r} is a function, and it failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        return None if value is None else self.convert(value)

    choices: list[Any] | None = None  # while the choices themselves are converted

    def _convert_one(self, value: Any) -> Any:
        try:
            converted = _CONVERTERS[self.type](value)
        except (ValueError, OverflowError, RecursionError):
            raise InvalidParameter(
                f"Parameter {self.name!r} has the value {shown(value)}, "
                f"which is not {_EXPECTED[self.type]}."
            ) from None
        if self.choices is not None and converted not in self.choices:
            raise InvalidParameter(
                f"Parameter {self.name!r} has the value {shown(value)}, which is none of its "
                f"choices: {', '.join(map(str, self.choices))}."
            )
        return converted

    def __repr__(self) -> str:
        return f"<Parameter {self.name}: {type_name(self.type)}>"


def type_name(type: Any) -> str:
    """The name of a parameter's type, for people."""
    return "JSON" if type is JSONType else str(type.__name__)


# ------------------------------------------------------------ types


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidParameter(
            f"{shown(name)} cannot be the name of a parameter: use letters, digits, - and _."
        )
    return name


def _checked_separator(name: str, separator: object) -> str | None:
    if separator is None or (isinstance(separator, str) and separator):
        return separator
    raise InvalidParameter(
        f"Parameter {name!r} has the separator {shown(separator)}: use a text such as ','."
    )


def _literal(type: Any, choices: Sequence[Any] | None) -> tuple[Any, Sequence[Any] | None]:
    """The type and the choices of `Literal["a", "b"]`; both as they are for any other type."""
    if type is None or get_origin(type) is not Literal:
        return type, choices
    values = get_args(type)
    return values[0].__class__, values if choices is None else choices


def _checked_type(name: str, type: Any, default: Any) -> Any:
    """The declared type, or the one that the default has."""
    if type is None:
        return _type_of(default)
    if type is JSONTypeClass:
        return JSONType
    try:
        if type in _CONVERTERS:
            return type
    except TypeError:
        pass  # what cannot be hashed is no type: refused below
    raise InvalidParameter(
        f"Parameter {name!r} has the type {shown(type)}: use str, int, float, bool or JSONType."
    )


def _type_of(default: Any) -> Any:
    for kind in (bool, int, float):  # a bool is an int too: it comes first
        if isinstance(default, kind):
            return kind
    return JSONType if isinstance(default, list | dict) else str


def _to_str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError
    return int(value)


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    return float(value)


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    known = _BOOLS.get(str(value).strip().lower())
    if known is None or not isinstance(value, str | int):
        raise ValueError
    return known


def _to_json(value: Any) -> Any:
    import json

    if isinstance(value, str):
        return json.loads(value)
    try:
        json.dumps(value)
    except TypeError:
        raise ValueError from None
    return value


_CONVERTERS: dict[Any, Callable[[Any], Any]] = {
    str: _to_str,
    int: _to_int,
    float: _to_float,
    bool: _to_bool,
    JSONType: _to_json,
}
_EXPECTED: dict[Any, str] = {
    str: "a text (type str)",
    int: "a whole number (type int)",
    float: "a number (type float)",
    bool: "one of true, false, yes, no, 1, 0 (type bool)",
    JSONType: 'JSON (such as {"a": 1})',
}


# ------------------------------------------------------------ the parameters of a flow


def declaration_problems(parameters: Mapping[str, Parameter]) -> Iterator[str]:
    """What is wrong with the parameters of a flow taken together, a sentence each."""
    seen: dict[str, str] = {}
    for parameter in parameters.values():
        plain = _plain(parameter.name)
        if plain in RESERVED:
            yield (
                f"Parameter {parameter.name!r} has the name of an option of run: "
                "choose another name."
            )
        if plain in seen:
            yield (
                f"The parameters {seen[plain]!r} and {parameter.name!r} cannot be told apart: "
                "names must differ in more than capitals, - and _."
            )
        seen[plain] = parameter.name


def resolve(
    definition: FlowDefinition,
    given: Mapping[str, Any],
    context_factory: Callable[[str], ParameterContext],
) -> dict[str, Any]:
    """The values of all parameters of a flow, by attribute, in the order declared.

    `given` maps names to values (None counts as not given), `context_factory` makes the context
    of a default that is a function from the parameter's name. Raises InvalidParameter for an
    unknown name, a value of the wrong type, a missing required one, and a declaration that cannot
    be used.
    """
    for problem in declaration_problems(definition.parameters):
        raise InvalidParameter(problem)
    values = _given(definition, given)
    for attribute, parameter in definition.parameters.items():
        if attribute not in values:
            values[attribute] = parameter.value_of_default(context_factory)
        if values[attribute] is None and parameter.required:
            raise InvalidParameter(
                f"Parameter {parameter.name!r} is required: give it with --{parameter.name}."
            )
    return {attribute: values[attribute] for attribute in definition.parameters}


def _given(definition: FlowDefinition, given: Mapping[str, Any]) -> dict[str, Any]:
    known = {_plain(each.name): each for each in definition.parameters.values()}
    known = {**{_plain(name): each for name, each in definition.parameters.items()}, **known}
    values: dict[str, Any] = {}
    for name, value in given.items():
        parameter = known.get(_plain(name))
        if parameter is None:
            names = [each.name for each in definition.parameters.values()]
            there = f"It has: {', '.join(names)}." if names else "It has none."
            raise InvalidParameter(
                f"Flow {definition.name} has no parameter {name!r}."
                f"{did_you_mean(name, names)} {there}"
            )
        if value is not None:
            values[parameter.attribute] = parameter.convert(value)
    return values


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
