"""The layout of Metaflow's datastore, and the formats of its files. Pure functions.

Values are compressed pickles in `<flow>/data`, named by a digest. The files of an attempt are named
`<flow>/<run>/<step>/<task>/<attempt>.<what>`. A line of a log file is
`[MFLOG|0|<time>Z|<source>|<id>]<text>`. aflow stores large buffers of a pickle out of band;
Metaflow's pickles contain them.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import pickletools
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aflow.errors import CorruptBlob
from aflow.flow.graph import node_outline, structure
from aflow.storage.logs import LogRecord

if TYPE_CHECKING:
    from aflow.flow.graph import Graph
    from aflow.storage.artifacts import ForeachFrame
    from aflow.storage.base import Buffer

ENCODING = "gzip+pickle-v4"  # readable by Metaflow 2.0 and later
SOURCES = "runtime", "task"  # of the lines of a log
_LEVEL = 3  # of the compression, as in Metaflow
_LINE = re.compile(rb"(?:\[!)?\[MFLOG\|0\|(.+?)Z\|(.+?)\|(.+?)\](.*)", re.DOTALL)
_BYTES, _BYTEARRAY = b"\x8e", b"\x96"  # opcodes with a length of eight bytes
_READ_ONLY = 0x98


def data_name(flow: str, sha: str) -> str:
    """Return the name of the file of a value.

    Args:
        flow: The flow's name, the first part of a pathspec.
        sha: The digest that identifies the value, 40 hexadecimal digits.
    """
    return f"{flow}/data/{sha[:2]}/{sha}"


def attempt_file(flow: str, run: str, step: str, task: int | str, attempt: int, what: str) -> str:
    """Return the name of a file of an attempt.

    Args:
        flow: The flow's name, the first part of a pathspec.
        run: The run's name in Metaflow.
        step: The step's name.
        task: The task's name in Metaflow.
        attempt: The number of the attempt, from 0.
        what: The kind of file: `data.json`, `DONE.lock`, `task_stdout.log`...
    """
    return f"{flow}/{run}/{step}/{task}/{attempt}.{what}"


def card_folder(flow: str, run: str, step: str, task: int | str) -> str:
    """Return the folder of a task's cards, below the root of cards, with a slash at the end.

    Args:
        flow: The flow's name, the first part of a pathspec.
        run: The run's name in Metaflow.
        step: The step's name.
        task: The task's name in Metaflow.
    """
    return f"{flow}/runs/{run}/steps/{step}/tasks/{task}/cards/"


# ------------------------------------------------------------------ values


def packed(parts: Iterable[Buffer]) -> bytes:
    """Return the content of the file of a value: the pickle compressed by gzip, without a
    timestamp.

    Args:
        parts: Consecutive parts of the pickle.
    """
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=_LEVEL, mtime=0) as file:
        for part in parts:
            file.write(part)
    return out.getvalue()


def in_band(data: Buffer, buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    """Yield the parts of a pickle with its out-of-band buffers moved into it. No code is executed.

    Args:
        data: A pickle of protocol 5, without its buffers.
        buffers: Its buffers, in order.

    Raises:
        CorruptBlob: If the data is not a pickle with this number of buffers.
    """
    if not buffers:
        yield data
        return
    view, left, last = memoryview(data), [*buffers], 0
    try:
        for code, _, at in pickletools.genops(bytes(data)):
            assert at is not None, "a pickle of bytes has places"
            if code.name == "FRAME":  # omitted, since its length is no longer correct
                yield view[last:at]
                last = at + 9
            elif code.name == "NEXT_BUFFER":
                yield view[last:at]
                buffer = memoryview(left.pop(0)).cast("B")
                read_only = view[at + 1] == _READ_ONLY
                yield (_BYTES if read_only else _BYTEARRAY) + struct.pack("<Q", buffer.nbytes)
                yield buffer
                last = at + 1 + read_only
    except (ValueError, IndexError) as error:
        raise CorruptBlob(f"An artifact is not a pickle that has its buffers: {error}.") from error
    yield view[last:]


def pickled(value: object) -> bytes:
    """Return the pickle of a value of builtin types.

    Args:
        value: A value that a Python process without aflow can load.
    """
    return pickle.dumps(value, 4)


def exception_pickle(type_: str, message: str, traceback: str) -> bytes:
    """Return the pickle of an exception as Metaflow stores it; the class need not be importable.

    Args:
        type_: The qualified name of the exception's class.
        message: The text of the exception.
        traceback: The formatted traceback, possibly empty.
    """
    state = {"exception": message, "type": type_, "stacktrace": traceback}
    made = b"cmetaflow.exception\nMetaflowExceptionWrapper\n" + _inner((None,)) + b"R"
    return b"\x80\x02" + made + _inner(state) + b"b."


def stack_pickle(stack: Iterable[ForeachFrame]) -> bytes:
    """Return the pickle of the foreach stack of a task.

    Args:
        stack: The frames, the outermost first.
    """
    frames = (
        b"c__main__\nForeachFrame\n"
        + _inner((each.step, each.var, each.num_splits, each.index, each.value))
        + b"\x81"
        for each in stack
    )
    return b"\x80\x02](" + b"".join(frames) + b"e."


def _inner(value: object) -> bytes:
    """Return the pickle of a plain value, without header and end, for use inside another pickle."""
    return pickle.dumps(value, 2)[2:-1]


# ------------------------------------------------------------------ the graph


def graph_info(graph: Graph, parameters: Iterable[str]) -> dict[str, Any]:
    """Return the artifact `_graph_info` of a flow.

    Args:
        graph: The graph of the flow.
        parameters: The names of the flow's parameters.
    """
    steps = {
        name: {**node_outline(node, graph), "decorators": [], "node_info": {}}
        for name, node in graph.nodes.items()
    }
    return {
        "file": next((node.file for node in graph.nodes.values() if node.file), ""),
        "parameters": [{"name": name, "type": "Parameter"} for name in parameters],
        "constants": [],
        "steps": steps,
        "graph_structure": structure(graph),
        "doc": graph.doc,
        "decorators": [],
        "extensions": {},
        "start_step": graph.start,
        "end_step": graph.end,
    }


# ------------------------------------------------------------------ logs


def log_file(records: Iterable[LogRecord], stream: str) -> bytes:
    """Return the log file of one stream of an attempt.

    Args:
        records: The records of the log, in order; those of other streams are ignored.
        stream: `stdout` or `stderr`.
    """
    lines: list[bytes] = []
    pieces: list[bytes] = []
    for number, record in enumerate(each for each in records if each.stream == stream):
        pieces.append(record.text)
        if record.whole:
            at = datetime.fromtimestamp(record.at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
            lines.append(b"[MFLOG|0|%bZ|task|%032x]%b\n" % (at.encode(), number, b"".join(pieces)))
            pieces.clear()
    return b"".join(lines)


def log_records(data: Buffer, stream: str) -> Iterator[LogRecord]:
    """Yield the records of a log file; a line without a header gets the time of the previous line.

    Args:
        data: The content of the file.
        stream: `stdout` or `stderr`.
    """
    at = 0.0
    lines = bytes(data).split(b"\n")
    if not lines[-1]:
        lines.pop()
    for line in lines:
        found = _LINE.match(line)
        if found is None:
            yield LogRecord(at, stream, line)
            continue
        try:
            at = datetime.fromisoformat(found[1].decode()).replace(tzinfo=UTC).timestamp()
        except ValueError:  # shown with the time of the previous line
            pass
        yield LogRecord(at, stream, found[4])


def described(
    info: Mapping[str, tuple[str, int, str]], kind: str, attempt: int, python: str
) -> str:
    """Return the content of `data.json`, which lists the artifacts of an attempt.

    Args:
        info: Digest (40 hexadecimal digits), size in bytes and type of each artifact, by name.
        kind: The kind of datastore: `local` or `s3`.
        attempt: The number of the attempt, from 0.
        python: The version of Python that ran the attempt, such as `3.12.1`.
    """
    return json.dumps(
        {
            "datastore": kind,
            "version": "1.0",
            "attempt": attempt,
            "python_version": python,
            "objects": {name: sha for name, (sha, _, _) in info.items()},
            "info": {
                name: {"size": size, "type": f"<class '{type_}'>", "encoding": ENCODING}
                for name, (_, size, type_) in info.items()
            },
        }
    )
