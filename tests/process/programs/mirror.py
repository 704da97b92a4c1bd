"""A program that records what it sees of its process, before its flow's call and in steps."""

import json
import os
import sys

NAMES = sorted(globals())

import atexit  # noqa: E402
import gc  # noqa: E402
import logging  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
import warnings  # noqa: E402

from aflow import FlowSpec, environment, step  # noqa: E402

VARIABLE = os.environ.get("MIRROR_VARIABLE", "unset")
OF_THE_STEP = os.environ.get("MIRROR_OF_THE_STEP", "of the step")


def descriptors():
    """Return the open files by number, without that of the listing; aflow's have high numbers."""
    found = {}
    for number in sorted(map(int, os.listdir("/proc/self/fd"))):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
    return {number: name for number, name in found.items() if 2 < number < 200}


def seen():
    """Return everything that is visible of the process."""
    umask = os.umask(0o22)
    os.umask(umask)
    return {
        "argv": sys.argv,
        "orig_argv": sys.orig_argv[1:],
        "path": sys.path,
        "cwd": os.getcwd(),
        "names": NAMES,
        "main": [__name__, __file__, str(type(__loader__)), str(__package__), __doc__],
        "is_main": vars(sys.modules["__main__"]) is globals(),
        "environ": dict(os.environ),
        "threads": [each.name for each in threading.enumerate()],
        "native_threads": len(os.listdir("/proc/self/task")),
        "main_thread": threading.main_thread().native_id == os.getpid(),
        "descriptors": descriptors(),
        "signals": [str(signal.getsignal(each)) for each in sorted(signal.valid_signals())],
        "collector": [gc.get_threshold(), gc.isenabled()],
        "flags": str(sys.flags),
        "filters": [str(each[:1] + each[2:3]) for each in warnings.filters],
        "limits": [sys.getrecursionlimit(), sys.getswitchinterval(), umask],
        "log": [logging.root.level, len(logging.root.handlers)],
        "tracing": [sys.gettrace() is None, sys.getprofile() is None],
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "stdin": [sys.stdin.fileno(), sys.stdin.read()],
        "streams": [sys.stdout.encoding, sys.stdout.fileno(), sys.stderr.fileno()],
        "settings": SETTINGS,
    }


def note(where):
    """Record what is visible."""
    found = json.dumps({"where": where, "pid": os.getpid(), "variable": VARIABLE, **seen()})
    with open(os.environ["MIRROR_FILE"], "a") as file:
        file.write(found + "\n")


SETTINGS = {"block": "not run"}
LINES = open(os.environ["MIRROR_FILE"] + ".lines", "a")
LINES.write("module\n")
if "fork" not in sys.argv:  # which refuses exit functions
    atexit.register(lambda: LINES.write("exit function\n"))


class MirrorFlow(FlowSpec):
    def __init__(self, use_cli=True):
        self.made = "by __init__"
        super().__init__(use_cli)

    @step
    def start(self):
        note(f"start, {self.made}")
        LINES.write("step\n")
        self.next(self.other)

    @environment(vars={"MIRROR_VARIABLE": OF_THE_STEP})
    @step
    def other(self):
        note("other")
        LINES.write("step\n")
        self.next(self.last)

    @step
    async def last(self):
        note("last")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    SETTINGS["block"] = "run"
    note("block")
    try:
        MirrorFlow()
    except SystemExit as error:
        LINES.write(f"exit {error.code}\n")
        raise
    finally:
        LINES.write("finally\n")
