"""The settings, in order of precedence: command line, environment, files, defaults.

Every key K is looked up as AFLOW_K, then as METAFLOW_K, in each of these places; the first hit
wins:

1. the environment,
2. `config.json` in the `.aflow` folder found by walking up from the working directory,
3. `config.json` (`config_<profile>.json` with AFLOW_PROFILE) in $AFLOW_HOME or `~/.aflowconfig`,
4. the same in $METAFLOW_HOME or `~/.metaflowconfig`.

A folder found by walking up is only used if no other user can have written to it
(AFLOW_SAFE_DIRECTORIES lists exceptions), and a secret from one file is never sent to an address
from another file. An empty value counts as not set. This is the only module that reads the
environment.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

from aflow._core import ids
from aflow._core.private_folders import make_private, read_regular, refuse_foreign
from aflow._core.records import MISSING, NamedTuple, dataclass, field, fields
from aflow._core.secret import Secret, as_mentioned, revealed, sealed, without_passwords
from aflow._core.system import read_proc
from aflow.errors import InvalidInput, InvalidName, InvalidSetting, UnsafeFolder

# Settings files: one JSON object each, for one user and profile.


_OWN = "~/.aflowconfig"


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A JSON file of settings: an object whose keys have a prefix (AFLOW_USER)."""

    path: Path

    def read(self) -> dict[str, Any] | None:
        """Return the settings in the file; None if it does not exist.

        Raises:
            InvalidSetting: If the file cannot be read, or is not a JSON object.
        """
        try:
            text = read_regular(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if not os.path.isdir(self.path.parent):  # below the home of another user, as in jobs
                return None
            raise InvalidSetting(
                f"The settings in {self.path} cannot be read: {error.strerror}."
            ) from error
        import json  # only imported if there is a file, to keep the start fast

        try:
            values = json.loads(text)
        except ValueError as error:
            raise InvalidSetting(
                f"The settings in {self.path} are not valid JSON: {error}."
            ) from error
        if not isinstance(values, dict):
            raise InvalidSetting(
                f"The settings in {self.path} must be one JSON object of keys and values."
            )
        return values

    def write(self, values: Mapping[str, Any]) -> None:
        """Replace the file atomically; the mode of the new file is 0600.

        Args:
            values: The settings, by key.

        Raises:
            InvalidSetting: If the file cannot be written.
        """
        import json
        import tempfile

        text = json.dumps(dict(sorted(values.items())), indent=2) + "\n"
        try:
            make_private(self.path.parent)
            descriptor, made = tempfile.mkstemp(dir=self.path.parent)  # mode 0600
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(made, self.path)
        except OSError as error:
            raise InvalidSetting(
                f"The settings cannot be written to {self.path}: {error.strerror}."
            ) from error


def expanded(path: str) -> Path:
    """Return a path with `~` replaced by the home directory.

    Args:
        path: The path.

    Raises:
        InvalidSetting: If the home directory is not known.
    """
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise InvalidSetting(
            f"{path}: the home of this user is not known. Set HOME, or write the whole path."
        )
    return Path(found)


def path_in(text: str) -> str:
    """Return the path in a URL, decoded; file names are bytes, which need not be valid UTF-8.

    Args:
        text: The path, with percent escapes.
    """
    from urllib.parse import unquote_to_bytes  # imported here to keep the start fast

    return os.fsdecode(unquote_to_bytes(os.fsencode(text)))


def path_at(url: str) -> Path:
    """Return the path of a file URL.

    Args:
        url: The URL.

    Raises:
        InvalidSetting: If the URL has no `//`, and therefore no path.
    """
    rest = url.partition(":")[2]
    if not rest.startswith("//"):
        raise InvalidSetting(
            f"{as_mentioned(url)!r} names no path: write three slashes, as in file:///data."
        )
    # sqlite:////abs, file:///abs and sqlite:///abs (as in SQLAlchemy) all mean /abs.
    return Path("/" + path_in(rest[2:]).lstrip("/"))


def _below_home(path: str) -> Path | None:
    try:
        return expanded(path)
    except InvalidSetting:
        return None


FOLDER = ".aflow"
_DECIDING = ("config.json", "metadata.db")  # the files in it that determine which code runs
PACKAGE_SUFFIXES = (".py", ".R", ".RDS")
_PREFIXES = ("AFLOW_", "METAFLOW_")
CACHE_FOLDER = "~/.cache/aflow"
_ENVIRONMENT = "in the environment"
_ADDRESSES = ("SERVICE_URL", "SERVICE_INTERNAL_URL", "SERVER", "DEFAULT_METADATA")
_METADATA_URLS = ("postgresql://", "postgres://", "http://", "https://", "sqlite:///")
_FALSE = frozenset({"0", "false", "no", "off"})
_TRUE = frozenset({"1", "true", "yes", "on"})

Durability = Literal["power", "process"]
Isolation = Literal["task", "worker"]
ProcessStart = Literal["fresh", "fork"]


# ------------------------------------------------------------------ looking up a key


_NEVER_BLANK = frozenset({"SIGNING_KEY"})  # an empty value is an error, not "not set"
SHORTEST_KEY = 32  # the minimum number of characters of a key that signs messages


class _SettingsLayer(NamedTuple):
    values: Mapping[str, Any]
    place: str


class _Hit(NamedTuple):
    """A value, with the key and the place where it was found."""

    key: str
    value: Any
    place: str

    def refuse(self, allowed: str) -> NoReturn:
        shown = as_mentioned(repr(self.value))
        if self.key.endswith(("_KEY", "_HEADERS")):
            shown = "what cannot be used"
        raise InvalidSetting(f"{self.key} {self.place} is {shown}; allowed: {allowed}.")


def _look_up(sources: list[_SettingsLayer], keys: tuple[str, ...]) -> _Hit | None:
    for source in sources:
        for prefix in _PREFIXES:
            for key in keys:
                value = source.values.get(prefix + key)
                if value is not None and (value != "" or key in _NEVER_BLANK):
                    return _Hit(prefix + key, value, source.place)
    return None


def _override(name: str, overrides: Mapping[str, Any]) -> _Hit | None:
    value = overrides.get(name)
    return None if value is None else _Hit(name, value, "(given by the program)")


# ------------------------------------------------------------------ checking a value


def _text(hit: _Hit) -> str:
    if not isinstance(hit.value, str):
        hit.refuse("a text")
    return hit.value


def _url(hit: _Hit) -> str:
    return sealed(_text(hit))


class _OneOf:
    """The check of a setting with a fixed set of values."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def __call__(self, hit: _Hit) -> str:
        if hit.value not in self.choices:
            hit.refuse(", ".join(self.choices))
        return str(hit.value)


def _metadata(hit: _Hit) -> str:
    value = _text(hit)
    if value not in ("local", "service") and not value.startswith(_METADATA_URLS):
        hit.refuse("local, service, postgresql://user@host/database, https://host, sqlite:////path")
    return sealed(value)


def _float(value: object) -> float:
    """Return the number; NaN if the value is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _seconds(hit: _Hit) -> float:
    value = _float(hit.value)
    if not 0 <= value < float("inf"):
        hit.refuse("a number of seconds, 0 or more")
    return value


def _number(hit: _Hit) -> int:
    value = hit.value
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value.strip())
    if type(value) is not int or value < 1:
        hit.refuse("a whole number of 1 or more")
    return value


def _amounts(hit: _Hit) -> dict[str, float]:
    """Parse names and amounts such as `gpu=4,memory=64000`; in a file, also an object."""
    words = [each.partition("=")[::2] for each in str(hit.value).split(",")]
    pairs = hit.value.items() if isinstance(hit.value, dict) else words
    amounts: dict[str, float] = {}
    for name, text in pairs:
        name, amount = str(name).strip(), _float(text)
        if not name.isidentifier() or not 0 <= amount < math.inf or name in amounts:
            hit.refuse("names and amounts such as gpu=4,memory=64000 (in MB), each name once")
        amounts[name] = amount
    return amounts


def _flag(hit: _Hit) -> bool:
    word = str(hit.value).strip().lower()
    if word not in _TRUE and word not in _FALSE:
        hit.refuse("1 or 0, true or false")
    return word in _TRUE


def _words(hit: _Hit) -> tuple[str, ...]:
    if isinstance(hit.value, list | tuple) and all(isinstance(one, str) for one in hit.value):
        return tuple(hit.value)
    return tuple(_text(hit).split())


def _keys(hit: _Hit) -> tuple[Secret, ...]:
    return tuple(Secret(key.strip()) for key in _text(hit).split(",") if key.strip())


def _signing_keys(hit: _Hit) -> tuple[Secret, ...]:
    keys = tuple(_text(hit).replace(",", " ").split())
    if not keys or min(map(len, keys)) < SHORTEST_KEY:
        # Not `refuse`, whose message contains the value.
        raise InvalidSetting(
            f"{hit.key} {hit.place} is {'too short' if keys else 'blank'}: a key has at least "
            f"{SHORTEST_KEY} characters, as `openssl rand -hex 32` makes it (several with commas, "
            "of which the first signs); unset it where messages are not to be signed."
        )
    return tuple(map(Secret, keys))


def _suffixes(hit: _Hit) -> tuple[str, ...]:
    words = tuple(word.strip() for word in _text(hit).split(",") if word.strip())
    if not words:
        hit.refuse("suffixes of files, as in .py,.sql")
    return words


def _user(hit: _Hit) -> str:
    try:
        return ids.tag(f"user:{_text(hit)}").removeprefix("user:")
    except InvalidName:
        hit.refuse("a name of at most 495 characters of valid UTF-8")


# ------------------------------------------------------------------ the settings


def _setting(default: Any, check: Callable[[_Hit], Any], *keys: str) -> Any:
    """Return a field of Settings: its default, the check of its value, and its keys without prefix.

    Keys that start with RUN_ are Metaflow's names for options of `run`.
    """
    return field(default=default, metadata={"keys": keys, "check": check})


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfRuns:
    """The settings that are also options of each run."""

    metadata: str = _setting("local", _metadata, "DEFAULT_METADATA")
    environment: str | None = _setting(
        None, _OneOf("local", "conda", "pypi", "uv"), "DEFAULT_ENVIRONMENT"
    )
    namespace: str | None = _setting(None, _text, "NAMESPACE")
    isolation: Isolation = _setting("task", _OneOf("task", "worker"), "RUN_ISOLATION", "ISOLATION")
    process: ProcessStart = _setting("fresh", _OneOf("fresh", "fork"), "RUN_PROCESS", "PROCESS")
    max_workers: int = _setting(16, _number, "RUN_MAX_WORKERS", "MAX_WORKERS")
    max_num_splits: int = _setting(100, _number, "RUN_MAX_NUM_SPLITS", "MAX_NUM_SPLITS")
    previews: bool = _setting(True, _flag, "PREVIEWS")
    retry_wait: float | None = _setting(None, _seconds, "RETRY_WAIT")
    package_suffixes: tuple[str, ...] = _setting(
        PACKAGE_SUFFIXES, _suffixes, "DEFAULT_PACKAGE_SUFFIXES", "PACKAGE_SUFFIXES"
    )
    executor: str = _setting(
        "local",
        _OneOf("local", "queue", "batch", "slurm", "kubernetes"),
        "EXECUTOR",
        "DEFAULT_EXECUTOR",
    )
    queue: str | None = _setting(None, _url, "QUEUE")
    resources: Mapping[str, float] | None = _setting(None, _amounts, "RUN_RESOURCES", "RESOURCES")
    signing_keys: tuple[Secret, ...] = _setting((), _signing_keys, "SIGNING_KEY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(_OfRuns):
    """All settings of one program, validated.

    `root` is the absolute path of the `.aflow` folder, which may not exist yet. `namespace` is None
    if it is not set; the namespace of the user then applies. `holder_kind` is the kind of lease
    holder of coordinators. `environment` is the value of `--environment`, None if there is none;
    environments are stored in `environments_folder`, or else below `cache_folder`. `job_platform`
    and `job_python` are those of workers and job images, if they differ from those of the run.
    `max_log_size` is in MB (2**20 bytes) for each stream of an attempt. `cache_size` is the maximum
    size, in MB, of the copies of remote blobs below `cache_folder`. Without `previews` manifests
    contain the types and shapes of artifacts, but none of their values.
    """

    root: Path
    user: str = _setting(MISSING, _user, "USER")
    datastore: str = _setting("local", _OneOf("local", "s3"), "DEFAULT_DATASTORE")
    datastore_root: str | None = _setting(None, _url, "DATASTORE_ROOT")
    environments_folder: str | None = _setting(None, _text, "ENVIRONMENTS_FOLDER")
    job_platform: str | None = _setting(None, _text, "JOB_PLATFORM")
    job_python: str | None = _setting(None, _text, "JOB_PYTHON")
    durability: Durability = _setting("power", _OneOf("power", "process"), "DURABILITY")
    default_decospecs: tuple[str, ...] = _setting((), _words, "DEFAULT_DECOSPECS")
    debug: bool = _setting(False, _flag, "DEBUG")
    no_color: bool = _setting(False, _flag, "NO_COLOR")
    progress: bool = _setting(True, _flag, "RUN_PROGRESS", "PROGRESS")
    ui_url: str | None = _setting(None, _url, "UI_URL")
    max_log_size: int = _setting(10, _number, "RUN_MAX_LOG_SIZE", "MAX_LOG_SIZE")
    default_secrets_backend: str | None = _setting(None, _text, "DEFAULT_SECRETS_BACKEND_TYPE")
    default_secrets_role: str | None = _setting(None, _text, "DEFAULT_SECRETS_ROLE")
    secrets_region: str | None = _setting(None, _text, "AWS_SECRETS_MANAGER_DEFAULT_REGION")
    secrets_manager_role: str | None = _setting(None, _text, "AWS_SECRETS_MANAGER_DEFAULT_ROLE")
    datastore_s3: str | None = _setting(None, _url, "DATASTORE_SYSROOT_S3")
    s3_endpoint: str | None = _setting(None, _url, "S3_ENDPOINT_URL")
    datatools_s3: str | None = _setting(None, _url, "DATATOOLS_S3ROOT", "DATATOOLS_SYSROOT_S3")
    s3_encryption: str | None = _setting(None, _text, "S3_SERVER_SIDE_ENCRYPTION")
    s3_workers: int = _setting(64, _number, "S3_WORKER_COUNT")
    cache_folder: str = _setting(CACHE_FOLDER, _text, "CLIENT_CACHE_PATH")
    cache_size: int = _setting(10_000, _number, "CLIENT_CACHE_MAX_SIZE")
    holder_kind: str = _setting("run", _text, "HOLDER_KIND")
    spin_persist: bool = _setting(True, _flag, "SPIN_PERSIST")
    tempdir: str = _setting(".", _text, "TEMPDIR")
    service_url: str | None = _setting(None, _url, "SERVICE_URL")
    health_file: str | None = _setting(None, _text, "HEALTH_FILE")
    health_url: str | None = _setting(None, _url, "HEALTH_URL")
    service_auth_keys: tuple[Secret, ...] = _setting((), _keys, "SERVICE_AUTH_KEY")

    @classmethod
    def load(
        cls,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        **overrides: Any,
    ) -> Settings:
        """Read and validate the settings.

        Args:
            env: The environment variables; None for those of this process.
            cwd: The folder where the upward search for `.aflow` starts; None for the working
                directory.
            **overrides: Fields that take precedence over all sources; None has no effect.

        Returns:
            The settings.

        Raises:
            InvalidSetting: If a value is invalid (the error contains the key, the value, its place
                and the allowed values), or if another user can have written to the `.aflow` folder
                that was found.
        """
        env = _environment() if env is None else env
        base = _working_directory() if cwd is None else Path(cwd).absolute()
        found = _walk_up(base, env)
        sources = _sources(env, found)
        values: dict[str, Any] = {}
        for name, declared in SETTINGS.items():
            hit = _override(name, overrides) or _look_up(sources, declared["keys"])
            if hit is not None:
                values[name] = declared["check"](hit)
        if overrides.get("queue") is None:
            _refuse_strangers(_look_up(sources, ("QUEUE",)), _look_up(sources, ("SIGNING_KEY",)))
        unknown = overrides.keys() - SETTINGS.keys()
        if unknown:
            raise TypeError(f"Settings.load() takes no {', '.join(sorted(unknown))}")
        values.setdefault("user", _user_of_the_machine(env))
        # Conventions of terminal programs, without prefix.
        if env.get("NO_COLOR") or env.get("TERM") == "dumb":
            values["no_color"] = True
        if env.get("TERM") == "dumb":  # such a terminal cannot move its cursor
            values["progress"] = False
        return cls(root=_root(values, sources, base, found), **values)

    @property
    def storage_url(self) -> str:
        """The URL of the datastore for `open_store`: `file:///.../.aflow` or `s3://bucket/prefix`.

        Raises InvalidSetting if the datastore is S3 and no bucket is set.
        """
        if self.datastore == "local":
            return self.root.as_uri()
        place = self.datastore_root if _is_s3(self.datastore_root) else self.datastore_s3
        if place is None or not _is_s3(place):
            raise InvalidSetting(
                "--datastore s3 needs a place in S3: give --datastore-root "
                "s3://bucket/prefix, or set AFLOW_DATASTORE_SYSROOT_S3."
            )
        return at_endpoint(place, self.s3_endpoint)

    @property
    def cache(self) -> Path:
        """The folder for copies of remote blobs; next to the data if there is no home directory.

        Raises InvalidSetting if the setting needs the home directory and it is not known.
        """
        if self.cache_folder == CACHE_FOLDER and os.path.expanduser("~") == "~":
            return self.root / "cache"
        return expanded(self.cache_folder)

    @property
    def data_root(self) -> str:
        """The URL for the files of S3(run=...): `s3://bucket/prefix`, maybe with `?endpoint=`.

        Raises InvalidSetting if it is not set.
        """
        if self.datatools_s3 is not None:
            return self.datatools_s3
        if self.datastore_s3 is None:
            raise InvalidSetting(
                "S3(run=...) needs a place in S3: set AFLOW_DATATOOLS_S3ROOT to s3://bucket/prefix."
            )
        place, mark, options = self.datastore_s3.partition("?")
        return place.rstrip("/") + "/data" + mark + options

    @property
    def metadata_url(self) -> str:
        """The URL of the metadata for `open_metadata`.

        It is `sqlite:////.../metadata.db`, the URL of a database server (a SecretUrl if it contains
        a password), or the address of the metadata service. Raises InvalidSetting if the metadata
        service is used and its address is not set.
        """
        if self.metadata == "local":
            return self.local_metadata_url
        if self.metadata != "service":
            return self.metadata
        if self.service_url is None:
            raise InvalidSetting(
                "The metadata service has no address: set AFLOW_SERVICE_URL to http(s)://host."
            )
        return self.service_url

    @property
    def local_metadata_url(self) -> str:
        """The URL of the local metadata: `sqlite:////.../metadata.db`."""
        return "sqlite:///" + (self.root / "metadata.db").as_uri().removeprefix("file://")

    @property
    def has_metadata(self) -> bool:
        """Whether metadata may exist; True if they are on a server."""
        return self.metadata != "local" or (self.root / "metadata.db").exists()

    @property
    def place(self) -> str:
        """The place of the runs, as an argument for `aflow.client.metadata`."""
        return f"local@{self.root}" if self.metadata == "local" else self.metadata_url

    @property
    def signing_key_bytes(self) -> tuple[bytes, ...]:
        """The keys for signing messages: the first one signs, all verify. Empty: no signatures."""
        return tuple(key.reveal().encode() for key in self.signing_keys)

    @property
    def default_namespace(self) -> str:
        """The initial namespace of a program: the one that is set, or else `user:<user>`."""
        return self.namespace or f"user:{self.user}"


def environment_with(more: Mapping[str, str], without: Collection[str] = ()) -> dict[str, str]:
    """Return the environment for a program that this process starts.

    Args:
        more: Additional variables, which take precedence.
        without: Variables to remove.
    """
    known = {name: value for name, value in _environment().items() if name not in without}
    return {**known, **{name: revealed(value) for name, value in more.items()}}


# Variables that identify a Slurm job, which it must not pass on to jobs that it submits.
_OF_THIS_JOB = ("AFLOW_JOB_", "SLURM_", "SLURMD_", "PMI_", "PMIX_")
_OF_ALL_JOBS = frozenset({"SLURM_CONF", "SLURM_CLUSTERS"})


def environment_of_jobs(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for commands that submit jobs, which inherit it.

    It does not contain the signing key, nor the variables that identify the job of this process.

    Args:
        more: Additional variables.
    """
    known = without_signing_key(dict(os.environ)).items()
    kept = {k: v for k, v in known if k in _OF_ALL_JOBS or not k.startswith(_OF_THIS_JOB)}
    return {**kept, **{name: revealed(value) for name, value in more.items()}}


def keep_service_key(key: str) -> None:
    """Set the key with which this process and its children authenticate to the metadata service.

    Args:
        key: The key, which is sent as `x-api-key`.
    """
    os.environ["AFLOW_SERVICE_AUTH_KEY"] = key


# ------------------------------------------------------------------ secrets in the environment


# The key that signs messages between coordinators and workers. Steps do not need it, and a process
# that has it can make workers run code.
_KEY_OF_MESSAGES = "SIGNING_KEY"
_SECRET_KEYS = frozenset({_KEY_OF_MESSAGES, "SERVICE_AUTH_KEY", "SERVICE_HEADERS"})

_OTHER_URLS = frozenset({"HISTORY", "SERVER"})  # settings that are not fields of Settings

# The settings that were removed from the environment of a process that runs steps. aflow reads them
# from here; steps, and the processes that they start, do not have them.
_withheld: dict[str, Secret] = {}


def _environment() -> Mapping[str, str]:
    """Return the environment, including the variables that were removed from it."""
    if not _withheld:
        return os.environ
    return {**{name: value.reveal() for name, value in _withheld.items()}, **os.environ}


def without_signing_key(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the key that signs messages, for a process that runs steps.

    Args:
        environment: The variables.
    """
    return {
        name: value
        for name, value in environment.items()
        if not name.endswith(f"_{_KEY_OF_MESSAGES}") or not name.startswith(_PREFIXES)
    }


def forget_signing_key() -> None:
    """Remove the signing key from the environment of this process.

    Other secrets remain in the environment, hidden from other processes (see `conceal_secrets`).
    """
    conceal_secrets()
    for prefix in _PREFIXES:
        os.environ.pop(prefix + _KEY_OF_MESSAGES, None)


def withhold_secrets() -> None:
    """Remove keys, and URLs with passwords, from the environment of a process that will run steps.

    aflow still finds them, except the signing key.
    """
    conceal_secrets()
    for name in secret_variables():
        value = os.environ.pop(name)
        if not name.endswith(_KEY_OF_MESSAGES):
            _withheld[name] = Secret(value)


def conceal_secrets() -> None:
    """Overwrite keys of aflow and passwords of URLs in `/proc/PID/environ` and `/proc/PID/cmdline`.

    Every user can read `cmdline`. os.environ and sys.argv do not change. Must be called while the
    process has only one thread.
    """
    names = secret_variables()
    words = [each for each in sys.orig_argv if without_passwords(each) != each]
    if not names and not words:
        return
    for name in names:
        os.environ[name] = os.environ[name]  # makes the C library allocate a copy
    first, line, state = (read_proc(f"self/{each}") for each in ("environ", "cmdline", "stat"))
    if first is None or line is None or state is None:  # there is no /proc
        return
    fields = state.rpartition(b")")[2].split()
    if len(fields) < 48:
        return
    words_at, variables_at = int(fields[45]), int(fields[47])  # arg_start, env_start: see proc(5)
    import ctypes  # only imported if there is a secret, to keep the start fast

    for start, size in _passwords_in(line):
        ctypes.memset(words_at + start, ord("*"), size)
    for name in secret_variables(
        dict(os.fsdecode(each).split("=", 1) for each in first.split(b"\0") if b"=" in each)
    ):
        head = os.fsencode(name) + b"="
        at = 0 if first.startswith(head) else first.index(b"\0" + head) + 1
        value = first.index(b"\0", at) - at - len(head)
        ctypes.memset(variables_at + at + len(head), 0, value)


def _passwords_in(line: bytes) -> list[tuple[int, int]]:
    """Return (position, length) of the passwords of URLs in the content of /proc/PID/cmdline."""
    found, at = [], 0
    for word in line.split(b"\0"):
        shown = os.fsencode(without_passwords(os.fsdecode(word)))
        if shown != word:
            ahead = _alike(word, shown)
            behind = _alike(word[ahead:][::-1], shown[ahead:][::-1])
            found.append((at + ahead, len(word) - ahead - behind))
        at += len(word) + 1
    return found


def _alike(one: bytes, other: bytes) -> int:
    """Return the length of the common prefix."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))


def secret_variables(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the names of aflow's variables that contain a key, or a URL with a password.

    Args:
        environment: The variables; None for those of this process.
    """
    found = []
    for name, value in (os.environ if environment is None else environment).items():
        prefix = next(filter(name.startswith, _PREFIXES), None)
        if prefix is not None:
            key = name.removeprefix(prefix)
            if key in _SECRET_KEYS or (
                (key in KEYS or key in _OTHER_URLS) and without_passwords(value) != value
            ):
                found.append(name)
    return found


@dataclass(frozen=True, slots=True)
class SpinOptions:
    """The options of `spin`.

    The default of `run` is the latest run that has a task of the step; the default of `task` is its
    first failed task of the step, or else its first one. `artifacts` replace those of the inputs:
    values by name; for a join, {pathspec: values by name}. Without `persist` the artifacts of the
    step are not stored.
    """

    step: str
    run: str | None = None
    task: int | None = None
    artifacts: dict[str, Any] = field(default_factory=dict)
    persist: bool = True


SETTINGS = {
    name: each.metadata for name, each in Settings.__dataclass_fields__.items() if each.metadata
}
KEYS = frozenset(key for each in SETTINGS.values() for key in each["keys"])
"""The keys of all settings, without prefix."""


def choices_of(setting: str) -> tuple[str, ...]:
    """Return the allowed values of a setting that has a fixed set of values.

    Args:
        setting: The name of the setting, a field of `Settings`.
    """
    check = SETTINGS[setting]["check"]
    assert isinstance(check, _OneOf), f"{setting} may be anything"
    return check.choices


def default_of(setting: str) -> Any:
    """Return the default of a setting.

    Args:
        setting: The name of the setting, a field of `Settings`.
    """
    return Settings.__dataclass_fields__[setting].default


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(_OfRuns):
    """The options of one run, resolved and validated.

    `parameters` has a value for every parameter of the flow. `max_log_size` is in bytes for each
    stream of an attempt. `retry_wait` is the number of seconds between attempts; None uses that of
    @retry. The tasks of `debug_step` use the terminal of this process, one at a time. `namespace`
    is that of the client inside the run: None for the user's namespace, "" for the global one.
    `decospecs` are already in the definition; they are only recorded.

    `origin_run` is the run to resume, whose parameters are used; `rerun_step` is a step to run
    again in any case; with `rerun_missing` tasks whose blobs are missing run again. With
    `clone_only` no task runs: results are only reused. `resume_identifier` identifies the caller.
    `run_id` is the id of the new run; None generates one. With `spin` a single step runs on inputs
    of an earlier run.

    `environment` is the value of `--environment`, None if there is none. `locks` are the resolved
    packages of the steps that have their own environment, by step; if None, the coordinator
    resolves them.

    `branch` and `production` are for @project. `trigger` are the pathspecs of the runs that started
    this one according to the command line. `package_suffixes` are the suffixes of the files in the
    code package. With `executor` "queue" the workers of `queue` run the tasks; messages are signed
    with the first of `signing_keys`, if there is one, and those with a higher `priority` are
    delivered first. With "batch", "slurm" or "kubernetes" jobs run the tasks. `argv` are the
    command-line arguments after the flow's file, for a server that must start the run again.
    """

    parameters: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    max_log_size: int = 10 << 20
    fail_fast: bool = False
    debug_step: str | None = None
    decospecs: tuple[str, ...] = ()
    script: str = ""
    origin_run: str | None = None
    rerun_step: str | None = None
    rerun_missing: bool = False
    clone_only: bool = False
    resume_identifier: str | None = None
    run_id: str | None = None
    spin: SpinOptions | None = None
    branch: str | None = None
    production: bool | None = None
    trigger: tuple[str, ...] = ()
    priority: int = 0
    argv: tuple[str, ...] = ()
    locks: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        settings: Settings,
        *,
        tags: Iterable[str] = (),
        namespace: str | None = None,
        **given: Any,
    ) -> RunOptions:
        """Return the options of a run: those given for this run, or else those of the settings.

        Args:
            settings: The settings, which have the defaults of fields with the same name.
            tags: The tags of the run.
            namespace: The namespace of the run; None for that of the settings.
            **given: Options of this run, by the names of the fields.

        Raises:
            InvalidName: If a tag is invalid, or there are too many.
        """
        values = {name: getattr(settings, name) for name in _OF_SETTINGS}
        values["max_log_size"] <<= 20  # the setting is in megabytes
        values["tags"] = ids.tags(tags)
        if namespace is not None:
            values["namespace"] = namespace
        return cls(**values | given)


# The options on which decisions of a run depend; a coordinator that recovers the run reuses them.
RECORDED_OPTIONS = (
    "max_workers", "max_num_splits", "isolation", "process", "fail_fast", "rerun_step",
    "rerun_missing",
)  # fmt: skip


_OF_SETTINGS = RunOptions.__dataclass_fields__.keys() & Settings.__dataclass_fields__.keys()


def configs_in_environment(
    env: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the files and the values of configs in AFLOW_FLOW_CONFIG and AFLOW_FLOW_CONFIG_VALUE.

    Both variables are JSON objects by the name of the config; METAFLOW_... are also read.

    Args:
        env: The environment variables; None for those of this process.

    Raises:
        InvalidSetting: If one of them is not a JSON object.
    """
    sources = [_SettingsLayer(_environment() if env is None else env, _ENVIRONMENT)]
    found = []
    for key in ("FLOW_CONFIG", "FLOW_CONFIG_VALUE"):
        hit = _look_up(sources, (key,))
        found.append({} if hit is None else _mapping(hit))
    return found[0], found[1]


def resource_amounts(value: str) -> dict[str, float]:
    """Return the amounts in `gpu=4,memory=64000`, by name.

    Args:
        value: The text to parse.

    Raises:
        InvalidSetting: If an amount is not a number, or a name is missing or given twice.
    """
    return _amounts(_Hit("The amount of resources", value, "that was given"))


def metadata_place(value: str) -> str:
    """Return a value of the metadata setting after checking it.

    Args:
        value: The text to check: `local`, `service` or a URL.

    Raises:
        InvalidSetting: If it is none of these.
    """
    return _metadata(_Hit("The place of the metadata", value, "that was given"))


def looked_up(*keys: str, env: Mapping[str, str] | None = None) -> str | None:
    """Return the value of the first of these keys that is set; None if none is.

    For settings that are not fields of Settings. A number, list or object in a file is returned as
    JSON.

    Args:
        *keys: The keys, without `AFLOW_`.
        env: The environment variables; None for those of this process.

    Raises:
        InvalidSetting: If the value in a file has another type.
    """
    hit = _first(keys, _environment() if env is None else env)
    if hit is not None and isinstance(hit.value, int | float | dict | list):
        import json

        return json.dumps(hit.value)
    return None if hit is None else _text(hit)


def key(*keys: str) -> Any:
    """Return the declaration of a field of `PartSettings`.

    Args:
        *keys: The keys under which the setting is looked up, without `AFLOW_`.
    """
    return field(default=None, metadata={"keys": keys})


class PartSettings:
    """The base class for the settings of one part of aflow, such as AWS.

    Subclasses are dataclasses whose fields are declared with `key`; a field that is not set is
    None.
    """

    __slots__ = ()

    @classmethod
    def keys(cls) -> dict[str, tuple[str, ...]]:
        """Return the keys under which each setting is looked up, by the name of its field."""
        declared: Any = cls
        return {each.name: each.metadata["keys"] for each in fields(declared)}

    @classmethod
    def load(cls) -> Self:
        """Return the settings of this program."""
        return cls(**{name: looked_up(*keys) for name, keys in cls.keys().items()})

    def needed(self, name: str, what: str) -> str:
        """Return a required setting.

        Args:
            name: The name of the field.
            what: A description of the value, for the error.

        Raises:
            InvalidSetting: If it is not set; the error contains the key.
        """
        value: str | None = getattr(self, name)
        if value is None:
            raise InvalidSetting(f"{what} is not known: set AFLOW_{self.keys()[name][0]}.")
        return value


def variable_of(job: str, key: str) -> str:
    """Return a variable that is set in each job of a kind.

    Args:
        job: The kind of job, for the error.
        key: The variable, without `AFLOW_`.

    Raises:
        InvalidInput: If it is not set, so that this process is not such a job.
    """
    value = looked_up(key)
    if value is None:
        raise InvalidInput(f"This is not {job}: AFLOW_{key} is not set.")
    return value


def environment_value(name: str) -> str | None:
    """Return an environment variable of another program (OMP_NUM_THREADS); None if it is not set.

    Args:
        name: The full name.
    """
    return os.environ.get(name)


def has_variables(names: Collection[str], prefixes: tuple[str, ...]) -> bool:
    """Return whether the environment has one of these variables, or one with one of the prefixes.

    Args:
        names: Full names.
        prefixes: Prefixes of names.
    """
    return any(name in names or name.startswith(prefixes) for name in os.environ)


def switched_on(key: str) -> bool:
    """Return whether a boolean setting is set and true.

    Args:
        key: The key, without `AFLOW_`.

    Raises:
        InvalidSetting: If the value is not a boolean.
    """
    hit = _first((key,), _environment())
    return hit is not None and _flag(hit)


def _first(keys: Sequence[str], env: Mapping[str, str]) -> _Hit | None:
    sources = _sources(env, _walk_up(_working_directory(), env))
    return next(filter(None, (_look_up(sources, (key,)) for key in keys)), None)


def user_folder(env: Mapping[str, str] | None = None) -> Path:
    """Return the folder of the user's settings: AFLOW_HOME or `~/.aflowconfig`. It may not exist.

    Args:
        env: The environment variables; None for those of this process.

    Raises:
        InvalidSetting: If the home directory is needed and not known.
    """
    return expanded((os.environ if env is None else env).get("AFLOW_HOME") or _OWN)


def service_headers(address: str, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the headers for all requests to a server or metadata service.

    They are those in AFLOW_SERVICE_HEADERS, a JSON object, and AFLOW_SERVICE_AUTH_KEY as
    `x-api-key`.

    Args:
        address: The URL of the service.
        env: The environment variables; None for those of this process.

    Raises:
        InvalidSetting: If a value is malformed, or if the address and the key are in different
            files: otherwise the author of the first one (a cloned project, for example) could
            obtain the key in the second one.
    """
    env = _environment() if env is None else env
    sources = _sources(env, _walk_up(_working_directory(), env))
    headers = _look_up(sources, ("SERVICE_HEADERS",))
    key = _look_up(sources, ("SERVICE_AUTH_KEY",))
    named = (_look_up(sources, (each,)) for each in _ADDRESSES)
    hit = next((each for each in named if each and _same_address(each.value, address)), None)
    for secret in (headers, key):
        _refuse_strangers(hit, secret)
    found = {} if headers is None else {str(k): str(v) for k, v in _mapping(headers).items()}
    if key is not None:
        found["x-api-key"] = next((each.reveal() for each in _keys(key)), "")
    for name, value in found.items():
        # http.client would raise an error that contains the whole value.
        text = name + value
        if not text.isprintable() or text.encode("latin-1", "replace").decode("latin-1") != text:
            secret = key if name == "x-api-key" and key is not None else headers
            assert secret is not None, "it is of one of both"
            raise InvalidSetting(
                f"{secret.key} {secret.place} has characters that no header of a request can "
                "carry, as ends of lines."
            )
    return found


def _refuse_strangers(address: _Hit | None, secret: _Hit | None) -> None:
    """Raise InvalidSetting if the address and the secret are from different files."""
    if address is None or secret is None or address.place == secret.place:
        return
    if _ENVIRONMENT not in (address.place, secret.place):
        raise InvalidSetting(
            f"{address.key} {address.place} does not get the {secret.key} {secret.place}: a secret "
            "goes only to an address of the same file. Write both into one file, or set one of "
            "them in the environment."
        )


def _same_address(value: object, address: str) -> bool:
    return isinstance(value, str) and value.rstrip("/") == address.rstrip("/")


def _mapping(hit: _Hit) -> dict[str, Any]:
    import json

    try:
        value = hit.value if isinstance(hit.value, dict) else json.loads(hit.value)
    except (TypeError, ValueError):
        value = None
    if not isinstance(value, dict):
        hit.refuse('a JSON object such as {"name": ...}')
    return value


# ------------------------------------------------------------------ files, folders, the user


def at_endpoint(place: str, endpoint: str | None) -> str:
    """Return an `s3://` URL with `?endpoint=`, unless it already has options.

    Args:
        place: An `s3://` URL.
        endpoint: The URL of the endpoint; None or empty for AWS itself.
    """
    from urllib.parse import quote

    return (
        f"{place}?endpoint={quote(endpoint, safe='')}" if endpoint and "?" not in place else place
    )


def as_reached_here(place: str, settings: Settings) -> str:
    """Return the URL of a datastore in a record, with the S3 endpoint that this process uses.

    The record contains the endpoint that its writer used. If the settings of this process have an
    endpoint, that one is used instead.

    Args:
        place: The URL of the datastore in the record.
        settings: The settings of this process.
    """
    bare, _, options = place.partition("?")
    if not _is_s3(place) or "endpoint=" not in options:
        return place
    own = settings.datastore_root if _is_s3(settings.datastore_root) else settings.datastore_s3
    if own is not None and own.partition("?")[0].rstrip("/") == bare.rstrip("/"):
        reached = at_endpoint(own, settings.s3_endpoint)
        return reached if "endpoint=" in reached else place
    rest = "&".join(each for each in options.split("&") if not each.startswith("endpoint="))
    moved = at_endpoint(bare, settings.s3_endpoint)
    return place if settings.s3_endpoint is None else moved + (f"&{rest}" if rest else "")


def with_own_passwords(text: str, settings: Settings) -> str:
    """Insert the passwords in the settings of this process into the URLs of a text.

    Args:
        text: A text from which `without_passwords` has removed the passwords.
        settings: The settings of this process.

    Returns:
        The text, in which the queue and metadata URLs of the settings have their passwords.
    """
    for url in (settings.queue, settings.metadata):
        if url is not None and revealed(url) != url:
            text = text.replace(url, revealed(url))
    return text


def _is_s3(place: str | None) -> bool:
    return place is not None and place.startswith("s3://")


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise InvalidSetting(
            f"The working directory cannot be read ({error.strerror}): change to one that exists."
        ) from error


def _walk_up(base: Path, env: Mapping[str, str]) -> Path | None:
    """Return the nearest `.aflow` folder in `base` or its parents; None if there is none.

    Raises InvalidSetting if another user can have written to it, because the user has not named it
    explicitly.
    """
    for each in (base, *base.parents):
        # os.path.isdir returns False if access is denied; Path.is_dir raises.
        if os.path.isdir(each / FOLDER):
            try:
                refuse_foreign(each / FOLDER, env)
                for name in _DECIDING:
                    refuse_foreign(each / FOLDER / name, env)
            except UnsafeFolder as error:
                raise InvalidSetting(str(error)) from error
            return each / FOLDER
    return None


def _root(
    values: Mapping[str, Any], sources: list[_SettingsLayer], base: Path, found: Path | None
) -> Path:
    given = values.get("datastore_root")
    if given is not None and not _is_s3(given):
        return base / expanded(given)
    hit = _look_up(sources, ("DATASTORE_SYSROOT_LOCAL",))
    if hit is not None:
        return base / expanded(_text(hit)) / FOLDER
    return found or base / FOLDER


def config_file(profile: str | None = None, env: Mapping[str, str] | None = None) -> ConfigFile:
    """Return the settings file of a profile that `aflow configure` writes.

    Args:
        profile: The name of the profile; None for the one in AFLOW_PROFILE.
        env: The environment variables; None for those of this process.

    Raises:
        InvalidSetting: If the name of the profile is invalid, or the home directory is not known.
    """
    user_folder(env)  # raises without a home directory; the first file would be Metaflow's
    return config_files(profile, env)[0]


def config_files(
    profile: str | None = None, env: Mapping[str, str] | None = None
) -> list[ConfigFile]:
    """Return the settings files of a profile in order of precedence; they may not exist.

    Args:
        profile: The name of the profile; None for the one in AFLOW_PROFILE.
        env: The environment variables; None for those of this process.

    Raises:
        InvalidSetting: If the name of the profile is invalid.
    """
    env = os.environ if env is None else env
    profile = profile or env.get("AFLOW_PROFILE") or env.get("METAFLOW_PROFILE")
    if profile and not profile.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise InvalidSetting(
            f"{profile!r} cannot be the name of a profile: letters, digits and - _ . are allowed."
        )
    name = f"config_{profile}.json" if profile else "config.json"
    homes = [
        expanded(given) if given else _below_home(usual)
        for given, usual in (
            (env.get("AFLOW_HOME"), _OWN),
            (env.get("METAFLOW_HOME"), "~/.metaflowconfig"),
        )
    ]
    # Without a home directory there are no default folders.
    return [ConfigFile(home / name) for home in homes if home is not None]


def settings_files() -> list[ConfigFile]:
    """Return all settings files in order of precedence; they may not exist.

    Raises:
        InvalidSetting: If the name of the profile is invalid, or if another user can have written
            to the `.aflow` folder.
    """
    env = _environment()
    return _all_files(env, _walk_up(_working_directory(), env))


def _all_files(env: Mapping[str, str], found: Path | None) -> list[ConfigFile]:
    local = [ConfigFile(found / "config.json")] if found else []
    return local + config_files(None, env)


def _sources(env: Mapping[str, str], found: Path | None) -> list[_SettingsLayer]:
    """Return the environment and the files that exist, in order of precedence."""
    sources = [_SettingsLayer(env, _ENVIRONMENT)]
    for file in _all_files(env, found):
        values = file.read()
        if values is not None:
            sources.append(_SettingsLayer(values, f"in {file.path}"))
    profile = env.get("AFLOW_PROFILE") or env.get("METAFLOW_PROFILE")
    places = [home.path for home in config_files(None, env)]
    if profile and not any(place.exists() for place in places):
        absent = " nor ".join(map(str, places)) or "any file in a home"
        raise InvalidSetting(
            f"There is no profile {profile!r}: there is neither {absent}. Write one with "
            "`aflow configure`, or unset AFLOW_PROFILE."
        )
    return sources


def _user_of_the_machine(env: Mapping[str, str]) -> str:
    """Return the name of the user, if no setting has it.

    The name root in the environment is ignored: under sudo or in a container it would put the runs
    of all users into one namespace. The result is root only if the uid is that of root.
    """
    for key in ("SUDO_USER", "USERNAME", "USER"):
        name = env.get(key)
        if name and name != "root":
            return _user(_Hit(key, name, _ENVIRONMENT))
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # the uid has no account, as in some containers
        return "unknown"
