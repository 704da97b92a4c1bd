"""Flows that run on both: name -> body of the class, and the arguments of `run`."""

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
        self.next(self.again)

    @step
    def again(self):
        self.n += 1
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
    "foreach index": (foreach(work="self.y = (self.index, self.input)"), []),
    "foreach stack": (foreach(work="self.y = self.foreach_stack()[0]"), []),
    "foreach too wide": (foreach("range(5)"), ["--max-num-splits", "3"]),
    "foreach not iterable": (foreach("3"), []),
    "foreach failing task": (foreach(work="self.y = 1 // (self.input - 2)"), []),
    "caught in a foreach": (
        foreach(
            work="self.y = 1; 1 // (self.input - 2)",
            join="self.bad = [bool(each.broken) for each in inputs]",
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
