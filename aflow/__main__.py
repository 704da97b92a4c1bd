"""`python -m aflow` and the command `aflow`; and the programs of aflow that others name."""

import os
import sys

from aflow._core.shadowed import keep_hidden_beside, keep_importable

if __name__ == "__main__" and not sys.flags.safe_path:
    keep_hidden_beside(None, sys.path[0])  # `python -m aflow`: the working folder is on sys.path

from contextlib import suppress
from importlib import import_module

# Job definitions, state machines, images and manifests name these, wherever the modules are. Each
# module has a `main` that returns the exit code, and is imported without the command line.
INTERNAL = {
    "_task": "aflow.executors.remote.job",  # an attempt of a run, in a job
    "_state": "aflow.step_functions.job",  # a task of a state machine, in a job
    "_health": "aflow.cli.health",  # the health check of a container
}


def main() -> None:
    """Run the command line on sys.argv; leaves the program with its exit code."""
    if len(sys.argv) == 2 and sys.argv[1] in INTERNAL:
        sys.exit(import_module(INTERNAL[sys.argv[1]]).main())
    if os.getpid() == 1:  # of a container
        from aflow._core.process import delegate

        delegate()
    from aflow._core import deferred, process

    for word in sys.argv[1:]:  # `python -m aflow run queue.py`: the working folder is on sys.path
        if word.endswith(".py"):
            keep_importable(word.removesuffix(".py"), "")

    process.seldom()
    deferred.defer_all()
    if any(".py" in word for word in sys.argv[1:]):
        _start_early(sys.argv[1:])
    from aflow.cli.main import run_program

    run_program(sys.argv[1:])


def _start_early(words: list[str]) -> None:
    """Start the zygote of the run that these words begin, if they do: it gets ready while this
    process imports the command line and the event loop."""
    from aflow._core.process import fill_descriptors
    from aflow.executors.local import zygote_start

    if zygote_start.looks_like_a_run(words):
        # What both processes need is imported before the fork, once.
        import aflow.flow.spec
        import aflow.metadata.base
        import aflow.metadata.factory
        import aflow.storage.artifacts
        import aflow.task.spec  # noqa: F401

        fill_descriptors()
        with suppress(OSError):  # no process to be had: the command asks again, and says so
            # Tasks do not inherit the descriptors that a server has passed to its run.
            is_servers = any(word.startswith("--aflow-words=") for word in words)
            zygote_start.have_zygote(fork=True, inherits=not is_servers)


if __name__ == "__main__":
    main()
