"""The graph as plain data: its levels, its outline, and the names of Metaflow's graph."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aflow.flow.custom import UserStepDecorator
from aflow.flow.decorators.schedule import schedule
from aflow.flow.definition import FlowDefinition
from aflow.flow.graph import Graph, Kind, Node, connect, cycle_from, outline, structure, ways_to
from aflow.flow.lint import check
from aflow.flow.metaflow_names import FlowGraph
from aflow.flow.spec import FlowSpec, define
from aflow.storage.artifacts import ForeachFrame
from tests.unit.flow.flows import MakeFlow, running
from tests.unit.flow.test_reading import EVERY_KIND

TWO = """
    class F(FlowSpec):
        @step
        def start(self):
            self.next(self.end)
        @step
        def end(self):
            pass
    """


class Watched(UserStepDecorator):
    def init(self, *words: str, loud: bool = False) -> None:
        self.words = words


@pytest.fixture
def definition(make_flow: MakeFlow) -> FlowDefinition:
    found = define(make_flow(EVERY_KIND))
    assert [] == check(found)
    return found


# ------------------------------------------------------------ questions


def test_levels_are_longest_distances_from_the_start(definition: FlowDefinition) -> None:
    assert [
        ["start"],
        ["a", "b"],
        ["item", "c", "d"],
        ["items"],
        ["both"],
        ["gang"],
        ["end"],
    ] == definition.graph.levels()


def test_a_graph_without_its_start_has_no_levels_and_no_structure() -> None:
    assert [] == Graph("F", "", "").levels() == structure(Graph("F", "", ""))


def diamonds(count: int) -> Graph:
    """Return a chain of diamonds with a long and a short branch, as switches and as splits."""
    nodes = {}
    for number in range(count):
        here, after = f"s{number}", f"s{number + 1}"
        kind = Kind.SWITCH if number % 2 else Kind.SPLIT
        nodes[here] = Node(
            here, kind, is_join=kind is Kind.SWITCH, next=(f"a{number}", f"c{number}")
        )
        nodes[f"a{number}"] = Node(f"a{number}", Kind.LINEAR, next=(f"b{number}",))
        nodes[f"b{number}"] = Node(f"b{number}", Kind.LINEAR, next=(after,))
        nodes[f"c{number}"] = Node(f"c{number}", Kind.LINEAR, next=(after,))
    nodes[f"s{count}"] = Node(f"s{count}", Kind.END)
    return Graph("F", "s0", f"s{count}", connect(nodes, "s0"))


def test_a_graph_of_a_thousand_ways_through_is_levelled_and_outlined_at_once() -> None:
    graph = diamonds(60)

    assert 181 == len(graph.levels())
    assert "s60" == structure(graph)[-1]
    assert len(pickle.dumps(structure(graph))) < 20_000


def test_a_step_says_whether_it_has_many_tasks(definition: FlowDefinition) -> None:
    graph = definition.graph

    assert {"gang"} == graph.gangs
    assert {"item", "gang"} == {name for name in graph.nodes if graph.has_many_tasks(name)}


def test_keys_of_a_later_version_are_ignored(definition: FlowDefinition) -> None:
    data = json.loads(json.dumps(definition.graph.as_dict()))
    data["more"] = 1
    for node in data["nodes"]:
        node["more"] = [1]

    assert definition.graph == Graph.from_dict(data)


# ------------------------------------------------------------ the outline


def test_the_outline_has_the_names_that_tools_for_metaflow_read(
    definition: FlowDefinition,
) -> None:
    found = outline(definition)

    assert {"start": "split-static", "a": "split-foreach", "item": "linear", "items": "join",
            "b": "split-switch", "c": "linear", "d": "linear", "both": "split-parallel",
            "gang": "linear", "end": "end"} == {
        name: each["type"] for name, each in found["steps"].items()
    }  # fmt: skip
    assert [
        "start",
        [
            ["a", [["item"]], "items"],
            ["b", [["c"], ["d"]]],
        ],
        "both",
        [["gang"]],
        "end",
    ] == found["graph_structure"]
    assert ("xs", "items") == (
        found["steps"]["a"]["foreach_artifact"],
        found["steps"]["a"]["matching_join"],
    )
    assert ("v", {"x": "c", "2": "d", "True": "b", "-1.5": "c"}) == (
        found["steps"]["b"]["condition"],
        found["steps"]["b"]["switch_cases"],
    )
    assert ("start", "end", definition.file) == (
        found["start_step"],
        found["end_step"],
        found["file"],
    )
    assert found == json.loads(json.dumps(found))


def test_the_outline_has_parameters_constants_and_decorators(make_flow: MakeFlow) -> None:
    flow: Any = make_flow(
        """
        from aflow import Config
        class F(FlowSpec):
            alpha = Parameter("alpha", default=1)
            config = Config("config")
            size = 3
            @retry(times=2, on=ValueError)
            @step
            def only(self): pass
        """
    )
    Watched("x", loud=True)(flow.only)
    schedule(weekly=True)(flow)
    found = outline(define(flow))

    assert [("alpha", "Parameter"), ("config", "Config")] == [
        (each["name"], each["type"]) for each in found["parameters"]
    ]
    assert [{"name": "size", "type": "int"}] == found["constants"]
    custom, retry = found["steps"]["only"]["decorators"]
    assert {
        "name": f"{__name__}.Watched",
        "attributes": {"_args": ["x"], "loud": True},
    } == custom
    assert ("retry", 2, ["ValueError"]) == (
        retry["name"],
        retry["attributes"]["times"],
        retry["attributes"]["on"],
    )
    assert [("schedule", True)] == [
        (each["name"], each["attributes"]["weekly"]) for each in found["decorators"]
    ]
    assert ["only"] == found["graph_structure"]


# ------------------------------------------------------------ as Metaflow has it


def test_the_graph_of_a_class_says_what_metaflows_says(make_flow: MakeFlow) -> None:
    flow: Any = make_flow(EVERY_KIND)
    graph = flow._graph

    assert {"start": "split", "a": "foreach", "item": "linear", "items": "join",
            "b": "split-switch", "c": "linear", "d": "linear", "both": "foreach",
            "gang": "linear", "end": "end"} == {each.name: each.type for each in graph}  # fmt: skip
    assert ("Kinds", "start", "end") == (graph.name, graph.start_step, graph.end_step)
    assert graph.doc.startswith("All ways to go on.")
    assert "start" in graph
    assert "nothing" not in graph
    assert "<step start: split>" == repr(graph["start"])
    assert ["items", "c", "d"] == [*dict.fromkeys(define(flow).graph["both"].previous)]
    assert ["c", "d", "items"] == graph["both"].in_funcs
    assert (["start", "a"], ["start"], ["start"]) == (
        graph["items"].split_parents,
        graph["both"].split_parents,
        graph["b"].split_parents,
    )
    assert (2, 1) == (graph["items"].num_args, graph["item"].num_args)
    assert (True, False, True, False) == (
        graph["both"].parallel_foreach,
        graph["a"].parallel_foreach,
        graph["gang"].parallel_step,
        graph["item"].parallel_step,
    )
    assert {"item", "items", "gang", "end"} == {
        each.name for each in graph if each.is_inside_foreach
    } | {"items", "end"}
    assert ("v", {"x": "c", "2": "d", "True": "b", "-1.5": "c"}) == (
        graph["b"].condition,
        graph["b"].switch_cases,
    )
    assert (True, False, True, False) == (
        graph["start"].is_start_step,
        graph["end"].is_start_step,
        graph["end"].is_end_step,
        graph["end"].has_tail_next,
    )
    steps, laid_out = graph.output_steps()
    assert (set(define(flow).steps), structure(define(flow).graph)) == (set(steps), laid_out)


def test_the_steps_are_sorted_so_that_none_stands_before_what_leads_to_it(
    make_flow: MakeFlow,
) -> None:
    flow = make_flow(EVERY_KIND)
    order = FlowGraph(flow).sorted_nodes
    graph = define(flow).graph

    assert sorted(graph.nodes) == sorted(order)
    for name in order:
        for after in graph[name].next:
            assert after == name or order.index(name) < order.index(after)


def test_a_flow_without_steps_has_an_empty_graph(make_flow: MakeFlow) -> None:
    flow: Any = make_flow("class F(FlowSpec):\n    pass\n")

    assert ([], [], []) == (flow._graph.sorted_nodes, list(flow._graph), flow._steps)


def test_the_steps_of_a_class_are_its_functions(make_flow: MakeFlow) -> None:
    flow: Any = make_flow(TWO)

    assert [flow.start, flow.end] == flow._steps
    assert ["start", "end"] == [each.name for each in flow(use_cli=False)._steps]


def test_a_flow_may_set_an_attribute_that_metaflow_has_for_itself(make_flow: MakeFlow) -> None:
    flow: Any = make_flow(TWO)
    instance = flow(use_cli=False)
    instance._graph = "ours"
    running_one, _ = running(flow, "end", _graph="of an earlier step")

    assert "ours" == instance._graph
    assert "of an earlier step" == running_one._graph
    assert "F" == flow._graph.name


# ------------------------------------------------------------ private names of a task


def test_a_task_reads_what_metaflow_keeps_in_private(make_flow: MakeFlow) -> None:
    flow, context = running(make_flow(EVERY_KIND), "item", x=1)
    context.stack = [
        ForeachFrame("a", "xs", 3, 1, "b", 1),
        ForeachFrame("both", "", 2, 0, "", 2),
    ]

    assert [("item", "xs", 3, 1, "b"), ("gang", "_parallel_ubf_iter", None, 0, None)] == (
        flow._foreach_stack
    )
    assert ("xs", 1) == (flow._foreach_stack[0].var, flow._foreach_stack[0].index)
    assert ("item", [], False) == (flow._current_step, flow._iteration_stack, flow._success)
    assert [None] * 5 == [
        flow._exception,
        flow._foreach_num_splits,
        flow._foreach_var,
        flow._task_ok,
        flow._transition,
    ]
    assert outline(define(type(flow))) == flow._graph_info
    context.passes = 2
    assert [2] == flow._iteration_stack


def test_the_datastore_of_a_task_is_what_its_step_can_read(make_flow: MakeFlow) -> None:
    flow, context = running(make_flow(TWO), "end", b=2, a=1)
    there = flow._datastore

    assert ("TestFlow", 2, 1, ["a", "b"]) == (
        there.flow_name,
        there["b"],
        there.get("a"),
        list(there),
    )
    assert (2, True, False, None) == (len(there), "a" in there, "c" in there, there.get("c"))
    with pytest.raises(KeyError, match="'c'"):
        there["c"]
    assert ["_datastore", "b", "a", "c", "c"] == context.loaded


# ------------------------------------------------------------ any graph

NAMES = st.sampled_from(["start", "a", "b", "c", "d", "end"])
NODES = st.builds(
    lambda kind, join, following: (kind, join, tuple(following)),
    st.sampled_from(list(Kind)),
    st.booleans(),
    st.lists(NAMES | st.just("unknown"), max_size=3, unique=True),
)


@given(st.dictionaries(NAMES, NODES))
def test_any_graph_can_be_connected_levelled_and_outlined(
    described: dict[str, tuple[Kind, bool, tuple[str, ...]]],
) -> None:
    nodes = {name: Node(name, *rest) for name, rest in described.items()}
    graph = Graph("F", "start", "end", connect(nodes, "start"))
    levels = graph.levels()
    ordered = ways_to(nodes, "start")
    cycle = cycle_from(nodes, "start") if "start" in nodes else []

    assert set(ordered) == {name for level in levels for name in level}
    assert all(after in nodes[name].next for name, after in pairwise(cycle))
    assert graph == Graph.from_dict(json.loads(json.dumps(graph.as_dict())))
    laid_out = structure(graph)
    assert laid_out[:1] == (["start"] if "start" in nodes else ["end"] if "end" in nodes else [])


@settings(max_examples=40)  # each compiles a class
@given(st.data())
def test_any_flow_is_sound_or_its_problems_are_sentences_with_lines(data: st.DataObject) -> None:
    """Reading and checking flows of random steps never fails in another way."""
    names = ["start", "a", "b", "c", "end"]
    lines = ["class F(FlowSpec):"]
    calls = st.one_of(
        st.just("pass"),
        st.lists(st.sampled_from(names), min_size=1, max_size=3).map(
            lambda steps: f"self.next({', '.join(f'self.{each}' for each in steps)})"
        ),
        st.sampled_from(names).map(lambda name: f"self.next(self.{name}, foreach='xs')"),
        st.sampled_from(names).map(lambda name: f"self.next(self.{name}, num_parallel=2)"),
        st.tuples(st.sampled_from(names), st.sampled_from(names)).map(
            lambda two: f"self.next({{'x': self.{two[0]}, 'y': self.{two[1]}}}, condition='v')"
        ),
    )
    for name in names:
        inputs = data.draw(st.sampled_from(["", ", inputs"]))
        lines += ["    @step", f"    def {name}(self{inputs}):", f"        {data.draw(calls)}"]
    problems = check(define(flow_of(lines)))

    assert all(each.line in range(2, 18) for each in problems)
    assert all(each.message.endswith(".") for each in problems)


def flow_of(lines: list[str]) -> type[FlowSpec]:
    """Return the flow of this source, which exists only in linecache."""
    import linecache

    source = ["from aflow import FlowSpec, step\n", *(f"{line}\n" for line in lines)]
    linecache.cache["<random>"] = (1, None, source, "<random>")
    module: dict[str, Any] = {"__name__": "random_flow"}
    exec(compile("".join(source), "<random>", "exec"), module)
    found: type[FlowSpec] = module["F"]
    return found
