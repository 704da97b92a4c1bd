"""The examples and the flows of the documentation work as described."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON_IN_TEXT = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

SMALL = {
    "parameter_flow.py": ["--alpha", "0.5"],
    "text_statistics.py": ["--limit", "5"],
    "async_fetch.py": ["--pages", "10", "--max-workers", "10"],
}


def python(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, without the repository's own settings or folder."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, capture_output=True, text=True
    )


def flows_in(document: Path) -> list[str]:
    """Return the flows in a document: code blocks of Python with steps."""
    return [each for each in PYTHON_IN_TEXT.findall(document.read_text()) if "@step" in each]


@pytest.mark.parametrize("name", SMALL)
def test_an_example_runs(repository: Path, tmp_path: Path, name: str) -> None:
    example = repository / "examples" / name

    done = python(tmp_path, example, "--no-pylint", "run", *SMALL[name])

    assert 0 == done.returncode, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("Done!")


@pytest.mark.slow
def test_the_best_model_reads_digits_and_its_chart_is_a_picture(
    repository: Path, tmp_path: Path
) -> None:
    example = repository / "examples" / "model_selection.py"

    done = python(tmp_path, example, "--no-pylint", "run", "--folds", "2", "--max-workers", "2")
    saved = python(tmp_path, repository / "examples" / "save_chart.py", "chart.png")

    assert 0 == done.returncode, done.stdout + done.stderr
    assert 0 == saved.returncode, saved.stdout + saved.stderr
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_the_chart_of_no_run_is_one_sentence(repository: Path, tmp_path: Path) -> None:
    saved = python(tmp_path, repository / "examples" / "save_chart.py", "chart.png")

    assert 1 == saved.returncode
    assert "ModelSelectionFlow" in saved.stderr
    assert "Traceback" not in saved.stderr


@pytest.mark.parametrize("document", ["README.md", "docs/quickstart.md"])
def test_the_flows_in_a_document_are_valid(repository: Path, tmp_path: Path, document: str) -> None:
    flows = flows_in(repository / document)
    assert flows

    for number, source in enumerate(flows):
        file = tmp_path / f"flow_{number}.py"
        file.write_text(source)
        done = python(tmp_path, "-m", "aflow", "check", file)

        assert 0 == done.returncode, source + done.stdout + done.stderr


def test_the_flow_of_the_readme_gives_the_sum_that_it_shows(
    repository: Path, tmp_path: Path
) -> None:
    readme = repository / "README.md"
    (tmp_path / "squares.py").write_text(flows_in(readme)[0])

    done = python(tmp_path, "squares.py", "--no-pylint", "run", "--n", "20")

    assert "\n2470\n" in readme.read_text()
    assert "the sum is 2470" in done.stdout, done.stdout + done.stderr
