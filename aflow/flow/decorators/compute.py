"""@batch, @slurm and @kubernetes: run a step as a job with certain resources.

A run that does not use the job system runs the step locally.
"""

from __future__ import annotations

from typing import Any, ClassVar

from aflow._core.records import dataclass
from aflow.flow.decorators.base import StepDecorator, written


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDecorator(StepDecorator):
    """Run the step as a job of AWS Batch, with these resources and options of the job.

    Memory and shared memory are in MB. `platform` is the platform of the image (`linux/arm64`). If
    an option is None, the settings apply.
    """

    decorator_name: ClassVar[str] = "batch"
    cpu: Any = None
    gpu: Any = None
    memory: Any = None
    image: Any = None
    queue: Any = None
    iam_role: Any = None
    execution_role: Any = None
    shared_memory: Any = None
    max_swap: Any = None
    swappiness: Any = None
    inferentia: Any = None
    trainium: Any = None
    efa: Any = None
    host_volumes: Any = None
    efs_volumes: Any = None
    use_tmpfs: Any = False
    tmpfs_tempdir: Any = True
    tmpfs_size: Any = None
    tmpfs_path: Any = None
    aws_batch_tags: Any = None
    ephemeral_storage: Any = None
    log_driver: Any = None
    log_options: Any = None
    executable: Any = None
    privileged: Any = False
    platform: Any = None

    def shapes_result(self) -> None:
        """Return None: the result does not depend on where a step runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubernetes(StepDecorator):
    """Run the step as a job of Kubernetes, with these resources and options of the pod.

    Memory and disk are in MB. If an option is None, @resources and the settings apply. The defaults
    are 1 CPU, 4096 MB of memory and 10240 MB of disk.
    """

    decorator_name: ClassVar[str] = "kubernetes"
    cpu: Any = None
    memory: Any = None
    disk: Any = None
    image: Any = None
    image_pull_policy: Any = None
    image_pull_secrets: Any = None
    service_account: Any = None
    secrets: Any = None
    node_selector: Any = None
    namespace: Any = None
    gpu: Any = None
    gpu_vendor: Any = None
    tolerations: Any = None
    labels: Any = None
    annotations: Any = None
    use_tmpfs: Any = False
    tmpfs_tempdir: Any = True
    tmpfs_size: Any = None
    tmpfs_path: Any = None
    persistent_volume_claims: Any = None
    shared_memory: Any = None
    port: Any = None
    compute_pool: Any = None
    executable: Any = None
    hostname_resolution_timeout: Any = 600
    qos: Any = None
    extended_resources: Any = None
    security_context: Any = None

    def shapes_result(self) -> None:
        """Return None: the result does not depend on where a step runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm(StepDecorator):
    """Run the step as a job of Slurm, with these resources and options of sbatch.

    Memory and disk are in MB. If an option is None, @resources, the settings or the defaults of the
    partition apply. `time` is in the format of sbatch (minutes, or D-HH:MM:SS). `executable` is the
    Python interpreter that runs the step; `options` are additional arguments of sbatch, as a text
    or a list.
    """

    decorator_name: ClassVar[str] = "slurm"
    cpu: Any = None
    gpu: Any = None
    memory: Any = None
    disk: Any = None
    partition: Any = None
    time: Any = None
    gres: Any = None
    account: Any = None
    qos: Any = None
    constraint: Any = None
    nodelist: Any = None
    exclude: Any = None
    reservation: Any = None
    nice: Any = None
    exclusive: Any = False
    executable: Any = None
    options: Any = None

    def __post_init__(self) -> None:
        for option in ("cpu", "gpu", "memory", "disk"):
            if getattr(self, option) is not None:
                self._number(option)

    def shapes_result(self) -> None:
        """Return None: the result does not depend on where a step runs."""


batch = written(BatchDecorator)
"""Run the step as a job of AWS Batch; see BatchDecorator."""


kubernetes = written(Kubernetes)
"""Run the step as a job of Kubernetes; see Kubernetes."""


slurm = written(Slurm)
"""Run the step as a job of Slurm; see Slurm."""
