import gc

from aflow import FlowSpec, Parameter, step


class Pair(FlowSpec):
    """A foreach with two items."""

    factor = Parameter("factor", default=2)

    @step
    def start(self):
        self.items = [1, 2]
        self.next(self.each, foreach="items")

    @step
    def each(self):
        self.product = self.input * self.factor
        self.collects = gc.isenabled()
        self.next(self.end)

    @step
    def end(self, inputs):
        self.found = sorted(each.product for each in inputs)
        self.all_collect = all(each.collects for each in inputs)
        print("found", self.found)


if __name__ == "__main__":
    Pair()
