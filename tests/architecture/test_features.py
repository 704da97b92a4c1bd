"""The list of features is valid: every row names an existing test."""

from __future__ import annotations

import re
from pathlib import Path

from tests.architecture.sources import python_files, text_of

ROW = re.compile(r"^\| .* \| .* \| (.*) \|$", re.MULTILINE)
TEST = re.compile(r"^(?:async )?def (test_\w+)\(", re.MULTILINE)


def test_every_row_names_a_test_that_there_is() -> None:
    rows = [row for row in ROW.findall(text_of(Path("docs/features.md"))) if row != "test"]
    tests = {f"`{name}`" for file in python_files("tests") for name in TEST.findall(text_of(file))}

    assert len(rows) > 100
    assert [] == [row for row in rows if row not in tests]
