"""The code package: which files it contains, and that equal code gives an equal package."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from aflow import FlowMutator, FlowSpec, step
from aflow._core.clock import SystemClock
from aflow.errors import CodePackageError
from aflow.flow.definition import FlowDefinition
from aflow.flow.spec import define
from aflow.storage.blobs import BlobStore
from aflow.storage.memory import MemoryStore
from aflow.task import code_package


class SomeFlow(FlowSpec):
    @step
    def start(self) -> None:
        self.next(self.end)

    @step
    def end(self) -> None:
        pass


@pytest.fixture
def flow(tmp_path: Path) -> FlowDefinition:
    """A flow whose file is `project/flow.py` of the temporary folder."""
    write(tmp_path, "flow.py", "the flow")
    return replace(define(SomeFlow), file=str(tmp_path / "project" / "flow.py"))


def write(folder: Path, name: str, text: str = "") -> Path:
    """Write a file of the project."""
    path = folder / "project" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_files_with_a_suffix_of_code_are_members_wherever_they_are(
    flow: FlowDefinition, tmp_path: Path
) -> None:
    for name in ("a/b/deep.py", "model.R", "data.csv", "notes.txt"):
        write(tmp_path, name)

    assert ["a/b/deep.py", "flow.py", "model.R"] == [*code_package.members(flow)]
    assert ["data.csv", "flow.py"] == [*code_package.members(flow, [".csv"])]


@pytest.mark.parametrize("name", [".git/x.py", "__pycache__/x.py", "node_modules/x.py", ".x.py"])
def test_what_is_no_code_of_the_flow_is_left_out(
    flow: FlowDefinition, tmp_path: Path, name: str
) -> None:
    write(tmp_path, name)

    assert ["flow.py"] == [*code_package.members(flow)]


def test_a_virtual_environment_is_left_out(flow: FlowDefinition, tmp_path: Path) -> None:
    write(tmp_path, "venv/pyvenv.cfg")
    write(tmp_path, "venv/lib/big.py")

    assert ["flow.py"] == [*code_package.members(flow)]


def test_what_is_no_regular_file_is_left_out(flow: FlowDefinition, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "project" / "fifo.py")  # reading it would block for ever
    (tmp_path / "project" / "device.py").symlink_to("/dev/zero")

    assert ["flow.py"] == [*code_package.members(flow)]


def test_links_are_followed_and_circles_end(flow: FlowDefinition, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "utils.py").write_text("shared")
    project = tmp_path / "project"
    (project / "lib").symlink_to(tmp_path / "shared")
    (project / "round").symlink_to(project)
    (project / "self.py").symlink_to(project / "self.py")
    os.unlink(project / "self.py")
    write(tmp_path, "pkg/part.py")
    for link in ("alias", "pkg/up", "pkg/part/beside"):  # the first is found before its folder
        (project / link).parent.mkdir(exist_ok=True)
        (project / link).symlink_to(project / "pkg")

    files = code_package.members(flow)

    assert ["alias/part.py", "flow.py", "lib/utils.py", "pkg/part.py"] == [*files]
    assert b"shared" == opened(code_package.pack(files)).extractfile("lib/utils.py").read()


def opened(data: bytes) -> tarfile.TarFile:
    """Open the archive."""
    return code_package.opened(data)


def test_the_same_code_is_the_same_bytes(flow: FlowDefinition, tmp_path: Path) -> None:
    first = code_package.pack(code_package.members(flow))
    file = write(tmp_path, "flow.py", "the flow")
    file.chmod(0o666)
    os.utime(file, (1, 1))

    assert first == code_package.pack(code_package.members(flow))

    write(tmp_path, "flow.py", "another")
    assert first != code_package.pack(code_package.members(flow))


def test_a_package_comes_out_of_the_store_as_it_went_in(
    flow: FlowDefinition, tmp_path: Path
) -> None:
    write(tmp_path, "a/b.py", "ünïcode")
    blobs = BlobStore(MemoryStore())

    stored = code_package.store(flow, blobs)
    code_package.unpack(code_package.fetch(blobs, stored.key), tmp_path / "out")

    assert "flow.py" == stored.script
    assert "the flow" == (tmp_path / "out" / "flow.py").read_text()
    assert "ünïcode" == (tmp_path / "out" / "a" / "b.py").read_text()
    assert stored == code_package.store(flow, blobs)


def test_a_package_has_odd_names_and_programs_as_they_are(
    flow: FlowDefinition, tmp_path: Path
) -> None:
    script = write(tmp_path, "count.sh", "#!/bin/sh\n")
    script.chmod(0o700)
    odd = os.fsdecode(b"caf\xe9.sh")  # of an archive in Latin-1
    write(tmp_path, odd, "odd")
    out = tmp_path / "out"

    code_package.unpack(code_package.pack(code_package.members(flow, [".sh"])), out)

    assert {"flow.py", "count.sh", odd} == {*os.listdir(out)}
    assert [True, False] == [os.access(out / each, os.X_OK) for each in ("count.sh", odd)]


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("../escaped.py", tarfile.REGTYPE),
        ("/escaped.py", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("device", tarfile.CHRTYPE),
    ],
)
def test_an_archive_that_points_outside_or_holds_more_than_files_is_refused(
    tmp_path: Path, name: str, type_: bytes
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.type = type_
        member.linkname = "/etc"
        archive.addfile(member, io.BytesIO())

    with pytest.raises(CodePackageError, match="cannot be unpacked"):
        code_package.unpack(buffer.getvalue(), tmp_path / "out")
    assert not (tmp_path / "escaped.py").exists()


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CodePackageError, match="not a code package"):
        code_package.unpack(b"nothing of the kind", tmp_path)


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(CodePackageError, match="a" * 64):
        code_package.fetch(BlobStore(MemoryStore()), "a" * 64)


def test_too_many_files_and_too_many_bytes_are_refused(
    flow: FlowDefinition, tmp_path: Path
) -> None:
    write(tmp_path, "more.py", "x" * 1000)

    with pytest.raises(CodePackageError, match="more than 1 files"):
        code_package.members(flow, limits=code_package.PackageLimits(1, 1 << 20))
    with pytest.raises(CodePackageError, match="folder of its own"):
        code_package.pack(code_package.members(flow), code_package.PackageLimits(100, 1000))

    os.truncate(write(tmp_path, "more.csv"), 1 << 40)  # more than the memory: it is not read
    with pytest.raises(CodePackageError, match="more than 512 MB"):
        code_package.pack(code_package.members(flow, [".csv"]))


def test_a_run_records_why_its_code_is_not_kept(flow: FlowDefinition) -> None:
    gone = replace(flow, file="<a cell>")

    facts = code_package.for_the_record(gone, BlobStore(MemoryStore()), [".py"])

    assert ["left_out"] == [*facts]
    assert "defined in no file" in facts["left_out"]


class Adds(FlowMutator):
    def init(self, path: object, name: object) -> None:
        self.pair = (path, name)

    def add_to_package(self) -> list[object]:
        return [self.pair]


def adding(flow: FlowDefinition, *pairs: tuple[object, object]) -> FlowDefinition:
    """Return the flow with mutators that add files."""
    return replace(flow, mutators=tuple(Adds(*pair).begun({}) for pair in pairs))


def test_mutators_add_files_from_anywhere(flow: FlowDefinition, tmp_path: Path) -> None:
    extra = tmp_path / "weights.bin"
    extra.write_bytes(b"weights")

    files = code_package.members(adding(flow, (extra, "models/weights.bin")))

    assert ["flow.py", "models/weights.bin"] == [*files]


@pytest.mark.parametrize("name", ["../x", "/x", "", 5])
def test_mutators_add_nothing_outside_of_the_package(flow: FlowDefinition, name: object) -> None:
    with pytest.raises(CodePackageError, match="add_to_package of Adds"):
        code_package.members(adding(flow, ("somewhere", name)))


def test_two_files_of_one_name_are_refused(flow: FlowDefinition) -> None:
    with pytest.raises(CodePackageError, match=r"both .*one.* and .*two"):
        code_package.members(adding(flow, ("one", "same"), ("two", "same")))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder to another user")
def test_code_that_another_user_has_put_in_its_place_is_not_run(
    flow: FlowDefinition, tmp_path: Path
) -> None:
    blobs = BlobStore(MemoryStore())
    key, below = code_package.store(flow, blobs).key, tmp_path / "code"
    for count, name in enumerate((key, f"{key}-0")):
        planted = below / name
        planted.mkdir(parents=True)
        (planted / "flow.py").write_text("other code")
        os.chown(planted, 65534, 65534)
        if count == 0:
            folder = code_package.unpacked(blobs, key, below)
            assert "the flow" in (folder / "flow.py").read_text()
            code_package.release(folder)
            shutil.rmtree(folder)
    with pytest.raises(CodePackageError, match="belongs to another user"):
        code_package.unpacked(blobs, key, below)


def test_code_that_a_process_uses_is_not_swept(tmp_path: Path) -> None:
    blobs = BlobStore(MemoryStore())
    file = tmp_path / "flow.py"
    file.write_text("x = 1\n")
    key = blobs.put(code_package.pack({"flow.py": file}))
    below, later = tmp_path / "code", SystemClock.now() + 100.0
    folder = code_package.unpacked(blobs, key, below)
    assert folder == code_package.unpacked(blobs, key, below)
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        pass_fds=[code_package.descriptor_of(folder)],
    )

    code_package.release(folder)
    assert (0, 0) == code_package.sweep(below, 50.0, later)
    code_package.release(folder)
    code_package.release(folder)
    assert (0, 0) == code_package.sweep(below, 50.0, later)  # the child uses it
    child.communicate(b"\n")
    assert (0, 0) == code_package.sweep(below, 200.0, later)
    assert (1, 6) == code_package.sweep(below, 50.0, later, dry_run=True)
    assert (1, 6) == code_package.sweep(below, 50.0, later)
    assert [] == [*below.iterdir()]
    assert "x = 1\n" == (code_package.unpacked(blobs, key, below) / "flow.py").read_text()
    code_package.release(folder)
    assert (0, 0) == code_package.sweep(tmp_path / "none", 0.0, later)
