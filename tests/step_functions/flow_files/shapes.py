from aflow import Config, FlowSpec, JSONType, Parameter, schedule, step


@schedule(hourly=True)
class Shapes(FlowSpec):
    """A loop at the start, a foreach of no items, and a foreach over an iterator, in which a switch
    leads to the join or to branches."""

    config = Config("config", default_value={"factor": 10})
    levels = Parameter("levels", type=JSONType, default='{"a": [1, 2]}')

    @step
    def start(self):
        self.rounds = getattr(self, "rounds", 0) + 1
        self.go_on = self.rounds > 1
        self.next({False: self.start, True: self.fan}, condition="go_on")

    @step
    def fan(self):
        self.next(self.none, self.some)

    @step
    def none(self):
        self.nothing = []
        self.next(self.never, foreach="nothing")

    @step
    def never(self):
        self.next(self.of_none)

    @step
    def of_none(self, inputs):
        self.zero = len(list(inputs))
        self.next(self.join)

    @step
    def some(self):
        self.items = range(2)
        self.next(self.look, foreach="items")

    @step
    def look(self):
        self.value = self.input * self.config.factor
        self.odd = self.input % 2 == 1
        self.next({True: self.both, False: self.gather}, condition="odd")

    @step
    def both(self):
        self.next(self.left, self.right)

    @step
    def left(self):
        self.value += 1
        self.next(self.meet)

    @step
    def right(self):
        self.value += 2
        self.next(self.meet)

    @step
    def meet(self, inputs):
        self.value = [inputs.left.value, inputs.right.value]
        self.next(self.gather)

    @step
    def gather(self, inputs):
        self.values = [each.value for each in inputs]
        self.merge_artifacts(inputs, include=["rounds"])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found = {"zero": inputs.of_none.zero, "values": inputs.gather.values}
        self.merge_artifacts(inputs, include=["rounds"])
        self.next(self.end)

    @step
    def end(self):
        self.reported = (self.found, self.rounds, self.levels)


if __name__ == "__main__":
    Shapes()
