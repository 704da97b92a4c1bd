"""Kubernetes as a job system: Indexed Jobs, through a few routes of the API server.

An id is `k8s@NAMESPACE@NAME`, with `:INDEX` for a member; names of Jobs are chosen by aflow and
unique. One list call by label returns many Jobs. A Job is ended by setting its deadline and not
deleted, so that it still shows who ended it; Kubernetes removes it after a while.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from aflow._core.clock import SystemClock
from aflow.errors import InvalidInput, JobRefused, JobSystemBusy, JobSystemError
from aflow.executors.jobs.base import (
    TAIL_LINES,
    TAIL_SIZE,
    CallLimits,
    JobState,
    JobStatus,
    Submission,
    SubmittedJob,
    counted,
    failed,
    lost,
    out_of_memory,
    quoted,
    timed_out,
    until_answered,
)
from aflow.executors.jobs.kubernetes.access import KubernetesApiError
from aflow.executors.jobs.kubernetes.manifest import (
    FLOW,
    INDEX,
    JOB,
    JOB_NAME,
    RUN,
    STEP,
    USER,
    job_manifest,
    job_name,
    label_of,
    service_manifest,
)
from aflow.executors.jobs.place import KUBERNETES
from aflow.scheduler.states import AttemptState
from aflow.task.spec import NO_RETRY_EXIT_CODE

if TYPE_CHECKING:
    from aflow.executors.jobs.kubernetes.access import KubernetesCluster, Object
    from aflow.executors.jobs.kubernetes.manifest import KubernetesStepJob
    from aflow.scheduler.messages import Outcome
    from aflow.task.spec import RunContext

LARGEST_ARRAY = 2_000  # pods: each is some 15 kB in the store of the API server
PULLING = 60.0  # seconds after which a Job is ended if its image is not in the registry
LOOKED_AT = 20  # pods and events that are checked to find out why a Job waits
ENDED_BY = "aflow/ended"  # the annotation with the reason for which aflow ended a Job

_log = logging.getLogger("aflow")
# Errors of a registry if an image does not exist or access is denied.
_NO_IMAGE = re.compile(
    r"not found|manifest unknown|does not exist|pull access denied|invalid reference|"
    r"InvalidImageName|ErrImageNeverPull",
    re.IGNORECASE,
)
_PULLS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})


class _Seen(NamedTuple):
    """A Job or one of its members.

    `job` is None if it does not exist, which it did before if it `was_there`; `pods` are None if
    they were not requested."""

    job: Object | None
    place: int | None = None
    pods: Sequence[Object] | None = None
    was_there: bool = False


class KubernetesSystem:
    """The jobs of a cluster."""

    title = "Kubernetes"
    advice = "See `kubectl describe pod`, and whether the cluster has nodes for what the step asks."
    limits = CallLimits(LARGEST_ARRAY, 100, 100)

    def __init__(self, cluster: KubernetesCluster) -> None:
        self._cluster = cluster
        self._clock = SystemClock()
        self._known: set[str] = set()  # ids of Jobs that have existed
        self._unwanted: defaultdict[str, set[int]] = defaultdict(set)  # by id: members to end
        self._waits: dict[str, float] = {}  # since when Jobs have had waiting pods

    @property
    def scope(self) -> str:
        """The address of the API server."""
        return f"kubernetes/{self._cluster.server}"

    # ------------------------------------------------------------ before a run starts

    def check_all(self, jobs: Sequence[KubernetesStepJob]) -> None:
        """Check that the API server would accept these Jobs.

        The secrets, claims and service accounts that they name must exist.

        Retries while the server does not respond. Blocks.

        Args:
            jobs: The jobs of the steps; each is sent as a dry run.

        Raises:
            InvalidInput: If the server rejects a Job, or a secret, claim or service account is
                missing.
            JobSystemUnauthorized: If the credentials are rejected.
            JobSystemBusy: If the server does not respond for too long.
            InvalidSetting: If a setting is invalid; the error names its key, source and valid
                values.
        """
        for job in jobs:
            until_answered("Kubernetes", lambda: self._check(job))  # noqa: B023 -- called immediately

    def _check(self, job: KubernetesStepJob) -> None:
        manifest = job_manifest(job, {}, job_name(("aflow-check",), "0"), 1, {})
        try:
            self._cluster.create(_jobs_path(job.namespace), manifest, dryRun="All")
        except KubernetesApiError as error:
            raise InvalidInput(
                f"Kubernetes does not take jobs of step {job.step} in the namespace "
                f"{job.namespace}: {error}"
            ) from error
        for kind, name in job.needed:
            try:
                self._cluster.get(f"{_core_path(job.namespace)}/{kind}/{quote(name)}")
            except KubernetesApiError as error:
                if error.status != 404:  # without permission to check: the pods will show it
                    continue
                raise InvalidInput(
                    f"Step {job.step} names what is not in the namespace {job.namespace} of "
                    f"Kubernetes: {error}"
                ) from error

    # ------------------------------------------------------------ jobs

    def name_of(self, context: RunContext, step: str, unique: str) -> str:
        """Return a name with user, flow, run and step, truncated if too long, and `unique`."""
        return job_name((context.user, context.flow, context.run, step), unique)

    def submit(self, submission: Submission) -> str:
        """Create a Job, and for a gang a headless service.

        Args:
            submission: The submission; its job is a KubernetesStepJob, its size the number of pods.

        Returns:
            The id of the Job.

        Raises:
            JobRefused: If the server rejects the Job.
            JobSystemBusy: If the server does not respond, or a quota is exceeded: a retry may
                succeed.
        """
        job: KubernetesStepJob = submission.job
        context = submission.context
        id = _id(job.namespace, submission.name)
        manifest = job_manifest(
            job,
            {USER: context.user, FLOW: context.flow, RUN: context.run, STEP: job.step},
            submission.name,
            submission.size,
            {
                **submission.environment,
                "AFLOW_JOB_SYSTEM": KUBERNETES,
                "AFLOW_JOB_ID": id,
                "AFLOW_JOB_SIZE": str(submission.size),
                "AFLOW_JOB_NODES": str(submission.size if job.is_gang else 1),
                "AFLOW_JOB_MEETING_TIMEOUT": f"{job.meeting_timeout:g}",
            },
        )
        try:
            made = self._cluster.create(_jobs_path(job.namespace), manifest)
            if job.is_gang:
                self._serve(job, submission.name, made["metadata"]["uid"])
        except KubernetesApiError as error:
            if "exceeded quota" in str(error):  # other Jobs may end
                raise JobSystemBusy(str(error)) from error
            if error.reason != "AlreadyExists":  # otherwise an earlier call has succeeded
                raise JobRefused(str(error)) from error
        self._known.add(id)
        return id

    def _serve(self, job: KubernetesStepJob, name: str, uid: str) -> None:
        path = f"{_core_path(job.namespace)}/services"
        try:
            self._cluster.create(path, service_manifest(job, name, uid))
        except JobSystemError as error:
            # Members find each other by their addresses; they only lack host names.
            _log.warning("The gang of step %s has no names of hosts: %s", job.step, error)

    def find(self, name: str, job: KubernetesStepJob) -> str | None:
        """Return the id of the Job with this name in its step's namespace; None if there is
        none."""
        if self._job(job.namespace, name) is None:
            return None
        self._known.add(_id(job.namespace, name))
        return _id(job.namespace, name)

    def member(self, job: str, index: int) -> str:
        """Return `ID:INDEX`."""
        return f"{job}:{index}"

    def describe(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        """Return the status of each of these jobs.

        This takes one list call per namespace, and another one for the pods of members, if any."""
        asked = {id: _JobId.parse(id) for id in ids}
        found: dict[str, Object] = {}
        pods: defaultdict[tuple[str, int], list[Object]] = defaultdict(list)
        by_namespace: defaultdict[str, list[_JobId]] = defaultdict(list)
        for each in asked.values():
            by_namespace[each.namespace].append(each)
        for namespace, some in by_namespace.items():
            names = sorted({each.name for each in some})
            for job in self._cluster.listed(
                _jobs_path(namespace), labelSelector=f"{JOB} in ({','.join(names)})"
            ):
                found[_id(namespace, job["metadata"]["name"])] = job
            indexes = sorted({each.place for each in some if each.place is not None})
            if indexes:
                for pod in self._pods(namespace, names, indexes):
                    owner = _id(namespace, pod["metadata"]["labels"].get(JOB_NAME, ""))
                    pods[owner, _index_of(pod)].append(pod)
        # A missing Job was deleted if it has been seen before; otherwise it may not be listed yet.
        self._known.update(found)
        statuses = {}
        for id, each in asked.items():
            job_id = id.partition(":")[0]
            there = found.get(job_id)
            if each.place is None:
                statuses[id] = self._status(id, there)
            else:
                seen = _Seen(there, each.place, pods[job_id, each.place])
                statuses[id] = _member_status(id, seen, was_there=job_id in self._known)
        return statuses

    def _status(self, id: str, job: Object | None) -> JobStatus:
        status = _job_status(id, job, was_there=id in self._known)
        if status.is_over:
            self._unwanted.pop(id, None)
            self._waits.pop(id, None)
        elif job is not None:
            self._end_unwanted(id, job)
            self._give_up_pulling(id, status)
        return status

    def _end_unwanted(self, id: str, job: Object) -> None:
        """End members whose pods may not have existed yet when they were terminated."""
        if left := self._unwanted.get(id, set()) - _ended(job):
            self._delete_pods(_JobId.parse(id), left)

    def _give_up_pulling(self, id: str, status: JobStatus) -> None:
        """End a Job whose image does not exist: its pods would wait forever."""
        now = self._clock.monotonic()
        if not status.waiting:
            self._waits.pop(id, None)
            return
        if now - self._waits.setdefault(id, now) < PULLING:
            return
        self._waits[id] = now
        for pod in self._pending(_JobId.parse(id)):
            for reason, message in _waiting_containers(pod):
                if reason in _PULLS and _NO_IMAGE.search(f"{reason} {message}"):
                    self.terminate([id], f"Its image cannot be pulled ({reason}: {message})")
                    return

    def why_waiting(self, status: JobStatus) -> str:
        """Return why its pods wait, according to Kubernetes, or why the Job has no pods."""
        asked = _JobId.parse(status.id)
        pods = self._pending(asked)
        reasons = [reason for pod in pods if (reason := why_pending(pod))]
        if not reasons:
            names = [each["metadata"]["name"] for each in pods[:1]] or [asked.name]
            reasons = [*self._warnings(asked.namespace, names[0])]
        return next(iter(reasons), "")

    def suspects(self, array: str, members: Sequence[str], *, is_over: bool) -> Sequence[str]:
        """Return the members that have ended according to the Job."""
        if is_over:
            return members
        asked = _JobId.parse(array)
        job = self._job(asked.namespace, asked.name)
        if job is None:
            return members
        ended = _ended(job)
        return [each for each in members if _JobId.parse(each).place in ended]

    def outcome_of(self, status: JobStatus) -> Outcome:
        """Return how the attempt ended; for a failed one with the last lines of its log."""
        asked = _JobId.parse(status.id)
        seen: _Seen = status.detail
        if seen.job is None:
            if seen.was_there:
                why = f"The job {asked.name} was deleted by somebody before it had ended."
                return failed(why, retryable=False)
            return lost(f"Kubernetes does not know its job {asked.name}.")
        outcome = _outcome_of_job(asked.name, seen.job)
        if outcome is not None:
            return outcome
        pods = seen.pods
        if pods is None:
            pods = self._pods(asked.namespace, [asked.name], ())
        pod = _that_failed(pods)
        outcome = outcome_of_pod(asked.name, pod, succeeded=status.succeeded)
        if pod is not None and outcome.state is AttemptState.FAILED and outcome.retryable:
            lines = self._last_lines(asked.namespace, pod["metadata"]["name"])
            outcome = outcome._replace(reason=outcome.reason + lines)
        return outcome

    def terminate(self, ids: Sequence[str], reason: str) -> None:
        """End these jobs: whole Jobs by a deadline, members by deleting their pods.

        In both cases pods receive SIGTERM, and SIGKILL after 30 seconds."""
        members: defaultdict[_JobId, set[int]] = defaultdict(set)
        for id in ids:
            asked = _JobId.parse(id)
            if asked.place is None:
                self._end(asked, reason)
            else:
                members[asked._replace(place=None)].add(asked.place)
        for asked, indexes in members.items():
            self._unwanted[_id(asked.namespace, asked.name)] |= indexes
            self._delete_pods(asked, indexes)

    def _end(self, asked: _JobId, reason: str) -> None:
        job = self._job(asked.namespace, asked.name)
        if job is None or _condition(job) is not None:
            return
        change = {
            "metadata": {"annotations": {ENDED_BY: reason}},
            "spec": {"activeDeadlineSeconds": 1},
        }
        self._unless_gone(
            lambda: self._cluster.patch(f"{_jobs_path(asked.namespace)}/{asked.name}", change)
        )

    def _delete_pods(self, asked: _JobId, indexes: Iterable[int]) -> None:
        selector = _of_members([asked.name], sorted(indexes))
        path = f"{_core_path(asked.namespace)}/pods"
        self._unless_gone(lambda: self._cluster.delete(path, labelSelector=selector))

    @staticmethod
    def _unless_gone(call: Callable[[], Object]) -> Object | None:
        """Return the result of the call; None if its object does not exist."""
        try:
            return call()
        except KubernetesApiError as error:
            if error.status == 404:
                return None
            raise

    def close(self) -> None:
        """Close the connections."""
        self._cluster.close()

    # ------------------------------------------------------------ objects of the cluster

    def _job(self, namespace: str, name: str) -> Object | None:
        return self._unless_gone(
            lambda: self._cluster.get(f"{_jobs_path(namespace)}/{quote(name)}")
        )

    def _pods(self, namespace: str, names: Sequence[str], indexes: Sequence[int]) -> list[Object]:
        path = f"{_core_path(namespace)}/pods"
        return self._cluster.listed(path, labelSelector=_of_members(names, indexes))

    def _pending(self, asked: _JobId) -> list[Object]:
        """Return the first pods of a Job that have not started."""
        index = () if asked.place is None else (asked.place,)
        return self._cluster.first(
            f"{_core_path(asked.namespace)}/pods",
            LOOKED_AT,
            labelSelector=_of_members([asked.name], index),
            fieldSelector="status.phase=Pending",
        )

    def _warnings(self, namespace: str, name: str) -> Iterator[str]:
        """Yield the warnings about an object, such as an exceeded quota or a missing volume."""
        events = self._cluster.first(
            f"{_core_path(namespace)}/events",
            LOOKED_AT,
            fieldSelector=f"involvedObject.name={name},type=Warning",
        )
        for event in sorted(events, key=_last_seen, reverse=True):
            yield f"{event.get('reason')}: {event.get('message')}"

    def _last_lines(self, namespace: str, pod: str) -> str:
        try:
            text = self._cluster.text(
                f"{_core_path(namespace)}/pods/{pod}/log",
                tailLines=TAIL_LINES,
                limitBytes=TAIL_SIZE,
            )
        except JobSystemError:  # its node is gone, or access is denied
            return ""
        lines = quoted(text.splitlines())
        return f" The log of pod {pod} ends with:{lines}" if lines else ""


# ------------------------------------------------------------------ ids and routes


class _JobId(NamedTuple):
    """The parts of an id."""

    namespace: str
    name: str
    place: int | None = None

    @classmethod
    def parse(cls, id: str) -> _JobId:
        _, namespace, rest = f"{id}@@".split("@", 2)
        name, _, index = rest.rstrip("@").partition(":")
        return cls(namespace, name, int(index) if index else None)


def _id(namespace: str, name: str) -> str:
    return f"k8s@{namespace}@{name}"


def _jobs_path(namespace: str) -> str:
    return f"/apis/batch/v1/namespaces/{quote(namespace)}/jobs"


def _core_path(namespace: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace)}"


def _of_members(names: Sequence[str], indexes: Sequence[int]) -> str:
    """Return the selector of the pods of these Jobs, limited to these indexes if there are any."""
    of_jobs = f"{JOB_NAME} in ({','.join(names)})"
    return f"{of_jobs},{INDEX} in ({','.join(map(str, indexes))})" if indexes else of_jobs


# ------------------------------------------------------------------ reading of objects (pure)


def _condition(job: Object) -> Object | None:
    """Return the condition with which a Job has ended; None if it has not ended."""
    for each in (job.get("status") or {}).get("conditions") or ():
        if each.get("type") in ("Complete", "Failed") and each.get("status") == "True":
            return dict(each)
    return None


def _intervals(job: Object, field: str) -> Iterator[int]:
    """Yield the indexes of a field such as `1,3-5`."""
    text = str((job.get("status") or {}).get(field) or "")
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first:
            yield from range(int(first), int(last or first) + 1)


def _ended(job: Object) -> set[int]:
    """Return the indexes of the members of a Job that have ended."""
    return {*_intervals(job, "completedIndexes"), *_intervals(job, "failedIndexes")}


def _job_status(id: str, job: Object | None, *, was_there: bool) -> JobStatus:
    if job is None:
        return JobStatus(id, JobState.UNKNOWN, detail=_Seen(None, was_there=was_there))
    size = int(job["spec"].get("completions") or 1)
    condition = _condition(job)
    succeeded = condition is not None and condition["type"] == "Complete"
    if condition is not None:
        state, waiting, ended = JobState.ENDED, 0, size
    else:
        status = job.get("status") or {}
        ended = len(_ended(job))
        waiting = max(0, size - ended - int(status.get("ready") or 0))
        state = JobState.WAITING if waiting == size else JobState.RUNNING
    return JobStatus(
        id,
        state,
        size,
        waiting,
        ended,
        detail=_Seen(job),
        succeeded=succeeded,
    )


def _member_status(id: str, seen: _Seen, *, was_there: bool) -> JobStatus:
    if seen.job is None:
        return _job_status(id, None, was_there=was_there)
    if seen.place in _ended(seen.job) or _condition(seen.job) is not None:
        state = JobState.ENDED
    else:
        runs = any((pod.get("status") or {}).get("phase") == "Running" for pod in seen.pods or ())
        state = JobState.RUNNING if runs else JobState.WAITING
    return JobStatus(
        id,
        state,
        waiting=int(state is JobState.WAITING),
        ended=int(state is JobState.ENDED),
        detail=seen,
        succeeded=seen.place in {*_intervals(seen.job, "completedIndexes")},
    )


def _index_of(pod: Object) -> int:
    return int(pod["metadata"]["labels"].get(INDEX) or 0)


def _last_seen(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def _containers(pod: Object) -> list[Object]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _waiting_containers(pod: Object) -> Iterator[tuple[str, str]]:
    for each in _containers(pod):
        waiting = (each.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            yield str(waiting["reason"]), str(waiting.get("message") or "")


def why_pending(pod: Object) -> str:
    """Return why a pod has not started, according to Kubernetes; empty if unknown.

    Args:
        pod: The pod, as the API server describes it.
    """
    for reason, message in _waiting_containers(pod):
        return f"{reason}: {message}".rstrip(": ")
    for each in (pod.get("status") or {}).get("conditions") or ():
        if each.get("type") == "PodScheduled" and each.get("status") == "False":
            return f"{each.get('reason')}: {each.get('message')}"
    return ""


def _terminated(pod: Object) -> Object | None:
    """Return how the container that failed has ended; else the last one that ended."""
    ends = [
        end for each in _containers(pod) if (end := (each.get("state") or {}).get("terminated"))
    ]
    return next((each for each in ends if each.get("exitCode")), ends[-1] if ends else None)


def _is_disrupted(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(
        each.get("type") == "DisruptionTarget" and each.get("status") == "True"
        for each in conditions
    )


def _that_failed(pods: Iterable[Object]) -> Object | None:
    """Return the pod that failed first. Other pods of a gang are deleted because of it."""
    ended = [
        pod
        for pod in pods
        if (pod.get("status") or {}).get("phase") == "Failed" and not _is_disrupted(pod)
    ]
    by_itself = [each for each in ended if not each["metadata"].get("deletionTimestamp")]
    return min(
        by_itself or ended,
        key=lambda pod: str((_terminated(pod) or {}).get("finishedAt") or "~"),
        default=None,
    )


def _outcome_of_job(name: str, job: Object) -> Outcome | None:
    """Return how all attempts of a Job ended if it was ended as a whole."""
    by = (job["metadata"].get("annotations") or {}).get(ENDED_BY)
    if by is not None:
        return failed(f"The job {name} was ended. {by.rstrip('.')}.", retryable=False)
    condition = _condition(job) or {}
    message = str(condition.get("message") or "").rstrip(".")
    if condition.get("reason") == "PodFailurePolicy":
        return lost(f"the gang {name} was disrupted ({message}).")
    if condition.get("type") == "Failed" and condition.get("reason") == "DeadlineExceeded":
        why = f"The job {name} was ended by its deadline, which somebody has set ({message})."
        return failed(why, retryable=False)
    return None


def outcome_of_pod(name: str, pod: Object | None, *, succeeded: bool = False) -> Outcome:
    """Return how an attempt without a report ended. Pure.

    Args:
        name: The name of the Job, for the reason.
        pod: The pod that failed; None if there is none.
        succeeded: Whether Kubernetes counts the pod as succeeded, in spite of the missing report.
    """
    if pod is None and succeeded:
        return lost(
            f"its pod of the job {name} ended well, and its report is not in the datastore. See "
            "that pods have the same datastore."
        )
    if pod is None:
        why = f"The pod of the task was deleted by somebody (job {name})."
        return failed(why, retryable=False)
    status = pod.get("status") or {}
    which = f"The pod {pod['metadata']['name']}"
    node = (pod.get("spec") or {}).get("nodeName")
    where = f" on {node}" if node else ""
    reason, message = str(status.get("reason") or ""), str(status.get("message") or "").rstrip(".")
    end = _terminated(pod)
    if reason == "DeadlineExceeded":
        limit = (pod.get("spec") or {}).get("activeDeadlineSeconds")
        return timed_out(
            f"{which} ran for longer than its limit of {limit} seconds, and was stopped."
        )
    if end is not None and end.get("reason") == "OOMKilled":
        limits = ((pod["spec"].get("containers") or [{}])[0].get("resources") or {}).get("limits")
        limit = (limits or {}).get("memory")
        return out_of_memory(which, f"the limit of {limit}" if limit else f"the node has{where}")
    if reason == "Evicted":
        return failed(f"{which} was evicted{where}: {message}.")
    if end is None or end.get("reason") == "ContainerStatusUnknown":
        why = ": ".join(filter(None, (reason, message))) or "Kubernetes does not say why"
        return lost(f"{which} did not run{where} ({why}).")
    code = end.get("exitCode")
    if end.get("reason") in ("StartError", "ContainerCannotRun"):
        cause = str(end.get("message") or "").rstrip(".")
        return failed(f"{which} could not be started{where}: {cause}.", retryable=False)
    if pod["metadata"].get("deletionTimestamp"):
        return failed(f"{which} was deleted by somebody.", retryable=False)
    return failed(
        f"{which} ended with exit code {code}{where} before it could report.",
        retryable=code != NO_RETRY_EXIT_CODE,
    )


# ------------------------------------------------------------------ Jobs of runs


def unfinished(
    cluster: KubernetesCluster,
    namespaces: Iterable[str],
    user: str | None,
    flow: str | None,
    run: str | None,
) -> list[SubmittedJob]:
    """Return the unfinished Jobs of aflow in these namespaces, oldest first. Blocks.

    Args:
        cluster: The connection to the API server; it stays open.
        namespaces: The namespaces to search.
        user: The name of the user; None for all.
        flow: The name of the flow; None for all.
        run: The id of the run; None for all.

    Raises:
        JobSystemError: If the API server rejects the call, or does not respond.
        InvalidSetting: If a setting is invalid; the error names its key, source and valid values.
    """
    expected = {USER: user, FLOW: flow, RUN: run}
    selector = ",".join(
        [JOB, *(f"{key}={label_of(value)}" for key, value in expected.items() if value is not None)]
    )
    found = []
    for namespace in namespaces:
        for job in cluster.listed(_jobs_path(namespace), labelSelector=selector):
            notes = job["metadata"].get("annotations") or {}
            # Labels are truncated, and may select other Jobs as well.
            fits = all(value in (None, notes.get(key)) for key, value in expected.items())
            if _condition(job) is None and ENDED_BY not in notes and fits:
                found.append(_submitted(namespace, job, notes))
    return sorted(found, key=lambda job: job.created_at)


def _submitted(namespace: str, job: Object, notes: Mapping[str, str]) -> SubmittedJob:
    name = job["metadata"]["name"]
    id = _id(namespace, name)
    status = _job_status(id, job, was_there=True)
    counts = {
        "waiting": status.waiting,
        "running": status.size - status.waiting - status.ended,
        "ended": status.ended,
    }
    return SubmittedJob(
        id=id,
        shown=f"{namespace}/{name}",
        user=notes.get(USER, ""),
        path=f"{notes.get(FLOW, '')}/{notes.get(RUN, '')}/{notes.get(STEP, '')}",
        state=counted(counts),
        created_at=_time(job["metadata"].get("creationTimestamp")),
    )


def _time(value: str | None) -> float:
    """Return a timestamp of Kubernetes in seconds since the epoch."""
    return datetime.fromisoformat(value).timestamp() if value else 0.0
