"""One tiny flow for each rule of the graph; every error is reported with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from aflow.flow.lint import check
from aflow.flow.spec import define
from tests.unit.flow.faulty_graphs import FAULTY_GRAPHS
from tests.unit.flow.faulty_steps import FAULTY_STEPS
from tests.unit.flow.flows import MakeFlow

FAULTS = [*FAULTY_STEPS, *FAULTY_GRAPHS]


@pytest.mark.parametrize(
    ("body", "expected"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)
def test_a_fault_is_reported_with_its_line(
    make_flow: MakeFlow, body: str, expected: list[tuple[int, str]]
) -> None:
    problems = check(define(make_flow(body)))

    assert [line for line, _ in expected] == [problem.line for problem in problems]
    for (_, part), problem in zip(expected, problems, strict=True):
        assert part in problem.message


# The arguments of self.next( in step start, and the error in them.
CALLS = [
    (")", "without a step"),
    ("self.a, self.a)", "leads to 'a' twice"),
    ("'a')", "gives \"'a'\" to self.next()"),
    ("*[self.a])", "gives '*[self.a]' to self.next()"),
    ("a)", "gives 'a' to self.next()"),
    ("self.a.b)", "gives 'self.a.b' to self.next()"),
    ("self.a, foreach='')", "has foreach=\"''\": foreach is the name"),
    ("self.a, foreach='x y')", "foreach is the name of the attribute to iterate over"),
    ("self.a, foreach=self.xs)", "has foreach='self.xs'"),
    ("self.a, foreach=1)", "has foreach='1'"),
    ("self.a, self.end, foreach='xs')", "gives foreach= with 2 steps"),
    ("self.a, foreach='xs', num_parallel=2)", "combines foreach and num_parallel"),
    ("self.a, num_parallel=0)", "has num_parallel=0: it must be a whole number above 0"),
    ("self.a, num_parallel=True)", "has num_parallel=True"),
    ("self.a, num_parallel='2')", "has num_parallel='2'"),
    ("self.a, self.end, num_parallel=2)", "gives num_parallel= with 2 steps"),
    ("self.a, forech='xs')", "gives forech= to self.next()"),
    ("self.a, **{})", "gives ** to self.next()"),
    ("self.a, condition='x')", "must write a switch as"),
    ("{'x': self.a, 'y': self.end})", "must write a switch as"),
    ("{'x': self.a, 'y': self.end}, self.a, condition='v')", "must write a switch as"),
    ("{'x': self.a, 'y': self.end}, foreach='v')", "must write a switch as"),
    ("{'x': self.a, 'y': self.end}, condition=self.v)", "has condition='self.v'"),
    ("{'x': self.a, 'y': self.end}, condition='v', foreach='xs')", "combines condition and"),
    ("{'x': self.a}, condition='v')", "is a switch with fewer than two cases"),
    ("{}, condition='v')", "is a switch with fewer than two cases"),
    ("{1: self.a, True: self.end}, condition='v')", "has the case True twice"),
    ("{'x': self.a, **more}, condition='v')", "has the case **"),
    ("{'x': self.a, None: self.end}, condition='v')", "has the case None"),
    ("{'x': self.a, y: self.end}, condition='v')", "has the case y"),
    ("{'x': self.a, (1, 2): self.end}, condition='v')", "has the case (1, 2)"),
    ("{'x': self.a, {'y', []}: self.end}, condition='v')", "has the case {'y', []}"),
    ("{'x': self.a, 'y': 'end'}, condition='v')", "name steps one by one"),
]


@pytest.mark.parametrize(("call", "part"), CALLS, ids=[call for call, _ in CALLS])
def test_a_next_that_cannot_be_read_is_reported_with_its_line(
    make_flow: MakeFlow, call: str, part: str
) -> None:
    flow = make_flow(
        f"""
        class F(FlowSpec):
            @step
            def start(self):
                self.next({call}
            @step
            def a(self):
                self.next(self.end)
            @step
            def end(self):
                pass
        """
    )

    (problem,) = check(define(flow))

    assert 5 == problem.line
    assert part in problem.message


def test_a_problem_names_the_file_too(make_flow: MakeFlow, tmp_path: Path) -> None:
    flow = make_flow("class F(FlowSpec):\n    pass\n    @step\n    def only(self, a, b): pass\n")

    (problem,) = check(define(flow))

    assert f"({tmp_path / 'flow_1.py'}, line 5)" in str(problem)


def test_all_problems_of_a_stage_are_reported_at_once(make_flow: MakeFlow) -> None:
    flow = make_flow(
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.x = 1
            @step
            def b(self):
                self.next(self.ende)
            @step
            def end(self):
                pass
        """
    )

    assert [4, 7] == [problem.line for problem in check(define(flow))]


# Flows that Metaflow refuses in part, and that can run here.
SOUND = [
    (
        "a single step",
        """
        class F(FlowSpec):
            @step
            def only(self):
                pass
        """,
    ),
    (
        "start and end by marks",
        """
        class F(FlowSpec):
            @step(start=True)
            def first(self):
                self.next(self.last)
            @step(end=True)
            def last(self):
                pass
        """,
    ),
    (
        "a foreach inside of a split inside of a gang",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.gang, num_parallel=2)
            @step
            def gang(self):
                self.next(self.a, self.b)
            @step
            def a(self):
                self.next(self.item, foreach="xs")
            @step
            def item(self):
                self.next(self.items)
            @step
            def items(self, inputs):
                self.next(self.both)
            @step
            def b(self):
                self.next(self.both)
            @step
            def both(self, inputs):
                self.next(self.all)
            @step
            def all(self, inputs):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
    ),
    (
        "a join that is a split, and another that is the end",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.a, self.b)
            @step
            def a(self):
                self.next(self.j)
            @step
            def b(self):
                self.next(self.j)
            @step
            def j(self, inputs):
                self.next(self.c, foreach="xs")
            @step
            def c(self):
                self.next(self.end)
            @step
            def end(self, inputs):
                pass
        """,
    ),
    (
        "a switch that leads into a join",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.a, foreach="xs")
            @step
            def a(self):
                self.next({"easy": self.j, "hard": self.b}, condition="how")
            @step
            def b(self):
                self.next(self.j)
            @step
            def j(self, inputs):
                self.next({True: self.end, False: self.more}, condition="done")
            @step
            def more(self):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
    ),
    (
        "a loop inside of a foreach",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.loop, foreach="xs")
            @step
            def loop(self):
                self.next({"again": self.loop, "done": self.j}, condition="how")
            @step
            def j(self, inputs):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
    ),
]


@pytest.mark.parametrize("body", [flow for _, flow in SOUND], ids=[name for name, _ in SOUND])
def test_a_flow_that_can_run_has_no_problems(make_flow: MakeFlow, body: str) -> None:
    assert [] == check(define(make_flow(body)))


def wide_flow(branches: int) -> str:
    lines = ["class F(FlowSpec):", "    @step", "    def start(self):"]
    lines += [f"        self.next({', '.join(f'self.s{n}' for n in range(branches))})"]
    for n in range(branches):
        lines += ["    @step", f"    def s{n}(self):", "        self.next(self.j)"]
    lines += ["    @step", "    def j(self, inputs):", "        self.next(self.end)"]
    return "\n".join([*lines, "    @step", "    def end(self):", "        pass", ""])


def test_a_join_of_five_hundred_branches_has_no_problems(make_flow: MakeFlow) -> None:
    definition = define(make_flow(wide_flow(500)))

    assert [] == check(definition)
    assert 500 == len(definition.graph["j"].previous)
