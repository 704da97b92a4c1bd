"""Commands in child processes, whose output is written to files that can be read at any time."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, Self

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

LOOK_AGAIN = 0.05  # seconds between polls of a growing file
_PIECE = 1 << 16


def program(flow_file: str) -> list[str]:
    """Return the command line that runs the flow's file. If aflow replaces Metaflow in this
    process, it does so in the command too if the file mentions Metaflow. (If a file has several
    flows, the file may choose one of them when it is run.)

    Args:
        flow_file: The path of the flow's file.
    """
    if stands_for_metaflow() and b"metaflow" in Path(flow_file).read_bytes():
        return [sys.executable, "-m", "aflow", "--compat", flow_file]
    return [sys.executable, flow_file]


class RunningCommand:
    """A child process; `process` is its Popen, `log_files` are the paths of its output, and
    `metadata` is the URL of its metadata if that has a password."""

    def __init__(
        self, command: Sequence[str], cwd: str | None, env: Mapping[str, str] | None
    ) -> None:
        self.command, urls = _without_urls(command)
        self.metadata = urls.get("AFLOW_DEFAULT_METADATA")
        if urls:
            env = {**(environment_with({}) if env is None else env), **urls}
        self.timeout = False
        folder = tempfile.mkdtemp(prefix="aflow-")
        # Also called when the program has dropped this object, or ends.
        self._remove_files = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.log_files = {
            name: os.path.join(folder, f"{name}.log") for name in ("stdout", "stderr")
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
        """Return the last lines that the command has written."""
        lines = [*self.output("stdout").splitlines(), *self.output("stderr").splitlines()]
        return "\n".join(lines[-LAST_LINES:])

    @property
    def returncode(self) -> int | None:
        """The exit code; None while the process runs."""
        return self.process.poll()

    # ------------------------------------------------------------ waiting

    def wait_here(self, show: bool) -> int:
        """Wait until the command exits. An exception that interrupts the wait stops the process.

        Args:
            show: Whether to copy the output to stdout and stderr while waiting.

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
            end = select.poll()  # not `select`, for which a descriptor may be too large
            end.register(ended)
            over = False
            while not over:
                over = bool(end.poll(LOOK_AGAIN * 1000))
                for file, to in files:
                    if data := file.read():
                        to.write(data)
                        to.flush()

    async def wait(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 -- Metaflow's name
        stream: Stream | None = None,
    ) -> None:
        """Wait until the process exits, and print one of the streams in the meantime. If it takes
        longer than `timeout` seconds, it is stopped.

        Args:
            timeout: The maximum time to wait, in seconds; None for no limit.
            stream: A stream to print while waiting, `stdout` or `stderr`; None for neither.
        """
        body = self.ended() if stream is None else self.emit_logs(stream)
        try:
            await asyncio.wait_for(body, timeout)
        except TimeoutError:
            self.timeout = True
            await in_thread(self.kill)

    async def ended(self) -> int:
        """Wait until the process exits.

        Returns:
            The exit code.
        """
        with _end_of(self.process) as ended:
            await _readable([ended])
        return self.process.wait()

    def kill(self, termination_timeout: float = 10.0) -> None:
        """Stop the process, which may stop its tasks first. Does nothing if it has exited.

        Args:
            termination_timeout: The seconds between SIGTERM and SIGKILL.
        """
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(termination_timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()  # its zygote notices, and kills the tasks
                self.process.wait()

    # ------------------------------------------------------------ output

    def output(self, stream: Stream) -> str:
        """Return the output that the process has written.

        Args:
            stream: `stdout` or `stderr`.

        Raises:
            InvalidInput: If the files were removed by `cleanup`.
        """
        with self._opened(stream) as file:
            return file.read().decode("utf-8", "replace")

    async def stream_log(
        self, stream: Stream, position: int | None = None
    ) -> AsyncIterator[tuple[int, str]]:
        """Yield the lines of a stream as they are written, until the process exits, each with the
        position after it, at which another call may continue.

        Args:
            stream: `stdout` or `stderr`.
            position: The position to start at; None for the beginning.
        """
        with self._opened(stream) as file:
            file.seek(position or 0)
            over = False
            rest = b""  # a character may be incomplete so far
            while not over:
                over = self.process.poll() is not None  # checked before the last read
                while line := file.readline(_PIECE):
                    rest += line
                    if rest.endswith(b"\n"):
                        yield file.tell(), rest[:-1].decode("utf-8", "replace")
                        rest = b""
                if not over:
                    await self._more()
            if rest:
                yield file.tell(), rest.decode("utf-8", "replace")

    async def _more(self) -> None:
        """Wait until the process exits, or until the next poll of the file is due."""
        try:
            await asyncio.wait_for(self.ended(), LOOK_AGAIN)
        except TimeoutError:
            return

    async def emit_logs(
        self, stream: Stream = "stdout", custom_logger: Callable[[str], object] | None = None
    ) -> None:
        """Pass each line of a stream to a function as it is written, until the process exits.

        Args:
            stream: `stdout` or `stderr`.
            custom_logger: Called with each line; None to print it to stdout.
        """
        async for _, line in self.stream_log(stream):
            if custom_logger is None:
                sys.stdout.write(line + "\n")
            else:
                custom_logger(line)

    def _opened(self, stream: Stream) -> BinaryIO:
        if stream not in self.log_files:
            raise InvalidInput(f"There is no stream {stream!r}: ask for stdout or stderr.")
        try:
            return open(self.log_files[stream], "rb")
        except FileNotFoundError as error:
            raise InvalidInput(
                f"The {stream} of this command was removed by cleanup(): read it before."
            ) from error

    def cleanup(self) -> None:
        """Remove the files of the output. Does not stop the process."""
        self._remove_files()


# Options whose value is a URL with a possible password, and their environment variables.
_URLS = {"--metadata": "AFLOW_DEFAULT_METADATA", "--queue": "AFLOW_QUEUE"}


def _without_urls(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the command line without options whose URL has a password, since all users of the
    machine could read it there, and environment variables that replace these options."""
    kept, variables = [], {}
    for argument in argv:
        option, _, value = argument.partition("=")
        if option in _URLS and sealed(value) is not value:
            variables[_URLS[option]] = value
        else:
            kept.append(argument)
    return kept, variables


# ------------------------------------------------------------ waiting for processes and pipes


@contextmanager
def _end_of(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """Yield a descriptor that becomes readable when the process exits."""
    fd = watch_child(process)
    try:
        yield fd
    finally:
        os.close(fd)


async def _readable(fds: Sequence[int]) -> None:
    """Wait until one of the descriptors is readable."""
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
    """A named pipe through which a command reports the run that it has started.

    Use it as a context manager, and pass `path` to the command.
    """

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="aflow-")
        self.path = Path(self._folder) / "attributes"
        os.mkfifo(self.path)
        # Nonblocking: there is no writer yet, and there may never be one.
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def __enter__(self) -> Announcement:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def wait(self, process: subprocess.Popen[bytes], at_most: float) -> bytes:
        """Return the report of the command; empty if it exits, or the timeout expires, without one.

        Args:
            process: The process of the command.
            at_most: The timeout, in seconds.
        """
        with _end_of(process) as ended:
            try:
                await asyncio.wait_for(_readable([self._fd, ended]), at_most)
            except TimeoutError:
                return b""
        return self.read()

    def read(self) -> bytes:
        """Return the report of the command; empty if there is none yet."""
        try:
            # A pipe writes it atomically, since it is small.
            return os.read(self._fd, _PIECE)
        except BlockingIOError:  # a writer has opened the pipe, but has not written yet
            return b""


# Keyword arguments to command lines, checked against the options of the command.

LAST_LINES = 20  # lines of output in the error of a failed command
# Metaflow's names of options that have another name here.
_ALIASES = {"decospecs": "with"}
# Linux limits an argument to 128 kB, and all of them with the environment to 2 MB.
_LONGEST_ARGUMENT = 100_000
_LONGEST_LINE = 1_000_000


class CleanedUp:
    """An object with files, which `cleanup` removes; as a context manager it does so on exit."""

    def cleanup(self) -> None:
        """Remove the files of the output. Does not stop processes."""
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
    """A command line, and values of parameters that do not fit into it and need a file."""

    argv: list[str]
    values: dict[str, Any]


class FlowCommands(CleanedUp):
    """The commands of a flow's file: the base class of Runner and Deployer.

    `show_output` copies the output of the commands, `env` adds environment variables, `cwd` is the
    working directory. All other keywords are options before the command. Raises FlowFileError if
    the file does not exist.
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
        self._commands: list[RunningCommand] = []  # those whose output has not been removed

    def _command(
        self,
        name: str,
        arguments: Sequence[str],
        given: Mapping[str, Any],
        folder: Path,
        *more: str,
    ) -> RunningCommand:
        """Start a command of the file. Values that do not fit into its command line are written to
        a file in the folder, which only this user can read."""
        argv, values = self._composed(name, arguments, given)
        if values:
            file = folder / "parameters.json"
            file.touch(0o600)
            file.write_text(json.dumps(values), "utf-8")
            argv.append(f"--parameters-file={file}")
        return RunningCommand([*program(self.flow_file), *argv, *more], self._cwd, self._env)

    def cleanup(self) -> None:
        """Remove the files of all output. Does not stop running processes."""
        while self._commands:
            self._commands.pop().cleanup()

    # ------------------------------------------------------------ the command line

    def _composed(
        self, command: str, arguments: Sequence[str], given: Mapping[str, Any]
    ) -> CommandArguments:
        """Return the arguments `[TOP] COMMAND [GIVEN] ARGUMENTS`; a command may have a subcommand.

        Raises FlowFileError if the file does not define a flow, and InvalidInput if an option does
        not exist, or has a value that cannot be represented."""
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
        """Return the options and arguments of a command, by each of their names."""
        known: dict[str, click.Parameter] = {}
        for flow in self._flows:
            group = FlowGroup(flow, self.flow_file)
            found: click.Command | None = group
            for argument in command.split():  # such as `step-functions create`
                assert isinstance(found, click.Group), "only commands that there are, are asked for"
                found = found.get_command(click.Context(found), argument)
            assert found is not None, "only commands that there are, are asked for"
            for each in found.params:
                known |= dict.fromkeys(_names(each), each)
        return known

    @cached_property
    def _flows(self) -> Sequence[type[FlowSpec]]:
        """The flows of the file, which is read when there are options to check."""
        return loading.look_into(Path(self.flow_file))


def _without_none(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _names(parameter: click.Parameter) -> Iterator[str]:
    long = [_plain(each) for each in parameter.opts]
    yield from long
    if parameter.multiple:  # Metaflow's name of --tag is `tags`
        yield from (f"{each}s" for each in long)
    yield from (old for old, new in _ALIASES.items() if new in long)


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower().strip("_")


# ------------------------------------------------------------ values


def _written(parameter: click.Parameter, name: str, value: Any) -> list[str]:
    """Return the arguments that pass this value to the option."""
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
    """Return the value for a file of parameters that corresponds to the arguments of `_written`."""
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
    """Join a list with the separator of the parameter, if it has one."""
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
