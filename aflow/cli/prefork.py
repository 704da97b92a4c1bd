"""Fork the zygote of a run before the command line is imported and before any user code runs.

The zygote imports the modules of tasks in parallel with this process. `aflow run` forks it first.
`python flow.py run` forks it when the program imports FlowSpec, if the program has only imported
modules of the standard library until then: the process then does not differ from a fresh one, and
what both need is imported once. Otherwise, a new interpreter is started when the program calls its
flow (loading.begins).
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import CodeType, FrameType, ModuleType

from aflow._core import deferred, ending, process
from aflow._core.modules import file_of
from aflow._core.system import is_open, threads_here

# A program whose instructions are all among those of these lines has only imported modules.
_IMPORTS = """
'a docstring'
from __future__ import annotations
import a, b.c
import d as e
import f.g as h
from i import j, k as l
"""
_WAITS = frozenset({"wait", "wait3", "waitpid"})  # of os
# Modules that environments import into each interpreter, by .pth files or by their names.
_OF_ENVIRONMENTS = frozenset({"_distutils_hack", "_virtualenv", "sitecustomize", "usercustomize"})


def fork_zygote(argv: Sequence[str], *, inherits: bool = True) -> bool:
    """Fork the zygote if the command line starts a run.

    Args:
        argv: The arguments of the command line, which are not parsed yet.
        inherits: Whether the child keeps what this process has imported and opened.

    Returns:
        False if the arguments do not start a run; nothing was forked.
    """
    from aflow.executors.local import zygote_start

    if not zygote_start.looks_like_a_run(argv):
        return False
    # Import once, before the fork, what both processes need.
    import aflow.flow.spec
    import aflow.metadata.base
    import aflow.metadata.factory
    import aflow.storage.artifacts
    import aflow.task.spec  # noqa: F401

    process.fill_descriptors()
    with suppress(OSError):  # the fork failed: the command tries again, and reports the error
        zygote_start.have_zygote(fork=True, inherits=inherits)
    return True


def fork_zygote_in_program() -> None:
    """Fork the zygote when the program imports FlowSpec, if it has only imported modules so far."""
    main = sys.modules.get("__main__")
    if main is None or not _is_fresh(main, sys._getframe(1)):
        return
    process.seldom()
    deferred.defer_all()
    for stream in (sys.stdout, sys.stderr):  # the zygote would write their buffers too
        process.flush(stream)
    if fork_zygote(sys.argv[1:]):
        import atexit

        from aflow.cli import loading

        loading.note_own(deferred.loaded())  # the zygote has imported them too
        atexit.register(_leave)
        gc.freeze()  # the collector can skip these objects when the program ends (ending.py)
    process.as_usual()


def _leave() -> None:
    """Clean up at the end of the program, which may never have called its flow."""
    from aflow.executors.local.zygote_start import drop_zygote

    drop_zygote()
    ending.thaw()


def _is_fresh(main: ModuleType, frame: FrameType) -> bool:
    """Return whether the program has only run top-level imports of the standard library."""
    outermost = frame
    while outermost.f_back is not None:
        outermost = outermost.f_back
    if outermost.f_globals is not vars(main) or not file_of(main):
        return False
    is_traced = sys.gettrace() is not None or sys.getprofile() is not None
    return (
        not is_traced
        and threads_here() == 1
        and all(map(is_open, (0, 1, 2)))
        and _only_imports(outermost)
        and not _waits_for_any(outermost.f_code)
        and all(map(_is_of_python, [*sys.modules.items()]))
    )


def _only_imports(frame: FrameType) -> bool:
    known = {*compile(_IMPORTS, "", "exec", dont_inherit=True).co_code[::2]}
    return known.issuperset(frame.f_code.co_code[: frame.f_lasti + 1 : 2])


def _waits_for_any(code: CodeType) -> bool:
    """Return whether the program may wait for any child process.

    Such a call would wait for the zygote, which exits only with the program.
    """
    names = {*code.co_names}
    inside = (each for each in code.co_consts if isinstance(each, CodeType))
    return ("os" in names and not _WAITS.isdisjoint(names)) or any(map(_waits_for_any, inside))


def _is_of_python(item: tuple[str, ModuleType]) -> bool:
    """Return whether a module belongs to Python, to aflow, or to the environment itself."""
    name, module = item
    file = file_of(module)
    top = name.partition(".")[0]
    if file is None or top in ("aflow", "__main__") or top in _OF_ENVIRONMENTS:
        return True
    place = os.path.dirname(file)
    is_installed = "site-packages" in place or "dist-packages" in place
    return place.startswith(os.path.dirname(os.__file__)) and not is_installed
