"""`python -m aflow` and the command `aflow`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line on sys.argv; leaves the program with its exit code."""
    from aflow import collector

    collector.seldom()
    from aflow.cli.main import run_program

    run_program(sys.argv[1:])


if __name__ == "__main__":
    main()
