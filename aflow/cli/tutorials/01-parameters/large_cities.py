"""Parameters, and a file that is stored with the run."""

import csv
import io

from aflow import FlowSpec, IncludeFile, Parameter, step


class LargeCitiesFlow(FlowSpec):
    """List the cities with a minimum population."""

    minimum = Parameter("minimum", default=300_000, help="The smallest population that counts")
    cities = IncludeFile("cities", default="cities.csv", help="city,country,population")

    @step
    def start(self):
        """Parse the table. Its file is stored with the run, so later changes do not matter."""
        self.rows = [
            (row["city"], int(row["population"]))
            for row in csv.DictReader(io.StringIO(self.cities))
        ]
        self.next(self.choose)

    @step
    def choose(self):
        """Select the large cities, the largest first."""
        large = [row for row in self.rows if row[1] >= self.minimum]
        self.large = sorted(large, key=lambda row: -row[1])
        self.next(self.end)

    @step
    def end(self):
        """Print the result."""
        for city, population in self.large:
            print(f"{city:<12} {population:>9,}")


if __name__ == "__main__":
    LargeCitiesFlow()
