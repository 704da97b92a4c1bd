"""Warnings about decorators of a flow that a local run does not honor."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from aflow._core.secret import without_credentials
from aflow.environments.spec import asked_packages

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition, StepDefinition

_REMOTE = {"batch": "AWS Batch", "kubernetes": "Kubernetes", "slurm": "Slurm"}


def notes(
    definition: FlowDefinition, jobs: Collection[str], *, packages: bool = True
) -> Iterator[str]:
    """Yield one sentence for each difference between the decorators and the local run.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        jobs: The names of the steps that run as remote jobs.
        packages: Whether steps run with the locally installed packages, so that those must be
            compared with the requested ones.
    """
    for name, service in _REMOTE.items():
        steps = [
            step.name
            for step in definition.steps.values()
            if step.decorator(name) and step.name not in jobs
        ]
        if steps:
            yield f"@{name}: {', '.join(steps)} would run on {service}; this run is local: here."
    if not packages:
        return
    asked: dict[str, list[str]] = {}
    for step in definition.steps.values():
        for package, version in packages_of(definition, step).items():
            version = version.partition("--hash=")[0].strip()
            text = without_credentials(f"{package} {version}".strip())
            asked.setdefault(text, []).append(step.name)
    for text, steps in asked.items():
        package, _, version = text.partition(" ")
        there = _installed(package)
        if there is None:
            yield f"Package {text} is not installed, which is asked for by: {', '.join(steps)}."
        elif version and not _fits(there, version):
            requested = f"Package {text} is asked for by {', '.join(steps)}"
            yield f"{requested}; {there} is installed, and used."


def packages_of(definition: FlowDefinition, step: StepDefinition) -> dict[str, str]:
    """Return the requested packages of a step; those of its decorators override those of the flow.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        step: The step, with its decorators.
    """
    found: dict[str, str] = {}
    for kind in ("conda", "pypi"):
        asked = asked_packages(definition, step, kind)
        if asked is not None and not asked.disabled:
            found |= asked.packages
    return found


def _installed(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package.partition("[")[0])
    except PackageNotFoundError:
        return None


def _fits(there: str, asked: str) -> bool:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    asked = asked.partition(";")[0].strip()
    if not asked or asked.startswith("@"):  # a URL or path does not specify a version
        return True
    try:
        return SpecifierSet(asked if asked[0] in "<>=!~" else f"=={asked}").contains(there, True)
    except InvalidSpecifier:  # a version in conda's own syntax
        return there.startswith(asked.lstrip("="))
