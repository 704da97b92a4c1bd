"""Configs: values that are read before the flow is defined, so that its decorators can use them.

class MyFlow(FlowSpec):
    config = Config("config", default="config.json")

    @retry(times=config.retries)            # evaluated when the values are known
    @environment(vars={"A": config_expr("config.env.upper()")})
    @step
    def start(self):
        self.config.retries                 # the value, read like an artifact
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from aflow.errors import InvalidConfig, MissingExtra
from aflow.flow.names import shown

_UNPACKED = "_aflow_unpacked_"


class ConfigValue(dict[Any, Any]):
    """The value of a config: an immutable dict whose keys can be read as attributes."""

    def __init__(self, data: Mapping[Any, Any]) -> None:
        super().__init__({key: _frozen(value) for key, value in data.items()})

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"The config has no key {key!r}.") from None

    def copy(self) -> ConfigValue:
        """Return the config itself: it is immutable. See `to_dict` for a copy to change."""
        return self

    def to_dict(self) -> dict[Any, Any]:
        """Return a mutable copy, with plain dicts and lists."""
        return {key: _thawed(value) for key, value in self.items()}

    def __reduce__(self) -> Any:
        return (ConfigValue, (self.to_dict(),))

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("A config cannot be changed: take a copy with .to_dict().")

    __setitem__ = __delitem__ = __setattr__ = __delattr__ = __ior__ = _refuse
    clear = update = setdefault = pop = popitem = _refuse


def _frozen(value: Any) -> Any:
    if isinstance(value, ConfigValue):
        return value
    if isinstance(value, Mapping):
        return ConfigValue(value)
    if isinstance(value, list | tuple | set):
        return _alike(value, map(_frozen, value))
    return value


def _thawed(value: Any) -> Any:
    if isinstance(value, ConfigValue):
        return value.to_dict()
    if isinstance(value, list | tuple | set):
        return _alike(value, map(_thawed, value))
    return value


def _alike(value: Any, items: Iterable[Any]) -> Any:
    """Return the items in a collection of the same type as `value`."""
    # The constructor of a named tuple takes its items as separate arguments.
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


# ------------------------------------------------------------ evaluated later


class Delayed:
    """An expression of config values, which is evaluated when the values are known.

    `d.name`, `d["key"]` and `**d` are also such expressions.
    """

    def __init__(self, text: str, evaluate: Callable[[Mapping[str, Any]], Any]) -> None:
        self._text = text
        self._evaluate = evaluate

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("__", "_aflow")):
            raise AttributeError(name)
        return Delayed(f"{self._text}.{name}", lambda values: getattr(self._evaluate(values), name))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str) and key.startswith(_UNPACKED):
            return self
        return Delayed(
            f"{self._text}[{key!r}]",
            lambda values: self._evaluate(values)[evaluated(key, values)],
        )

    def get(self, key: Any, default: Any = None) -> Any:
        """Return an expression for the value of a key, or a default.

        Args:
            key: The key.
            default: The result if the key does not exist.
        """
        text = f"{self._text}.get({key!r}, {default!r})"
        return Delayed(text, lambda values: self._evaluate(values).get(key, default))

    def keys(self) -> list[str]:
        """Return one placeholder key for `**d`; `evaluated` replaces it by the actual items."""
        return [f"{_UNPACKED}{id(self)}"]

    def __call__(self, context: Any) -> Any:
        """Return the value: the expression can be the default of a parameter."""
        return evaluated(self, context.configs)

    def __repr__(self) -> str:
        return f"config_expr({self._text!r})"


def config_expr(text: str) -> Any:
    """Return an expression of config values from its source: `config_expr("config.size * 2")`.

    Args:
        text: A Python expression in which each config is a variable. It is evaluated with the
            globals of the calling module when the values of the configs are known; errors are
            raised then, as InvalidConfig.
    """
    frame = inspect.currentframe()
    caller = None if frame is None else frame.f_back
    names = {} if caller is None else caller.f_globals

    def evaluate(values: Mapping[str, Any]) -> Any:
        return eval(text, names, dict(values))  # noqa: S307 -- text of the flow's own source

    return Delayed(text, evaluate)


def is_delayed(value: Any) -> bool:
    """Return whether a value contains an expression that must still be evaluated.

    Args:
        value: The value of an option: a plain value, a Config, an expression, or lists, tuples and
            mappings of these.
    """
    if isinstance(value, Delayed):
        return True
    if isinstance(value, Mapping):
        return any(_is_unpacked(key) or is_delayed(each) for key, each in value.items())
    return isinstance(value, list | tuple) and any(map(is_delayed, value))


def evaluated(value: Any, values: Mapping[str, Any]) -> Any:
    """Return a value with all expressions in it evaluated.

    Args:
        value: The value of an option, as for `is_delayed`; lists, tuples and mappings are copied,
            other values are returned unchanged.
        values: The values of the flow's configs, by name and by attribute.

    Raises:
        InvalidConfig: If an expression raises an exception; the error quotes the expression.
    """
    if isinstance(value, Delayed):
        try:
            return value._evaluate(values)
        except Exception as error:
            raise InvalidConfig(
                f"The expression {value._text!r} of configs cannot be evaluated: "
                f"{type(error).__name__}: {error}"
            ) from error
    if isinstance(value, Mapping) and is_delayed(value):
        found: dict[Any, Any] = {}
        for key, each in value.items():
            if _is_unpacked(key):
                found.update(evaluated(each, values))
            else:
                found[key] = evaluated(each, values)
        return found
    if isinstance(value, list | tuple):
        return _alike(value, [evaluated(each, values) for each in value])
    return value


def _is_unpacked(key: object) -> bool:
    return isinstance(key, str) and key.startswith(_UNPACKED)


# ------------------------------------------------------------ declared


class Config(Delayed):
    """A config of a flow: `config = Config("config", default="config.json")`.

    The value comes from the first of: `--config-value NAME JSON`, the file of `--config NAME PATH`,
    the file `default`, `default_value`. Otherwise it is None, or an error if the config is
    `required`. `default` and `default_value` may be functions of a ParameterContext. A text is
    parsed by `parser` (a function of the text, or its dotted path), or else as JSON. The value must
    be a mapping, unless the config is `plain`; then any value is valid, and a text without a parser
    is not parsed.

    Raises InvalidConfig if the declaration is invalid.
    """

    _aflow_reads_artifact = True

    def __init__(
        self,
        name: Any,
        default: Any = None,
        default_value: Any = None,
        help: str | None = None,
        required: bool | None = None,
        parser: str | Callable[[str], Any] | None = None,
        plain: bool | None = False,
        **rest: Any,
    ) -> None:
        if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
            raise InvalidConfig(f"{shown(name)} cannot be the name of a config: use a word.")
        if default is not None and default_value is not None:
            raise InvalidConfig(f"Config {name!r} has both a default and a default_value.")
        if rest and set(rest) - {"show_default"}:
            raise InvalidConfig(f"Config {name!r} has no option {next(iter(rest))!r}.")
        super().__init__(name, lambda values: values[name])
        self.name = name
        self._default = default
        self._default_value = default_value
        self._help = help
        self._required = bool(required) and default is None and default_value is None
        self._parser = parser
        self._plain = bool(plain)
        self._attribute = name

    def __set_name__(self, owner: Any, attribute: str) -> None:
        self._attribute = attribute

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        # There is no __set__: once it was read, the value in the instance's __dict__ takes
        # precedence.
        return self if instance is None else instance.__getattr__(self._attribute)

    def __repr__(self) -> str:
        return f"<Config {self.name}>"


def value_of(config: Config, raw: Any, where: str) -> Any:
    """Parse and check the value of a config.

    Args:
        config: The declaration.
        raw: A text to parse, or a parsed value; None for no value.
        where: The source of the value, for error messages: a file or an option.

    Returns:
        The value: a ConfigValue, or any value if the config is `plain`; None for no value.

    Raises:
        InvalidConfig: If the text cannot be parsed, or if the value is not a mapping and the config
            is not `plain`.
    """
    value = raw
    if isinstance(raw, str):
        value = _parsed(config, raw, where)
    if value is None or config._plain:
        return value
    if not isinstance(value, Mapping):
        raise InvalidConfig(
            f"Config {config.name!r}, {where}, is {shown(value)}: it has to be a mapping of keys "
            "and values (or the config has to be plain=True)."
        )
    return ConfigValue(value)


def _parsed(config: Config, text: str, where: str) -> Any:
    parser = config._parser
    if parser is None and config._plain:
        return text
    try:
        if parser is not None:
            return imported(parser)(text)
        import json  # only needed for flows with configs

        return json.loads(text)
    except Exception as error:
        raise InvalidConfig(
            f"Config {config.name!r}, {where}, does not parse: {type(error).__name__}: {error}"
        ) from error


def imported(parser: str | Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the function of a parser, importing it if it is given by name.

    Exceptions of the import are raised unchanged.

    Args:
        parser: A function, or its name as `module.function`; a name without module is one of the
            parsers below.

    Raises:
        TypeError: If the object is not callable.
    """
    found: Any = parser
    if isinstance(parser, str):
        from importlib import import_module

        module, _, name = parser.rpartition(".")
        # A path that starts with a dot is relative to Metaflow, whose parsers are in this module.
        within = not module or module.startswith(".")
        found = getattr(import_module(__name__ if within else module), name)
    if not callable(found):
        raise TypeError(f"{shown(found)} is not a function")
    function: Callable[[Any], Any] = found
    return function


def names_of(configs: Mapping[str, Config], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of configs for expressions, by both name and attribute.

    Args:
        configs: The declarations, by attribute.
        values: The values, by attribute.
    """
    by_name = {config.name: values[attribute] for attribute, config in configs.items()}
    return {**by_name, **values}


# Parsers for configs and included files.


_PIN = r"([A-Za-z0-9._-]+(?:\[[^\]]*\])?)\s*(.*)\Z"


def yaml_parser(content: str) -> Any:
    """Return the values in a YAML document. Needs PyYAML.

    Args:
        content: The YAML document; it is read with `safe_load`.

    Raises:
        MissingExtra: If PyYAML is not installed.
    """
    return _yaml().safe_load(content)


def requirements_txt_parser(content: str) -> dict[str, Any]:
    """Return the requirements in a requirements.txt as options of `@pypi_base`.

    The keys are `packages` (versions by name), and `python` if there is a line `# python==...`. A
    version keeps its marker (`; sys_platform == "win32"`) and digests (`--hash=sha256:...`); a URL
    (`@ git+https://...`) replaces it.

    Args:
        content: The text of the file.

    Raises:
        ValueError: If a line is not a package, such as the options -e and -r, whose files exist
            only on this machine.
    """
    packages: dict[str, str] = {}
    found: dict[str, Any] = {"packages": packages}
    for line in content.replace("\\\n", " ").splitlines():
        note = re.match(r"\s*#\s*python\s*==\s*(\S+)", line)
        if note:
            found["python"] = note[1]
        # A URL may contain a `#`.
        text = re.sub(r"(?:^|\s)#.*", "", line).strip()
        if text.startswith("-"):
            raise ValueError(f"the option {text!r} names no package")
        if text:
            _add(packages, text)
    return found


def pyproject_toml_parser(content: str) -> dict[str, Any]:
    """Return the requirements in a pyproject.toml as options of `@pypi_base`.

    The keys are `packages` from `project.dependencies`, and `python` from
    `project.requires-python`.

    Args:
        content: The text of the file; without a `project` table there are no packages.
    """
    import tomllib  # few flows need it, and a global import would slow down each command

    project = tomllib.loads(content).get("project", {})
    packages: dict[str, str] = {}
    for text in project.get("dependencies", []):
        _add(packages, text.strip())
    found: dict[str, Any] = {"packages": packages}
    if "requires-python" in project:
        found["python"] = _version(project["requires-python"])
    return found


def conda_environment_yml_parser(content: str) -> dict[str, Any]:
    """Return the `packages` and `python` of an environment.yml, without its pip section.

    Needs PyYAML.

    Args:
        content: The YAML document, with `dependencies` in conda's format (`numpy=1.26`).

    Raises:
        MissingExtra: If PyYAML is not installed.
        ValueError: If the document is not a mapping, or a dependency is not a package.
    """
    packages: dict[str, str] = {}
    found = _yaml().safe_load(content) or {}
    if not isinstance(found, Mapping):
        raise ValueError("an environment is a mapping with the key dependencies")
    for each in found.get("dependencies") or []:
        if isinstance(each, str):
            _add(packages, re.sub(r"^([\w.-]+)\s*=\s*([^=\s].*)$", r"\1==\2", each.strip()))
    python = packages.pop("python", None)
    return {"packages": packages, **({} if python is None else {"python": python})}


def _add(packages: dict[str, str], text: str) -> None:
    found = re.match(_PIN, text)
    if found is None:
        raise ValueError(f"{text!r} names no package")
    digests = re.findall(r"\s--hash=\S+", f" {found[2]}")
    version, mark, marker = re.sub(r"(?:^|\s)--hash=\S+", "", found[2]).partition(";")
    version = version.strip() if version.startswith("@") else _version(version)
    text = f"{version}; {marker.strip()}" if mark else version
    packages[found[1]] = text + "".join(digests)


def _version(text: str) -> str:
    """Return a version for @pypi: without `==`; other comparisons are unchanged."""
    text = text.replace(" ", "")
    return text.removeprefix("==") if "," not in text else text


def _yaml() -> Any:
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingExtra("YAML is read with PyYAML: install aflow-runtime[yaml].") from error
    return yaml
