"""The settings for steps on Kubernetes; the names of the keys are Metaflow's."""

from __future__ import annotations

from aflow._core.records import dataclass
from aflow._core.settings import PartSettings, key


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings(PartSettings):
    """Defaults for the options of @kubernetes; None if not set."""

    image: str | None = key("KUBERNETES_CONTAINER_IMAGE", "DEFAULT_CONTAINER_IMAGE")
    registry: str | None = key("KUBERNETES_CONTAINER_REGISTRY", "DEFAULT_CONTAINER_REGISTRY")
    namespace: str | None = key("KUBERNETES_NAMESPACE")
    service_account: str | None = key("KUBERNETES_SERVICE_ACCOUNT")
    secrets: str | None = key("KUBERNETES_SECRETS")
    node_selector: str | None = key("KUBERNETES_NODE_SELECTOR")
    tolerations: str | None = key("KUBERNETES_TOLERATIONS")
    labels: str | None = key("KUBERNETES_LABELS")
    annotations: str | None = key("KUBERNETES_ANNOTATIONS")
    persistent_volume_claims: str | None = key("KUBERNETES_PERSISTENT_VOLUME_CLAIMS")
    image_pull_policy: str | None = key("KUBERNETES_IMAGE_PULL_POLICY")
    image_pull_secrets: str | None = key("KUBERNETES_IMAGE_PULL_SECRETS")
    gpu_vendor: str | None = key("KUBERNETES_GPU_VENDOR")
    shared_memory: str | None = key("KUBERNETES_SHARED_MEMORY")
    qos: str | None = key("KUBERNETES_QOS")
    cpu: str | None = key("KUBERNETES_CPU")
    memory: str | None = key("KUBERNETES_MEMORY")
    disk: str | None = key("KUBERNETES_DISK")
    port: str | None = key("KUBERNETES_DEFAULT_PORT")
