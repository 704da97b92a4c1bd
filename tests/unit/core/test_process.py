"""A program that is process 1 of a container continues in a child process and loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE

# The parent of what loses its parents, as the first process of a container is.
PROGRAM = """
import ctypes, os, signal, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
from aflow._core.process import delegate
delegate()
assert os.getpid() != int(sys.argv[1] or 0)
"""


def start(body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + body, ""],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("body", "code"),
    [("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 137), ("print('done')", 0)],
)
def test_it_ends_as_the_program_does(body: str, code: int) -> None:
    process = start(body)
    out, err = process.communicate(timeout=PATIENCE)
    assert (code, "") == (process.returncode, err)
    assert ("done\n" if code == 0 else "") == out


def test_signals_are_passed_on_and_orphans_are_reaped() -> None:
    process = start("""
subprocess.run(["sh", "-c", "sleep 0.01 & sleep 0.01 & exit 0"], check=True)
def stop(*_):
    print("stopped", flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    signal.pause()
""")
    assert process.stdout is not None
    assert "ready\n" == process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(children.read_text().split()) > 1:  # until the orphans have ended, and are reaped
        os.sched_yield()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert (3, "stopped\n", "") == (process.returncode, out, err)
