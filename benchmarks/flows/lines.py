"""One task that prints: a lot at once (rate 0), or so many lines a second for a while.

Each line carries its number and the time when it was printed, so that the reader can tell what
was lost, reordered or late.
"""

import time

from aflow import FlowSpec, Parameter, step


class LinesFlow(FlowSpec):
    n = Parameter("n", type=int, default=1000)
    rate = Parameter("rate", type=int, default=0)

    @step
    def start(self):
        begun = time.monotonic()
        for number in range(self.n):
            if self.rate:
                time.sleep(max(0, begun + number / self.rate - time.monotonic()))
            print(f"line {number} {time.monotonic():.6f}", flush=bool(self.rate))
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    LinesFlow()
