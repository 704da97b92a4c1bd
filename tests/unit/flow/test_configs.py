"""Configs: immutable values, expressions of them, and how they are declared."""

from __future__ import annotations

import copy
import json
import pickle
from collections import namedtuple
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.errors import InvalidConfig, InvalidDecorator
from aflow.flow.configs import (
    Config,
    ConfigValue,
    conda_environment_yml_parser,
    config_expr,
    evaluated,
    is_delayed,
    names_of,
    pyproject_toml_parser,
    requirements_txt_parser,
    value_of,
)
from aflow.flow.definition import FlowDefinition
from aflow.flow.parameters import ParameterContext
from aflow.flow.spec import define
from aflow.task.config_binding import GivenConfigs, configured
from tests.unit.flow.flows import MakeFlow, running

SIZE = 3  # what expressions in this file may use
Pair = namedtuple("Pair", "left right")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=4)


# ------------------------------------------------------------ values


def test_a_config_value_is_a_dict_whose_keys_are_attributes() -> None:
    value = ConfigValue({"a": {"b": [{"c": 1}]}, "p": Pair({"x": 1}, {2}), "t": ({"y": 2},)})

    assert 1 == value.a.b[0].c == value["a"]["b"][0]["c"]
    assert (1, {2}, Pair) == (value.p.left.x, value.p.right, type(value.p))
    assert 2 == value.t[0].y
    assert ConfigValue(value).a is value.a


def test_a_key_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError) as caught:
        ConfigValue({"a": 1}).b  # noqa: B018
    assert "The config has no key 'b'." == str(caught.value)
    assert not hasattr(ConfigValue({}), "__array__")


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(a=2),
        lambda value: value.setdefault("b", 1),
        lambda value: value.pop("a"),
        lambda value: value.popitem(),
        lambda value: value.clear(),
        lambda value: value.__setitem__("a", 2),
        lambda value: value.__delitem__("a"),
        lambda value: setattr(value, "a", 2),
        lambda value: delattr(value, "a"),
        lambda value: value.__ior__({"a": 2}),
    ],
)
def test_a_config_value_cannot_be_changed(change: Callable[[Any], object]) -> None:
    value = ConfigValue({"a": 1})

    with pytest.raises(TypeError) as caught:
        change(value)
    assert "A config cannot be changed: take a copy with .to_dict()." == str(caught.value)
    assert {"a": 1} == value


def test_what_to_dict_gives_can_be_changed() -> None:
    value = ConfigValue({"a": {"b": [{"c": 1}]}, "p": Pair({"x": 1}, 2)})
    plain = value.to_dict()
    plain["a"]["b"][0]["c"] = 5

    assert (5, 1) == (plain["a"]["b"][0]["c"], value.a.b[0].c)
    assert {type(plain), type(plain["a"]), type(plain["p"].left)} == {dict}


def test_a_config_value_is_stored_and_copied_as_what_it_is() -> None:
    value = ConfigValue({"a": {"b": 1}})

    for another in (pickle.loads(pickle.dumps(value)), value.copy()):
        assert (value, 1) == (another, another.a.b)


@given(OBJECTS)
def test_a_config_value_survives_being_stored_and_copied(data: dict[str, Any]) -> None:
    value = ConfigValue(data)

    copies = (copy.deepcopy(value), copy.copy(value), value.copy())
    for another in (pickle.loads(pickle.dumps(value)), *copies):
        assert (ConfigValue, value) == (type(another), another)
    assert data == value.to_dict() == json.loads(json.dumps(value))


# ------------------------------------------------------------ expressions

VALUES = {"config": ConfigValue({"size": 2, "env": {"A": "x"}, "which": "size", "list": [7]})}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (config_expr("config.size * 2"), 4),
        (config_expr("config.size + SIZE"), 5),  # what the module has, it may use
        (config_expr("config").env.A, "x"),
        (config_expr("config")["env"]["A"], "x"),
        (config_expr("config.list")[0], 7),
        (config_expr("config")[config_expr("config.which")], 2),
        (Config("config")[Config("config").which], 2),
        (Config("config").env, {"A": "x"}),
        (Config("config").get("none", 9), 9),
        (Config("config").env.get("A"), "x"),
        (Config("config"), VALUES["config"]),
        ({"a": [Config("config").size, (Config("config").env,)]}, {"a": [2, ({"A": "x"},)]}),
        ({**config_expr("config.env"), "B": Config("config").size}, {"A": "x", "B": 2}),
        ({**Config("config").env}, {"A": "x"}),
        (Pair(Config("config").size, 1), Pair(2, 1)),
    ],
)
def test_an_expression_is_evaluated_when_the_values_are_known(
    expression: Any, value: object
) -> None:
    assert is_delayed(expression)
    assert value == evaluated(expression, VALUES)


def test_a_key_that_is_not_there_may_have_another_value() -> None:
    config = Config("config")

    assert (9, "x", None) == evaluated(
        (config.get("none", 9), config.env.get("A"), config_expr("config").get("none")), VALUES
    )


def test_all_of_a_config_can_be_unpacked_as_options() -> None:
    assert VALUES["config"] == evaluated({**Config("config")}, VALUES)


@pytest.mark.parametrize("value", [1, "config", None, [1, {"a": (2,)}], {"a": 1}, {1, 2}])
def test_what_is_no_expression_stays_as_it_is(value: object) -> None:
    assert not is_delayed(value)
    assert value == evaluated(value, VALUES)


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        (
            config_expr("config.nothing"),
            "The expression 'config.nothing' of configs cannot be evaluated: AttributeError: The "
            "config has no key 'nothing'.",
        ),
        (
            config_expr("other.size"),
            "The expression 'other.size' of configs cannot be evaluated: NameError: name 'other' "
            "is not defined",
        ),
        (
            Config("other").size,
            "The expression 'other.size' of configs cannot be evaluated: KeyError: 'other'",
        ),
        (
            config_expr("config").list[3],
            "The expression 'config.list[3]' of configs cannot be evaluated: IndexError: list "
            "index out of range",
        ),
        (
            Config("config").env.get("B").lower,
            "The expression \"config.env.get('B', None).lower\" of configs cannot be evaluated: "
            "AttributeError: 'NoneType' object has no attribute 'lower'",
        ),
    ],
    ids=repr,
)
def test_an_expression_that_cannot_be_evaluated_is_reported(expression: Any, sentence: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        evaluated({"x": [expression]}, VALUES)
    assert sentence == str(caught.value)


def test_an_expression_is_shown_as_it_is_written() -> None:
    assert "config_expr('config.a[0]')" == repr(config_expr("config").a[0])
    assert "<Config config>" == repr(Config("config"))


@pytest.mark.parametrize("of", [config_expr("config"), Config("config")])
def test_an_expression_can_be_copied(of: Any) -> None:
    assert VALUES["config"] == evaluated(copy.copy(of), VALUES)
    assert not hasattr(of, "__array__")


def test_names_are_those_of_configs_and_of_attributes() -> None:
    assert {"my-config": 1, "attribute": 1} == names_of(
        {"attribute": Config("my-config")}, {"attribute": 1}
    )


@pytest.mark.parametrize("default", [config_expr("config.size"), Config("config").size])
def test_an_expression_is_a_default_that_is_called_with_what_is_known(default: Any) -> None:
    context = ParameterContext("F", "ada", "p", lambda line: None, "local", VALUES)

    assert 2 == default(context)
    assert VALUES["config"] == Config("config")(context)


# ------------------------------------------------------------ declarations


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "a b"}, "'a b' cannot be the name of a config: use a word."),
        ({"name": 3}, "3 cannot be the name of a config: use a word."),
        (
            {"name": "c", "default": "x", "default_value": {}},
            "Config 'c' has both a default and a default_value.",
        ),
        ({"name": "c", "parse": 1}, "Config 'c' has no option 'parse'."),
    ],
)
def test_a_declaration_that_cannot_be_used_is_refused(arguments: Any, sentence: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        Config(**arguments)
    assert sentence == str(caught.value)


def test_a_name_may_have_dashes_and_show_default_is_taken_from_metaflow() -> None:
    assert "my-config" == Config("my-config", show_default=False).name


def pairs(text: str) -> Any:
    """A custom parser."""
    return dict(each.split("=") for each in text.split())


@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        ({}, '{"a": 1}', {"a": 1}),
        ({}, {"a": 1}, {"a": 1}),
        ({}, None, None),
        ({"parser": pairs}, "a=1 b=2", {"a": "1", "b": "2"}),
        ({"parser": f"{__name__}.pairs"}, "a=1", {"a": "1"}),
        ({"parser": "yaml_parser"}, "a: 1", {"a": 1}),
        ({"parser": ".plugins.parsers.yaml_parser"}, "a: 1", {"a": 1}),
        ({"parser": requirements_txt_parser}, "numpy==1.26", {"packages": {"numpy": "1.26"}}),
        ({"parser": pyproject_toml_parser}, "[project]", {"packages": {}}),
        ({"parser": conda_environment_yml_parser}, "dependencies: [x]", {"packages": {"x": ""}}),
        ({"plain": True}, "text", "text"),
        ({"plain": True}, [1], [1]),
        ({"plain": True, "parser": "json.loads"}, "[1]", [1]),
    ],
)
def test_a_value_is_parsed_from_a_text_or_taken_as_it_is(
    options: Any, given: object, expected: object
) -> None:
    value = value_of(Config("c", **options), given, "here")

    assert expected == value
    assert isinstance(value, ConfigValue) is isinstance(expected, Mapping)


@pytest.mark.parametrize(
    ("options", "given", "sentence"),
    [
        (
            {},
            "{x",
            "Config 'c', here, does not parse: JSONDecodeError: Expecting property name enclosed "
            "in double quotes: line 1 column 2 (char 1)",
        ),
        (
            {},
            "[1]",
            "Config 'c', here, is [1]: it has to be a mapping of keys and values (or the config "
            "has to be plain=True).",
        ),
        (
            {"parser": pairs},
            "a",
            "Config 'c', here, does not parse: ValueError: dictionary update sequence element #0 "
            "has length 1; 2 is required",
        ),
        (
            {"parser": "nowhere.parse"},
            "a",
            "Config 'c', here, does not parse: ModuleNotFoundError: No module named 'nowhere'",
        ),
        (
            {"parser": "json.nothing"},
            "a",
            "Config 'c', here, does not parse: AttributeError: module 'json' has no attribute "
            "'nothing'",
        ),
        (
            {"parser": "json.__name__", "plain": True},
            "a",
            "Config 'c', here, does not parse: TypeError: 'json' is not a function",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_reported(options: Any, given: str, sentence: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        value_of(Config("c", **options), given, "here")
    assert sentence == str(caught.value)


@given(st.text())
def test_any_text_is_a_value_or_is_refused_with_a_sentence(text: str) -> None:
    config = Config("c")
    try:
        said = json.dumps(value_of(config, text, "here"))
    except InvalidConfig as error:
        said = str(error)

    assert said.startswith("Config 'c', here, ") or json.loads(said) == json.loads(text)


# ------------------------------------------------------------ in a flow

FLOW = """
    from aflow import Config, FlowMutator, config_expr, project
    @project(name=config_expr("settings.project"))
    class F(FlowSpec):
        settings = Config("settings", default_value={"project": "p", "times": 1, "deep": {"k": 2}})
        later = Config("later", default_value=config_expr("settings.deep"))
        size = Parameter("size", default=config_expr("settings.times * 2"))
        whole = Parameter("whole", default=settings.deep)
        another = Parameter("another", type=JSONType, default=later)
        untouched = Parameter("untouched", default=1)
        @retry(times=settings.times, seconds=0)
        @environment(vars=config_expr("dict(settings.deep)"))
        @step
        def start(self):
            self.next({self.settings.first: self.end, "b": self.start}, condition="x")
        @step
        def end(self):
            pass
    """


def flow_with(make_flow: MakeFlow, **values: Any) -> FlowDefinition:
    given = {"settings": {"project": "p", "times": 3, "deep": {"k": 5}, "first": "a", **values}}
    return configured(make_flow(FLOW), GivenConfigs(values=given))


def test_a_flow_is_read_with_the_values_of_its_configs(make_flow: MakeFlow) -> None:
    definition = flow_with(make_flow)
    start = definition.steps["start"]

    retry, environment = start.decorator("retry"), start.decorator("environment")
    assert retry is not None
    assert environment is not None
    assert (3, {"k": "5"}) == (retry.times, environment.vars)
    assert definition.project is not None
    assert "p" == definition.project.name
    assert {"size": 6, "whole": {"k": 5}, "another": {"k": 5}, "untouched": 1} == {
        name: each.default for name, each in definition.parameters.items()
    }
    assert (("a", "end"), ("b", "start")) == definition.graph["start"].cases
    assert {"k": 5} == definition.constants["later"]


def test_a_decorator_is_known_by_its_name_before_the_values_are(make_flow: MakeFlow) -> None:
    definition = define(make_flow(FLOW))
    start = definition.steps["start"].decorators

    assert ["retry", "environment"] == [each.name for each in start]
    assert [False, False] == [each.repeatable for each in start]
    assert [("project", False)] == [
        (each.decorator_name, each.repeatable) for each in definition.decorators
    ]
    assert definition.is_late
    assert (("self.settings.first", "end"), ("b", "start")) == definition.graph["start"].cases


@pytest.mark.parametrize(
    ("values", "kind", "sentence"),
    [
        (
            {"times": -1},
            InvalidDecorator,
            "@retry: times must be a whole number from 0 to 50, not -1.",
        ),
        (
            {"project": "Not Allowed"},
            InvalidDecorator,
            "@project: name must be 1 to 128 lowercase letters, digits or _, not 'Not Allowed'.",
        ),
        (
            {"deep": 1},
            InvalidConfig,
            "Config 'later', by default, is 1: it has to be a mapping of keys and values (or the "
            "config has to be plain=True).",
        ),
    ],
)
def test_a_value_that_a_decorator_cannot_use_is_reported(
    make_flow: MakeFlow, values: Any, kind: Any, sentence: str
) -> None:
    with pytest.raises(kind) as caught:
        flow_with(make_flow, **values)
    assert sentence == str(caught.value)


def test_a_case_of_a_switch_that_configs_do_not_have_is_reported(make_flow: MakeFlow) -> None:
    with pytest.raises(InvalidConfig) as caught:
        configured(make_flow(FLOW))
    assert (
        "The expression 'self.settings.first' of configs cannot be evaluated: AttributeError: The "
        "config has no key 'first'." == str(caught.value)
    )


def test_a_class_may_hold_an_expression_as_a_constant(make_flow: MakeFlow) -> None:
    flow = make_flow(
        """
        from aflow import config_expr
        class F(FlowSpec):
            twice = config_expr("config.size * 2")
            @step
            def only(self): pass
        """
    )

    assert () == define(flow).problems


def test_a_config_is_read_from_the_task_and_cannot_be_set(make_flow: MakeFlow) -> None:
    flow, context = running(make_flow(FLOW), "start", settings=VALUES["config"])

    assert flow.settings is VALUES["config"]
    assert ["settings"] == context.loaded
    with pytest.raises(AttributeError) as caught:
        flow.settings = 1
    assert (
        "self.settings cannot be set: it is a config, and has the value that the run was started "
        "with. Use another name." == str(caught.value)
    )


def test_the_class_gives_the_config_itself(make_flow: MakeFlow) -> None:
    flow: Any = make_flow(FLOW)

    assert isinstance(flow.settings, Config)
    with pytest.raises(AttributeError, match=r"has no attribute 'settings'\. Artifacts can be"):
        flow(use_cli=False).settings  # noqa: B018


# ------------------------------------------------------------ where values come from

SOURCES = """
    from aflow import Config
    class F(FlowSpec):
        a = Config("a", default={default!r}, parser="json.loads")
        must = Config("must", required={required})
        @step
        def only(self): pass
    """


def read(make_flow: MakeFlow, tmp_path: Path, given: GivenConfigs | None, **options: Any) -> Any:
    options = {"default": str(tmp_path / "a.json"), "required": False, **options}
    values = configured(make_flow(SOURCES.format(**options)), given).config_values
    assert values is not None
    return values["a"]


def test_a_value_wins_over_a_file_and_a_file_over_the_default(
    make_flow: MakeFlow, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text('{"from": "default"}')
    (tmp_path / "b.json").write_text('{"from": "file"}')

    file = {"a": str(tmp_path / "b.json")}
    assert {"from": "default"} == read(make_flow, tmp_path, None)
    assert {"from": "file"} == read(make_flow, tmp_path, GivenConfigs(file))
    assert {"from": "value"} == read(
        make_flow, tmp_path, GivenConfigs({}, {"a": '{"from": "value"}'})
    )


def test_a_default_may_be_in_the_home_of_the_user(
    make_flow: MakeFlow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.json").write_text('{"from": "home"}')

    assert {"from": "home"} == read(make_flow, tmp_path, None, default="~/a.json")


@pytest.mark.parametrize(
    ("given", "options", "sentence"),
    [
        (
            None,
            {},
            "The file {folder}/a.json of config 'a' is not there: write it, or give another with "
            "--config a PATH or --config-value a JSON.",
        ),
        (
            None,
            {"default": {"from": "code"}},
            "The default of config 'a' is dict: it is the path of a file; a value is given with "
            "default_value.",
        ),
        (
            GivenConfigs({"a": "b"}, {"a": 1}),
            {},
            "Config 'a' was given both a file and a value.",
        ),
        (
            GivenConfigs({"a": "{folder}"}),
            {},
            "The file {folder} of config 'a' cannot be read: Is a directory.",
        ),
        (
            GivenConfigs({"a": "{folder}/latin"}),
            {},
            "The file {folder}/latin of config 'a' cannot be read: it is not text in UTF-8.",
        ),
        (
            GivenConfigs({}, {"b": 1}),
            {},
            "Flow F has no config 'b'; its configs are: a, must.",
        ),
        (
            GivenConfigs({}, {"a": {}}),
            {"required": True},
            "Config 'must' is required: give it with --config must PATH or --config-value must "
            "JSON.",
        ),
    ],
)
def test_a_config_that_has_no_value_is_reported(
    make_flow: MakeFlow, tmp_path: Path, given: GivenConfigs | None, options: Any, sentence: str
) -> None:
    (tmp_path / "latin").write_bytes(b"\xff")
    if given is not None:
        files = {name: path.format(folder=tmp_path) for name, path in given.files.items()}
        given = given._replace(files=files)

    with pytest.raises(InvalidConfig) as caught:
        read(make_flow, tmp_path, given, **options)
    assert sentence.format(folder=tmp_path) == str(caught.value)
