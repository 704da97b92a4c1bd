"""Reads the data of the web UI's pages from the metadata and the datastore, as plain values.

All calls block. Each is limited in time and size for runs of any size: task counts are maintained
by commits, tasks are read as columns or in pages, and artifacts as the previews in their manifests.
Nothing is unpickled.
"""

from __future__ import annotations

import ast
import difflib
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha1
from importlib.util import decode_source
from typing import TYPE_CHECKING, Any

from aflow._core.clock import LATEST
from aflow._core.ids import PARAMETERS_TASK
from aflow.errors import (
    AflowError,
    CodePackageError,
    CorruptBlob,
    InvalidInput,
    MetadataError,
    NotFound,
    ObjectNotFound,
    StorageError,
    StoreUnavailable,
)
from aflow.flow.graph import Graph
from aflow.metadata.base import FIRST_KEY, MetadataStore, RunRecord, TaskView
from aflow.metadata.metaflow.together import store_of_history
from aflow.runs.cache.explain import explain
from aflow.runs.log_tail import LogTail, TaskLine
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, decode_inputs
from aflow.scheduler.states import TaskState
from aflow.server.columns import ColumnsCache, StepFigures
from aflow.server.filters import RunFilter
from aflow.storage import cards
from aflow.storage.artifacts import ArtifactReader, Manifest, keys_of
from aflow.storage.blobs import BlobStore
from aflow.storage.codecs import gunzipped
from aflow.storage.factory import open_recorded_store
from aflow.task import code_package

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.storage.artifacts import Entry
    from aflow.storage.base import ObjectStore
    from aflow.storage.cards import StoredCard

_LOOKED_AT = 5_000  # runs that one request reads if the metadata store cannot filter them
_PAGE = 200
_PATIENCE = 0.025  # seconds after which a request reads no more runs
_RECENT = 100  # runs of a flow whose durations are shown
_GRID = 30  # runs of a flow whose steps are shown
_NAMED = 20  # tasks that are listed if many share one line
_LATEST = 10  # runs whose artifacts are always completed, regardless of _PATIENCE
_SHORTEST = 2  # characters from which tags and artifacts are completed, too
_FAILED = 5  # failed tasks whose errors are in the overview of a run
_SEARCHED = 200_000  # log lines that one request reads
_SAMPLED = 3  # tasks of a step whose artifacts are listed
_LARGEST_FILE = 1 << 20  # bytes of a source file that is shown
_LARGEST_VALUE = 64 << 20  # bytes of an artifact that can be downloaded
_COMPARED = 5
_NO_FIGURES = StepFigures(median=None, p95=None, longest=None, wait=None, retried=0, reused=0)
_SHAPE = ("shape", "dtype", "len", "min", "max")  # of a preview, in its one-line text
# Fields of records that have the same names in the API.
_OF_RUN = ("flow", "run", "state", "user", "created_at", "finished_at", "tags", "reason")
_OF_ATTEMPT = (
    *("attempt", "state", "started_at", "finished_at", "reason"),
    *("host", "pid", "max_rss", "cpu"),
)
_OF_STEP = ("created_at", "finished_at", "max_rss")
_OF_NODE = ("next", "kind", "foreach", "condition", "is_join", "doc", "line")
# The types of parameters whose values can be read from their repr.
_READERS: dict[str, Callable[[str], Any]] = {
    "int": int, "float": float, "str": ast.literal_eval, "bool": ast.literal_eval,
}  # fmt: skip


class Views:
    """Reads the data of pages. Thread-safe."""

    def __init__(self, metadata: MetadataStore, clock: Clock) -> None:
        self._metadata = metadata
        self._clock = clock
        self._columns = ColumnsCache(metadata, clock)
        self._stores: dict[str, ObjectStore] = {}

    # ------------------------------------------------------------ runs

    def run(self, flow: str, run: str) -> RunRecord:
        """Return the record of a run. Raises NotFound."""
        record = self._metadata.run(flow, run)
        if record is None:
            raise NotFound(f"There is no run {flow}/{run}.")
        return record

    def records(
        self, which: RunFilter, cursor: str | None, limit: int
    ) -> tuple[list[RunRecord], str | None]:
        """Return a page of the runs that match a filter, newest first, and the cursor of the next
        page.

        A page may be shorter than `limit` although more runs follow, because one request reads a
        limited number of runs.

        Args:
            which: The filter.
            cursor: The cursor of the previous page; None for the first page.
            limit: The maximum size of the page.

        Raises:
            InvalidInput: If the cursor is malformed.
        """
        after = None if cursor is None else position(cursor)
        if which.run is not None:
            return self._named(which, after, limit)
        give_up_at = self._clock.monotonic() + _PATIENCE
        found: list[RunRecord] = []
        looked_at = 0
        while True:
            # If the metadata store evaluates only a part of the filter, read more runs than needed.
            size = limit - len(found) if which.is_indexed else _PAGE
            page = self._metadata.runs(
                which.flow,
                tags=which.tags,
                states=which.states,
                users=which.users,
                since=which.since,
                until=which.until,
                after=after,
                limit=size,
            )
            for record in page:
                after, cursor = (record.created_at, record.key), cursor_after(record)
                looked_at += 1
                if self._matches(record, which):
                    found.append(record)
                # The next page continues after the last run that was read, even if this page is
                # short.
                if len(found) == limit or (
                    not which.is_indexed and self._clock.monotonic() > give_up_at
                ):
                    return found, cursor
            if len(page) < size:
                return found, None
            if looked_at >= _LOOKED_AT or self._clock.monotonic() > give_up_at:
                return found, cursor

    def _named(
        self, which: RunFilter, after: tuple[float, int] | None, limit: int
    ) -> tuple[list[RunRecord], str | None]:
        """Return a page of the runs with the id of the filter: at most one per flow."""
        flows = [which.flow] if which.flow else [name for name, _ in self._metadata.flows()]
        records = [self._metadata.run(flow, which.run or "") for flow in flows[:_LOOKED_AT]]
        meant = [
            run
            for run in records
            if run is not None
            and (after is None or (run.created_at, run.key) < after)
            and which.takes(run)
            and self._matches(run, which)
        ]
        meant.sort(key=lambda run: (run.created_at, run.key), reverse=True)
        return meant[:limit], cursor_after(meant[limit - 1]) if len(meant) > limit else None

    def _matches(self, run: RunRecord, which: RunFilter) -> bool:
        words = f"{run.flow}/{run.run} {run.user} {' '.join(run.tags)}".lower()
        if not all(text in words for text in which.text):
            return False
        if which.parameters:
            values = {each["name"]: each["value"] for each in self._parameters(run)}
            if not all(values.get(n) in (v, repr(v)) for n, v in which.parameters.items()):
                return False
        return not which.artifacts or set(which.artifacts) <= self._artifact_names(run)

    def _artifact_names(self, run: RunRecord) -> set[str]:
        """Return the names of the artifacts of a run, from the first task of each step."""
        names: set[str] = set()
        for step in self._metadata.progress(run.key):
            for view in self._metadata.tasks(run.key, step=step.step, limit=1):
                names.update(_manifest_of(view).artifacts)
        return names

    def summary(self, run: RunRecord) -> dict[str, Any]:
        """Return a run as shown in lists: with its parameters and the number of tasks in each
        state.

        Args:
            run: The run.
        """
        counts: Counter[TaskState] = Counter()
        for step in self._metadata.progress(run.key):
            counts.update(step.tasks)
        shown = ("name", "value", "default")
        return {
            **_listed(run),
            "tasks": counts,
            "parameters": [
                {field: each[field] for field in shown} for each in self._parameters(run)
            ],
        }

    def _parameters(self, run: RunRecord) -> list[dict[str, Any]]:
        """Return name, type, short text and default of each parameter."""
        names = run.settings.get("parameters") or []
        values = self._defined(run).artifacts if names else {}
        return [
            {
                "name": name,
                "type": values[name].type,
                "value": _short(values[name]),
                "default": default_of(run, name),
            }
            for name in names
            if name in values
        ]

    def _defined(self, run: RunRecord) -> Manifest:
        """Return the parameters, configs and class constants with which the run started."""
        found = self._metadata.manifests(run.key, [int(PARAMETERS_TASK)])
        return _decoded(found[int(PARAMETERS_TASK)]) if found else Manifest()

    # ------------------------------------------------------------ one run

    def overview(self, run: RunRecord) -> dict[str, Any]:
        """Return the overview of a run: its graph with a layout, statistics of its steps,
        parameters, configs, code, and the latest failed tasks.

        Args:
            run: The run.
        """
        graph = _graph_of(run)
        facts = run.settings.get("code") or {}
        parameters = self._parameters(run)
        names = {each["name"] for each in parameters}
        return {
            **self.summary(run),
            "version": run.version,
            "system_tags": list(run.system_tags),
            "origin_run": run.origin_run,
            "settings": {
                name: run.settings[name]
                for name in ("max_workers", "isolation", "script", "argv", "durability")
                if name in run.settings
            },
            "typed_parameters": parameters,
            # Configs and class constants.
            "constants": [
                each for each in _public(self._defined(run)) if each["name"] not in names
            ],
            "code": {k: facts[k] for k in ("key", "script", "size", "left_out") if k in facts},
            "graph": None if graph is None else _layout(graph),
            "doc": "" if graph is None else graph.doc,
            "steps": self._steps(run, graph),
            "failures": self._failures(run),
        }

    def parameters_again(self, run: RunRecord, changed: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters of a run, some of them changed, to run it again.

        Args:
            run: The run.
            changed: The new values, by name.

        Raises:
            InvalidInput: If an unchanged parameter is not a recorded plain value.
        """
        values = {}
        for each in self._parameters(run):
            name, kind, text = each["name"], each["type"], each["value"]
            if name in changed or kind == "NoneType":
                continue
            try:
                values[name] = _READERS[kind](text)
            except (KeyError, ValueError, SyntaxError) as error:  # of another type, or cut off
                raise InvalidInput(
                    f"The value of parameter {name} ({kind}) is not known here in full: give it, "
                    "or submit the flow with its file."
                ) from error
        return {**values, **changed}

    def _steps(self, run: RunRecord, graph: Graph | None) -> list[dict[str, Any]]:
        figures = self._columns.figures(run)
        progress = {step.step: step for step in self._metadata.progress(run.key)}
        written = [*graph.nodes] if graph else []
        places = {name: place for place, name in enumerate(written)}
        order = [*progress, *(name for name in written if name not in progress)]
        order.sort(key=lambda name: places.get(name, 0))
        found = []
        for name in order:
            step = progress.get(name)
            found.append(
                {
                    "step": name,
                    "tasks": step.tasks if step else {},
                    **{field: step and getattr(step, field) for field in _OF_STEP},
                    **figures.get(name, _NO_FIGURES)._asdict(),
                }
            )
        return found

    def _failures(self, run: RunRecord) -> list[dict[str, Any]]:
        failed = self._metadata.newest_tasks(run.key, states=[TaskState.FAILED], limit=_FAILED)
        return [
            {
                "task": view.task.task,
                "step": view.task.step,
                "reason": view.attempt.reason if view.attempt else "",
                "error": _error(_manifest_of(view)),
            }
            for view in failed
        ]

    def columns(self, run: RunRecord, since: int | None) -> bytes:
        """Return the tasks of a run as columns; see `server.columns`.

        Args:
            run: The run.
            since: The version that the client already has; None for none.
        """
        return self._columns.read(run, since)

    def trace(self, run: RunRecord) -> Iterator[str]:
        """Return a trace of the tasks of a run for Perfetto, as pieces of text.

        Args:
            run: The run.
        """
        with self._columns.fresh(run) as columns:
            copied = columns.copy()  # releases the lock: the client may be slow
        return copied.trace(f"{run.flow}/{run.run}", self._clock.now())

    def tasks(
        self,
        run: RunRecord,
        step: str | None,
        state: str | None,
        sort: str,
        offset: int,
        limit: int,
    ) -> dict[str, Any]:
        """Return a page of tasks, sorted and filtered, with the total number of matching tasks.

        Args:
            run: The run.
            step: The name of the step; None for all steps.
            state: The state of the tasks; None for all.
            sort: `task`, `started`, `duration` or `wait`, with `-` before it for the largest first.
            offset: The number of tasks before the page.
            limit: The maximum size of the page.
        """
        with self._columns.fresh(run) as columns:
            total, numbers = columns.page(step, state, sort, offset, limit)
        views = (self._metadata.task(run.key, number) for number in numbers)
        rows = [_task_row(view) for view in views if view is not None]
        return {"total": total, "tasks": rows}

    def artifacts(self, run: RunRecord) -> list[dict[str, Any]]:
        """Return the public artifacts of the first tasks of each step.

        Args:
            run: The run.
        """
        found = []
        for step in self._metadata.progress(run.key):
            views = self._metadata.tasks(run.key, step=step.step, limit=_SAMPLED)
            tasks = [
                {
                    "task": view.task.task,
                    "damaged": _damage(view),
                    "artifacts": _public(_manifest_of(view)),
                }
                for view in views
            ]
            found.append({"step": step.step, "count": sum(step.tasks.values()), "tasks": tasks})
        return found

    def explain(self, run: RunRecord) -> list[dict[str, Any]]:
        """Return why tasks ran or were reused. Tasks of a step with the same reason share one
        entry, which lists some of their numbers.

        Args:
            run: The run; its manifests are read from the datastore.
        """
        grouped: dict[tuple[str, str], list[int]] = {}
        for each in explain(self._metadata, BlobStore(self._store(run)), run):
            grouped.setdefault((each.step, each.text), []).append(each.task)
        return [
            {"step": step, "text": text, "count": len(tasks), "tasks": tasks[:_NAMED]}
            for (step, text), tasks in grouped.items()
        ]

    # ------------------------------------------------------------ one task

    def task(self, run: RunRecord, task: int) -> dict[str, Any]:
        """Return a task with its attempts, metadata, inputs, artifacts and cards.

        Args:
            run: The run that the task belongs to.
            task: The number of the task within its run.

        Raises:
            NotFound: If the run has no such task.
        """
        view = self._view(run, task)
        manifest = _manifest_of(view)
        inherited = [
            {"name": name, "task": origin}
            for origin, names in manifest.inherited.items()
            for name in names
            if not name.startswith("_")
        ]
        return {
            **_task_row(view),
            "pathspec": f"{run.flow}/{run.run}/{view.task.step}/{task}",
            "origin": f"{run.flow}/{view.task.origin}" if view.task.origin else None,
            "stack": [
                {"step": f.step, "variable": f.var, "index": f.index, "count": f.num_splits,
                 "value": f.value}
                for f in manifest.stack
            ],
            "tries": [
                {
                    **{name: getattr(each, name) for name in _OF_ATTEMPT},
                    "worker": each.handle,
                    "stdout": each.stdout_size,
                    "stderr": each.stderr_size,
                }
                for each in self._metadata.attempts(run.key, task)
            ],
            "inputs": self._inputs(run, view),
            "damaged": _damage(view),
            "error": _error(manifest),
            "artifacts": _public(manifest),
            "inherited": sorted(inherited, key=lambda each: str(each["name"])),
            "facts": [
                {"name": each.field, "value": str(each.value)[:1000], "at": each.created_at}
                for each in self._metadata.metadata(run.key, task)
                if len(each.value) < 10_000
            ],
            "cards": [_card_json(each) for each in self._cards(run, view)],
        }  # fmt: skip

    def _view(self, run: RunRecord, task: int) -> TaskView:
        view = self._metadata.task(run.key, task)
        if view is None:
            raise NotFound(f"There is no task {task} in {run.flow}/{run.run}.")
        return view

    def _inputs(self, run: RunRecord, view: TaskView) -> dict[str, Any]:
        """Return the input tasks of a task: their number, and some of them if there are many."""
        try:
            decoded = decode_inputs(view.task.inputs)
        except MetadataError:  # show the rest of the page
            decoded = None
        match decoded:
            case FromTask(task):
                tasks, count = [task], 1
            case FromBranches(branches):
                tasks, count = [*branches], len(branches)
            case FromForeach(split, steps, count):
                found = self._metadata.tasks(
                    run.key, split=split, steps=steps, limit=_NAMED, light=True
                )
                tasks = [each.task.task for each in found]
            case _:
                tasks, count = [], 0
        return {"count": count, "tasks": tasks[:_NAMED]}

    def _cards(self, run: RunRecord, view: TaskView) -> list[StoredCard]:
        folder = cards.prefix(run.flow, run.run, view.task.step, view.task.task)
        return cards.listed(self._store(run), folder)

    def cards(self, run: RunRecord) -> list[dict[str, Any]]:
        """Return the cards of a run, ordered by task.

        Args:
            run: The run.
        """
        found = []
        for card in cards.listed(self._store(run), cards.prefix(run.flow, run.run)):
            step, task = card.name.split("/")[-3:-1]
            found.append({"step": step, "task": int(task), **_card_json(card)})
        return sorted(found, key=lambda each: each["task"])

    def card(self, run: RunRecord, task: int, name: str) -> bytes:
        """Return the HTML page of a card.

        Args:
            run: The run that the task belongs to.
            task: The number of the task within its run.
            name: The name of the card, from `cards`.

        Raises:
            NotFound: If the task has no such card.
            CorruptBlob: If the page does not match its hash.
        """
        view = self._view(run, task)
        card = next((each for each in self._cards(run, view) if _base_of(each) == name), None)
        if card is None:
            raise NotFound(f"Task {task} of {run.flow}/{run.run} has no card {name[:100]!r}.")
        page = bytes(self._store(run).get(card.name))
        digest = sha1(page, usedforsecurity=False).hexdigest()
        if not run.settings.get("metaflow") and not digest.startswith(card.hash):
            raise CorruptBlob(f"The card {name[:100]} of task {task} is damaged.")
        return page

    def artifact(self, run: RunRecord, task: int, name: str) -> bytes:
        """Return the pickle of an artifact.

        Args:
            run: The run that the task belongs to.
            task: The number of the task within its run.
            name: The name of the artifact, public or private.

        Raises:
            NotFound: If the task has no such artifact.
            StorageError: If the manifest or the artifact is damaged.
            InvalidInput: If the artifact is too large, or consists of several parts.
        """
        view = self._view(run, task)
        if (damage := _damage(view)) is not None:
            raise StorageError(damage)
        entry = _manifest_of(view).artifacts.get(name)
        if entry is None:
            raise NotFound(f"Task {task} of {run.flow}/{run.run} has left no {name[:100]!r}.")
        if entry.size > _LARGEST_VALUE or (len(entry.blobs) + (entry.inline is not None)) > 1:
            raise InvalidInput(
                f"{name} is too large to be downloaded here: read it with the client, "
                f"Task('{run.flow}/{run.run}/...').data.{name}."
            )
        if entry.inline is not None:
            return entry.inline
        key, store = entry.blobs[0][0], self._store(run)
        if run.settings.get("metaflow"):
            # Metaflow's files of values are compressed, and their sizes are not always recorded.
            if (store.size(key) or 0) > _LARGEST_VALUE:
                raise InvalidInput(f"{name} is too large to be downloaded here.")
            return gunzipped(store.get(key), key, _LARGEST_VALUE)
        return bytes(ArtifactReader(BlobStore(store)).pickle(name, entry))

    # ------------------------------------------------------------ logs

    def log(
        self,
        run: RunRecord,
        step: str | None,
        task: int | None,
        after: str,
        limit: int,
        search: str = "",
        tail: int = 0,
    ) -> dict[str, Any]:
        """Return a page of the output of a run, a step or a task.

        `next` is the position at which the next page starts, `end` whether there are no more lines
        at present. With `search`, only matching lines are returned, and a limited number of lines
        is read. With `tail`, only the last lines are returned, and `skipped` is the number of lines
        before them.

        Args:
            run: The run.
            step: The name of the step; None for all steps.
            task: The number of the task; None for all.
            after: The position `next` of the previous page; empty for the start.
            limit: The maximum number of lines; ignored with `tail`.
            search: The text that lines must contain, ignoring case; empty for all lines.
            tail: The number of lines at the end to return; 0 for a page from `after` on.
        """
        log_tail = self.log_tail(run, step, task, after)
        pattern, looked_at, matching = search.lower(), 0, 0
        lines: deque[dict[str, Any]] = deque(maxlen=tail or None)
        end = True
        for line in log_tail.poll():
            looked_at += 1
            text = line.text.decode("utf-8", "replace")
            if pattern in text.lower():
                matching += 1
                lines.append({**line._asdict(), "text": text})
            if not tail and (len(lines) >= limit or looked_at >= _SEARCHED):
                end = False
                break
        page = {"lines": [*lines], "next": log_tail.position, "end": end, "looked_at": looked_at}
        return {**page, "skipped": matching - len(lines)} if tail else page

    def log_tail(self, run: RunRecord, step: str | None, task: int | None, after: str) -> LogTail:
        """Return a reader that follows the logs of a run, a step or a task.

        Args:
            run: The run; its settings name the datastore with the logs.
            step: The name of the step; None for all steps.
            task: The number of the task; None for all.
            after: The position after which to start; empty for the start.

        Raises:
            NotFound: If the record of the run does not name its datastore.
            InvalidInput: If `after` is malformed.
        """
        return LogTail(self._metadata, self._store(run), run, step, task, after)

    def log_text(self, run: RunRecord, step: str | None, task: int | None) -> Iterator[bytes]:
        """Return the complete output as pieces of text: plain lines for one task, else each line
        with its task as a prefix.

        Args:
            run: The run.
            step: The name of the step; None for all steps.
            task: The number of the task; None for all.
        """
        return self._log_parts(self.log_tail(run, step, task, ""), plain=task is not None)

    def _log_parts(self, log_tail: LogTail, *, plain: bool) -> Iterator[bytes]:
        part: list[bytes] = []
        size = 0
        for line in log_tail.poll():
            head = b"" if plain else f"[{line.step}/{line.task}] ".encode()
            part += [head, line.text, b"\n"]
            size += len(head) + len(line.text) + 1
            if size > 1 << 16:
                yield b"".join(part)
                part, size = [], 0
        yield b"".join(part)

    # ------------------------------------------------------------ code

    def code(self, run: RunRecord, against: RunRecord | None) -> dict[str, Any]:
        """Return the files of a run's code package and, if there is another run, the differences.

        Args:
            run: The run.
            against: The run to compare with, or None.
        """
        files = self._files(run)
        answer: dict[str, Any] = {
            "script": (run.settings.get("code") or {}).get("script"),
            "files": [{"name": name, "text": text} for name, text in files.items()],
        }
        if against is not None:
            before = self._files(against)
            names = sorted({*files, *before})
            diffs = [
                "".join(
                    difflib.unified_diff(
                        before.get(name, "").splitlines(keepends=True),
                        files.get(name, "").splitlines(keepends=True),
                        f"{against.flow}/{against.run}/{name}",
                        f"{run.flow}/{run.run}/{name}",
                    )
                )
                for name in names
                if before.get(name) != files.get(name)
            ]
            answer["diff"] = "\n".join(diffs)
        return answer

    def _files(self, run: RunRecord) -> dict[str, str]:
        facts = run.settings.get("code") or {}
        if run.settings.get("metaflow"):
            raise NotFound(
                f"The code of {run.flow}/{run.run} is a package of Metaflow's, which `metaflow "
                "code pull` reads."
            )
        if "key" not in facts:
            raise NotFound(
                f"The code of {run.flow}/{run.run} was not kept: "
                f"{facts.get('left_out', 'it was recorded by an older version.')}"
            )
        where = f"The code of {run.flow}/{run.run}"
        found = {}
        try:
            data = code_package.fetch(BlobStore(self._store(run)), facts["key"])
            with code_package.opened(data) as archive:
                for member in archive:
                    if member.isreg():
                        found[member.name] = _text_of(archive, member)
        except (CodePackageError, tarfile.TarError) as error:
            if isinstance(error.__cause__, StoreUnavailable):
                raise
            if isinstance(error.__cause__, ObjectNotFound):
                raise NotFound(f"{where} is not in the datastore any more.") from error
            raise StorageError(f"{where} is damaged in the datastore.") from error
        return found

    # ------------------------------------------------------------ flows

    def flows(self) -> list[dict[str, Any]]:
        """Return all flows, newest first, each with its latest run."""
        found = []
        for name, created_at in self._metadata.flows():
            latest = self._metadata.runs(name, limit=1)
            found.append(
                {
                    "flow": name,
                    "created_at": created_at,
                    "latest": self.summary(latest[0]) if latest else None,
                }
            )
        return found

    def flow(self, name: str) -> dict[str, Any]:
        """Return a flow with its latest runs and, for some of them, the duration of each step.

        Args:
            name: The name of the flow.

        Raises:
            NotFound: If the flow has no runs.
        """
        runs = self._metadata.runs(name, limit=_RECENT)
        if not runs:
            raise NotFound(f"There is no flow {name}.")
        grid = []
        for run in runs[:_GRID]:
            steps = {
                step.step: {
                    "tasks": step.tasks,
                    "seconds": (step.finished_at or step.created_at) - step.created_at,
                }
                for step in self._metadata.progress(run.key)
            }
            grid.append({"run": run.run, "state": run.state.value, "steps": steps})
        newest = self._metadata.run(name, runs[0].run)
        graph = None if newest is None else _graph_of(newest)
        return {
            "flow": name,
            "doc": graph.doc if graph else "",
            "graph": _layout(graph) if graph else None,
            "runs": [_listed(run) for run in runs],
            "grid": grid,
            "parameters": self._parameters(runs[0]),
            "code": runs[0].settings.get("code") or {},
        }

    # ------------------------------------------------------------ compare

    def compare(self, runs: Sequence[RunRecord]) -> dict[str, Any]:
        """Return a comparison of two to five runs: rows of parameters, configs, tags, code, digests
        of artifacts and durations of steps, each with a flag whether the runs differ.

        Args:
            runs: The records of two to five runs.

        Raises:
            InvalidInput: If there are fewer or more runs.
        """
        if not 2 <= len(runs) <= _COMPARED:
            raise InvalidInput(f"2 to {_COMPARED} runs can be compared, not {len(runs)}.")
        rows: list[dict[str, Any]] = []

        def add(section: str, name: str, values: list[Any], keys: list[Any] | None = None) -> None:
            compared = keys if keys is not None else values
            differ = any(each != compared[0] for each in compared)
            rows.append({"section": section, "name": name, "values": values, "differ": differ})

        def add_values(section: str, name: str, found: list[dict[str, Any] | None]) -> None:
            """Add a row of artifacts, which are compared by digest."""
            add(section, name, [e and e["text"] for e in found], [e and e["digest"] for e in found])
            rows[-1]["previews"] = [e and e["preview"] for e in found]

        add("run", "state", [run.state.value for run in runs])
        add("run", "user", [run.user for run in runs])
        add("run", "seconds", [
            None if run.finished_at is None else run.finished_at - run.created_at for run in runs
        ])  # fmt: skip
        add("run", "tags", [" ".join(run.tags) for run in runs])
        for tag in ("python_version", "aflow_version", "runtime"):
            add("run", tag, [_system_tag(run, tag) for run in runs])
        add("run", "code", [(run.settings.get("code") or {}).get("key", "")[:12] for run in runs])
        constants = [{each["name"]: each for each in _public(self._defined(run))} for run in runs]
        for name in sorted({name for each in constants for name in each}):
            add_values("parameters", name, [each.get(name) for each in constants])
            rows[-1]["defaults"] = [default_of(run, name) for run in runs]
        steps = [{s["step"]: s for s in self._steps(run, None)} for run in runs]
        for name in dict.fromkeys(name for each in steps for name in each):
            add(
                "durations",
                name,
                [each[name]["median"] if name in each else None for each in steps],
            )
        lefts = [self._left(run) for run in runs]
        for name in sorted({name for each in lefts for name in each}):
            add_values("artifacts", name, [each.get(name) for each in lefts])
        return {"runs": [_listed(run) for run in runs], "rows": rows}

    def _left(self, run: RunRecord) -> dict[str, dict[str, Any]]:
        """Return the artifacts of all steps with a single task, by `step.name`."""
        found = {}
        for step in self.artifacts(run):
            if step["count"] == 1:
                for each in step["tasks"][0]["artifacts"]:
                    found[f"{step['step']}.{each['name']}"] = each
        return found

    def suggest(self, prefix: str) -> list[dict[str, str]]:
        """Return completions for a search box: flows, their runs, the steps of a run and their
        artifacts, by prefix; tags and artifacts of the latest runs. After `tag:`, `user:` or
        `artifact:`, only names of that kind.

        Args:
            prefix: The text typed so far.
        """
        word, colon, begun = prefix.partition(":")
        if colon and word in ("tag", "user", "artifact"):
            return self._latest_named(word, begun, self._metadata.runs(None, limit=_PAGE))
        flow, slash, rest = prefix.partition("/")
        names = [
            name for name, _ in self._metadata.flows() if name.lower().startswith(flow.lower())
        ]
        if not slash:
            found = [{"kind": "flow", "text": name} for name in names[:_NAMED]]
            if len(prefix) >= _SHORTEST:
                latest = self._metadata.runs(None, limit=_PAGE)
                for word in ("tag", "artifact"):
                    found += self._latest_named(word, prefix, latest)[: _NAMED // 4]
            return found
        run, more, step = rest.partition("/")
        if more:
            record = self._metadata.run(flow, run) if flow in names else None
            return [] if record is None else self._parts_of(record, step)
        return [
            {"kind": "run", "text": f"{name}/{each.run}"}
            for name in names
            if name == flow
            for each in self._metadata.runs(name, limit=_PAGE)
            if each.run.startswith(run)
        ][:_NAMED]

    def _parts_of(self, run: RunRecord, begun: str) -> list[dict[str, str]]:
        """Return the steps of a run that match a prefix or, after `step/`, the artifacts of the
        step."""
        path = f"{run.flow}/{run.run}"
        step, slash, name = begun.partition("/")
        if not slash:
            steps = (each.step for each in self._metadata.progress(run.key))
            found = [each for each in steps if each.startswith(step)]
            return [{"kind": "step", "text": f"{path}/{each}"} for each in found[:_NAMED]]
        left: set[str] = set()
        for view in self._metadata.tasks(run.key, step=step, limit=1):
            left = {each for each in _manifest_of(view).artifacts if not each.startswith("_")}
        found = sorted(each for each in left if each.startswith(name))
        return [{"kind": "artifact", "text": f"{path}/{step}/{each}"} for each in found[:_NAMED]]

    def _latest_named(
        self, word: str, begun: str, latest: Sequence[RunRecord]
    ) -> list[dict[str, str]]:
        """Return tags, users or artifacts of the latest runs that match a prefix. Reading artifacts
        from manifests is limited in time."""
        give_up_at = self._clock.monotonic() + _PATIENCE
        known: dict[str, None] = {}
        for number, run in enumerate(latest):
            if word == "tag":
                known.update(dict.fromkeys(run.tags))
            elif word == "user":
                known[run.user] = None
            else:
                if number >= _LATEST and self._clock.monotonic() > give_up_at:
                    break
                known.update(dict.fromkeys(sorted(self._artifact_names(run))))
        found = [each for each in known if each.startswith(begun) and not each.startswith("_")]
        return [{"kind": word, "text": f"{word}:{each}"} for each in found[:_NAMED]]

    # ------------------------------------------------------------ stores

    def _store(self, run: RunRecord) -> ObjectStore:
        url = run.settings.get("storage")
        if not isinstance(url, str):
            raise NotFound(f"The record of {run.flow}/{run.run} does not say where its data are.")
        if url not in self._stores:
            theirs = store_of_history(self._metadata, url)
            self._stores[url] = theirs or open_recorded_store(url)
        return self._stores[url]


# ------------------------------------------------------------ plain values


def default_of(run: RunRecord, name: str) -> str | None:
    """Return the default of a parameter as a short text; None if it was not recorded, because it is
    not a plain value or the run is too old.

    Args:
        run: The run; its settings contain the defaults.
        name: The name of the parameter.
    """
    defaults = run.settings.get("defaults")
    found = defaults.get(name) if isinstance(defaults, dict) else None
    return found if isinstance(found, str) else None


def plain_run(run: RunRecord) -> dict[str, Any]:
    """Return a run in the JSON form of the API. Runs that Metaflow recorded are read-only.

    Args:
        run: The run; its key and its settings show whether Metaflow recorded it, and where.
    """
    place = run.settings.get("metaflow")
    return {
        "recorded_by": "aflow" if place is None else "metaflow",
        "read_from": place,
        "read_only": run.key >= FIRST_KEY,
        **{name: getattr(run, name) for name in _OF_RUN},
    }


def _listed(run: RunRecord) -> dict[str, Any]:
    """Return a run in the JSON form of lists: with the last heartbeat of its coordinator."""
    return {**plain_run(run), "heartbeat_at": run.heartbeat_at}


def plain_task(view: TaskView) -> dict[str, Any]:
    """Return a task in the JSON form of the API.

    Args:
        view: The task with its latest attempt; the manifest is not used.
    """
    last = view.attempt
    return {
        "task": view.task.task,
        "step": view.task.step,
        "state": view.state.value,
        "attempts": view.attempts,
        "started_at": last and last.started_at,
        "finished_at": last and last.finished_at,
        "reason": last.reason if last else "",
    }


def _task_row(view: TaskView) -> dict[str, Any]:
    last, stack = view.attempt, _manifest_of(view).stack
    return {
        **plain_task(view),
        "index": view.task.index,
        "item": stack[-1].value if stack else None,
        "created_at": view.task.created_at,
        "reused": bool(view.task.origin),
        "max_rss": last and last.max_rss,
        "host": last.host if last else "",
        "worker": last.handle if last else "",
    }


def plain_line(line: TaskLine) -> dict[str, Any]:
    """Return a line of a log in the JSON form of the API.

    Args:
        line: The line; invalid UTF-8 is replaced.
    """
    return {**line._asdict(), "text": line.text.decode("utf-8", "replace")}


def _card_json(card: StoredCard) -> dict[str, str]:
    return {"name": _base_of(card), "type": card.type, "id": card.id, "hash": card.hash}


def _base_of(card: StoredCard) -> str:
    """Return the name of a card in the API."""
    return card.name.rpartition("/")[2].removesuffix(".html")


def _manifest_of(view: TaskView) -> Manifest:
    return _decoded(None if view.attempt is None else view.attempt.manifest)


def _damage(view: TaskView) -> str | None:
    """Return a sentence why the artifacts of a task cannot be shown; None if they can."""
    data = view.attempt.manifest if view.attempt is not None else None
    try:
        if data:
            Manifest.decode(data)
    except AflowError as error:
        return f"What task {view.task.step}/{view.task.task} has left cannot be read: {error}"
    return None


def _decoded(data: bytes | None) -> Manifest:
    try:
        return Manifest.decode(data) if data else Manifest()
    except AflowError:  # a damaged record must not break the page of the run
        return Manifest()


def _public(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the public artifacts, by name."""
    named = sorted(manifest.artifacts.items())
    return [_artifact(name, entry) for name, entry in named if not name.startswith("_")]


def _artifact(name: str, entry: Entry) -> dict[str, Any]:
    key = keys_of(entry)[0] if entry.blobs else (entry.inline or b"").hex()
    return {
        "name": name,
        "type": entry.type,
        "size": entry.size,
        "preview": entry.preview,
        "text": _short(entry),
        "digest": key[:200],
    }


def _short(entry: Entry) -> str:
    preview = entry.preview
    if "repr" in preview:
        return str(preview["repr"])
    facts = ", ".join(f"{name} {preview[name]}" for name in _SHAPE if name in preview)
    return f"<{entry.type or 'value'}{' ' + facts if facts else ''}>"


def _error(manifest: Manifest) -> dict[str, Any] | None:
    error = manifest.error
    if not error:
        return None
    return {name: str(error.get(name, ""))[:20_000] for name in ("type", "message", "traceback")}


def _system_tag(run: RunRecord, name: str) -> str | None:
    return next((t.partition(":")[2] for t in run.system_tags if t.startswith(f"{name}:")), None)


def _text_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    if member.size > _LARGEST_FILE:
        return f"({member.size} bytes: too large to be shown)"
    file = archive.extractfile(member)
    data = file.read() if file is not None else b""
    try:
        return data.decode()
    except UnicodeDecodeError:
        with suppress(UnicodeDecodeError, SyntaxError):
            if member.name.endswith(".py"):  # may declare another encoding
                return decode_source(data)
        return f"({member.size} bytes that are not text)"


def cursor_after(run: RunRecord) -> str:
    """Return the cursor for a page of runs that starts after a run.

    Args:
        run: The last run that was read.
    """
    return f"{run.created_at!r}_{run.key}"


def position(cursor: str) -> tuple[float, int]:
    """Return the creation time and the key of the run in a cursor.

    Args:
        cursor: The cursor of a page of runs.

    Raises:
        InvalidInput: If the cursor is malformed.
    """
    at, _, key = cursor.partition("_")
    try:
        found = float(at), int(key)
        # Databases reject numbers outside of their range.
        if not (0 <= found[0] <= LATEST and 0 <= found[1] < 1 << 63):
            raise ValueError(cursor)
    except ValueError as error:
        raise InvalidInput(f"{cursor[:80]!r} is not a cursor of a list of runs.") from error
    return found


def _graph_of(run: RunRecord) -> Graph | None:
    """Return the graph of a run; None if it is missing or damaged."""
    try:
        graph = Graph.from_dict(run.graph) if run.graph else None
        return None if graph is None or not graph.levels() else graph
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _layout(graph: Graph) -> dict[str, Any]:
    """Return the nodes of a graph with coordinates: each is in a row below its predecessors."""
    levels = graph.levels()
    widest = max(map(len, levels))
    nodes = []
    for y, names in enumerate(levels):
        for place, name in enumerate(names):
            node = graph.nodes[name]
            nodes.append(
                {
                    "name": name,
                    "x": (widest - len(names)) / 2 + place,
                    "y": y,
                    "is_many": graph.has_many_tasks(name),
                    **{field: getattr(node, field) for field in _OF_NODE},
                }
            )
    return {"nodes": nodes, "width": widest, "height": len(levels)}
