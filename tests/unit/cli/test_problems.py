"""The messages and exit codes of errors."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from aflow.cli.errors import guarded, printable, show_frames
from aflow.cli.tables import table
from aflow.errors import AflowError, InvalidFlow, InvalidParameter, NotFound


def raising(error: BaseException) -> Callable[[], object]:
    def body() -> object:
        raise error

    return body


@pytest.mark.parametrize(("answer", "code"), [(None, 0), (0, 0), (1, 1), (143, 143), ("x", 0)])
def test_the_exit_code_is_the_answer_if_it_is_a_number(answer: object, code: int) -> None:
    assert code == guarded(lambda: answer)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (NotFound("No run 7."), 1, "    Object not found:\n    No run 7.\n"),
        (AflowError("one\n  two"), 1, "    aflow failed:\n    one\n      two\n"),
        (
            InvalidFlow("No end.", file="f.py", line=3),
            1,
            "    Validity checker found an issue:\n    No end. (f.py, line 3)\n",
        ),
        (InvalidParameter("No number."), 2, "    Invalid parameter:\n    No number.\n"),
        (click.UsageError("No such thing."), 2, "Error: No such thing.\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (click.Abort(), 130, "Interrupted.\n"),
    ],
)
def test_every_error_has_its_sentence_and_its_exit_code(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code == guarded(raising(error))
    assert text == capsys.readouterr().err


def test_a_fault_of_ours_asks_for_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == guarded(raising(ZeroDivisionError("division by zero")))

    text = capsys.readouterr().err
    assert text.startswith(
        "    aflow failed unexpectedly:\n    ZeroDivisionError: division by zero"
    )
    assert "set AFLOW_DEBUG=1" in text
    assert "Traceback" not in text


def test_the_traceback_is_shown_to_who_asks_for_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFLOW_DEBUG", "1")
    guarded(raising(NotFound("No run 7.")))

    assert capsys.readouterr().err.startswith("Traceback")


def test_a_setting_that_cannot_be_used_does_not_hide_the_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFLOW_MAX_WORKERS", "many")
    guarded(raising(NotFound("No run 7.")))

    assert "No run 7." in capsys.readouterr().err


def test_controls_are_spelt_out() -> None:
    text = "t\x1b]52;c;cm0=\x07 \x9b2K \u202e \ttab\nline\r"
    assert "t\\x1b]52;c;cm0=\\x07 \\x9b2K \\u202e \ttab\nline\\r" == printable(text)
    assert "a\\nb" == printable("a\nb", lines=False)
    assert ["a  \\x1b[1A"] == table([["a", "\x1b[1A"]])


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (RuntimeError("can't start new thread"), "No process or thread can be started"),
        (ExceptionGroup("in a group", [RuntimeError("can't start new thread")]), "pids.max"),
        (OSError(errno.EMFILE, "Too many open files", "/a/file"), "ulimit -n"),
        (OSError(errno.ENOSPC, "No space left on device", "/a/file"), "(/a/file)"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "no memory left"),
        (MemoryError(), "no memory left"),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_ours(
    error: Exception, reported: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 1 == guarded(raising(error))
    said = capsys.readouterr().err
    assert reported in said
    assert "fault of aflow" not in said


CHAINED = """\
Traceback (most recent call last):
  File "/flows/train.py", line 3, in first
    raise KeyError("x")
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/flows/train.py", line 9, in work
    fit(self.x)
    ^^^^^^^^^^^
  File "/flows/lib/model.py", line 20, in fit
    return np.linalg.inv(x)
  File "/venv/lib/python3.12/site-packages/numpy/linalg.py", line 561, in inv
    raise LinAlgError
  File "<frozen importlib._bootstrap>", line 1, in _call
numpy.linalg.LinAlgError: Singular matrix
"""


def test_the_frames_of_the_users_own_code_come_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    show_frames(CHAINED.replace("/flows/", f"{tmp_path}/"))
    assert [
        "lib/model.py:20, in fit",
        "return np.linalg.inv(x)",
        "train.py:9, in work",
        "fit(self.x)",
        "(2 frames of libraries left out, the last one <frozen importlib._bootstrap>:1, in _call)",
    ] == [line.strip() for line in capsys.readouterr().err.splitlines()]

    show_frames("no traceback \x1b[31m at all")
    assert "" == capsys.readouterr().err
