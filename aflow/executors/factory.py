"""Create the executors of a run: local processes, workers of a queue, or jobs.

A run uses few of these, and some need an optional dependency. Therefore `aws`, `envs`, `executors`
and `job_systems` are packages that import their modules lazily (aflow/_core/lazy.py).
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aflow import aws, executors
from aflow import environments as envs
from aflow._core.clock import SystemClock
from aflow._core.records import NamedTuple, replace
from aflow._core.secret import without_passwords
from aflow._core.settings import Settings, looked_up
from aflow.environments import asks
from aflow.errors import AflowError, CodePackageError, EnvironmentFailed, InvalidSetting
from aflow.executors import jobs as job_systems
from aflow.executors.local.admission import ConcurrencyLimit, admission_for
from aflow.executors.local.executor import ProcessExecutor, needs_of
from aflow.executors.local.preload import imported_here
from aflow.executors.local.zygote_start import spawn_here
from aflow.queue.factory import open_queue
from aflow.storage.blobs import BlobStore
from aflow.storage.factory import open_store
from aflow.task import code_package
from aflow.task.program import packaged, request_of, source_of

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow._core.settings import RunOptions
    from aflow.environments.build import Built
    from aflow.environments.lock import Lock, Shipped
    from aflow.executors.base import Executor, Orphan, Reports
    from aflow.executors.local.zygote_client import ZygoteProcess
    from aflow.executors.protocol import Job
    from aflow.flow.definition import FlowDefinition, StepDefinition
    from aflow.metadata.base import MetadataStore, RunRecord
    from aflow.storage.base import ObjectStore
    from aflow.task.code_package import Package
    from aflow.task.program import LoadRequest
    from aflow.task.spec import AttemptSpec, RunContext

_log = logging.getLogger("aflow")


JobOf = Callable[[str, int], Any]  # creates the job of an attempt: step, attempt number
JOB_SYSTEMS = ("batch", "slurm", "kubernetes")


class Travelling(NamedTuple):
    """What other machines need to run attempts of a flow.

    `request` describes how to load the flow, `code` is its code package (None for a pickled flow),
    `jobs` has one factory of job definitions per job system, and `environments` the uploaded
    environments of the steps that have one."""

    request: LoadRequest
    code: Package | None
    jobs: Mapping[str, JobOf]
    environments: Mapping[str, Shipped]


def locations(definition: FlowDefinition, options: RunOptions) -> dict[str, str]:
    """Return where each step runs: `local`, `queue`, `batch`, `slurm` or `kubernetes`.

    With the executor `queue`, all steps run on the queue. With any other executor, `in_jobs`
    returns the steps that run as jobs. With the executor `local`, steps with @queue run on the
    queue if one is configured. All remaining steps run locally.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        options: The options of the run; `executor`, `queue`, `spin` and `decospecs` are used.

    Raises:
        InvalidSetting: If the executor is `queue` and no queue is configured.
    """
    if options.executor == "queue":
        if options.queue is None:
            raise InvalidSetting(
                "--executor queue needs a queue: give --queue URL, or set AFLOW_QUEUE."
            )
        return dict.fromkeys(definition.steps, "queue")
    # `spin` runs its one step locally, unless another executor was requested explicitly.
    spins = options.spin is not None and options.executor == "local"
    jobs = {} if spins else in_jobs(definition, options.executor, options.decospecs)
    has_queue = options.queue is not None
    return {
        name: "queue"
        if has_queue and step.decorator("queue") and options.executor == "local"
        else jobs.get(name, "local")
        for name, step in definition.steps.items()
    }


def in_jobs(
    definition: FlowDefinition, executor: str, decospecs: Sequence[str] = ()
) -> dict[str, str]:
    """Return the steps that run as jobs, each with its job system.

    A job system runs all steps if `executor` names it. Otherwise each system runs the steps with
    its decorator, if `decospecs` name it or it is available: a job queue (AWS Batch) or a namespace
    (Kubernetes) is configured, or this machine has sbatch (Slurm). If several systems apply to a
    step, AWS Batch takes precedence over Slurm, and Slurm over Kubernetes.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        executor: The value of `--executor`: the name of a job system, or of another executor.
        decospecs: The values of `--with`; a job system named there is used without a check.
    """
    if executor in JOB_SYSTEMS:
        return dict.fromkeys(definition.steps, executor)
    named = {each.partition(":")[0].strip() for each in decospecs}
    found: dict[str, str] = {}
    has_place = cache(_has_place)  # reads the settings once for each system, if a step needs it
    for name, step in definition.steps.items():
        for system in JOB_SYSTEMS:
            decorator = step.decorator(system)
            if decorator is None:
                continue
            if system in named or _own_place(system, decorator) or has_place(system):
                found[name] = system
                break
    return found


def _own_place(system: str, decorator: Any) -> str:
    """Return the job queue or the namespace that a decorator names; "" if it names none."""
    if system == "batch":
        return decorator.queue or ""
    return (decorator.namespace or "") if system == "kubernetes" else ""


def _has_place(system: str) -> bool:
    """Return whether there is a job queue, Slurm's commands or a namespace for all steps."""
    if system == "batch":
        return bool(aws.settings.AwsSettings.load().queue)
    if system == "slurm":
        return shutil.which("sbatch") is not None
    return bool(looked_up("KUBERNETES_NAMESPACE"))


def with_locks(
    definition: FlowDefinition,
    options: RunOptions,
    report: Callable[[str], None] | None = None,
    *,
    rebuild: bool = False,
) -> RunOptions:
    """Return the options with the locked packages of steps with a separate environment.

    Blocks while packages are resolved for the first time. Raises InvalidSetting, InvalidDecorator,
    MissingExtra and EnvironmentFailed.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        options: The options of the run; only `locks` differs in the result.
        report: Receives one line for each slow operation; None for the log.
        rebuild: Whether to resolve and build existing environments again.
    """
    if not asks(definition, options.environment):
        return replace(options, locks={})
    prepare = envs.prepare
    elsewhere = [name for name, place in locations(definition, options).items() if place != "local"]
    locks = prepare.locks_of(
        definition,
        options.environment,
        only=_spun(options),
        platforms=prepare.platforms_of(definition, elsewhere, Settings.load()) if elsewhere else {},
        report=report or prepare.to_log,
        rebuild=rebuild,
    )
    _check_flow_loads(definition, locks)
    return replace(options, locks=locks)


def built_here(
    definition: FlowDefinition,
    options: RunOptions,
    report: Callable[[str], None] | None = None,
    *,
    rebuild: bool = False,
) -> Mapping[str, Built]:
    """Return the environments of the steps that run on this machine, by the digests of their locks.

    Missing ones are built. Blocks.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        options: The options of the run, with the locks that `with_locks` returned.
        report: Receives one line for each slow operation; None for the log.
        rebuild: Whether to resolve and build existing environments again.

    Raises:
        EnvironmentFailed: If the packages cannot be resolved, downloaded or installed.
    """
    prepare = envs.prepare
    here = [name for name, place in locations(definition, options).items() if place == "local"]
    return prepare.build_all(
        options.locks or {}, here, report=report or prepare.to_log, rebuild=rebuild
    )


def _check_flow_loads(definition: FlowDefinition, locks: Mapping[str, Lock]) -> None:
    """Raise EnvironmentFailed if a step has another Python version and the flow is pickled."""
    own = "{}.{}".format(*sys.version_info[:2])
    other = next((name for name, lock in locks.items() if lock.minor != own), None)
    if other is not None and "pickle" in source_of(definition.cls):
        raise EnvironmentFailed(
            f"Step {other} has Python {locks[other].minor}, and {definition.name} is in no file "
            f"(it was made in a notebook, say): it can be run by Python {own} alone."
        )


def needs_processes(definition: FlowDefinition, of_step: Mapping[str, str]) -> bool:
    """Return whether any attempts run in processes on this machine.

    These are attempts of local steps, and attempts that handle the failure of a step's job
    (@catch), which are too short to be worth a job.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        of_step: The executors, by step.
    """
    return any(
        place == "local" or (place in JOB_SYSTEMS and definition.steps[name].decorator("catch"))
        for name, place in of_step.items()
    )


def travelling(
    definition: FlowDefinition, options: RunOptions, store: ObjectStore
) -> Travelling | None:
    """Return what workers and jobs load the flow from, with its code uploaded to the datastore.

    None if all steps are local. Blocks.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        options: The options of the run.
        store: The datastore; the code package is stored there.

    Raises:
        InvalidSetting: If other machines cannot reach the datastore or a queue.
        CodePackageError: If the code package cannot be created, read or unpacked.
        AwsError: If AWS rejects a request.
        JobSystemError: If a job system does not respond, or would reject a step.
        StorageError: If the datastore does not respond.
    """
    of_step = locations(definition, options)
    if set(of_step.values()) == {"local"}:
        return None
    if store.url == "memory:":
        raise InvalidSetting("Workers cannot reach a datastore in memory: use a folder, or S3.")
    jobs: dict[str, JobOf] = {}
    for system in JOB_SYSTEMS:
        steps = [step for name, step in definition.steps.items() if of_step[name] == system]
        if steps:
            jobs[system] = getattr(_StepJobs(definition, options, store, steps), system)()
    environments = _shipped(options, store, of_step)
    request = request_of(definition, options.decospecs, spun=_spun(options))
    if "pickle" in request.source:  # the flow was defined in a notebook, for example
        return Travelling(request, None, jobs, environments)
    try:
        code = code_package.store(definition, BlobStore(store), options.package_suffixes)
    except CodePackageError as error:
        raise CodePackageError(f"The flow cannot be sent to workers. {error}") from error
    return Travelling(request, code, jobs, environments)


def _shipped(
    options: RunOptions, store: ObjectStore, of_step: Mapping[str, str]
) -> Mapping[str, Shipped]:
    """Upload the environments of steps that run elsewhere, and return them by step."""
    locks = {name: each for name, each in (options.locks or {}).items() if of_step[name] != "local"}
    if not locks:
        return {}
    prepare = envs.prepare
    python = prepare.job_python(Settings.load())
    return envs.transport.ship(locks, store, SystemClock.now(), prepare.to_log, python).of_steps


class _StepJobs(NamedTuple):
    """Creates the jobs of the steps that run in one job system; a method for each system."""

    definition: FlowDefinition
    options: RunOptions
    store: ObjectStore
    steps: Sequence[StepDefinition]

    def batch(self) -> JobOf:
        """Return the factory of AWS Batch jobs. Requests the kinds of their job queues from AWS."""
        batch = job_systems.batch
        definitions = batch.definitions
        aws.settings.needs_s3(self.store.url)
        settings = aws.settings.AwsSettings.load()
        for step in self.steps:
            definitions.step_job(step, settings, {})  # fails early if a setting is missing
        calls = aws.client.AwsClient(manner=aws.client.ONCE)
        fargate: dict[str, bool] = {}
        for queue in sorted({definitions.queue_of(each, settings) for each in self.steps}):
            ask = partial(batch.job_system.called, partial(calls.is_fargate, queue))
            fargate[queue] = job_systems.base.until_answered("AWS Batch", ask)
        variables = job_systems.options.variables_of(self.options.metadata, self.store.url)
        variables |= {"AWS_DEFAULT_REGION": calls.region}
        variables |= self._shipped_runtime()
        calls.close()

        def submitted(step: StepDefinition, **about: Any) -> Any:
            is_fargate = fargate[definitions.queue_of(step, settings)]
            return definitions.step_job(step, settings, variables, fargate=is_fargate, **about)

        return self._kept(submitted)

    def _shipped_runtime(self) -> dict[str, str]:
        """Upload this aflow for jobs whose images lack it; return the variables that locate it."""
        now, ours = SystemClock.now(), Settings.load()
        targets = envs.spec.job_targets(self.definition, [each.name for each in self.steps], ours)
        shipment = envs.shipping.runtime_shipment(ours.cache / "wheels", now, targets)
        if shipment is None:
            return {}
        shipment.put(self.store, now)
        return shipment.variables(self.store.url)

    def slurm(self) -> JobOf:
        """Return the factory of Slurm jobs, after checking that Slurm would accept them."""
        jobs = self._kept(partial(job_systems.slurm.step_job, python=sys.executable))
        job_systems.slurm.SlurmSystem(Path()).check_all([jobs(step.name, 0) for step in self.steps])
        return jobs

    def kubernetes(self) -> JobOf:
        """Return the factory of Kubernetes jobs, after checking that the cluster accepts them."""
        kubernetes = job_systems.kubernetes
        manifest = kubernetes.manifest
        settings = kubernetes.settings.KubernetesSettings.load()
        for step in self.steps:  # fails early if the jobs cannot work
            manifest.check_reach(manifest.step_job(step, settings, "", {}), self.store.url)
        cluster = kubernetes.access.KubernetesCluster()
        try:
            namespace = settings.namespace or cluster.namespace
            variables = job_systems.options.variables_of(self.options.metadata, self.store.url)
            submitted = partial(
                manifest.step_job, settings=settings, namespace=namespace, environment=variables
            )
            jobs = self._kept(submitted)
            kubernetes.job_system.KubernetesSystem(cluster).check_all(
                [jobs(step.name, 0) for step in self.steps]
            )
            if self.store.url.startswith("s3://"):
                variables |= self._shipped_runtime()
                jobs = self._kept(submitted)
        finally:
            cluster.close()
        return jobs

    def _kept(self, submitted: Callable[..., Any]) -> JobOf:
        """Return a factory that reuses the job of a step for all its attempts.

        `submitted` creates a job, from a step, `attempt=` and `is_gang=`. A step whose @resources
        grow with the attempt number gets one job per attempt."""
        by_name = {step.name: step for step in self.steps}
        made: dict[tuple[str, int], Any] = {}

        def job_of(name: str, attempt: int) -> Any:
            step = by_name[name]
            resources: Any = step.decorator("resources")
            key = (name, attempt if resources is not None and resources.grows else 0)
            if key not in made:
                is_gang = name in self.definition.graph.gangs
                made[key] = submitted(step, attempt=attempt, is_gang=is_gang)
            return made[key]

        for name in by_name:
            job_of(name, 0)
        return job_of


def _spun(options: RunOptions) -> str | None:
    return None if options.spin is None else options.spin.step


def executor_for(
    definition: FlowDefinition,
    options: RunOptions,
    store: ObjectStore,
    metadata: MetadataStore,
    clock: Clock,
    *,
    travels: Travelling | None,
    zygote: ZygoteProcess | None,
    grace: float,
    built: Mapping[str, Built] | None = None,
) -> Executor:
    """Return the executor that runs the attempts of a run.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        options: The options of the run.
        store: The datastore of the run.
        metadata: The metadata store of the run.
        clock: The source of the time.
        travels: What other machines need to run an attempt; None if all steps are local.
        zygote: A zygote that has already been started; None to start one for the first task.
        grace: Seconds between SIGTERM and SIGKILL.
        built: The environments of steps on this machine, by the digests of their locks; None if
            there are none.
    """
    of_step = locations(definition, options)
    made: dict[str, Executor] = {}
    inside: dict[str, Executor] = {}  # steps on this machine with a separate environment
    if needs_processes(definition, of_step):
        # An attempt that handles the failure of a job does not need the step's packages.
        steps = [name for name, place in of_step.items() if place == "local"]
        here = _Processes(definition, options, clock, grace, steps)
        made["local"] = here.made(zygote)
        inside = here.in_environments(built or {})
    if travels is not None:
        described = _described(definition, options, travels)
        common = (store, metadata, described)
        if "queue" in of_step.values():
            url = options.queue
            assert url is not None, "a run with steps on a queue has one"
            made["queue"] = executors.queue_workers.QueueExecutor(
                partial(open_queue, url),
                *common,
                executors.queue_workers.pools_of(definition).__getitem__,
                clock,
                keys=[each.reveal().encode() for each in options.signing_keys],
                priority=options.priority,
                grace=grace,
                amounts=lambda spec: _asked(definition, spec),
            )
        for place, job_of in travels.jobs.items():
            made[place] = job_systems.executor.JobExecutor(
                _system_of(place), job_of, *common, clock, grace=grace
            )
    if len(made) == 1 and not inside:
        return next(iter(made.values()))
    # Few runs have more than one executor; the others avoid the overhead.
    by_step = {step: inside.get(step) or made[place] for step, place in of_step.items()}
    jobs = any(place in made for place in JOB_SYSTEMS)
    return ByStep(by_step, made.get("local") if jobs else None)


def _system_of(place: str) -> Any:
    """Return the job system of a place."""
    if place == "batch":
        calls = aws.client.AwsClient(manner=aws.client.ONCE)
        return job_systems.batch.job_system.BatchSystem(calls)
    if place == "slurm":
        return job_systems.slurm.SlurmSystem(Settings.load().root / "slurm")
    kubernetes = job_systems.kubernetes
    return kubernetes.job_system.KubernetesSystem(kubernetes.access.KubernetesCluster())


def resource_notes(definition: FlowDefinition, options: RunOptions) -> list[str]:
    """Return a sentence for each local step that gets less of this machine than it requests.
    Blocks.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        options: The options of the run; `resources` and `max_workers` are the machine's capacity.

    Raises:
        InvalidInput: If a step requests more than the machine has.
    """
    here = [name for name, place in locations(definition, options).items() if place == "local"]
    found = admission_for(definition, here, options.resources, options.max_workers)
    return [] if found is None else found[1].notes()


class _Processes:
    """Creates the executors of this machine, which share its slots."""

    def __init__(
        self,
        definition: FlowDefinition,
        options: RunOptions,
        clock: Clock,
        grace: float,
        steps: Sequence[str],
    ) -> None:
        self._definition = definition
        self._options = options
        self._clock = clock
        self._grace = grace
        self._steps = steps
        self._limit = ConcurrencyLimit(options.max_workers)
        self._shared = self._on_machine()

    def _on_machine(self) -> dict[str, Any]:
        """Return the arguments that all executors share if steps request resources of the machine:
        slots, and the amounts that each attempt requests."""
        options = self._options
        # Processes that run many attempts observe the limit themselves.
        workers = options.max_workers if options.isolation == "task" else None
        found = admission_for(self._definition, self._steps, options.resources, workers)
        if found is None:
            return {}
        admission, demands = found
        bounds = demands.bounds(admission.slots, options.max_workers)
        gangs = self._definition.graph.gangs
        return {
            "admission": admission,
            "amounts": lambda spec: demands.amounts(spec.step, spec.attempt),
            # A gang starts as a whole, so its step has no bound.
            "bounds": {name: each for name, each in bounds.items() if name not in gangs},
            "gangs": gangs,
        }

    def made(self, zygote: ZygoteProcess | None, built: Built | None = None) -> ProcessExecutor:
        """Return an executor whose processes run in this Python, or in an environment."""
        options = self._options
        imported = imported_here() if built is None else None
        request = request_of(self._definition, options.decospecs, imported, _spun(options))
        return ProcessExecutor(
            needs_of(self._definition, options.process),
            request if built is None else packaged(request),
            lambda: spawn_here(built),
            self._clock,
            first=zygote,
            max_workers=options.max_workers,
            limit=self._limit,
            isolation=options.isolation,
            grace=self._grace,
            debug_step=options.debug_step,
            is_lazy=built is not None,
            **self._shared,
        )

    def in_environments(self, built: Mapping[str, Built]) -> dict[str, Executor]:
        """Return the executor of each step with an environment; equal locks share one."""
        by_digest: dict[str, Executor] = {}
        by_step: dict[str, Executor] = {}
        for name, lock in (self._options.locks or {}).items():
            if name in self._steps:
                if lock.digest not in by_digest:
                    by_digest[lock.digest] = self.made(None, built[lock.digest])
                by_step[name] = by_digest[lock.digest]
        return by_step


def keep_from_workers(run: RunRecord) -> None:
    """Prevent workers from running more attempts of a run that was ended without its coordinator.

    Messages of the run may still be queued, or be leased by a crashed worker. Errors of the store
    are logged, as the run has ended anyway. Blocks.

    Args:
        run: The record of the run, which has ended.
    """
    try:
        store = open_store(run.settings["storage"])
        if next(iter(store.list(f"jobs/{run.flow}/{run.run}/")), None) is not None:
            from aflow.task.remote import mark_over  # imports the runner, which few callers need

            mark_over(store, run.flow, run.run)
    except (AflowError, KeyError) as error:
        _log.warning("Workers cannot be notified of the end of %s/%s: %s", run.flow, run.run, error)


def _described(
    definition: FlowDefinition, options: RunOptions, travels: Travelling
) -> Callable[[RunContext], Job]:
    """Return a function that describes the run to the processes that run its attempts elsewhere."""
    request, code = travels.request, travels.code

    def job(context: RunContext) -> Job:
        # Other users can read the datastore; workers have their own settings.
        source = dict(request.source)
        if "argv" in source:
            source["argv"] = [*map(without_passwords, source["argv"])]
        return executors.protocol.Job(
            context=context._replace(metadata_url=without_passwords(context.metadata_url)),
            request=request._replace(source=source),
            needs=needs_of(definition, options.process),
            code=None if code is None else code.key,
            script="" if code is None else code.script,
            isolation=options.isolation,
            python=executors.protocol.python_version(),
            max_log_size=options.max_log_size,
            environments=travels.environments,
        )

    return job


def _asked(definition: FlowDefinition, spec: AttemptSpec) -> dict[str, float]:
    resources = definition.steps[spec.step].decorator("resources")
    return {} if resources is None else resources.amounts(spec.attempt)


# Attempts of one run in several places: an executor for each step.


class ByStep:
    """An executor that delegates each step to one of several executors.

    If `fallbacks` is given, it runs the attempts that handle the failure of a step without running
    it (@catch), so that they do not depend on the place that failed."""

    def __init__(
        self, executors: Mapping[str, Executor], fallbacks: Executor | None = None
    ) -> None:
        self._of_step = executors
        self._fallbacks = fallbacks
        others = [] if fallbacks is None else [fallbacks]
        self._all = [*dict.fromkeys([*executors.values(), *others])]

    def _of(self, spec: AttemptSpec) -> Executor:
        if spec.fallback and self._fallbacks is not None:
            return self._fallbacks
        return self._of_step[spec.step]

    @property
    def bounds(self) -> Mapping[str, int]:
        """The bounds of all executors; each has its own steps."""
        return {step: bound for each in self._all for step, bound in each.bounds.items()}

    @property
    def lookahead(self) -> int:
        """The lowest lookahead of all executors."""
        return min(each.lookahead for each in self._all)

    def recover(self, orphans: Sequence[Orphan]) -> Sequence[Orphan]:
        """Pass each attempt to the executor of its step; return the lost ones."""
        lost: list[Orphan] = []
        for each in self._all:
            lost += each.recover([o for o in orphans if self._of(o.spec) is each])
        return lost

    def forget(self, task: int, attempt: int) -> None:
        """Forward to all executors; only the one that launched the attempt knows it."""
        for each in self._all:
            each.forget(task, attempt)

    async def start(self, context: RunContext, reports: Reports) -> None:
        """Start all executors. If one raises, the caller must still call `stop`."""
        for each in self._all:
            await each.start(context, reports)

    def launch(self, spec: AttemptSpec) -> None:
        """Start this attempt with the executor of its step."""
        self._of(spec).launch(spec)

    def cancel(self, task: int, attempt: int) -> None:
        """Forward to all executors; those that do not know the attempt ignore it."""
        for each in self._all:
            each.cancel(task, attempt)

    async def conclude(self) -> None:
        """Conclude all of them, at the same time."""
        await asyncio.gather(*(each.conclude() for each in self._all))

    async def leave(self) -> None:
        """Call `leave` on all executors."""
        await asyncio.gather(*(each.leave() for each in self._all))

    async def stop(self) -> None:
        """Stop everything that is still running. May be called twice."""
        await asyncio.gather(*(each.stop() for each in self._all))
