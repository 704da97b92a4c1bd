"""Manifests of the Jobs that run steps: pure functions of what decorators and settings say.

Every Job is an Indexed one: a wide foreach has a completion for each of its tasks. A pod that is
disrupted (its node is drained or fails, it is preempted) is not a failure of its task: the Job
starts another one in its place. A pod that fails is not started again: the run counts attempts.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core.settings import Settings, looked_up
from aflow.aws.settings import passed_on
from aflow.environments.shipping import command
from aflow.errors import InvalidInput, InvalidSetting
from aflow.executors.jobs.base import with_registry
from aflow.executors.jobs.kubernetes.settings import KEYS

if TYPE_CHECKING:
    from aflow.executors.jobs.kubernetes.settings import KubernetesSettings
    from aflow.flow.definition import StepDefinition

Manifest = dict[str, Any]

PROGRAM = ("aflow", "_task")
PYTHON = "python"
LONGEST_NAME = 57  # a pod's host name has the index behind it, and 63 characters at most
KEPT = 86_400  # seconds after its end that a Job is kept
MARGIN = 60  # seconds beyond @timeout for a pod to start its task, and to report its end
UNSAID = {"cpu": 1.0, "memory": 4096.0, "disk": 10240.0}  # where nobody asks for it
DEFAULT_PORT = 5005
COMPUTE_POOL = "outerbounds.co/compute-pool"  # the label of nodes that Metaflow's option means

# Labels, by which Jobs are found, and annotations, in which names stand unshortened.
JOB, FLOW, RUN, STEP, USER = "aflow/job", "aflow/flow", "aflow/run", "aflow/step", "aflow/user"
MANAGED = {"app.kubernetes.io/name": "aflow-task", "app.kubernetes.io/managed-by": "aflow"}
INDEX, JOB_NAME = "batch.kubernetes.io/job-completion-index", "batch.kubernetes.io/job-name"
_IGNORED = "batch.kubernetes.io/job-index-ignored-failure-count"

_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_QOS = ("burstable", "guaranteed")
_VENDORS = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "intel": "gpu.intel.com/i915"}


class KubernetesStepJob(NamedTuple):
    """What all Jobs of a step have in common: where they are, the template of their pods, and what
    has to be there for these. `meeting_timeout` is in seconds, for members of a gang."""

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
        """Where its pods wait: the namespace."""
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
    """Return how an attempt of a step is submitted; `namespace` is that of steps that name none,
    `environment` are the variables of all pods.

    Args:
        step: The step, with its decorators.
        settings: The settings of the cluster, which stand where the step says nothing.
        namespace: The namespace of Kubernetes for steps that name none.
        environment: The environment variables of all pods of the run, by name.
        is_gang: Whether the attempts start together, on nodes that talk to each other.
        attempt: The number of the attempt, from 0.

    Raises:
        InvalidInput: An option of @kubernetes cannot be used.
        InvalidSetting: A setting that the step needs, such as an image, is missing or cannot be
            used.
    """
    options = _Options(step, settings)
    volumes, mounts, variables = _volumes(options)
    spec: Manifest = {
        "restartPolicy": "Never",
        "enableServiceLinks": False,
        "containers": [
            {
                "name": "step",
                "image": _image(options),
                "command": command(shlex.split(options.text("executable") or PYTHON), PROGRAM),
                "resources": _resources(options, attempt),
                "env": _variables({**environment, **variables}),
            }
        ],
    }
    container = spec["containers"][0]
    policy = options.choice("image_pull_policy", _PULL_POLICIES)
    port = options.whole("port")
    security = _security(options)
    container |= _given(
        imagePullPolicy=policy,
        envFrom=[{"secretRef": {"name": name}} for name in options.names("secrets")],
        volumeMounts=mounts,
        securityContext=security,
        ports=[{"containerPort": port, "name": "port"}] if port else None,
    )
    timeout = step.decorator("timeout")
    spec |= _given(
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
    return KubernetesStepJob(
        step=step.name,
        namespace=options.text("namespace", own_only=True) or namespace,
        template={"metadata": {"labels": labels, **_given(annotations=annotations)}, "spec": spec},
        labels=labels,
        annotations=annotations,
        is_gang=is_gang,
        port=port,
        meeting_timeout=options.number("hostname_resolution_timeout") or 600.0,
    )


def _given(**values: Any) -> Manifest:
    """Those that say something."""
    return {name: value for name, value in values.items() if value}


def _variables(environment: Mapping[str, str]) -> list[Manifest]:
    # Kubernetes replaces `$(NAME)` in values.
    return [
        {"name": key, "value": environment[key].replace("$(", "$$(")} for key in sorted(environment)
    ]


# ------------------------------------------------------------------ options


class _Options:
    """The options of a step: its own, and those of settings for what it does not say. On the
    command line, and in settings, all of them are texts."""

    def __init__(self, step: StepDefinition, settings: KubernetesSettings) -> None:
        self.step = step
        self.settings = settings
        self._own: Any = step.decorator("kubernetes")

    def value(self, name: str, *, own_only: bool = False) -> Any:
        """An option; None where nobody gives it."""
        found = getattr(self._own, name, None)
        if found is None and not own_only:
            found = getattr(self.settings, name, None)
        return found

    def text(self, name: str, *, own_only: bool = False) -> str | None:
        """An option that is a text."""
        found = self.value(name, own_only=own_only)
        return None if found in (None, "") else str(found)

    def wrong(self, name: str, what: str) -> InvalidInput:
        """That an option is not what it has to be."""
        if getattr(self._own, name, None) is None:
            return InvalidSetting(
                f"AFLOW_{KEYS[name][0]} must be {what}, not {self.value(name)!r}."
            )
        return InvalidInput(
            f"Step {self.step.name}: {name} of @kubernetes must be {what}, not "
            f"{self.value(name)!r}."
        )

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        """An option that is one of these, in capital or small letters."""
        found = self.text(name)
        if found is None:
            return None
        chosen = next((each for each in choices if each.lower() == found.lower()), None)
        if chosen is None:
            raise self.wrong(name, f"one of {', '.join(choices)}")
        return chosen

    def number(self, name: str) -> float | None:
        """An option that is a number of 0 or more."""
        return None if (value := self.value(name)) is None else self._number(name, value)

    def _number(self, name: str, value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not number >= 0 or math.isinf(number):
            raise self.wrong(name, "a number of 0 or more")
        return number

    def whole(self, name: str) -> int | None:
        """An option that is a whole number."""
        number = self.number(name)
        if number is not None and number != int(number):
            raise self.wrong(name, "a whole number")
        return None if number is None else int(number)

    def names(self, name: str) -> list[str]:
        """An option that is a list of names, or a text of them with commas between."""
        value = self.value(name)
        if value is None:
            return []
        parts = value.strip("[] ").split(",") if isinstance(value, str) else value
        if isinstance(parts, Mapping) or not isinstance(parts, Iterable):
            raise self.wrong(name, "a list of names")
        return [text for each in parts if (text := str(each).strip(" \"'"))]

    def mapping(self, name: str) -> dict[str, str]:
        """An option that is a mapping: also as JSON, or as `a=b,c=d`."""
        value = self.value(name)
        if isinstance(value, str):
            value = _parsed(value) if value.strip().startswith("{") else _pairs(value)
        elif isinstance(value, list | tuple):
            value = _pairs(",".join(map(str, value)))
        if value is None and self.value(name) is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.wrong(name, "a mapping, or pairs such as a=b,c=d")
        return {str(key): "" if each is None else str(each) for key, each in value.items()}

    def most(self, option: str, attempt: int) -> float:
        """The most of what @kubernetes and @resources ask for, else what settings say."""
        resources: Any = self.step.decorator("resources")
        own = getattr(self._own, option, None)
        found = [] if own is None else [self._number(option, own)]
        if resources is not None and (asked := resources.amount(option, attempt)) is not None:
            found.append(asked)
        if not found and (said := getattr(self.settings, option, None)) is not None:
            found.append(self._number(option, said))
        return max(found, default=UNSAID.get(option, 0.0))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _pairs(text: str) -> dict[str, str] | None:
    pairs = [each.partition("=") for each in text.split(",") if each.strip()]
    if not all(key.strip() and sign for key, sign, _ in pairs):
        return None
    return {key.strip(): value.strip() for key, _, value in pairs}


def _image(options: _Options) -> str:
    image = options.text("image")
    if image is None:
        # Any Python of this version will do: aflow is shipped to it.
        return "python:{}.{}".format(*sys.version_info[:2])
    if re.search(r"\s", image):
        raise options.wrong("image", "the name of an image")
    return with_registry(image, options.settings.registry)


def _resources(options: _Options, attempt: int) -> Manifest:
    asked = {
        "cpu": f"{options.most('cpu', attempt) or 1:g}",
        "memory": f"{math.ceil(options.most('memory', attempt) or UNSAID['memory'])}M",
        "ephemeral-storage": f"{math.ceil(options.most('disk', attempt) or UNSAID['disk'])}M",
    }
    more: dict[str, str] = {}
    if gpus := math.ceil(options.most("gpu", attempt)):
        vendor = options.text("gpu_vendor") or "nvidia"
        more[_VENDORS.get(vendor.lower(), vendor if "/" in vendor else f"{vendor}.com/gpu")] = str(
            gpus
        )
    more |= options.mapping("extended_resources")
    resources: Any = options.step.decorator("resources")
    if resources is not None:
        amounts = resources.custom_amounts(attempt)
        # A name with a domain is one of the cluster's own resources.
        more |= {name: f"{math.ceil(each)}" for name, each in amounts.items() if "/" in name}
    is_guaranteed = options.choice("qos", _QOS) == "guaranteed"
    limits = {**(asked if is_guaranteed else {}), **more}
    return {"requests": {**asked, **more}, **_given(limits=limits)}


def _volumes(options: _Options) -> tuple[list[Manifest], list[Manifest], dict[str, str]]:
    """The volumes of a pod, where they are mounted, and the variables that say so."""
    volumes: list[Manifest] = []
    mounts: list[Manifest] = []
    variables: dict[str, str] = {}

    def mount(name: str, path: str, source: Manifest) -> None:
        if not path.startswith("/"):
            raise InvalidInput(
                f"Step {options.step.name}: volumes of @kubernetes are mounted at an absolute "
                f"path, not at {path!r}."
            )
        volumes.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": path})

    for number, (claim, path) in enumerate(options.mapping("persistent_volume_claims").items()):
        mount(f"claim-{number}", path, {"persistentVolumeClaim": {"claimName": claim}})
    resources: Any = options.step.decorator("resources")
    shared = options.number("shared_memory") or (
        resources.amount("shared_memory") if resources is not None else None
    )
    if shared:
        mount("shared-memory", "/dev/shm", _in_memory(shared))  # noqa: S108 -- of the pod
    size = options.number("tmpfs_size")
    if options.value("use_tmpfs") or size:
        path = options.text("tmpfs_path") or "/aflow_temp"
        mount("tmpfs", path, _in_memory(size or max(1, options.most("memory", 0) / 2)))
        if options.value("tmpfs_tempdir"):
            variables["AFLOW_TEMPDIR"] = path
    return volumes, mounts, variables


def _in_memory(size: float) -> Manifest:
    return {"emptyDir": {"medium": "Memory", "sizeLimit": f"{math.ceil(size)}Mi"}}


def _selector(options: _Options) -> dict[str, str]:
    pool = options.text("compute_pool")
    return {**options.mapping("node_selector"), **({COMPUTE_POOL: pool} if pool else {})}


def _tolerations(options: _Options) -> list[Manifest]:
    value = options.value("tolerations")
    given = _parsed(value) if isinstance(value, str) else value
    if value in (None, ""):
        return []
    if isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, list | tuple) or not all(isinstance(e, Mapping) for e in given):
        raise options.wrong(
            "tolerations", 'a list such as [{"key": "dedicated", "operator": "Exists"}]'
        )
    return [dict(each) for each in given]


_SECURITY = {
    "privileged": "privileged",
    "allow_privilege_escalation": "allowPrivilegeEscalation",
    "run_as_user": "runAsUser",
    "run_as_group": "runAsGroup",
    "run_as_non_root": "runAsNonRoot",
    "read_only_root_filesystem": "readOnlyRootFilesystem",
}


def _security(options: _Options) -> Manifest:
    given = options.value("security_context")
    if isinstance(given, str):
        given = _parsed(given)
    if given is None and options.value("security_context") is None:
        return {}
    known = {**_SECURITY, **{name: name for name in _SECURITY.values()}}
    if not isinstance(given, Mapping) or not known.keys() >= given.keys():
        raise options.wrong("security_context", f"a mapping with keys of {', '.join(_SECURITY)}")
    return {known[name]: value for name, value in given.items()}


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


# ------------------------------------------------------------------ variables


def variables_of(metadata: str, storage: str) -> dict[str, str]:
    """Return the variables of all pods of a run: what the client inside of a step needs to find
    what it finds here. `metadata` is the setting, `storage` the URL of the store.

    Args:
        metadata: The setting: `service`, a URL, or a kind that pods cannot reach, which is left
            out.
        storage: The URL of the datastore; only `s3://` is passed on.
    """
    found = {**passed_on(), "AFLOW_USER": Settings.load().user}
    if storage.startswith("s3://"):
        found |= {"AFLOW_DEFAULT_DATASTORE": "s3", "AFLOW_DATASTORE_SYSROOT_S3": storage}
        if (endpoint := looked_up("S3_ENDPOINT_URL")) is not None:
            found["AFLOW_S3_ENDPOINT_URL"] = endpoint
    url = looked_up("SERVICE_INTERNAL_URL", "SERVICE_URL")
    if metadata == "service" and url is not None:
        found |= {"AFLOW_DEFAULT_METADATA": metadata, "AFLOW_SERVICE_URL": url}
    elif metadata.startswith(("http://", "https://")):
        found["AFLOW_DEFAULT_METADATA"] = metadata
    return found


def check_reach(job: KubernetesStepJob, storage: str) -> None:
    """Check that pods of the step can reach the datastore: by S3, or by a volume at the same path.

    Args:
        job: The job of the step, with its volume mounts.
        storage: The URL of the datastore.

    Raises:
        InvalidSetting: Where pods of the step cannot reach the store.
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
    """Return the name of a Job, which no other has: people see whose it is, and `unique` stands at
    its end.

    Args:
        parts: User, flow, run and step; shortened together where they are too long.
        unique: A text that no other submission has; it is never shortened.
    """
    text = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
    if not text[:1].isalpha():
        text = f"a-{text}"
    return f"{text[: LONGEST_NAME - len(unique) - 1].rstrip('-')}-{unique}"


def label_of(text: str) -> str:
    """Return a text as the value of a label: shortened, and without what such a value cannot have.

    Args:
        text: Any text; names of users and flows may have characters that labels cannot.
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
        job: What all Jobs of the step have in common; it is copied, not changed.
        owner_labels: The labels that name its user and run, by key.
        name: The name of the Job, which a gang's service has, too.
        size: How many pods: attempts of an array, or members of a gang.
        environment: Variables beside those that all pods of the step have, by name.
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
    # A gang is started as a whole, so it is lost as a whole: its run starts it again.
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
    """Return the headless service by which members of a gang have names: `NAME-INDEX.NAME`. It goes
    with its Job.

    Args:
        job: What all Jobs of the step have in common.
        name: The name of the Job, which the service shares.
        uid: The uid of the Job, the owner of the service: Kubernetes deletes both together.
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
