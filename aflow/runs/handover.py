"""Manifests that travel with a spec, so that a task's process need not ask for them.

A task reads its input tasks' manifests, and those of the tasks that set what these pass on. Where
they are at hand and small, they go along; else the process reads them from the metadata.
"""

from __future__ import annotations

from collections.abc import Iterable

from aflow.ids import PARAMETERS_TASK
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, Inputs
from aflow.storage.manifest import Manifest

MAX_KEPT = 16 << 20  # bytes of manifests that are kept at hand
MAX_ALONG = 1 << 15  # bytes that travel with one spec


class Handover:
    """The latest manifests of a run, and which of them a task will want."""

    def __init__(self, parameters: bytes) -> None:
        self._manifests: dict[int, bytes] = {}
        self._size = 0
        self._parameters = parameters
        self._latest: tuple[int, dict[int, bytes]] | None = None

    def keep(self, task: int, manifest: bytes) -> None:
        """Keep the manifest that a task has just left; the oldest ones go."""
        if self._latest is not None and self._latest[0] == task:
            self._latest = None  # it has grown
        self._size -= len(self._manifests.pop(task, b""))
        if len(manifest) > MAX_ALONG:
            return
        self._manifests[task] = manifest
        self._size += len(manifest)
        while self._size > MAX_KEPT:
            oldest = next(iter(self._manifests))
            self._size -= len(self._manifests.pop(oldest))

    def manifests_for(self, inputs: Inputs) -> dict[int, bytes]:
        """What travels with the spec of a task that has these inputs."""
        if type(inputs) is FromTask:
            # All tasks of a foreach have the same input: the answer is kept.
            if self._latest is None or self._latest[0] != inputs.task:
                self._latest = (inputs.task, self._collect((inputs.task,)))
            return self._latest[1]
        if type(inputs) is FromBranches:
            return self._collect(inputs.tasks)
        if type(inputs) is FromForeach:
            return self._collect((inputs.split,))
        return self._collect(())

    def _collect(self, tasks: Iterable[int]) -> dict[int, bytes]:
        wanted: list[int] = [PARAMETERS_TASK]
        for task in tasks:
            manifest = self._at_hand(task)
            if manifest is not None:
                wanted += [task, *Manifest.decode(manifest).inherited]
        along: dict[int, bytes] = {}
        room = MAX_ALONG
        for task in wanted:
            manifest = self._at_hand(task)
            if manifest is not None and task not in along and len(manifest) <= room:
                along[task] = manifest
                room -= len(manifest)
        return along

    def _at_hand(self, task: int) -> bytes | None:
        return self._parameters if task == PARAMETERS_TASK else self._manifests.get(task)
