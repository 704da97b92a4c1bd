"""The program of jobs in the contract tests of job systems: writes its place, then runs its action.

ACTION is `end` (exit with code 0), `fail` (exit with 3), `wait` (until SIGTERM, then exit with 0)
or `ignore` (until a signal kills it).
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
    print("It does", os.environ["ACTION"], flush=True)
    if os.environ["ACTION"] == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        signal.pause()
    if os.environ["ACTION"] == "ignore":
        signal.pause()
    return {"end": 0, "fail": 3}[os.environ["ACTION"]]


if __name__ == "__main__":
    sys.exit(main())
