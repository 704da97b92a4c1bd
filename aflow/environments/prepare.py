"""The environments of a flow's steps: what they ask for, locked, and built on this machine."""

from __future__ import annotations

import logging
import os
import re
import sysconfig
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aflow._core.settings import Settings
from aflow.environments import conda
from aflow.environments.build import Built, Environments, cache_folder
from aflow.environments.lock import Lock
from aflow.environments.solve import (
    Solver,
    Target,
    platform_named,
    project_python,
    this_platform,
)
from aflow.environments.spec import Spec, specs_of
from aflow.environments.uv import (
    Report,
    Uv,
    UvFailed,
    interpreter_for,
    own_interpreter,
    without_credentials,
)
from aflow.errors import EnvironmentFailed, InvalidSetting

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition

_log = logging.getLogger("aflow.environments")
_AT_ONCE = 4  # environments that are solved or built at a time; uv itself uses all cores


def to_log(line: str) -> None:
    """Report to the log.

    Args:
        line: The line.
    """
    _log.info("%s", line)


def locks_of(
    definition: FlowDefinition,
    kind: str | None = None,
    *,
    only: str | None = None,
    platforms: Mapping[str, str] | None = None,
    report: Report = to_log,
    rebuild: bool = False,
) -> dict[str, Lock]:
    """Return the locks of the steps that have an environment of their own, as `--environment kind`
    says; of the step `only`, if it is given. `platforms` are those of steps that run elsewhere, by
    name. With `rebuild` locks that were made before do not count. Blocks.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        kind: The kind of environment, `pypi` or `conda`; None for both.
        only: The name of the one step; None for all.
        platforms: The platforms of the steps, by name; None for this machine's.
        report: Takes one line for each thing that takes time.
        rebuild: Whether to solve and build again what exists already.

    Raises:
        InvalidDecorator: The error is raised naming the steps.
        MissingExtra: The error is raised naming the steps.
        EnvironmentFailed: The error is raised naming the steps.
    """
    specs = specs_of(definition, kind, only)
    if not specs:
        return {}
    steps: dict[tuple[Spec, str], list[str]] = {}
    for name, spec in specs.items():
        platform = (platforms or {}).get(name) or this_platform()
        steps.setdefault((spec, platform), []).append(name)
    solving = _Solving(_folder_of(definition), report, rebuild=rebuild)
    locks: dict[str, Lock] = {}
    for (key, names), lock in zip(
        steps.items(), _at_once(solving.lock, [(*key, names) for key, names in steps.items()]),
        strict=True,
    ):  # fmt: skip
        _ = key
        locks.update(dict.fromkeys(names, lock))
    return {name: locks[name] for name in specs}


def platforms_of(
    definition: FlowDefinition, steps: Iterable[str], settings: Settings
) -> dict[str, str]:
    """Return the platforms of these steps, which run elsewhere: as @batch or the settings say, else
    this one.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        steps: The names of the steps.
        settings: The settings of this program.

    Raises:
        InvalidSetting: The value of a setting cannot be used; the error names the key, the place
            and what is allowed.
    """
    found: dict[str, str] = {}
    for name in steps:
        batch: Any = definition.steps[name].decorator("batch")
        said = (batch and batch.platform) or settings.job_platform
        found[name] = platform_named(str(said)) if said else this_platform()
    return found


def job_python(settings: Settings) -> str:
    """Return the Python (`3.12`) of workers and of the images of jobs.

    Args:
        settings: The settings of this program.

    Raises:
        InvalidSetting: The value of a setting cannot be used; the error names the key, the place
            and what is allowed.
    """
    said = settings.job_python
    if said is None:
        return own_interpreter().minor
    if not re.fullmatch(r"3\.\d+(\.\d+)?", said.strip()):
        raise InvalidSetting(f"AFLOW_JOB_PYTHON is a version such as 3.12, not {said!r}.")
    return ".".join(said.strip().split(".")[:2])


def build_all(
    locks: Mapping[str, Lock],
    steps: Collection[str],
    *,
    report: Report = to_log,
    rebuild: bool = False,
) -> dict[str, Built]:
    """Build the environments of steps on this machine, as far as they do not exist. Blocks.

    Args:
        locks: The locked environments, by step.
        steps: The names of the steps.
        report: Takes one line for each thing that takes time.
        rebuild: Whether to solve and build again what exists already.

    Returns:
        The environments, by the digests of their locks.

    Raises:
        EnvironmentFailed: One cannot be built; the error names its steps.
    """
    wanted: dict[str, list[str]] = {}
    by_digest: dict[str, Lock] = {}
    for name in steps:
        if name in locks:
            wanted.setdefault(locks[name].digest, []).append(name)
            by_digest[locks[name].digest] = locks[name]
    if not wanted:
        return {}
    environments = Environments(cache_folder(), report)

    def build(lock: Lock) -> Built:
        return environments.built(lock, of_steps(wanted[lock.digest]), rebuild=rebuild)

    return {each.digest: each for each in _at_once(build, [(each,) for each in by_digest.values()])}


def of_steps(names: Iterable[str]) -> str:
    """Return whose environment it is, as messages say it.

    Args:
        names: The names.
    """
    every = [*names]
    return f" of {'step' if len(every) == 1 else 'steps'} {', '.join(every)}"


class _Solving:
    """Solves for the steps of one flow."""

    def __init__(self, folder: Path, report: Report, *, rebuild: bool) -> None:
        self._cache = cache_folder()
        self._uv: Uv | None = None
        self._folder = folder
        self._report = report
        self._rebuild = rebuild

    def lock(self, spec: Spec, platform: str, names: list[str]) -> Lock:
        try:
            return self._lock(spec, platform, names)
        except UvFailed as error:
            raise EnvironmentFailed(_failed(names, error.explanation)) from error
        except EnvironmentFailed as error:
            raise EnvironmentFailed(_failed(names, str(error))) from error

    def _lock(self, spec: Spec, platform: str, names: list[str]) -> Lock:
        if spec.uses_conda:
            return conda.lock(
                spec, self._folder, platform, self._cache, self._report, rebuild=self._rebuild
            )
        asked = spec.python or (project_python(spec.project) if spec.project else None)
        uv = self._uv = self._uv or Uv(self._report)
        python = interpreter_for(asked, uv)
        target = Target(python.version, platform, python)
        solver = Solver(self._cache, self._folder, uv, self._report, rebuild=self._rebuild)
        lock = solver.kept(spec, target)
        if lock is None:
            what = without_credentials(", ".join(spec.requirements)) or (
                "those of its project" if spec.project else "none"
            )
            self._report(f"Solving the packages{of_steps(names)} for Python {target.minor}: {what}")
            lock = solver.solve(spec, target)
        return lock


def _failed(names: list[str], why: str) -> str:
    text = f"The packages{of_steps(names)} cannot be solved: {why}"
    return text if text.endswith((".", "!")) else f"{text}."


def _folder_of(definition: FlowDefinition) -> Path:
    """The folder that relative paths of a flow start from."""
    return Path(os.path.dirname(os.path.abspath(definition.file)) if definition.file else os.curdir)


def _at_once(call: Any, every: Iterable[tuple[Any, ...]]) -> list[Any]:
    """What the calls give, in order; the first error, once all have ended."""
    arguments = [*every]
    if len(arguments) == 1:
        return [call(*arguments[0])]
    # In Python 3.11 a thread that asks sysconfig while another one has it read its variables gets
    # None for some of them. The modules of uv and packaging ask it.
    sysconfig.get_config_vars()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [*pool.map(lambda each: call(*each), arguments)]
