"""Every setting is used, and every key that is read is declared and documented."""

from __future__ import annotations

import ast
from pathlib import Path

from aflow._core.settings import Settings
from aflow.aws.settings import AwsSettings
from aflow.cli.doctor.findings import OF_PARTS, OF_THE_ENVIRONMENT, WITHOUT_EFFECT, known
from aflow.executors.jobs.kubernetes.settings import KubernetesSettings
from tests.architecture.sources import nodes_of, python_files, text_of

# Variables that a coordinator sets for its jobs; users do not set these.
SET_FOR_JOBS = {
    Path("aflow/step_functions/spec.py"),
    Path("aflow/executors/jobs/place.py"),
    Path("aflow/executors/remote/job.py"),
}


def attributes(path: Path) -> set[str]:
    return {node.attr for node in nodes_of(path) if isinstance(node, ast.Attribute)}


def literals(path: Path) -> set[str]:
    return {
        node.value
        for node in nodes_of(path)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_setting_is_read_by_something() -> None:
    used: set[str] = set()
    for path in python_files("aflow"):
        used |= attributes(path)

    fields = {*Settings.__dataclass_fields__, *AwsSettings.keys(), *KubernetesSettings.keys()}
    # `needed` and `getattr` name a field by a text.
    named = set().union(
        *(literals(p) for p in python_files("aflow") if {"aws", "batch", "kubernetes"} & {*p.parts})
    )
    assert set() == fields - used - named


def test_every_key_that_is_looked_up_alone_is_known_and_the_others_are_not_read() -> None:
    texts: set[str] = set()
    looked_up: set[str] = set()
    for path in python_files("aflow"):
        if "doctor" in path.parts or path.name == "configure.py":
            continue  # which name keys, and read none
        texts |= literals(path)
        if path in SET_FOR_JOBS:
            continue
        looked_up |= {
            str(argument.value)
            for node in nodes_of(path)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("looked_up", "needed", "switched_on")
            for argument in node.args
            if isinstance(argument, ast.Constant) and str(argument.value).isupper()
        }

    assert set() == looked_up - known()
    assert set() == {
        key for key in OF_PARTS | OF_THE_ENVIRONMENT if not {key, f"AFLOW_{key}"} & texts
    }
    assert set() == WITHOUT_EFFECT.keys() & texts


def test_the_page_of_settings_has_every_key() -> None:
    page = text_of(Path("docs/settings.md"))

    missing = {key for key in known() | WITHOUT_EFFECT.keys() if f"`{key}`" not in page}
    assert set() == missing
