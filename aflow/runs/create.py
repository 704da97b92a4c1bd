"""Create runs: resolve the parameters, record the run, and find the results that it can reuse."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aflow import environments, runs
from aflow._core import ids
from aflow._core.ids import PARAMETERS_STEP, Pathspec
from aflow._core.records import NamedTuple, replace
from aflow._core.secret import without_passwords
from aflow._core.settings import RECORDED_OPTIONS, expanded
from aflow._core.version import __version__
from aflow.errors import AflowError, InvalidInput, NotFound, VersionConflict
from aflow.flow.configs import ConfigValue, names_of
from aflow.flow.current import current
from aflow.flow.parameters import IncludeFile, Parameter, ParameterContext, resolve
from aflow.metadata.base import LEASE, SPIN, RunRecord
from aflow.scheduler.states import TERMINAL_RUN_STATES, RunState
from aflow.storage.artifacts import ArtifactWriter, Manifest
from aflow.storage.blobs import BlobStore
from aflow.storage.previews import short_repr
from aflow.task import code_package

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow._core.settings import Durability, RunOptions, SpinOptions
    from aflow.flow.definition import FlowDefinition
    from aflow.metadata.base import MetadataRecord, MetadataStore, RunRecord
    from aflow.runs.cache.key import CodeFingerprints
    from aflow.runs.cache.reuse import ReusableResults
    from aflow.runs.resume import Finished
    from aflow.runs.spin import Settled
    from aflow.scheduler.messages import LaunchAttempt
    from aflow.storage.base import ObjectStore


def included(parameters: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of parameters, with the path of each IncludeFile replaced by the content.

    Args:
        parameters: The parameters of the flow, by name.
        values: The values of the parameters; for an IncludeFile, its path.

    Raises:
        InvalidParameter: If a file cannot be read.
    """
    return {
        name: parameters[name].content(value, _read)
        if value is not None and isinstance(parameters.get(name), IncludeFile)
        else value
        for name, value in values.items()
    }


def _read(path: str) -> bytes:
    return expanded(path).read_bytes()


# The settings of a run that come from flow decorators: its place in a project, and its trigger.


_TAGS = {"project": "project_name", "project_branch": "branch_name"}


def values_of(
    definition: FlowDefinition, options: RunOptions, user: str, metadata: MetadataStore
) -> dict[str, Any]:
    """Return the settings of a run that come from its flow's decorators: `project` if the flow has
    @project, `trigger` if another run triggers this one.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        options: The options of the run: branch, production and trigger.
        user: The user who starts the run.
        metadata: The metadata store that has the triggering runs.

    Raises:
        InvalidInput: If the branch or the trigger is invalid.
        NotFound: If a triggering run does not exist.
    """
    values: dict[str, Any] = {}
    project = definition.project
    if project is not None:
        values["project"] = project.place(definition.name, user, options.branch, options.production)
    elif options.branch is not None or options.production:
        raise InvalidInput(f"Flow {definition.name} is in no project: branches need @project.")
    if options.trigger:
        values["trigger"] = [each for run in options.trigger for each in _ended(run, metadata)]
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
    """Return the values of all parameters of a run, by attribute: the given value, or the default.

    A default that is a function gets the flow's configs in its context, and finds the flow, the
    user and the place in the project in `current`.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        given: The values that were given, by the name of the parameter.
        user: The user who starts the run.
        ds_type: Metaflow's name of the type of the datastore.
        branch: The branch of @project; None for the default branch.
        production: Whether @project is deployed to production; None if not specified.
        show: Called with one line of text that a default function logs.

    Raises:
        InvalidParameter: If a value is missing or invalid.
        InvalidInput: If the branch is invalid.
    """

    def context(name: str) -> ParameterContext:
        known = {} if values is None else names_of(definition.configs, values)
        return ParameterContext(
            flow_name=definition.name,
            user_name=user,
            parameter_name=name,
            logger=show,
            ds_type=ds_type,
            configs=ConfigValue(known),
        )

    values = definition.config_values

    known: dict[str, Any] = {"flow_name": definition.name, "username": user}
    if definition.project is not None:
        known |= definition.project.place(definition.name, user, branch, production)
    with current._deploying(known):
        return resolve(definition, given, context)


def system_tags(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the system tags for the project and the branch of a run.

    Args:
        values: The result of `values_of` for the run.
    """
    place = values.get("project")
    if place is not None:
        for name, key in _TAGS.items():
            yield f"{name}:{place[key]}"


def current_facts(run: RunRecord) -> dict[str, Any]:
    """Return the attributes of `current` for the run's project and trigger.

    Args:
        run: The record of the run.
    """
    trigger = run.settings.get("trigger")
    return {**run.settings.get("project", {}), **({"trigger": trigger} if trigger else {})}


def _ended(pathspec: str, metadata: MetadataStore) -> Iterator[dict[str, Any]]:
    """Yield the trigger events that the end of a run emits."""
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
    for name in dict.fromkeys((end, "end")):  # "end" also matches an end step of another name
        yield {
            "name": f"metaflow.{spec.flow}.{name}",
            "id": f"{pathspec}/{end}/{last.task.task}",
            "timestamp": run.finished_at,
            "type": "run",
        }


class RunInputs(NamedTuple):
    """The inputs of a run.

    `parameters` is the encoded manifest of its task 0. `code` computes the fingerprints of the code
    at the first call, which takes some milliseconds, and caches them.
    """

    parameters: bytes
    code: Callable[[], CodeFingerprints]
    reusable: ReusableResults | None


class Driving(NamedTuple):
    """What drives a run: the lease holder, as `kind/name`, the lookahead and the bounds of the
    executor, and, if an engine drives the run, the ids to query it (see `liveness.engine_of`)."""

    holder: str
    lookahead: int
    engine: Mapping[str, str] | None = None
    bounds: Mapping[str, int] | None = None


class NewRun(NamedTuple):
    """A run that is recorded and has not started.

    `facts` computes the record of the run's code; it is called while the first task runs. `settled`
    are finished tasks of another run that must be recorded in this one. `launch` is the only task
    of a spin.
    """

    record: RunRecord
    parameters: bytes
    facts: Callable[[], MetadataRecord]
    reusable: ReusableResults | None = None
    settled: Sequence[Settled] = ()
    launch: LaunchAttempt | None = None


class Creation:
    """Creates runs of one user in one metadata store and datastore. All methods block."""

    def __init__(
        self,
        metadata: MetadataStore,
        store: ObjectStore,
        durability: Durability,
        user: str,
        clock: Clock,
        *,
        deployed_by: str | None = None,
    ) -> None:
        """`deployed_by` is the user whose branch of a project the runs are on; `user` if None."""
        self._metadata = metadata
        self._store = store
        self._durability = durability
        self._user = user
        self._branch_of = deployed_by or user
        self._clock = clock

    def create(
        self,
        definition: FlowDefinition,
        options: RunOptions,
        given: Mapping[str, Any],
        driving: Driving,
    ) -> NewRun:
        """Record a new run of the flow; its holder gets the lease for LEASE seconds. If an error
        is raised, no run is recorded.

        Args:
            definition: The flow: its class, steps, parameters and decorators.
            options: The options of the run.
            given: The values of parameters that were given, by name.
            driving: The coordinator or engine that drives the run and holds the lease.

        Returns:
            The run, and everything that is needed to drive it.

        Raises:
            InvalidParameter: If a parameter is missing or has an invalid value.
            NotFound: If the run to resume does not exist.
            InvalidInput: If the run to resume cannot be resumed.
            StorageError: If the datastore does not respond.
            MetadataError: If the metadata store does not respond.
        """
        if options.spin is not None:
            return self._spin(definition, options, options.spin, driving)
        plan = self.plan(definition, options, given, self._store)
        if options.origin_run is not None:
            self._end_origin(definition.name, options.origin_run)
        record = self._recorded(definition, options, plan.parameters, driving)
        return NewRun(record, plan.parameters, self._facts(plan.code), plan.reusable)

    def _facts(self, code: Callable[[], CodeFingerprints]) -> Callable[[], MetadataRecord]:
        return lambda: code().record(self._clock.now())

    def _end_origin(self, flow: str, origin: str) -> None:
        """Record the end of the run that is resumed, if it has none.

        Otherwise a server or another coordinator would recover it as an orphaned run, and run the
        same steps as the new run at the same time.
        """
        run = self._metadata.run(flow, ids.run_id(origin))
        if run is None or run.state in TERMINAL_RUN_STATES:
            return
        reason = "No coordinator drove the run, and it was resumed."
        now = self._clock.now()
        if not runs.liveness.end_left_run(self._metadata, run, RunState.FAILED, reason, now):
            raise _still_runs(run)

    def _spin(
        self,
        definition: FlowDefinition,
        options: RunOptions,
        which: SpinOptions,
        driving: Driving,
    ) -> NewRun:
        """Record a run of one task with the inputs that it had in an earlier run."""
        origin, task = runs.spin.find_task(self._metadata, definition.name, which)
        spin = runs.spin.prepare(
            self._metadata, self._writer(), definition, origin, task, which.artifacts
        )
        named = replace(options, origin_run=origin.run)
        record = self._recorded(definition, named, spin.parameters, driving, SPIN)
        facts = self._facts(_code_of(definition, options))
        return NewRun(record, spin.parameters, facts, settled=spin.inputs, launch=spin.launch)

    def plan(
        self,
        definition: FlowDefinition,
        options: RunOptions,
        given: Mapping[str, Any],
        store: ObjectStore,
    ) -> RunInputs:
        """Return the inputs of a run. Stores the parameters in `store`, but records no run. Raises
        the same errors as `create`.

        Args:
            definition: The flow: its class, steps, parameters and decorators.
            options: The options of the run.
            given: The values of parameters that were given, by name.
            store: The store for the parameters; an in-memory store for a dry run.
        """
        origin = self._origin(definition, options)
        values = self._values(definition, options, given, origin)
        parameters = self._parameters(definition, values, origin, store).encode()
        code = _code_of(definition, options)
        reusable = self._reusable(definition, options, origin, code, parameters)
        return RunInputs(parameters, code, reusable)

    def known_to(
        self, definition: FlowDefinition, options: RunOptions, run: RunRecord, parameters: bytes
    ) -> ReusableResults | None:
        """Return the sources of reusable results of a run that has started; None if there are none.
        Raises the same errors as `create` for the run that this one resumes.

        Args:
            definition: The flow: its class, steps, parameters and decorators.
            options: The options of the coordinator.
            run: The record of the run.
            parameters: The encoded manifest of the parameters, which cache keys depend on.
        """
        options = replace(options, origin_run=run.origin_run)
        origin = self._origin(definition, options)
        code = _code_of(definition, options)
        return self._reusable(definition, options, origin, code, parameters)

    def _reusable(
        self,
        definition: FlowDefinition,
        options: RunOptions,
        origin: Finished | None,
        code: Callable[[], CodeFingerprints],
        parameters: bytes,
    ) -> ReusableResults | None:
        """Return the sources of reusable results of the run; None if there are none."""
        known: list[ReusableResults] = []
        if origin is not None:
            assert options.origin_run is not None, "an origin has a name"
            known.append(runs.resume.ResumedRun(options.origin_run, origin, definition.graph))
        if any(step.decorator("cache") for step in definition.steps.values()):
            from aflow.runs.cache import reuse  # lazy: few flows use the cache, and it is slow

            steps, blobs = reuse.cached_steps(definition), BlobStore(self._store)
            if steps:
                known.append(
                    reuse.CachedTasks(definition, steps, code(), self._metadata, blobs, parameters)
                )
                return known[0] if origin is None else reuse.InTurn(*known)
        return next(iter(known), None)

    def _origin(self, definition: FlowDefinition, options: RunOptions) -> Finished | None:
        """Return the finished tasks of the run to resume; None if no run is resumed.

        Raises NotFound if there is no such run, InvalidInput if it cannot be resumed.
        """
        if options.origin_run is None:
            if options.clone_only:
                raise InvalidInput(
                    "Results of tasks can be reused only from a run that is resumed."
                )
            return None
        flow, run = definition.name, ids.run_id(options.origin_run)
        origin = self._metadata.run(flow, run)
        if origin is None:
            raise NotFound(f"There is no run {flow}/{run} to resume in {self._metadata.url}.")
        if origin.kind == SPIN:
            raise InvalidInput(f"{flow}/{run} is a spin of one task, which cannot be resumed.")
        ended = runs.liveness.settled(self._metadata, origin, time.sleep)
        if ended is None:
            raise _still_runs(origin)
        if options.rerun_step is not None and options.rerun_step not in definition.steps:
            raise InvalidInput(
                f"{flow} has no step {options.rerun_step!r} to run again; its steps are: "
                f"{', '.join(definition.steps)}."
            )
        finished = runs.resume.Finished(self._metadata.tasks(ended.key), options.rerun_step)
        blobs = BlobStore(self._store)
        runs.resume.check_blobs(finished, blobs, ended, leave_out=options.rerun_missing)
        return finished

    def _values(
        self,
        definition: FlowDefinition,
        options: RunOptions,
        given: Mapping[str, Any],
        origin: Finished | None,
    ) -> dict[str, Any]:
        """Return the values of the parameters; for a run that resumes another, only those that the
        origin does not have or that are given."""
        if origin is not None:
            there = Manifest.decode(origin.parameters).artifacts
            new = {
                name: each
                for name, each in definition.parameters.items()
                if name not in there or name in given
            }
            definition = replace(definition, parameters=new)
        values = parameter_values(
            definition,
            given,
            user=self._user,
            ds_type="s3" if self._store.url.startswith("s3:") else "local",
            branch=options.branch,
            production=options.production,
        )
        return included(definition.parameters, values)

    def _parameters(
        self,
        definition: FlowDefinition,
        values: Mapping[str, Any],
        origin: Finished | None,
        store: ObjectStore,
    ) -> Manifest:
        """Return the manifest of task 0: the flow's constants and the values of its parameters."""
        writer = self._writer(store)
        manifest = Manifest(step=PARAMETERS_STEP)
        if origin is not None:
            manifest.artifacts = dict(Manifest.decode(origin.parameters).artifacts)
        for name, value in {**definition.constants, **values}.items():
            manifest.artifacts[name] = writer.save(name, value)
        return manifest

    def _writer(self, store: ObjectStore | None = None) -> ArtifactWriter:
        return ArtifactWriter(self._blobs(store))

    def _blobs(self, store: ObjectStore | None = None) -> BlobStore:
        return BlobStore(store or self._store, self._durability == "power")

    def _recorded(
        self,
        definition: FlowDefinition,
        options: RunOptions,
        parameters: bytes,
        driving: Driving,
        kind: str = "",
    ) -> RunRecord:
        now = self._clock.now()
        code = code_package.for_the_record(definition, self._blobs(), options.package_suffixes)
        values = {
            **values_of(definition, options, self._branch_of, self._metadata),
            "code": code,
            **self._environments(options),
            "lookahead": driving.lookahead,
            **({"bounds": dict(driving.bounds)} if driving.bounds else {}),
            **({} if driving.engine is None else {"engine": dict(driving.engine)}),
        }
        run = "" if options.run_id is None else ids.run_id(options.run_id)
        record = self._record(definition, options, run, now, kind, values)
        if run:
            return self._metadata.create_run(record, parameters, driving.holder, LEASE)
        for number in range(1000):
            record = record._replace(run=f"{kind}-" * bool(kind) + str(int(now * 1e6) + number))
            try:
                return self._metadata.create_run(record, parameters, driving.holder, LEASE)
            except VersionConflict:  # another run was created in the same microsecond
                continue
        raise AflowError("No free run id was found: a thousand runs began in this millisecond.")

    def _environments(self, options: RunOptions) -> dict[str, Any]:
        if not options.locks:
            return {}
        record = environments.record  # lazy import: few runs have environments
        return {record.FIELD: record.recorded(options.locks, self._blobs())}

    def _record(
        self,
        definition: FlowDefinition,
        options: RunOptions,
        run: str,
        now: float,
        kind: str,
        values: Mapping[str, Any],
    ) -> RunRecord:
        return RunRecord(
            key=0,
            flow=definition.name,
            run=run,
            state=RunState.RUNNING,
            user=self._user,
            created_at=now,
            finished_at=None,
            version=0,
            tags=tuple(sorted(options.tags)),
            system_tags=(
                f"aflow_version:{__version__}",
                f"python_version:{sys.version.split()[0]}",
                "runtime:dev",
                f"user:{self._user}",
                *system_tags(values),
            ),
            graph=definition.graph.as_dict(),
            settings={
                "storage": self._store.url,
                **{name: getattr(options, name) for name in RECORDED_OPTIONS},
                "argv": [*map(without_passwords, options.argv)],
                "durability": self._durability,
                "script": definition.file,
                "program": code_package.program_of(definition)._asdict(),
                "parameters": list(definition.parameters),
                "defaults": _defaults(definition),
                "resume_identifier": options.resume_identifier,
                "clone_only": options.clone_only,
                **values,
            },
            origin_run=options.origin_run,
            kind=kind,
        )


def _code_of(definition: FlowDefinition, options: RunOptions) -> Callable[[], CodeFingerprints]:
    """Return a function that computes the fingerprints of the code once, at its first call."""

    @functools.cache
    def code() -> CodeFingerprints:
        from aflow.runs.cache.key import code_of  # lazy: its imports would delay the first task

        return code_of(definition, options.locks)

    return code


def _defaults(definition: FlowDefinition) -> dict[str, str]:
    """Return the defaults of parameters that are plain values, by attribute, as short texts in the
    format of previews. (A default that is a function may return another value at each call.)"""
    plain = (bool, int, float, str, type(None))
    return {
        name: short_repr(each.default)
        for name, each in definition.parameters.items()
        if type(each.default) in plain and type(each) is Parameter
    }


def _still_runs(run: RunRecord) -> InvalidInput:
    return InvalidInput(
        f"{run.flow}/{run.run} is still running: wait until it has ended, or stop it "
        f"(aflow cancel {run.flow}/{run.run}), before it is resumed."
    )
