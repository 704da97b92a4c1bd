"""The zygote of a run, forked before the command line is imported, and before anything of the
user's has run: it gets ready on another processor meanwhile.

`aflow run` forks it first thing. `python flow.py run` does so when the program asks for FlowSpec,
where it has done nothing but import modules of Python's until then: its process is no different
from a fresh one then, and what both need is imported once. Where it has done anything else, an
interpreter of its own is started when the program calls its flow (loading.begins).
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

# Whatever is compiled to the same instructions as these lines only imports.
_IMPORTS = """
'a docstring'
from __future__ import annotations
import a, b.c
import d as e
import f.g as h
from i import j, k as l
"""
_WAITS = frozenset({"wait", "wait3", "waitpid"})  # of os
# What environments import into each interpreter, by .pth files or by their names.
_OF_ENVIRONMENTS = frozenset({"_distutils_hack", "_virtualenv", "sitecustomize", "usercustomize"})


def fork_zygote(argv: Sequence[str], *, inherits: bool = True) -> bool:
    """Fork the zygote of the run that a command line starts.

    Args:
        argv: The arguments of the command line, which are not parsed yet.
        inherits: Whether the child keeps what this process has imported and opened.

    Returns:
        False where the arguments do not begin a run: nothing was forked.
    """
    from aflow.executors.local import zygote_start

    if not zygote_start.looks_like_a_run(argv):
        return False
    # What both processes need is imported before the fork, once.
    import aflow.flow.spec
    import aflow.metadata.base
    import aflow.metadata.factory
    import aflow.storage.artifacts
    import aflow.task.spec  # noqa: F401

    process.fill_descriptors()
    with suppress(OSError):  # no process available: the command asks again, and says so
        zygote_start.have_zygote(fork=True, inherits=inherits)
    return True


def fork_zygote_in_program() -> None:
    """Fork the zygote when the program asks for FlowSpec, if no code of its own has run so far."""
    main = sys.modules.get("__main__")
    if main is None or not _is_fresh(main, sys._getframe(1)):
        return
    process.seldom()
    deferred.defer_all()
    for stream in (sys.stdout, sys.stderr):  # the zygote is not to write it once more
        process.flush(stream)
    if fork_zygote(sys.argv[1:]):
        import atexit

        from aflow.cli import loading

        loading.note_own(deferred.loaded())  # the zygote has all of them
        atexit.register(_leave)
        gc.freeze()  # what is there so far need not be looked at when the program ends (ending.py)
    process.as_usual()


def _leave() -> None:
    """The end of the program, which may never have called its flow."""
    from aflow.executors.local.zygote_start import drop_zygote

    drop_zygote()
    ending.thaw()


def _is_fresh(main: ModuleType, frame: FrameType) -> bool:
    """Whether this process has only run imports of Python's own modules, at the top of its
    program."""
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
    """Whether the program may wait for any child that it has: it would wait for the zygote, which
    ends with the program."""
    names = {*code.co_names}
    inside = (each for each in code.co_consts if isinstance(each, CodeType))
    return ("os" in names and not _WAITS.isdisjoint(names)) or any(map(_waits_for_any, inside))


def _is_of_python(item: tuple[str, ModuleType]) -> bool:
    """Whether a module is Python's, aflow's, or of every interpreter of this environment."""
    name, module = item
    file = file_of(module)
    top = name.partition(".")[0]
    if file is None or top in ("aflow", "__main__") or top in _OF_ENVIRONMENTS:
        return True
    place = os.path.dirname(file)
    is_installed = "site-packages" in place or "dist-packages" in place
    return place.startswith(os.path.dirname(os.__file__)) and not is_installed
