"""Runs each effect of effects.py as in a task: in a fork of a process that has none of the file's
objects. The fork executes the whole file, and exits through `leave` of aflow._core.ending."""

import gc
import os
import sys
import types
from pathlib import Path

from aflow._core import ending

FILE = Path(__file__).with_name("effects.py")


def run(code, argv):
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__file__ = str(FILE)
    sys.argv = argv
    exec(code, vars(module))


def main():
    folder = sys.argv[1]
    code = compile(FILE.read_text(), FILE, "exec")
    known = types.ModuleType("known")
    exec(code, vars(known))
    names = [each.__name__ for each in known.EFFECTS]
    del known
    gc.collect()
    ending.prepare()
    gc.freeze()
    for name in names:
        pid = os.fork()
        if pid == 0:
            run(code, [str(FILE), "as a task", folder, name])
            ending.leave(3)
        _, status = os.waitpid(pid, 0)
        Path(folder, name, "status").write_text(str(status))


main()
