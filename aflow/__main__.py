"""`python -m aflow` and the command `aflow`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line on sys.argv; leaves the program with its exit code."""
    if os.getpid() == 1:  # of a container
        from aflow.first_process import delegate

        delegate()
    from aflow import collector
    from aflow.hidden import keep_importable

    for word in sys.argv[1:]:  # `python -m aflow run queue.py`: the working folder is on sys.path
        if word.endswith(".py"):
            keep_importable(word.removesuffix(".py"), "")

    collector.seldom()
    from aflow.cli.main import run_program

    run_program(sys.argv[1:])


if __name__ == "__main__":
    main()
