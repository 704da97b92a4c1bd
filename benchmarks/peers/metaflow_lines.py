"""One task that prints lines: as fast as possible (rate 0), or at a number of lines per second.

Each line contains its number and the time when it was printed, so that the reader can detect lost,
reordered or late lines.
"""

import time

from metaflow import FlowSpec, Parameter, step


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
