"""The parsers of config files that aflow includes."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from aflow.errors import MissingExtra
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


@pytest.mark.parametrize("parse", [configs.yaml_parser, configs.conda_environment_yml_parser])
def test_yaml_without_its_package_says_what_to_install(
    parse: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)

    with pytest.raises(MissingExtra) as caught:
        parse("a: 1")
    assert "YAML is read with PyYAML: install aflow-runtime[yaml]." == str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing", "[project]", "[project]\ndependencies = []"])
def test_files_that_ask_for_nothing_give_no_packages(text: str) -> None:
    parse = configs.pyproject_toml_parser if "[" in text else configs.requirements_txt_parser

    assert {"packages": {}} == parse(text)


@pytest.mark.parametrize("text", ["", "# nothing", "name: x", "dependencies:", "[]"])
def test_an_environment_that_asks_for_nothing_gives_no_packages(text: str) -> None:
    assert {"packages": {}} == configs.conda_environment_yml_parser(text)


def test_an_environment_that_is_a_list_is_refused() -> None:
    with pytest.raises(ValueError, match="a mapping with the key dependencies"):
        configs.conda_environment_yml_parser("- numpy")


@pytest.mark.parametrize("line", ["==1.0", "; sys_platform == 'x'", "@ git+https://host/x"])
def test_a_line_that_names_no_package_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="names no package"):
        configs.requirements_txt_parser(line)
