"""A foreach: one task per item of a list, and a join of all tasks."""

import csv
import statistics
from pathlib import Path

from aflow import FlowSpec, step


class CountriesFlow(FlowSpec):
    """Compute statistics of each country, in parallel."""

    @step
    def start(self):
        """Group the cities by country, and start a task for each country."""
        self.cities = {}
        with (Path(__file__).parent / "cities.csv").open() as file:
            for row in csv.DictReader(file):
                self.cities.setdefault(row["country"], []).append(int(row["population"]))
        self.countries = sorted(self.cities)
        self.next(self.measure, foreach="countries")

    @step
    def measure(self):
        """Process one country: self.input is the item, self.index its index."""
        self.country = self.input
        self.median = statistics.median(self.cities[self.country])
        print(f"{self.country}: {len(self.cities[self.country])} cities")
        self.next(self.join)

    @step
    def join(self, inputs):
        """Combine the results: inputs are the tasks of the foreach, with their artifacts."""
        self.medians = {each.country: each.median for each in inputs}
        self.next(self.end)

    @step
    def end(self):
        """Print the result."""
        for country, median in self.medians.items():
            print(f"{country:<8} {median:>10,.0f}")


if __name__ == "__main__":
    CountriesFlow()
