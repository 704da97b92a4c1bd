"""Parameters: values that are set when a run starts, and that no step can change."""

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

# Options of `run`: a parameter of the same name would be ambiguous on the command line.
RESERVED = frozenset({
    "decospecs", "fail_fast", "help", "isolation", "max_log_size", "max_num_splits", "max_workers",
    "namespace", "obj", "origin_run_id", "params", "progress", "run_id", "run_id_file",
    "runner_attribute_file", "tag", "tags", "user_namespace", "with",
})  # fmt: skip

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]{0,199}\Z")
# Other keywords of click options. `cls` and `expose_value` are not allowed: with them aflow might
# not get the value.
_CLICK_OPTIONS = frozenset({
    "allow_from_autoenv", "callback", "confirmation_prompt", "count", "deprecated", "envvar",
    "flag_value", "hidden", "hide_input", "is_eager", "is_flag", "metavar", "multiple",
    "nargs", "prompt", "prompt_required", "shell_complete", "show_choices", "show_envvar",
})  # fmt: skip
_BOOLS = {
    **dict.fromkeys(("true", "1", "yes", "y", "on", "t"), True),
    **dict.fromkeys(("false", "0", "no", "n", "off", "f"), False),
}


class JSONTypeClass:
    """The type of a parameter whose value is JSON."""

    name = "JSON"

    def __repr__(self) -> str:
        return "JSONType"


JSONType = JSONTypeClass()


class ParameterContext(NamedTuple):
    """The argument of a function that computes the default of a parameter or config."""

    flow_name: str
    user_name: str
    parameter_name: str
    logger: Callable[[str], None]
    ds_type: str
    configs: Mapping[str, Any]


class ConvertedValue(NamedTuple):
    """A value that already has the type of its parameter, and must not be converted again.

    A second conversion may change it: the JSON text '"1"' becomes a str first, then a number.
    `written` is the text from which it was converted, or a sequence of texts; None if it was not
    converted from text.
    """

    value: Any
    written: Any = None


class Parameter:
    """A value that is set when a run starts: `alpha = Parameter("alpha", default=0.1)`.

    `type` is str, int, float, bool or JSONType; None means the type of the default, or str without
    a default. It may also be a type of click (`click.IntRange(1, 9)`), a tuple of types, or a class
    or function that converts the text (`pathlib.Path`). `default` is a value, or a function of a
    ParameterContext that is called when a run starts. Without a default the value is None, unless
    the parameter is `required`. With a `separator` the value is a list of values of the type. With
    `choices`, or the type `Literal["a", "b"]`, the value must be one of these. Other keywords are
    those of click options, such as `is_flag`, `multiple`, `nargs` and `hidden`. Raises
    InvalidParameter if the declaration is invalid.

    `name` is the name of the command-line option, `attribute` the attribute of the flow class.
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
        # `multiple` collects repeated options; `nargs` is the number of values of each.
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
        # There is no __set__: once it was read, the value in the instance's __dict__ takes
        # precedence.
        return self if instance is None else instance.__getattr__(self.attribute)

    def convert(self, value: Any) -> Any:
        """Convert a text or a Python value to the type of the parameter.

        Args:
            value: A text from the command line or a file, or a Python value.

        Returns:
            The converted value; a list with a `separator`, a tuple with `multiple` or `nargs`.

        Raises:
            InvalidParameter: If the value does not fit the type; the error names the parameter, the
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
        """Convert one value, or `nargs` values to a tuple."""
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
            type = Parameter.type_of(self.click_options.get("flag_value", True))
        return _checked_type(self.name, type, self._sample(default))

    def _sample(self, default: Any) -> Any:
        """Return one element of the default, from which an undeclared type is inferred."""
        levels = bool(self.separator) + self.multiple + (self.nargs > 1)
        for _ in range(levels):
            if not isinstance(default, list | tuple):
                return default
            default = default[0] if default else None
        return default

    @staticmethod
    def type_of(value: Any) -> Any:
        """Return the type of a parameter with this default and no declared type.

        Args:
            value: The default; the type is `str` if it is None.
        """
        for kind in (bool, int, float):  # bool first, because it is a subclass of int
            if isinstance(value, kind):
                return kind
        if isinstance(value, list | dict):
            return JSONType
        kind = value.__class__  # e.g. Path, Decimal, an Enum
        return str if callable(value) or kind.__module__ == "builtins" else kind

    def plain(self, value: Any) -> Any:
        """Return a value in a form that JSON can represent; the inverse of `convert`.

        Args:
            value: A result of `convert`; members of enums become their values, and other objects
                become text.
        """
        return self._plain(value, bool(self.separator) + self.multiple + (self.nargs > 1))

    def _plain(self, value: Any, levels: int, place: int = 0) -> Any:
        if levels and isinstance(value, list | tuple):
            return [self._plain(each, levels - 1, place) for place, each in enumerate(value)]
        kind = self.type[place] if isinstance(self.type, tuple) else self.type
        if kind is JSONType:
            import json

            # `convert` parses a str as JSON, and None means no value.
            return json.dumps(value) if value is None or isinstance(value, str) else value
        if isinstance(value, list | tuple):
            return [self._plain(each, 0) for each in value]
        if value is None or isinstance(value, str | int | float | dict):
            return value
        return self._plain(value.value, 0) if isinstance(value, Enum) else str(value)

    def value_of_default(self, context: Callable[[str], ParameterContext]) -> Any:
        """Return the value of the parameter if none is given.

        Args:
            context: Returns the argument for a function that is the default, by parameter name.

        Raises:
            InvalidParameter: If the default is a function that raises, or returns a value of
                another type.
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

    choices: list[Any] | None = None  # None while __init__ converts the choices themselves

    def _convert_one(self, value: Any, place: int = 0) -> Any:
        kind = self.type[place] if isinstance(self.type, tuple) else self.type
        convert, expected = _CONVERTERS.get(kind, (None, ""))
        if convert is None:
            converted = self._made_by(kind, value)
        else:
            try:
                converted = convert(value)
            except (ValueError, OverflowError, RecursionError):
                raise InvalidParameter(
                    f"Parameter {self.name!r} has the value {shown(value)}, "
                    f"which is not {expected}."
                ) from None
        if self.choices is not None and converted not in self.choices:
            raise InvalidParameter(
                f"Parameter {self.name!r} has the value {shown(value)}, which is not one of its "
                f"choices: {', '.join(map(str, self.choices))}."
            )
        return converted

    def _made_by(self, kind: Any, value: Any) -> Any:
        """Convert a value by a type of click, a class or a function."""
        by_click = _is_click_type(kind)
        # Anything but text is already a value, from a program or a default. (Types of click accept
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
    """Return the name of a parameter's type for messages.

    Args:
        type: The type of a parameter: a class, a function, a type of click, JSONType, or a tuple of
            types.
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
    """Return the type and choices of `Literal["a", "b"]`; other types are returned unchanged."""
    if type is None or get_origin(type) is not Literal:
        return type, choices
    values = get_args(type)
    return values[0].__class__, values if choices is None else choices


def _checked_type(name: str, type: Any, default: Any) -> Any:
    """Return the declared type after a check, or else the type of the default."""
    if type is None:
        return Parameter.type_of(default)
    if type is JSONTypeClass:
        return JSONType
    try:
        if type in _CONVERTERS:
            return type
    except TypeError:
        pass  # not hashable: either one of the types below, or invalid
    if _is_click_type(type):
        if type.name == "filename":  # an open file cannot be stored for later steps
            raise InvalidParameter(
                f"Parameter {name!r} has the type click.File, which opens the file here: use "
                "click.Path for its name, or IncludeFile for what it holds."
            )
        return type
    is_container = type in (list, dict, tuple, set, frozenset, bytes)  # list("ab") is ["a", "b"]
    is_generic = get_origin(type) is not None
    if callable(type) and not is_container and not is_generic and not hasattr(type, "convert"):
        return type
    raise InvalidParameter(
        f"Parameter {name!r} has the type {shown(type)}: use str, int, float, bool, JSONType, a "
        "type of click, or a class or function that makes the value from a text."
    )


def _is_click_type(kind: Any) -> bool:
    # Duck typing, because click is only imported if it is needed, and Metaflow vendors a copy of
    # it.
    return (
        not isinstance(kind, type)
        and callable(getattr(kind, "convert", None))
        and hasattr(kind, "name")
    )


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


# By type: the function that converts a value, and what it accepts, for errors.
_CONVERTERS: dict[Any, tuple[Callable[[Any], Any] | None, str]] = {
    str: (_to_str, "a text (type str)"),
    int: (_to_int, "a whole number (type int)"),
    float: (_to_float, "a number (type float)"),
    bool: (_to_bool, "one of true, false, yes, no, 1, 0 (type bool)"),
    JSONType: (_to_json, 'JSON (such as {"a": 1})'),
}


# ------------------------------------------------------------ the parameters of a flow


def declaration_problems(parameters: Mapping[str, Parameter]) -> Iterator[str]:
    """Yield an error message for each parameter whose name is reserved or a duplicate.

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

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        given: Values by name: texts or Python values, which are converted; ConvertedValues, which
            are not; None counts as not given.
        context_factory: Returns the argument for a default that is a function, by parameter name.

    Raises:
        InvalidParameter: If a name is unknown, a value has the wrong type, a required one is
            missing, or a declaration is invalid.
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
    """Return a value of a parameter for another process that converts it again.

    Args:
        parameter: The parameter; None if the flow has no parameter of the name.
        value: A ConvertedValue, or an unconverted value, which is returned unchanged.
    """
    if not isinstance(value, ConvertedValue):
        return value
    if value.written is not None or parameter is None:
        return value.written
    return parameter.plain(value.value)


def plain_name(name: str) -> str:
    """Return a parameter name in normalized form: lowercase, with _ instead of -.

    Args:
        name: The name as declared, or from the command line.
    """
    return name.lower().replace("-", "_")


# IncludeFile: a parameter whose value is the content of a file when the run starts.


class IncludedFile:
    """Metaflow's reference to the content of an included file, for `isinstance` checks in programs.

    aflow stores the content itself, and creates no instances.
    """

    def __init__(self, descriptor: dict[str, Any]) -> None:
        self.descriptor = descriptor


class IncludeFile(Parameter):
    """A parameter with the content of a file: `data = IncludeFile("data", default="data.csv")`.

    On the command line it is a path. `self.data` is the content as a str, decoded with `encoding`
    (default UTF-8), or as bytes if `is_text` is False; with a `parser` (a function, or its dotted
    path) it is the result of the parser. The file is read once, when the run starts.
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
        """Return the value of the parameter: the content of a file, decoded and parsed.

        Args:
            path: The path or URL of the file.
            read: Returns the bytes of a file, by its path.

        Raises:
            InvalidParameter: If the file cannot be read, decoded or parsed.
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
        except (ValueError, LookupError, TypeError) as error:  # codecs raise different errors
            raise InvalidParameter(
                f"The file {path} of parameter {self.name!r} is not text in {self.encoding}: give "
                "another encoding=, or is_text=False."
            ) from error
        return value if self.parser is None else self._parsed(path, value)

    def _parsed(self, path: str, value: Any) -> Any:
        try:
            return imported(self.parser)(value)  # type: ignore[arg-type]  # not None here
        except Exception as error:
            raise InvalidParameter(
                f"The file {path} of parameter {self.name!r} does not parse: "
                f"{type(error).__name__}: {error}"
            ) from error
