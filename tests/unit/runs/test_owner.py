"""Whether the process that drives a run is still the one that began it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from aflow.runs.owner import SILENCE, is_alive, this_process


def test_this_process_lives() -> None:
    assert is_alive(this_process(), None, 0.0)


def test_a_pid_that_was_given_to_another_process_is_somebody_else() -> None:
    ours = this_process()
    if ours["began"] == 0:
        pytest.skip("this machine does not tell when a process began")

    assert not is_alive(ours | {"began": ours["began"] - 1}, 1000.0, 1000.0)


def test_a_process_that_has_ended_is_dead_before_its_parent_has_taken_note() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        found = is_alive(this_process() | {"pid": child.pid}, 1000.0, 1000.0)

    assert not found


def test_on_another_host_signs_of_life_have_to_tell() -> None:
    elsewhere = this_process() | {"host": "elsewhere"}

    assert is_alive(elsewhere, 1000.0, 1000.0 + SILENCE - 1)
    assert not is_alive(elsewhere, 1000.0, 1000.0 + SILENCE)
    assert not is_alive(elsewhere, None, 1000.0)
    assert not is_alive(None, None, 1000.0)
