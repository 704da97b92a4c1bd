"""Two parallel branches, and the client, which reads the result."""

import random

from aflow import FlowSpec, Parameter, step


class EstimateFlow(FlowSpec):
    """Estimate pi by two methods, and compare the results."""

    samples = Parameter("samples", default=20_000, help="How many points, and how many terms")

    @step
    def start(self):
        """Start both branches."""
        self.next(self.by_chance, self.by_series)

    @step
    def by_chance(self):
        """Estimate pi by the share of random points inside the circle."""
        inside = sum(random.random() ** 2 + random.random() ** 2 <= 1 for _ in range(self.samples))
        self.pi = 4 * inside / self.samples
        self.next(self.join)

    @step
    def by_series(self):
        """Estimate pi by the Leibniz series."""
        self.pi = 4 * sum((-1) ** k / (2 * k + 1) for k in range(self.samples))
        self.next(self.join)

    @step
    def join(self, inputs):
        """Combine the branches: each is an attribute of inputs, by the name of its step."""
        self.estimates = {"chance": inputs.by_chance.pi, "series": inputs.by_series.pi}
        self.merge_artifacts(inputs, exclude=["pi"])
        self.next(self.end)

    @step
    def end(self):
        """Print both estimates."""
        print(self.estimates)


if __name__ == "__main__":
    EstimateFlow()
