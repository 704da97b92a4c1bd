"""A flow whose cached tasks start while a generator still yields."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aflow import FlowSpec, Parameter, cache, step


class StreamedFlow(FlowSpec):
    folder = Parameter("folder", required=True)
    breaks = Parameter("breaks", default=False)

    def found(self) -> Iterator[int]:
        yield 1
        while not (Path(self.folder) / "ran-1").exists():
            time.sleep(0.01)
        if self.breaks:
            raise ValueError("no more")
        yield 2

    @step
    def start(self) -> None:
        self.xs = self.found()
        self.next(self.work, foreach="xs")

    @cache
    @step
    def work(self) -> None:
        (Path(self.folder) / f"ran-{self.input}").touch()
        while not (Path(self.folder) / "go").exists():
            time.sleep(0.01)
        self.y = self.input * 10
        self.next(self.join)

    @cache
    @step
    def join(self, inputs: Any) -> None:
        self.total = sum(each.y for each in inputs)
        self.next(self.end)

    @step
    def end(self) -> None:
        assert self.total == 30
