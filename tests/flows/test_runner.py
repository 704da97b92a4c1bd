"""Runner: the Python API for the commands of a flow file."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from aflow import ExecutingRun, Runner
from aflow.errors import CommandFailed, FlowFileError, InvalidInput
from aflow.runner.command import RunningCommand
from tests.flows.conftest import Workspace, processes_in

FLOW = """
class Flow_(FlowSpec):
    alpha = Parameter("alpha", default=0.1)
    fail = Parameter("fail", default=False)
    names = Parameter("some-names", default=["x"], separator="+")
    table = Parameter("table", type=JSONType, default="{}")
    flag = Parameter("flag", is_flag=True, default=True)
    many = Parameter("many", multiple=True)

    @step
    def start(self):
        self.lengths = (len(self.names), sum(map(len, self.many)), self.flag)
        print("alpha is", self.alpha, self.names, self.table)
        print("to stderr", file=sys.stderr)
        if self.alpha > 99:
            print("waits", flush=True)
            time.sleep(60)
        self.next(self.end)

    @step
    def end(self):
        if self.fail and not os.path.exists("mended"):
            raise ValueError("no")
        self.result = self.alpha * 2
"""


@pytest.fixture
def file(workspace: Workspace) -> Path:
    """A flow file, alone in its folder."""
    return workspace.write(FLOW)


def runner(file: Path, **options: Any) -> Runner:
    """A Runner without checks and output."""
    quick: dict[str, Any] = {"show_output": False, "pylint": False, "cwd": file.parent}
    return Runner(str(file), **quick | options)


def test_a_run_to_its_end_can_be_read_with_the_client(file: Path) -> None:
    with runner(file) as commands:
        result = commands.run(
            alpha=-2.5,
            some_names=["a", "b"],
            table={"k": [1, None]},
            tags=["t", "u"],
            max_workers=2,
        )

        assert isinstance(result, ExecutingRun)
        assert ("successful", 0) == (result.status, result.returncode)
        assert -5.0 == result.run.data.result
        assert {"t", "u"} == result.run.user_tags
        assert "alpha is -2.5 ['a', 'b'] {'k': [1, None]}\n" in result.stdout
        assert "Flow_" in result.stderr
        assert str(result.run.id) in repr(result)
    with pytest.raises(InvalidInput, match="removed by cleanup"):
        _ = result.stdout


def test_what_is_printed_is_shown_if_wanted(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with runner(file, show_output=True) as commands:
        result = commands.run()
        shown = capsys.readouterr()

        assert (result.stdout, result.stderr) == (shown.out, shown.err)
        assert "alpha is 0.1" in shown.out


def test_a_run_that_fails_is_reported_and_can_be_resumed(file: Path) -> None:
    with runner(file) as commands:
        failed = commands.run(fail=True)
        (file.parent / "mended").touch()
        resumed = commands.resume(origin_run_id=failed.run.id)

    assert ("failed", 1) == (failed.status, failed.returncode)
    assert "successful" == resumed.status
    assert failed.run.pathspec == resumed.run.origin_pathspec


def test_a_step_can_be_spun(file: Path) -> None:
    with runner(file) as commands:
        run = commands.run().run
        spun = commands.spin(f"{run.id}/end")

        assert "successful" == spun.status
        assert 0.2 == spun.task["result"].data
        assert "end" == spun.task.parent.id


async def test_a_run_is_there_as_soon_as_it_has_begun(file: Path) -> None:
    async with runner(file) as commands:
        running = await commands.async_run(alpha=100)
        lines = running.stream_log("stdout")
        position, line = await anext(lines)
        while "waits" not in line:
            position, line = await anext(lines)
        assert ("running", None) == (running.status, running.returncode)
        assert "running" == running.run.status

        await running.wait(timeout=0.01)

        assert "timeout" == running.status
        assert running.run.finished
        rest = [line async for _, line in running.stream_log("stdout", position)]
        assert running.stdout.splitlines()[-len(rest) :] == rest
    assert [] == processes_in(file.parent)


async def test_values_that_no_command_line_can_hold_reach_the_run(file: Path) -> None:
    with runner(file) as commands:
        given = {"some_names": ["x" * 9] * 20_000, "flag": False, "many": ["a\0b", "c" * 200_000]}
        result = commands.run(**given)
        begun = await (await commands.async_run(**given)).wait()

        assert (20_000, 200_003, False) == result.run.data.lengths == begun.run.data.lengths
        with pytest.raises(InvalidInput, match="The value of --tag is too long"):
            commands.run(tags=["x" * 200_000])


async def test_several_runs_go_on_side_by_side(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with runner(file) as commands:
        runs = [await commands.async_run(alpha=n) for n in range(3)]
        for each in runs:
            assert each is await each.wait(stream="stdout")
        resumed = await (await commands.async_resume(step_to_rerun="end")).wait()
        spun = await (await commands.async_spin("start")).wait()

        assert [0, 2, 4] == [each.run.data.result for each in runs]
        assert 4 == resumed.run.data.result
        assert spun.task.successful
        assert 3 == capsys.readouterr().out.count("alpha is")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"alhpa": 1}, "The command run of flow.py has no option 'alhpa'. Did you mean 'alpha'?"),
        ({"table": {1, 2}}, "cannot be given on a command line"),
        ({"cache": "yes"}, "The option 'cache' is True or False, not 'yes'"),
    ],
)
def test_what_cannot_be_given_is_named_before_anything_starts(
    file: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        runner(file).run(**given)

    assert said in str(caught.value)
    assert not (file.parent / ".aflow").exists()


def test_an_option_of_the_program_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(InvalidInput, match=r"The command line of flow\.py has no option 'brunch'"):
        runner(file, brunch="x").run()


def test_a_command_that_begins_no_run_says_why(file: Path) -> None:
    with pytest.raises(CommandFailed, match="'alpha' has the value 'much'") as caught:
        runner(file).run(alpha="much")

    assert isinstance(caught.value, RuntimeError)


async def test_a_command_that_begins_no_run_in_time_is_stopped(file: Path) -> None:
    file.write_text("import time\ntime.sleep(60)\n")

    with pytest.raises(CommandFailed, match="has begun no run"):
        await runner(file, file_read_timeout=0.2, pylint=None).async_run()


async def test_a_call_that_is_cancelled_leaves_no_run_and_no_files(file: Path) -> None:
    with runner(file) as commands:
        starting = asyncio.ensure_future(commands.async_run(alpha=100))
        while not commands._commands:
            await asyncio.sleep(0)
        [command] = commands._commands
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert command.returncode is not None
        stdout = Path(command.log_files["stdout"])
        assert stdout.exists()
    assert not stdout.exists()


PIECES = "import os, time; os.write(1, b'a\\xc3'); time.sleep(0.2); os.write(1, b'\\xa9\\nb')"


@pytest.mark.parametrize("stream", [None, io.StringIO()])
async def test_output_that_ends_within_a_character_for_a_while_is_not_damaged(
    stream: io.StringIO | None, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    command = RunningCommand([sys.executable, "-c", PIECES], None, None)
    assert [(4, "aé"), (5, "b")] == [each async for each in command.stream_log("stdout")]
    with contextlib.redirect_stdout(stream or sys.__stdout__):
        RunningCommand([sys.executable, "-c", PIECES], None, None).wait_here(show=True)
    shown = capfdbinary.readouterr().out.decode() if stream is None else stream.getvalue()
    assert "aé\nb" == shown


def test_files_of_output_that_nobody_cleans_up_end_with_their_command() -> None:
    command = RunningCommand([sys.executable, "-c", ""], None, None)
    command.wait_here(show=False)
    folder = Path(command.log_files["stdout"]).parent
    assert folder.exists()
    del command
    gc.collect()
    assert not folder.exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlowFileError, match=r"There is no flow file .*none\.py"):
        Runner(str(tmp_path / "none.py"))


def test_decorators_environment_and_profile_reach_the_run(file: Path, tmp_path: Path) -> None:
    homes = tmp_path / "homes"
    homes.mkdir()
    (homes / "config_other.json").write_text(json.dumps({"AFLOW_RUN_MAX_WORKERS": 3}))
    env = {"AFLOW_HOME": str(homes)}

    with runner(file, env=env, profile="other", decospecs=["retry:times=0"]) as commands:
        result = commands.run(with_=["timeout:seconds=50"])

        assert 0 == result.returncode
    workspace = Workspace(file.parent)
    assert 3 == workspace.metadata.runs("Flow_")[0].settings["max_workers"]


def test_a_folder_of_any_name_may_hold_the_runs(file: Path) -> None:
    with runner(file, datastore_root="elsewhere") as commands:
        assert 0.2 == commands.run().run.data.result

    assert (file.parent / "elsewhere" / "metadata.db").exists()
