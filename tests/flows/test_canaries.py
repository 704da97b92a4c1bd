"""Secrets are planted wherever there may be some; afterwards nobody else has them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from tests.flows.conftest import Workspace

SIGNING = "canary-of-the-queue-0123456789abcdef"
SERVICE = "canary-of-the-service-0123456789abcd"
PASSWORD = "canary-of-a-password"

FLOW = """
import os, subprocess
from pathlib import Path
import aflow._core.settings

class Flow_(FlowSpec):
    @step
    def start(self):
        self.mine = sorted(name for name, value in os.environ.items() if "canary-of" in value)
        self.seen, pid = [], os.getpid()
        while pid > 1:  # this process, and all that it comes of
            place = Path("/proc", str(pid))
            if b"canary-of" in (place / "environ").read_bytes() + (place / "cmdline").read_bytes():
                self.seen.append((place / "cmdline").read_text())
            pid = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        said = subprocess.run(["env"], capture_output=True, text=True).stdout
        assert "canary-of" not in said, "a program that a step starts"
        self.settings = len(aflow._core.settings.Settings.load().service_auth_keys)
        print("the step sees", self.mine, self.seen, self.settings)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def kept(folder: Path) -> dict[str, bytes]:
    """All that is in a folder, unpacked where it is packed."""
    found = {}
    for path in (each for each in folder.rglob("*") if each.is_file()):
        data = whole = path.read_bytes()
        at = data.find(zstandard.FRAME_HEADER)
        while at >= 0:
            try:
                whole += zstandard.ZstdDecompressor().decompressobj().decompress(data[at:])
            except zstandard.ZstdError:  # bytes that only look like a frame
                pass
            at = data.find(zstandard.FRAME_HEADER, at + 1)
        found[str(path.relative_to(folder))] = whole
    return found


def test_keys_stay_with_those_who_need_them(workspace: Workspace) -> None:
    workspace.write(FLOW)
    queue = f"sqlite:///{workspace.path}/queue.db"
    keys = {
        "AFLOW_SIGNING_KEY": SIGNING,
        "METAFLOW_SIGNING_KEY": SIGNING,
        "AFLOW_SERVICE_AUTH_KEY": SERVICE,
        "METAFLOW_SERVICE_HEADERS": f'{{"x-other": "{SERVICE}"}}',
        "AFLOW_DEBUG": "1",
    }
    worker = subprocess.Popen(
        [sys.executable, "-m", "aflow", "worker", "--queue", queue, "--slots", "1"],
        cwd=workspace.path, env=os.environ | keys, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        ran = workspace.run("--executor", "queue", "--queue", queue, **keys)
    finally:
        worker.terminate()
        log = worker.communicate(timeout=60)[0]

    assert 0 == ran.code, ran.out + ran.err + log
    assert "the step sees [] [] 1" in ran.out
    password = {"AFLOW_QUEUE": f"redis://:{PASSWORD}@127.0.0.1:1/0"}
    here = workspace.run(**keys, **password)
    assert "the step sees [] [] 1" in here.out, here.out + here.err
    worker_like = workspace.run("--isolation", "worker", **keys, **password)
    assert "the step sees [] [] 1" in worker_like.out
    command = workspace.finish(workspace.start_aflow("run", "flow.py", "--no-pylint", **keys))
    assert "the step sees [] [] 1" in command.out, command.out + command.err
    said = [ran.out, ran.err, here.out, here.err, log]
    assert not any(key in text for key in (SIGNING, SERVICE) for text in said)
    found = kept(workspace.path)
    assert "queue.db" in found
    assert [] == [
        name for name, data in found.items() if SIGNING.encode() in data or SERVICE.encode() in data
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("--executor", "queue", "--queue", f"redis://:{PASSWORD}@127.0.0.1:1/0"),
        ("--executor", "queue", f"--queue=redis://user:{PASSWORD}@127.0.0.1:1/0"),
        ("--executor", "queue", "--queue", f"postgresql://127.0.0.1:1/x?password={PASSWORD}"),
    ],
)
def test_a_password_of_a_url_is_neither_recorded_nor_shown(
    workspace: Workspace, words: tuple[str, ...]
) -> None:
    workspace.write(FLOW)
    ran = workspace.run(*words, AFLOW_DEBUG="1")
    assert 1 == ran.code
    assert PASSWORD not in ran.out
    found = kept(workspace.path)
    assert ".aflow/metadata.db" in found
    assert [] == [name for name, data in found.items() if PASSWORD.encode() in data]


@pytest.mark.parametrize(
    "settings",
    [
        {"AFLOW_DEFAULT_METADATA": f"mysql://user:{PASSWORD}@host/x"},
        {"AFLOW_SERVICE_HEADERS": f"authorization {PASSWORD}", "AFLOW_DEFAULT_METADATA": "http://127.0.0.1:1"},
        {"AFLOW_DEFAULT_METADATA": f"postgresql://user:{PASSWORD}@127.0.0.1:1/x"},
        {"AFLOW_QUEUE": f"redis://:{PASSWORD}@127.0.0.1:1/0"},
    ],
)  # fmt: skip
def test_no_command_shows_a_password_that_it_cannot_use(
    workspace: Workspace, settings: dict[str, str]
) -> None:
    for command in ("doctor", "runs", "status", "gc"):
        ran = workspace.finish(workspace.start_aflow(command, **settings))
        assert PASSWORD not in ran.out + ran.err, command
