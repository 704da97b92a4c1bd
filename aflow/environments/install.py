"""Installer for jobs whose image lacks aflow: install the shipped wheels, then start aflow.

The source of this module is part of the shipped manifest in the datastore. boot.py executes it with
a copy of its own globals, so it can use the names of that module. It uses only the standard
library, and runs on Python 3.7 and later. It accesses no package index.

An installation is kept in the user's cache folder, named by its content, for later jobs on the same
host or with the same home folder. It is a virtual environment of the image's Python, in which the
image's own packages come after those of aflow.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aflow.environments.boot import BootError, pieces

LOCK = "in-use.lock"
KEPT = 7 * 86400.0  # seconds for which an unused installation is kept
AT_ONCE = 8
# PYTHONPATH may contain another package named `aflow`, so the environment is moved before it.
RUN = """\
import gc, sys
gc.disable()
from importlib.util import find_spec
found = find_spec("aflow")
if found is None or not str(found.origin).startswith(sys.prefix):
    sys.path.insert(0, next(path for path in sys.path if path.startswith(sys.prefix)))
import runpy
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def install(manifest: Any, store: str, program: list[str]) -> None:
    """Install the wheels for this Python, and replace this process by the program. Raises BootError
    and OSError.

    Args:
        manifest: The decoded manifest of the shipment.
        store: The URL of the datastore that has the wheels.
        program: The command, as a list of arguments.
    """
    runtime = fitting(manifest["runtimes"])
    base = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    folders = [
        path
        for path in sys.path
        if os.path.basename(path) in ("site-packages", "dist-packages") and os.path.isdir(path)
    ]
    identity = json.dumps([runtime["wheels"], base, folders])
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    below = cache_folder()
    # So that aflow uses the same, writable cache for environments, also if there is no home folder.
    os.environ.setdefault("AFLOW_CLIENT_CACHE_PATH", os.path.dirname(below))
    folder = os.path.join(below, name)
    if not os.path.isdir(folder):
        sweep(below)
        made = tempfile.mkdtemp(prefix=".new-", dir=below)
        try:
            make(made, runtime, store, base, folders)
            try:
                os.rename(made, folder)
            except OSError:
                if not os.path.isdir(folder):  # not just a concurrent job that was faster
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    os.utime(folder)
    # Not removed while this lock is held: by this process, also after execv, and by its forks.
    lock = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_SH)
    fcntl.fcntl(lock, fcntl.F_DUPFD, 200)
    sys.stdout.flush()
    sys.stderr.flush()
    python = os.path.join(folder, "bin", "python")
    os.execv(python, [python, "-c", RUN, *program])


def fitting(runtimes: Any) -> Any:
    """Return the shipped runtime for this Python on this platform. Raises BootError.

    Args:
        runtimes: The runtimes in the manifest, each with its wheels for one Python and platform.
    """
    here = "%d.%d" % sys.version_info[:2] + "t" * ("t" in getattr(sys, "abiflags", ""))
    same = [each for each in runtimes if each["python"] == here]
    if not same:
        raise BootError(
            "The image of this job does not have aflow, which was shipped for Python %s, and the "
            "image has Python %s: use an image with the same, name its Python with "
            "@batch(executable=...), or say that jobs have this one (AFLOW_JOB_PYTHON)."
            % (" and ".join(each["python"] for each in runtimes), here)
        )
    libc, version = libc_here()
    for each in same:
        wants = tuple(each["libc"][1])
        if each["machine"] == platform.machine() and each["libc"][0] == libc and version >= wants:
            return each
    shipped = ", ".join(
        "%s with %s %s" % (each["machine"], each["libc"][0], ".".join(map(str, each["libc"][1])))
        for each in same
    )
    raise BootError(
        "The image of this job does not have aflow, which was shipped for %s, and the job runs on "
        "%s with %s %s: use an image that fits, or one that has aflow, or say what images have "
        "(@batch(platform=...), AFLOW_JOB_PLATFORM)."
        % (shipped, platform.machine(), libc, ".".join(map(str, version)))
    )


def libc_here() -> Any:
    """Return the name and the version of this Python's C library."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError, AttributeError):
        name = version = ""
    return (name or "musl"), tuple(int(each) for each in version.split(".") if each.isdigit())


def cache_folder() -> str:
    """Return the folder for installations: in the user's cache, else in the temporary folder."""
    cache = os.environ.get("AFLOW_CLIENT_CACHE_PATH")
    if not cache:
        cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "aflow")
    mine = os.path.join(tempfile.gettempdir(), "aflow-%d" % os.geteuid())
    for place in (os.path.expanduser(cache), mine):
        each = os.path.join(place, "runtimes")
        if place.startswith("~"):  # there is no home
            continue
        try:
            # makedirs applies the mode only to the last folder, and the parent must be private too.
            os.makedirs(os.path.dirname(each), mode=0o700, exist_ok=True)
            os.makedirs(each, mode=0o700, exist_ok=True)
        except OSError:
            continue
        found = os.stat(os.path.dirname(each))
        # Only a folder in which no other user could place code that this job would run.
        if found.st_uid == os.geteuid() and not found.st_mode & 0o022 and os.access(each, os.W_OK):
            return each
    alone = os.path.join(tempfile.mkdtemp(prefix="aflow-"), "runtimes")
    os.mkdir(alone)
    return alone


def sweep(below: str) -> None:
    """Remove unused installations, and incomplete ones that killed jobs have left.

    Args:
        below: The folder with the installations.
    """
    for each in os.scandir(below):
        try:
            age = time.time() - each.stat().st_mtime
        except OSError:  # a concurrent job has removed it
            continue
        if age <= (86400.0 if each.name.startswith(".new-") else KEPT):
            continue
        try:
            with open(os.path.join(each.path, LOCK), "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(each.path, ignore_errors=True)
        except OSError:  # a job runs in it
            continue


def make(folder: str, runtime: Any, store: str, base: str, folders: Any) -> None:
    """Create the virtual environment in a folder.

    Args:
        folder: A new folder, which the caller renames afterwards.
        runtime: The runtime from the manifest, with its wheels.
        store: The URL of the datastore that has the wheels.
        base: The path of the interpreter.
        folders: The image's own site-packages folders, to add after those of aflow.
    """
    version = "python%d.%d" % sys.version_info[:2]
    packages = os.path.join(folder, "lib", version, "site-packages")
    os.makedirs(packages)
    os.makedirs(os.path.join(folder, "bin"))
    os.symlink(base, os.path.join(folder, "bin", "python"))
    with open(os.path.join(folder, "pyvenv.cfg"), "w", encoding="utf-8") as file:
        file.write("home = %s\ninclude-system-site-packages = false\n" % os.path.dirname(base))
    with open(os.path.join(packages, "zz-image.pth"), "w", encoding="locale") as file:
        for each in folders:
            file.write("import site; site.addsitedir(%r)\n" % each)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for _ in threads.map(lambda wheel: put(wheel, store, packages), runtime["wheels"]):
            pass


def put(wheel: Any, store: str, packages: str) -> None:
    """Fetch a wheel, verify its digest and unpack it. Raises BootError.

    Args:
        wheel: The entry in the manifest: the file name, the blob key, the size and the SHA-256.
        store: The URL of the datastore that has the wheel.
        packages: The folder to unpack into.
    """
    name = "blobs/" + wheel["key"][:2] + "/" + wheel["key"][2:]
    digest = hashlib.sha256()
    with tempfile.TemporaryFile(dir=packages) as file:
        for piece in pieces(store, name, wheel["size"]):
            digest.update(piece)
            file.write(piece)
        if digest.hexdigest() != wheel["sha256"]:
            raise BootError(
                "The wheel %s in %s is damaged: the digest of %s is another. Delete that object "
                "and begin again." % (wheel["file"], store, name)
            )
        unpack(file, wheel["file"], packages)


def unpack(file: Any, name: str, packages: str) -> None:
    """Unpack a wheel into a site-packages folder. Scripts, headers and data files are skipped.

    Args:
        file: The wheel, open for reading.
        name: The name of the wheel, for messages.
        packages: The folder to unpack into.
    """
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            parts = member.filename.split("/")
            if member.is_dir():
                continue
            if parts[0].endswith(".data"):
                if parts[1] not in ("purelib", "platlib"):
                    continue
                parts = parts[2:]
            if ".." in parts or not parts[0]:
                raise BootError("The wheel %s has a file outside of its folder." % name)
            path = os.path.join(packages, *parts)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with archive.open(member) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            if member.external_attr >> 16 & 0o111:
                os.chmod(path, 0o755)
