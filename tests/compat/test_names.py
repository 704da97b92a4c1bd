"""Names that user code imports from Metaflow can be imported from aflow, or are documented as
missing."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tests.compat.peer import PEER, ROOT, call, needs_peer

NAMES = Path(__file__).with_name("names.py")
LOOK = """
import importlib, json, sys
from aflow import compat
compat.install()
absent = []
for module, names in json.load(sys.stdin).items():
    for name in names:
        try:
            getattr(importlib.import_module(f"metaflow.{module}".rstrip(".")), name)
        except (ImportError, AttributeError):
            absent.append(name)
print(json.dumps(absent))
"""


@needs_peer
def test_names_of_metaflow_can_be_imported_or_are_said_to_be_absent(tmp_path: Path) -> None:
    reported = call(tmp_path, PEER, NAMES)
    theirs = json.loads(reported.stdout)
    assert len(theirs[""]) > 60, reported.stderr
    (tmp_path / "names.json").write_text(reported.stdout)
    (tmp_path / "look.py").write_text(LOOK.replace("sys.stdin", 'open("names.json")'))
    absent = json.loads(call(tmp_path, sys.executable, "look.py").stdout)
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "metaflow.md").read_text()))
    assert set() == set(absent) - documented
