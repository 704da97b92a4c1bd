"""A foreach whose tasks store one blob each, to measure the cost of deleting them."""

from aflow import FlowSpec, Parameter, step


class BlobsFlow(FlowSpec):
    n = Parameter("n", type=int, default=100)

    @step
    def start(self):
        self.xs = list(range(self.n))
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        self.blob = self.input.to_bytes(8, "little") * 2000
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    BlobsFlow()
