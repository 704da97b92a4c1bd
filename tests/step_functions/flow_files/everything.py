from aflow import FlowSpec, Parameter, catch, current, retry, step


class Everything(FlowSpec):
    """Branches, a foreach in a foreach, a loop, a retry and a step that always fails."""

    factor = Parameter("factor", default=2)

    @step
    def start(self):
        print("factor", self.factor)
        self.base = [1, 2]
        self.next(self.wide, self.loop)

    @step
    def wide(self):
        self.rows = self.base
        self.next(self.row, foreach="rows")

    @step
    def row(self):
        self.columns = ["a", "b"][: self.input]
        self.row_value = self.input * self.factor
        self.next(self.cell, foreach="columns")

    @retry(times=1, minutes_between_retries=0)
    @step
    def cell(self):
        if self.input == "b" and current.retry_count == 0:
            raise ValueError("not yet")
        self.cell_value = f"{self.input}{self.row_value}"
        self.next(self.across)

    @step
    def across(self, inputs):
        self.cells = [each.cell_value for each in inputs]
        self.next(self.down)

    @step
    def down(self, inputs):
        self.table = [each.cells for each in inputs]
        self.next(self.join)

    @step
    def loop(self):
        self.count = getattr(self, "count", 0) + 1
        self.which = "again" if self.count < 3 else "done"
        self.next({"again": self.loop, "done": self.out}, condition="which")

    @catch(var="problem")
    @step
    def out(self):
        if self.count:
            raise RuntimeError("for good")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found = (inputs.down.table, inputs.out.count, str(inputs.out.problem))
        self.merge_artifacts(inputs, include=["base"])
        self.next(self.end)

    @step
    def end(self):
        print("found", self.found, self.base, current.run_id)


if __name__ == "__main__":
    Everything()
