"""Flows whose steps are valid, but whose graph is not; see test_lint.py."""

from __future__ import annotations

from tests.unit.flow.flows import Fault

FAULTY_GRAPHS: list[Fault] = [
    (
        "a step that nothing leads to",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.end)
            @step
            def lost(self):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(7, "Step 'lost' is never reached")],
    ),
    (
        "a cycle",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.a)
            @step
            def a(self):
                self.next(self.b)
            @step
            def b(self):
                self.next({"again": self.a, "out": self.end}, condition="x")
            @step
            def end(self):
                pass
        """,
        [(7, "The steps a -> b -> a lead back")],
    ),
    (
        "a cycle through the start",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.a)
            @step
            def a(self):
                self.next({"again": self.start, "out": self.end}, condition="x")
            @step
            def end(self):
                pass
        """,
        [(4, "The steps start -> a -> start lead back")],
    ),
    (
        "a step that is not a switch and leads to itself",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.start, self.end)
            @step
            def end(self):
                pass
        """,
        [(4, "Step 'start' leads to itself")],
    ),
    (
        "a switch without a way out",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.a, self.b)
            @step
            def a(self):
                self.next({"x": self.a, "y": self.a}, condition="v")
            @step
            def b(self):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(7, "All cases of the switch in step 'a' lead to itself")],
    ),
    (
        "a split that is not joined",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.a, foreach="xs")
            @step
            def a(self):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(10, "reaches its end 'end' while the split in step 'start' is open")],
    ),
    (
        "branches that meet in a step that is not a join",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.a, self.b)
            @step
            def a(self):
                self.next(self.c)
            @step
            def b(self):
                self.next(self.c)
            @step
            def c(self):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(13, "Branches of the split in step 'start' meet in step 'c', which is not a join")],
    ),
    (
        "a join without a split",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.j)
            @step
            def j(self, inputs):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(7, "Step 'j' takes inputs as a join does, but no split is open")],
    ),
    (
        "a start that takes inputs",
        """
        class F(FlowSpec):
            @step
            def only(self, inputs):
                pass
        """,
        [(4, "Step 'only' takes inputs as a join does, but no split is open")],
    ),
    (
        "a join of some branches only",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.a, self.b, self.c)
            @step
            def a(self):
                self.next(self.j)
            @step
            def b(self):
                self.next(self.j)
            @step
            def c(self):
                self.next(self.j2)
            @step
            def j(self, inputs):
                self.next(self.j2)
            @step
            def j2(self, inputs):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(16, "not all of its branches lead to it: lead 'c' to it too")],
    ),
    (
        "a join of different splits",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.a, self.b)
            @step
            def a(self):
                self.next(self.c, foreach="xs")
            @step
            def c(self):
                self.next(self.j)
            @step
            def b(self):
                self.next(self.j)
            @step
            def j(self, inputs):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(16, "The join 'j' is reached from")],
    ),
    (
        "ways that meet with different splits open",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next({"x": self.a, "y": self.b}, condition="v")
            @step
            def a(self):
                self.next(self.b, foreach="xs")
            @step
            def b(self):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(10, "close the splits with a join before the ways meet")],
    ),
    (
        "a join right after its split",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.a, self.j)
            @step
            def a(self):
                self.next(self.j)
            @step
            def j(self, inputs):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(4, "leads straight into the join 'j'")],
    ),
    (
        "a gang without a join",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.a, num_parallel=4)
            @step
            def a(self):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(10, "while the split in step 'start' is open")],
    ),
    (
        "a gang with a limit",
        """
        class F(FlowSpec):
            @step
            def start(self):
                self.next(self.a, num_parallel=4)
            @concurrency(limit=2)
            @step
            def a(self):
                self.next(self.end)
            @step
            def end(self, inputs):
                pass
        """,
        [(8, "Step 'a' cannot have @concurrency")],
    ),
    (
        "@catch that keeps the exception under the name of a step",
        """
        class F(FlowSpec):
            @catch(var="end")
            @step
            def start(self):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(5, "Step 'start' cannot have @catch(var='end'): a step,")],
    ),
    (
        "@catch on a foreach",
        """
        class F(FlowSpec):
            @catch
            @step
            def start(self):
                self.next(self.a, foreach="xs")
            @step
            def a(self):
                self.next(self.end)
            @step
            def end(self, inputs):
                pass
        """,
        [(5, "Step 'start' cannot have @catch: it is a foreach")],
    ),
    (
        "@catch on a switch",
        """
        class F(FlowSpec):
            @catch(var="error")
            @step
            def start(self):
                self.next({1: self.a, 2: self.end}, condition="x")
            @step
            def a(self):
                self.next(self.end)
            @step
            def end(self):
                pass
        """,
        [(5, "Step 'start' cannot have @catch: it is a switch")],
    ),
    (
        "a parameter with the name of an option of run",
        """
        class F(FlowSpec):
            max_workers = Parameter("max-workers", default=3)
            @step
            def only(self):
                pass
        """,
        [(2, "Parameter 'max-workers' has the name of an option of run")],
    ),
    (
        "parameters that differ in capitals alone",
        """
        class F(FlowSpec):
            alpha = Parameter("alpha")
            ALPHA = Parameter("Alpha")
            @step
            def only(self):
                pass
        """,
        [(2, "'alpha' and 'Alpha' cannot be distinguished")],
    ),
]
