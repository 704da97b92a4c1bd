"""`python -m aflow` and the command `aflow`, including its internal programs."""

import gc
import os
import sys

from aflow._core.shadowed import keep_hidden_beside, keep_importable

if __name__ == "__main__" and not sys.flags.safe_path:
    keep_hidden_beside(None, sys.path[0])  # the working directory, because of `python -m aflow`

from importlib import import_module

# Internal programs, which job definitions, state machines, images and manifests start by name.
# Each module has a `main` that returns the exit code, and does not import the command line.
INTERNAL = {
    "_task": "aflow.executors.remote.job",  # an attempt of a run, in a job
    "_state": "aflow.step_functions.job",  # a task of a state machine, in a job
    "_health": "aflow.cli.health",  # the health check of a container
}


def main() -> None:
    """Run the command line on sys.argv and exit with its exit code."""
    program = INTERNAL.get(sys.argv[1]) if len(sys.argv) == 2 else None
    module = None if program is None else import_module(program)
    # The launcher of a shipped aflow (environments/install.py) disables the collector for the
    # imports. Steps run in forks of this process, and need it.
    gc.enable()
    if module is not None:
        sys.exit(module.main())
    if os.getpid() == 1:  # the init process of a container
        from aflow._core.process import delegate

        delegate()
    from aflow._core import deferred, process

    argv = sys.argv[1:]
    for argument in argv:  # `python -m aflow run queue.py`: sys.path has the working directory
        if argument.endswith(".py"):
            keep_importable(argument.removesuffix(".py"), "")

    process.seldom()
    deferred.defer_all()
    if any(".py" in argument for argument in argv):
        # The zygote starts while this process imports the command line and the event loop.
        from aflow.cli import prefork

        # Tasks must not inherit the descriptors that a server has passed to its run.
        is_servers = any(argument.startswith("--aflow-argv=") for argument in argv)
        prefork.fork_zygote(argv, inherits=not is_servers)
    from aflow.cli.main import run_program

    run_program(argv)


if __name__ == "__main__":
    main()
