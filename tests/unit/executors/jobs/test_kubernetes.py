"""Jobs of Kubernetes: manifests, and the logic that needs no requests to a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from aflow import FlowSpec, kubernetes, resources, step, timeout
from aflow.errors import AflowError, InvalidInput
from aflow.executors.jobs.kubernetes.job_system import outcome_of_pod, why_pending
from aflow.executors.jobs.kubernetes.manifest import (
    KubernetesStepJob,
    job_manifest,
    job_name,
    service_manifest,
    step_job,
)
from aflow.executors.jobs.kubernetes.settings import KubernetesSettings
from aflow.flow.spec import define
from aflow.scheduler.states import AttemptState

BASE = Path(__file__).parents[4] / "docker" / "kubernetes"


def job_of(*decorators: Any, attempt: int = 0, is_gang: bool = False) -> KubernetesStepJob:
    """Return the job of a step with these decorators."""

    def start(self):
        pass

    for each in decorators:
        start = each(start)
    flow = type("Sized", (FlowSpec,), {"start": step(start), "__module__": __name__})
    settings = KubernetesSettings.load()
    return step_job(
        define(flow).steps["start"], settings, "default", {}, attempt=attempt, is_gang=is_gang
    )


def pod_of(*decorators: Any, attempt: int = 0) -> Any:
    return job_of(*decorators, attempt=attempt).template["spec"]


def resources_of(*decorators: Any, attempt: int = 0) -> Any:
    return pod_of(*decorators, attempt=attempt)["containers"][0]["resources"]


def test_every_option_has_its_place_in_a_manifest_that_kubernetes_takes() -> None:
    job = job_of(
        kubernetes(
            image="ml:7", image_pull_policy="always", image_pull_secrets=["registry"],
            service_account="runner", secrets="aws,keys", node_selector="zone=a", namespace="ml",
            gpu=2, gpu_vendor="amd", tolerations=[{"key": "gpu", "operator": "Exists"}],
            labels={"team": "ads"}, annotations={"owner": "Ann, of ads"}, use_tmpfs=True,
            tmpfs_size=100, persistent_volume_claims={"data": "/data"}, shared_memory=64,
            port=4000, compute_pool="big", executable="python3 -I", qos="guaranteed",
            extended_resources={"vendor.com/fpga": 1}, security_context={"run_as_user": 1000},
            hostname_resolution_timeout=30,
        ),
        timeout(minutes=3),
        is_gang=True,
    )  # fmt: skip
    manifest = job_manifest(job, {"aflow/user": "ann@x.org"}, "a-job", 3, {"MORE": "$(HOME)"})
    service = service_manifest(job, "a-job", "123")
    for each in (manifest, service):
        kubernetes_validate.validate(each, "1.33", strict=True)

    assert ("ml", 30.0) == (manifest["metadata"]["namespace"], job.meeting_timeout)
    spec = manifest["spec"]
    assert ("Indexed", 3, 3, 0) == tuple(
        spec[key] for key in ("completionMode", "completions", "parallelism", "backoffLimit")
    )
    assert "FailJob" == spec["podFailurePolicy"]["rules"][0]["action"]
    labels = spec["template"]["metadata"]["labels"]
    assert ("ads", "ann-x.org", "a-job") == tuple(
        labels[key] for key in ("team", "aflow/user", "aflow/job")
    )
    assert "ann@x.org" == manifest["metadata"]["annotations"]["aflow/user"]
    assert "Ann, of ads" == manifest["metadata"]["annotations"]["owner"]
    pod = spec["template"]["spec"]
    assert ("runner", 240, "a-job") == tuple(
        pod[key] for key in ("serviceAccountName", "activeDeadlineSeconds", "subdomain")
    )
    assert {"zone": "a", "outerbounds.co/compute-pool": "big"} == pod["nodeSelector"]
    assert [{"key": "gpu", "operator": "Exists"}] == pod["tolerations"]
    container = pod["containers"][0]
    assert ["python3", "-I", "-c"] == container["command"][:3]
    assert ("ml:7", "Always") == (container["image"], container["imagePullPolicy"])
    assert [{"secretRef": {"name": name}} for name in ("aws", "keys")] == container["envFrom"]
    assert {"runAsUser": 1000} == container["securityContext"]
    asked = {
        "cpu": "1", "memory": "4096M", "ephemeral-storage": "10240M", "amd.com/gpu": "2",
        "vendor.com/fpga": "1",
    }  # fmt: skip
    assert {"requests": asked, "limits": asked} == container["resources"]
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    assert {"/data", "/dev/shm", "/aflow_temp"} == mounts
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert ("/aflow_temp", "$$(HOME)") == (variables["AFLOW_TEMPDIR"], variables["MORE"])
    assert [
        ("serviceaccounts", "runner"), ("secrets", "aws"), ("secrets", "keys"),
        ("secrets", "registry"), ("persistentvolumeclaims", "data"),
    ] == job.needed  # fmt: skip


def test_a_disruption_is_no_failure_and_a_failure_is_not_tried_again_by_kubernetes() -> None:
    spec = job_manifest(job_of(kubernetes), {}, "a-job", 1000, {})["spec"]

    assert (0, 1000, "Never") == (
        spec["backoffLimitPerIndex"],
        spec["parallelism"],
        spec["template"]["spec"]["restartPolicy"],
    )
    assert [
        {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        }
    ] == spec["podFailurePolicy"]["rules"]


def test_resources_and_options_both_count_and_settings_stand_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "500M" == resources_of(kubernetes, resources(memory=500))["requests"]["memory"]
    both = resources_of(kubernetes(cpu=4, memory=100), resources(cpu=2, memory=900, gpu=1))
    assert ("4", "900M") == (both["requests"]["cpu"], both["requests"]["memory"])
    assert {"nvidia.com/gpu": "1"} == both["limits"]
    grows = resources(memory=lambda attempt: 1000 * 2**attempt)
    assert "2000M" == resources_of(grows, attempt=1)["requests"]["memory"]

    monkeypatch.setenv("AFLOW_KUBERNETES_MEMORY", "300")
    monkeypatch.setenv("AFLOW_KUBERNETES_NODE_SELECTOR", '{"zone": "b"}')
    monkeypatch.setenv("AFLOW_KUBERNETES_TOLERATIONS", '[{"key": "x"}]')
    pod = pod_of(kubernetes)
    assert ({"zone": "b"}, [{"key": "x"}]) == (pod["nodeSelector"], pod["tolerations"])
    assert "300M" == pod["containers"][0]["resources"]["requests"]["memory"]
    assert {"zone": "c"} == pod_of(kubernetes(node_selector="zone=c"))["nodeSelector"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cpu": "much"}, "cpu of @kubernetes must be a number"),
        ({"port": 1.5}, "port of @kubernetes must be a whole number"),
        ({"qos": "best"}, "qos of @kubernetes must be one of burstable, guaranteed"),
        ({"image_pull_policy": "maybe"}, "one of Always, IfNotPresent, Never"),
        ({"image": "a b"}, "image of @kubernetes must be the name of an image"),
        ({"secrets": 3}, "secrets of @kubernetes must be a list of names"),
        ({"node_selector": "zone"}, "a mapping, or pairs such as a=b,c=d"),
        ({"tolerations": "gpu"}, "tolerations of @kubernetes must be a list such as"),
        ({"security_context": {"root": True}}, "a mapping with keys of privileged"),
        ({"persistent_volume_claims": {"data": "here"}}, "mounted at an absolute path"),
        ({"labels": {"team": "-"}}, "team=- is not a label of Kubernetes"),
    ],
)
def test_an_option_that_cannot_be_meant_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(AflowError, match=r"^Step start:") as raised:
        job_of(kubernetes(**options))
    assert words in str(raised.value)
    assert isinstance(raised.value, InvalidInput)


def test_names_of_jobs_are_those_that_a_host_may_have() -> None:
    name = job_name(
        ("Ann.Lee", "MyFlow", "1700000000", "a_long_name_of_a_step"), "0123456789abcdef"
    )

    assert "ann-lee-myflow-1700000000-a-long-name-of-0123456789abcdef" == name
    assert len(f"{name}-9999") <= 63
    assert job_name(("7",), "x").startswith("a-7")


# ------------------------------------------------------------------ ends of pods


def pod(phase: str = "Failed", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p"},
        "spec": {"nodeName": "n1", "activeDeadlineSeconds": 60, "containers": [{}]},
        "status": {"phase": phase, **status},
    }


def ended(code: int, reason: str = "Error", **more: Any) -> dict[str, Any]:
    end = {"exitCode": code, "reason": reason, **more}
    return pod(containerStatuses=[{"state": {"terminated": end}}])


@pytest.mark.parametrize(
    ("given", "state", "retryable", "words"),
    [
        (ended(3), AttemptState.FAILED, True, "ended with exit code 3 on n1 before"),
        (ended(202), AttemptState.FAILED, False, "exit code 202"),
        (ended(137, "OOMKilled"), AttemptState.FAILED, True, "needed more memory than the node"),
        (ended(128, "StartError", message="no python"), AttemptState.FAILED, False, "no python"),
        (ended(137, "ContainerStatusUnknown"), AttemptState.LOST, True, "did not run on n1"),
        (pod(reason="OutOfcpu", message="x"), AttemptState.LOST, True, "(OutOfcpu: x)"),
        (pod(reason="DeadlineExceeded"), AttemptState.TIMED_OUT, True, "its limit of 60 seconds"),
        (pod(reason="Evicted", message="disk"), AttemptState.FAILED, True, "evicted on n1: disk."),
        (None, AttemptState.FAILED, False, "deleted by somebody"),
    ],
)
def test_how_a_pod_ended_says_how_the_attempt_ended(
    given: Any, state: AttemptState, retryable: bool, words: str
) -> None:
    outcome = outcome_of_pod("job", given)

    assert (state, retryable) == (outcome.state, outcome.retryable)
    assert words in outcome.reason


def test_why_a_pod_waits_is_said_in_the_words_of_kubernetes() -> None:
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
    assert "ImagePullBackOff: Back-off pulling image" == why_pending(
        pod("Pending", containerStatuses=[{"state": {"waiting": waiting}}])
    )
    assert "" == why_pending(pod("Pending"))


# ------------------------------------------------------------------ workers as a Deployment


def test_the_kustomize_base_is_what_kubernetes_takes() -> None:
    files = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    found = [each for name in files for each in yaml.safe_load_all((BASE / name).read_text())]

    assert {"Deployment", "PodDisruptionBudget", "Role", "RoleBinding", "ServiceAccount"} == {
        each["kind"] for each in found
    }
    for each in found:
        kubernetes_validate.validate(each, "1.33", strict=True)


def test_kubernetes_is_used_where_nothing_of_aws_is_installed() -> None:
    program = (
        "import sys\n"
        "sys.modules['botocore'] = sys.modules['aiobotocore'] = None\n"
        "import aflow.cli.jobs, aflow.executors.jobs.kubernetes.job_system\n"
        "import aflow.executors.jobs.kubernetes.access\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)
