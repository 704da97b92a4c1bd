"""The fingerprint of a step changes if the code that it can reach changes, and only then."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aflow.flow.spec import define
from aflow.runs.cache.fingerprint import Fingerprint, fingerprints
from aflow.runs.cache.sources import library_version

FLOW = """
from aflow import FlowSpec, step
import {name}_tools as tools
from {name}_tools import Model, double as twice

LIMIT = {{1, 2, 3}}

def own(x):
    '''Say something.'''
    return x + 1

class F(FlowSpec):
    @step
    def start(self):
        self.a = own(1)
        self.b = [twice(x) for x in LIMIT]
        self.next(self.end)

    @step
    def end(self):
        self.c = Model().fit(tools.CONSTANT)
        self.helper()

    def helper(self):
        return tools.deep(1)
"""

TOOLS = """
import json
CONSTANT = {"a": [1, 2]}

def double(x):
    return 2 * x

def deep(x):
    def inner(y):
        return deeper(y)
    return inner(x)

def deeper(y):
    return json.dumps(y)

def unused():
    return 0

class Base:
    rate = 1

class Model(Base):
    def fit(self, x):
        return self._inside(x)

    def _inside(self, x):
        return x
"""

Reader = Callable[..., dict[str, Fingerprint]]


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Reader]:
    """Return the fingerprints of the flow, with replacements in its two files: each in a separate
    folder, like another checkout of the same code."""
    count = 0
    made: list[str] = []

    def reader(*replacements: tuple[str, str]) -> dict[str, Fingerprint]:
        nonlocal count
        count += 1
        folder = tmp_path / str(count)
        folder.mkdir()
        texts = {"flow": FLOW.format(name="print"), "print_tools": TOOLS}
        for old, new in replacements:
            assert any(old in text for text in texts.values()), old
            texts = {name: text.replace(old, new) for name, text in texts.items()}
        for name in ("print_tools", "flow"):
            (folder / f"{name}.py").write_text(texts[name])
            spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            made.append(name)
            spec.loader.exec_module(module)
        return fingerprints(define(module.F))

    yield reader
    for name in made:
        sys.modules.pop(name, None)


def changed(read: Reader, *replacements: tuple[str, str]) -> dict[str, set[str]]:
    """Return the names whose digests differ, by step, if any differ."""
    before, now = read(), read(*replacements)
    found = {
        step: {name for name, _ in before[step].items() ^ now[step].items()} for step in before
    }
    return {step: names for step, names in found.items() if names}


def test_the_names_are_those_that_the_code_can_reach(read: Reader) -> None:
    found = read()
    assert {"F.start", "flow.own", "flow.LIMIT", "print_tools.double"} == set(found["start"])
    assert {
        "F.end",
        "F.helper",
        "print_tools.CONSTANT",
        "print_tools.deep",
        "print_tools.deeper",
        "print_tools.Model",
        "print_tools.Model.fit",
        "print_tools.Model._inside",
        "print_tools.Base",
    } == set(found["end"])


def test_the_same_code_elsewhere_has_the_same_fingerprint(read: Reader) -> None:
    assert {} == changed(read)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("return x + 1", "return x + 2", {"start": {"flow.own"}}),
        ("{1, 2, 3}", "{1, 2}", {"start": {"flow.LIMIT"}}),
        ("return 2 * x", "return x * 2", {"start": {"print_tools.double"}}),
        ("json.dumps(y)", "json.dumps([y])", {"end": {"print_tools.deeper"}}),
        ("[1, 2]}", "[1, 3]}", {"end": {"print_tools.CONSTANT"}}),
        ("rate = 1", "rate = 2", {"end": {"print_tools.Base"}}),
        ("return x\n", "return -x\n", {"end": {"print_tools.Model._inside"}}),
        ("def fit(self, x)", "def fit(self, x, y=1)", {"end": {"print_tools.Model.fit"}}),
    ],
)
def test_a_change_is_seen_where_it_can_be_reached(
    read: Reader, old: str, new: str, expected: dict[str, set[str]]
) -> None:
    assert expected == changed(read, (old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Say something.", "Say something else."),
        ("    return 2 * x", "\n\n    # doubled\n    return 2 * x"),
        ("return 0", "return 1"),
    ],
    ids=["a docstring", "a comment and lines", "what no step uses"],
)
def test_what_makes_no_difference_is_not_seen(read: Reader, old: str, new: str) -> None:
    assert {} == changed(read, (old, new))


def test_packages_count_with_their_versions_whatever_their_modules_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, version, module in (
        ("Space-One", "1.0", "shared_space/one.py"),
        ("Space-Two", "2.1", "shared_space/two.py"),
        ("python-renamed", "3.0", "renamed_module.py"),
    ):
        info = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        )
        (info / "RECORD").write_text(f"{module},,\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    assert "Space-One 1.0 Space-Two 2.1" == library_version("shared_space.one")
    assert "python-renamed 3.0" == library_version("renamed_module")
    assert "of no version" == library_version("no_package_at_all")
