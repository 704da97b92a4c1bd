"""Parsers for configs and included files: from a text to plain values."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from aflow.errors import MissingExtra

_PIN = re.compile(r"([A-Za-z0-9._-]+(?:\[[^\]]*\])?)\s*(.*)\Z")


def yaml_parser(content: str) -> Any:
    """The values of a YAML text. Needs PyYAML; raises MissingExtra without it."""
    return _yaml().safe_load(content)


def requirements_txt_parser(content: str) -> dict[str, Any]:
    """What a requirements.txt asks for, as `@pypi_base` takes it: `packages` (name -> version),
    and `python` if a line says `# python==...`. Raises ValueError for options such as -e and -r,
    which name no package."""
    packages: dict[str, str] = {}
    found: dict[str, Any] = {"packages": packages}
    for line in content.splitlines():
        note = re.match(r"\s*#\s*python\s*==\s*(\S+)", line)
        if note:
            found["python"] = note[1]
        text = line.partition("#")[0].partition(";")[0].strip()
        if text.startswith("-"):
            raise ValueError(f"the option {text!r} names no package")
        if text:
            _add(packages, text)
    return found


def pyproject_toml_parser(content: str) -> dict[str, Any]:
    """What a pyproject.toml asks for: `packages` from `project.dependencies`, and `python` from
    `project.requires-python`."""
    project = tomllib.loads(content).get("project", {})
    packages: dict[str, str] = {}
    for text in project.get("dependencies", []):
        _add(packages, text.partition(";")[0].strip())
    found: dict[str, Any] = {"packages": packages}
    if "requires-python" in project:
        found["python"] = _version(project["requires-python"])
    return found


def conda_environment_yml_parser(content: str) -> dict[str, Any]:
    """What an environment.yml asks for, without its pip section: `packages` and `python`. Needs
    PyYAML; raises MissingExtra without it."""
    packages: dict[str, str] = {}
    for each in _yaml().safe_load(content).get("dependencies", []):
        if isinstance(each, str):
            name, _, version = each.partition("=")
            _add(packages, f"{name.strip()}=={version.lstrip('=').strip()}" if version else each)
    python = packages.pop("python", None)
    return {"packages": packages, **({} if python is None else {"python": python})}


def _add(packages: dict[str, str], text: str) -> None:
    found = _PIN.match(text)
    if found is None:
        raise ValueError(f"{text!r} names no package")
    packages[found[1]] = _version(found[2])


def _version(text: str) -> str:
    """A version as packages are given it: without `==`, other comparisons as they are."""
    text = text.replace(" ", "")
    return text.removeprefix("==") if "," not in text else text


def _yaml() -> Any:
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingExtra("YAML is read with PyYAML: install aflow-runtime[yaml].") from error
    return yaml
