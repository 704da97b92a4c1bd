"""What has to be known to run steps on Kubernetes; names of keys are Metaflow's."""

from __future__ import annotations

from aflow._core.records import dataclass
from aflow._core.settings import looked_up

KEYS: dict[str, tuple[str, ...]] = {
    "image": ("KUBERNETES_CONTAINER_IMAGE", "DEFAULT_CONTAINER_IMAGE"),
    "registry": ("KUBERNETES_CONTAINER_REGISTRY", "DEFAULT_CONTAINER_REGISTRY"),
    "namespace": ("KUBERNETES_NAMESPACE",),
    "service_account": ("KUBERNETES_SERVICE_ACCOUNT",),
    "secrets": ("KUBERNETES_SECRETS",),
    "node_selector": ("KUBERNETES_NODE_SELECTOR",),
    "tolerations": ("KUBERNETES_TOLERATIONS",),
    "labels": ("KUBERNETES_LABELS",),
    "annotations": ("KUBERNETES_ANNOTATIONS",),
    "persistent_volume_claims": ("KUBERNETES_PERSISTENT_VOLUME_CLAIMS",),
    "image_pull_policy": ("KUBERNETES_IMAGE_PULL_POLICY",),
    "image_pull_secrets": ("KUBERNETES_IMAGE_PULL_SECRETS",),
    "gpu_vendor": ("KUBERNETES_GPU_VENDOR",),
    "shared_memory": ("KUBERNETES_SHARED_MEMORY",),
    "qos": ("KUBERNETES_QOS",),
    "cpu": ("KUBERNETES_CPU",),
    "memory": ("KUBERNETES_MEMORY",),
    "disk": ("KUBERNETES_DISK",),
    "port": ("KUBERNETES_DEFAULT_PORT",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings:
    """Options of @kubernetes for steps that do not give them; None where one is not set."""

    image: str | None = None
    registry: str | None = None
    namespace: str | None = None
    service_account: str | None = None
    secrets: str | None = None
    node_selector: str | None = None
    tolerations: str | None = None
    labels: str | None = None
    annotations: str | None = None
    persistent_volume_claims: str | None = None
    image_pull_policy: str | None = None
    image_pull_secrets: str | None = None
    gpu_vendor: str | None = None
    shared_memory: str | None = None
    qos: str | None = None
    cpu: str | None = None
    memory: str | None = None
    disk: str | None = None
    port: str | None = None

    @classmethod
    def load(cls) -> KubernetesSettings:
        """Return the settings of this program."""
        return cls(**{name: looked_up(*keys) for name, keys in KEYS.items()})
