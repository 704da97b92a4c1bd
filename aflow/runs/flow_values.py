"""What flow decorators say of a run: where in its project it stands, and what started it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aflow.errors import InvalidInput, NotFound
from aflow.flow.current import current
from aflow.flow.parameters import ParameterContext, resolve
from aflow.ids import Pathspec
from aflow.scheduler.states import RunState

if TYPE_CHECKING:
    from aflow.config import RunOptions
    from aflow.flow.definition import FlowDefinition
    from aflow.metadata.base import MetadataStore, RunRecord

_TAGS = {"project": "project_name", "project_branch": "branch_name"}


def values_of(
    definition: FlowDefinition, options: RunOptions, user: str, metadata: MetadataStore
) -> dict[str, Any]:
    """What a run's settings hold of its flow's decorators: `project` and `trigger`, where there is
    something to say.

    Raises InvalidInput for a branch or a trigger that cannot be used, NotFound for a trigger that
    is not there.
    """
    values: dict[str, Any] = {}
    project = definition.project
    if project is not None:
        values["project"] = project.place(definition.name, user, options.branch, options.production)
    elif options.branch is not None or options.production:
        raise InvalidInput(f"Flow {definition.name} is in no project: branches need @project.")
    if options.trigger:
        events = [event for each in options.trigger for event in _ended(each, metadata)]
        values["trigger"] = events
    return values


def parameter_values(
    definition: FlowDefinition,
    given: Mapping[str, Any],
    *,
    user: str,
    ds_type: str,
    branch: str | None = None,
    production: bool | None = None,
    show: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The values of all parameters of a run, by attribute: as they are given by name, else by
    default.

    A default that is a function sees the flow's configs in its context, and what is known of the
    run in `current`: the flow, the user, the place in the project. Raises InvalidParameter and, for
    a branch that cannot be used, InvalidInput.
    """

    def context(name: str) -> ParameterContext:
        from aflow.flow.configs import ConfigValue, names_of  # few defaults are functions

        known = {} if values is None else names_of(definition.configs, values)
        return ParameterContext(definition.name, user, name, show, ds_type, ConfigValue(known))

    values = definition.config_values

    known: dict[str, Any] = {"flow_name": definition.name, "username": user}
    if definition.project is not None:
        known |= definition.project.place(definition.name, user, branch, production)
    with current._deploying(known):
        return resolve(definition, given, context)


def system_tags(values: Mapping[str, Any]) -> Iterator[str]:
    """The tags that say so."""
    place = values.get("project")
    if place is not None:
        for name, key in _TAGS.items():
            yield f"{name}:{place[key]}"


def told(run: RunRecord) -> dict[str, Any]:
    """What `current` tells of it."""
    trigger = run.settings.get("trigger")
    return {**run.settings.get("project", {}), **({"trigger": trigger} if trigger else {})}


def _ended(pathspec: str, metadata: MetadataStore) -> Iterator[dict[str, Any]]:
    """The events that the end of a run is."""
    spec = Pathspec.parse(pathspec)
    if spec.run is None or spec.step is not None:
        raise InvalidInput(f"--trigger takes the pathspec of a run, Flow/run, not {pathspec!r}.")
    run = metadata.run(spec.flow, spec.run)
    if run is None:
        raise NotFound(f"There is no run {pathspec} to be the trigger in {metadata.url}.")
    if run.state is not RunState.SUCCEEDED:
        raise InvalidInput(
            f"{pathspec} cannot be the trigger: it is {run.state.value}, and only the end of a run "
            "that succeeded starts another."
        )
    end = run.graph["end"]
    last = next(metadata.tasks(run.key, step=end, light=True))
    for name in dict.fromkeys((end, "end")):  # who waits for the end need not know its name
        yield {
            "name": f"metaflow.{spec.flow}.{name}",
            "id": f"{pathspec}/{end}/{last.task.task}",
            "timestamp": run.finished_at,
            "type": "run",
        }
