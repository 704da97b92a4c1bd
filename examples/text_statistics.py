"""What is in a heap of text files? Two branches, and inside one a foreach over the files.

    python text_statistics.py run
    python text_statistics.py run --folder /usr/share/doc --pattern '**/*.txt'

By default it reads Python's own standard library. One branch counts words and lines, file by
file, many files at a time; the other looks at the heap as a whole. A join brings them together:

    start -> count_all -> count (a task for each file) -> total -> report -> end
          -> measure -----------------------------------------> report

Look at the result with

    from aflow import Flow

    data = Flow("TextStatisticsFlow").latest_successful_run.data
    print(data.words.most_common(20), data.largest)
"""

import re
import sysconfig
from collections import Counter
from pathlib import Path

from aflow import FlowSpec, Parameter, step

WORD = re.compile(r"[A-Za-z]{4,}")


class TextStatisticsFlow(FlowSpec):
    """Count the words of many files."""

    folder = Parameter("folder", help="Where to look", default=sysconfig.get_path("stdlib"))
    pattern = Parameter("pattern", help="Which files", default="*.py")
    limit = Parameter("limit", help="At most so many files", default=60)

    @step
    def start(self):
        found = sorted(path for path in Path(self.folder).glob(self.pattern) if path.is_file())
        self.files = [str(path) for path in found[: self.limit]]
        print(f"{len(self.files)} of {len(found)} files in {self.folder}")
        self.next(self.count_all, self.measure)

    @step
    def count_all(self):
        # No file is not an error: with an empty list the flow goes straight on to `total`.
        self.next(self.count, foreach="files")

    @step
    def count(self):
        text = Path(self.input).read_text(encoding="utf-8", errors="replace")
        self.lines = text.count("\n")
        self.words = Counter(word.lower() for word in WORD.findall(text))
        self.next(self.total)

    @step
    def total(self, inputs):
        self.lines = 0
        self.words = Counter()
        # The inputs stream past: a million of them need no more memory than a page of them.
        for each in inputs:
            self.lines += each.lines
            self.words += each.words
        self.next(self.report)

    @step
    def measure(self):
        sizes = {name: Path(name).stat().st_size for name in self.files}
        self.bytes = sum(sizes.values())
        self.largest = max(sizes, key=sizes.__getitem__, default=None)
        self.next(self.report)

    @step
    def report(self, inputs):
        # A join of branches names its inputs by the steps that lead into it.
        self.lines, self.words = inputs.total.lines, inputs.total.words
        self.bytes, self.largest = inputs.measure.bytes, inputs.measure.largest
        self.next(self.end)

    @step
    def end(self):
        print(f"{self.lines} lines, {self.bytes} bytes, {self.words.total()} words")
        print(f"largest file: {self.largest}")
        for word, count in self.words.most_common(10):
            print(f"    {count:6}  {word}")


if __name__ == "__main__":
    TextStatisticsFlow()
