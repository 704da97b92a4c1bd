"""Loading the flow class that an argument of the command line names, and the errors."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aflow.cli.loading import is_target, load_flow, look_into
from aflow.errors import FlowFileError

FLOW = """
from aflow import FlowSpec, step

class {name}({base}):
    @step
    def start(self):
        pass
"""


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo the changes that a flow file makes to the interpreter."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in set(sys.modules) - before:
        if not name.startswith("aflow"):
            del sys.modules[name]


def write(folder: Path, *sources: str, name: str = "some_flow.py") -> str:
    path = folder / name
    path.write_text("\n".join(sources))
    return str(path)


def flow(name: str, base: str = "FlowSpec") -> str:
    return FLOW.format(name=name, base=base)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("flow.py", True),
        ("a b/flow.py:Name", True),
        ("flow.py:", False),
        ("flow", False),
        ("--file=flow.py", False),
        ("MyFlow/123/start", False),
    ],
)
def test_a_flow_file_is_recognized_by_its_ending(word: str, expected: bool) -> None:
    assert expected is is_target(word)


def test_the_one_flow_of_a_file_is_found(tmp_path: Path) -> None:
    assert "One" == load_flow(write(tmp_path, flow("One"))).__name__


def test_the_module_is_there_under_the_stem_of_the_file(tmp_path: Path) -> None:
    source = write(tmp_path, "class Point: pass", flow("One"))
    module = sys.modules[load_flow(source).__module__]

    assert "some_flow" == module.__name__
    assert module.Point is pickle.loads(pickle.dumps(module.Point))


def test_modules_beside_the_file_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("ANSWER = 42")

    assert load_flow(write(tmp_path, "import beside_it", flow("One")))


def test_the_main_block_does_not_run(tmp_path: Path) -> None:
    block = "if __name__ == '__main__':\n    raise RuntimeError"

    assert load_flow(write(tmp_path, flow("One"), block))


def test_a_flow_that_is_made_without_a_main_block_starts_nothing(tmp_path: Path) -> None:
    assert "One" == load_flow(write(tmp_path, flow("One"), "One()")).__name__


def test_of_two_flows_one_can_be_named(tmp_path: Path) -> None:
    source = write(tmp_path, flow("One"), flow("Two"))

    assert "Two" == load_flow(f"{source}:Two").__name__


def test_a_flow_that_another_derives_from_is_not_meant(tmp_path: Path) -> None:
    source = write(tmp_path, flow("Base"), flow("Derived", "Base"))

    assert "Derived" == load_flow(source).__name__


def test_a_flow_that_is_imported_counts_where_the_file_has_none(tmp_path: Path) -> None:
    write(tmp_path, flow("Shared"), name="shared_flow.py")
    source = write(tmp_path, "from shared_flow import Shared")

    assert "Shared" == load_flow(source).__name__


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", r"holds no flow: no class in it derives from FlowSpec"),
        (flow("One") + flow("Two"), r"holds several flows: One, Two\. Choose one: .*\.py:One"),
        ("x = 1\nx = (", r"some_flow\.py, line 2: '\(' was never closed: x = \("),
        ("\n\nimport no_such_thing", r"line 3: there is no module 'no_such_thing'\. Install it"),
        ("def f():\n    return 1 / 0\n\nf()", r"line 2: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)", r"line 2: the file ends the program"),
        (
            "from aflow import retry\n@retry(times=-1)\ndef f(): pass",
            r"line 2: InvalidDecorator: @retry: times must be",
        ),
    ],
)
def test_a_file_that_gives_no_flow_is_refused_with_its_line(
    tmp_path: Path, source: str, message: str
) -> None:
    with pytest.raises(FlowFileError, match=message):
        load_flow(write(tmp_path, source))


def test_a_file_that_failed_leaves_no_module_behind(tmp_path: Path) -> None:
    with pytest.raises(FlowFileError):
        load_flow(write(tmp_path, "1 / 0"))

    assert "some_flow" not in sys.modules


def test_threads_can_look_into_a_file_at_the_same_time(tmp_path: Path) -> None:
    target = Path(write(tmp_path, "import time; time.sleep(0.05)", flow("Flow_")))
    before = list(sys.path)
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(look_into, [target] * 4)]
    assert ["Flow_"] * 4 == [each.__name__ for [each] in found]
    target.write_text("1 / 0")
    with pytest.raises(FlowFileError):
        look_into(target)
    assert before == sys.path


def test_a_name_that_is_no_flow_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(FlowFileError, match=r"no flow 'Two'; flows in it: FlowSpec, One|One\."):
        load_flow(write(tmp_path, flow("One")) + ":Two")


def test_a_file_that_is_not_there_is_refused_with_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, flow("One"))

    with pytest.raises(FlowFileError, match=r"There is no file .*Files there: some_flow\.py"):
        load_flow(str(tmp_path / "sme_flow.py"))


def test_a_folder_is_no_flow_file(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()

    with pytest.raises(FlowFileError, match="is a folder"):
        load_flow(str(tmp_path / "folder.py"))


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path, flow("One"))
    os.chmod(source, 0)
    if os.access(source, os.R_OK):
        pytest.skip("this user may read every file")

    with pytest.raises(FlowFileError, match="permission denied"):
        load_flow(source)


def test_a_file_with_the_name_of_a_module_in_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlowFileError, match="name of a module that is in use"):
        load_flow(write(tmp_path, flow("One"), name="json.py"))
