"""@exit_hook: call functions after the end of a run, each in a separate process.

The process is a new interpreter, which reads from stdin which function to call. A hook cannot
change the run, and the failure of one hook does not prevent the calls of the others.
"""

from __future__ import annotations

import importlib
import inspect
import os
import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgpack

from aflow import client
from aflow._core.process import binary, flush
from aflow._core.secret import revealed
from aflow._core.settings import withhold_secrets
from aflow.compat import metaflow
from aflow.errors import InvalidInput
from aflow.executors.local.zygote_start import command_of
from aflow.task.program import class_from, source_of, stands_for_metaflow

_MOST_IN_PIPE = 1 << 20  # bytes that are read from the pipe after the process has exited
_GRACE = 2.0  # seconds for a hook to exit if the program is interrupted
_LOOK_AGAIN = 50  # milliseconds between polls of a process that prints nothing

if TYPE_CHECKING:
    from aflow.flow.decorators.exit_hook import ExitHook, Hook
    from aflow.flow.definition import FlowDefinition


def run_hooks(
    definition: FlowDefinition,
    pathspec: str,
    *,
    succeeded: bool,
    metadata_url: str,
    log: Callable[[str], None],
) -> None:
    """Call the hooks of a run that has ended, one after the other. Their output is copied to
    stdout; `log` is called for each hook that could not be called or failed.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        pathspec: The pathspec of the run, `flow/run`.
        succeeded: Whether to call the hooks for success instead of those for failure.
        metadata_url: The URL of the metadata store.
        log: Called with one line of text.
    """
    for hook in hooks_of(definition, succeeded=succeeded):
        name = hook if isinstance(hook, str) else getattr(hook, "__qualname__", repr(hook))
        try:
            code = _in_a_process(_where(hook, definition), pathspec, metadata_url)
        except (OSError, InvalidInput) as error:
            log(f"The exit hook {name} could not be called: {error}")
        else:
            if code < 0:
                log(f"The exit hook {name} was killed by signal {-code}.")
            elif code:
                log(f"The exit hook {name} has failed (exit code {code}).")


def hooks_of(definition: FlowDefinition, *, succeeded: bool) -> list[Hook]:
    """Return the functions to call, or their names, in the order of the decorators.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        succeeded: Whether to return the hooks for success instead of those for failure.
    """
    hooks: list[ExitHook] = definition.flow_decorators("exit_hook")
    return [hook for each in hooks for hook in (each.on_success if succeeded else each.on_error)]


def _where(hook: Hook, definition: FlowDefinition) -> Any:
    """Return how the process finds the function: its source, or its dotted name if it is in another
    module.

    Raises InvalidInput if a name without a module is in none of the modules of the flow's classes.
    """
    if not isinstance(hook, str):
        return source_of(hook)
    for cls in definition.cls.__mro__:
        found = getattr(sys.modules.get(cls.__module__), hook, None)
        if callable(found):
            return source_of(found)
    if "." not in hook:
        raise InvalidInput(
            f"{definition.file} has no function {hook!r}: give the hook's name there, or "
            "module.function."
        )
    return hook


def _in_a_process(where: Any, pathspec: str, metadata_url: str) -> int:
    """Call the hook in a new process, wait for it, and return its exit code."""
    flush(sys.stdout)
    request = (where, pathspec, revealed(metadata_url), stands_for_metaflow(), sys.path)
    packed = msgpack.packb(request, unicode_errors="surrogatepass")
    process = subprocess.Popen(
        command_of("aflow.runs.exit_hooks"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None, "a pipe was asked for"
    assert process.stdout is not None, "a pipe was asked for"
    try:
        with process.stdout as output:
            try:
                process.stdin.write(packed)
                process.stdin.close()
            except BrokenPipeError:  # it has exited already: the exit code is returned below
                pass
            _copy(output.fileno(), process)
        return process.wait()
    except BaseException:  # the program is interrupted: stop the hook, too
        if process.stdin.closed:  # otherwise it would read an incomplete request
            with suppress(subprocess.TimeoutExpired):  # it may have received the same signal
                process.wait(_GRACE)
        process.kill()
        process.wait()
        raise
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()


def _copy(output: int, process: subprocess.Popen[bytes]) -> None:
    """Copy the output of the process to stdout as it arrives, until the process exits. Its children
    may keep the pipe open after that; they are not waited for."""
    readable = select.poll()
    readable.register(output, select.POLLIN)
    left = _MOST_IN_PIPE
    while left > 0:
        has_ended = process.poll() is not None
        if readable.poll(0 if has_ended else _LOOK_AGAIN):
            data = os.read(output, _MOST_IN_PIPE)
            if not data:
                return
            binary(sys.stdout).write(data)
            binary(sys.stdout).flush()
            left -= len(data) if has_ended else 0
        elif has_ended:
            return


# ------------------------------------------------------------ in the process


def main() -> None:
    """Call the hook that is specified on stdin."""
    withhold_secrets()  # hooks must not see them, like steps
    where, pathspec, metadata_url, is_metaflow, path = msgpack.unpackb(
        sys.stdin.buffer.read(), unicode_errors="surrogatepass"
    )
    sys.path[:] = path
    if is_metaflow:
        metaflow.install()
    client.metadata(metadata_url)
    run = client.Run(pathspec, _namespace_check=False)
    if isinstance(where, str):
        module, _, name = where.rpartition(".")
        hook = getattr(importlib.import_module(module), name)
    else:
        hook = class_from(where)
    call(hook, run)


def call(hook: Callable[..., object], run: object) -> None:
    """Call the hook, with the run if it takes an argument.

    Args:
        hook: The user's function; it gets the run as `run=` if it has such a parameter, else as its
            only required argument.
        run: The run, as an object of the client API.
    """
    parameters = inspect.signature(hook).parameters
    kinds = [each.kind for each in parameters.values()]
    if "run" in parameters or inspect.Parameter.VAR_KEYWORD in kinds:
        hook(run=run)
    elif any(each.default is each.empty for each in parameters.values()):
        hook(run)
    else:
        hook()


if __name__ == "__main__":
    main()
