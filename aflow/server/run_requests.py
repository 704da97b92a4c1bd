"""Validation of requests to start runs. The input is not trusted and never unpickled."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any, NamedTuple

from aflow._core import ids
from aflow.errors import InvalidInput
from aflow.flow.parameters import RESERVED

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}\Z")
_SCRIPT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*/)*[A-Za-z0-9_][A-Za-z0-9_. -]*\.py\Z")
_LONGEST_SCRIPT = 200
_LARGEST_WORD = 100_000  # bytes: operating systems reject arguments of 128 kB
_LARGEST_IN_ALL = 1_000_000
_FIELDS = frozenset({"package", "script", "flow", "parameters", "tags", "max_workers"})
# Options of the command `run`: a parameter must not be able to set them.
_OPTIONS = """
    aflow-recover aflow-forecast aflow-argv branch cache compat config config-value datastore
    datastore-root dry-run environment event-logger executor metadata mode monitor no-cache
    no-pylint package-suffixes parameters-file production pylint queue quiet trigger version
"""
_OF_RESUME = frozenset(
    ("clone-only", "no-clone-only", "no-reentrant", "origin-run-id", "reentrant", "rerun-missing",
     "resume-identifier")
)  # fmt: skip
_TAKEN = {name.replace("_", "-").lower() for name in (*RESERVED, *_OPTIONS.split())}


class RunRequest(NamedTuple):
    """A validated request to start a run.

    `package` is the key of the code package and `script` the flow file in it. `argv` are the
    arguments of the command line after the file. The arguments for `parameters` are separate
    because they may be secret. `flow` selects one of several flows in the file; `command` is `run`
    or `resume`."""

    package: str
    script: str
    flow: str | None
    argv: tuple[str, ...]
    command: str = "run"
    parameters: tuple[str, ...] = ()

    def encode(self, run: str) -> bytes:
        """Return the request as JSON, to recover the run. Parameters are left out: the run records
        them.

        Args:
            run: The id of the started run.
        """
        fields = {**self._asdict(), "run": run}
        del fields["parameters"]
        return json.dumps(fields).encode()

    @staticmethod
    def decode(data: bytes) -> RunRequest:
        """Return the decoded run request.

        Args:
            data: The result of `encode`, as stored in the datastore.

        Raises:
            InvalidInput: If the data is damaged, or written by a later version.
        """
        fields = fields_of(data)
        argv, command = fields.get("argv"), fields.get("command")
        if not isinstance(argv, list) or not all(isinstance(each, str) for each in argv):
            raise InvalidInput("'argv' has to be a list of texts.")
        if command not in ("run", "resume"):
            raise InvalidInput("'command' has to be run or resume.")
        return _request(fields, tuple(argv), command)


def fields_of(body: bytes) -> dict[str, Any]:
    """Return the fields of a body, which must be a JSON object.

    Args:
        body: The bytes sent by the client.

    Raises:
        InvalidInput: If the body is not a JSON object, or contains a name twice.
    """
    try:
        fields = json.loads(body, parse_constant=_no_number, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("The body is not valid JSON.") from error
    if not isinstance(fields, dict):
        raise InvalidInput("The body has to be a JSON object.")
    return fields


def check_names(fields: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Check that all fields are known: a misspelt one must not be ignored silently.

    Args:
        fields: The fields, by name.
        known: The known names.
        where: The object, for the error message: `of a run`.

    Raises:
        InvalidInput: If a field is unknown.
    """
    unknown = sorted(fields.keys() - set(known))
    if unknown:
        raise InvalidInput(f"There is no field {unknown[0][:80]!r} {where}.")


def _no_number(word: str) -> None:
    raise ValueError(word)  # NaN is not valid JSON


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Other parsers might use the other value of a duplicate name.
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def order_of(fields: Mapping[str, Any], more: Sequence[str] = ()) -> RunRequest:
    """Return the validated run request with these fields.

    Args:
        fields: The fields, by name.
        more: Additional arguments for the command line.

    Raises:
        InvalidInput: If a field is unknown or invalid.
    """
    check_names(fields, _FIELDS, "of a run")
    parameters = _parameters(fields.get("parameters", {}))
    argv = (
        *_tags(fields.get("tags", [])),
        *_workers(fields.get("max_workers")),
        *more,
    )
    return _request(fields, argv, parameters=parameters)


def resume_order(
    package: str,
    script: str,
    flow: str,
    run: str,
    step: str | None,
    parameters: object = None,
    max_workers: object = None,
) -> RunRequest:
    """Return the validated request to resume a run.

    Args:
        package: The key of the code package.
        script: The name of the flow's file in the code package.
        flow: The name of the flow.
        run: The id of the run to resume.
        step: The step from which tasks are run again; None to continue at the failed tasks.
        parameters: The unchecked parameters of the request.
        max_workers: The unchecked limit of concurrent tasks.

    Raises:
        InvalidInput: If a parameter or the limit is invalid.
    """
    changed = _parameters({} if parameters is None else parameters, _TAKEN | _OF_RESUME)
    argv = [
        "--origin-run-id",
        ids.run_id(run),
        *_workers(max_workers),
        *([] if step is None else [ids.step_name(step)]),
    ]
    named = {"package": package, "script": script, "flow": flow}
    return _request(named, tuple(argv), "resume", changed)


def _request(
    fields: Mapping[str, Any],
    argv: tuple[str, ...],
    command: str = "run",
    parameters: tuple[str, ...] = (),
) -> RunRequest:
    """Return a request with the package, the script and the flow in `fields`, which are checked."""
    package, flow = fields.get("package", ""), fields.get("flow")
    name = None if flow is None else ids.flow_name(flow)
    script = _script(fields.get("script"))
    return RunRequest(
        package=ids.blob_key(package),
        script=script,
        flow=name,
        argv=argv,
        command=command,
        parameters=parameters,
    )


def _script(value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_SCRIPT or not _SCRIPT.match(value):
        raise InvalidInput("'script' has to name the flow file in the package, as in flow.py.")
    return value


def _parameters(values: object, taken: Set[str] = _TAKEN) -> tuple[str, ...]:
    """Return the arguments for parameters, none of which may have the name of an option."""
    if not isinstance(values, dict):
        raise InvalidInput("'parameters' has to be an object: values by name.")
    argv = []
    for name, value in values.items():
        if not _NAME.match(name) or name.replace("_", "-").lower() in taken:
            raise InvalidInput(f"{name[:80]!r} cannot be the name of a parameter.")
        text = value if isinstance(value, str) else json.dumps(value)
        argv.append(f"--{name}={_word(text, f'The value of parameter {name}')}")
    if sum(map(len, argv)) > _LARGEST_IN_ALL:
        raise InvalidInput("The parameters are too long: 1 MB is the most in all.")
    return tuple(argv)


def _tags(tags: object) -> list[str]:
    if not isinstance(tags, list):
        raise InvalidInput(f"'tags' has to be a list of at most {ids.MAX_TAGS} texts.")
    return [f"--tag={_word(each, 'A tag')}" for each in ids.tags(tags)]


def _workers(limit: Any) -> list[str]:
    if limit is None:
        return []
    if type(limit) is not int or not 1 <= limit <= 10_000:
        raise InvalidInput("'max_workers' has to be a whole number from 1 to 10000.")
    return [f"--max-workers={limit}"]


def _word(text: str, what: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{what} is not valid UTF-8.") from error
    if "\0" in text or size > _LARGEST_WORD:
        raise InvalidInput(f"{what} is too long (100 kB is the most), or holds a NUL.")
    return text
