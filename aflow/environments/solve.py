"""Solve the packages that a step requests to a lock: one file for each package, with its sha256.

uv solves (`uv pip compile`, or `uv export` for a project). A package without a wheel for the target
(a source distribution, a repository, a folder) is built here, once, and the wheel is cached by its
digest. Locks are cached by their inputs, so that later runs need not solve again, and work while
the index does not respond.
"""

from __future__ import annotations

import json
import os
import platform as machine
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from aflow._core.private_folders import read_regular
from aflow._core.secret import without_credentials
from aflow._core.settings import environment_with
from aflow.environments.files import Files, digest_of_file, download, write
from aflow.environments.lock import Lock, LockedPackage, digest_of_values, lock_of, normalized
from aflow.environments.spec import Spec
from aflow.environments.uv import (
    Interpreter,
    Report,
    Uv,
    UvFailed,
    index_identity,
    pip_has_several_indexes,
)
from aflow.errors import EnvironmentFailed, InvalidLock, InvalidSetting

_FORM = 1  # version of the cache keys of locks
_SOURCES = (".tar.gz", ".zip", ".tar.bz2", ".tar.xz")
_DIGEST = " --hash="  # precedes each digest of a requirement, as in a requirements.txt
_MANYLINUX = re.compile(r"(\w+?)-manylinux_(\d+)_(\d+)\Z")
_GLIBCS = (*range(40, 30, -1), 28, 17)  # the minor versions of manylinux_2_x that uv supports
_ARCHES = {"amd64": "x86_64", "64": "x86_64", "arm64": "aarch64", "arm64/v8": "aarch64"}
_USUAL = "manylinux_2_28"  # if the C library is not specified: that of images since 2019


class Target(NamedTuple):
    """The target of a lock: a version of Python and a platform. `python` is the interpreter that
    builds packages without a wheel; None for one that uv finds."""

    version: str
    platform: str
    python: Interpreter | None = None

    @property
    def minor(self) -> str:
        """Major and minor version of Python."""
        return ".".join(self.version.split(".")[:2])

    @property
    def is_here(self) -> bool:
        """Whether the platform is that of this host."""
        return self.platform == this_platform()


def this_platform() -> str:
    """Return uv's name of the platform of this host."""
    name, arch = sys.platform, machine.machine().lower()
    arch = _ARCHES.get(arch, arch)
    if name == "darwin":
        return f"{arch}-apple-darwin"
    libc, version = machine.libc_ver()
    if libc == "glibc":
        major, _, minor = version.partition(".")
        return f"{arch}-manylinux_{major}_{minor.partition('.')[0]}"
    return f"{arch}-unknown-linux-musl" if name == "linux" else f"{arch}-{name}"


def platform_named(text: str) -> str:
    """Return uv's name of a platform, from that name (`aarch64-manylinux_2_28`,
    `x86_64-unknown-linux-musl`) or the name used by containers (`linux/arm64`), conda
    (`linux-aarch64`) or AWS (`ARM64`).

    Args:
        text: The name of a platform, as given by a user.

    Raises:
        InvalidSetting: If it is not a platform that jobs can have.
    """
    name = text.strip().lower().replace("manylinux2014", "manylinux_2_17")
    if _MANYLINUX.match(name) or re.fullmatch(r"\w+-unknown-linux-musl", name):
        return name
    short = re.sub(r"^linux[/-]|-unknown-linux-gnu$", "", name)
    arch = _ARCHES.get(short, short)
    if arch not in _ARCHES.values():
        raise InvalidSetting(
            f"{text!r} is not a platform of jobs that aflow knows: name it as linux/amd64 or "
            "linux/arm64, or with its C library, as aarch64-manylinux_2_34 or "
            "x86_64-unknown-linux-musl."
        )
    return f"{arch}-{_USUAL}"


def kind_of(platform: str) -> tuple[str, str]:
    """Return the architecture of a platform, and its C library or system.

    Args:
        platform: uv's name of the platform.
    """
    arch, _, rest = platform.partition("-")
    return arch, "glibc" if rest.startswith("manylinux") else rest


def libc_of(platform: str) -> tuple[str, tuple[int, ...]]:
    """Return the C library of a platform and its version, in the form of `wheels.Fit.libc`.

    Args:
        platform: uv's name of the platform.
    """
    found = _MANYLINUX.match(platform)
    return ("glibc", (int(found[2]), int(found[3]))) if found else ("musl", ())


def _uv_platform(platform: str) -> str:
    """Return the nearest platform that uv supports and whose wheels run on this platform."""
    found = _MANYLINUX.match(platform)
    if found is None:
        return platform
    minor = next((each for each in _GLIBCS if each <= int(found[3])), _GLIBCS[-1])
    return f"{found[1]}-manylinux_{found[2]}_{minor}"


def tags_of(target: Target) -> list[str]:
    """Return the tags of compatible wheels, the best first, for example
    `cp312-cp312-manylinux_2_17_x86_64`.

    Args:
        target: The platform and Python to solve for.
    """
    from packaging.tags import compatible_tags, cpython_tags

    version = [int(each) for each in target.minor.split(".")]
    abi = f"cp{version[0]}{version[1]}"
    platforms = list(_platform_tags(target.platform))
    found = [*cpython_tags(version, [abi], platforms), *compatible_tags(version, abi, platforms)]
    return list(dict.fromkeys(map(str, found)))


def _platform_tags(name: str) -> Iterator[str]:
    glibc = _MANYLINUX.match(name)
    if glibc:
        arch, major, minor = glibc[1], int(glibc[2]), int(glibc[3])
        legacy = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
        for each in range(minor, 4, -1):
            yield f"manylinux_{major}_{each}_{arch}"
            if each in legacy:
                yield f"{legacy[each]}_{arch}"
        yield f"linux_{arch}"
    elif name.endswith("-apple-darwin"):
        from packaging.tags import mac_platforms

        arch = {"aarch64": "arm64"}.get(name.partition("-")[0], "x86_64")
        yield from mac_platforms((15, 0), arch)
    elif name.endswith("-musl"):
        arch = name.partition("-")[0]
        yield from (f"musllinux_1_{each}_{arch}" for each in range(5, -1, -1))
        yield f"linux_{arch}"


def markers_of(target: Target) -> dict[str, str]:
    """Return the values of environment markers (PEP 508) on a target.

    Args:
        target: The platform and Python to solve for.
    """
    arch = target.platform.partition("-")[0]
    is_mac = target.platform.endswith("-apple-darwin")
    full = target.version if target.version.count(".") > 1 else f"{target.version}.0"
    return {
        "implementation_name": "cpython",
        "implementation_version": full,
        "os_name": "posix",
        "platform_machine": "arm64" if is_mac and arch == "aarch64" else arch,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Darwin" if is_mac else "Linux",
        "platform_version": "",
        "python_full_version": full,
        "python_version": target.minor,
        "sys_platform": "darwin" if is_mac else "linux",
        "extra": "",
    }


def kept_lock(
    cache: Path,
    name: str,
    index: Sequence[str],
    solve: Callable[[], Lock],
    report: Report,
    *,
    rebuild: bool = False,
) -> Lock:
    """Return the cached lock, or else solve and cache the result. If solving fails, a cached lock
    from another index is returned. Blocks.

    Args:
        cache: The folder of environments, in which locks are cached.
        name: The cache key of the lock: a digest of everything that was requested.
        index: The identity of the package index.
        solve: Returns a new lock; called if there is no cached lock from this index.
        report: Called with one line if solving fails and a cached lock is used.
        rebuild: Whether to ignore the cached lock.

    Raises:
        EnvironmentFailed: If the packages cannot be solved and there is no cached lock.
    """
    place, identity = cache / "locks" / f"{name}.json", digest_of_values(*index)
    kept = None if rebuild else _read(place)
    if kept is not None:
        # Mark it as used for `gc`; fails if the folder is shared and read-only for this user.
        with suppress(OSError):
            os.utime(place)
        if kept[0] == identity:
            return kept[1]
    try:
        lock = solve()
    except EnvironmentFailed as error:
        if kept is None:
            raise
        report(f"The packages that were solved before are used, since that fails now: {error}")
        return kept[1]
    write(place, json.dumps({"index": identity, "lock": lock.as_dict()}).encode())
    return lock


def _read(place: Path) -> tuple[str, Lock] | None:
    try:
        found = json.loads(read_regular(place))
        return found["index"], Lock.from_dict(found["lock"])
    except (OSError, ValueError, KeyError, TypeError, InvalidLock):
        return None


class Solver:
    """Solves PyPI packages to locks. `folder` is the folder of the flow, to which the paths of
    packages are relative."""

    def __init__(
        self,
        cache: Path,
        folder: Path,
        uv: Uv,
        report: Report = lambda line: None,
        *,
        rebuild: bool = False,
    ) -> None:
        self._cache = cache
        self._report = report
        self._files = Files(cache)
        self._folder = folder
        self._uv = uv
        self._rebuild = rebuild

    def lock(self, spec: Spec, target: Target, title: str = "") -> Lock:
        """Return the cached lock for these packages and this target, or a new one. Blocks.

        Args:
            spec: The packages that a step requests.
            target: The platform and Python to solve for.
            title: The suffix that identifies the environment in messages, like ` of step train`;
                nothing is reported without it.

        Raises:
            EnvironmentFailed: If a package cannot be solved, fetched or built.
        """

        def solve() -> Lock:
            if title:
                what = without_credentials(", ".join(spec.requirements)) or (
                    "those of its project" if spec.project else "none"
                )
                self._report(f"Solving the packages{title} for Python {target.minor}: {what}")
            return self._solved(spec, target)

        # Computed before solving, so that changes during the solution invalidate the cached lock.
        name, index = self._name(spec, target), [] if spec.project else index_identity()
        return kept_lock(self._cache, name, index, solve, self._report, rebuild=self._rebuild)

    def _solved(self, spec: Spec, target: Target) -> Lock:
        text = self._project(spec, target) if spec.project else self._compiled(spec, target)
        here = _project_of(spec.project) if spec.project else self._folder
        packages = _Packages(self._uv, self._files, target, here).read(text, _digests_of(spec))
        # The lock has a micro version only if the step requests exactly that one.
        exact = re.fullmatch(r"\d+\.\d+\.\d+", spec.python or "")
        return lock_of(exact[0] if exact else target.minor, target.platform, packages)

    def _name(self, spec: Spec, target: Target) -> str:
        """Return the cache key of a lock: a digest of everything that it depends on."""
        asked = [_FORM, target.minor, target.platform, spec.python, spec.requirements, spec.conda]
        if spec.project:
            project = _project_of(spec.project)
            asked += [(project / each).read_text("utf-8") for each in ("pyproject.toml", "uv.lock")]
            asked.append(_tree_stamp(project))
        else:
            asked.append([self._stamp(each) for each in spec.requirements])
        return digest_of_values(asked)

    def _stamp(self, requirement: str) -> str:
        """Return a stamp of the local file or folder that a requirement refers to; "" for none."""
        requirement = requirement.partition(_DIGEST)[0]
        place = requirement.partition(" @ ")[2] or requirement
        path = unquote(urlsplit(place).path) if place.startswith("file:") else place
        found = self._folder / path.partition(" ;")[0].partition("[")[0].strip()
        if "/" not in place and not place.endswith((".whl", *_SOURCES)):
            return ""
        if found.is_dir():
            return _tree_stamp(found)
        try:
            return f"{found.stat().st_size} {found.stat().st_mtime_ns}"
        except OSError:
            return ""

    # ------------------------------------------------------------ calls of uv

    def _compiled(self, spec: Spec, target: Target) -> str:
        if not spec.requirements:
            return ""
        argv = ["pip", "compile", "-", "--format", "pylock.toml", "--generate-hashes"]
        argv += ["--no-header", "--no-annotate", "--python-version", target.version]
        if target.python is not None:
            argv += ["--python", target.python.path]
        if not target.is_here:
            argv += ["--python-platform", _uv_platform(target.platform)]
        stdin = "".join(each.partition(_DIGEST)[0] + "\n" for each in spec.requirements)

        def compiled(*more: str, offline: bool = False) -> str:
            return self._uv.run(
                *argv, *more, stdin=stdin, folder=self._folder, index=True, offline=offline,
                solves=True,
            )  # fmt: skip

        try:
            return compiled()
        except UvFailed as error:
            first = error
        try:
            if first.is_network:  # uv's cache may suffice
                return compiled(offline=True)
            if pip_has_several_indexes():  # pip considers the files of all indexes, so do the same
                return compiled("--index-strategy", "unsafe-best-match")
        except UvFailed:
            pass  # the first error is more informative
        if not first.is_network:
            raise EnvironmentFailed(_unsolved(first)) from first
        away = "a repository" if first.of_git else "the index"
        raise EnvironmentFailed(
            f"{away} does not answer, and nothing that was solved before will do: "
            f"{first.of_git or first.explanation}"
        ) from first

    def _project(self, spec: Spec, target: Target) -> str:
        """Return the lock of a uv project as pylock.toml."""
        project = _project_of(spec.project or "")
        argv = ["export", "--frozen", "--no-dev", "--format", "pylock.toml", "--no-header"]
        if target.python is not None:
            argv += ["--python", target.python.path]
        try:
            return self._uv.run(*argv, folder=project)
        except UvFailed as error:
            raise EnvironmentFailed(f"{project / 'uv.lock'}: {error.explanation}") from error


class _Packages:
    """Reads a pylock.toml that uv has solved for a target: selects the best wheel of each package,
    or builds one if there is none. Relative paths in it are relative to the folder `here`."""

    def __init__(self, uv: Uv, files: Files, target: Target, here: Path) -> None:
        self._uv = uv
        self._files = files
        self._target = target
        self._here = here
        self._tags = {tag: place for place, tag in enumerate(tags_of(target))}
        self._no_wheel = f"has no wheel for Python {target.minor} on {target.platform}"

    def read(self, text: str, digests: Mapping[str, Collection[str]]) -> Iterator[LockedPackage]:
        """Yield the packages that the target needs.

        Args:
            text: The content of the pylock.toml.
            digests: The accepted SHA-256 digests, by package; packages without an entry accept all.

        Raises:
            EnvironmentFailed: If a package has no compatible file, or cannot be fetched or built.
        """
        from packaging.markers import Marker

        nothing: dict[str, Any] = {"extras": set(), "dependency_groups": set()}
        markers = {**markers_of(self._target), **nothing}
        for each in tomllib.loads(text).get("packages", []):
            if "marker" not in each or Marker(each["marker"]).evaluate(markers):
                expected = digests.get(normalized(each["name"]))
                yield self._package(
                    each if expected is None else _of_digests(each, expected, self._here)
                )

    def _package(self, found: Mapping[str, Any]) -> LockedPackage:
        name, version = found["name"], found.get("version", "")
        wheels = [*found.get("wheels", [])]
        if _file_of(found.get("archive", {})).endswith(".whl"):
            wheels.append(found["archive"])
            found = {key: value for key, value in found.items() if key != "archive"}
        best = _best(wheels, self._tags)
        if best is not None:
            return self._wheel(name, version, best)
        title = f"{name} {version}".strip()
        if not any(each in found for each in ("sdist", "vcs", "directory", "archive")):
            raise EnvironmentFailed(f"{title} {self._no_wheel}, and no source to build one of")
        return self._built(title, found)

    def _wheel(self, name: str, version: str, found: Mapping[str, Any]) -> LockedPackage:
        """Return the locked package of an existing wheel; a local file is added to the cache."""
        file, url = _file_of(found), found.get("url", "")
        digest = found.get("hashes", {}).get("sha256", "")
        path = _path_of(found, self._here)
        if path is not None or not digest:
            if path is not None and not path.is_file():
                raise EnvironmentFailed(f"{path} no longer exists")
            digest = self._files.add(path, file) if path else self._files.fetch_new(url, file)
        public = "" if path is not None else without_credentials(url)
        return LockedPackage(
            name=normalized(name), version=version or _version_of(file), file=file, sha256=digest,
            url=public, source=os.fspath(path.parent) if path else "",
        )  # fmt: skip

    def _built(self, title: str, found: Mapping[str, Any]) -> LockedPackage:
        """Build a wheel here, and return its locked package."""
        with tempfile.TemporaryDirectory(prefix="aflow-build-") as folder:
            place, source = self._source(title, found, Path(folder))
            out = Path(folder) / "out"
            argv = ["build", "--wheel", "--out-dir", os.fspath(out), os.fspath(place)]
            if self._target.python is not None:
                argv += ["--python", self._target.python.path]
            try:
                self._uv.run(*argv, index=True)
            except UvFailed as error:
                raise EnvironmentFailed(
                    f"{title} {self._no_wheel}, and building one failed (it may need a compiler): "
                    f"{error.output or error.explanation}"
                ) from error
            wheel = next(iter(out.glob("*.whl")), None)
            # A wheel that is compiled here runs only on this platform, regardless of its tags.
            fits = wheel is not None and (
                self._target.is_here or wheel.name.endswith("-none-any.whl")
            )
            if wheel is None or not fits or _best([{"path": wheel.name}], self._tags) is None:
                raise EnvironmentFailed(
                    f"{title} {self._no_wheel}, and one that is built here does not run there: ask "
                    "for a version that has one"
                )
            return LockedPackage(
                name=normalized(found["name"]), version=_version_of(wheel.name), file=wheel.name,
                sha256=self._files.add(wheel, wheel.name), source=source,
            )  # fmt: skip

    def _source(self, title: str, found: Mapping[str, Any], folder: Path) -> tuple[Path, str]:
        """Return the path of the source, and the text that is recorded as its origin."""
        if "vcs" in found:
            return _checked_out(title, found["vcs"], folder / "source")
        if "directory" in found:
            directory = self._here / found["directory"]["path"]
            inner = found["directory"].get("subdirectory", "")
            return directory / inner, os.fspath(directory)
        source = found.get("sdist") or found["archive"]
        path = _path_of(source, self._here)
        if path is not None:
            return path, os.fspath(path)
        url = source["url"]
        file = folder / _file_of(source)
        download(url, file)
        expected = source.get("hashes", {}).get("sha256")
        if expected and digest_of_file(file) != expected:
            raise EnvironmentFailed(
                f"{title}: what {without_credentials(url)} gave is another file"
            )
        return file, without_credentials(url)


def _unsolved(error: UvFailed) -> str:
    if error.of_git:
        return f"a repository cannot be fetched: {error.of_git}"
    if re.search(
        r"failed to build|build backend|failed to (?:prepare|resolve).*build", error.full, re.I
    ):
        why = "a package has to be built, and that failed (it may need a compiler)"
        return f"{why}: {error.explanation}"
    return error.explanation


def _digests_of(spec: Spec) -> dict[str, set[str]]:
    """Return the requested sha256 digests of files, by package."""
    found: dict[str, set[str]] = {}
    for text, *digests in (each.split(_DIGEST) for each in spec.requirements):
        name = re.match(r"[A-Za-z0-9._-]+", text)
        if digests and name is not None:
            known = found.setdefault(normalized(name[0]), set())
            known |= {each.partition(":")[2] for each in digests}
    return found


def _of_digests(
    found: Mapping[str, Any], expected: Collection[str], here: Path
) -> Mapping[str, Any]:
    """Return a package of a pylock.toml with only those files that have one of these digests.
    Raises EnvironmentFailed if there are none."""

    def fits(file: Mapping[str, Any]) -> bool:
        path = _path_of(file, here)
        is_there = path is not None and path.is_file()
        digest = digest_of_file(path) if path and is_there else file.get("hashes", {}).get("sha256")
        return digest in expected

    kept = {each: found[each] for each in ("name", "version") if each in found}
    wheels = [each for each in found.get("wheels", ()) if fits(each)]
    others = {each: found[each] for each in ("sdist", "archive") if fits(found.get(each, {}))}
    if not wheels and not others:
        raise EnvironmentFailed(
            f"{found['name']} {found.get('version', '')} has no file with a digest that is asked "
            "for (--hash)"
        )
    return {**kept, **others, **({"wheels": wheels} if wheels else {})}


def _best(wheels: Iterable[Mapping[str, Any]], tags: Mapping[str, int]) -> Mapping[str, Any] | None:
    """Return the wheel with the best tags; None if none is compatible."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    def rank(wheel: Mapping[str, Any]) -> int:
        try:
            found = parse_wheel_filename(_file_of(wheel))[3]
        except InvalidWheelFilename:
            return len(tags)
        return min(tags.get(str(tag), len(tags)) for tag in found)

    best = min(wheels, key=rank, default=None)
    return None if best is None or rank(best) == len(tags) else best


def _file_of(found: Mapping[str, Any]) -> str:
    """Return the name of a file in a pylock.toml."""
    named = found.get("name") or found.get("path") or urlsplit(found.get("url", "")).path
    return unquote(os.path.basename(str(named)))


def _version_of(wheel: str) -> str:
    from packaging.utils import parse_wheel_filename

    return str(parse_wheel_filename(wheel)[1])


def _path_of(found: Mapping[str, Any], here: Path) -> Path | None:
    """Return the path of a local file in a pylock.toml; None for a file of an index."""
    if found.get("path"):
        return here / str(found["path"])
    parts = urlsplit(found.get("url", ""))
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _checked_out(title: str, vcs: Mapping[str, Any], folder: Path) -> tuple[Path, str]:
    """Clone a repository at a commit into the folder. Returns the path of the package's source, and
    the text that is recorded as its origin."""
    url, commit = vcs["url"], vcs["commit-id"]
    git = shutil.which("git")
    if git is None:
        raise EnvironmentFailed(f"{title} comes from a repository, and git is not here: install it")
    commands: Sequence[Sequence[str]] = (
        [git, "clone", "--quiet", "--no-checkout", "--", url, os.fspath(folder)],
        [git, "-C", os.fspath(folder), "checkout", "--quiet", "--detach", commit],
        [git, "-C", os.fspath(folder), "submodule", "--quiet", "update", "--init", "--recursive"],
    )
    for command in commands:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment_with({"GIT_TERMINAL_PROMPT": "0"}),  # uv has had the credentials
        )
        if done.returncode:
            why = without_credentials((done.stderr.strip().splitlines() or ["git failed"])[-1])
            raise EnvironmentFailed(f"{title} cannot be fetched: {why}")
    return folder / vcs.get("subdirectory", ""), f"{without_credentials(url)}@{commit}"


def _project_of(folder: str) -> Path:
    """Return the folder of the uv project that contains this folder. Raises EnvironmentFailed."""
    for each in (Path(folder), *Path(folder).parents):
        if (each / "uv.lock").is_file() and (each / "pyproject.toml").is_file():
            return each
    raise EnvironmentFailed(
        f"--environment uv needs a pyproject.toml and a uv.lock in {folder} or above it: make them "
        "with uv init and uv lock"
    )


def project_python(folder: str) -> str | None:
    """Return the version of Python that a uv project requires: from `.python-version`, else from
    `requires-python` in pyproject.toml.

    Args:
        folder: The folder of the flow; the project is in it or in one of its parents.

    Raises:
        EnvironmentFailed: If there is no project, or its pyproject.toml is malformed.
    """
    project = _project_of(folder)
    try:
        pinned = (project / ".python-version").read_text("utf-8").split()
    except OSError:
        pinned = []
    if pinned and re.fullmatch(r"\d+(?:\.\d+)*", pinned[0]):
        return pinned[0]
    try:
        found = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise EnvironmentFailed(f"{project / 'pyproject.toml'} cannot be read: {error}") from error
    requires: str | None = found.get("project", {}).get("requires-python")
    return requires


def _tree_stamp(folder: Path) -> str:
    """Return a digest of the paths, sizes and modification times of a project's sources."""
    found: list[tuple[str, int, int]] = []
    for place, folders, files in os.walk(folder):
        # A build makes folders of these names, the first two in the folder of the project.
        made = ("build", "dist", "__pycache__")[0 if Path(place) == folder else 2 :]
        folders[:] = [each for each in folders if each not in made
                      and not each.endswith(".egg-info") and each[:1] != "."]  # fmt: skip
        for each in files:
            with suppress(FileNotFoundError):  # deleted meanwhile, as temporary files are
                stat = os.stat(os.path.join(place, each), follow_symlinks=False)
                found.append((os.path.join(place, each), stat.st_size, stat.st_mtime_ns))
    return digest_of_values(sorted(found))
