"""Parsing the arguments of the command line: the command, the flow, and the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow import FlowSpec, step
from aflow.cli.commands import OTHERS
from aflow.cli.config_options import given_configs
from aflow.cli.flow_commands import FlowGroup
from aflow.cli.main import Line, other_command, take_apart
from aflow.cli.session import Defined


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", Line([], None, None, [])),
        ("status", Line([], "status", None, [])),
        ("run flow.py", Line([], "run", "flow.py", [])),
        (
            "run flow.py:Name --alpha 1 --quiet",
            Line([], "run", "flow.py:Name", ["--alpha", "1", "--quiet"]),
        ),
        (
            "run --max-workers 3 flow.py --alpha 1",
            Line([], "run", "flow.py", ["--max-workers", "3", "--alpha", "1"]),
        ),
        ("run --alpha 1 flow.py", Line([], "run", "flow.py", ["--alpha", "1"])),
        ("run --fail-fast flow.py x", Line([], "run", "flow.py", ["--fail-fast", "x"])),
        ("--quiet run flow.py", Line(["--quiet"], "run", "flow.py", [])),
        ("--with retry run flow.py", Line(["--with", "retry"], "run", "flow.py", [])),
        ("--with=retry run flow.py", Line(["--with=retry"], "run", "flow.py", [])),
        ("flow.py run --alpha 1", Line([], None, "flow.py", ["run", "--alpha", "1"])),
        ("flow.py --quiet run", Line([], None, "flow.py", ["--quiet", "run"])),
        ("--quiet flow.py run", Line([], None, "flow.py", ["--quiet", "run"])),
        (
            "run --run-id-file a.py flow.py",
            Line([], "run", "flow.py", ["--run-id-file", "a.py"]),
        ),
        ("run --unknown flow.py", Line([], "run", "flow.py", ["--unknown"])),
        ("run --help", Line([], "run", None, ["--help"])),
        ("run flow.py --help", Line([], "run", "flow.py", ["--help"])),
        ("logs My/1/a --stdout", Line([], "logs", None, ["My/1/a", "--stdout"])),
        ("logs --stdout My/1/a", Line([], "logs", None, ["--stdout", "My/1/a"])),
        (
            "logs show --timestamps flow.py 1/a",
            Line([], "logs", "flow.py", ["show", "--timestamps", "1/a"]),
        ),
    ],
)
def test_command_and_flow_are_found_among_the_options(words: str, line: Line) -> None:
    assert line == take_apart(words.split())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("run train", Line([], "run", "train", [])),
        ("train:Name run", Line([], None, "train:Name", ["run"])),
        ("run --data train flow.py", Line([], "run", "flow.py", ["--data", "train"])),
        ("tag add train x", Line([], "tag", "train", ["add", "x"])),
        ("run other", Line([], "run", None, ["other"])),
        ("dump train 1/start", Line([], "dump", "train", ["1/start"])),
        ("dump Flow/1", Line([], "dump", None, ["Flow/1"])),
        ("dump ./Flow/1 1/start", Line([], "dump", "./Flow/1", ["1/start"])),
    ],
)
def test_a_file_of_any_name_is_the_flow_where_one_is_expected(
    words: str, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").touch()
    (tmp_path / "Flow").mkdir()
    (tmp_path / "Flow" / "1").touch()

    assert line == take_apart(words.split())


WORDS = st.sampled_from(
    ["run", "flow.py", "--quiet", "--alpha", "1", "--max-workers", "logs", "a/b"]
)


@given(st.lists(WORDS))
def test_no_word_is_lost_or_made_up(words: list[str]) -> None:
    line = take_apart(words)
    taken = [*line.ahead, *line.rest]
    taken += [word for word in (line.command, line.target) if word is not None]

    assert sorted(words) == sorted(taken)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("runs", ["--limit", "9" * 30]),
        ("gc", ["--keep", "9" * 30]),
        ("worker", ["--lease", "nan"]),
        ("worker", ["--grace", "inf"]),
        ("server", ["--recovery-timeout", "nan"]),
    ],
)
def test_a_number_that_nothing_can_count_is_refused(command: str, words: list[str]) -> None:
    with pytest.raises(click.BadParameter, match="is too large, or not a number"):
        other_command(command).main(words, standalone_mode=False)


def test_every_command_and_option_says_what_it_does() -> None:
    class Flow_(FlowSpec):
        @step
        def start(self) -> None:
            self.next(self.end)

        @step
        def end(self) -> None:
            pass

    group = FlowGroup(Flow_, "flow.py", Defined(Flow_, given_configs([])[0]), ())
    seen = [*commands("aflow flow.py", group)]
    for name in OTHERS:
        seen += commands(f"aflow {name}", other_command(name))

    assert len(seen) > 60
    for path, command in seen:
        if path != "aflow flow.py":
            assert (command.help or "").partition("\n\n")[0].rstrip().endswith((".", ":")), path
        for param in command.params:
            if isinstance(param, click.Option) and not param.hidden:
                text = (param.help or "").partition("  [")[0]
                assert text.endswith("."), (path, param.opts, text)
                if param.is_flag or param.flag_value is not None:
                    continue
                shown = param.make_metavar(click.Context(command))
                assert shown not in ("TEXT", "INTEGER", "FLOAT"), (path, param.opts)
                assert "RANGE" not in shown, (path, param.opts)


def commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Yield a command and its subcommands, recursively."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(f"{path} {name}", found)
