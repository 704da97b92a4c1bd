"""Copies of the results of tasks in Metaflow's format, which its client reads.

They are stored in the same datastore as the blobs, below `metaflow/`, and written on request, so
that runs which no such client reads have none. They may be deleted at any time; a later request
writes them again. The artifacts of steps are not unpickled here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping
from hashlib import sha1
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aflow._core.ids import PARAMETERS_STEP
from aflow._core.records import NamedTuple, dataclass, field
from aflow._core.settings import path_in
from aflow.flow.graph import Graph
from aflow.metadata.metaflow import layout
from aflow.scheduler.messages import FromTask, decode_inputs
from aflow.scheduler.states import TERMINAL_ATTEMPT_STATES, AttemptState
from aflow.storage import cards
from aflow.storage.artifacts import ArtifactReader, Manifest, digest
from aflow.storage.blobs import BlobStore
from aflow.storage.logs import STREAMS, read_chunks, read_log

if TYPE_CHECKING:
    from aflow.metadata.base import AttemptRecord, MetadataStore, RunRecord, TaskView
    from aflow.storage.artifacts import Entry
    from aflow.storage.base import Buffer, ObjectStore
    from aflow.storage.logs import LogRecord

FOLDER = "metaflow"
CARDS = "mf.cards"
LARGEST = 512 << 20
"""The maximum size of a copied artifact in bytes: copying takes as much memory."""

KEPT = 86400.0
"""The minimum number of seconds for which a copy is kept."""
_LATER = 3600.0  # additional seconds for values, since attempts may share one

_KINDS = {"file": "local", "s3": "s3"}


class Copy(NamedTuple):
    """An artifact and the location of its value for Metaflow's client. Either `entry` is set, for
    an artifact of the step, or `made`, the pickle of one that Metaflow's client expects."""

    name: str
    sha: str
    size: int
    type: str
    made: bytes | None = None
    entry: Entry | None = None


def _own_names(run: RunRecord, task: int) -> tuple[str, str]:
    return run.run, str(task)


@dataclass(slots=True)
class Copies:
    """The copies of the runs whose artifacts are in one datastore. `names` returns the names of a
    run and a task for Metaflow's client."""

    store: ObjectStore
    metadata: MetadataStore
    names: Callable[[RunRecord, int], tuple[str, str]] = _own_names
    _graphs: dict[int, bytes] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Metaflow's name of the kind of the datastore: `local` or `s3`."""
        return _KINDS[urlsplit(self.store.url).scheme]

    @property
    def root(self) -> str:
        """The root of the copies for Metaflow's client: a folder, or an S3 URL."""
        parts = urlsplit(self.store.url)
        place = f"s3://{parts.netloc}{parts.path}" if parts.scheme == "s3" else path_in(parts.path)
        return f"{place.rstrip('/')}/{FOLDER}"

    def _place(self, run: RunRecord, view: TaskView) -> tuple[str, str, str, str]:
        run_name, task_name = self.names(run, view.task.task)
        return run.flow, run_name, view.task.step, task_name

    # ------------------------------------------------------------ artifacts

    def artifacts(self, run: RunRecord, view: TaskView) -> list[Copy]:
        """Return the artifacts of a finished attempt, including inherited ones and those that
        Metaflow's client expects; none if it has not finished.

        Args:
            run: The run of the task; a missing graph is read from the metadata.
            view: The task, with the attempt.

        Raises:
            StorageError: If the manifest is damaged.
        """
        attempt = view.attempt
        if attempt is None or attempt.state not in TERMINAL_ATTEMPT_STATES:
            return []
        manifest = Manifest() if attempt.manifest is None else Manifest.decode(attempt.manifest)
        found = {
            name: Copy(name, digest(entry)[:40], entry.size, entry.type, entry=entry)
            for name, entry in self._left(run, view, manifest)
            if entry.size <= LARGEST
        }
        for name, (type_, data) in self._made(run, view, attempt, manifest).items():
            sha = sha1(data, usedforsecurity=False).hexdigest()
            found.setdefault(name, Copy(name, sha, len(data), type_, data))
        return [found[name] for name in sorted(found)]

    def _left(
        self, run: RunRecord, view: TaskView, manifest: Manifest
    ) -> Iterator[tuple[str, Entry]]:
        """Return the artifacts of the task; if it has none (after a failure), its input task's."""
        inputs = decode_inputs(view.task.inputs) if view.task.inputs else None
        if not manifest.artifacts and not manifest.inherited and isinstance(inputs, FromTask):
            data = self.metadata.manifests(run.key, [inputs.task]).get(inputs.task)
            manifest = manifest if data is None else Manifest.decode(data)
        return self._entries(run, manifest)

    def _entries(self, run: RunRecord, manifest: Manifest) -> Iterator[tuple[str, Entry]]:
        yield from manifest.artifacts.items()
        inherited = {task: names for task, names in manifest.inherited.items() if names}
        read = self.metadata.manifests(run.key, sorted(inherited)) if inherited else {}
        for task, data in read.items():
            entries = Manifest.decode(data).artifacts
            yield from ((name, entries[name]) for name in inherited[task] if name in entries)

    def _made(
        self, run: RunRecord, view: TaskView, attempt: AttemptRecord, manifest: Manifest
    ) -> Mapping[str, tuple[str, bytes]]:
        ended_well = attempt.state is AttemptState.SUCCEEDED
        found = {
            "name": ("str", layout.pickled(run.flow)),
            "_graph_info": ("dict", self._graph(run)),
        }
        if view.task.step == PARAMETERS_STEP:
            return found
        steps, foreach, splits = manifest.transition
        transition = ([*steps], foreach) if steps else None
        error = _exception(attempt, manifest)
        return {
            **found,
            "_success": ("bool", layout.pickled(ended_well and manifest.error is None)),
            "_task_ok": ("bool", layout.pickled(ended_well)),
            "_current_step": ("str", layout.pickled(view.task.step)),
            "_transition": ("tuple", layout.pickled(transition)),
            "_foreach_stack": ("list", layout.stack_pickle(manifest.stack)),
            "_foreach_var": ("str", layout.pickled(foreach)),
            "_foreach_num_splits": ("int", layout.pickled(splits)),
            "_exception": ("metaflow.exception.MetaflowExceptionWrapper", error),
        }

    def _graph(self, run: RunRecord) -> bytes:
        if run.key not in self._graphs:
            if len(self._graphs) > 100:
                self._graphs.clear()
            whole = run if run.graph else self.metadata.run(run.flow, run.run)
            graph = Graph.from_dict((whole or run).graph)
            names = run.settings.get("parameters") or ()
            self._graphs[run.key] = layout.pickled(layout.graph_info(graph, names))
        return self._graphs[run.key]

    def write(self, run: RunRecord, view: TaskView, copies: list[Copy]) -> None:
        """Write the values of artifacts to the locations that `artifacts` has returned. Idempotent:
        existing copies are kept.

        Args:
            run: The run of the task; its system tags name the version of Python.
            view: The task, with the attempt.
            copies: The result of `artifacts` for the attempt.

        Raises:
            StorageError: If a value is damaged, or the datastore does not respond.
        """
        attempt = view.attempt
        if attempt is None or not copies:
            return
        names = (*self._place(run, view), attempt.attempt)

        def own(what: str) -> str:
            return f"{FOLDER}/{layout.attempt_file(*names, what)}"

        if self.store.size(own("DONE.lock")) is not None:
            return
        blobs = BlobStore(self.store)
        for each in copies:
            name = f"{FOLDER}/{layout.data_name(run.flow, each.sha)}"
            if not self.store.touch(name):
                self.store.put(name, [layout.packed(_pickle(blobs, each))])
        info = {each.name: (each.sha, each.size, each.type) for each in copies}
        python = next((t[15:] for t in run.system_tags if t.startswith("python_version:")), "")
        artifacts = layout.described(info, self.kind, attempt.attempt, python)
        began = json.dumps({"time": attempt.started_at or view.task.created_at})
        for what, text in (("attempt.json", began), ("data.json", artifacts), ("DONE.lock", "")):
            self.store.put(own(what), [text.encode()])

    # ------------------------------------------------------------ logs and cards

    def write_logs(self, run: RunRecord, view: TaskView) -> None:
        """Write the attempt's output so far to the files that Metaflow's client reads.

        Args:
            run: The run of the task; its flow and name are part of the names of files.
            view: The task, with the attempt.

        Raises:
            StorageError: If the datastore does not respond.
        """
        attempt = view.attempt
        if attempt is None:
            return
        over = attempt.state in TERMINAL_ATTEMPT_STATES
        names = (*self._place(run, view), attempt.attempt)
        files = {
            stream: f"{FOLDER}/{layout.attempt_file(*names, f'task_{stream}.log')}"
            for stream in STREAMS
        }
        if over and all(self.store.size(name) is not None for name in files.values()):
            return
        records = [*self._records(run, view)]
        for stream, name in files.items():
            self.store.put(name, [layout.log_file(records, stream)])

    def write_cards(self, run: RunRecord, view: TaskView) -> None:
        """Write the task's cards to the files that Metaflow's client reads.

        Args:
            run: The run of the task; its flow and name are part of the names of files.
            view: The task; the attempt is not used.

        Raises:
            StorageError: If the datastore does not respond.
        """
        if view.task.origin:
            return  # the client reads the cards of the task whose result was reused
        names = (run.flow, run.run, view.task.step, view.task.task)
        folder = f"{FOLDER}/{CARDS}/{layout.card_folder(*self._place(run, view))}"
        wanted: dict[str, str] = {}
        for card in cards.listed(self.store, cards.prefix(*names)):
            # Hyphens separate the parts of a name, so the parts must not contain any.
            parts = [each.replace("-", "_") for each in (card.type, card.id, card.hash) if each]
            wanted[f"{folder}{'-'.join(parts)}.html"] = card.name
        there = set(self.store.list(folder)) if wanted else set()
        for copy, name in wanted.items():
            if copy not in there:
                self.store.put(copy, [self.store.get(name)])
        for copy in there - wanted.keys():
            self.store.delete(copy)

    def _records(self, run: RunRecord, view: TaskView) -> Iterator[LogRecord]:
        attempt = view.attempt
        if view.task.origin:  # the output is that of the task whose result was reused
            run_id, _, task = view.task.origin.split("/")
            origin = self.metadata.run(run.flow, run_id)
            found = origin and self.metadata.task(origin.key, int(task))
            return self._records(origin, found) if origin and found else iter(())
        if attempt is None:
            return iter(())
        if attempt.log is not None:
            return read_log(attempt.log)
        names = (run.flow, run.run, view.task.step, view.task.task, attempt.attempt)
        return read_log(read_chunks(self.store, *names, attempt.log_chunks))


def delete_logs(store: ObjectStore, flow: str) -> None:
    """Delete the copies of the output of all tasks of a flow, since some of it was redacted. Tasks
    of several runs may have copies of the same output.

    Args:
        store: The datastore that contains the copies.
        flow: The name of the flow.
    """
    ends = tuple(f".task_{stream}.log" for stream in STREAMS)
    for name in store.list(f"{FOLDER}/{flow}/"):
        if name.endswith(ends):
            store.delete(name)


def kept_for(
    store: ObjectStore, known: Container[tuple[str, str]], grace: float
) -> Iterator[tuple[str, float]]:
    """Yield the names of all copies, each with the seconds for which it is kept after it was last
    written or requested. The markers of complete copies come before the copies.

    Args:
        store: The datastore that contains the copies.
        known: Flow and id of the runs in the metadata; their copies are kept for KEPT seconds.
        grace: Seconds for which copies of other runs are kept.
    """
    flows = set()
    for name in store.list(f"{FOLDER}/"):
        _, *parts = name.split("/")
        flow, run = (parts[1], parts[3]) if parts[0] == CARDS else parts[:2]
        if run == "data":
            flows.add(flow)
        else:
            yield name, max(grace, KEPT) if (flow, run) in known else grace
    for flow in sorted(flows):
        for name in store.list(f"{FOLDER}/{flow}/data/"):
            yield name, max(grace, KEPT) + _LATER


def _pickle(blobs: BlobStore, copy: Copy) -> Iterator[Buffer]:
    if copy.entry is None:
        assert copy.made is not None, "it is the step's or ours"
        yield copy.made
        return
    entry = copy.entry
    data = ArtifactReader(blobs).pickle(copy.name, entry)
    apart = entry.blobs if entry.inline is not None else entry.blobs[1:]
    yield from layout.in_band(data, [blobs.get(*each) for each in apart])


def _exception(attempt: AttemptRecord, manifest: Manifest) -> bytes:
    """Return the pickle of the error of an attempt; of None if it succeeded, also by @catch, as in
    Metaflow."""
    if attempt.state is AttemptState.SUCCEEDED:
        return layout.pickled(None)
    error = manifest.error
    if error is None:
        return layout.exception_pickle(attempt.state.value, attempt.reason, attempt.reason)
    name = f"{error.get('module') or 'builtins'}.{error['type']}"
    return layout.exception_pickle(name, error["message"], error["traceback"])
