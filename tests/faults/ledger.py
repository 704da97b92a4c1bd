"""What steps write down outside of aflow: how often each of them has begun, and when.

A flow that keeps a ledger begins its file with SOURCE, and its steps call `note()` when they begin;
`note("ended...")` when they end, if a test wants to know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SOURCE = """
LEDGER = {path!r}

def note(what=""):
    words = current.task_id, current.retry_count, repr(time.time()), os.getpid(), what
    line = "{{}} {{}} {{}} {{}} {{}}\\n".format(*words)
    file = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, line.encode())
    os.close(file)

"""


class Begun(NamedTuple):
    """An attempt that has begun, and what it says of itself."""

    task: int
    attempt: int
    at: float
    pid: int
    what: str


class Ledger:
    """The file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def source(self) -> str:
        """What a flow's file begins with."""
        return SOURCE.format(path=str(self.path))

    def lines(self) -> list[Begun]:
        """All that has begun so far, in order."""
        if not self.path.exists():
            return []
        # A line that is being written is left for the next look.
        whole = self.path.read_text().rpartition("\n")[0]
        return [_read(line) for line in whole.splitlines()]

    def begun(self) -> list[Begun]:
        """The same without the ends."""
        return [each for each in self.lines() if not each.what.startswith("ended")]

    def times(self) -> Mapping[int, int]:
        """How often each task has begun."""
        return Counter(each.task for each in self.begun())


def _read(line: str) -> Begun:
    task, attempt, at, pid, what = line.split(" ", 4)
    return Begun(int(task), int(attempt), float(at), int(pid), what)
