"""A task that says what time it is, over and over."""

import time

from aflow import FlowSpec, Parameter, step


class Ticking(FlowSpec):
    lines = Parameter("lines", default=200)

    @step
    def start(self):
        time.sleep(3.0)  # until a browser looks
        for _ in range(self.lines):
            print(time.time(), flush=True)
            time.sleep(0.05)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Ticking()
