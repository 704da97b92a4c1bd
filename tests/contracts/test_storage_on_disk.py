"""Guarantees of the local object store beyond the contract: killed processes, power failures, disks
that fail."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aflow.errors import StoreUnavailable
from aflow.storage import local
from aflow.storage.local import LocalStore


def python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )


RACE = """
import sys
from pathlib import Path
from aflow.storage.local import LocalStore
store = LocalStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(50):
    if store.put_if_absent(f"commits/{number}", [sys.argv[2].encode()]):
        print(number, flush=True)
"""


def test_of_many_processes_exactly_one_wins(tmp_path: Path) -> None:
    racers = [python(RACE, tmp_path / "store", letter) for letter in "abcd"]
    for racer in racers:
        assert racer.stdout is not None
        assert b"ready\n" == racer.stdout.readline()
    won = [racer.communicate(b"\n")[0].decode().split() for racer in racers]

    assert sorted(range(50)) == sorted(int(number) for numbers in won for number in numbers)
    store = LocalStore(tmp_path / "store")
    for letter, numbers in zip("abcd", won, strict=True):
        assert {letter.encode()} >= {bytes(store.get(f"commits/{number}")) for number in numbers}


DIES_BEFORE_RENAME = """
import os, signal, sys
from pathlib import Path
from aflow.storage import local
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
local.os.replace = local.os.link = die  # at the edge: the call to the system
store = local.LocalStore(Path(sys.argv[1]))
getattr(store, sys.argv[2])("a/object", [b"1" * 100_000], durable=True)
"""


@pytest.mark.parametrize("method", ["put", "put_if_absent"])
def test_a_writer_killed_before_the_rename_leaves_no_object(tmp_path: Path, method: str) -> None:
    killed = python(DIES_BEFORE_RENAME, tmp_path / "store", method)
    killed.communicate()
    store = LocalStore(tmp_path / "store")

    assert -signal.SIGKILL == killed.returncode
    assert [] == list(store.list(""))
    assert store.put_if_absent("a/object", [b"whole"]) is True
    assert 1 == store.sweep(older_than_s=0, now=2**40)
    assert b"whole" == store.get("a/object")


WRITES_UNTIL_KILLED = """
import sys
from pathlib import Path
from aflow.storage.local import LocalStore
store = LocalStore(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    store.put("torn", [b"%09d" % number * 100_000])
    print(number, flush=True)
"""


def test_a_writer_killed_at_any_time_leaves_whole_objects(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    for round_ in range(1, 6):
        writer = python(WRITES_UNTIL_KILLED, tmp_path / "store")
        assert writer.stdout is not None
        for _ in range(3 * round_):
            writer.stdout.readline()
        writer.kill()
        writer.communicate()

        data = bytes(store.get("torn"))
        assert data[:9] * 100_000 == data


def test_a_sweep_leaves_the_files_of_those_who_still_write(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a", [b""])
    young, old = tmp_path / ".tmp" / "1-0-young", tmp_path / ".tmp" / "1-1-old"
    for path, written_at in ((young, 900), (old, 100)):
        path.write_bytes(b"")
        os.utime(path, (written_at, written_at))

    assert 1 == store.sweep(older_than_s=500, now=1000)
    assert young.exists()
    assert not old.exists()


def test_no_temporary_file_is_left_by_a_put(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a", [b""])
    store.put_if_absent("b", [b""])
    store.put_if_absent("b", [b""])

    assert [] == os.listdir(tmp_path / ".tmp")


def test_the_root_is_made_by_the_first_put_alone(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "deep" / "root")
    assert store.size("a") is None
    assert 0 == store.sweep(0, 0)
    assert not (tmp_path / "deep").exists()
    with pytest.raises(
        StoreUnavailable, match=r"deep/root cannot be read: the folder is not there"
    ):
        store.get("a")

    store.put("a", [b""])
    assert b"" == store.get("a")


# ------------------------------------------------------------------ power cuts


class Disk:
    """Records the calls that determine the state after a power failure, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.calls: list[tuple[str, str]] = []
        self._root = root
        for name in ("fsync", "replace", "link", "mkdir"):
            monkeypatch.setattr(os, name, self._recording(name, getattr(os, name)))

    def _recording(self, name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object, **options: object) -> None:
            real(*arguments, **options)
            self.calls.append((name, self._path(arguments[0 if name != "replace" else 1])))

        return call

    def _path(self, target: object) -> str:
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
        path = os.path.relpath(path, self._root)
        return ".tmp/*" if path.startswith(".tmp/") else path


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Disk:
    if not Path("/proc/self/fd").exists():
        pytest.skip("there is no /proc to tell which file a descriptor is")
    return Disk(monkeypatch, tmp_path)


def test_a_durable_object_is_on_the_disk_before_its_name_is(disk: Disk, tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b/c", [b"1"], durable=True)
    calls = [call for call in disk.calls if call[0] != "mkdir"]

    assert ("fsync", ".tmp/*") == calls[0]
    assert ("replace", "a/b/c") == calls[1]
    assert [("fsync", "a/b"), ("fsync", "a"), ("fsync", "."), ("fsync", "..")] == calls[2:]


def test_folders_are_made_durable_once(disk: Disk, tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b/c", [b"1"], durable=True)
    disk.calls.clear()
    store.put("a/b/d", [b"1"], durable=True)

    assert [("fsync", ".tmp/*"), ("replace", "a/b/d"), ("fsync", "a/b")] == disk.calls


def test_folders_whose_fsync_failed_are_made_durable_by_the_next_put(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    synced, calls = local._sync, []

    def fails_once(path: str) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        synced(path)

    monkeypatch.setattr(local, "_sync", fails_once)
    with pytest.raises(StoreUnavailable):
        store.put("a/b/c", [b"1"], durable=True)
    disk.calls.clear()
    store.put("a/b/c", [b"1"], durable=True)

    folders = [path for name, path in disk.calls if name == "fsync" and path != ".tmp/*"]
    assert ["a/b", "a", ".", ".."] == folders


def test_a_batch_is_on_the_disk_before_any_of_its_names_is(disk: Disk, tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a/before", [b"1"], durable=True)
    disk.calls.clear()
    names = ["a/1", "b/2", "a/3"]
    put_together(store, {name: name.encode() for name in names})
    calls = [call for call in disk.calls if call[0] != "mkdir"]

    assert [("fsync", ".tmp/*")] * 3 + [("replace", name) for name in names] == calls[:6]
    assert [("fsync", "a"), ("fsync", "b"), ("fsync", ".")] == calls[6:]  # b is new
    assert [] == os.listdir(tmp_path / ".tmp")


def test_a_batch_without_end_holds_a_bounded_part_back(disk: Disk, tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with store.batch(durable=True) as put:
        for number in range(1500):
            put(f"small/{number}", [b"1"])
        assert 1500 - len([*store.list("small/")]) < 1024
        put("large", [bytes(70 << 20)])
        assert 1501 == len([*store.list("")])


def test_what_need_not_be_durable_costs_no_fsync(disk: Disk, tmp_path: Path) -> None:
    LocalStore(tmp_path).put("a/b/c", [b"1"])

    assert "fsync" not in [name for name, _ in disk.calls]


# ------------------------------------------------------------------ disks that fail


def put_together(store: LocalStore, objects: dict[str, bytes]) -> None:
    with store.batch(durable=True) as put:
        for name, data in objects.items():
            put(name, [data])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("only root can mount a small disk, and not everywhere")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_ends_in_one_sentence_and_leaves_nothing_half(small_disk: Path) -> None:
    store = LocalStore(small_disk)
    store.put("before", [b"1"])
    with pytest.raises(
        StoreUnavailable, match=r"small cannot be written: the disk .* is full\. Free"
    ):
        store.put("large", [os.urandom(2 << 20)])

    with pytest.raises(StoreUnavailable, match="is full"):
        put_together(store, {"half": os.urandom(600_000), "whole": os.urandom(600_000)})

    assert ["before"] == list(store.list(""))
    assert [] == os.listdir(small_disk / ".tmp")
    store.put("after", [os.urandom(500_000)])


def test_a_read_only_disk_ends_in_one_sentence(small_disk: Path) -> None:
    store = LocalStore(small_disk)
    store.put("before", [b"1"])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    with pytest.raises(StoreUnavailable, match="small cannot be written: it is mounted read-only"):
        store.put("after", [b"1"])
    assert b"1" == store.get("before")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EDQUOT, "quota is used up"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "the disk reports a fault"),
        (errno.EMFILE, "too many open files"),
        (errno.EXDEV, os.strerror(errno.EXDEV)),
    ],
)
def test_each_failure_of_the_system_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    store = LocalStore(tmp_path)

    with pytest.raises(StoreUnavailable, match=f"cannot be written: .*{words}.*\\.$"):
        store.put("a", [b""])
    with pytest.raises(StoreUnavailable, match=f"cannot be written: .*{words}.*\\.$"):
        put_together(store, {"a": b"", "b": b""})
    assert [] == os.listdir(tmp_path / ".tmp")


def test_a_file_in_the_place_of_the_root_is_reported(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file")
    store = LocalStore(tmp_path / "root")

    with pytest.raises(StoreUnavailable, match="a part of the path is a file"):
        store.put("a", [b""])
    with pytest.raises(StoreUnavailable):
        store.get("a")


def test_the_umask_decides_who_can_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        LocalStore(tmp_path / "root").put("a/b", [b""])
    finally:
        os.umask(before)

    assert 0o640 == (tmp_path / "root/a/b").stat().st_mode & 0o777
    assert 0o750 == (tmp_path / "root/a").stat().st_mode & 0o777
