"""Reuse results: before a driver launches a task, it searches for an equivalent earlier result.

There are two sources: a run that resumes another reuses the finished tasks of its origin
(`runs/resume.py`), and the cache (below) finds results computed from the same code and inputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

import msgpack

from aflow._core.ids import PARAMETERS_TASK
from aflow._core.records import NamedTuple
from aflow.flow.graph import Graph, Kind
from aflow.runs.cache.fingerprint import untellable
from aflow.runs.cache.key import input_tasks
from aflow.scheduler.messages import FromForeach, LaunchAttempt, Transition
from aflow.storage.artifacts import ForeachFrame, Manifest, digest
from aflow.storage.blobs import digest_of
from aflow.storage.items import ItemReader

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition
    from aflow.metadata.base import CachedTask, MetadataStore
    from aflow.runs.cache.fingerprint import Fingerprint
    from aflow.runs.cache.key import CodeFingerprints
    from aflow.storage.blobs import BlobStore


class ReusableResult(NamedTuple):
    """The result of a task of another run that can be the result of a task in this run.

    `origin` is `run/step/task` of the same flow. `manifest` is encoded and contains task numbers of
    this run; `transition` is the one in it. `cached` is True if the result comes from the cache,
    False if it comes from the origin of a resumed run.
    """

    origin: str
    manifest: bytes
    transition: Transition
    cached: bool = False


class ReusableResults(Protocol):
    """A source of reusable results. Calls must follow the order of events in the run."""

    def find(self, launch: LaunchAttempt) -> ReusableResult | None:
        """Return the result that a task may reuse before its first attempt; None if there is none.

        Args:
            launch: The command to launch the attempt.
        """

    def dismiss(self, launch: LaunchAttempt) -> None:
        """Note that a task runs, regardless of the result of `find` for it.

        Args:
            launch: The command to launch the attempt.
        """

    def cache_key(self, task: int) -> bytes | None:
        """Return the cache key of a task that was passed to `find`; None if it is not cached. Call
        at most once per task.

        Args:
            task: The number of the task within its run.
        """

    def settled(self, task: int, manifest: bytes) -> None:
        """Note that a task of this run has succeeded, by running or with a reused result.

        Args:
            task: The number of the task within its run.
            manifest: The encoded manifest of the task.
        """


class InTurn:
    """Several sources of reusable results; the first one that has a result takes precedence."""

    def __init__(self, *reusable: ReusableResults) -> None:
        self._all = reusable

    def find(self, launch: LaunchAttempt) -> ReusableResult | None:
        """Return the first result. All sources are queried, because all track the tasks."""
        found = [each.find(launch) for each in self._all]
        return next(filter(None, found), None)

    def dismiss(self, launch: LaunchAttempt) -> None:
        """Pass the call on to all sources."""
        for each in self._all:
            each.dismiss(launch)

    def cache_key(self, task: int) -> bytes | None:
        """Return the first cache key that is not None."""
        keys = [each.cache_key(task) for each in self._all]
        return next(filter(None, keys), None)

    def settled(self, task: int, manifest: bytes) -> None:
        """Pass the result on to all sources."""
        for each in self._all:
            each.settled(task, manifest)


def fits(graph: Graph, step: str, transition: Transition) -> bool:
    """Return whether a transition is possible for the step in the present graph of the flow.

    Args:
        graph: The steps of the flow and the transitions between them.
        step: The name of the step; False if the flow no longer has it.
        transition: The transition of the reused task.
    """
    node = graph.nodes.get(step)
    if node is None:
        return False
    if node.kind is Kind.SWITCH:
        return len(transition.steps) == 1 and transition.steps[0] in node.next
    counted = node.kind in (Kind.FOREACH, Kind.PARALLEL)
    return tuple(transition.steps) == node.next and counted is (transition.count is not None)


def blobs_in(manifest: Manifest) -> Iterable[tuple[str, str]]:
    """Yield each blob that the manifest itself refers to: what it contains, as text, and its key.

    Args:
        manifest: The manifest, with the type, size and blobs of each artifact.
    """
    for name, entry in manifest.artifacts.items():
        for key, _ in entry.blobs:
            yield f"artifact {name!r}", key
    for segment in (manifest.items or (0,))[1:]:
        if not isinstance(segment, bytes):
            yield "the items of its foreach", segment[0]


# The cache: a task does not run if an earlier task with the same code, inputs, parameters and
# environment has succeeded.
#
# The cache key of a task is a digest of the fingerprint of its step (`fingerprint.py`), its
# declared environment (`key.py`), the names and digests of all artifacts that it can read
# (including parameters and constants), and its item and index in a foreach. Other inputs (files,
# the clock, the network) are not part of the key: a step that depends on them must not be cached.
#
# Blobs of artifacts that the cached task set itself are shared by key; artifacts that it inherited
# are inherited from the tasks of this run, which have the same content.


_VERSION = 2


class Left(NamedTuple):
    """The result of a task of this run: the digests of the artifacts that it set, the names of the
    inherited ones by the task that set them, its foreach stack, and a digest of all artifacts."""

    own: dict[str, str]
    inherited: dict[int, list[str]]
    stack: tuple[ForeachFrame, ...]
    content: str


class ReusedGangs:
    """Decides for each gang of a run whether it is reused or runs, always as a whole: members start
    together and may wait for each other, so a part of a gang cannot run."""

    def __init__(self, graph: Graph) -> None:
        self._gangs = graph.gangs
        self._whole: dict[int, bool] = {}  # split of a gang -> whether all members are reusable

    def is_whole(self, launch: LaunchAttempt, is_reusable: Callable[[LaunchAttempt], bool]) -> bool:
        """Return whether all members of the task's gang are reusable; True if it has no gang.

        Args:
            launch: The command to launch the task. Members are asked about in order, once each.
            is_reusable: Whether the result of a member exists and fits; called once for each member
                of a gang.
        """
        split, index, count = launch.split, launch.index, launch.count
        if launch.step not in self._gangs or not launch.opens_index:
            return True
        if split is None or index is None or count is None:
            return True
        if split not in self._whole:
            members = (launch._replace(index=each) for each in range(count))
            self._whole[split] = all(map(is_reusable, members))
        return self._whole[split] if index + 1 < count else self._whole.pop(split)


class CachedTasks:
    """The cache as a source of reusable results.

    `steps` are the names of the steps to cache, `code` has the fingerprints of all steps. A step
    whose code reaches something that cannot be hashed is not cached.
    """

    def __init__(
        self,
        definition: FlowDefinition,
        steps: Collection[str],
        code: CodeFingerprints,
        metadata: MetadataStore,
        blobs: BlobStore,
        parameters: bytes,
    ) -> None:
        self._flow = definition.name
        self._graph = definition.graph
        self._code = {
            name: code_digest(code.steps[name], code.environments[name])
            for name in steps
            if not untellable(code.steps[name])
        }
        self._metadata = metadata
        self._blobs = blobs
        self._items = ItemReader(blobs, hold=True)
        self._left: dict[int, Left] = {}
        self._openers: dict[int, Manifest] = {}  # of the tasks that have opened a foreach
        self._places: dict[int, tuple[int, str, int]] = {}  # live task -> split, step, index
        self._branches: defaultdict[int, dict[tuple[str, int], int]] = defaultdict(dict)
        self._keys: dict[int, bytes] = {}
        self._gangs = ReusedGangs(self._graph)
        self.settled(PARAMETERS_TASK, parameters)

    # ------------------------------------------------------------ before a launch

    def find(self, launch: LaunchAttempt) -> ReusableResult | None:
        """Return the result of a task with the same key, if all its blobs still exist."""
        if launch.split is not None and launch.index is not None:
            self._places[launch.task] = (launch.split, launch.step, launch.index)
        code = self._code.get(launch.step)
        if code is None:
            return None
        key = self._keys[launch.task] = self._key(launch, code)
        if not self._gangs.is_whole(
            launch, lambda member: self._find(member, self._key(member, code)) is not None
        ):
            return None
        return self._find(launch, key)

    def _key(self, launch: LaunchAttempt, code: str) -> bytes:
        inputs = [self._left[task].content for task in self._input_tasks(launch)]
        return bytes.fromhex(_hash((_VERSION, launch.step, code, inputs, self._place(launch))))

    def _find(self, launch: LaunchAttempt, key: bytes) -> ReusableResult | None:
        found = self._metadata.cached(self._flow, key)
        return None if found is None else self._fit(found, launch)

    def _input_tasks(self, launch: LaunchAttempt) -> list[int]:
        if isinstance(launch.inputs, FromForeach):
            return self._foreach_tasks(launch.inputs)
        return [*input_tasks(launch.inputs)]

    def _foreach_tasks(self, inputs: FromForeach) -> list[int]:
        """Return the input tasks in the order of the items: the newest task of each item."""
        branches = self._branches[inputs.split]
        return [
            max(branches[step, index] for step in inputs.steps if (step, index) in branches)
            for index in range(inputs.count)
        ]

    def _place(self, launch: LaunchAttempt) -> tuple[int | None, str]:
        """Return the index of the task, and the digest of its item if it opens an iteration."""
        if not launch.opens_index or launch.index is None or launch.split is None:
            return launch.index, ""
        items = self._openers[launch.split].items
        if items is None:  # a gang has members, not items
            return launch.index, str(launch.count)
        return launch.index, self._items.read(items, launch.index).digest

    # ------------------------------------------------------------ what was found

    def _fit(self, found: CachedTask, launch: LaunchAttempt) -> ReusableResult | None:
        manifest = Manifest.decode(found.manifest)
        keys = {key for _, key in blobs_in(manifest)}
        if manifest.error is not None or not all(map(self._blobs.claim, keys)):
            return None
        transition = Transition(*manifest.transition)
        if not fits(self._graph, launch.step, transition):
            return None
        passed = set().union(*manifest.inherited.values())
        manifest.inherited = self._owners(launch, passed)
        manifest.stack = self._stack(launch, manifest)
        return ReusableResult(found.pathspec, manifest.encode(), transition, cached=True)

    def _owners(self, launch: LaunchAttempt, names: set[str]) -> dict[int, list[str]]:
        """Return the tasks of this run that set these inherited artifacts, with their names."""
        owners: defaultdict[int, list[str]] = defaultdict(list)
        missing = set(names)
        parameters = int(PARAMETERS_TASK)
        for task in (*self._input_tasks(launch), parameters):
            if not missing:
                break
            left = self._left[task]
            for owner, there in ((task, left.own), *left.inherited.items()):
                owners[owner] += sorted(missing.intersection(there))
                missing.difference_update(there)
        return {task: there for task, there in owners.items() if there}

    def _stack(self, launch: LaunchAttempt, manifest: Manifest) -> tuple[ForeachFrame, ...]:
        inputs = launch.inputs
        if type(inputs) is FromForeach:
            return self._left[inputs.split].stack
        above = self._left[self._input_tasks(launch)[0]].stack
        if not launch.opens_index or launch.split is None:
            return above
        return (*above, manifest.stack[-1]._replace(split=launch.split))

    # ------------------------------------------------------------ after an end

    def dismiss(self, launch: LaunchAttempt) -> None:
        """Do nothing: running tasks do not affect cache keys before they end."""

    def cache_key(self, task: int) -> bytes | None:
        """Return the key with which `find` queried the cache."""
        return self._keys.pop(task, None)

    def settled(self, task: int, manifest: bytes) -> None:
        """Note the result of the task, for the cache keys of the tasks that read it."""
        decoded = Manifest.decode(manifest)
        own = {name: digest(entry) for name, entry in decoded.artifacts.items()}
        everything = dict(own)
        for owner, names in decoded.inherited.items():
            everything.update((name, self._left[owner].own[name]) for name in names)
        content = _hash(sorted(everything.items()))
        self._left[task] = Left(own, decoded.inherited, decoded.stack, content)
        if decoded.transition[2] is not None or decoded.items is not None:
            self._openers[task] = decoded
        place = self._places.pop(task, None)
        if place is not None:
            split, step, index = place
            self._branches[split][step, index] = task


def cached_steps(definition: FlowDefinition) -> list[str]:
    """Return the names of the steps that are cached.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
    """
    found = []
    for name, step in definition.steps.items():
        cache = step.decorator("cache")
        if cache is not None and cache.enabled:
            found.append(name)
    return found


def code_digest(fingerprint: Fingerprint, environment: Mapping[str, str]) -> str:
    """Return one digest of a step's code and environment.

    Args:
        fingerprint: The digests of the step's code, by name.
        environment: The step's environment, from `environment_of`.
    """
    return _hash((sorted(fingerprint.items()), sorted(environment.items())))


def _hash(value: Iterable[object]) -> str:
    return digest_of([msgpack.packb(value, unicode_errors="surrogatepass")])
