"""Flows with one invalid step; see test_lint.py."""

from __future__ import annotations

from tests.unit.flow.flows import Fault

FAULTY_STEPS: list[Fault] = [
    (
        "a flow without steps",
        """
        class F(FlowSpec):
            pass
        """,
        [(0, "Flow F has no steps")],
    ),
    (
        "no start and no end",
        """
        class F(FlowSpec):
            @step
            def a(self):
                self.next(self.b)
            @step
            def b(self):
                self.next(self.a)
        """,
        [(2, "has no start step"), (2, "has no end step")],
    ),
    (
        "two steps marked as start",
        """
        class F(FlowSpec):
            @step(start=True)
            def a(self):
                self.next(self.end)
            @step(start=True)
            def b(self):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(7, "'a' and 'b' both are the start")],
    ),
    (
        "a step named end beside the one marked as end",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.end)
            @step
            def end(self):
                self.next(self.last)
            @step(end=True)
            def last(self):
                pass
        """,
        [(7, "'last' and 'end' both are the end")],
    ),
    (
        "a step name with capitals",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.Train)
            @step
            def Train(self):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(7, "'Train' cannot be the name of a step")],
    ),
    (
        "a step name that begins with an underscore",
        """
        class F(FlowSpec):
            @step(start=True, end=True)
            def _only(self):
                pass
        """,
        [(4, "'_only' cannot be the name of a step")],
    ),
    (
        "a step of a reserved name",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.end)
            @step
            def end(self):
                pass
            @step
            def input(self):
                pass
        """,
        [(2, "'input' is a reserved name")],
    ),
    (
        "a constant of a reserved name",
        """
        class F(FlowSpec):
            name = "my flow"
            @step
            def only(self):
                pass
        """,
        [(2, "'name' is a reserved name")],
    ),
    (
        "a step with too many arguments",
        """
        class F(FlowSpec):
            @step
            def only(self, inputs, more):
                pass
        """,
        [(4, "Step 'only' must take the argument (self)")],
    ),
    (
        "a step that takes any arguments",
        """
        class F(FlowSpec):
            @step
            def only(self, *args):
                pass
        """,
        [(4, "Step 'only' must take the argument (self)")],
    ),
    (
        "a step that is a generator",
        """
        class F(FlowSpec):
            @step
            def only(self):
                yield 1
        """,
        [(4, "is a generator")],
    ),
    (
        "a step under another name",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.end)
            @step
            def last(self):
                pass
            end = last
            del last
        """,
        [(7, "Step 'end' is the function 'last' under another name")],
    ),
    (
        "a step that a decorator without functools.wraps has replaced",
        """
        def noted(function):
            def inner(*args, **options):
                return function(*args)
            return inner
        class F(FlowSpec):
            @step
            @noted
            def start(self):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(3, "Step 'start' is the function 'inner' under another name")],
    ),
    (
        "a decorator without @step",
        """
        class F(FlowSpec):
            @step
            def only(self):
                pass
            @retry
            def helper(self):
                pass
        """,
        [(2, "method 'helper' has @retry but is not a step")],
    ),
    (
        "no self.next",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.x = 1
            @step
            def end(self):
                pass
        """,
        [(4, "Step 'start' does not say which step follows")],
    ),
    (
        "self.next in the end",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.end)
            @step
            def end(self):
                self.next(self.start)
        """,
        [(8, "Step 'end' is the end of the flow")],
    ),
    (
        "self.next twice",
        """
        class F(FlowSpec):
            @step
            def start(self):
                if self.x:
                    self.next(self.end)
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(7, "calls self.next() more than once")],
    ),
    (
        "self.next inside of an if",
        """
        class F(FlowSpec):
            @step
            def start(self):
                if True:
                    self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(6, "must call self.next() as its last statement")],
    ),
    (
        "self.next before something else",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.end)
                self.x = 1
            @step
            def end(self):
                pass
        """,
        [(5, "must call self.next() as its last statement")],
    ),
    (
        "self.next that is returned",
        """
        class F(FlowSpec):
            @step
            def start(self):
                return self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(5, "must call self.next() as its last statement")],
    ),
    (
        "self.next that is awaited",
        """
        class F(FlowSpec):
            @step
            async def start(self):
                await self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(5, "must call self.next() as its last statement")],
    ),
    (
        "a step that is not known",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.en)
            @step
            def end(self):
                pass
        """,
        [(4, "leads to 'en', which is not a step. Did you mean 'end'?")],
    ),
    (
        "a method without @step",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.helper)
            def helper(self):
                pass
            @step
            def end(self):
                pass
        """,
        [(4, "leads to 'helper', which is not a step")],
    ),
]
