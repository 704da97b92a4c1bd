"""The flow language in real runs: the behaviour and results of each kind of step."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from aflow.scheduler.states import RunState
from tests.flows.conftest import Workspace

LINEAR = """
class Flow_(FlowSpec):
    alpha = Parameter("alpha", default=0.01, help="Learning rate")
    factor = 3

    @step
    def start(self):
        self.x = 2
        print("alpha is %f" % self.alpha)
        self.next(self.end)

    @step
    def end(self):
        print("x is", self.x, "times", self.factor, "alpha", self.alpha)
"""


def test_artifacts_parameters_and_constants_flow_down_a_line(workspace: Workspace) -> None:
    workspace.write(LINEAR)
    ran = workspace.run("--alpha", "0.5")
    assert ran.code == 0, ran.err
    assert "alpha is 0.500000" in ran.lines
    assert "x is 2 times 3 alpha 0.5" in ran.lines
    workspace.check()


def test_a_flow_of_one_step_starts_and_ends_with_it(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def only(self):
                print("just this")
    """)
    ran = workspace.run()
    assert ran.code == 0, ran.err
    assert "just this" in ran.lines


@pytest.mark.parametrize("name", ["queue", "json", "msgpack", "token", "types", "concurrent"])
def test_a_flow_file_may_be_named_like_a_module_that_is_needed(
    workspace: Workspace, name: str
) -> None:
    file = workspace.write(LINEAR, f"{name}.py")
    # What a file imports before aflow is between it and Python.
    file.write_text("import aflow\n" + file.read_text())
    # `python -m` itself imports types from the working folder, before anything of aflow.
    aflow = ["-m", "aflow"] if name != "types" else [str(Path(sys.executable).with_name("aflow"))]
    words = (
        [*aflow, "run", f"{name}.py"],
        [f"{name}.py", "run", "--isolation", "worker"],
        *([["-m", name, "run"]] if name in ("queue", "token") else []),
    )
    for each in words:
        process = workspace._start([*each, "--no-pylint"], {})
        ran = workspace.finish(process)
        assert "x is 2 times 3 alpha 0.01" in ran.lines, ran.out + ran.err


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_threads_of_a_step_see_its_task(workspace: Workspace, isolation: str) -> None:
    workspace.write("""
        from concurrent.futures import ThreadPoolExecutor

        def seen(_=None):
            return current.run_id, current.step_name, current.pathspec, current.is_running_flow

        class Flow_(FlowSpec):
            @step
            def start(self):
                with ThreadPoolExecutor(2) as pool:
                    print("same", set(pool.map(seen, range(4))) == {seen()})
                self.next(self.end)

            @step
            async def end(self):
                import asyncio
                loop = asyncio.get_running_loop()
                print("same", await loop.run_in_executor(None, seen) == seen())
    """)
    ran = workspace.run("--isolation", isolation)
    assert ["same True", "same True"] == [each for each in ran.lines if "same" in each], ran.err


def test_start_and_end_may_have_any_name(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step(start=True)
            def begin(self):
                self.next(self.finish)

            @step(end=True)
            def finish(self):
                print("finished")
    """)
    assert "finished" in workspace.run().lines


def test_branches_meet_in_a_join_that_reads_them_by_name(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.common = [1, 2]
                self.next(self.a, self.b)

            @step
            def a(self):
                self.x = "from a"
                self.next(self.join)

            @step
            def b(self):
                self.x = "from b"
                self.next(self.join)

            @step
            def join(self, inputs):
                print(inputs.a.x, inputs.b.x, [each.x for each in inputs], len(inputs))
                self.merge_artifacts(inputs, exclude=["x"])
                self.next(self.end)

            @step
            def end(self):
                print("common", self.common, hasattr(self, "x"))
    """)
    ran = workspace.run()
    assert ran.code == 0, ran.out + ran.err
    assert "from a from b ['from a', 'from b'] 2" in ran.lines
    assert "common [1, 2] False" in ran.lines


FAN = """
class Flow_(FlowSpec):
    n = Parameter("n", type=int, default=5)

    @step
    def start(self):
        self.xs = list(range(self.n))
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        self.y = self.input * self.input
        self.where = (self.index, self.foreach_stack())
        self.next(self.later)

    @step
    def later(self):
        assert self.input ** 2 == self.y
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ys = [each.y for each in inputs]
        self.where = [each.where for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        print("ys", self.ys)
        print("where", self.where[-1:])
"""


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_a_foreach_hands_each_task_its_item_and_joins_in_order(
    workspace: Workspace, isolation: str
) -> None:
    workspace.write(FAN)
    ran = workspace.run("--isolation", isolation, "--max-workers", "3")
    assert ran.code == 0, ran.out + ran.err
    assert "ys [0, 1, 4, 9, 16]" in ran.lines
    assert "where [(4, [(4, 5, 4)])]" in ran.lines
    assert "Foreach yields 5 child steps." in ran.lines
    workspace.check()


def test_a_foreach_over_nothing_goes_straight_to_its_join(workspace: Workspace) -> None:
    workspace.write(FAN)
    ran = workspace.run("--n", "0")
    assert ran.code == 0, ran.out + ran.err
    assert "ys []" in ran.lines


BRANCHES_OF_ITEMS = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.items = list(range(6))
        self.next(self.fork, foreach="items")

    @step
    def fork(self):
        self.next(self.left, self.right)

    @step
    def left(self):
        self.x = self.input
        self.next(self.inner)

    @step
    def right(self):
        self.x = 100
        self.next(self.inner)

    @step
    def inner(self, inputs):
        self.sum = inputs.left.x + inputs.right.x
        self.next(self.outer)

    @step
    def outer(self, inputs):
        self.sums = [each.sum for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        print("sums", self.sums)
"""


@pytest.mark.parametrize(("isolation", "workers"), [("task", 2), ("worker", 3)])
def test_joins_of_branches_run_while_other_items_keep_all_places_busy(
    workspace: Workspace, isolation: str, workers: int
) -> None:
    workspace.write(BRANCHES_OF_ITEMS)
    ran = workspace.run("--isolation", isolation, "--max-workers", str(workers))
    assert ran.code == 0, ran.out + ran.err
    assert "sums [100, 101, 102, 103, 104, 105]" in ran.lines
    workspace.check()


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_foreach_in_foreach_joins_level_by_level(workspace: Workspace, isolation: str) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.letters = "abc"
                self.next(self.outer, foreach="letters")

            @step
            def outer(self):
                self.letter = self.input
                self.numbers = {10, 20} if self.letter != "b" else set()
                self.next(self.inner, foreach="numbers")

            @step
            def inner(self):
                outer, inner = self.foreach_stack()
                self.text = f"{outer[2]}{self.input} {outer[0]}/{outer[1]} {inner[1]}"
                self.next(self.join_inner)

            @step
            def join_inner(self, inputs):
                self.texts = sorted(each.text for each in inputs)
                self.mine = (self.index, self.input)
                self.next(self.join_outer)

            @step
            def join_outer(self, inputs):
                self.texts = [each.texts for each in inputs]
                self.mine = [each.mine for each in inputs]
                self.next(self.end)

            @step
            def end(self):
                print(self.texts)
                print(self.mine, self.index, self.foreach_stack())
    """)
    ran = workspace.run("--isolation", isolation)
    assert ran.code == 0, ran.out + ran.err
    assert "[['a10 0/3 2', 'a20 0/3 2'], [], ['c10 2/3 2', 'c20 2/3 2']]" in ran.lines
    assert "[(0, 'a'), (1, 'b'), (2, 'c')] None []" in ran.lines


def test_what_is_changed_in_place_is_seen_as_changed(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.xs, self.ys = [1], [1]
                self.rows = [{"a": 1}, {"a": 1}, {"a": 3}]
                self.next(self.middle, foreach="rows")

            @step
            def middle(self):
                self.xs.append(2)
                self.ys
                self.input["b"] = 2
                self.row = self.input, self.foreach_stack()[0][2]
                self.next(self.join)

            @step
            def join(self, inputs):
                self.merge_artifacts(inputs, exclude=["row"])
                self.items = [each.input["a"] for each in inputs], inputs[2].row
                self.next(self.end)

            @step
            def end(self):
                print(self.xs, self.ys, self.items)
    """)
    row = {"a": 3, "b": 2}
    assert f"[1, 2] [1] {([1, 1, 3], (row, row))}" in workspace.run().lines


def test_steps_parameters_and_constants_are_inherited(workspace: Workspace) -> None:
    workspace.write("""
        class Base(FlowSpec):
            beta = Parameter("beta", default=7)
            constant = "c"

            @step
            def start(self):
                self.next(self.end)

        class Flow_(Base):
            @step
            def end(self):
                print(self.beta, self.constant)
    """)
    ran = workspace.run()
    assert "7 c" in ran.lines, ran.err


def test_a_switch_takes_the_case_that_its_condition_names(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.n = 0
                self.next(self.loop)

            @step
            def loop(self):
                self.n += 1
                self.more = self.n < 3
                self.next({True: self.loop, False: self.end}, condition="more")

            @step
            def end(self):
                print("went round", self.n)
    """)
    ran = workspace.run()
    assert "went round 3" in ran.lines, ran.out + ran.err


def test_coroutine_steps_run_side_by_side_in_one_process(workspace: Workspace) -> None:
    workspace.write("""
        import asyncio

        class Flow_(FlowSpec):
            @step
            def start(self):
                self.xs = list(range(50))
                self.next(self.work, foreach="xs")

            @step
            async def work(self):
                print("begin", self.input, current.task_id)
                await asyncio.sleep(0.2)
                self.pid = os.getpid()
                self.y = (self.input, current.task_id)
                self.next(self.join)

            @step
            def join(self, inputs):
                self.pids = {each.pid for each in inputs}
                self.ys = [each.y for each in inputs]
                self.next(self.end)

            @step
            async def end(self):
                print(len(self.pids), self.ys[3])
    """)
    ran = workspace.run("--max-workers", "50")
    assert ran.code == 0, ran.out + ran.err
    assert "1 (3, '5')" in ran.lines
    for line in ran.out.splitlines():
        if " begin " in line:
            head, text = line.split("] ", 1)
            _, item, task = text.split()
            assert head.split("[")[1].split("/")[2].split()[0] == task
            assert int(item) == int(task) - 2
    workspace.check()


def test_a_value_of_a_parameter_is_converted_once_however_it_comes(workspace: Workspace) -> None:
    file = workspace.write("""
        import click

        class Marking(click.ParamType):
            name = "marking"

            def convert(self, value, parameter, context):
                return value + "!"

        class Flow_(FlowSpec):
            j = Parameter("j", type=JSONType, default='"by default"')
            c = Parameter("c", type=Marking(), default="c")
            u = Parameter("u", type=lambda text: text + "?", separator=",", default="a,b")
            m = Parameter("m", type=JSONType, multiple=True)
            two = Parameter("two", type=(str, JSONType))
            asked = Parameter("asked", type=JSONType, callback=lambda c, p, value: [value])

            @step
            def start(self):
                print([self.j, self.c, self.u, self.m, self.two, self.asked])
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    values = workspace.path / "values.json"
    values.write_text(json.dumps({"j": '"1"', "c": "f", "m": ['"1"', [2]], "asked": "[]"}))
    words = ["--j", '"1"', "--c=x", "--u", "z", "--m", '"1"', "--m=null", "--two", "a", '"b"']

    for given, environment, expected in (
        ([], {}, ["by default", "c!", ["a?", "b?"], (), None, [None]]),
        (words, {}, ["1", "x!", ["z?"], ("1", None), ("a", "b"), [None]]),
        (["--j=null"], {"METAFLOW_RUN_C": "e"}, [None, "e!", ["a?", "b?"], (), None, [None]]),
        (["--asked", '"1"'], {"AFLOW_RUN_J": '"e"'}, ["e", "c!", ["a?", "b?"], (), None, ["1"]]),
    ):
        ran = workspace.run(*given, **environment)
        assert str(expected) in ran.lines, ran.out + ran.err

    file.write_text(file.read_text().replace(", callback=lambda c, p, value: [value]", ""))
    ran = workspace.run("--parameters-file", str(values))
    assert str(["1", "f!", ["a?", "b?"], ("1", [2]), None, []]) in ran.lines, ran.out + ran.err
    ran = workspace.finish(workspace.start("resume", "start", "--j", '"r"', "--c=r"))
    assert str(["r", "r!", ["a?", "b?"], ("1", [2]), None, []]) in ran.lines, ran.out + ran.err


def test_a_plain_run_takes_a_json_text_for_what_it_says(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            j = Parameter("j", type=JSONType, default=[1])

            @step
            def start(self):
                print(repr(self.j))
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    for written, expected in (('"hello"', "'hello'"), ('"1"', "'1'"), ("null", "None")):
        ran = workspace.run("--j", written)
        assert expected in ran.lines, ran.err
    refused = workspace.run("--j", "hello")
    assert (2, True) == (refused.code, "which is not JSON" in refused.err)


def test_parameters_of_every_type_arrive_as_values(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            i = Parameter("i", type=int, required=True)
            f = Parameter("f", default=1.5)
            b = Parameter("b", default=False)
            s = Parameter("s", default="text")
            j = Parameter("j", type=JSONType, default='{"a": [1]}')
            names = Parameter("names", separator=",", default="x,y")
            when = Parameter("when", default=lambda context: context.flow_name + "!")

            @step
            def start(self):
                print([self.i, self.f, self.b, self.s, self.j, self.names, self.when])
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    ran = workspace.run("--i", "4", "--b", "true", "--j", "[1, null]")
    assert "[4, 1.5, True, 'text', [1, None], ['x', 'y'], 'Flow_!']" in ran.lines, ran.err
    assert workspace.run().code == 2
    assert workspace.run("--i", "four").code == 2


def test_current_tells_a_task_who_it_is(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            p = Parameter("p", default=1)

            @step
            def start(self):
                run = current.run_id
                assert current.pathspec == f"Flow_/{run}/start/1", current.pathspec
                assert current.is_running_flow
                print(current.flow_name, current.step_name, current.task_id, current.retry_count,
                      current.username, current.parameter_names, current.namespace)
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    ran = workspace.run()
    assert "Flow_ start 1 0 tester ['p'] user:tester" in ran.lines, ran.out + ran.err


def test_a_wide_foreach_needs_a_word_of_permission(workspace: Workspace) -> None:
    workspace.write(FAN)
    ran = workspace.run("--n", "101")
    assert ran.code == 1
    assert "Foreach in step start yielded 101 child steps" in ran.err
    assert "--max-num-splits" in ran.err
    assert workspace.run("--n", "101", "--max-num-splits", "101", "--isolation", "worker").code == 0


def test_a_join_may_go_on_in_any_way(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.xs = [1, 2]
                self.next(self.work, foreach="xs")

            @step
            def work(self):
                self.y = self.input
                self.next(self.join)

            @step
            def join(self, inputs):
                self.ys = [each.y for each in inputs]
                self.next(self.again, foreach="ys")

            @step
            def again(self):
                self.z = self.input * 10
                self.next(self.end)

            @step
            def end(self, inputs):
                print("sum", sum(each.z for each in inputs))
    """)
    ran = workspace.run()
    assert "sum 30" in ran.lines, ran.out + ran.err
    assert workspace.latest()[0] is RunState.SUCCEEDED


def test_a_loop_inside_of_a_foreach_joins_with_its_last_round(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.xs = [1, 2, 3]
                self.next(self.begin, foreach="xs")

            @step
            def begin(self):
                self.n = 0
                self.next(self.loop)

            @step
            def loop(self):
                self.n += 1
                self.more = self.n < self.input
                self.next({True: self.loop, False: self.after}, condition="more")

            @step
            def after(self):
                self.next(self.join)

            @step
            def join(self, inputs):
                print("rounds", [each.n for each in inputs])
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    for isolation in ("task", "worker"):
        ran = workspace.run("--isolation", isolation)
        assert "rounds [1, 2, 3]" in ran.lines, ran.out + ran.err


def test_a_join_may_be_a_switch_and_a_switch_may_lead_into_a_join(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.xs = [1, 2, 3]
                self.next(self.work, foreach="xs")

            @step
            def work(self):
                self.y = self.input
                self.odd = self.y % 2 == 1
                self.next({True: self.join, False: self.extra}, condition="odd")

            @step
            def extra(self):
                self.y = -self.y
                self.next(self.join)

            @step
            def join(self, inputs):
                self.ys = [each.y for each in inputs]
                self.kind = "few" if len(self.ys) < 5 else "many"
                self.next({"few": self.few, "many": self.many}, condition="kind")

            @step
            def few(self):
                print("few", self.ys)
                self.next(self.end)

            @step
            def many(self):
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    for isolation in ("task", "worker"):
        ran = workspace.run("--isolation", isolation)
        assert "few [1, -2, 3]" in ran.lines, ran.out + ran.err
    assert workspace.latest()[0] is RunState.SUCCEEDED


@pytest.mark.parametrize(
    ("join", "reported"),
    [
        (
            "self.again = False\n        "
            "self.next({True: self.join, False: self.end}, condition='again')",
            "only a switch that is not a join may do that",
        ),
        ("self.next(self.missing)", "which is not a step"),
    ],
)
def test_what_no_scheduler_could_run_is_refused_in_a_sentence(
    workspace: Workspace, join: str, reported: str
) -> None:
    workspace.write(FAN.replace("self.next(self.end)", join, 1))
    ran = workspace.run()
    assert 1 == ran.code
    assert reported in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("old", "new", "reported"),
    [
        ("self.next(self.work, ", "self.next(self.join, ", "leads straight into the join"),
        ("def join(self, inputs):", "def join(self):", "is open"),
    ],
)
def test_a_foreach_that_is_not_joined_well_is_refused(
    workspace: Workspace, old: str, new: str, reported: str
) -> None:
    assert old in FAN
    workspace.write(FAN.replace(old, new))
    ran = workspace.run()
    assert 1 == ran.code
    assert reported in ran.err
    assert "Traceback" not in ran.err
