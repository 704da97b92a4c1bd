"""The documents are valid: links have targets, Python code blocks can be parsed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from aflow._core.version import __version__
from aflow.scheduler.states import RUN_MOVES, TASK_MOVES
from tests.architecture.sources import REPOSITORY, text_of, tracked, violations

DOCUMENTS = tracked(".md")

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FILE_IN_TEXT = re.compile(r"`((?:aflow|benchmarks|docs|examples|scripts|tests)/[\w./\-]+)`")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def anchor(heading: str) -> str:
    """Return the anchor that hosting sites generate for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def lost(path: Path, link: str) -> bool:
    """Return whether the target of a link, or its heading, does not exist."""
    if re.match(r"[a-z]+:", link):
        return False
    target, _, fragment = link.partition("#")
    file = (REPOSITORY / path).parent / target if target else REPOSITORY / path
    if not file.exists():
        return True
    return bool(fragment) and fragment not in map(anchor, HEADING.findall(file.read_text()))


def test_every_link_leads_to_a_file() -> None:
    assert {} == violations(
        DOCUMENTS, lambda path: [each for each in LINK.findall(text_of(path)) if lost(path, each)]
    )


def test_every_file_that_is_named_exists() -> None:
    def missing(path: Path) -> list[str]:
        named = FILE_IN_TEXT.findall(text_of(path))
        return [name for name in named if not (REPOSITORY / name).exists()]

    assert {} == violations(DOCUMENTS, missing)


def test_python_in_documents_is_python() -> None:
    blocks = [block for path in DOCUMENTS for block in PYTHON.findall(text_of(path))]

    assert blocks
    for block in blocks:
        assert ast.parse(block), block


def test_diagrams_are_pictures_of_the_repository_and_name_every_state() -> None:
    """For Mermaid diagrams the theme of the site would load a library from another host."""
    assert [] == [str(path) for path in DOCUMENTS if "```mermaid" in text_of(path)]
    for name, states in (("run", RUN_MOVES), ("task", TASK_MOVES)):
        drawn = re.findall(
            r"<text x=[^>]*>([^<]*)</text>", text_of(Path(f"docs/images/{name}-states.svg"))
        )
        assert {str(state) for state in states} == {*drawn}


def test_images_and_wheels_are_named_by_the_version_of_aflow() -> None:
    named = re.compile(r"\baflow(?:-worker|-server|-metadata-service)?:(\d+\.\d+\.\d+)")
    wheel = re.compile(r"\baflow_runtime-(\d+\.\d+\.\d+)-")
    files = [*DOCUMENTS, Path("docker/compose.yaml"), Path("aflow/cli/stack.py")]
    found = {v for each in files for how in (named, wheel) for v in how.findall(text_of(each))}

    assert {__version__} == found


def test_nobody_is_asked_to_install_another_project() -> None:
    """`aflow` on the package index is another project: ours is `aflow-runtime`."""
    other = re.compile(
        r"\baflow\[\w|\bpip[0-9]? install\b[^\n.;]*[ '\"`]aflow(?:[=<>~]=[\d.]+)?['\"`]"
    )

    assert {} == violations(
        [path for path in tracked("") if path.suffix not in (".png", ".gz")],
        lambda path: [found[0] for found in other.finditer(text_of(path))],
    )


def test_every_document_is_found_from_the_readme() -> None:
    linked = LINK.findall(text_of(Path("README.md")))

    assert [] == [
        str(path) for path in DOCUMENTS if path.parts[0] == "docs" and str(path) not in linked
    ]
