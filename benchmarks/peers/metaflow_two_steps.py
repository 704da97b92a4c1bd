"""Two steps and a parameter, to measure the cost of a complete command."""

from metaflow import FlowSpec, Parameter, step


class TwoStepsFlow(FlowSpec):
    alpha = Parameter("alpha", help="Learning rate", default=0.01)

    @step
    def start(self):
        print(f"alpha is {self.alpha:f}")
        self.next(self.end)

    @step
    def end(self):
        print(f"alpha is still {self.alpha:f}")


if __name__ == "__main__":
    TwoStepsFlow()
