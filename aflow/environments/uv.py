"""Find and run uv, which solves and installs packages; turn its errors into sentences.

The package index is configured as for uv itself (UV_INDEX and similar variables, uv.toml), or, if
none of that is set, as for pip (PIP_INDEX_URL and similar variables, pip.conf). Credentials stay in
the environment of uv, in netrc, or in the URLs of these settings; they are never recorded.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from aflow._core.private_folders import writable_or_temporary
from aflow._core.secret import without_credentials
from aflow._core.settings import environment_with, without_signing_key
from aflow.errors import EnvironmentFailed, MissingExtra, UnsafeFolder

Report = Callable[[str], None]

INDEX_VARIABLES = (
    "UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS",
    "UV_CONFIG_FILE",
)  # fmt: skip
# Variables that affect solving, and must not affect the installation of locked packages.
_SOLVING_VARIABLES = (
    "UV_CONSTRAINT", "UV_OVERRIDE", "UV_EXCLUDE", "UV_EXCLUDE_NEWER", "UV_EXCLUDE_NEWER_PACKAGE",
    "UV_PRERELEASE", "UV_RESOLUTION", "UV_FORK_STRATEGY", "UV_INDEX_STRATEGY", "UV_NO_SOURCES",
    "UV_TORCH_BACKEND",
)  # fmt: skip
_AWAY = re.compile(
    r"error sending request|dns error|failed to (?:lookup|fetch|connect)|"
    r"connection (?:refused|reset)|timed out|network connectivity is disabled|"
    r"network is unreachable|could not resolve|couldn't connect|"
    r"client error \(connect\)|http status server error|returned error: 50[234]",
    re.IGNORECASE,
)
_GIT = re.compile(r"git operation failed.*stderr\s*(?:fatal:\s*)?(.+)", re.IGNORECASE)
_LABEL = re.compile(r"^(?:error|cause|caused by|\xd7|╰─▶|├─▶|│)\s*:?\s*", re.IGNORECASE)
_SHOWN = ("Downloading ", "Building ", "Built ", "Preparing ")
_HINTS = ("hint:", "help:")


class Uv:
    """The program uv on this host."""

    def __init__(
        self, report: Report = lambda line: None, otherwise: Callable[[], str | None] | None = None
    ) -> None:
        """`report` is called with the progress of long commands of uv; `otherwise` returns the path
        of uv if it is not installed. Raises MissingExtra if there is no uv."""
        self.path = find_uv(otherwise)
        self._report = report
        self._index = index_of_pip()

    def run(
        self,
        *args: str,
        stdin: str = "",
        folder: str | os.PathLike[str] | None = None,
        index: bool = False,
        offline: bool = False,
        more: Mapping[str, str] | None = None,
        solves: bool = False,
    ) -> str:
        """Run a command.

        Args:
            *args: The arguments of uv.
            stdin: The standard input of uv: requirements, one per line.
            folder: The working directory; None, or one that does not exist, for this process's.
            index: Whether to pass on the configured package index of pip.
            offline: Whether to forbid network access.
            more: Additional environment variables.
            solves: Whether to pass on the user's variables that affect solving (constraints and so
                on).

        Returns:
            The standard output of uv.

        Raises:
            UvFailed: If uv cannot be started, or exits with an error.
        """
        argv = [self.path, *args, "--color", "never"]
        argv += self._index.options if index else []
        argv += ["--offline"] if offline else []
        # aflow selects interpreters, and downloads them only with an explicit command (_of_uv).
        fixed = {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", **(more or {})}
        fixed |= self._index.variables if index else {}
        without = ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH", *_SOLVING_VARIABLES * (not solves))
        # Builds of packages run code of others.
        environment = without_signing_key(environment_with(fixed, without=without))
        environment.setdefault("UV_HTTP_RETRIES", "2")
        if "UV_CACHE_DIR" not in environment:
            environment["UV_CACHE_DIR"] = _cache_of_uv(environment)
        certificates = _pip_settings(environment).get("cert", "")
        if os.path.isfile(certificates):
            environment.setdefault("SSL_CERT_FILE", certificates)
        cwd = folder if folder is not None and os.path.isdir(folder) else None
        # Files instead of pipes, to avoid a deadlock while stderr is read.
        try:
            with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as printed:
                source.write(stdin.encode())
                source.seek(0)
                process = subprocess.Popen(
                    argv, stdin=source, stdout=printed, stderr=subprocess.PIPE, encoding="utf-8",
                    errors="replace", env=environment, cwd=cwd,
                )  # fmt: skip
                lines = self._read(process)
                printed.seek(0)
                output = printed.read().decode(errors="replace")
        except OSError as error:
            why = error.strerror or error
            raise UvFailed(f"uv ({self.path}) cannot be started: {why}", str(error)) from error
        if process.returncode:
            raise UvFailed(explanation(lines, process.returncode), "\n".join(lines))
        return output

    def _read(self, process: subprocess.Popen[str]) -> list[str]:
        """Return the lines of stderr after the process has exited; progress is reported."""
        lines: list[str] = []
        with process:
            assert process.stderr is not None, "it is a pipe"
            try:
                for line in process.stderr:
                    lines.append(line.rstrip("\n"))
                    if line.strip().startswith(_SHOWN):
                        self._report(without_credentials(line.strip()))
            except BaseException:
                process.kill()
                raise
        return lines


def _cache_of_uv(environment: Mapping[str, str]) -> str:
    """Return uv's default cache folder, or a temporary one if that is not writable, in which case
    uv would fail. Raises UvFailed."""
    home = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    try:
        return os.fspath(writable_or_temporary(Path(home) / "uv"))
    except (OSError, UnsafeFolder) as error:
        raise UvFailed(f"uv has no folder for its files: {error}", "") from error


class UvFailed(EnvironmentFailed):
    """A command of uv has failed. `explanation` is its error in one line, `full` its stderr."""

    def __init__(self, explanation: str, full: str) -> None:
        super().__init__(explanation)
        self.explanation = explanation
        self.full = full

    @property
    def output(self) -> str:
        """The last line that a build printed before the error of uv; "" if there is none."""
        lines = [each.strip() for each in self.full.splitlines()]
        end = next((i for i, one in enumerate(lines) if one.startswith("error")), len(lines))
        printed = [each for each in lines[:end] if each and not each.startswith(_SHOWN)]
        return without_credentials(printed[-1]).rstrip(".") if printed else ""

    @property
    def is_network(self) -> bool:
        """Whether an index or repository did not respond."""
        # uv's message about a repository contains "failed to fetch" for any reason, so only git's
        # own message is searched.
        return bool(_AWAY.search(self.of_git or self.full))

    @property
    def of_git(self) -> str:
        """The error message of git if a repository could not be fetched; else ""."""
        found = _GIT.search(self.explanation)
        return found[1] if found else ""


def explanation(output: Sequence[str], code: int) -> str:
    """Return the error message of uv in one line, without credentials.

    Args:
        output: The lines that uv printed to stderr.
        code: The exit status of uv.
    """
    lines = [each.strip() for each in output]
    start = next((i for i, each in enumerate(lines) if each.lower().startswith("error")), None)
    if start is None:  # uv was killed, or the error has another format
        kept = [each for each in lines if each][-3:]
    else:
        kept = [each for each in lines[start:] if each and not each.lower().startswith(_HINTS)]
    text = ""
    for each in kept:  # a colon before each cause, a space before a continuation line
        between = ": " if _LABEL.match(each) else " "
        text += (between if text else "") + _LABEL.sub("", each)
    text = without_credentials(re.sub(r"\s+", " ", text)).strip().rstrip(".")
    return text or f"uv ended with exit code {code}"


def find_uv(otherwise: Callable[[], str | None] | None = None) -> str:
    """Return the path of uv: from its PyPI package in this environment, else from PATH, else from
    `otherwise`.

    Args:
        otherwise: Returns the path of uv if it is not on PATH; None for no further search.

    Raises:
        MissingExtra: If uv is not found.
    """
    try:
        from uv import find_uv_bin  # an optional dependency

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
    if found is None and otherwise is not None:
        found = otherwise()
    if found is None:
        raise MissingExtra(
            "The packages of steps (@pypi) are solved and installed by uv, which is not here: "
            "install it (pip install uv), or run with --environment local to use what is installed."
        )
    return found


# ------------------------------------------------------------------ package indexes


class PipIndex(NamedTuple):
    """The index settings of pip in the form of uv; empty if uv has index settings.

    URLs are passed as variables, because all users of the host can read the passwords in URLs on a
    command line.
    """

    variables: dict[str, str]
    options: tuple[str, ...] = ()


def index_of_pip() -> PipIndex:
    """Return the index settings of pip in the form of uv; empty if uv has index settings."""
    environment = environment_with({})
    if any(environment.get(each) for each in INDEX_VARIABLES):
        return PipIndex({})
    settings = {name: value.split() for name, value in _pip_settings(environment).items()}
    variables = {"UV_FIND_LINKS": ",".join(settings.get("find-links", ()))}
    options: tuple[str, ...] = ()
    if "".join(settings.get("no-index", ())).lower() in ("1", "true", "yes", "on"):
        options = ("--no-index",)
    else:
        variables["UV_DEFAULT_INDEX"] = "".join(settings.get("index-url", ())[:1])
        variables["UV_INDEX"] = " ".join(settings.get("extra-index-url", ()))
    return PipIndex({name: value for name, value in variables.items() if value}, options)


def pip_has_several_indexes() -> bool:
    """Return whether several indexes are configured for pip. pip considers the files of all of
    them, uv only those of the first index that has the package."""
    if environment_with({}).get("UV_INDEX_STRATEGY"):
        return False
    return "UV_INDEX" in index_of_pip().variables


def _pip_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of pip about package sources: from its files, overridden by variables."""
    home = environment.get("HOME") or os.path.expanduser("~")
    config_home = environment.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    dirs = (environment.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
    files = [
        *(os.path.join(each, "pip", "pip.conf") for each in dirs if each),
        "/etc/pip.conf",
        os.path.join(home, ".pip", "pip.conf"),
        os.path.join(config_home, "pip", "pip.conf"),
        os.path.join(sys.prefix, "pip.conf"),
    ]
    named = environment.get("PIP_CONFIG_FILE")
    files = [] if named == os.devnull else files + ([named] if named else [])
    found: dict[str, str] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # pip itself reports malformed files
        for section in ("global", "install"):
            if parser.has_section(section):
                found.update({key.replace("_", "-"): text for key, text in parser.items(section)})
    for key in ("index-url", "extra-index-url", "find-links", "no-index", "cert"):
        value = environment.get("PIP_" + key.upper().replace("-", "_"))
        if value:
            found[key] = value
    return found


def index_identity() -> list[str]:
    """Return values that identify the configured package sources, without credentials, for the
    cache of locks. For local folders they depend on the contents."""
    of_pip = index_of_pip()
    environment = {**environment_with({}), **of_pip.variables}
    names = (*INDEX_VARIABLES, *_SOLVING_VARIABLES)
    found = [f"{name}={environment[name]}" for name in names if environment.get(name)]
    found += of_pip.options
    parts = (part.removeprefix("file://") for each in found for part in re.split(r"[\s,=]+", each))
    stamps = [stamp_of(Path(each)) for each in parts if os.path.isabs(each)]
    return [*map(without_credentials, found), *filter(None, stamps)]


def stamp_of(path: Path) -> str:
    """Return a string that changes if a file is modified, or a file in a folder is added or
    modified; "" if the path does not exist.

    Args:
        path: A file, or a folder, which is not searched recursively.
    """
    if not path.is_dir():
        return _stamp_of_file(path)
    return f"{path}: {sorted(map(_stamp_of_file, path.iterdir()))}"


def _stamp_of_file(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{path} {stat.st_size} {stat.st_mtime_ns}" if S_ISREG(stat.st_mode) else str(path)


# ------------------------------------------------------------------ interpreters


class Interpreter(NamedTuple):
    """A CPython interpreter on this host."""

    path: str
    version: str

    @property
    def minor(self) -> str:
        """Major and minor version."""
        return ".".join(self.version.split(".")[:2])


OLDEST = (3, 11)


def own_interpreter() -> Interpreter:
    """Return the interpreter of this process; in a virtual environment, its base interpreter."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    return Interpreter(base, "{}.{}.{}".format(*sys.version_info[:3]))


def interpreter_for(
    asked: str | None, uv: Uv | None = None, *, may_download: bool = True
) -> Interpreter:
    """Return an interpreter of the requested version.

    It searches in this order: that of this process, those of pyenv, those on PATH, those that uv
    finds, and one that uv downloads.

    Args:
        asked: The requested version of Python (`3.12`, `3.12.4`, `>=3.12`); None for this one.
        uv: The uv to use; None to find it.
        may_download: Whether uv may download an interpreter.

    Raises:
        EnvironmentFailed: If there is none; the message lists the versions that were found.
    """
    own = own_interpreter()
    if asked is None or fits(own.version, asked):
        return own
    refuse_older(asked)
    found = [own]
    for path in _candidates(asked):
        version = version_of(path)
        if version is not None:
            found.append(Interpreter(path, version))
            if fits(version, asked):
                return found[-1]
    uv = uv or Uv()
    for download in (False, True) if may_download else (False,):
        named = _of_uv(uv, asked, download=download)
        version = None if named is None else version_of(named)
        if named is not None and version is not None and fits(version, asked):
            return Interpreter(named, version)
    versions = sorted({each.version for each in found}, key=_numbers)
    raise EnvironmentFailed(
        f"Python {asked} is not on this machine, and uv cannot download it; found are: "
        f"{', '.join(versions)}. Install it (pyenv install, uv python install), or ask for another."
    )


def refuse_older(asked: str) -> None:
    """Check that a version of Python is not too old for steps.

    Args:
        asked: The version, for example `3.12`; a range of versions is not checked.

    Raises:
        EnvironmentFailed: If the version is too old.
    """
    numbers = _numbers(asked)
    if re.match(r"\d", asked) and len(numbers) > 1 and numbers[:2] < OLDEST:
        raise EnvironmentFailed(
            f"Steps run with Python {'.'.join(map(str, OLDEST))} or newer, and Python {asked} is "
            "asked for."
        )


def fits(version: str, asked: str) -> bool:
    """Return whether a version of Python matches the requested one.

    Args:
        version: The complete version of an interpreter, for example `3.12.4`.
        asked: The requested version (`3.12`) or specifier (`>=3.12`).
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    if re.match(r"\d", asked):
        parts = asked.split(".")
        return version.split(".")[: len(parts)] == parts
    try:
        return SpecifierSet(asked).contains(version, prereleases=True)
    except InvalidSpecifier:
        return False


def _candidates(asked: str) -> list[str]:
    """Return paths of possible interpreters of that version, the most likely first."""
    environment = environment_with({})
    root = Path(environment.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv"))
    versions = sorted(root.glob("versions/*"), key=lambda each: _numbers(each.name), reverse=True)
    found = [str(each / "bin" / "python") for each in versions if _numbers(each.name)[:2] >= OLDEST]
    exact = [each for each in found if fits(Path(each).parent.parent.name, asked)]
    shims = str(root / "shims")
    minor = ".".join(asked.split(".")[:2]) if re.match(r"\d", asked) else ""
    for folder in (environment.get("PATH") or os.defpath).split(os.pathsep):
        if not folder or os.path.realpath(folder) == os.path.realpath(shims):
            continue
        found += [os.path.join(folder, program) for program in (f"python{minor}", "python3")]
    return list(dict.fromkeys([*exact, *found]))


def version_of(path: str) -> str | None:
    """Return the version of a CPython interpreter by running it; None for any other program.

    Args:
        path: The path of the program, which need not exist.
    """
    program = (
        "import sys; sys.implementation.name == 'cpython' or sys.exit(1); "
        "print('%d.%d.%d' % sys.version_info[:3])"
    )
    try:
        printed = subprocess.check_output(
            [path, "-I", "-S", "-c", program],
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return printed.strip()


def _of_uv(uv: Uv, asked: str, *, download: bool) -> str | None:
    try:
        if download:
            if environment_with({}).get("UV_PYTHON_DOWNLOADS", "") in ("never", "0", "false"):
                return None
            again = {"UV_PYTHON_DOWNLOADS": "manual", "UV_HTTP_RETRIES": "0"}
            uv.run("python", "install", asked, more=again)
        return uv.run("python", "find", "--no-project", "--system", asked).strip() or None
    except UvFailed:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
