"""Folders in shared places are used only if they belong to the user and are closed to others."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from aflow._core.private_folders import (
    own_folder,
    read_regular,
    runtime_folder,
    writable_or_temporary,
)
from aflow._core.settings import ConfigFile
from aflow.errors import InvalidSetting, ObjectNotFound, UnsafeFolder
from aflow.storage.local import LocalStore


@pytest.fixture(autouse=True)
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder that is writable by everybody; there is no other one."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nothing")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_is_made_for_the_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert 0o700 == mode(own_folder(tmp_path / "new"))
    finally:
        os.umask(before)
    assert tmp_path / "new" == own_folder(tmp_path / "new")  # the second time it is there


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(UnsafeFolder, match="link is a link, or no folder"):
        own_folder(tmp_path / "link")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(UnsafeFolder, match="is a link, or no folder"):
        own_folder(tmp_path / "file")


@pytest.mark.parametrize("bits", [0o777, 0o770, 0o701])
def test_a_folder_that_is_open_to_others_is_refused(tmp_path: Path, bits: int) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(bits)
    with pytest.raises(UnsafeFolder, match=f"open to other users .mode {bits:o}."):
        own_folder(tmp_path / "open")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 65534, 65534)
    with pytest.raises(UnsafeFolder, match=r"belongs to another user \(uid 65534\)"):
        own_folder(tmp_path / "theirs")


def test_the_runtime_folder_is_in_the_session_s_where_that_is_the_user_s_own(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tmp_path / "session"
    session.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    assert session / "aflow" / "queues" == runtime_folder("queues")

    session.chmod(0o755)
    found = runtime_folder("queues")
    assert session not in found.parents
    assert [0o700, 0o700] == [mode(found), mode(found.parent)]


def test_a_runtime_folder_that_somebody_has_prepared_is_refused(shared: Path) -> None:
    if Path(f"/run/user/{os.geteuid()}").exists():
        pytest.skip("this user has a session, whose folder nobody else can prepare")
    (shared / f"aflow-{os.geteuid()}").mkdir()
    (shared / f"aflow-{os.geteuid()}").chmod(0o777)
    with pytest.raises(UnsafeFolder):
        runtime_folder("queues")


# ------------------------------------------------------------------ things that are not files


@pytest.mark.parametrize("what", ["FIFO", "device", "folder", "socket"])
def test_what_stands_in_the_place_of_a_file_is_refused_and_not_waited_for(
    tmp_path: Path, what: str
) -> None:
    """Opening a FIFO blocks until it is written to, and reading a device like /dev/zero never
    ends."""
    place = tmp_path / "blobs" / "config.json"
    place.parent.mkdir()
    if what == "FIFO":
        os.mkfifo(place)
    elif what == "device":
        place.symlink_to("/dev/zero")
    elif what == "folder":
        place.mkdir()
    else:
        os.mknod(place, stat.S_IFSOCK | 0o600)

    with pytest.raises(OSError, match=str(place)):
        read_regular(place)
    with pytest.raises(InvalidSetting, match="cannot be read"):
        ConfigFile(place).read()
    with pytest.raises(ObjectNotFound):
        LocalStore(tmp_path).get("blobs/config.json")


def test_a_regular_file_is_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert b"text" == read_regular(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_below_a_home_that_is_closed_to_the_user_is_nothing_of_theirs(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.chdir(shared)  # the folders around it are closed, too
    monkeypatch.setattr("tempfile.tempdir", ".")
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        found: object = None
        with suppress(OSError, InvalidSetting):
            found = writable_or_temporary(home / "cache" / "environments")
            found = ConfigFile(home / ".aflowconfig" / "config.json").read() or found
        os._exit(found != Path("aflow-65534") / "environments")

    assert 0 == os.waitpid(child, 0)[1]
