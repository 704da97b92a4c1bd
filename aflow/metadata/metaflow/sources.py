"""Sources of Metaflow's records: a folder `.metaflow`, its metadata service, or the tables of that
service. All return rows in the format of the service's JSON."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from aflow._core import ids
from aflow._core.clock import shown_time
from aflow._core.private_folders import read_regular
from aflow.errors import InvalidName, MetadataUnavailable
from aflow.metadata.http import ServiceClient

if TYPE_CHECKING:
    from collections.abc import Callable

Row = dict[str, Any]
PAGE = 500  # runs per request
# Required fields of rows. Rows without them are ignored, being damaged or of another version.
_NAMES = ("flow_id", "run_number", "step_name", "task_id")
_RUN, _TASK = _NAMES[:2], _NAMES[2:]
_METADATA, _ARTIFACT = (*_TASK, "field_name", "value"), (*_TASK, "name")


class RecordSource(Protocol):
    """The rows of runs; None or an empty list if there are none. Raises MetadataUnavailable."""

    @property
    def url(self) -> str:
        """The URL for messages, without a password."""

    @property
    def folder(self) -> str | None:
        """The folder of values that are in no datastore with a URL, or None."""

    def flows(self) -> list[Row]:
        """Return all flows."""

    def runs(self, flow: str) -> list[Row]:
        """Return all runs of a flow.

        Args:
            flow: The flow's name, the first part of a pathspec.
        """

    def run(self, flow: str, run: str) -> Row | None:
        """Return one run.

        Args:
            flow: The flow's name, the first part of a pathspec.
            run: The run's name in Metaflow.
        """

    def steps(self, flow: str, run: str) -> list[Row]:
        """Return the steps of a run that have started.

        Args:
            flow: The flow's name, the first part of a pathspec.
            run: The run's name in Metaflow.
        """

    def tasks(self, flow: str, run: str, step: str) -> list[Row]:
        """Return the tasks of a step.

        Args:
            flow: The flow's name, the first part of a pathspec.
            run: The run's name in Metaflow.
            step: Any step of the run, including `_parameters`.
        """

    def metadata(self, flow: str, run: str, step: str, task: str) -> list[Row]:
        """Return the metadata of a task.

        Args:
            flow: The flow's name, the first part of a pathspec.
            run: The run's name in Metaflow.
            step: Any step of the run, including `_parameters`.
            task: The task's name in Metaflow.
        """

    def metadata_of_run(self, flow: str, run: str) -> list[Row]:
        """Return the metadata of all tasks of a run.

        Args:
            flow: The flow's name, the first part of a pathspec.
            run: The run's name in Metaflow.
        """

    def artifacts(self, flow: str, run: str) -> list[Row]:
        """Return the artifacts of all finished attempts of a run.

        Args:
            flow: The flow's name, the first part of a pathspec.
            run: The run's name in Metaflow.
        """

    def close(self) -> None:
        """Close connections."""


# ------------------------------------------------------------------ a folder


class FolderSource:
    """A folder `.metaflow`, as Metaflow's local metadata provider writes it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.url = f"local@{root}"
        self.folder: str | None = str(root)

    def flows(self) -> list[Row]:
        """See RecordSource."""
        return self._selves((), ids.flow_name)

    def runs(self, flow: str) -> list[Row]:
        """See RecordSource."""
        return self._selves((flow,), ids.run_id)

    def run(self, flow: str, run: str) -> Row | None:
        """See RecordSource."""
        return self._self(flow, run)

    def steps(self, flow: str, run: str) -> list[Row]:
        """See RecordSource."""
        return self._selves((flow, run), ids.step_name)

    def tasks(self, flow: str, run: str, step: str) -> list[Row]:
        """See RecordSource."""
        return self._selves((flow, run, step), ids.run_id)

    def _selves(self, place: tuple[str, ...], check: Callable[[str], object]) -> list[Row]:
        found = []
        for name in _names(self._root.joinpath(*place)):
            try:
                check(name)
            except InvalidName:
                continue
            found.append(self._self(*place, name))
        return sorted((row for row in found if row is not None), key=time_of)

    def _self(self, *place: str) -> Row | None:
        """Return the record of a flow, run, step or task, with the names taken from its path."""
        found = _json(self._root.joinpath(*place, "_meta", "_self.json"))
        return None if found is None else {**found, **dict(zip(_NAMES, place, strict=False))}

    def metadata(self, flow: str, run: str, step: str, task: str) -> list[Row]:
        """See RecordSource."""
        folder = self._root / flow / run / step / task / "_meta"
        names = (each for each in _names(folder) if each.startswith("sysmeta_"))
        rows = _usable((_json(folder / name) for name in names), "field_name", "value")
        return [{**row, "step_name": step, "task_id": task} for row in rows]

    def metadata_of_run(self, flow: str, run: str) -> list[Row]:
        """See RecordSource."""
        return [row for place in self._places(flow, run) for row in self.metadata(*place)]

    def artifacts(self, flow: str, run: str) -> list[Row]:
        """See RecordSource."""
        return [row for place in self._places(flow, run) for row in self._left(*place)]

    def _places(self, flow: str, run: str) -> Iterator[tuple[str, str, str, str]]:
        for step in self.steps(flow, run):
            for task in self.tasks(flow, run, step["step_name"]):
                yield flow, run, step["step_name"], str(task["task_id"])

    def _left(self, flow: str, run: str, step: str, task: str) -> list[Row]:
        folder = self._root / flow / run / step / task
        rows = []
        known: set[int] = set()
        for name in _names(folder):
            attempt = name.removesuffix(".data.json")
            record = _json(folder / name) if attempt != name and attempt.isdigit() else None
            if record is None:
                continue
            known.add(int(attempt))
            objects, infos = _mapping(record.get("objects")), _mapping(record.get("info"))
            for artifact, sha in objects.items():
                info = _mapping(infos.get(artifact))
                rows.append(
                    {
                        "step_name": step, "task_id": task, "attempt_id": int(attempt),
                        "name": artifact, "sha": sha, "ds_type": "local",
                        "location": f":root:{self._root}", "size": info.get("size"),
                        "content_type": info.get("encoding", "gzip+pickle-v2"),
                        "of_type": str(info.get("type", "")),
                    }
                )  # fmt: skip
        if known:
            return rows
        # Artifacts that are in S3: the folder contains only their records.
        records = (each for each in _names(folder / "_meta") if "_artifact_" in each)
        return _usable((_json(folder / "_meta" / each) for each in records), *_ARTIFACT)

    def close(self) -> None:
        """Do nothing: no files are open."""


def _names(folder: Path) -> list[str]:
    try:
        return sorted(each.name for each in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise MetadataUnavailable(
            f"Metaflow's records in {folder} cannot be read: {error.strerror}."
        ) from error


def _json(file: Path) -> Row | None:
    try:
        found = json.loads(read_regular(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):  # incomplete or damaged: only this record is omitted
        return None
    return found if isinstance(found, dict) else None


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _usable(rows: Iterable[object], *needed: str) -> list[Row]:
    """Return the rows that have these fields, oldest first; damaged rows are omitted."""
    found = [_mapping(row) for row in rows]
    return sorted((row for row in found if all(each in row for each in needed)), key=time_of)


def time_of(row: Row) -> float:
    """Return the creation time of a row in seconds since the epoch; 0 if it has none.

    Args:
        row: A row of any kind.
    """
    at = row.get("ts_epoch")
    return shown_time(at / 1000) if isinstance(at, int | float) else 0.0


def number_in(row: Row, name: str) -> int:
    """Return the number in a field of a row, which may be a string; 0 if there is none.

    Args:
        row: A row of any kind.
        name: The field to read.
    """
    text = str(row.get(name))
    return int(text) if text.isdecimal() else 0


# ------------------------------------------------------------------ a service


class ServiceSource(ServiceClient):
    """The client of Metaflow's metadata service."""

    not_there = "it is not a metadata service of Metaflow's"
    folder: str | None = None
    registered = ""
    """Query parameters of each request, such as those that exclude the own runs of a service."""

    def flows(self) -> list[Row]:
        """See RecordSource."""
        return self._list("/flows", "flow_id")

    def runs(self, flow: str) -> list[Row]:
        """See RecordSource."""
        found: list[Row] = []
        path = f"/flows/{_quoted(flow)}/runs"
        # Services before 2.5 do not support pages, and return all runs.
        response, rows = self._get(f"{path}?_limit={PAGE}")
        while True:
            found += _usable(rows or (), *_RUN)
            cursor = response.headers.get("X-Next-Cursor")
            if not cursor:
                return found
            response, rows = self._get(f"{path}?_limit={PAGE}&_cursor={_quoted(cursor)}")

    def run(self, flow: str, run: str) -> Row | None:
        """See RecordSource."""
        _, found = self._get(f"/flows/{_quoted(flow)}/runs/{_quoted(run)}")
        return next(iter(_usable([found], *_RUN)), None)

    def steps(self, flow: str, run: str) -> list[Row]:
        """See RecordSource."""
        return self._list(f"{_run(flow, run)}/steps", "step_name")

    def tasks(self, flow: str, run: str, step: str) -> list[Row]:
        """See RecordSource."""
        return self._list(f"{_run(flow, run)}/steps/{_quoted(step)}/tasks", *_TASK)

    def metadata(self, flow: str, run: str, step: str, task: str) -> list[Row]:
        """See RecordSource."""
        path = f"{_run(flow, run)}/steps/{_quoted(step)}/tasks/{_quoted(task)}/metadata"
        return self._list(path, "field_name", "value")

    def metadata_of_run(self, flow: str, run: str) -> list[Row]:
        """See RecordSource."""
        return self._of_all_tasks(flow, run, "metadata", _METADATA)

    def artifacts(self, flow: str, run: str) -> list[Row]:
        """See RecordSource."""
        return self._of_all_tasks(flow, run, "artifacts", _ARTIFACT)

    def _of_all_tasks(self, flow: str, run: str, what: str, needed: Iterable[str]) -> list[Row]:
        """Return the rows of all tasks of a run: in one request or, if the service has no such
        route, in one request per task."""
        _, found = self._get(f"{_run(flow, run)}/{what}")
        if isinstance(found, list):
            return _usable(found, *needed)
        rows: list[Row] = []
        for step in (str(row["step_name"]) for row in self.steps(flow, run)):
            for task in (str(row["task_id"]) for row in self.tasks(flow, run, step)):
                path = f"{_run(flow, run)}/steps/{_quoted(step)}/tasks/{_quoted(task)}/{what}"
                place = {"step_name": step, "task_id": task}
                rows += ({**place, **row} for row in self._list(path))
        return _usable(rows, *needed)

    def _list(self, path: str, *needed: str) -> list[Row]:
        _, found = self._get(path)
        return _usable(found, *needed) if isinstance(found, list) else []

    def _get(self, path: str) -> tuple[http.client.HTTPResponse, Any]:
        if self.registered:
            path += f"{'&' if '?' in path else '?'}{self.registered}"
        return super()._get(path)


def _run(flow: str, run: str) -> str:
    return f"/flows/{_quoted(flow)}/runs/{_quoted(run)}"


def _quoted(name: str) -> str:
    return quote(name, safe="")
