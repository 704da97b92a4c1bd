"""Ships to jobs what their images may lack: wheels in the datastore, named by their content.

A job gets one object, the manifest of a shipment, by the key and the SHA-256 that its variable
AFLOW_RUNTIME names. The manifest says which wheels make an aflow for which Python and platform, and
brings the program that installs them (install.py). What a shipment consists of is declared as a
root, which keeps it from `gc` for a month after it was last used.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import mmap
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from aflow._core.settings import switched_on
from aflow._core.version import DISTRIBUTION, __version__
from aflow.environments import wheels
from aflow.environments.build import Environments, cache_folder
from aflow.environments.files import Files
from aflow.environments.prepare import to_log
from aflow.environments.solve import kind_of, libc_of
from aflow.errors import EnvironmentFailed, MissingExtra, ShippingError
from aflow.storage import roots
from aflow.storage.blobs import BlobStore, digest_of

if TYPE_CHECKING:
    from aflow.environments.solve import Target
    from aflow.environments.wheels import Fit, PackedWheel
    from aflow.storage.base import ObjectStore

KEPT = 30 * 86400.0  # seconds after its last use that a shipment stays in the datastore
RENEWED = 86400.0  # seconds after which that is said again
AT_ONCE = 16
_log = logging.getLogger(__name__)
_START = """\
import gc, sys
gc.disable()
from importlib.util import find_spec
from os import environ
shipped = environ.get("AFLOW_RUNTIME")
try:
    found = find_spec("aflow._core.version")
    from aflow import __version__ as here
except ImportError:
    found = here = None
if found is None or (shipped and here != "{version}"):
    if not shipped:
        print(
            "aflow: The image of this job does not have aflow: "
            "install {distribution}[aws,postgres] {version} in it for " + sys.executable + ".",
            file=sys.stderr,
        )
        sys.exit(FINAL)
    boot(shipped, sys.argv[1:])
import runpy
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


class Shipment(NamedTuple):
    """What is put into the datastore for jobs: the manifest as bytes, and the wheels that it names.
    `about` says for people what that is."""

    manifest: bytes
    wheels: tuple[PackedWheel, ...]
    about: str

    @property
    def key(self) -> str:
        """The key of the manifest as a blob."""
        return digest_of([self.manifest], len(self.manifest))

    @property
    def blobs(self) -> tuple[str, ...]:
        """The keys of all blobs that it consists of."""
        return (self.key, *(each.key for each in self.wheels))

    def variables(self, store: str) -> dict[str, str]:
        """Return the variables that lead jobs to the shipment in the store of this URL.

        Args:
            store: The URL of the datastore, as jobs see it.
        """
        digest = hashlib.sha256(self.manifest).hexdigest()
        return {"AFLOW_RUNTIME": f"{self.key}:{len(self.manifest)}:{digest}:{store}"}

    def put(self, store: ObjectStore, now: float) -> None:
        """Put it into the store, where some of it may be already, and keep it there. Blocks. Raises
        ShippingError and StorageError.

        Args:
            store: The datastore that jobs read.
            now: The present time, in seconds since the epoch.
        """
        name, blobs = roots.root_name("shipments", self.key), BlobStore(store)
        blobs.put_raw(self.manifest)  # first: a folder that is a new store is made by that
        before = roots.declared(store, name)
        # What its root keeps needs no touch, which would cost two requests for each wheel.
        is_kept = before is not None and (before.until or 0) > now + KEPT - RENEWED
        put = partial(_put, blobs, blobs.has if is_kept else blobs.claim)
        with ThreadPoolExecutor(AT_ONCE, "aflow-ship") as threads:
            for _ in threads.map(put, self.wheels):
                pass
        if not is_kept:
            roots.declare(store, name, roots.GcRoot(self.blobs, self.about, until=now + KEPT))


def command(python: Sequence[str], program: Sequence[str]) -> list[str]:
    """Return the command of a job that runs a module of aflow, with its arguments: the image's own
    aflow, if it is of this version, else the one that AFLOW_RUNTIME names. Nothing is installed by
    its name: the owner of a name on an index would run code with the rights of the job.

    Args:
        python: The command of the interpreter in the image.
        program: The command, as a list of arguments.
    """
    # An image may have another package of the name `aflow`, so one of its modules is looked for.
    # Nothing is garbage while modules are imported, and looking for it would take a tenth of the
    # job's own time: what is forked from the program (prefork.py) has it looked for again.
    start = _START.format(distribution=DISTRIBUTION, version=__version__)
    return [*python, "-c", f"{_boot()}\n{start}", *program]


@cache
def _boot() -> str:
    """The source of boot.py without comments and docstrings. Neither `$(` nor `$$` stands in it,
    which AWS Batch would take for a variable."""
    return _small(_source("boot"))


@cache
def _source(name: str) -> str:
    return Path(__file__).with_name(f"{name}.py").read_text("utf-8")


def _small(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            del node.body[0]
    return ast.unparse(tree)


def runtime_shipment(folder: Path, now: float, targets: Iterable[Target] = ()) -> Shipment | None:
    """Return the aflow that runs here, for jobs whose images lack it: None where images are said to
    have it (AFLOW_SKIP_INSTALL_DEPENDENCIES), or where it cannot be packed, which is logged. Its
    wheels are made in the folder. Blocks.

    Args:
        folder: The folder of packed wheels, which may have some of them.
        now: The present time, in seconds since the epoch.
        targets: The platforms and Pythons of jobs; none if they are those of this machine.
    """
    if switched_on("SKIP_INSTALL_DEPENDENCIES"):
        return None
    try:
        try:
            return packed_runtime(folder, now, targets=targets)
        except (EnvironmentFailed, MissingExtra) as error:  # those of this platform can begin
            _log.warning("Jobs of another platform whose image lacks aflow cannot begin. %s", error)
            return packed_runtime(folder, now)
    except ShippingError as error:
        _log.warning("Jobs whose image lacks aflow cannot begin. %s", error)
        return None


def packed_runtime(
    folder: Path, now: float, extras: Collection[str] = ("aws",), targets: Iterable[Target] = ()
) -> Shipment:
    """Pack aflow with these extras as it runs here, with all that it depends on; and for targets
    that differ from this machine the same aflow with what it depends on there. Blocks.

    Args:
        folder: The folder of packed wheels, which may have some of them.
        now: The present time, in seconds since the epoch.
        extras: The extras of aflow that its jobs need.
        targets: The platforms and Pythons of jobs; none if they are those of this machine.

    Returns:
        The shipment, of which nothing is in a datastore yet.

    Raises:
        ShippingError: A distribution cannot be packed.
        EnvironmentFailed: The packages for a target cannot be solved.
        MissingExtra: An extra that is needed for that is not installed.
    """
    packed = wheels.runtime(extras, folder, now)
    runtimes = [(wheels.fit_of(packed), packed)]
    for target in targets:
        if not any(_fits(fit, target) for fit, _ in runtimes):
            runtimes.append(_runtime_for(target, packed[0], extras))
    described = [
        {
            **fit._asdict(),
            "wheels": [
                {"file": each.path.name, "size": each.size, "sha256": each.sha256, "key": each.key}
                for each in every
            ],
        }
        for fit, every in runtimes
    ]
    manifest = {"installer": _small(_source("install")), "runtimes": described}
    data = json.dumps(manifest, sort_keys=True).encode()
    every = {each.key: each for _, every in runtimes for each in every}
    about = f"aflow {__version__}, as it was shipped to jobs"
    return Shipment(data, tuple(every.values()), about)


def _fits(fit: Fit, target: Target) -> bool:
    """Whether what fits this runs on that target."""
    name, version = libc_of(target.platform)
    same = (fit.python, fit.machine, fit.libc[0])
    return same == (target.minor, kind_of(target.platform)[0], name) and version >= fit.libc[1]


def _runtime_for(
    target: Target, ours: PackedWheel, extras: Collection[str]
) -> tuple[Fit, list[PackedWheel]]:
    """aflow, whose own wheel is given, with what it depends on for another target, as the index has
    it."""
    cache = cache_folder()
    to_log(f"Fetching what aflow needs for Python {target.minor} on {target.platform}")
    lock = Environments(cache, to_log).runtime_lock(target.minor, target.platform, extras)
    files = Files(cache)
    with ThreadPoolExecutor(AT_ONCE, "aflow-ship") as threads:
        paths = threads.map(files.fetch, lock.packages)
        others = [
            wheels.described_wheel(each.name, each.version, path)
            for each, path in zip(lock.packages, paths, strict=True)
        ]
    fit = wheels.Fit(target.minor, kind_of(target.platform)[0], libc_of(target.platform))
    return fit, [ours, *others]


def _put(blobs: BlobStore, is_there: Callable[[str], bool], wheel: PackedWheel) -> None:
    if is_there(wheel.key):
        return
    try:
        # It ends with the last view of it: where a call was tried again, the error of the first try
        # may still hold one.
        with wheel.path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        key = blobs.put_raw(memoryview(data))
    except (OSError, ValueError) as error:
        raise ShippingError(f"{wheel.path} cannot be read: {error}.") from error
    if key != wheel.key:
        raise ShippingError(f"{wheel.path} was changed while it was shipped: begin again.")
