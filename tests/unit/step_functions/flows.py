"""Flows of each shape, whose state machines are in golden/."""

from __future__ import annotations

from aflow import FlowSpec, step


class Linear(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass


class Branches(FlowSpec):
    @step
    def start(self):
        self.next(self.a, self.b)

    @step
    def a(self):
        self.next(self.join)

    @step
    def b(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


class Nested(FlowSpec):
    @step
    def start(self):
        self.rows = [1, 2]
        self.next(self.row, foreach="rows")

    @step
    def row(self):
        self.columns = "ab"
        self.next(self.cell, foreach="columns")

    @step
    def cell(self):
        self.next(self.across)

    @step
    def across(self, inputs):
        self.next(self.down)

    @step
    def down(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


class Loop(FlowSpec):
    @step
    def start(self):
        self.count = 0
        self.next(self.work)

    @step
    def work(self):
        self.count += 1
        self.which = "again" if self.count < 3 else "done"
        self.next({"again": self.work, "done": self.end}, condition="which")

    @step
    def end(self):
        pass


class Choices(FlowSpec):
    """A switch in a foreach, one of whose ways leads to the join at once; the start goes round."""

    @step
    def start(self):
        self.rounds = getattr(self, "rounds", 0) + 1
        self.go_on = self.rounds > 1
        self.next({False: self.start, True: self.fan}, condition="go_on")

    @step
    def fan(self):
        self.items = [1, 2]
        self.next(self.look, foreach="items")

    @step
    def look(self):
        self.odd = self.input % 2 == 1
        self.next({True: self.mend, False: self.join}, condition="odd")

    @step
    def mend(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


class Gang(FlowSpec):
    @step
    def start(self):
        self.next(self.member, num_parallel=2)

    @step
    def member(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


ALL = (Linear, Branches, Nested, Loop, Choices)
