"""Determine which packages steps request, from their decorators and `--environment`; without I/O.

The value of `--environment` selects the steps that have a separate environment:

    not given          steps with @pypi or @conda, or all if the flow has @pypi_base or @conda_base
    local              none: the installed packages are used, with warnings about differences
    pypi, conda        all; a step without packages gets an environment without packages
    uv                 all: the environment of the uv project (pyproject.toml, uv.lock) of the flow,
                       or the packages of the step's own decorators

`disabled=True` excludes a step.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from aflow import environments
from aflow._core.records import NamedTuple, dataclass
from aflow._core.secret import without_credentials
from aflow.environments.lock import normalized
from aflow.errors import InvalidDecorator

if TYPE_CHECKING:
    from aflow._core.settings import Settings
    from aflow.environments.solve import Target
    from aflow.flow.definition import FlowDefinition, StepDefinition

KINDS = ("local", "conda", "pypi", "uv")
_COMPARISONS = ("<", ">", "!", "~", "=", "@")
_DIRECT = re.compile(r"(?:git\+|https?://|file:|\.{0,2}/)|.*\.(?:whl|tar\.gz|zip)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """The packages that a step requests.

    `requirements` are lines of a requirements.txt, `conda` are conda match specs, `python` is a
    version or a range of versions; None for that of the run. `project` is the folder of the flow if
    the lock of its uv project is used.
    """

    requirements: tuple[str, ...] = ()
    conda: tuple[str, ...] = ()
    python: str | None = None
    project: str | None = None
    uses_conda: bool = False


def specs_of(
    definition: FlowDefinition, kind: str | None = None, only: str | None = None
) -> dict[str, Spec]:
    """Return the specs of the steps that have a separate environment, by step.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        kind: The value of `--environment`; None if it was not given.
        only: The name of the only step to return; None for all.

    Raises:
        InvalidDecorator: If a step requests a malformed package or version.
    """
    if kind == "local":
        return {}
    found: dict[str, Spec] = {}
    for step in definition.steps.values():
        if only is None or step.name == only:
            spec = _spec_of(definition, step, kind)
            if spec is not None:
                found[step.name] = spec
    return found


def job_targets(
    definition: FlowDefinition, steps: Collection[str], settings: Settings
) -> set[Target]:
    """Return the platforms and Pythons of the jobs of these steps, as configured by
    @batch(platform=...) and settings; empty if neither is configured.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        steps: The names of the steps.
        settings: The settings of this program.

    Raises:
        InvalidSetting: If a configured platform or version of Python is invalid.
    """
    decorators: list[Any] = [definition.steps[each].decorator("batch") for each in steps]
    named = [each.platform for each in decorators if each is not None]
    if not any([settings.job_platform, settings.job_python, *named]):
        return set()
    prepare = environments.prepare  # lazy import: few flows configure a platform
    platforms = prepare.platforms_of(definition, steps, settings)
    python = prepare.job_python(settings)
    return {environments.solve.Target(python, each) for each in platforms.values()}


def _spec_of(definition: FlowDefinition, step: StepDefinition, kind: str | None) -> Spec | None:
    every = {each: asked_packages(definition, step, each) for each in ("pypi", "conda")}
    # @pypi and @conda can be disabled separately; with both disabled, there is no environment.
    asked = {name: each for name, each in every.items() if each is not None and not each.disabled}
    if not asked:
        if kind is None or any(every.values()):
            return None
        if kind == "uv":
            folder = os.path.dirname(os.path.abspath(definition.file or "."))
            return Spec(project=folder)
    nothing = AskedPackages({}, None, False)
    pypi, conda = asked.get("pypi", nothing), asked.get("conda", nothing)
    where = f"step {step.name}"
    return Spec(
        requirements=tuple(sorted(_requirement(n, v, where) for n, v in pypi.packages.items())),
        conda=tuple(sorted(_match_spec(n, v, where) for n, v in conda.packages.items())),
        python=_python(pypi.python or conda.python, where),
        uses_conda="conda" in asked or (kind == "conda" and "pypi" not in asked),
    )


class AskedPackages(NamedTuple):
    """The merged options of @pypi (or @conda) of a step and @pypi_base (or @conda_base) of the
    flow: package versions by name, the version of Python, and whether they are disabled."""

    packages: Mapping[str, str]
    python: str | None
    disabled: bool


def asked_packages(
    definition: FlowDefinition, step: StepDefinition, kind: str
) -> AskedPackages | None:
    """Return the merged options of one kind of decorators on a step and its flow; None if neither
    has such a decorator.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        step: The step, with its decorators.
        kind: `pypi` for @pypi and @pypi_base, or `conda` for @conda and @conda_base.
    """
    own: Any = step.decorator(kind)
    bases = definition.flow_decorators(f"{kind}_base")
    found = [*bases, *([] if own is None else [own])]
    packages: dict[str, str] = {}
    python, disabled = None, None
    for each in found:
        named = {**getattr(each, "libraries", {}), **each.packages}
        pinned = {_bare(name) for name, version in named.items() if version.strip()}
        # A later version overrides an earlier one, even if the package's name is spelled otherwise.
        packages = {name: text for name, text in packages.items() if _bare(name) not in pinned}
        packages |= named
        python = each.python or python
        disabled = disabled if each.disabled is None else each.disabled
    return AskedPackages(packages, python, bool(disabled)) if found else None


def _bare(name: str) -> str:
    """Return the normalized name of a package, without extras; a URL or a path unchanged."""
    name = name.strip()
    return name if _DIRECT.match(name) else normalized(re.split(r"[\[@]", name)[0].strip())


def _requirement(name: str, version: str, where: str) -> str:
    """Return a line of a requirements.txt for a package, from a name and a version as in
    Metaflow."""
    name, version = name.strip(), version.strip()
    _refuse_options(name, version, where)
    named = f"the package {name!r} {version!r}"
    version, digests = _digests(version, name, where)
    if _DIRECT.match(name):  # a URL or a file, with which a name is optional
        return name + version + digests
    version, mark, marker = version.partition(";")
    version = version.strip()
    if "@" in name:  # `name@git+https://...`, as Metaflow's requirements parsers return it
        name, _, url = name.partition("@")
        version = f" @ {url.strip()}{version}"
    elif version.startswith("@"):
        version = f" @ {version[1:].strip()}"
    elif version and not version.startswith(_COMPARISONS):
        version = f"=={version}"
    elif version.startswith("=") and not version.startswith("=="):  # conda's syntax
        version = f"={version}"
    text = f"{name}{version}" + (f" ; {marker.strip()}" if mark else "")
    from packaging.requirements import InvalidRequirement, Requirement  # lazy: few flows need it

    try:
        Requirement(text)
    except InvalidRequirement as error:
        why = str(error).splitlines()[0]
        raise _fault(where, f"{named}, which is not a requirement: {why}") from error
    return text + digests


def _digests(version: str, name: str, where: str) -> tuple[str, str]:
    """Split a version from the digests after it; the file must have one of these digests."""
    version, *found = re.split(r"\s+--hash[= ]", f" {version}")
    for each in found:
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", each.strip()):
            what = f"the package {name!r} with the digest {each!r}"
            raise _fault(where, f"{what}, which is none of sha256 (--hash=sha256:...).")
    return version.strip(), "".join(f" --hash={each.strip()}" for each in found)


def _match_spec(name: str, version: str, where: str) -> str:
    name, version = name.strip(), version.strip()
    _refuse_options(name, version, where)
    if not version:
        return name
    if version.startswith(("<", ">", "!", "~", "=")):
        return f"{name} {version}" if not version.startswith("=") else f"{name}{version}"
    return f"{name} =={version}"


def _refuse_options(name: str, version: str, where: str) -> None:
    text = f"{name}{version}"
    if not name or name.startswith("-") or any(each in text for each in "\r\n\0\\"):
        raise _fault(where, f"the package {name!r} {version!r}, which names none.")


def _fault(where: str, what: str) -> InvalidDecorator:
    return InvalidDecorator(without_credentials(f"{where.capitalize()} asks for {what}"))


def _python(version: str | None, where: str) -> str | None:
    if version is None or not version.strip():
        return None
    text = version.strip().removeprefix("==").strip()
    if not re.fullmatch(r"[0-9.*<>=!~, ]+", text):
        what = f"Python {version!r}, which is not a version"
        raise _fault(where, f'{what}: give one such as "3.12" or "3.12.4".')
    return text.removesuffix(".*")
