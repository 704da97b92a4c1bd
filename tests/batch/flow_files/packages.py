import os
import sys

from aflow import FlowSpec, pypi, step

ANOTHER = os.environ.get("ANOTHER_PYTHON")
SECOND = os.environ.get("SECOND", "2.0")


def seen():
    import tiny

    return tiny.__version__, ".".join(map(str, sys.version_info[:2]))


class Packages(FlowSpec):
    """Four steps with four versions of a package, and two Pythons."""

    @pypi(packages={"tiny": "1.0"})
    @step
    def start(self):
        self.seen = [seen()]
        self.next(self.second)

    @pypi(packages={"tiny": SECOND}, python=ANOTHER)
    @step
    def second(self):
        self.seen = [*self.seen, seen()]
        self.next(self.third)

    @pypi(packages={"tiny": "3.0"}, python=ANOTHER)
    @step
    def third(self):
        self.seen = [*self.seen, seen()]
        self.next(self.end)

    @pypi(packages={"tiny": "4.0"})
    @step
    def end(self):
        self.seen = [*self.seen, seen()]
        print(self.seen)


if __name__ == "__main__":
    Packages()
