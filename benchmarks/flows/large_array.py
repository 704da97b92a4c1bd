"""An array passed from one task to the next, to measure the cost of large artifacts."""

import time

from aflow import FlowSpec, Parameter, step


class ArrayFlow(FlowSpec):
    mb = Parameter("mb", type=int, default=256)

    @step
    def start(self):
        import numpy as np

        self.a = np.random.default_rng(0).random(self.mb * 131072)
        self.done = time.time()
        self.next(self.use)

    @step
    def use(self):
        # Import it here, so that the import does not count as loading.
        import numpy  # noqa: F401

        began = time.time()
        first = float(self.a[0])
        loaded = time.time() - began
        print("first", first, "save_seconds", began - self.done, "load_seconds", loaded)
        del self.a
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ArrayFlow()
