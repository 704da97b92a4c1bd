"""A command in a process of its own, whose output goes to files that can be read meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, Self

import click

from aflow._core.process import binary
from aflow._core.secret import sealed
from aflow._core.settings import environment_with
from aflow._core.system import watch_child
from aflow._core.threads import in_thread
from aflow.cli import loading
from aflow.cli.flow_commands import FlowGroup
from aflow.cli.options import Option, ParameterType
from aflow.errors import FlowFileError, InvalidInput
from aflow.flow.names import did_you_mean, shown
from aflow.task.program import stands_for_metaflow

if TYPE_CHECKING:
    from aflow.flow.spec import FlowSpec

Stream = Literal["stdout", "stderr"]

LOOK_AGAIN = 0.05  # seconds: how often a growing file is looked at, while somebody follows it
_PIECE = 1 << 16


def program(flow_file: str) -> list[str]:
    """Return what runs the flow's file: where aflow stands for Metaflow here, it has to do so
    there, if the file has a use for it. (A file of several flows may itself choose one when it is
    run.)

    Args:
        flow_file: The path of the flow's file.
    """
    if stands_for_metaflow() and b"metaflow" in Path(flow_file).read_bytes():
        return [sys.executable, "-m", "aflow", "--compat", flow_file]
    return [sys.executable, flow_file]


class RunningCommand:
    """A process that was started; `process` is its Popen, `log_files` the paths of its output,
    `metadata` the URL with a password that it was given for its metadata."""

    def __init__(
        self, command: Sequence[str], cwd: str | None, env: Mapping[str, str] | None
    ) -> None:
        self.command, urls = _without_urls(command)
        self.metadata = urls.get("AFLOW_DEFAULT_METADATA")
        if urls:
            env = {**(environment_with({}) if env is None else env), **urls}
        self.timeout = False
        self._folder = tempfile.mkdtemp(prefix="aflow-")
        self.log_files = {
            name: os.path.join(self._folder, f"{name}.log") for name in ("stdout", "stderr")
        }
        try:
            with (
                open(self.log_files["stdout"], "wb") as out,
                open(self.log_files["stderr"], "wb") as err,
            ):
                self.process = subprocess.Popen(
                    self.command,
                    cwd=cwd,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                )
        except OSError:
            self.cleanup()
            raise

    def last_output(self) -> str:
        """Return the last lines that a command has written before it failed."""
        lines = [*self.output("stdout").splitlines(), *self.output("stderr").splitlines()]
        return "\n".join(lines[-LAST_LINES:])

    @property
    def returncode(self) -> int | None:
        """The exit code; None while the process runs."""
        return self.process.poll()

    # ------------------------------------------------------------ waiting

    def wait_here(self, show: bool) -> int:
        """Wait for the end of the command. An exception that interrupts the waiting stops the
        process, too.

        Args:
            show: Whether the output is copied meanwhile.

        Returns:
            The exit code.
        """
        try:
            if show:
                self._copy_until_ended()
            return self.process.wait()
        except BaseException:
            self.kill()
            raise

    def _copy_until_ended(self) -> None:
        with (
            _end_of(self.process) as ended,
            self._opened("stdout") as out,
            self._opened("stderr") as err,
        ):
            files = [(out, binary(sys.stdout)), (err, binary(sys.stderr))]
            over = False
            while not over:
                over = bool(select.select([ended], [], [], LOOK_AGAIN)[0])
                for file, to in files:
                    if text := file.read():
                        to.write(text.encode("utf-8", "replace"))
                        to.flush()

    async def wait(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 -- the name that programs know it by
        stream: Stream | None = None,
    ) -> None:
        """Wait for the end, printing one of the streams meanwhile if it is named. A process that
        takes longer than `timeout` seconds is stopped.

        Args:
            timeout: After how many seconds it gives up; None for never.
            stream: `stdout` or `stderr`, to be printed meanwhile; None for neither.
        """
        body = self.ended() if stream is None else self.emit_logs(stream)
        try:
            await asyncio.wait_for(body, timeout)
        except TimeoutError:
            self.timeout = True
            await in_thread(self.kill)

    async def ended(self) -> int:
        """Wait for the end.

        Returns:
            The exit code.
        """
        with _end_of(self.process) as ended:
            await _readable([ended])
        return self.process.wait()

    def kill(self, termination_timeout: float = 10.0) -> None:
        """Stop the process: it may end its tasks first, for this many seconds. May be called late.

        Args:
            termination_timeout: Seconds between SIGTERM and SIGKILL.
        """
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(termination_timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()  # its template sees it, and kills the tasks
                self.process.wait()

    # ------------------------------------------------------------ output

    def output(self, stream: Stream) -> str:
        """Return what the process has written so far.

        Args:
            stream: The stream of the log: stdout or stderr.

        Raises:
            InvalidInput: When it was cleaned up.
        """
        with self._opened(stream) as file:
            return file.read()

    async def stream_log(
        self, stream: Stream, position: int | None = None
    ) -> AsyncIterator[tuple[int, str]]:
        """Yield the lines of a stream as they come, until the process ends: each with the position
        behind it, from which another call may go on.

        Args:
            stream: The stream of the log: stdout or stderr.
            position: The position to begin at; None for the start.
        """
        with self._opened(stream) as file:
            file.seek(position or 0)
            over = False
            rest = ""
            while not over:
                over = self.process.poll() is not None  # looked at before what is read
                while line := file.readline(_PIECE):
                    rest += line
                    if rest.endswith("\n"):
                        yield file.tell(), rest.rstrip("\n")
                        rest = ""
                if not over:
                    await self._more()
            if rest:
                yield file.tell(), rest

    async def _more(self) -> None:
        """Wait until there may be more to read."""
        try:
            await asyncio.wait_for(self.ended(), LOOK_AGAIN)
        except TimeoutError:
            return

    async def emit_logs(
        self, stream: Stream = "stdout", custom_logger: Callable[[str], object] | None = None
    ) -> None:
        """Give every line of a stream to the function (else to stdout), until the process ends.

        Args:
            stream: The stream of the log: stdout or stderr.
            custom_logger: Takes each line; None for stdout.
        """
        async for _, line in self.stream_log(stream):
            if custom_logger is None:
                sys.stdout.write(line + "\n")
            else:
                custom_logger(line)

    def _opened(self, stream: Stream) -> IO[str]:
        if stream not in self.log_files:
            raise InvalidInput(f"There is no stream {stream!r}: ask for stdout or stderr.")
        try:
            return open(self.log_files[stream], encoding="utf-8", errors="replace", newline="\n")
        except FileNotFoundError as error:
            raise InvalidInput(
                f"The {stream} of this command was removed by cleanup(): read it before."
            ) from error

    def cleanup(self) -> None:
        """Remove the files of the output. The process is left alone."""
        shutil.rmtree(self._folder, ignore_errors=True)


# Options whose value is a URL that may have a password, and the variables that say the same.
_URLS = {"--metadata": "AFLOW_DEFAULT_METADATA", "--queue": "AFLOW_QUEUE"}


def _without_urls(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """A command line without the passwords of URLs, which every user of the machine could read in
    it; and variables that say what is left out."""
    kept, variables = [], {}
    for argument in argv:
        option, _, value = argument.partition("=")
        if option in _URLS and sealed(value) is not value:
            variables[_URLS[option]] = value
        else:
            kept.append(argument)
    return kept, variables


# ------------------------------------------------------------ descriptors that tell


@contextmanager
def _end_of(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """A descriptor that can be read once the process has ended."""
    fd = watch_child(process)
    try:
        yield fd
    finally:
        os.close(fd)


async def _readable(fds: Sequence[int]) -> None:
    """Wait until one of the descriptors can be read."""
    loop = asyncio.get_running_loop()
    seen: asyncio.Future[None] = loop.create_future()

    def see() -> None:
        if not seen.done():
            seen.set_result(None)

    for fd in fds:
        loop.add_reader(fd, see)
    try:
        await seen
    finally:
        for fd in fds:
            loop.remove_reader(fd)


class Announcement:
    """A pipe with a name, through which a command says what it has started.

    Use it as a context; give `path` to the command.
    """

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="aflow-")
        self.path = Path(self._folder) / "attributes"
        os.mkfifo(self.path)
        # Not blocking: there is no writer yet, and perhaps never one.
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def __enter__(self) -> Announcement:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def wait(self, process: subprocess.Popen[bytes], at_most: float) -> bytes:
        """Return what the command has written; empty if it has ended, or this many seconds are
        over, without that.

        Args:
            process: The process of the command.
            at_most: How many seconds.
        """
        with _end_of(process) as ended:
            try:
                await asyncio.wait_for(_readable([self._fd, ended]), at_most)
            except TimeoutError:
                return b""
        return self.read()

    def read(self) -> bytes:
        """Return what the command has written so far."""
        try:
            # It is written in one piece, which a pipe does not divide.
            return os.read(self._fd, _PIECE)
        except BlockingIOError:  # a writer has opened it and says nothing
            return b""


# From keyword arguments to a command line, checked against the command's options.

LAST_LINES = 20  # lines of a failed command that its error repeats
# Names of old for options that have another one here.
_ALIASES = {"decospecs": "with"}
# Linux takes no argument above 128 kB, and 2 MB in all, the environment included.
_LONGEST_ARGUMENT = 100_000
_LONGEST_LINE = 1_000_000


class CleanedUp:
    """What has files until `cleanup` is called; as a context, it calls that at the end."""

    def cleanup(self) -> None:
        """Remove the files of the output. Processes are left alone."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cleanup()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.cleanup()


class CommandArguments(NamedTuple):
    """A command line, and values of parameters that it cannot hold, which go into a file."""

    argv: list[str]
    values: dict[str, Any]


class FlowCommands:
    """The commands of a flow's file, for a program: what Runner and Deployer are given.

    `show_output` copies what the commands print, `env` adds to the environment, `cwd` is the
    working directory. All else are options that stand before the command. Raises FlowFileError
    where there is no such file.
    """

    def __init__(
        self,
        flow_file: str | os.PathLike[str],
        show_output: bool = True,
        profile: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        file_read_timeout: float = 3600,
        **top_level_kwargs: Any,
    ) -> None:
        self.flow_file = os.path.abspath(flow_file)
        if not os.path.isfile(self.flow_file):
            raise FlowFileError(f"There is no flow file {self.flow_file}.")
        self.show_output = show_output
        self.file_read_timeout = file_read_timeout
        self.top_level_kwargs = top_level_kwargs
        profiles = {"AFLOW_PROFILE": profile} if profile else {}
        self._env = environment_with({**(env or {}), **profiles})
        self._cwd = os.fspath(cwd) if cwd is not None else None
        self._commands: list[RunningCommand] = []  # whose output is still kept

    def _command(
        self,
        name: str,
        arguments: Sequence[str],
        given: Mapping[str, Any],
        folder: Path,
        *more: str,
    ) -> RunningCommand:
        """Start a command of the file. Values that its command line cannot hold are written to a
        file in the folder, which only this user may read."""
        argv, values = self._composed(name, arguments, given)
        if values:
            file = folder / "parameters.json"
            file.touch(0o600)
            file.write_text(json.dumps(values), "utf-8")
            argv.append(f"--parameters-file={file}")
        return RunningCommand([*program(self.flow_file), *argv, *more], self._cwd, self._env)

    # ------------------------------------------------------------ the command line

    def _composed(
        self, command: str, arguments: Sequence[str], given: Mapping[str, Any]
    ) -> CommandArguments:
        """The arguments `[TOP] COMMAND [GIVEN] ARGUMENTS`; a command may have a subcommand.

        Raises FlowFileError where the file does not hold a flow, and InvalidInput for an option
        that does not exist, or has a value that cannot be written."""
        ahead = self._options("", _without_none(self.top_level_kwargs))
        behind = self._options(command, _without_none(given))
        argv = [*ahead.argv, *command.split(), *behind.argv, *arguments]
        for each in argv:
            if len(os.fsencode(each)) > _LONGEST_ARGUMENT:
                name = each.partition("=")[0]
                raise InvalidInput(f"The value of {name[:80]} is too long for a command line.")
        return CommandArguments(argv, behind.values)

    def _options(self, command: str, given: Mapping[str, Any]) -> CommandArguments:
        known = self._known(command) if given else {}
        argv: list[str] = []
        values: dict[str, Any] = {}
        length = 0
        for name, value in given.items():
            plain = _plain(name)
            if plain not in known:
                where = f"The command {command}" if command else "The command line"
                raise InvalidInput(
                    f"{where} of {os.path.basename(self.flow_file)} has no option {name!r}."
                    f"{did_you_mean(plain, known)} It has: {', '.join(sorted(known))}."
                )
            option = known[plain]
            of_flow = None
            if isinstance(option, Option) and option.parameter is not None:
                of_flow = option.parameter
                if option.count or (option.is_flag and value is False):
                    values[of_flow.name] = value  # --flag has no form for False
                    continue
            written = _written(option, name, value)
            size = sum(len(os.fsencode(each)) for each in written)
            length += size
            too_long = (
                size > _LONGEST_ARGUMENT or length > _LONGEST_LINE or "\0" in "".join(written)
            )
            if of_flow is not None and too_long:
                values[of_flow.name] = _texts(option, name, value)
            else:
                argv += written
        return CommandArguments(argv, values)

    def _known(self, command: str) -> dict[str, click.Parameter]:
        """The options and arguments of a command, by all the names that they go by."""
        known: dict[str, click.Parameter] = {}
        for flow in self._flows:
            group = FlowGroup(flow, self.flow_file)
            found: click.Command | None = group
            for argument in command.split():  # `step-functions create`, say
                assert isinstance(found, click.Group), "only commands that there are, are asked for"
                found = found.get_command(click.Context(found), argument)
            assert found is not None, "only commands that there are, are asked for"
            for each in found.params:
                known |= dict.fromkeys(_names(each), each)
        return known

    @cached_property
    def _flows(self) -> Sequence[type[FlowSpec]]:
        """The flows of the file, which is looked into when there is something to check."""
        return loading.look_into(Path(self.flow_file))


def _without_none(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _names(parameter: click.Parameter) -> Iterator[str]:
    long = [_plain(each) for each in parameter.opts]
    yield from long
    if parameter.multiple:  # `tags` is the name that programs know for --tag
        yield from (f"{each}s" for each in long)
    yield from (old for old, new in _ALIASES.items() if new in long)


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower().strip("_")


# ------------------------------------------------------------ values


def _written(parameter: click.Parameter, name: str, value: Any) -> list[str]:
    """The arguments that give the option this value."""
    if isinstance(parameter, click.Argument):
        return [_text(name, value)]
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return _flag(parameter, name, value)
    option = parameter.opts[0]
    several = parameter.multiple and isinstance(value, list | tuple)
    values = value if several else [value]
    if parameter.nargs > 1:
        return [
            argument
            for each in values
            for argument in (option, *(_text(name, one) for one in each))
        ]
    return [f"{option}={_text(name, _joined(parameter, each))}" for each in values]


def _texts(parameter: click.Parameter, name: str, value: Any) -> Any:
    """What `_written` writes as arguments, as a value in a file of parameters."""
    several = parameter.multiple and isinstance(value, list | tuple)
    texts = [
        [_text(name, one) for one in each]
        if parameter.nargs > 1
        else _text(name, _joined(parameter, each))
        for each in (value if several else [value])
    ]
    return texts if parameter.multiple else texts[0]


def _flag(option: click.Option, name: str, value: Any) -> list[str]:
    if isinstance(option, Option) and option.parameter is not None and value == option.flag_value:
        return option.opts[:1]
    if not isinstance(value, bool):
        raise InvalidInput(f"The option {name!r} is True or False, not {shown(value)}.")
    return option.opts[:1] if value else option.secondary_opts[:1]


def _joined(parameter: click.Parameter, value: Any) -> Any:
    """A list as the text that a parameter with a separator takes."""
    if not isinstance(parameter.type, ParameterType) or not isinstance(value, list | tuple):
        return value
    separator = parameter.type.parameter.separator
    if separator is None:
        return value
    return separator.join(_text(parameter.type.parameter.name, each) for each in value)


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, int | float):
        return str(value)
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{name}={shown(value)} cannot be given on a command line: {error}."
        ) from error
