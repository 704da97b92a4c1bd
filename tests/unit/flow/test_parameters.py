"""Parameters: their types, their defaults, and the values of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.errors import InvalidParameter
from aflow.flow.definition import FlowDefinition
from aflow.flow.parameters import (
    RESERVED,
    ConvertedValue,
    IncludedFile,
    IncludeFile,
    JSONType,
    JSONTypeClass,
    Parameter,
    ParameterContext,
    resolve,
    unconverted,
)
from aflow.flow.spec import define
from tests.unit.flow.flows import MakeFlow


def context(name: str) -> ParameterContext:
    return ParameterContext("F", "ada", name, lambda line: None, "local", {})


class Size(Enum):
    SMALL = "s"
    LARGE = "l"


# ------------------------------------------------------------ types


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        (None, str),
        ("x", str),
        (1, int),
        (1.5, float),
        (True, bool),
        ([1], JSONType),
        ({"a": 1}, JSONType),
        (lambda ctx: 1, str),
    ],
)
def test_the_type_is_that_of_the_default(default: object, expected: object) -> None:
    assert expected is Parameter("p", default=default).type


@pytest.mark.parametrize(
    ("type", "written", "expected"),
    [
        (str, "1", "1"),
        (str, "", ""),
        (int, "-3", -3),
        (int, 4, 4),
        (float, "1e3", 1000.0),
        (float, 2, 2.0),
        (bool, "true", True),
        (bool, "Yes", True),
        (bool, "1", True),
        (bool, "FALSE", False),
        (bool, "no", False),
        (bool, "0", False),
        (bool, True, True),
        (JSONType, '{"a": [1, null]}', {"a": [1, None]}),
        (JSONType, {"a": 1}, {"a": 1}),
    ],
)
def test_a_value_is_converted_to_the_type(type: Any, written: object, expected: object) -> None:
    value = Parameter("p", type=type).convert(written)

    assert (expected, expected.__class__) == (value, value.__class__)


@pytest.mark.parametrize(
    ("type", "written", "sentence"),
    [
        (int, "x", "Parameter 'p' has the value 'x', which is not a whole number (type int)."),
        (int, 1.5, "Parameter 'p' has the value 1.5, which is not a whole number (type int)."),
        (int, True, "Parameter 'p' has the value True, which is not a whole number (type int)."),
        (
            int,
            "9" * 5000,
            f"Parameter 'p' has the value '{'9' * 76}..., which is not a whole number (type int).",
        ),
        (float, "", "Parameter 'p' has the value '', which is not a number (type float)."),
        (float, [1], "Parameter 'p' has the value [1], which is not a number (type float)."),
        (
            bool,
            "maybe",
            "Parameter 'p' has the value 'maybe', which is not one of true, false, yes, no, 1, 0 "
            "(type bool).",
        ),
        (
            bool,
            2,
            "Parameter 'p' has the value 2, which is not one of true, false, yes, no, 1, 0 "
            "(type bool).",
        ),
        (str, 1, "Parameter 'p' has the value 1, which is not a text (type str)."),
        (
            JSONType,
            "{a}",
            "Parameter 'p' has the value '{a}', which is not JSON (such as {\"a\": 1}).",
        ),
        (
            JSONType,
            {1, 2},
            "Parameter 'p' has the value {1, 2}, which is not JSON (such as {\"a\": 1}).",
        ),
    ],
)
def test_a_value_of_another_type_is_refused(type: Any, written: object, sentence: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        Parameter("p", type=type).convert(written)
    assert sentence == str(caught.value)


@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans()))
def test_what_is_printed_is_read_back(value: float) -> None:
    assert value == Parameter("p", type=type(value)).convert(str(value))


def test_a_separator_makes_a_list_of_values_of_the_type() -> None:
    parameter = Parameter("p", type=int, separator=",", default="1,2")

    assert [1, 2] == parameter.default
    assert [3, 4, 5] == parameter.convert("3,4, 5")
    assert [7] == parameter.convert([7]) == parameter.convert(7)
    assert [] == parameter.convert("")
    assert ["a", "b"] == Parameter("p", default=["a", "b"], separator="|").default
    with pytest.raises(InvalidParameter, match="has the value 'x'"):
        parameter.convert("1,x")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"name": "a b"}, "'a b' cannot be the name of a parameter"),
        ({"name": 3}, "3 cannot be the name of a parameter"),
        ({"name": "p", "type": list}, "Parameter 'p' has the type <class 'list'>: use str,"),
        ({"name": "p", "type": []}, "Parameter 'p' has the type []"),
        ({"name": "p", "default": "x", "type": int}, "has the value 'x', which is not a whole"),
        ({"name": "p", "separator": ""}, "Parameter 'p' has the separator ''"),
        (
            {"name": "p", "choices": "abc"},
            "Parameter 'p' has choices='abc', which is not a list of values.",
        ),
        (
            {"name": "p", "choices": 3},
            "Parameter 'p' has choices=3, which is not a list of values.",
        ),
        (
            {"name": "p", "choices": []},
            "Parameter 'p' has choices=[], which is not a list of values.",
        ),
        ({"name": "p", "type": int, "choices": ["x"]}, "has the value 'x', which is not a whole"),
        ({"name": "p", "default": "c", "choices": ["a"]}, "which is not one of its choices: a."),
        ({"name": "p", "type": bytes}, "Parameter 'p' has the type <class 'bytes'>"),
        ({"name": "p", "type": list[int]}, "Parameter 'p' has the type list[int]"),
        (
            {"name": "p", "type": Literal["a"], "default": "b"},
            "which is not one of its choices: a.",
        ),
    ],
)
def test_a_declaration_that_cannot_be_used_is_refused(arguments: Any, part: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        Parameter(**arguments)
    assert part in str(caught.value)


# ------------------------------------------------------------ the values of a run


@pytest.fixture
def definition(make_flow: MakeFlow) -> FlowDefinition:
    return define(
        make_flow(
            """
            class F(FlowSpec):
                alpha = Parameter("alpha", default=0.5)
                size = Parameter("batch-size", default=lambda ctx: "9", type=int)
                owner = Parameter("owner", default=lambda ctx: ctx.user_name)
                config = Parameter("config", type=JSONType)
                must = Parameter("must", required=True)
                @step
                def only(self): pass
            """
        )
    )


def test_a_run_gets_what_was_given_and_defaults_for_the_rest(definition: FlowDefinition) -> None:
    values = resolve(definition, {"must": "x", "alpha": "2"}, context)

    assert [("alpha", 2.0), ("size", 9), ("owner", "ada"), ("config", None), ("must", "x")] == list(
        values.items()
    )


@pytest.mark.parametrize("name", ["batch-size", "batch_size", "BATCH-SIZE", "size"])
def test_a_value_may_be_given_by_name_or_attribute(definition: FlowDefinition, name: str) -> None:
    assert 3 == resolve(definition, {"must": "x", name: "3"}, context)["size"]


@pytest.mark.parametrize("given", [{}, {"must": None}])
def test_a_required_parameter_must_be_given(definition: FlowDefinition, given: Any) -> None:
    with pytest.raises(InvalidParameter, match="'must' is required: give it with --must"):
        resolve(definition, given, context)


def test_an_unknown_parameter_is_reported_with_those_there_are(definition: FlowDefinition) -> None:
    with pytest.raises(InvalidParameter) as caught:
        resolve(definition, {"must": "x", "alhpa": 1}, context)
    assert (
        "Flow F has no parameter 'alhpa'. Did you mean 'alpha'? It has: alpha, batch-size, owner, "
        "config, must." == str(caught.value)
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"p": 1}, "Flow F has no parameter 'p'. It has none."),
        ({}, ""),
    ],
)
def test_a_flow_without_parameters_takes_none(
    make_flow: MakeFlow, given: Any, sentence: str
) -> None:
    flow = define(make_flow("class F(FlowSpec):\n    @step\n    def only(self): pass\n"))
    try:
        said = str(resolve(flow, given, context) or "")
    except InvalidParameter as error:
        said = str(error)

    assert sentence == said


def test_names_that_differ_in_capitals_and_dashes_alone_are_refused(make_flow: MakeFlow) -> None:
    definition = define(
        make_flow(
            """
            class F(FlowSpec):
                a = Parameter("my-name")
                b = Parameter("My_Name")
                @step
                def only(self): pass
            """
        )
    )

    with pytest.raises(InvalidParameter) as caught:
        resolve(definition, {}, context)
    assert (
        "The parameters 'my-name' and 'My_Name' cannot be distinguished: names must differ in more "
        "than capitals, - and _." == str(caught.value)
    )


def one_parameter(make_flow: MakeFlow, declaration: str) -> FlowDefinition:
    return define(
        make_flow(
            f"class F(FlowSpec):\n    p = {declaration}\n    @step\n    def only(self): pass\n"
        )
    )


def test_a_default_that_fails_is_reported(make_flow: MakeFlow) -> None:
    definition = one_parameter(make_flow, 'Parameter("p", default=lambda ctx: 1 / 0)')

    with pytest.raises(InvalidParameter, match="'p' is a function, and it failed: ZeroDivision"):
        resolve(definition, {}, context)


def test_a_default_of_another_type_is_reported(make_flow: MakeFlow) -> None:
    definition = one_parameter(make_flow, 'Parameter("p", type=int, default=lambda ctx: "x")')

    with pytest.raises(InvalidParameter, match=r"'p' has the value 'x'.*function that is its"):
        resolve(definition, {}, context)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_an_option_of_run_is_no_name_for_a_parameter(make_flow: MakeFlow, name: str) -> None:
    definition = one_parameter(make_flow, f'Parameter("{name.replace("_", "-").upper()}")')

    with pytest.raises(InvalidParameter, match="has the name of an option of run"):
        resolve(definition, {}, context)


def test_the_class_gives_the_parameter_itself(definition: FlowDefinition) -> None:
    assert definition.parameters["size"] is vars(definition.cls)["size"]
    assert "<Parameter batch-size: int>" == repr(definition.cls.size)  # type: ignore[attr-defined]


def test_a_default_that_gives_nothing_is_no_value(make_flow: MakeFlow) -> None:
    definition = one_parameter(make_flow, 'Parameter("p", type=int, default=lambda ctx: None)')

    assert {"p": None} == resolve(definition, {}, context)


@pytest.mark.parametrize(
    ("declared", "name"),
    [
        ({"type": JSONType}, "JSON"),
        ({"type": (str, int)}, "<str int>"),
        ({"type": click.IntRange(1, 9)}, "integer range"),
        ({"type": Path}, "Path"),
        ({"type": partial(int, base=16)}, "partial"),
    ],
)
def test_a_type_has_a_name_for_people(declared: Any, name: str) -> None:
    assert f"<Parameter p: {name}>" == repr(Parameter("p", **declared))
    assert "JSONType" == repr(JSONType)


class Unreadable:
    """An object that JSON cannot represent."""

    def __str__(self) -> str:
        return "shown"


def test_what_json_cannot_hold_becomes_a_text() -> None:
    assert ["shown", "l", {"a": 1}, None] == Parameter("p").plain(
        [Unreadable(), Size.LARGE, {"a": 1}, None]
    )


# ------------------------------------------------------------ any value

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


def nested(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """These values, and lists and dictionaries of them."""
    return st.recursive(
        values,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )


VALUES = nested(PLAIN | st.binary())
DECLARED = st.fixed_dictionaries(
    {"type": st.sampled_from([str, int, float, bool, JSONType, Path, (str, int), Size, None])},
    optional={
        "separator": st.sampled_from([",", "::", ""]),
        "multiple": st.booleans(),
        "nargs": st.integers(-1, 3),
        "choices": st.lists(st.text(max_size=2) | st.integers(0, 3), max_size=3),
        "default": VALUES,
    },
)


@given(DECLARED, VALUES)
def test_any_value_is_converted_for_good_or_refused_with_a_sentence(
    declared: dict[str, Any], value: Any
) -> None:
    try:
        parameter = Parameter("p", **declared)
        once = parameter.convert(value)
        said = "Parameter 'p' is converted once" if same(parameter.convert(once), once) else ""
    except InvalidParameter as error:
        said = str(error)

    assert said.startswith("Parameter 'p' ")
    assert said.count("\n") == 0


def same(one: Any, other: Any) -> bool:
    """Return whether both are equal; NaN equals NaN."""
    return repr(one) == repr(other)


OF_TYPES = st.one_of(
    st.tuples(st.just(str), st.text()),
    st.tuples(st.just(int), st.integers()),
    st.tuples(st.just(float), st.floats() | st.integers(-(2**53), 2**53)),
    st.tuples(st.just(bool), st.booleans()),
    st.tuples(st.just(JSONType), st.lists(nested(PLAIN))),
)


@given(OF_TYPES)
def test_a_value_survives_the_way_to_another_process(of_type: tuple[Any, Any]) -> None:
    type, value = of_type
    parameter = Parameter("p", type=type)
    value = parameter.convert(value)

    assert same(value, parameter.convert(json.loads(json.dumps(parameter.plain(value)))))


@pytest.mark.parametrize(
    ("declared", "written", "value"),
    [
        ({"type": JSONType}, '"1"', "1"),
        ({"type": JSONType}, "null", None),
        ({"type": JSONType, "multiple": True}, ['"1"', '["1"]', "null"], ("1", ["1"], None)),
        ({"type": JSONType, "separator": ";"}, '"1";2', ["1", 2]),
        ({"type": (str, JSONType)}, ["1", '"1"'], ("1", "1")),
    ],
)
def test_a_text_in_json_is_written_as_json(declared: Any, written: object, value: object) -> None:
    parameter = Parameter("p", **declared)

    assert value == parameter.convert(written)
    assert value == parameter.convert(json.loads(json.dumps(parameter.plain(value))))


def test_what_is_converted_is_taken_as_it_is(make_flow: MakeFlow) -> None:
    declared = {"type": JSONType, "default": "[1]"}

    assert {"p": "1"} == with_value(make_flow, declared, '"1"')
    assert {"p": '"1"'} == with_value(make_flow, declared, ConvertedValue('"1"'))
    assert {"p": None} == with_value(make_flow, declared, ConvertedValue(None, "null"))


def test_another_process_is_sent_what_it_converts_to_the_same_value() -> None:
    parameter = Parameter("p", type=JSONType)

    assert '"1"' == unconverted(parameter, ConvertedValue("1", '"1"'))
    assert '"1"' == unconverted(parameter, ConvertedValue("1")), "a callback has made it"
    assert "null" == unconverted(parameter, ConvertedValue(None))
    assert [1] == unconverted(parameter, [1]), "of a file of parameters"


# ------------------------------------------------------------ included files


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "café"),
        ({"encoding": "latin-1"}, "cafÃ©"),
        ({"is_text": False}, "café".encode()),
        ({"parser": str.upper}, "CAFÉ"),
        ({"parser": "yaml_parser"}, "café"),
        ({"parser": "builtins.len", "is_text": False}, 5),
    ],
)
def test_an_included_file_is_text_bytes_or_what_a_parser_makes(
    options: Any, expected: object
) -> None:
    assert expected == IncludeFile("f", **options).content("f.txt", lambda path: "café".encode())


def missing(path: str) -> bytes:
    raise FileNotFoundError(2, "No such file or directory", path)


def broken(path: str) -> bytes:
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("options", "read", "sentence"),
    [
        (
            {},
            missing,
            "The file f.txt of parameter 'f' cannot be read: No such file or directory.",
        ),
        ({}, broken, "The file f.txt of parameter 'f' cannot be read: the disk is gone."),
        (
            {},
            lambda path: b"\xff",
            "The file f.txt of parameter 'f' is not text in utf-8: give another encoding=, or "
            "is_text=False.",
        ),
        *[
            (
                {"encoding": encoding},
                lambda path: b"xn--a",
                f"The file f.txt of parameter 'f' is not text in {encoding}: give another "
                "encoding=, or is_text=False.",
            )
            for encoding in ("no-such", "hex", "a\0b", 8, "idna")
        ],
        (
            {"parser": json.loads},
            lambda path: b"{x",
            "The file f.txt of parameter 'f' does not parse: JSONDecodeError: Expecting property "
            "name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        (
            {"parser": "nowhere.parse"},
            lambda path: b"",
            "The file f.txt of parameter 'f' does not parse: ModuleNotFoundError: No module named "
            "'nowhere'",
        ),
        (
            {"parser": "json.__name__"},
            lambda path: b"",
            "The file f.txt of parameter 'f' does not parse: TypeError: 'json' is not a function",
        ),
    ],
)
def test_an_included_file_that_cannot_be_used_is_reported(
    options: Any, read: Any, sentence: str
) -> None:
    with pytest.raises(InvalidParameter) as caught:
        IncludeFile("f", **options).content("f.txt", read)
    assert sentence == str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"type": int}, "Parameter 'f' takes no type=."),
        ({"separator": ","}, "Parameter 'f' takes no separator=."),
        ({"multiple": True}, "Parameter 'f' is an IncludeFile, which takes one path."),
        ({"nargs": 2}, "Parameter 'f' is an IncludeFile, which takes one path."),
    ],
)
def test_an_included_file_is_one_file(options: Any, sentence: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        IncludeFile("f", **options)
    assert str(caught.value).startswith(sentence)


def test_an_included_file_may_be_one_of_some() -> None:
    assert "a.txt" == IncludeFile("f", default="a.txt", choices=["a.txt", "b.txt"]).default


def test_programs_may_ask_for_what_metaflow_has_in_place_of_a_file() -> None:
    assert {"type": "self-contained"} == IncludedFile({"type": "self-contained"}).descriptor


# ------------------------------------------------------------ what click's options can do


def with_parameter(make_flow: MakeFlow, declared: dict[str, Any]) -> FlowDefinition:
    flow = one_parameter(make_flow, 'Parameter("p")')
    return replace(flow, parameters={"p": Parameter("p", **declared)})


def with_value(make_flow: MakeFlow, declared: dict[str, Any], given: Any) -> dict[str, Any]:
    values = {} if given is None else {"p": given}
    return resolve(with_parameter(make_flow, declared), values, context)


@pytest.mark.parametrize(
    ("declared", "given", "expected"),
    [
        ({"is_flag": True}, None, False),
        ({"is_flag": True, "default": True}, False, False),
        ({"is_flag": True, "flag_value": "x", "default": "y"}, "x", "x"),
        ({"count": True, "default": 0}, 3, 3),
        ({"multiple": True}, None, ()),
        ({"multiple": True, "default": ["a"]}, None, ("a",)),
        ({"multiple": True, "default": [1]}, ["2", 3], (2, 3)),
        ({"multiple": True, "type": int}, "2", (2,)),
        ({"nargs": 2, "type": float}, ["1", 2], (1.0, 2.0)),
        ({"nargs": 2, "multiple": True, "type": int}, [["1", 2], (3, 4)], ((1, 2), (3, 4))),
        ({"type": (str, int)}, ["a", "1"], ("a", 1)),
        ({"count": True}, 3, 3),
        ({"type": Literal["a", "b"]}, "b", "b"),
        ({"type": Literal[1, 2]}, "2", 2),
        ({"type": int, "choices": {1: "one", 2: "two"}}, "2", 2),
        ({"type": JSONTypeClass}, "[1]", [1]),
        ({"default": Size.SMALL}, None, Size.SMALL),
        ({"type": Path}, "a/b", Path("a/b")),
        ({"default": Path("c")}, None, Path("c")),
        ({"type": Size}, "l", Size.LARGE),
        ({"type": date.fromisoformat}, "2026-01-02", date(2026, 1, 2)),
        ({"type": click.IntRange(1, 9)}, "4", 4),
        ({"type": click.Choice(["a", "b"])}, "b", "b"),
        ({"type": click.UUID}, str(UUID(int=3)), UUID(int=3)),
        ({"default": "x", "hidden": True, "metavar": "X", "envvar": "Y"}, None, "x"),
    ],
)
def test_keywords_and_types_of_click_give_the_values_that_click_gives(
    make_flow: MakeFlow, declared: Any, given: Any, expected: object
) -> None:
    values = with_value(make_flow, declared, given)

    assert {"p": expected} == values
    assert values == with_value(make_flow, declared, values["p"]), "converted twice it is the same"
    plain = json.loads(json.dumps(Parameter("p", **declared).plain(expected)))
    assert values == with_value(make_flow, declared, plain), "JSON can hold it meanwhile"


@pytest.mark.parametrize(
    ("declared", "given", "part"),
    [
        ({"is_falg": True}, None, "takes no is_falg=. Did you mean 'is_flag'?"),
        ({"cls": object}, None, "Parameter 'p' takes no cls="),
        ({"nargs": 0}, None, "has nargs=0"),
        ({"nargs": -1}, None, "has nargs=-1"),
        ({"nargs": "many"}, None, "has nargs='many': it must be a whole number above 0."),
        ({"multiple": True, "separator": ","}, None, "has a separator, and multiple="),
        ({"type": click.File()}, None, "use click.Path for its name, or IncludeFile"),
        ({"type": click.IntRange}, None, "has the type <class 'click"),
        ({"nargs": 2}, ["a"], "it takes 2 values at a time"),
        ({"type": (str, int)}, ["a", "b"], "which is not a whole number"),
        ({"type": click.IntRange(1, 9)}, "10", "10 is not in the range 1<=x<=9"),
        ({"type": Size}, "m", "which is not of the type Size: 'm' is not a valid Size"),
        ({"multiple": True, "required": True}, [], "is required"),
    ],
)
def test_what_an_option_of_click_cannot_be_or_take_is_said(
    make_flow: MakeFlow, declared: Any, given: Any, part: str
) -> None:
    with pytest.raises(InvalidParameter) as caught:
        with_value(make_flow, declared, given)

    assert part in str(caught.value)
