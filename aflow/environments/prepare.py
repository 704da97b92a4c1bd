"""Prepare the environments of a flow's steps: lock their packages, and build them on this host."""

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
from aflow.environments.solve import Solver, Target, platform_named, project_python, this_platform
from aflow.environments.spec import Spec, specs_of
from aflow.environments.uv import Report, Uv, interpreter_for, own_interpreter
from aflow.errors import EnvironmentFailed, InvalidSetting

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition

_log = logging.getLogger("aflow.environments")
_AT_ONCE = 4  # environments that are solved or built concurrently; uv itself uses all cores


def to_log(line: str) -> None:
    """Log a line at level INFO.

    Args:
        line: One line of text.
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
    """Return the locks of the steps that have a separate environment, by step. Blocks.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        kind: The value of `--environment` (see spec.py); None if it was not given.
        only: The name of the only step to lock; None for all.
        platforms: The platforms of the steps, by name; that of this host for all others.
        report: Called with one line before each operation that takes time.
        rebuild: Whether to solve again even if there is a cached lock.

    Raises:
        InvalidDecorator: If a step requests a malformed package or version.
        MissingExtra: If uv or rattler is not installed.
        EnvironmentFailed: If the packages cannot be solved; the message contains the steps.
    """
    specs = specs_of(definition, kind, only)
    if not specs:
        return {}
    steps: dict[tuple[Spec, str], list[str]] = {}
    for name, spec in specs.items():
        platform = (platforms or {}).get(name) or this_platform()
        steps.setdefault((spec, platform), []).append(name)
    # Relative paths of packages are relative to the folder of the flow.
    folder = Path(os.path.dirname(os.path.abspath(definition.file)) if definition.file else ".")
    cache = cache_folder()

    def lock(spec: Spec, platform: str, names: list[str]) -> Lock:
        title = of_steps(names)
        try:
            if spec.uses_conda:
                return conda.lock(spec, folder, platform, cache, report, rebuild=rebuild)
            asked = spec.python or (project_python(spec.project) if spec.project else None)
            uv = Uv(report)
            python = interpreter_for(asked, uv)
            target = Target(python.version, platform, python)
            return Solver(cache, folder, uv, report, rebuild=rebuild).lock(spec, target, title)
        except EnvironmentFailed as error:
            text = f"The packages{title} cannot be solved: {error}"
            raise EnvironmentFailed(text if text.endswith((".", "!")) else f"{text}.") from error

    locks = _at_once(lock, [(*key, names) for key, names in steps.items()])
    of = {name: each for names, each in zip(steps.values(), locks, strict=True) for name in names}
    return {name: of[name] for name in specs}


def platforms_of(
    definition: FlowDefinition, steps: Iterable[str], settings: Settings
) -> dict[str, str]:
    """Return the platforms of steps that run as jobs, by step: from @batch, else from the settings,
    else that of this host.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        steps: The names of the steps.
        settings: The settings of this program.

    Raises:
        InvalidSetting: If the name of a platform is invalid.
    """
    found: dict[str, str] = {}
    for name in steps:
        batch: Any = definition.steps[name].decorator("batch")
        platform = (batch and batch.platform) or settings.job_platform
        found[name] = platform_named(str(platform)) if platform else this_platform()
    return found


def job_python(settings: Settings) -> str:
    """Return the version of Python (`3.12`) on workers and in the images of jobs: from the
    settings, else that of this process.

    Args:
        settings: The settings of this program.

    Raises:
        InvalidSetting: If AFLOW_JOB_PYTHON is not a version.
    """
    version = settings.job_python
    if version is None:
        return own_interpreter().minor
    found = re.fullmatch(r"(3\.\d+)(\.\d+)?", version.strip())
    if found is None:
        raise InvalidSetting(f"AFLOW_JOB_PYTHON is a version such as 3.12, not {version!r}.")
    return found[1]


def build_all(
    locks: Mapping[str, Lock],
    steps: Collection[str],
    *,
    report: Report = to_log,
    rebuild: bool = False,
) -> dict[str, Built]:
    """Build the environments of steps on this host that do not exist yet. Blocks.

    Args:
        locks: The locked environments, by step.
        steps: The names of the steps; those without a lock are skipped.
        report: Called with one line before each operation that takes time.
        rebuild: Whether to build environments again that exist already.

    Returns:
        The environments, by the digests of their locks.

    Raises:
        EnvironmentFailed: If one cannot be built; the message contains its steps.
    """
    named: dict[str, tuple[Lock, list[str]]] = {}
    for name in steps:
        if name in locks:
            named.setdefault(locks[name].digest, (locks[name], []))[1].append(name)
    if not named:
        return {}
    environments = Environments(cache_folder(), report)

    def build(lock: Lock, names: list[str]) -> Built:
        return environments.built(lock, of_steps(names), rebuild=rebuild)

    return {each.digest: each for each in _at_once(build, named.values())}


def of_steps(names: Iterable[str]) -> str:
    """Return the suffix that identifies an environment in messages, like ` of step train`.

    Args:
        names: The names of the steps that use the environment, in the order to be shown.
    """
    every = [*names]
    return f" of {'step' if len(every) == 1 else 'steps'} {', '.join(every)}"


def _at_once(call: Any, every: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return the results of concurrent calls, in order; or raise the first error after all calls
    have ended."""
    arguments = [*every]
    if len(arguments) == 1:
        return [call(*arguments[0])]
    # Python 3.11: while one thread initializes sysconfig's variables, other threads get None for
    # some of them. uv and packaging use sysconfig, so initialize it before the threads start.
    sysconfig.get_config_vars()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [*pool.map(lambda each: call(*each), arguments)]
