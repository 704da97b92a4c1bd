"""Flows that run on both systems: name -> body of the class, and the arguments of `run`."""

from __future__ import annotations

LINE = """
    @step
    def start(self):
        {start}
        self.next(self.end)

    @step
    def end(self):
        {end}
"""


def line(start: str, end: str = "pass") -> str:
    """A flow of two steps."""
    return LINE.format(start=start, end=end)


FOREACH = """
    @step
    def start(self):
        self.xs = {items}
        self.kept = "kept"
        self.next(self.work, foreach="xs")

    {decorators}
    @step
    def work(self):
        {work}
        self.next(self.join)

    @step
    def join(self, inputs):
        {join}
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def foreach(
    items: str = "[1, 2, 3]",
    work: str = "self.y = self.input * 2",
    join: str = "self.ys = [each.y for each in inputs]",
    decorators: str = "",
) -> str:
    """A foreach and its join."""
    return FOREACH.format(items=items, work=work, join=join, decorators=decorators)


BRANCHES = """
    @step
    def start(self):
        self.same = 1
        self.next(self.a, self.b)

    @step
    def a(self):
        self.x = "a"
        {a}
        self.next(self.join)

    @step
    def b(self):
        self.x = "b"
        {b}
        self.next(self.join)

    @step
    def join(self, inputs):
        {join}
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def branches(join: str, a: str = "pass", b: str = "pass") -> str:
    """Two branches and their join."""
    return BRANCHES.format(join=join, a=a, b=b)


SWITCH = """
    way = Parameter("way", default="left")

    @step
    def start(self):
        self.next({"left": self.left, "right": self.right}, condition="way")

    @step
    def left(self):
        self.went = "left"
        self.next(self.end)

    @step
    def right(self):
        self.went = "right"
        self.next(self.end)

    @step
    def end(self):
        pass
"""

LOOP = """
    @step
    def start(self):
        self.n = 0
        self.passes = [list(self._iteration_stack)]
        self.next(self.again)

    @step
    def again(self):
        self.n += 1
        self.passes = [*self.passes, list(self._iteration_stack)]
        self.more = "yes" if self.n < 3 else "no"
        self.next({"yes": self.again, "no": self.end}, condition="more")

    @step
    def end(self):
        pass
"""

PARAMETERS = """
    text = Parameter("text", default="t")
    number = Parameter("number", default=3)
    ratio = Parameter("ratio", default=0.5)
    flag = Parameter("flag", default=True)
    data = Parameter("data", type=JSONType, default='{"a": [1]}')
    words = Parameter("words", separator=",", default="a,b")
    called = Parameter("called", default=lambda context: context.parameter_name)
""" + line("self.seen = (self.text, self.number, self.ratio, self.flag, self.words)")

NO_NEXT = """
    @step
    def start(self):
        pass

    @step
    def end(self):
        pass
"""

UNREACHABLE = """
    @step
    def lost(self):
        self.next(self.end)
"""

FLOWS: dict[str, tuple[str, list[str]]] = {
    "artifacts": (line("self.a = 1; self.b = 'x'", "self.b = self.b * 2"), []),
    "printed lines": (line("print('one'); print('two')"), []),
    "many types": (line("self.v = [None, 1.5, b'x', (1,), {'k': 1}, 10**30]"), []),
    "deleted artifact": (line("self.a = 1; self.b = 2", "del self.a"), []),
    "mutated list": (line("self.a = [1]", "self.a.append(2)"), []),
    "class constant": ("    size = 3\n" + line("self.double = self.size * 2"), []),
    "failing step": (line("raise ValueError('no')"), []),
    "exit code in a step": (line("import sys; sys.exit(3)"), []),
    "unknown artifact": (line("self.a = self.nothing"), []),
    "parameters": (PARAMETERS, []),
    "parameters given": (PARAMETERS, ["--text", "x", "--number", "4", "--flag", "false"]),
    "parameter of a wrong type": (PARAMETERS, ["--number", "x"]),
    "unknown option": (PARAMETERS, ["--nothing", "1"]),
    "required parameter": ('    p = Parameter("p", required=True)\n' + line("pass"), []),
    "foreach": (foreach(), []),
    "foreach over a string": (foreach("'abc'"), []),
    "foreach with merge": (foreach(join="self.merge_artifacts(inputs, exclude=['y'])"), []),
    "foreach index": (foreach(work="self.y = (self.index, self.input, str(self))"), []),
    "foreach stack": (foreach(work="self.y = self.foreach_stack()[0]"), []),
    "foreach too wide": (foreach("range(5)"), ["--max-num-splits", "3"]),
    "foreach not iterable": (foreach("3"), []),
    "foreach failing task": (foreach(work="self.y = 1 // (self.input - 2)"), []),
    "caught in a foreach": (
        foreach(
            work="self.y = 1; 1 // (self.input - 2)",
            join="self.bad = [(e.broken.type, e.broken.exception, 'by zero' in e.broken.stacktrace)"
            " if e.broken else None for e in inputs]",
            decorators="@catch(var='broken', print_exception=False)",
        ),
        [],
    ),
    "retried": (
        foreach(
            "[1]",
            "self.y = current.retry_count; assert self.y == 1",
            decorators="@retry(times=1, minutes_between_retries=0)",
        ),
        [],
    ),
    "branches": (branches("self.xs = [inputs.a.x, inputs.b.x]"), []),
    "branches iterated": (branches("self.xs = sorted(each.x for each in inputs)"), []),
    "merge conflict": (branches("self.merge_artifacts(inputs)"), []),
    "merge include": (branches("self.merge_artifacts(inputs, include=['same'])"), []),
    "merge exclude": (branches("self.merge_artifacts(inputs, exclude=['x'])"), []),
    "merge missing": (branches("self.merge_artifacts(inputs, include=['zzz'])"), []),
    "merge resolved": (branches("self.x = 'mine'; self.merge_artifacts(inputs)"), []),
    "switch": (SWITCH, []),
    "switch the other way": (SWITCH, ["--way", "right"]),
    "switch to nowhere": (SWITCH, ["--way", "up"]),
    "recursion": (LOOP, []),
    "timeout": (
        "    pass\n" + line("pass").replace("@step", "@timeout(seconds=20)\n    @step"),
        [],
    ),
    "environment": (
        line("import os; self.v = os.environ['V']").replace(
            "    @step", "    @environment(vars={'V': 'x'})\n    @step", 1
        ),
        [],
    ),
    "no next": (NO_NEXT, []),
    "unreachable step": (line("pass") + UNREACHABLE, []),
    "current": (line("self.v = (current.flow_name, current.step_name, current.retry_count)"), []),
    "tags": (line("self.v = sorted(current.tags)"), ["--tag", "one", "--tag", "two"]),
}

# Features that need more than the body of a class: name -> files, and the arguments of `run`.
CONFIGURED = """
import os
from metaflow import (
    Config, FlowMutator, FlowSpec, IncludeFile, Parameter, StepMutator, UserStepDecorator,
    USER_SKIP_STEP, config_expr, current, environment, project, retry, secrets, step,
    user_step_decorator,
)


@user_step_decorator
def noted(step_name, flow, inputs, attributes):
    flow.before = step_name + attributes.get("word", "")
    yield
    flow.after = getattr(flow, "value", None)


@user_step_decorator
def skipped(step_name, flow, inputs):
    flow.skipped = True
    yield USER_SKIP_STEP


class Counted(UserStepDecorator):
    def init(self, *args, **kwargs):
        self.by = kwargs.get("by", 1)

    def pre_step(self, step_name, flow, inputs=None):
        flow.count = self.by

    def post_step(self, step_name, flow, exception=None):
        flow.count += self.by


class Grown(FlowMutator):
    def pre_mutate(self, mutable_flow):
        mutable_flow.add_parameter("extra", Parameter("extra", default=5))

    def mutate(self, mutable_flow):
        for name, each in mutable_flow.steps:
            if name == "middle":
                each.add_decorator(environment, deco_kwargs={"vars": {"V": mutable_flow.config.v}})


class Tried(StepMutator):
    def mutate(self, mutable_step):
        mutable_step.add_decorator("retry", deco_kwargs={"times": 1})


@project(name=config_expr("config.name"))
@Grown
class TheFlow(FlowSpec):
    config = Config("config", default="config.json")
    given = Config("given", default_value="{}")
    table = IncludeFile("table", default="table.txt")
    data = IncludeFile("data", default="table.txt", is_text=False)
    size = Parameter("size", default=config_expr("config.size"))

    @noted(word="!")
    @step
    def start(self):
        self.value = self.size * 2
        self.texts = self.table.splitlines(), self.data
        self.nested = self.config.deep.name, self.config["deep"]["list"][1], len(self.config)
        self.next(self.middle)

    @secrets(sources=[{"type": "inline", "id": "s", "options": {"env_vars": {"SECRET": "s"}}}])
    @Tried
    @Counted(by=2)
    @step
    def middle(self):
        self.seen = os.environ["V"], os.environ["SECRET"], self.extra, current.retry_count
        self.place = current.project_name, current.branch_name, current.is_production
        self.next(self.lost)

    @skipped
    @step
    def lost(self):
        raise ValueError("never")
        self.next(self.end)

    @step
    def end(self):
        self.named = current.project_flow_name, self.given.to_dict()


if __name__ == "__main__":
    TheFlow()
"""
CONFIGURED_FILES = {
    "flow.py": CONFIGURED,
    "config.json": '{"name": "ours", "v": "w", "size": 4, "deep": {"name": "n", "list": [1, 2]}}',
    "table.txt": "a,b\n1,2\n",
}

SHAPES = """
from metaflow import FlowSpec, Parameter, current, parallel, step


class Base(FlowSpec):
    width = Parameter("width", default=2)
    inherited = "constant"

    @step
    def end(self):
        self.last = self.inherited, self.total


class TheFlow(Base):
    @step(start=True)
    def begin(self):
        self.rows = {"a": [1, 2], "b": [3]}
        self.names = list(self.rows)
        self.next(self.row, self.gang)

    @step
    def row(self):
        self.next(self.each, foreach="names")

    @step
    def each(self):
        self.items = self.rows[self.input]
        self.next(self.item, foreach="items")

    @step
    def item(self):
        self.seen = [(frame[0], frame[1], frame[2]) for frame in self.foreach_stack()]
        self.cost = self.input * 10
        self.next(self.sum_row)

    @step
    def sum_row(self, inputs):
        self.cost = sum(each.cost for each in inputs)
        self.seen = [each.seen for each in inputs]
        self.merge_artifacts(inputs, include=["names"])
        self.next(self.sum_rows)

    @step
    def sum_rows(self, inputs):
        self.costs = [each.cost for each in inputs]
        self.merge_artifacts(inputs, include=["names"])
        self.next(self.meet)

    @step
    def gang(self):
        self.next(self.member, num_parallel=2)

    @parallel
    @step
    def member(self):
        self.place = current.parallel.node_index, current.parallel.num_nodes
        self.next(self.together)

    @step
    def together(self, inputs):
        self.places = sorted(each.place for each in inputs)
        self.next(self.meet)

    @step
    def meet(self, inputs):
        self.total = sum(inputs.sum_rows.costs), inputs.together.places
        self.next(self.end)


if __name__ == "__main__":
    TheFlow()
"""
ONE_STEP = """
from metaflow import FlowSpec, Parameter, step


class TheFlow(FlowSpec):
    words = Parameter("words", separator=",", default="a,b")

    @step
    def only(self):
        self.made = self.words * 2


if __name__ == "__main__":
    TheFlow()
"""
FILES: dict[str, tuple[dict[str, str], list[str]]] = {
    "configs, files, mutators and decorators of users": (CONFIGURED_FILES, []),
    "parameters over configs": (CONFIGURED_FILES, ["--size", "7", "--extra", "1"]),
    "all shapes": ({"flow.py": SHAPES}, []),
    "one step": ({"flow.py": ONE_STEP}, ["--words", "x,y,z"]),
}
