"""The folders of environments on a host: what is kept, and what may be deleted."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from aflow._core.clock import SystemClock
from aflow.environments.build import Environments, release
from aflow.environments.files import Files
from aflow.environments.lock import Lock
from aflow.environments.solve import this_platform
from aflow.errors import EnvironmentFailed

OWN = "{}.{}".format(*sys.version_info[:2])
LOCK = Lock(python=OWN, platform=this_platform())
LATER = 1 << 40  # a time at which everything was unused for long


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A complete environment of LOCK."""
    found = Environments(tmp_path)._prefix(LOCK)
    (found / "bin").mkdir(parents=True)
    (found / "bin" / "python").symlink_to(sys.executable)
    (found / "aflow-environment.json").write_text("{}")
    return found


def test_an_environment_is_kept_until_its_last_use_has_ended(prefix: Path, tmp_path: Path) -> None:
    environments = Environments(tmp_path)
    uses = [environments.built(LOCK) for _ in range(2)]

    for use in uses:
        assert (0, True) == (environments.sweep(0, LATER)[0], prefix.is_dir())
        release(use)

    assert f"{prefix}.used.lock" not in map(os.path.realpath, Path("/proc/self/fd").iterdir())
    assert (1, False) == (environments.sweep(0, LATER)[0], prefix.exists())


def test_the_folder_of_a_builder_is_kept_for_as_long_as_it_builds(tmp_path: Path) -> None:
    new = tmp_path / "built" / ".new-0a1b-x_1"
    new.mkdir(parents=True)
    environments = Environments(tmp_path)

    with open(tmp_path / "built" / "0a1b.lock", "w") as building:
        fcntl.flock(building, fcntl.LOCK_EX)
        environments.sweep(0, LATER)
        assert new.is_dir()
    environments.sweep(0, LATER)

    assert not new.exists()


def test_an_environment_that_was_deleted_half_is_not_used(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)
        Environments(tmp_path).sweep(0, LATER)
    assert not prefix.exists()

    Environments(tmp_path).sweep(0, LATER)
    assert [] == [each for each in prefix.parent.iterdir() if each.is_dir()]


def test_what_another_user_has_locked_away_is_kept(prefix: Path, tmp_path: Path) -> None:
    Path(f"{prefix}.used.lock").mkdir()  # cannot be opened

    assert 0 == Environments(tmp_path).sweep(0, LATER)[0]
    assert prefix.is_dir()


def test_stand_ins_that_tasks_use_stay_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    for each in ("PATH", "PYENV_ROOT"):  # no other Python is there
        monkeypatch.setenv(each, os.fspath(tmp_path))
    environments = Environments(tmp_path)
    first = environments.runtime("3.99")
    (first / "kept").touch()
    os.utime(first / "aflow-python", (0, 0))  # so that it looks for the packages again

    assert first == environments.runtime("3.99")
    assert (first / "kept").exists()
    assert (first / "aflow-python").stat().st_mtime > SystemClock.now() - 600


class Broken(BaseHTTPRequestHandler):
    """An index whose connections end too early."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"the first part")
        if self.path == "/reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def test_a_file_of_an_index_that_is_cut_off_is_no_file(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for path, why in (("cut", "986 more expected"), ("reset", "reset by peer")):
                url = f"http://ada:secret@127.0.0.1:{server.server_port}/{path}"
                with pytest.raises(
                    EnvironmentFailed, match=f"cannot be fetched: .*{why}"
                ) as caught:
                    Files(tmp_path).fetch_new(url, "own-1.0-py3-none-any.whl")
                assert "secret" not in str(caught.value)
        finally:
            server.shutdown()
            thread.join()
    assert [] == [*(tmp_path / "wheels").iterdir()]
