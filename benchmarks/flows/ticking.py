"""A task that prints the time repeatedly, once a reader is ready."""

import os
import time

from aflow import FlowSpec, Parameter, step


class Ticking(FlowSpec):
    lines = Parameter("lines", default=200)
    gate = Parameter("gate", default="", help="A file without which nothing is printed.")

    @step
    def start(self):
        while self.gate and not os.path.exists(self.gate):
            time.sleep(0.05)
        for _ in range(self.lines):
            print(time.time(), flush=True)
            time.sleep(0.05)
        print("over", flush=True)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Ticking()
