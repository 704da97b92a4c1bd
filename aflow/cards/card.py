"""Card types: classes that render the page of a task. Users derive their own from `Card`."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Mapping, Sequence
from html import escape
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar

from aflow.cards.components import Error, Table, rendered
from aflow.cards.page import graph_svg, head, names_and_values, page, section
from aflow.errors import InvalidInput
from aflow.flow.graph import outline
from aflow.flow.names import did_you_mean

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition
    from aflow.flow.graph import Graph

GROUP = "aflow.cards"
_MAX_SHOWN = 300
_MAX_ROWS = 10


class Card:
    """A card type. Subclasses override `type` and `render`.

    The constructor is called with those of its keywords that it accepts: `options` of @card;
    `components` added by the step, rendered (HTML strings, or other results of the component's
    `render`); `graph`, a dict of the flow's steps; and `flow`, the flow object. With
    ALLOW_USER_COMPONENTS, `current.card.append` adds to the card without naming its id.

    With RUNTIME_UPDATABLE, `current.card.refresh(data)` renders the card while the step runs, with
    `render_runtime` and `refresh`. Their `data` is a dict with `user` (the argument of
    `current.card.refresh`), `components` (the rendered components with REALTIME_UPDATABLE, by id),
    `render_seq`, `component_update_ts` and `mode`. In `render` it is available as `runtime_data`.
    """

    type: ClassVar[str | None] = None
    ALLOW_USER_COMPONENTS: ClassVar[bool] = False
    RUNTIME_UPDATABLE: ClassVar[bool] = False
    RELOAD_POLICY_NEVER: ClassVar[str] = "never"
    RELOAD_POLICY_ALWAYS: ClassVar[str] = "always"
    RELOAD_POLICY_ONCHANGE: ClassVar[str] = "onchange"
    RELOAD_POLICY: ClassVar[str] = "never"
    RELOAD_POLICY_TOKEN: ClassVar[str] = "[METAFLOW_RELOAD_TOKEN]"  # noqa: S105 -- a placeholder
    runtime_data: Any = None
    # Built-in types get component objects and a Graph instead of plain values.
    _takes_objects: ClassVar[bool] = False

    def __init__(
        self,
        options: Mapping[str, Any] | None = None,
        components: Sequence[Any] = (),
        graph: Any = None,
        flow: Any = None,
    ) -> None:
        self.options = dict(options or {})
        self.components = list(components)
        self.graph = graph
        self.flow = flow

    def render(self, task: Any) -> str:
        """Return the page as HTML.

        Args:
            task: The task, with the interface of a Task of the client; its artifacts are in
                `task.data`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method render.")

    def render_runtime(self, task: Any, data: Any) -> str:
        """Return the page as HTML while the step is running.

        Args:
            task: The running task, with the artifacts set so far.
            data: The data of the refresh: see the class.
        """
        return self.render(task)

    def refresh(self, task: Any, data: Any) -> Any:
        """Return the JSON values with which an open page updates itself; None if it must be
        reloaded.

        Args:
            task: The task, which may have ended, with the artifacts set so far.
            data: The data of the refresh: see the class.
        """
        return None

    def reload_content_token(self, task: Any, data: Any) -> str:
        """Return the token that open pages compare to decide on a reload, with
        RELOAD_POLICY_ONCHANGE.

        Args:
            task: The task, which may have ended, with the artifacts set so far.
            data: The data of the refresh: see the class.

        Returns:
            A string that changes if the page must be reloaded.
        """
        return "content-token"


class BlankCard(Card):
    """A card with only the components added by the step."""

    type = "blank"
    _takes_objects = True
    ALLOW_USER_COMPONENTS = True
    RUNTIME_UPDATABLE = True

    def render(self, task: Any) -> str:
        """Return the components, under the title from the options, if any."""
        title = self.options.get("title")
        top = head(str(title), task.pathspec, {}) if title else ""
        return page(str(title or task.pathspec), top + "".join(map(rendered, self.components)))


class DefaultCard(Card):
    """A card with the components added by the step, then parameters, artifacts, graph and times."""

    type = "default"
    _takes_objects = True
    ALLOW_USER_COMPONENTS = True
    RUNTIME_UPDATABLE = True

    def render(self, task: Any) -> str:
        """Return the page."""
        title = str(self.options.get("title") or task.pathspec.split("/")[2])
        step = task.pathspec.split("/")[2]
        doc = self.graph.nodes[step].doc if self.graph is not None else ""
        top = head(title, task.pathspec, _facts(task), doc.strip())
        parts = [top, *map(rendered, self.components)]
        if not self.options.get("only_components"):
            parts.append(section("Parameters", names_and_values(_rows(task.parameters))))
            parts.append(section("Artifacts", names_and_values(_rows(task.own_artifacts))))
            if self.graph is not None:
                parts.append(section("Flow", graph_svg(self.graph, step)))
        return page(f"{title} - {task.pathspec}", "".join(parts))


class ErrorCard(Card):
    """A card that shows why another card could not be rendered."""

    type = "error"

    def render(self, task: Any) -> str:
        """Return the page with the error."""
        error = self.options.get("error", "")
        kind = str(self.options.get("kind", ""))
        body = f'<div class="error"><b>The card of type {escape(kind)} could not be made.</b></div>'
        return page(
            f"Error - {task.pathspec}",
            head("Error", task.pathspec, {}) + body + Error(error, "What it said").render(),
        )


class TaskspecCard(Card):
    """A card with the pathspec of the task, and nothing else."""

    type = "taskspec_card"

    def render(self, task: Any) -> str:
        """Return the pathspec."""
        return str(task.pathspec)


class JSONCard(Card):
    """A card with the content of the default card, as JSON for programs."""

    type = "default_json"
    ALLOW_USER_COMPONENTS = True
    RUNTIME_UPDATABLE = True

    def render(self, task: Any) -> str:
        """Return the values as JSON; values that JSON does not support are shown as their repr."""
        return json.dumps(
            {
                "pathspec": task.pathspec,
                "parameters": task.parameters,
                "artifacts": task.own_artifacts,
                "components": self.components,
                "graph": self.graph,
            },
            default=repr,
        )


def created(
    kind: type[Card],
    options: Mapping[str, Any],
    components: Sequence[Any],
    definition: FlowDefinition | None,
    graph: Graph,
    flow: Any,
) -> Card:
    """Return a card of a type. Its constructor gets those of the keywords `options`, `components`,
    `graph` and `flow` that it accepts.

    Args:
        kind: The card type.
        options: The options of the card.
        components: The components, in order.
        definition: The definition of the flow; None if it is unknown.
        graph: The steps of the flow and the transitions between them.
        flow: The flow object.
    """
    if kind._takes_objects:
        return kind(options, components, graph, flow)
    if definition is None:
        steps = {node["name"]: node for node in graph.as_dict()["nodes"]}
    else:
        steps = outline(definition)["steps"]
    keywords = {
        "options": dict(options),
        "components": [_plain(each) for each in components],
        "graph": steps,
        "flow": flow,
    }
    taken = inspect.signature(kind.__init__).parameters.values()
    if not any(each.kind is each.VAR_KEYWORD for each in taken):
        names = {each.name for each in taken}
        keywords = {name: value for name, value in keywords.items() if name in names}
    return kind(**keywords)


class RenderedComponent(str):
    """The HTML of a component, with the `render` method of a component."""

    __slots__ = ()

    def render(self) -> str:
        """Return the HTML."""
        return str(self)


def _plain(component: Any) -> Any:
    """Return the result of a component's `render`; if it fails, HTML that shows the error."""
    try:
        made = component.render()
    except Exception:  # noqa: BLE001 -- a failing component is shown as an error
        made = rendered(component)
    return RenderedComponent(made) if isinstance(made, str) else made


def checked(html: object) -> str:
    """Return the page of a card, after a check of its type.

    Args:
        html: The result of `render`.

    Raises:
        TypeError: If the result is not a string.
    """
    if not isinstance(html, str):
        raise TypeError(f"render gave {type(html).__name__}, and has to give a text of HTML")
    return html


def kind_of(name: str) -> type[Card]:
    """Return the card type with a name: a built-in type, a defined subclass, or an entry point of a
    package in the group aflow.cards.

    Args:
        name: The name of the card type.

    Raises:
        InvalidInput: If there is no such type.
    """
    if name.startswith("test_"):  # rarely used, so imported on demand; registers its classes
        import_module("aflow.cards.probes")
    known = {each.type: each for each in _all(Card) if each.type}
    if name in known:
        return known[name]
    for each in entry_points(group=GROUP):
        loaded = each.load()
        for card in loaded if isinstance(loaded, list | tuple) else [loaded]:
            known[card.type] = card
    if name not in known:
        names = [str(each) for each in known]
        raise InvalidInput(
            f"There is no card of type {name!r}.{did_you_mean(name, names)} There are: "
            f"{', '.join(sorted(names))}."
        )
    return known[name]


def _all(kind: type[Card]) -> list[type[Card]]:
    return [each for sub in kind.__subclasses__() for each in (sub, *_all(sub))]


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [(name, type(value).__name__, _html(value)) for name, value in sorted(values.items())]


def _html(value: Any) -> str:
    """Return a value as HTML: the first rows of a pandas table, collapsed, or else its repr."""
    if type(value).__module__.startswith("pandas") and hasattr(value, "columns"):
        shape = " x ".join(map(str, value.shape))
        table = rendered(Table.from_dataframe(value.head(_MAX_ROWS)))
        return f"<details><summary>{shape}</summary>{table}</details>"
    text = repr(value)
    short = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
    return f"<code>{escape(short)}</code>"


def _facts(task: Any) -> dict[str, str]:
    took = (task.finished_at or 0) - (task.started_at or 0)
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(task.started_at))
    return {"Run by": task.user, "Started": at, "Took": _duration(max(took, 0.0))}


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
