"""Reading a flow class: its members, and the graph in the source of its steps."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import linecache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from aflow.errors import InvalidFlow
from aflow.flow.graph import Graph, Kind
from aflow.flow.links import parsed
from aflow.flow.lint import check
from aflow.flow.spec import FlowSpec, define, step
from tests.unit.flow.flows import HEAD, MakeFlow

EVERY_KIND = """
    class Kinds(FlowSpec):
        '''All ways to go on.

        More.
        '''
        @step
        def start(self):
            '''Where it begins.'''
            self.next(self.a, self.b)
        @step
        def a(self):
            self.next(self.item, foreach="xs")
        @step
        async def item(this):
            this.next(this.items)
        @step
        def items(self, inputs):
            self.next(self.both)
        @step
        def b(self):
            self.next({"x": self.c, 2: self.d, True: self.b, -1.5: self.c}, condition="v")
        @step
        def c(self):
            self.next(self.both)
        @step
        def d(self):
            self.next(self.both)
        @step
        def both(self, inputs):
            self.next(self.gang, num_parallel=self.n)
        @step
        def gang(self):
            self.next(self.end)
        @step
        def end(self, inputs):
            pass
    """


def test_every_way_to_go_on_is_read(make_flow: MakeFlow) -> None:
    graph = define(make_flow(EVERY_KIND)).graph

    assert ("start", "end") == (graph.start, graph.end)
    assert {
        "start": Kind.SPLIT,
        "a": Kind.FOREACH,
        "item": Kind.LINEAR,
        "items": Kind.LINEAR,
        "b": Kind.SWITCH,
        "c": Kind.LINEAR,
        "d": Kind.LINEAR,
        "both": Kind.PARALLEL,
        "gang": Kind.LINEAR,
        "end": Kind.END,
    } == {node.name: node.kind for node in graph.nodes.values()}
    assert "xs" == graph["a"].foreach
    assert "v" == graph["b"].condition
    assert (("x", "c"), ("2", "d"), ("True", "b"), ("-1.5", "c")) == graph["b"].cases
    assert ("c", "d", "b") == graph["b"].next


def test_splits_are_tied_to_their_joins(make_flow: MakeFlow) -> None:
    graph = define(make_flow(EVERY_KIND)).graph

    assert {"start": "both", "a": "items", "both": "end"} == {
        node.name: node.join for node in graph.nodes.values() if node.join
    }
    assert {"items", "both", "end"} == {node.name for node in graph.nodes.values() if node.is_join}
    assert ("start", "a") == graph["item"].splits
    assert ("start",) == graph["items"].splits == graph["b"].splits
    assert () == graph["both"].splits == graph["end"].splits
    assert ("both",) == graph["gang"].splits
    assert ("items", "c", "d") == graph["both"].previous
    assert ("start", "b") == graph["b"].previous


def test_the_graph_survives_json(make_flow: MakeFlow) -> None:
    graph = define(make_flow(EVERY_KIND)).graph

    assert graph == Graph.from_dict(json.loads(json.dumps(graph.as_dict())))


def test_a_class_whose_graph_is_known_is_not_parsed_again(
    make_flow: MakeFlow, tmp_path: Path
) -> None:
    first = define(make_flow(EVERY_KIND))
    again = make_flow(EVERY_KIND)
    (tmp_path / "flow_2.py").write_text("no longer Python (\n")
    moved = Graph.from_dict(
        json.loads(json.dumps(first.graph.as_dict()).replace("flow_1.py", "flow_2.py"))
    )
    definition = define(again, moved)

    assert (moved, str(tmp_path / "flow_2.py")) == (definition.graph, definition.file)
    for one, other in zip(first.steps.values(), definition.steps.values(), strict=True):
        assert (one.name, one.decorators, one.is_async, one.takes_inputs, one.line) == (
            other.name,
            other.decorators,
            other.is_async,
            other.takes_inputs,
            other.line,
        )
    assert (first.doc, first.constants) == (definition.doc, definition.constants)


def test_a_known_graph_of_other_steps_is_not_believed(make_flow: MakeFlow) -> None:
    definition = define(make_flow(EVERY_KIND), Graph("Kinds", "start", "end"))

    assert "a" in definition.graph.nodes


def test_a_source_is_parsed_again_where_another_thread_has_disturbed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parse, calls = ast.parse, []

    def disturbed(text: str) -> ast.Module:
        calls.append(text)
        if len(calls) < 3:
            raise SystemError("AST constructor recursion depth mismatch")
        return parse(text)

    monkeypatch.setattr(ast, "parse", disturbed)

    assert ["Pass"] == [type(each).__name__ for each in parsed("pass").body]
    assert ["pass"] * 3 == calls


def test_a_source_that_python_cannot_parse_at_all_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def broken(text: str) -> ast.Module:
        calls.append(text)
        raise SystemError("out of order")

    monkeypatch.setattr(ast, "parse", broken)

    with pytest.raises(SystemError, match="out of order"):
        parsed("pass")
    assert 20 == len(calls)


class Called:
    """A step that is an object, as a decorator of a user's may make it."""

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)
        del vars(self)["__wrapped__"]

    def __call__(self, flow: Any) -> None: ...


def test_a_step_that_is_no_function_is_refused() -> None:
    class Odd(FlowSpec):
        @Called
        @step
        def only(self) -> None:
            pass

    with pytest.raises(InvalidFlow) as caught:
        define(Odd)
    assert str(caught.value).startswith("A step of flow Odd is <tests.unit.flow.test_reading.Calle")
    assert str(caught.value).endswith(
        "which is not a function with a source: put @step on a method that is written in the class."
    )


def test_documentation_files_and_lines_are_kept(make_flow: MakeFlow, tmp_path: Path) -> None:
    definition = define(make_flow(EVERY_KIND))

    assert "All ways to go on.\n\nMore." == definition.doc
    assert "Where it begins." == definition.graph["start"].doc
    assert (str(tmp_path / "flow_1.py"), 2) == (definition.file, definition.line)
    assert (8, 8) == (definition.steps["start"].line, definition.graph["start"].line)


def test_a_coroutine_step_is_known_as_one(make_flow: MakeFlow) -> None:
    steps = define(make_flow(EVERY_KIND)).steps

    assert ["item"] == [step.name for step in steps.values() if step.is_async]


def test_a_definition_is_read_once(make_flow: MakeFlow) -> None:
    flow = make_flow(EVERY_KIND)

    assert define(flow) is define(flow)


def test_a_single_step_is_start_and_end(make_flow: MakeFlow) -> None:
    flow = make_flow("class F(FlowSpec):\n    @step\n    def work(self): pass\n")

    assert ("work", "work") == (define(flow).graph.start, define(flow).graph.end)


def test_steps_parameters_and_constants_are_inherited(make_flow: MakeFlow) -> None:
    flow = make_flow(
        """
        class Shared:
            size = 3
        class Base(FlowSpec):
            alpha = Parameter("alpha", default=1)
            beta = Parameter("beta", default=1)
            rate = 0.5
            @step
            def start(self):
                self.next(self.middle)
            @step
            def middle(self):
                self.next(self.end)
            @step
            def end(self):
                pass
        class Derived(Shared, Base):
            beta = Parameter("beta", default=2)
            rate = 0.7
            @retry
            @step
            def middle(self):
                '''Another one.'''
                self.next(self.end)
        """
    )
    definition = define(flow)

    assert [] == check(definition)
    assert ["start", "middle", "end"] == list(definition.steps)
    assert "Another one." == definition.graph["middle"].doc
    assert {"alpha": 1, "beta": 2} == {
        name: each.default for name, each in definition.parameters.items()
    }
    assert {"rate": 0.7, "size": 3} == definition.constants
    assert "Base" == define(flow.__mro__[2]).name


def test_only_plain_public_values_are_constants(make_flow: MakeFlow) -> None:
    flow = make_flow(
        """
        class F(FlowSpec):
            kept = {"a": 1}
            none = None
            _private = 1
            annotated: int
            class Inner: pass
            shorthand = lambda self: 1
            alpha = Parameter("alpha")
            @property
            def size(self): return 1
            @staticmethod
            def helper(): return 1
            @step
            def only(self): pass
        """
    )

    assert {"kept": {"a": 1}, "none": None} == define(flow).constants


def test_decorators_are_kept_outermost_first_through_wrappers(make_flow: MakeFlow) -> None:
    flow = make_flow(
        """
        import functools
        def loud(function):
            @functools.wraps(function)
            def wrapper(*args):
                return function(*args)
            return wrapper
        class F(FlowSpec):
            @catch(var="error")
            @loud
            @step
            @retry(times=1)
            async def only(self):
                pass
        """
    )
    step = define(flow).steps["only"]

    assert ["catch", "retry"] == [each.name for each in step.decorators]
    assert (True, False, 13) == (step.is_async, step.takes_inputs, step.line)
    assert [] == check(define(flow))


def test_a_flow_of_a_notebook_cell_is_read_from_its_cell() -> None:
    cell = HEAD + "class F(FlowSpec):\n    @step\n    def only(self): pass\n"
    name = "<cell of a notebook>"
    linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
    module: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(cell, name, "exec"), module)

    definition = define(module["F"])

    assert (name, 2, 4) == (definition.file, definition.line, definition.steps["only"].line)
    assert [] == check(definition)


def test_a_flow_in_an_archive_is_read_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ZipFile(tmp_path / "flows.zip", "w") as archive:
        archive.writestr(
            "archived.py", HEAD + "class F(FlowSpec):\n    @step\n    def only(self): pass\n"
        )
    monkeypatch.syspath_prepend(tmp_path / "flows.zip")
    definition = define(importlib.import_module("archived").F)

    assert (str(tmp_path / "flows.zip" / "archived.py"), 2) == (definition.file, definition.line)
    assert [] == check(definition)


def test_a_flow_without_source_says_so() -> None:
    module: dict[str, Any] = {"__name__": "nowhere"}
    exec(HEAD + "class F(FlowSpec):\n    @step\n    def only(self): pass\n", module)

    with pytest.raises(InvalidFlow, match="source of step 'only' of flow F cannot be read"):
        define(module["F"])


def test_a_file_that_changed_since_it_was_imported_is_refused(
    make_flow: MakeFlow, tmp_path: Path
) -> None:
    flow = make_flow("class F(FlowSpec):\n    @step\n    def only(self): pass\n")
    (tmp_path / "flow_1.py").write_text("# one more line\n" * 9)

    with pytest.raises(InvalidFlow, match="the file has changed since"):
        define(flow)


def test_a_file_that_is_no_longer_python_is_refused(make_flow: MakeFlow, tmp_path: Path) -> None:
    flow = make_flow("class F(FlowSpec):\n    @step\n    def only(self): pass\n")
    (tmp_path / "flow_1.py").write_text("class F(\n" * 9)

    with pytest.raises(InvalidFlow, match="is no longer Python") as caught:
        define(flow)
    assert str(tmp_path / "flow_1.py") == caught.value.file


def test_a_file_that_has_become_binary_is_refused(make_flow: MakeFlow, tmp_path: Path) -> None:
    flow = make_flow("class F(FlowSpec):\n    @step\n    def only(self): pass\n")
    (tmp_path / "flow_1.py").write_bytes(b"x = 1\0\n")

    with pytest.raises(InvalidFlow, match="The source of flow F is no longer Python: source code"):
        define(flow)


def test_a_flow_inside_of_a_function_is_read() -> None:
    class Local(FlowSpec):
        @step
        def start(self) -> None:
            self.next(self.end)

        @step
        def end(self) -> None:
            pass

    assert ("end",) == define(Local).graph["start"].next
    assert define(Local).line < define(Local).steps["start"].line


INNER = """
    class Inner(FlowSpec):
        @step
        def start(self):
            class Reader:
                def next(self):
                    return 1
                def take(self, self2=lambda self: self.next()):
                    return self.next()
                async def later(this, *, self):
                    return self.next()
            def helper(reader):
                self = reader
                return self.next()
            self.got = Reader().take()
            self.next(self.end)
        @step
        def end(self):
            pass
    """


def test_a_next_of_something_else_that_is_called_self_is_not_the_steps(make_flow: MakeFlow) -> None:
    assert ("end",) == define(make_flow(INNER)).graph["start"].next


@pytest.mark.parametrize(
    "inside",
    ["(lambda: self.next(self.end))()", "[self.next(self.end) for _ in 'x']"],
)
def test_a_next_of_the_flow_inside_of_something_is_the_steps_own(
    make_flow: MakeFlow, inside: str
) -> None:
    definition = define(make_flow(INNER.replace("Reader().take()", inside)))

    assert ["Step 'start' calls self.next() more than once"] == [
        each.message.partition(":")[0] for each in definition.problems
    ]
