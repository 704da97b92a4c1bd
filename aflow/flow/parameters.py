"""Parameters: the values that a run is started with, and that no step may change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from aflow._core.records import NamedTuple
from aflow.errors import InvalidParameter
from aflow.flow.configs import imported
from aflow.flow.names import did_you_mean, shown

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition

# Options of `run`: a parameter of such a name could not be distinguished from it.
RESERVED = frozenset({
    "decospecs", "fail_fast", "help", "isolation", "max_log_size", "max_num_splits", "max_workers",
    "namespace", "obj", "origin_run_id", "params", "progress", "run_id", "run_id_file",
    "runner_attribute_file", "tag", "tags", "user_namespace", "with",
})  # fmt: skip

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]{0,199}\Z")
# What else an option of click can do. `cls` and `expose_value` would take the value from us.
_CLICK_OPTIONS = frozenset(
    {
        "allow_from_autoenv", "callback", "confirmation_prompt", "count", "deprecated", "envvar",
        "flag_value", "hidden", "hide_input", "is_eager", "is_flag", "metavar", "multiple",
        "nargs", "prompt", "prompt_required", "shell_complete", "show_choices", "show_envvar",
    }
)  # fmt: skip
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


class ConvertedValue(NamedTuple):
    """A value in the type of its parameter: it is not converted again, since what is converted
    twice may be another value (the JSON text '"1"' is the text 1 first, then a number), or none.

    `written` is the text that it was made of, or the texts; None where it was not made of texts.
    """

    value: Any
    written: Any = None


class Parameter:
    """A value that a run of the flow is started with: `alpha = Parameter("alpha", default=0.1)`.

    `type` is str, int, float, bool or JSONType; where it is None, the type of the default, else
    str. It may also be a type of click (`click.IntRange(1, 9)`), a tuple of types, or a class or
    function that makes the value from the text that was written (`pathlib.Path`).
    `default` is a value or a function of a ParameterContext, called when a run starts.
    Without a default the value is None, unless the parameter is `required`. With a `separator`
    the value is a list of values of the type. With `choices`, or the type `Literal["a", "b"]`, the
    value is one of these. All other keywords are those of click's options, such as `is_flag`,
    `multiple`, `nargs` and `hidden`. Raises InvalidParameter for a declaration that cannot be used.

    `name` is what people write (`--name`), `attribute` the name in the flow class.
    """

    _aflow_reads_artifact = True

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
        **click_options: Any,
    ) -> None:
        self.name = self.attribute = _checked_name(name)
        self.click_options = _checked_options(name, click_options)
        self.help = help
        self.required = bool(required)
        self.show_default = True if show_default is None else show_default
        self.separator = _checked_separator(name, separator)
        type, choices = _literal(type, choices)
        self.infers_type = type is None
        # The values of one parameter: as many as are given, or a fixed number at a time.
        self.multiple = bool(click_options.get("multiple"))
        self.nargs = len(type) if isinstance(type, tuple) else click_options.get("nargs", 1)
        if not isinstance(self.nargs, int) or self.nargs < 1:
            raise InvalidParameter(
                f"Parameter {name!r} has nargs={shown(self.nargs)}: it must be a whole number "
                "above 0."
            )
        if separator and (self.multiple or self.nargs > 1):
            raise InvalidParameter(
                f"Parameter {name!r} has a separator, and multiple= or nargs=: use one of them."
            )
        self.type = self._declared_type(type, default)
        if choices is not None:
            listed = hasattr(choices, "__iter__") and not isinstance(choices, str)
            self.choices = [self._convert_one(each) for each in choices] if listed else []
            if not self.choices:
                raise InvalidParameter(
                    f"Parameter {name!r} has choices={shown(choices)}, which is not a list of "
                    "values."
                )
        self.default = default
        if default is not None and not callable(default):
            self.default = self.convert(default)

    def __set_name__(self, owner: Any, attribute: str) -> None:
        self.attribute = attribute

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        # No __set__: once it is read, the value in the instance's __dict__ comes first.
        return self if instance is None else instance.__getattr__(self.attribute)

    def convert(self, value: Any) -> Any:
        """Return the value in the parameter's type, from what was written or from a value of
        Python.

        Args:
            value: A text as it was given on the command line or in a file, or a Python value of a
                default; None only where the type allows it.

        Raises:
            InvalidParameter: The value does not fit the type; the error names the parameter, the
                value and what is expected.
        """
        if self.multiple:
            several = value if isinstance(value, list | tuple) else [value]
            return tuple(self._convert_group(each) for each in several)
        if self.separator is None:
            return self._convert_group(value)
        if isinstance(value, str):
            parts: Any = value.split(self.separator) if value else []
        elif isinstance(value, list | tuple):
            parts = value
        else:
            parts = [value]
        return [self._convert_one(part) for part in parts]

    def _convert_group(self, value: Any) -> Any:
        """One value, or the tuple of those that belong together."""
        if self.nargs == 1:
            return self._convert_one(value)
        if not isinstance(value, list | tuple) or len(value) != self.nargs:
            raise InvalidParameter(
                f"Parameter {self.name!r} has the value {shown(value)}: it takes {self.nargs} "
                "values at a time."
            )
        return tuple(self._convert_one(each, place) for place, each in enumerate(value))

    def _declared_type(self, type: Any, default: Any) -> Any:
        if isinstance(type, tuple):
            return tuple(_checked_type(self.name, each, None) for each in type)
        if type is None and self.click_options.get("count"):
            return int
        if type is None and self.click_options.get("is_flag"):
            type = _type_of(self.click_options.get("flag_value", True))
        return _checked_type(self.name, type, self._sample(default))

    def _sample(self, default: Any) -> Any:
        """One value of the default, which tells the type where none is declared."""
        levels = bool(self.separator) + self.multiple + (self.nargs > 1)
        for _ in range(levels):
            if not isinstance(default, list | tuple):
                return default
            default = default[0] if default else None
        return default

    @staticmethod
    def type_of(value: Any) -> Any:
        """Return the type that a parameter with this default has, if it declares none.

        Args:
            value: The default; None makes the type `str`.
        """
        return _type_of(value)

    def plain(self, value: Any) -> Any:
        """Return a value of the parameter as JSON can hold it; `convert` makes the value of it
        again.

        Args:
            value: What `convert` has returned; enumerations become their values, and other objects
                their text.
        """
        return self._plain(value, bool(self.separator) + self.multiple + (self.nargs > 1))

    def _plain(self, value: Any, levels: int, place: int = 0) -> Any:
        if levels and isinstance(value, list | tuple):
            return [self._plain(each, levels - 1, place) for place, each in enumerate(value)]
        kind = self.type[place] if isinstance(self.type, tuple) else self.type
        if kind is JSONType:
            import json

            # A text is taken for JSON, and None for no value.
            return json.dumps(value) if value is None or isinstance(value, str) else value
        if isinstance(value, list | tuple):
            return [self._plain(each, 0) for each in value]
        if value is None or isinstance(value, str | int | float | dict):
            return value
        return self._plain(value.value, 0) if isinstance(value, Enum) else str(value)

    def value_of_default(self, context: Callable[[str], ParameterContext]) -> Any:
        """Return the value where none was given.

        Args:
            context: Makes the context of deploy-time functions.

        Raises:
            InvalidParameter: Where a function as the default fails, or gives a value of another
                type.
        """
        if self.default is None and self.multiple:
            return ()
        if self.default is None and self.type is bool and self.click_options.get("is_flag"):
            return False
        if not callable(self.default):
            return self.default
        try:
            value = self.default(context(self.name))
        except Exception as error:
            raise InvalidParameter(
                f"The default of parameter {self.name!r} is a function, and it failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        try:
            return None if value is None else self.convert(value)
        except InvalidParameter as error:
            raise InvalidParameter(
                f"{error} The function that is its default has returned that: give the parameter "
                "the type of what it returns."
            ) from error

    choices: list[Any] | None = None  # while the choices themselves are converted

    def _convert_one(self, value: Any, place: int = 0) -> Any:
        kind = self.type[place] if isinstance(self.type, tuple) else self.type
        known = _CONVERTERS.get(kind)
        if known is None:
            converted = self._made_by(kind, value)
        else:
            try:
                converted = known(value)
            except (ValueError, OverflowError, RecursionError):
                raise InvalidParameter(
                    f"Parameter {self.name!r} has the value {shown(value)}, "
                    f"which is not {_EXPECTED[kind]}."
                ) from None
        if self.choices is not None and converted not in self.choices:
            raise InvalidParameter(
                f"Parameter {self.name!r} has the value {shown(value)}, which is not one of its "
                f"choices: {', '.join(map(str, self.choices))}."
            )
        return converted

    def _made_by(self, kind: Any, value: Any) -> Any:
        """The value that a type of click, a class or a function makes of what was written."""
        by_click = _is_click_type(kind)
        # What is not text is a value of Python: from a program, or a default. (Types of click take
        # their own results by contract.)
        if not by_click and not isinstance(value, str):
            return value
        try:
            return kind.convert(value, None, None) if by_click else kind(value)
        except Exception as error:
            said = getattr(error, "message", None) or str(error) or type(error).__name__
            raise InvalidParameter(
                f"Parameter {self.name!r} has the value {shown(value)}, which is not of the type "
                f"{type_name(kind)}: {str(said).rstrip('.')}."
            ) from error

    def __repr__(self) -> str:
        return f"<Parameter {self.name}: {type_name(self.type)}>"


def type_name(type: Any) -> str:
    """Return the name of a parameter's type, for people.

    Args:
        type: What the type of a parameter may be: a class, a type of click, JSONType, or a tuple of
            types for several values.
    """
    if type is JSONType:
        return "JSON"
    if isinstance(type, tuple):
        return f"<{' '.join(map(type_name, type))}>"
    if _is_click_type(type):
        return str(type.name)
    return str(getattr(type, "__name__", None) or type.__class__.__name__)


# ------------------------------------------------------------ types


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidParameter(
            f"{shown(name)} cannot be the name of a parameter: use letters, digits, - and _."
        )
    return name


def _checked_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(options.keys() - _CLICK_OPTIONS)
    if unknown:
        raise InvalidParameter(
            f"Parameter {name!r} takes no {unknown[0]}=."
            f"{did_you_mean(unknown[0], {*_CLICK_OPTIONS, *_OWN_OPTIONS} - {unknown[0]})}"
        )
    return options


_OWN_OPTIONS = ("default", "type", "help", "required", "show_default", "separator", "choices")


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
        pass  # what cannot be hashed is one of the types below, or none
    if _is_click_type(type):
        if type.name == "filename":  # an open file is nothing that later steps could read
            raise InvalidParameter(
                f"Parameter {name!r} has the type click.File, which opens the file here: use "
                "click.Path for its name, or IncludeFile for what it holds."
            )
        return type
    is_container = type in (list, dict, tuple, set, frozenset, bytes)  # of letters, they would be
    is_generic = get_origin(type) is not None
    if callable(type) and not is_container and not is_generic and not hasattr(type, "convert"):
        return type
    raise InvalidParameter(
        f"Parameter {name!r} has the type {shown(type)}: use str, int, float, bool, JSONType, a "
        "type of click, or a class or function that makes the value from a text."
    )


def _is_click_type(kind: Any) -> bool:
    # By its looks: click is not imported for flows that have no use for it here, and Metaflow
    # brings a copy of its own.
    return (
        not isinstance(kind, type)
        and callable(getattr(kind, "convert", None))
        and hasattr(kind, "name")
    )


def _type_of(default: Any) -> Any:
    for kind in (bool, int, float):  # a bool is an int too: it comes first
        if isinstance(default, kind):
            return kind
    if isinstance(default, list | dict):
        return JSONType
    kind = default.__class__  # of a Path, a Decimal, a member of an Enum
    return str if callable(default) or kind.__module__ == "builtins" else kind


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
    """Yield what is wrong with the parameters of a flow taken together, a sentence each.

    Args:
        parameters: The parameters, by attribute.
    """
    seen: dict[str, str] = {}
    for parameter in parameters.values():
        plain = plain_name(parameter.name)
        if plain in RESERVED:
            yield (
                f"Parameter {parameter.name!r} has the name of an option of run: "
                "choose another name."
            )
        if plain in seen:
            yield (
                f"The parameters {seen[plain]!r} and {parameter.name!r} cannot be distinguished: "
                "names must differ in more than capitals, - and _."
            )
        seen[plain] = parameter.name


def resolve(
    definition: FlowDefinition,
    given: Mapping[str, Any],
    context_factory: Callable[[str], ParameterContext],
) -> dict[str, Any]:
    """Return the values of all parameters of a flow, by attribute, in the order declared.

    `given` maps names to values (None counts as not given), which are converted here, each once:
    a ConvertedValue is taken as it is. `context_factory` makes the context of a default that is a
    function from the parameter's name.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        given: Values by name: texts, Python values, or ConvertedValues.
        context_factory: Makes the context of deploy-time functions, by the name of the parameter.

    Raises:
        InvalidParameter: For an unknown name, a value of the wrong type, a missing required one,
            and a declaration that cannot be used.
    """
    for problem in declaration_problems(definition.parameters):
        raise InvalidParameter(problem)
    values = _given(definition, given)
    for attribute, parameter in definition.parameters.items():
        if attribute not in values:
            values[attribute] = parameter.value_of_default(context_factory)
        value = values[attribute]
        if parameter.required and (value is None or (parameter.multiple and not value)):
            raise InvalidParameter(
                f"Parameter {parameter.name!r} is required: give it with --{parameter.name}."
            )
    return {attribute: values[attribute] for attribute in definition.parameters}


def _given(definition: FlowDefinition, given: Mapping[str, Any]) -> dict[str, Any]:
    known = {plain_name(each.name): each for each in definition.parameters.values()}
    known = {**{plain_name(name): each for name, each in definition.parameters.items()}, **known}
    values: dict[str, Any] = {}
    for name, value in given.items():
        parameter = known.get(plain_name(name))
        if parameter is None:
            names = [each.name for each in definition.parameters.values()]
            there = f"It has: {', '.join(names)}." if names else "It has none."
            raise InvalidParameter(
                f"Flow {definition.name} has no parameter {name!r}."
                f"{did_you_mean(name, names)} {there}"
            )
        if isinstance(value, ConvertedValue):
            values[parameter.attribute] = value.value
        elif value is not None:
            values[parameter.attribute] = parameter.convert(value)
    return values


def unconverted(parameter: Parameter | None, value: Any) -> Any:
    """Return what another process, which converts it, is sent as a value of a parameter: JSON can
    hold it.

    Args:
        parameter: The parameter; None where the flow has none of that name.
        value: A ConvertedValue, or what was given.
    """
    if not isinstance(value, ConvertedValue):
        return value
    if value.written is not None or parameter is None:
        return value.written
    return parameter.plain(value.value)


def plain_name(name: str) -> str:
    """Return the name in the form in which names of parameters are compared.

    Args:
        name: The name as it was declared, or as it was given on the command line.
    """
    return name.lower().replace("-", "_")


# IncludeFile: a parameter whose value is what a file holds when the run starts.


class IncludedFile:
    """What Metaflow keeps of an included file in place of its content. aflow keeps the content
    itself, so that none is ever made here: programs ask whether a value is one."""

    def __init__(self, descriptor: dict[str, Any]) -> None:
        self.descriptor = descriptor


class IncludeFile(Parameter):
    """A file that a run is started with: `data = IncludeFile("data", default="data.csv")`.

    On the command line it is a path; `self.data` is what the file holds, as a text (in `encoding`,
    UTF-8 by default) or, with `is_text=False`, as bytes; with a `parser` (a function, or its dotted
    path) what that makes of it. The file is read once, when the run starts.
    """

    def __init__(
        self,
        name: str,
        required: bool | None = None,
        is_text: bool | None = None,
        encoding: str | None = None,
        help: str | None = None,
        parser: str | Callable[[Any], Any] | None = None,
        default: Any = None,
        show_default: bool | None = None,
        **click_options: Any,
    ) -> None:
        super().__init__(
            name,
            default=default,
            type=str,
            help=help,
            required=required,
            show_default=show_default,
            choices=click_options.pop("choices", None),
            **_checked_options(name, click_options),
        )
        if self.multiple or self.nargs > 1:
            raise InvalidParameter(f"Parameter {name!r} is an IncludeFile, which takes one path.")
        self.is_text = True if is_text is None else is_text
        self.encoding = encoding or "utf-8"
        self.parser = parser

    def content(self, path: str, read: Callable[[str], bytes]) -> Any:
        """Return the value: what the file at `path` holds.

        Args:
            path: The path or URL of the file.
            read: Reads a file, by its path.

        Raises:
            InvalidParameter: Where it cannot be read, decoded or parsed.
        """
        try:
            data = read(path)
        except OSError as error:
            raise InvalidParameter(
                f"The file {path} of parameter {self.name!r} cannot be read: "
                f"{error.strerror or error}."
            ) from error
        try:
            value: Any = data.decode(self.encoding) if self.is_text else data
        except (ValueError, LookupError, TypeError) as error:  # of codecs, each has its own
            raise InvalidParameter(
                f"The file {path} of parameter {self.name!r} is not text in {self.encoding}: give "
                "another encoding=, or is_text=False."
            ) from error
        return value if self.parser is None else self._parsed(path, value)

    def _parsed(self, path: str, value: Any) -> Any:
        try:
            return imported(self.parser)(value)  # type: ignore[arg-type]  # there is one
        except Exception as error:
            raise InvalidParameter(
                f"The file {path} of parameter {self.name!r} does not parse: "
                f"{type(error).__name__}: {error}"
            ) from error
