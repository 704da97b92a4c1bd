"""Manifests of the Jobs that run steps: pure functions of decorators and settings.

Every Job is an Indexed Job: a wide foreach has one completion per task. If a pod is disrupted (its
node is drained or fails, or it is preempted), its task does not fail: the Job replaces the pod. A
failed pod is not restarted, since the run counts attempts.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow.environments.shipping import command
from aflow.errors import InvalidInput, InvalidSetting
from aflow.executors.jobs.options import (
    MARGIN,
    PROGRAM,
    PYTHON,
    StepOptions,
    as_json,
    with_registry,
)

if TYPE_CHECKING:
    from aflow.executors.jobs.kubernetes.settings import KubernetesSettings
    from aflow.flow.definition import StepDefinition

Manifest = dict[str, Any]

LONGEST_NAME = 57  # a pod's host name appends the index, and has at most 63 characters
KEPT = 86_400  # seconds for which an ended Job is kept
MEMORY, DISK = 4096.0, 10240.0  # MB of a pod by default
DEFAULT_PORT = 5005
COMPUTE_POOL = "outerbounds.co/compute-pool"  # the node label for Metaflow's option

# Labels, by which Jobs are found, and annotations, which contain the same names untruncated.
JOB, FLOW, RUN, STEP, USER = "aflow/job", "aflow/flow", "aflow/run", "aflow/step", "aflow/user"
MANAGED = {"app.kubernetes.io/name": "aflow-task", "app.kubernetes.io/managed-by": "aflow"}
INDEX, JOB_NAME = "batch.kubernetes.io/job-completion-index", "batch.kubernetes.io/job-name"
_IGNORED = "batch.kubernetes.io/job-index-ignored-failure-count"

_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_QOS = ("burstable", "guaranteed")
_VENDORS = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "intel": "gpu.intel.com/i915"}


class KubernetesStepJob(NamedTuple):
    """The properties shared by all Jobs of a step: namespace, pod template and labels.

    `meeting_timeout` is in seconds, for members of a gang."""

    step: str
    namespace: str
    template: Manifest
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    is_gang: bool = False
    port: int | None = None
    meeting_timeout: float = 600.0

    @property
    def queue(self) -> str:
        """The namespace, in which its pods wait."""
        return self.namespace

    @property
    def needed(self) -> list[tuple[str, str]]:
        """The objects that pods refer to, as pairs of a kind's plural and a name."""
        spec = self.template["spec"]
        found = [("serviceaccounts", str(spec.get("serviceAccountName") or ""))]
        sources = spec["containers"][0].get("envFrom", ())
        found += [("secrets", each["secretRef"]["name"]) for each in sources]
        found += [("secrets", each["name"]) for each in spec.get("imagePullSecrets", ())]
        for volume in spec.get("volumes", ()):
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                found.append(("persistentvolumeclaims", claim))
        return [each for each in dict.fromkeys(found) if each[1]]


def step_job(
    step: StepDefinition,
    settings: KubernetesSettings,
    namespace: str,
    environment: Mapping[str, str],
    *,
    is_gang: bool = False,
    attempt: int = 0,
) -> KubernetesStepJob:
    """Return the job of an attempt of a step.

    Args:
        step: The step, with its decorators.
        settings: The defaults for options of @kubernetes.
        namespace: The namespace of steps that name none.
        environment: The environment variables of all pods of the run, by name.
        is_gang: Whether the attempts start together, on nodes that communicate with each other.
        attempt: The number of the attempt, from 0.

    Raises:
        InvalidInput: If an option of @kubernetes is invalid.
        InvalidSetting: If a setting is invalid.
    """
    options = StepOptions(step, "kubernetes", settings)
    volumes, mounts, variables = _volumes(step, options)
    spec: Manifest = {
        "restartPolicy": "Never",
        "enableServiceLinks": False,
        "containers": [
            {
                "name": "step",
                "image": _image(options, settings.registry),
                "command": command(shlex.split(options.text("executable") or PYTHON), PROGRAM),
                "resources": _resources(step, options, attempt),
                "env": _variables({**environment, **variables}),
            }
        ],
    }
    container = spec["containers"][0]
    port = options.whole("port")
    container |= _present(
        imagePullPolicy=options.choice("image_pull_policy", _PULL_POLICIES),
        envFrom=[{"secretRef": {"name": name}} for name in options.names("secrets")],
        volumeMounts=mounts,
        securityContext=_security(options),
        ports=[{"containerPort": port, "name": "port"}] if port else None,
    )
    timeout = step.decorator("timeout")
    spec |= _present(
        volumes=volumes,
        serviceAccountName=options.text("service_account"),
        imagePullSecrets=[{"name": name} for name in options.names("image_pull_secrets")],
        nodeSelector=_selector(options),
        tolerations=_tolerations(options),
        activeDeadlineSeconds=timeout and math.ceil(timeout.total_seconds) + MARGIN,
    )
    labels = {**options.mapping("labels"), **MANAGED}
    for name, value in labels.items():
        _check_label(step.name, name, value)
    annotations = options.mapping("annotations")
    metadata = {"labels": labels, **_present(annotations=annotations)}
    return KubernetesStepJob(
        step=step.name,
        namespace=options.text("namespace", own_only=True) or namespace,
        template={"metadata": metadata, "spec": spec},
        labels=labels,
        annotations=annotations,
        is_gang=is_gang,
        port=port,
        meeting_timeout=options.number("hostname_resolution_timeout") or 600.0,
    )


def _present(**values: Any) -> Manifest:
    """Return the values that are not empty."""
    return {name: value for name, value in values.items() if value}


def _variables(environment: Mapping[str, str]) -> list[Manifest]:
    # Kubernetes replaces `$(NAME)` in values.
    return [
        {"name": key, "value": environment[key].replace("$(", "$$(")} for key in sorted(environment)
    ]


def _image(options: StepOptions, registry: str | None) -> str:
    image = options.text("image")
    if image is None:
        # Any Python of this version works: aflow is uploaded for it.
        return "python:{}.{}".format(*sys.version_info[:2])
    if re.search(r"\s", image):
        raise options.wrong("image", "the name of an image")
    return with_registry(image, registry)


def _resources(step: StepDefinition, options: StepOptions, attempt: int) -> Manifest:
    resources: Any = step.decorator("resources")
    asked = {
        "cpu": f"{options.most('cpu', attempt) or 1:g}",
        "memory": f"{math.ceil(options.most('memory', attempt) or MEMORY)}M",
        "ephemeral-storage": f"{math.ceil(options.most('disk', attempt) or DISK)}M",
    }
    more: dict[str, str] = {}
    if gpus := math.ceil(options.most("gpu", attempt)):
        vendor = options.text("gpu_vendor") or "nvidia"
        name = vendor if "/" in vendor else f"{vendor}.com/gpu"
        more[_VENDORS.get(vendor.lower(), name)] = str(gpus)
    more |= options.mapping("extended_resources")
    if resources is not None:
        amounts = resources.custom_amounts(attempt)
        # A name with a domain is an extended resource of the cluster.
        more |= {name: f"{math.ceil(each)}" for name, each in amounts.items() if "/" in name}
    is_guaranteed = options.choice("qos", _QOS) == "guaranteed"
    limits = {**(asked if is_guaranteed else {}), **more}
    return {"requests": {**asked, **more}, **_present(limits=limits)}


def _volumes(
    step: StepDefinition, options: StepOptions
) -> tuple[list[Manifest], list[Manifest], dict[str, str]]:
    """Return the volumes of a pod, their mounts, and the environment variables with their paths."""
    resources: Any = step.decorator("resources")
    volumes: list[Manifest] = []
    mounts: list[Manifest] = []
    variables: dict[str, str] = {}

    def mount(name: str, path: str, source: Manifest) -> None:
        if not path.startswith("/"):
            raise InvalidInput(
                f"Step {step.name}: volumes of @kubernetes are mounted at an absolute path, not at "
                f"{path!r}."
            )
        volumes.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": path})

    for number, (claim, path) in enumerate(options.mapping("persistent_volume_claims").items()):
        mount(f"claim-{number}", path, {"persistentVolumeClaim": {"claimName": claim}})
    shared = options.number("shared_memory") or (
        resources.amount("shared_memory") if resources is not None else None
    )
    if shared:
        mount("shared-memory", "/dev/shm", _in_memory(shared))  # noqa: S108 -- of the pod
    size = options.number("tmpfs_size")
    if options.value("use_tmpfs") or size:
        path = options.text("tmpfs_path") or "/aflow_temp"
        memory = options.most("memory", 0) or MEMORY
        mount("tmpfs", path, _in_memory(size or max(1, memory / 2)))
        if options.value("tmpfs_tempdir"):
            variables["AFLOW_TEMPDIR"] = path
    return volumes, mounts, variables


def _in_memory(size: float) -> Manifest:
    return {"emptyDir": {"medium": "Memory", "sizeLimit": f"{math.ceil(size)}Mi"}}


def _selector(options: StepOptions) -> dict[str, str]:
    pool = options.text("compute_pool")
    return {**options.mapping("node_selector"), **({COMPUTE_POOL: pool} if pool else {})}


def _tolerations(options: StepOptions) -> list[Manifest]:
    value = options.value("tolerations")
    parsed = as_json(value) if isinstance(value, str) else value
    if value in (None, ""):
        return []
    if isinstance(parsed, Mapping):
        parsed = [parsed]
    if not isinstance(parsed, list | tuple) or not all(isinstance(e, Mapping) for e in parsed):
        raise options.wrong(
            "tolerations", 'a list such as [{"key": "dedicated", "operator": "Exists"}]'
        )
    return [dict(each) for each in parsed]


_SECURITY = {
    "privileged": "privileged",
    "allow_privilege_escalation": "allowPrivilegeEscalation",
    "run_as_user": "runAsUser",
    "run_as_group": "runAsGroup",
    "run_as_non_root": "runAsNonRoot",
    "read_only_root_filesystem": "readOnlyRootFilesystem",
}


def _security(options: StepOptions) -> Manifest:
    context = options.value("security_context")
    if context is None:
        return {}
    if isinstance(context, str):
        context = as_json(context)
    known = {**_SECURITY, **{name: name for name in _SECURITY.values()}}
    if not isinstance(context, Mapping) or not known.keys() >= context.keys():
        raise options.wrong("security_context", f"a mapping with keys of {', '.join(_SECURITY)}")
    return {known[name]: value for name, value in context.items()}


_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?\Z")


def _check_label(step: str, name: str, value: str) -> None:
    prefix, _, own = name.rpartition("/")
    if not own or len(own) > 63 or len(prefix) > 253 or len(value) > 63 or not (
        _LABEL.match(own) and _LABEL.match(value)
    ):  # fmt: skip
        raise InvalidInput(
            f"Step {step}: {name}={value} is not a label of Kubernetes: names and values have 63 "
            "letters, digits, dashes, underscores and dots at most, and begin and end with a "
            "letter or digit."
        )


def check_reach(job: KubernetesStepJob, storage: str) -> None:
    """Check that pods of the step can reach the datastore.

    It must be in S3, or in a volume that is mounted at the same path.

    Args:
        job: The job of the step, with its volume mounts.
        storage: The URL of the datastore.

    Raises:
        InvalidSetting: If the pods cannot reach the datastore.
    """
    if storage.startswith("s3://"):
        return
    folder = storage.removeprefix("file://")
    mounts = job.template["spec"]["containers"][0].get("volumeMounts", ())
    if not any(f"{folder}/".startswith(each["mountPath"].rstrip("/") + "/") for each in mounts):
        raise InvalidSetting(
            f"Pods of step {job.step} cannot reach the datastore {folder}: use --datastore s3, or "
            "a folder in a volume that is mounted at the same path here and in pods "
            "(persistent_volume_claims of @kubernetes)."
        )


# ------------------------------------------------------------------ Jobs


def job_name(parts: Sequence[str], unique: str) -> str:
    """Return the unique name of a Job, which shows users what it belongs to and ends with `unique`.

    Args:
        parts: User, flow, run and step; truncated together if they are too long.
        unique: A text that is unique to the submission; it is never truncated.
    """
    text = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
    if not text[:1].isalpha():
        text = f"a-{text}"
    return f"{text[: LONGEST_NAME - len(unique) - 1].rstrip('-')}-{unique}"


def label_of(text: str) -> str:
    """Return a text as a valid label value: truncated, with invalid characters replaced.

    Args:
        text: Any text, such as the name of a user or a flow.
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:63].strip("-_.")


def job_manifest(
    job: KubernetesStepJob,
    owner_labels: Mapping[str, str],
    name: str,
    size: int,
    environment: Mapping[str, str],
) -> Manifest:
    """Return the manifest of a Job of `size` pods.

    Args:
        job: The properties shared by all Jobs of the step; copied, not changed.
        owner_labels: The labels for user, flow, run and step, by key.
        name: The name of the Job, and of a gang's service.
        size: The number of pods: attempts of an array, or members of a gang.
        environment: Additional environment variables, by name.
    """
    labels = {
        **job.labels,
        **{key: label_of(value) for key, value in owner_labels.items()},
        JOB: name,
    }
    annotations = {**job.annotations, **owner_labels}
    template = json.loads(json.dumps(job.template))
    template["metadata"] = {
        "labels": {**template["metadata"]["labels"], **labels},
        "annotations": annotations,
    }
    container = template["spec"]["containers"][0]
    container["env"] += [
        *_variables(environment),
        _own("AFLOW_JOB_TRIES", f"metadata.annotations['{_IGNORED}']"),
    ]
    # A gang starts as a whole, so it is lost as a whole, and the run starts it again.
    disrupted = {
        "action": "FailJob" if job.is_gang else "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    spec: Manifest = {
        "completionMode": "Indexed",
        "completions": size,
        "parallelism": size,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [disrupted]},
        "ttlSecondsAfterFinished": KEPT,
        "template": template,
    }
    if job.is_gang:
        spec["backoffLimit"] = 0
        template["spec"]["subdomain"] = name
    else:
        spec["backoffLimitPerIndex"] = 0
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": job.namespace,
            "labels": labels,
            "annotations": annotations,
        },
        "spec": spec,
    }


def _own(name: str, field: str) -> Manifest:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}}


def service_manifest(job: KubernetesStepJob, name: str, uid: str) -> Manifest:
    """Return the headless service that gives members of a gang the host names `NAME-INDEX.NAME`.

    Args:
        job: The properties shared by all Jobs of the step.
        name: The name of the Job and of the service.
        uid: The uid of the Job, which owns the service: Kubernetes deletes both together.
    """
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": job.namespace,
            "labels": dict(job.labels),
            "ownerReferences": [owner],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {JOB: name},
            "ports": [{"name": "port", "port": job.port or DEFAULT_PORT}],
        },
    }
