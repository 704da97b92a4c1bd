"""What the shipped parsers make of files."""

from __future__ import annotations

import pytest

from aflow.flow import configs


def test_yaml_is_read() -> None:
    assert {"a": [1, "x"]} == configs.yaml_parser("a: [1, x]")


def test_a_requirements_file_becomes_packages_and_python() -> None:
    text = """
    # python==3.11.5
    numpy==1.26
    pandas >= 2  # why
    requests[socks]; sys_platform == "linux"
    """
    assert {
        "packages": {
            "numpy": "1.26",
            "pandas": ">=2",
            "requests[socks]": '; sys_platform == "linux"',
        },
        "python": "3.11.5",
    } == configs.requirements_txt_parser(text)


def test_markers_and_places_of_packages_are_kept() -> None:
    text = (
        'x==1.0 ; sys_platform == "win32" and python_version < "3.12"\n'
        "mine @ git+https://host/mine.git@v2#egg=mine  # ours\n"
        "pinned==2.0 \\\n    --hash=sha256:abc \\\n    --hash=sha256:def\n"
    )
    assert {
        "packages": {
            "x": '1.0; sys_platform == "win32" and python_version < "3.12"',
            "mine": "@ git+https://host/mine.git@v2#egg=mine",
            "pinned": "2.0 --hash=sha256:abc --hash=sha256:def",
        }
    } == configs.requirements_txt_parser(text)


@pytest.mark.parametrize("line", ["-e .", "-r other.txt", "--index-url x"])
def test_options_of_requirements_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match="names no package"):
        configs.requirements_txt_parser(line)


def test_a_pyproject_becomes_packages_and_python() -> None:
    text = '[project]\nrequires-python = ">=3.11"\ndependencies = ["numpy==1.26", "x>=1,<2"]\n'
    assert {
        "packages": {"numpy": "1.26", "x": ">=1,<2"},
        "python": ">=3.11",
    } == configs.pyproject_toml_parser(text)


def test_a_conda_environment_becomes_packages_and_python() -> None:
    text = "dependencies:\n- python=3.11\n- numpy=1.26\n- scipy>=1.5\n- pandas\n- pip:\n  - x\n"
    assert {
        "packages": {"numpy": "1.26", "scipy": ">=1.5", "pandas": ""},
        "python": "3.11",
    } == configs.conda_environment_yml_parser(text)
