"""Small packages for tests of environments: wheels, sources, an index, a conda channel."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from aflow.environments.uv import interpreter_for
from aflow.errors import EnvironmentFailed


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    requires: Sequence[str] = (),
    body: str = "",
    *,
    tag: str = "py3-none-any",
    scripts: Mapping[str, str] | None = None,
) -> Path:
    """Write a wheel with one module of this name that has a `__version__`. It is a pure Python
    wheel unless `tag` is given."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    extras = "".join(
        f"Provides-Extra: {each.partition('extra ==')[2].strip(' ')[1:-1]}\n"
        for each in requires
        if "extra ==" in each
    )
    files = {
        f"{name}/__init__.py": f"__version__ = {version!r}\n{body}",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        f"{extras}{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\n"
        f"Tag: {tag}\n",
        **{f"{name}-{version}.data/scripts/{k}": text for k, text in (scripts or {}).items()},
    }
    lines = [f"{each},sha256={_record(text)},{len(text)}\n" for each, text in files.items()]
    with zipfile.ZipFile(path, "w") as archive:
        for each, text in files.items():
            archive.writestr(each, text)
        archive.writestr(f"{info}/RECORD", "".join(lines) + f"{info}/RECORD,,\n")
    return path


def make_index(folder: Path, name: str, version: str, *, tag: str = "py3-none-any") -> None:
    """Write a simple index with one wheel, as files."""
    wheel = make_wheel(folder / name, name, version, tag=tag)
    (folder / name / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')


def _record(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


_BACKEND = """\
import os, zipfile
{before}
def get_requires_for_build_wheel(config=None):
    return []
def prepare_metadata_for_build_wheel(folder, config=None):
    os.makedirs(os.path.join(folder, "{name}-{version}.dist-info"))
    with open(os.path.join(folder, "{name}-{version}.dist-info", "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return "{name}-{version}.dist-info"
def build_wheel(folder, config=None, metadata=None):
    {during}
    file = "{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(os.path.join(folder, file), "w") as archive:
        archive.writestr("{name}/__init__.py", "__version__ = '{version}'\\n")
        info = "{name}-{version}.dist-info/"
        archive.writestr(
            info + "METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
        )
        archive.writestr(
            info + "WHEEL",
            "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: {tag}\\n",
        )
        archive.writestr(info + "RECORD", "")
    return file
"""


def make_source(
    folder: Path,
    name: str,
    version: str,
    before: str = "",
    during: str = "pass",
    tag: str = "py3-none-any",
) -> Path:
    """Write a project with its own build backend, which needs no other package. `during` is a
    statement that is executed while the wheel is built."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "{version}"\n'
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    text = _BACKEND.format(name=name, version=version, before=before, during=during, tag=tag)
    (folder / "backend.py").write_text(text)
    return folder


def make_sdist(
    folder: Path, name: str, version: str, during: str, *, tag: str = "py3-none-any"
) -> Path:
    """Write a source distribution of such a project."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}.tar.gz"
    source = make_source(folder / f".source-{name}", name, version, during=during, tag=tag)
    metadata = f"Metadata-Version: 2.2\nName: {name}\nVersion: {version}\n"
    (source / "PKG-INFO").write_text(metadata)
    with tarfile.open(path, "w:gz") as archive:
        for each in sorted(source.iterdir()):
            archive.add(each, f"{name}-{version}/{each.name}")
    return path


def make_repository(folder: Path) -> str:
    """Create a git repository with one commit in a folder, and return the commit's id."""
    git = ["git", "-C", os.fspath(folder), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return head.stdout.strip()


@contextmanager
def index_of(folder: Path, user: str, password: str) -> Iterator[str]:
    """Serve the wheels of a folder as a simple index that requires these credentials. Yields the
    URL without credentials."""
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") != f"Basic {credentials}":
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic")
                self.end_headers()
                return
            if not self.path.startswith("/simple/"):
                super().do_GET()
                return
            name = self.path.split("/")[2]
            found = [each.name for each in folder.glob("*.whl") if each.name.startswith(f"{name}-")]
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write("".join(f'<a href="/{each}">{each}</a>' for each in found).encode())

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    served = functools.partial(Handler, directory=os.fspath(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), served)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_conda_package(
    channel: Path,
    name: str,
    version: str,
    files: Mapping[str, str],
    *,
    subdir: str,
    noarch: str | None = None,
    depends: Sequence[str] = (),
    links: Mapping[str, str] | None = None,
) -> None:
    """Write a conda package into a channel, which must be indexed afterwards."""
    (channel / subdir).mkdir(parents=True, exist_ok=True)
    index = {"name": name, "version": version, "build": "0", "build_number": 0,
             "depends": [*depends], "subdir": subdir}  # fmt: skip
    index |= {} if noarch is None else {"noarch": noarch}
    paths: list[dict[str, object]] = []
    with tarfile.open(channel / subdir / f"{name}-{version}-0.tar.bz2", "w:bz2") as archive:

        def add(place: str, text: str) -> None:
            member = tarfile.TarInfo(place)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))

        for place, text in files.items():
            add(place, text)
            digest = hashlib.sha256(text.encode()).hexdigest()
            paths.append({"_path": place, "path_type": "hardlink", "sha256": digest,
                          "size_in_bytes": len(text.encode())})  # fmt: skip
        for place, target in (links or {}).items():
            member = tarfile.TarInfo(place)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
            paths.append({"_path": place, "path_type": "softlink", "size_in_bytes": 0,
                          "sha256": hashlib.sha256(b"").hexdigest()})  # fmt: skip
        add("info/index.json", json.dumps(index))
        add("info/paths.json", json.dumps({"paths": paths, "paths_version": 1}))


def make_channel(channel: Path, subdir: str) -> None:
    """Create a channel with the running Python as a package, and two versions of `ctiny`."""
    import rattler.index

    base = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    minor = "{}.{}".format(*sys.version_info[:2])
    make_conda_package(
        channel, "python", "{}.{}.{}".format(*sys.version_info[:3]),
        {"pyvenv.cfg": f"home = {os.path.dirname(base)}\n",
         f"lib/python{minor}/site-packages/README": "packages"},
        subdir=subdir, links={"bin/python": base},
    )  # fmt: skip
    for version in ("1.0", "2.0"):
        make_conda_package(
            channel, "ctiny", version,
            {"site-packages/ctiny/__init__.py": f"__version__ = {version!r}\n"},
            subdir="noarch", noarch="python", depends=["python"],
        )  # fmt: skip
    asyncio.run(rattler.index.index_fs(channel))


# ------------------------------------------------------------------ another Python


def another_python() -> str | None:
    """Return the version of an installed Python other than the running one, or None."""
    own = "{}.{}".format(*sys.version_info[:2])
    for minor in ("3.13", "3.12", "3.14", "3.11"):
        if minor != own:
            try:
                return interpreter_for(minor, may_download=False).minor
            except EnvironmentFailed:
                continue
    return None


ANOTHER = another_python()
needs_another = pytest.mark.skipif(ANOTHER is None, reason="one Python is all there is here")
