"""What the first process of a container owes the others: it is the parent of all that lost theirs,
and the kernel leaves out the default actions of signals for it.

A program that finds itself to be process 1 goes on in a child, and the first process does nothing
but reap what ends, and pass signals on. So no zombies pile up, and SIGTERM means what it means
elsewhere, also without an init (docker run --init).
"""

from __future__ import annotations

import os
import signal
import sys

_PASSED_ON = frozenset({
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGCONT, signal.SIGWINCH,
})  # fmt: skip


def delegate_if_first() -> None:
    """Go on in a child, if this is process 1 and has no thread but this one."""
    threading = sys.modules.get("threading")
    if os.getpid() == 1 and (threading is None or threading.active_count() == 1):
        delegate()


def delegate() -> None:
    """Return in a child. This process passes signals on to it, reaps whatever ends, and ends as the
    child does."""
    waited_for = _PASSED_ON | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _take_terminal()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        number = signal.sigwait(waited_for)
        if number != signal.SIGCHLD:
            os.kill(child, number)
        code = _reap(child)
        if code is not None:
            os._exit(code)


def _take_terminal() -> None:
    """Have a process group of our own, which the terminal sends Ctrl-C to: the first process would
    pass it on a second time."""
    try:
        os.setpgid(0, 0)
        if os.isatty(0):
            ttou = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(0, os.getpgrp())
            signal.signal(signal.SIGTTOU, ttou)
    except OSError:  # it is not our terminal
        return


def _reap(child: int) -> int | None:
    """Reap all that has ended; the exit code to end with, once the child is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            ended = os.waitstatus_to_exitcode(status)
            code = ended if ended >= 0 else 128 - ended
