"""A run before its first task: its parameters, its record, and what it need not compute again."""

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
from aflow.flow.parameters import Parameter, ParameterContext, resolve
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

# Reads the files that a flow includes.


def included(parameters: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of parameters, with the content in place of the path for each IncludeFile.

    Args:
        parameters: The parameters of the flow, by name.
        values: The values of the parameters, for files their paths.

    Raises:
        InvalidParameter: For a file that cannot be read.
    """
    module = sys.modules.get("aflow.flow.parameters")  # else no flow can have one
    if module is None:
        return dict(values)
    return {
        name: parameters[name].content(value, _read)
        if value is not None and isinstance(parameters.get(name), module.IncludeFile)
        else value
        for name, value in values.items()
    }


def _read(path: str) -> bytes:
    return expanded(path).read_bytes()


# What flow decorators say of a run: where in its project it stands, and what started it.


_TAGS = {"project": "project_name", "project_branch": "branch_name"}


def values_of(
    definition: FlowDefinition, options: RunOptions, user: str, metadata: MetadataStore
) -> dict[str, Any]:
    """Return what a run's settings hold of its flow's decorators: `project` and `trigger`, where
    there is something to say.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        options: The options of the run: branch, production and trigger.
        user: The user who starts the run.
        metadata: The metadata store, which has the run of a trigger.

    Raises:
        InvalidInput: The branch or the trigger cannot be used.
        NotFound: The run of the trigger does not exist.
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
    """Return the values of all parameters of a run, by attribute: as they are given by name, else
    by default.

    A default that is a function sees the flow's configs in its context, and what is known of the
    run in `current`: the flow, the user, the place in the project.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        given: The parameters that were given, by name.
        user: The user who starts the run.
        ds_type: The kind of datastore, as Metaflow names it.
        branch: The branch of @project; None for the default one.
        production: Whether @project is deployed to production; None where that was not said.
        show: Takes one line for people.

    Raises:
        InvalidParameter: And, for a branch that cannot be used, InvalidInput.
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
    """Yield the tags that say which project and branch a run belongs to.

    Args:
        values: What `values_of` has returned for the run.
    """
    place = values.get("project")
    if place is not None:
        for name, key in _TAGS.items():
            yield f"{name}:{place[key]}"


def current_facts(run: RunRecord) -> dict[str, Any]:
    """Return what `current` has of the run's project and trigger.

    Args:
        run: The run, as it is recorded.
    """
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
    for name in dict.fromkeys((end, "end")):  # its waiting caller need not know its name
        yield {
            "name": f"metaflow.{spec.flow}.{name}",
            "id": f"{pathspec}/{end}/{last.task.task}",
            "timestamp": run.finished_at,
            "type": "run",
        }


class RunInputs(NamedTuple):
    """What a run begins with. `parameters` is the manifest of its task 0, `code` gives what its
    results rest on, which takes some milliseconds the first time."""

    parameters: bytes
    code: Callable[[], CodeFingerprints]
    reusable: ReusableResults | None


class Driving(NamedTuple):
    """The lease holder of a run, as `kind/name`, and the lookahead and the bounds of its executor.
    `engine` names what an engine is to be asked by, where that drives the run (see `liveness`)."""

    holder: str
    lookahead: int
    engine: Mapping[str, str] | None = None
    bounds: Mapping[str, int] | None = None


class NewRun(NamedTuple):
    """A run that is recorded, and has not begun.

    `facts` gives what is still to be recorded about its code: that is worked out while the first
    task runs. Tasks that are `settled` before it begins are to be recorded, too. `launch` is its
    only task, if it has but one.
    """

    record: RunRecord
    parameters: bytes
    facts: Callable[[], MetadataRecord]
    reusable: ReusableResults | None = None
    settled: Sequence[Settled] = ()
    launch: LaunchAttempt | None = None


class Creation:
    """Creates runs in one place, for one user. All calls block."""

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
        """`deployed_by` is whose branch of a project runs are on, where the user is another."""
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
        """Record a new run of the flow, whose holder has the lease for LEASE seconds. If an error
        is raised nothing is recorded.

        Args:
            definition: The flow: its class, steps, parameters and decorators.
            options: The options of the run.
            given: The parameters that were given, by name.
            driving: Who drives the run, for the lease: the coordinator or an engine.

        Returns:
            The run, and what is needed to drive it.

        Raises:
            InvalidParameter: A parameter is missing, or has a value that cannot be used.
            NotFound: The run to resume does not exist.
            InvalidInput: The run to resume cannot be resumed.
            StorageError: The datastore does not answer.
            MetadataError: The metadata store does not answer.
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
        """See that a run that is resumed has ended: a server, or another coordinator, would take it
        up as one that was left, and run the same steps beside the new run."""
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
        """A run of one task, with the inputs that it had before."""
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
        """Return what a run would begin with. Its parameters are stored in `store`, nothing is
        recorded. Raises what `create` raises.

        Args:
            definition: The flow: its class, steps, parameters and decorators.
            options: The options of the run.
            given: The parameters that were given, by name.
            store: Where the parameters are stored: for a dry run a store in memory.
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
        """Return the sources of reusable results of this run, which has begun. Raises what `create`
        raises for the run that it resumes.

        Args:
            definition: The flow: its class, steps, parameters and decorators.
            options: The options of the coordinator.
            run: The run, as it is recorded.
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
        """The sources of reusable results of the run; None where there are none."""
        known: list[ReusableResults] = []
        if origin is not None:
            assert options.origin_run is not None, "an origin has a name"
            known.append(runs.resume.ResumedRun(options.origin_run, origin, definition.graph))
        if any(step.decorator("cache") for step in definition.steps.values()):
            from aflow.runs.cache import reuse  # few flows have any: the first task waits for it

            steps, blobs = reuse.cached_steps(definition), BlobStore(self._store)
            if steps:
                known.append(
                    reuse.CachedTasks(definition, steps, code(), self._metadata, blobs, parameters)
                )
                return known[0] if origin is None else reuse.InTurn(*known)
        return next(iter(known), None)

    def _origin(self, definition: FlowDefinition, options: RunOptions) -> Finished | None:
        """What the run to resume has finished; None where no run is resumed.

        Raises NotFound where there is no such run, InvalidInput where it cannot be resumed.
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
        """The values of the parameters; of a resumed run those alone that its origin has not, or
        that are given another value."""
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
        """What task 0 leaves: the flow's constants, and the values of its parameters."""
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
            except VersionConflict:  # another run began in the same microsecond
                continue
        raise AflowError("No free run id was found: a thousand runs began in this millisecond.")

    def _environments(self, options: RunOptions) -> dict[str, Any]:
        if not options.locks:
            return {}
        record = environments.record  # imported now: few runs have any
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
    """Gives the code that results of the run rest on, as it is when it is asked first."""

    @functools.cache
    def code() -> CodeFingerprints:
        from aflow.runs.cache.key import code_of  # what it imports, the first task need not await

        return code_of(definition, options.locks)

    return code


def _defaults(definition: FlowDefinition) -> dict[str, str]:
    """The defaults of parameters as short texts, by attribute, as previews have those of values:
    of those that are plain values. (A function as the default may give another value each time.)"""
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
