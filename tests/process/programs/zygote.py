"""Lets each effect of effects.py happen as in a task: in a process that is forked from one that has
none of the file's own objects, runs the whole file there, and leaves by `leave` of
aflow._core.ending."""

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
