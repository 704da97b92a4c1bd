"""Results that need not be computed again: what a driver asks before it launches a task.

Two things give them: a resumed run, which reuses what its origin has finished (`runs/resume.py`),
and the cache (below), which knows what was computed from the same code and inputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
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
    """The result of a task of another run, fit to be the result of one in this run.

    `origin` is `run/step/task` of the same flow. `manifest` is encoded, and refers to tasks by
    their numbers in this run; `transition` is what it says. `cached` tells the cache from a resume.
    """

    origin: str
    manifest: bytes
    transition: Transition
    cached: bool = False


class ReusableResults(Protocol):
    """A source of reusable results. Calls are made in the order in which the run goes on."""

    def find(self, launch: LaunchAttempt) -> ReusableResult | None:
        """Return the result that a task, about to be launched for the first time, may reuse.

        Args:
            launch: The command to launch the attempt.
        """

    def dismiss(self, launch: LaunchAttempt) -> None:
        """Take note that a task runs, whatever `find` has returned for it.

        Args:
            launch: The command to launch the attempt.
        """

    def cache_key(self, task: int) -> bytes | None:
        """Return the key under which the cache will find this task, which `find` has seen; None if
        it will not.

        Args:
            task: The number of the task within its run.
        """

    def settled(self, task: int, manifest: bytes) -> None:
        """A task of this run has succeeded: launched, or by what `find` gave.

        Args:
            task: The number of the task within its run.
            manifest: The manifest, as its bytes are stored.
        """


class InTurn:
    """Several that know results, asked in turn: the first answer counts."""

    def __init__(self, *reusable: ReusableResults) -> None:
        self._all = reusable

    def find(self, launch: LaunchAttempt) -> ReusableResult | None:
        """The first result that is found; all are asked, since all keep account."""
        found = [each.find(launch) for each in self._all]
        return next(filter(None, found), None)

    def dismiss(self, launch: LaunchAttempt) -> None:
        """Report it to all of them."""
        for each in self._all:
            each.dismiss(launch)

    def cache_key(self, task: int) -> bytes | None:
        """The first key that there is."""
        keys = [each.cache_key(task) for each in self._all]
        return next(filter(None, keys), None)

    def settled(self, task: int, manifest: bytes) -> None:
        """Report the result to all of them."""
        for each in self._all:
            each.settled(task, manifest)


def fits(graph: Graph, step: str, transition: Transition) -> bool:
    """Return whether the step, as the flow has it now, may have gone on like this.

    Args:
        graph: The steps of the flow and the transitions between them.
        step: The name of the step; a step that the flow no longer has fits nothing.
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
    """Yield what each blob that the manifest itself refers to is of, and its key.

    Args:
        manifest: What the attempt has left: the type, size and blob of each artifact.
    """
    for name, entry in manifest.artifacts.items():
        for key, _ in entry.blobs:
            yield f"artifact {name!r}", key
    for segment in (manifest.items or (0,))[1:]:
        if not isinstance(segment, bytes):
            yield "the items of its foreach", segment[0]


# The cache: a task whose code, inputs, parameters and environment are those of a task that has
# succeeded before is not run again.
#
# The key of a task is the digest of the fingerprint of its step (`fingerprint.py`), of its
# declared environment (`key.py`), of what its input tasks left (names and digests of all
# artifacts that it can read, among them the parameters and constants), and of its item and its
# place in a foreach. What the step reads from elsewhere (files, a clock, the network) is not seen:
# such a step is not to be cached.
#
# What a cached task set itself is shared by key; what it passes on is passed on from the tasks of
# this run, which left the same.


_VERSION = 2


class Left(NamedTuple):
    """What a task of this run has left: digests of its own artifacts, the names that it passes on
    by the task that set them, its foreach stack, and a digest of all of it together."""

    own: dict[str, str]
    inherited: dict[int, list[str]]
    stack: tuple[ForeachFrame, ...]
    content: str


class CachedTasks:
    """The reusable of a run that looks for what was computed before.

    `steps` are those that may be taken from the cache, `code` is that of all steps. A step whose
    code reaches what cannot be hashed is neither looked for nor found later.
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
        self._openers: dict[int, Manifest] = {}  # of the foreachs that are open
        self._places: dict[int, tuple[int, str, int]] = {}  # live task -> split, step, index
        self._branches: defaultdict[int, dict[tuple[str, int], int]] = defaultdict(dict)
        self._keys: dict[int, bytes] = {}
        self.settled(PARAMETERS_TASK, parameters)

    # ------------------------------------------------------------ before a launch

    def find(self, launch: LaunchAttempt) -> ReusableResult | None:
        """The result of a task with the same key, if all its blobs are still there."""
        if launch.split is not None and launch.index is not None:
            self._places[launch.task] = (launch.split, launch.step, launch.index)
        code = self._code.get(launch.step)
        if code is None:
            return None
        inputs = [self._left[task].content for task in self._input_tasks(launch)]
        key = bytes.fromhex(_hash((_VERSION, launch.step, code, inputs, self._place(launch))))
        self._keys[launch.task] = key
        found = self._metadata.cached(self._flow, key)
        return None if found is None else self._fit(found, launch)

    def _input_tasks(self, launch: LaunchAttempt) -> list[int]:
        if isinstance(launch.inputs, FromForeach):
            return self._foreach_tasks(launch.inputs)
        return [*input_tasks(launch.inputs)]

    def _foreach_tasks(self, inputs: FromForeach) -> list[int]:
        """The input tasks in the order of the items: of each item the one that came last."""
        branches = self._branches[inputs.split]
        return [
            max(branches[step, index] for step in inputs.steps if (step, index) in branches)
            for index in range(inputs.count)
        ]

    def _place(self, launch: LaunchAttempt) -> tuple[int | None, str]:
        """The index of the task and the digest of its item, where it opens one."""
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
        """Which tasks of this run set what the task passes on."""
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
        """Nothing has to be known of tasks that run, before they end."""

    def cache_key(self, task: int) -> bytes | None:
        """The key that `find` has looked for."""
        return self._keys.pop(task, None)

    def settled(self, task: int, manifest: bytes) -> None:
        """Note what the task has left, for the keys of those that follow."""
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
    """Return the steps whose results may be taken from the cache.

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
    """Return one digest for all that a step's result depends on beside its inputs.

    Args:
        fingerprint: The digests of the step's code, by name.
        environment: The step's environment, as `environment_of` returns it.
    """
    return _hash((sorted(fingerprint.items()), sorted(environment.items())))


def _hash(value: Iterable[object]) -> str:
    return digest_of([msgpack.packb(value, unicode_errors="surrogatepass")])
