import threading
from pathlib import Path

from aflow import FlowSpec, Parameter, catch, current, exit_hook, retry, step, timeout


def on_error(run):
    print("hook of", run.id, "on error")


@exit_hook(on_error=[on_error])
class Trouble(FlowSpec):
    """The first job waits for a fault: if it does not `hang`, it loses its machine."""

    folder = Parameter("folder")
    hangs = Parameter("hangs", default=False)

    @retry(times=1, minutes_between_retries=0)
    @step
    def start(self):
        file = Path(self.folder, current.run_id)
        first = not file.exists()
        file.touch()
        if first and not self.hangs:
            print("the machine goes away now", flush=True)
        if first or self.hangs:
            threading.Event().wait()
        self.next(self.late)

    @catch(var="problem")
    @timeout(seconds=1)
    @step
    def late(self):
        threading.Event().wait()
        self.next(self.end)

    @step
    def end(self):
        self.reported = (str(self.problem), current.retry_count)


if __name__ == "__main__":
    Trouble()
