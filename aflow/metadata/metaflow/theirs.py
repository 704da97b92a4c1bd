"""Converts the rows of a run of Metaflow's to aflow's records. Pure functions.

Metaflow records the foreach items around a task; aflow records the tasks that are its inputs. The
inputs are derived from the items and the graph.
"""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aflow.errors import ArtifactNotLoadable
from aflow.flow.graph import Graph, Kind, Node
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, Inputs, NoInputs

Path = tuple[int, ...]
"""The indexes of a task in the foreachs around it, the outermost first."""

_KINDS = {
    "split-static": Kind.SPLIT, "split-foreach": Kind.FOREACH, "split-parallel": Kind.PARALLEL,
    "split-switch": Kind.SWITCH, "split-and": Kind.SPLIT, "split": Kind.SPLIT,
    "foreach": Kind.FOREACH, "end": Kind.END,
}  # fmt: skip
OPENS_ITEMS = (Kind.FOREACH, Kind.PARALLEL)


class MetaflowForeachFrame(NamedTuple):
    """Replaces Metaflow's ForeachFrame in pickles."""

    step: str = ""
    var: str | None = None
    num_splits: int | None = None
    index: int | None = None  # type: ignore[assignment]
    value: str | None = None


class _Plain(Exception):
    """Replaces an object of a class that is not importable; it has the same attributes."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class _OnlyPlain(pickle.Unpickler):
    """Loads the pickles of Metaflow's own artifacts; refuses all classes but a few known ones."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "ForeachFrame":
            return MetaflowForeachFrame
        if name == "MetaflowExceptionWrapper":
            return _Plain
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise pickle.UnpicklingError(f"{module}.{name} is not a plain value")


def plain(data: bytes) -> Any:
    """Return a value of builtin types that Metaflow itself has pickled. No code is executed.

    Args:
        data: The pickle; it need not be trusted.

    Raises:
        ArtifactNotLoadable: If the pickle contains other classes, or is damaged.
    """
    try:
        return _OnlyPlain(io.BytesIO(data)).load()
    except Exception as error:
        raise ArtifactNotLoadable(f"What Metaflow keeps of a task is damaged: {error}.") from error


# ------------------------------------------------------------------ the graph


def graph_of(flow: str, info: Mapping[str, Any] | None, steps: Sequence[str]) -> Graph:
    """Return the graph that Metaflow's `_graph_info` describes; without one, a graph of the steps
    without transitions.

    Args:
        flow: The flow's name, the first part of a pathspec.
        info: The artifact `_graph_info`; None if the run has none.
        steps: The steps that have started, for a run without `_graph_info`.
    """
    described: Mapping[str, Any] = (info or {}).get("steps") or {}
    if not described:
        described = {name: {"type": "end" if name == "end" else "linear"} for name in steps}
    start = str((info or {}).get("start_step") or ("start" if "start" in described else ""))
    end = str((info or {}).get("end_step") or ("end" if "end" in described else ""))
    joins = {each.get("matching_join") for each in described.values()}
    previous: defaultdict[str, list[str]] = defaultdict(list)
    for name, each in described.items():
        for following in each.get("next") or ():
            previous[following].append(name)
    nodes = {}
    around = _open_splits(described, start)
    for name, each in described.items():
        kind = _KINDS.get(str(each.get("type")), Kind.LINEAR)
        if not each.get("next"):
            kind = Kind.END
        nodes[name] = Node(
            name=name,
            kind=kind,
            is_join=each.get("type") == "join" or name in joins,
            next=tuple(each.get("next") or ()),
            previous=tuple(previous[name]),
            splits=around.get(name, ()),
            join=each.get("matching_join"),
            foreach=each.get("foreach_artifact"),
            condition=each.get("condition"),
            cases=tuple((str(k), str(v)) for k, v in (each.get("switch_cases") or {}).items()),
            file=str(each.get("source_file") or (info or {}).get("file") or ""),
            line=int(each.get("line") or 0),
            doc=str(each.get("doc") or ""),
        )
    first = start or next(iter(nodes), "")
    last = end or next(reversed(nodes), "")
    return Graph(flow, first, last, nodes, str((info or {}).get("doc") or ""))


def openers_of(graph: Graph, node: Node) -> list[str]:
    """Return the steps that open the foreachs around a step, the outermost first.

    Args:
        graph: The graph of the flow.
        node: A step of the graph.
    """
    return [each for each in node.splits if graph[each].kind in OPENS_ITEMS]


def _open_splits(described: Mapping[str, Any], start: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    todo: list[tuple[str, tuple[str, ...]]] = [(start, ())]
    while todo:
        name, around = todo.pop()
        if name in found or name not in described:
            continue
        while around and described[around[-1]].get("matching_join") == name:
            around = around[:-1]
        found[name] = around
        inner = (*around, name) if described[name].get("matching_join") else around
        todo += [(each, inner) for each in described[name].get("next") or ()]
    return found


# ------------------------------------------------------------------ positions of tasks


class TaskPlace(NamedTuple):
    """The position of a task in its run: its inputs, and its place in the innermost foreach."""

    inputs: Inputs
    split: int | None
    index: int | None  # type: ignore[assignment]


def path_of(said: Iterable[tuple[str, str]]) -> Path | None:
    """Return the indexes of the foreach items around a task, or None if they are not recorded.

    Args:
        said: Name and value of the task's metadata; `foreach-execution-path` is used.
    """
    value = dict(said).get("foreach-execution-path")
    if not value:
        return None
    try:
        return tuple(int(each.rpartition(":")[2]) for each in value.split(","))
    except ValueError:
        return None


class MetaflowPositions:
    """The positions of all tasks of a run. `paths` are the foreach items around each task, by step
    and number; `counts` the numbers of items that tasks have opened, as far as known."""

    def __init__(
        self, graph: Graph, paths: Mapping[tuple[str, int], Path], counts: Mapping[int, int]
    ) -> None:
        self._graph = graph
        self._paths = paths
        self._counts = counts
        self._at: dict[tuple[str, Path], int] = {}
        self._items: defaultdict[tuple[str, Path], int] = defaultdict(int)
        for (step, number), path in sorted(paths.items(), key=lambda each: each[0][1]):
            self._at[step, path] = number  # the last one, if a step ran several times (in a loop)
            if path:
                outer = (step, path[:-1])
                self._items[outer] = max(self._items[outer], path[-1] + 1)

    def of(self, step: str, number: int) -> TaskPlace:
        """Return the position of a task: its inputs, its foreach and its index.

        Args:
            step: The step of the task; one that is not in the graph has no inputs.
            number: The task's number, as `numbered` assigns it.
        """
        node, path = self._graph.nodes.get(step), self._paths[step, number]
        if node is None:
            return TaskPlace(NoInputs(), None, None)
        split = self._split(node, path)
        index = path[-1] if path and split is not None else None
        return TaskPlace(self._inputs(node, path, number), split, index)

    def _split(self, node: Node, path: Path) -> int | None:
        openers = openers_of(self._graph, node)
        return self._at.get((openers[-1], path[:-1])) if openers and path else None

    def _inputs(self, node: Node, path: Path, number: int) -> Inputs:
        if node.name == self._graph.start:
            return NoInputs()
        opener = next((each for each in self._graph.nodes.values() if each.join == node.name), None)
        if node.is_join and opener is not None:
            return self._joined(node, opener, path)
        for name in node.previous:
            before = self._graph[name]
            above = path[:-1] if before.kind in OPENS_ITEMS else path
            found = self._at.get((name, above))
            if found is not None and found != number:
                return FromTask(found)
        return NoInputs()

    def _joined(self, node: Node, opener: Node, path: Path) -> Inputs:
        if opener.kind in OPENS_ITEMS:
            split = self._at.get((opener.name, path), 0)
            counted = max((self._items[each, path] for each in opener.next), default=0)
            return FromForeach(split, node.previous, self._counts.get(split, counted))
        last = [self._last_of_branch(each, node, path) for each in opener.next]
        return FromBranches(tuple(each for each in last if each is not None))

    def _last_of_branch(self, first: str, join: Node, path: Path) -> int | None:
        reached, todo = {first}, [first]
        while todo:
            for each in self._graph[todo.pop()].next:
                if each != join.name and each not in reached:
                    reached.add(each)
                    todo.append(each)
        numbers = [self._at.get((each, path)) for each in join.previous if each in reached]
        return max((each for each in numbers if each is not None), default=None)


def numbered(tasks: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Return numbers for tasks: their ids if these are numbers, otherwise numbers that are free.
    The task of `_parameters` always gets 0.

    Args:
        tasks: Step and id of each task, in order.

    Returns:
        The numbers, by step and id.
    """
    found: dict[tuple[str, str], int] = {}
    for step, id_ in tasks:
        if step == "_parameters":
            found[step, id_] = 0
        elif id_.isdigit() and 0 < int(id_) < 10**18:
            found[step, id_] = int(id_)
    taken, following = set(found.values()), 1
    for step, id_ in tasks:
        if (step, id_) not in found:
            while following in taken:
                following += 1
            found[step, id_] = following
            taken.add(following)
    return found
