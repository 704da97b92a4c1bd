"""A chain of tasks, to measure how soon each one starts."""

from aflow import FlowSpec, Parameter, step


class ChainFlow(FlowSpec):
    n = Parameter("n", type=int, default=50)

    @step
    def start(self):
        self.left = self.n
        self.next(self.again)

    @step
    def again(self):
        self.left -= 1
        self.more = "yes" if self.left else "no"
        self.next({"yes": self.again, "no": self.end}, condition="more")

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ChainFlow()
