"""Two ways at once, and the client that looks at the result."""

import random

from aflow import FlowSpec, Parameter, step


class EstimateFlow(FlowSpec):
    """Estimate pi in two ways, and keep the better one."""

    samples = Parameter("samples", default=20_000, help="How many points, and how many terms")

    @step
    def start(self):
        """Go both ways."""
        self.next(self.by_chance, self.by_series)

    @step
    def by_chance(self):
        """The share of random points that fall into the circle."""
        inside = sum(random.random() ** 2 + random.random() ** 2 <= 1 for _ in range(self.samples))
        self.pi = 4 * inside / self.samples
        self.next(self.join)

    @step
    def by_series(self):
        """The series of Leibniz."""
        self.pi = 4 * sum((-1) ** k / (2 * k + 1) for k in range(self.samples))
        self.next(self.join)

    @step
    def join(self, inputs):
        """Each way is an input under its name."""
        self.estimates = {"chance": inputs.by_chance.pi, "series": inputs.by_series.pi}
        self.merge_artifacts(inputs, exclude=["pi"])
        self.next(self.end)

    @step
    def end(self):
        """Show both."""
        print(self.estimates)


if __name__ == "__main__":
    EstimateFlow()
