from pathlib import Path

from aflow import FlowSpec, Parameter, current, exit_hook, project, schedule, step


def on_error(run):
    print("hook of", run.id, "on error")


def on_success(run):
    print("hook of", run.id, "on success")


@project(name="tests")
@schedule(cron="0 12 * * *")
@exit_hook(on_success=[on_success], on_error=[on_error])
class Mended(FlowSpec):
    """One item of a foreach fails until a file exists."""

    switch = Parameter("switch", default="")

    @step
    def start(self):
        self.items = [1, 2, 3]
        self.next(self.work, foreach="items")

    @step
    def work(self):
        if self.input == 2 and self.switch and not Path(self.switch).exists():
            raise RuntimeError("item 2 is broken")
        self.value = (self.input, current.run_id)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.values = [each.value for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Mended()
