"""What jobs of the contract of job systems run: it writes down which job it is, and does its deed.

DEED is `end` (with exit code 0), `fail` (with 3) or `wait` (until it is told to stop).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from aflow.executors.jobs.place import place_of_this_job


def main() -> int:
    place = place_of_this_job()
    folder = Path(os.environ["OUT"])
    (folder / f"{place.index}.part").write_text(json.dumps(place))
    (folder / f"{place.index}.part").rename(folder / f"{place.index}.json")
    if os.environ["DEED"] == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        signal.pause()
    return {"end": 0, "fail": 3}[os.environ["DEED"]]


if __name__ == "__main__":
    sys.exit(main())
