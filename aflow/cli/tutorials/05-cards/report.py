"""A card: a report that a step creates."""

import csv
from pathlib import Path

from aflow import FlowSpec, card, current, step
from aflow.cards.components import Markdown, ProgressBar, Table, ValueBox


class ReportFlow(FlowSpec):
    """Create a report about a table."""

    @card
    @step
    def start(self):
        """Read the table and describe it on the card."""
        with (Path(__file__).parent / "cities.csv").open() as file:
            self.rows = list(csv.DictReader(file))
        people = sum(int(row["population"]) for row in self.rows)
        bar = ProgressBar(max=len(self.rows), label="cities")
        current.card.append(Markdown("# Cities of the north"))
        current.card.append(bar)
        for number in range(len(self.rows)):
            bar.update(number + 1)
        current.card.append(ValueBox("People", f"{people:,}"))
        current.card.append(Table([list(row.values()) for row in self.rows], list(self.rows[0])))
        self.next(self.end)

    @step
    def end(self):
        """Do nothing: every flow needs this step."""


if __name__ == "__main__":
    ReportFlow()
