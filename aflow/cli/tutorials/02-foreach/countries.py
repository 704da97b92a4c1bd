"""A task for each item of a list, and a join of all of them."""

import csv
import statistics
from pathlib import Path

from aflow import FlowSpec, step


class CountriesFlow(FlowSpec):
    """Compute statistics of each country, side by side."""

    @step
    def start(self):
        """Make groups, and go on with a task for each."""
        self.cities = {}
        with (Path(__file__).parent / "cities.csv").open() as file:
            for row in csv.DictReader(file):
                self.cities.setdefault(row["country"], []).append(int(row["population"]))
        self.countries = sorted(self.cities)
        self.next(self.measure, foreach="countries")

    @step
    def measure(self):
        """One task a country: self.input is the item, self.index its place."""
        self.country = self.input
        self.median = statistics.median(self.cities[self.country])
        print(f"{self.country}: {len(self.cities[self.country])} cities")
        self.next(self.join)

    @step
    def join(self, inputs):
        """All tasks come together: inputs are what they have left."""
        self.medians = {each.country: each.median for each in inputs}
        self.next(self.end)

    @step
    def end(self):
        """Show the result."""
        for country, median in self.medians.items():
            print(f"{country:<8} {median:>10,.0f}")


if __name__ == "__main__":
    CountriesFlow()
