"""The implementation of @card: `current.card` while the step runs, and rendering after its
artifacts are stored."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from aflow._core.settings import switched_on
from aflow.cards.card import Card, ErrorCard, checked, created, kind_of
from aflow.cards.components import Component, as_component
from aflow.errors import InvalidInput
from aflow.flow.current import look_up
from aflow.storage import cards as store
from aflow.task.hooks import Scene, StepHook
from aflow.task.runner import sentence, show

if TYPE_CHECKING:
    from aflow.flow.decorators.card import CardDecorator
    from aflow.storage.artifacts import Manifest

_TRUSTED = ("default", "blank", "error")  # built-in types: rendered in this process


class CardParts:
    """The components that a step adds to one card; `current.card` delegates to the card without an
    id."""

    def __init__(self, hook: CardHook) -> None:
        self._hook = hook
        self._parts: list[tuple[str | None, Any]] = []
        self.changed_at = 0.0

    def append(self, component: Any, id: str | None = None) -> None:
        """Append a component. Strings become Markdown, other values the suitable component. With an
        `id`, the component is available as `components[id]`.

        Args:
            component: The component or value.
            id: The id of the component, or None.
        """
        part = as_component(component)
        if part is not component and self._hook.drops_values:
            _warn(f"{type(component).__name__} is not a component of a card: it is not shown.")
            return
        self._parts.append((id, part))
        self.changed_at = self._hook.now()

    def extend(self, components: Iterable[Any]) -> None:
        """Append several components.

        Args:
            components: The components, in order.
        """
        for each in components:
            self.append(each)

    def clear(self) -> None:
        """Remove all components."""
        self._parts.clear()
        self.changed_at = self._hook.now()

    def refresh(self, data: Any = None, force: bool = False) -> None:
        """Render the card now, to show it while the step runs. Calls within `refresh_interval` of
        the last one are ignored unless `force` is set.

        Args:
            data: The data for the card, available as `data["user"]`.
            force: Whether to ignore `refresh_interval`.
        """
        self._hook.refresh(data, force)

    @property
    def components(self) -> dict[str, Component]:
        """The components with an id, by id."""
        return {id: part for id, part in self._parts if id is not None}

    def updatable(self) -> dict[str, Any]:
        """Return the rendered components with REALTIME_UPDATABLE, by id; the key of a component
        without an id is its class name and position."""
        found = {}
        for place, (id, part) in enumerate(self._parts):
            if getattr(part, "REALTIME_UPDATABLE", False):
                found[id or f"{type(part).__name__.lower()}_{place}"] = part.render()
        return found

    def __iter__(self) -> Iterator[Any]:
        return iter([part for _, part in self._parts])

    def __len__(self) -> int:
        return len(self._parts)


class Cards:
    """`current.card` of a step: the components of its cards by card id. Without an id, those of the
    card that has none, or is the only one, or has customize=True."""

    def __init__(self) -> None:
        self.all: list[CardHook] = []

    def __getitem__(self, id: str) -> CardParts:
        found = [each.parts for each in self.all if each.card.id == str(id)]
        if not found:
            _warn(f"The step has no card with the id {id!r}: what is added to it is not shown.")
            return CardParts(self.all[0])
        if len(found) > 1:
            _warn(f"The step has {len(found)} cards with the id {id!r}: the first one is meant.")
        return found[0]

    def get(self, type: str | None = None) -> list[CardParts]:
        """Return the components of all cards of a type.

        Args:
            type: The card type; None for all types.
        """
        return [each.parts for each in self.all if type in (None, each.card.type)]

    @property
    def _main(self) -> CardParts:
        takers = [each for each in self.all if each.takes_parts]
        chosen = [each for each in self.all if each.card.customize] or [
            each for each in takers if each.card.id is None or len(takers) == 1
        ]
        if len(chosen) != 1 and len(self.all) > 1:
            _warn("The step has several cards: current.card['id'] says which one is meant.")
        if not chosen:
            _warn("What is added is not shown: no card without an id takes components.")
            return CardParts(self.all[0])
        return chosen[0].parts

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._main, name)  # delegates append, extend, clear, refresh, components

    def __len__(self) -> int:
        return len(self._main)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._main)


class CardHook(StepHook):
    """The hook of one @card in one attempt of a task."""

    def __init__(self, decorator: Any, scene: Scene) -> None:
        super().__init__(decorator, scene)
        self.card: CardDecorator = decorator
        self.parts = CardParts(self)
        cards: Cards = scene.shared.setdefault("cards", Cards())
        self._number = len(cards.all)
        cards.all.append(self)
        scene.values["card"] = cards
        self._refreshed = 0.0
        self._renders = 0  # number of refreshes so far
        self._user_data: Any = {}  # data of the latest refresh
        self._started = scene.clock.now()

    @property
    def takes_parts(self) -> bool:
        """Whether the card type accepts components. An unknown type is reported when it is
        rendered."""
        try:
            return kind_of(self.card.type).ALLOW_USER_COMPONENTS
        except InvalidInput:
            return False

    @property
    def drops_values(self) -> bool:
        """Whether values that are not components are ignored, as card types for Metaflow expect."""
        compat = sys.modules.get("aflow.compat.metaflow")
        if compat is None or not compat.is_installed() or not self.takes_parts:
            return False
        return not kind_of(self.card.type)._takes_objects

    def now(self) -> float:
        """Return the current time."""
        return self.scene.clock.now()

    def stored(self, manifest: Manifest) -> None:
        """Render and store the card; its errors do not fail the step."""
        task = CardTask(self.scene, self._started, [*manifest.artifacts])
        self._make(task)

    def refresh(self, data: Any, force: bool) -> None:
        """Render and store the card of a running step.

        Args:
            data: The data for the card, available as `data["user"]`.
            force: Whether to ignore `refresh_interval`.
        """
        self._user_data = {} if data is None else data  # the final card shows the latest data
        now = self.scene.clock.monotonic()
        if not force and self._refreshed and now - self._refreshed < self.card.refresh_interval:
            return
        self._refreshed = now
        self._renders += 1
        self._make(CardTask(self.scene, self._started, [], finished=False), runtime=True)

    def _make(self, task: CardTask, *, runtime: bool = False) -> None:
        update = None
        try:
            kind = kind_of(self.card.type)
            if runtime and not kind.RUNTIME_UPDATABLE:
                return
            definition = self.scene.definition
            graph, flow = definition.graph, self.scene.flow
            made = created(kind, self.card.options, [*self.parts], definition, graph, flow)
            html, update = self._made(made, task, runtime)
        except Exception as error:  # noqa: BLE001 -- reported, and shown in place of the card
            message = sentence(error)
            show("stderr", f"@card(type={self.card.type!r}) was not made: {message}\n")
            if runtime or not self.card.save_errors:
                return
            html = ErrorCard({"error": message, "kind": self.card.type}).render(task)
        spec, context = self.scene.spec, self.scene.context
        folder = store.prefix(context.flow, context.run, spec.step, spec.task)
        place = self.scene.blobs.store
        store.put(place, folder, self._number, self.card.type, self.card.id, html, update)

    def _made(self, made: Card, task: CardTask, runtime: bool) -> tuple[str, Any]:
        """Return the page, and the data for open pages."""
        if self.card.type in _TRUSTED:
            return made.render(task), None
        data = {
            "user": self._user_data,
            "components": self.parts.updatable(),
            "render_seq": self._renders if runtime else "final",
            "component_update_ts": self.parts.changed_at,
            "mode": "render_runtime" if runtime else "render",
        }
        made.runtime_data = data
        refreshed, at = self._renders > 0, self.now()

        def make() -> tuple[str, Any]:
            html = checked(made.render_runtime(task, data) if runtime else made.render(task))
            if not refreshed:
                return html, None
            token = _reload_token(made, task, data)
            new_data = made.refresh(task, data)
            update = {"reload_token": token, "data": new_data, "created_on": at}
            html = html.replace(made.RELOAD_POLICY_TOKEN, token)
            return html, None if new_data is None else update

        return in_time(make, self.card.timeout)  # type: ignore[no-any-return]


def _reload_token(made: Card, task: CardTask, data: dict[str, Any]) -> str:
    """Return the token that an open page compares to decide on a reload."""
    if data["render_seq"] == "final":
        return "final"
    if made.RELOAD_POLICY == made.RELOAD_POLICY_ALWAYS:
        return f"render-seq-{data['render_seq']}"
    if made.RELOAD_POLICY == made.RELOAD_POLICY_ONCHANGE:
        return made.reload_content_token(task, data)
    return "never"


def in_time(make: Any, seconds: float) -> Any:
    """Return the result of a function that is called in a forked process with a time limit.

    Args:
        make: The function, without arguments.
        seconds: The time limit, in seconds. After it, the process is killed.

    Raises:
        TimeoutError: If the function takes longer.
        RuntimeError: If the function raises an exception, or its process exits.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(make, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            raise TimeoutError(f"it took longer than {seconds:g} s")
        good, value = ours.recv()
    except EOFError:
        raise RuntimeError("its process died") from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if not good:
        raise RuntimeError(value)
    return value


def _answer(make: Any, pipe: Any) -> None:
    try:
        pipe.send((True, make()))
    except BaseException as error:  # noqa: BLE001 -- shown in place of the card
        pipe.send((False, sentence(error)))


class CardTask:
    """The task of a card, with the interface of a Task of the client, while the task is not yet
    recorded as finished. Attributes that it lacks are looked up with the client."""

    def __init__(
        self, scene: Scene, started_at: float, own: list[str], finished: bool = True
    ) -> None:
        spec, context = scene.spec, scene.context
        self.pathspec = f"{context.flow}/{context.run}/{spec.step}/{spec.task}"
        self.id = str(spec.task)
        self.index = spec.split_index
        self.user = context.user
        self.started_at = started_at
        self.finished_at = scene.clock.now()
        self.finished = self.successful = finished
        self.data = _Data(scene.flow)
        self._scene = scene
        self._own = own

    @property
    def parameters(self) -> dict[str, Any]:
        """The values of the flow's parameters, by name."""
        return {name: getattr(self.data, name) for name in self._scene.definition.parameters}

    @property
    def own_artifacts(self) -> dict[str, Any]:
        """The public artifacts set by the step itself, by name."""
        return {name: getattr(self.data, name) for name in self._own if not name.startswith("_")}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(look_up(self.pathspec, "task"), name)

    def __getitem__(self, name: str) -> Any:
        return _Value(name, getattr(self.data, name))

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def __iter__(self) -> Iterator[Any]:
        return (_Value(name, value) for name, value in self.own_artifacts.items())


class _Data:
    """The artifacts of a task as attributes."""

    def __init__(self, flow: Any) -> None:
        self._flow = flow

    def __getattr__(self, name: str) -> Any:
        return getattr(self._flow, name)

    def __contains__(self, name: str) -> bool:
        return hasattr(self._flow, name)


class _Value:
    """An artifact with the interface of the client's DataArtifact."""

    def __init__(self, id: str, data: Any) -> None:
        self.id = id
        self.data = data


def _warn(text: str) -> None:
    if switched_on("CARD_NO_WARNING"):
        return
    show("stderr", f"[@card] {text}\n")
