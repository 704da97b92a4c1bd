"""Features of the job system for Kubernetes beyond the contract (test_job_systems.py): pods run as
processes of a stand-in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aflow._core.clock import SystemClock
from aflow.cli.doctor.checks import findings as checked
from aflow.errors import InvalidInput, JobSystemBusy, JobSystemUnauthorized
from aflow.executors.jobs.kubernetes import access, manifest
from aflow.executors.jobs.kubernetes import job_system as backend
from aflow.executors.jobs.kubernetes.job_system import KubernetesSystem
from aflow.executors.jobs.kubernetes.settings import KubernetesSettings
from aflow.flow.spec import define
from aflow.scheduler.states import AttemptState
from tests.contracts.flow_of_actions import ActionFlow
from tests.contracts.test_job_systems import Bench, kubernetes_bench
from tests.support.kubernetes import Cluster

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("kubernetes")]
ROLE = Path(__file__).parents[2] / "docker" / "kubernetes" / "coordinator.yaml"
VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "deletecollection"}


@pytest.fixture
def bench(kubernetes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = kubernetes_bench(tmp_path, monkeypatch)
    yield made
    made.system.close()


def test_a_pod_that_is_disrupted_is_started_again_and_a_gang_is_lost_as_a_whole(
    bench: Bench, kubernetes: Cluster
) -> None:
    id = bench.submit("wait", 2)
    bench.until_written(2)
    (bench.out / "1.json").unlink()
    second = next(each for each in kubernetes.running() if f"{bench.name}-1-" in each)
    kubernetes.lose_node(second)

    worker, index, tries, *_ = bench.until_written(2)[1]
    assert (f"{id}:1~2", 1, 2) == (worker, index, tries)
    assert 0 == bench.status(id).ended

    for each in bench.out.glob("*.json"):  # those of the jobs before
        each.unlink()
    gang = bench.submit("wait", 2, gang=True)
    bench.until_written(2)
    running = bench.until(lambda: [each for each in kubernetes.running() if bench.name in each])
    kubernetes.lose_node(running[0])
    outcome = bench.system.outcome_of(bench.until_over(gang))
    assert AttemptState.LOST is outcome.state
    assert "was disrupted (Pod default/" in outcome.reason


def test_what_somebody_deletes_is_not_tried_again(bench: Bench, kubernetes: Cluster) -> None:
    id = bench.submit("ignore", 2)
    bench.until_written(2)
    kubernetes.delete("pods", kubernetes.running()[0])
    member = bench.until(
        lambda: next(iter(bench.system.suspects(id, [f"{id}:0", f"{id}:1"], is_over=False)), None)
    )
    outcome = bench.system.outcome_of(bench.until_over(member))
    assert (AttemptState.FAILED, False) == (outcome.state, outcome.retryable)
    assert "was deleted by somebody" in outcome.reason

    kubernetes.delete("jobs", bench.name)
    outcome = bench.system.outcome_of(bench.until_over(id))
    assert (AttemptState.FAILED, False) == (outcome.state, outcome.retryable)


def test_an_image_that_its_registry_does_not_have_is_waited_for_no_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "PULLING", 0.0)
    monkeypatch.setenv("AFLOW_KUBERNETES_CONTAINER_IMAGE", "no-such-image")
    step = define(ActionFlow).steps["act"]
    bench.job = manifest.step_job(step, KubernetesSettings.load(), "default", {})
    id = bench.submit("end")

    outcome = bench.system.outcome_of(bench.until_over(id))
    assert (AttemptState.FAILED, False) == (outcome.state, outcome.retryable)
    assert "Its image cannot be pulled (ImagePullBackOff" in outcome.reason


def test_what_a_step_names_and_is_not_there_is_said_before_a_run_begins(bench: Bench) -> None:
    job = bench.job
    spec = {**job.template["spec"], "serviceAccountName": "nobody"}

    with pytest.raises(InvalidInput, match=r'Step act names .* serviceaccounts "nobody" not found'):
        bench.system.check_all([job._replace(template={**job.template, "spec": spec})])


def test_the_doctor_says_whether_the_cluster_answers(
    kubernetes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFLOW_KUBERNETES_NAMESPACE", "ml")
    monkeypatch.chdir(tmp_path)

    def found() -> Any:
        return [each for each in checked(SystemClock()) if each.name == "kubernetes"]

    (well,) = found()
    assert "lists the jobs of the namespace ml." in well.message
    kubernetes.write_config("expired")
    (ill,) = found()
    assert "does not accept the credentials" in ill.message


def test_a_submission_that_is_made_twice_is_one_job(bench: Bench, kubernetes: Cluster) -> None:
    given = bench.submission("end")
    assert bench.system.submit(given) == bench.system.submit(given)
    assert 1 == len(kubernetes.listed("jobs"))
    bench.until_written(1)


def test_many_jobs_are_described_in_one_call_page_after_page(
    bench: Bench, kubernetes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubernetes.slots = 0
    ids = [bench.submit("end") for _ in range(7)]
    kubernetes.calls.clear()
    assert [*ids] == [*bench.system.describe(ids)]
    assert 1 == len(kubernetes.calls)

    monkeypatch.setattr(access, "PAGE", 3)
    kubernetes.calls.clear()
    found = bench.system.describe(ids)
    assert (7, 3) == (sum(each.waiting for each in found.values()), len(kubernetes.calls))
    assert "Insufficient cpu" in bench.system.why_waiting(found[ids[0]])


def test_a_list_of_a_thousand_is_whole_also_where_the_server_forgets_its_beginning(
    kubernetes: Cluster,
) -> None:
    for number in range(1000):
        kubernetes.make("secrets", f"secret-{number}")
    cluster = access.KubernetesCluster()
    path = "/api/v1/namespaces/default/secrets"
    try:
        kubernetes.calls.clear()
        assert 1000 == len({each["metadata"]["name"] for each in cluster.listed(path)})
        assert 2 == len(kubernetes.calls)
        kubernetes.forget_lists(1)
        assert 1000 == len([each["metadata"]["name"] for each in cluster.listed(path)])
        kubernetes.forget_lists(9)
        with pytest.raises(JobSystemBusy, match="expired a list before all its pages were fetched"):
            cluster.listed(path)
    finally:
        cluster.close()


def test_kubectl_reads_the_manifests_of_jobs_and_of_workers(
    bench: Bench, kubernetes: Cluster
) -> None:
    """Its parser, and its mapping of kinds: it has no schemas, which the stand-in checks."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed (kubernetes-client of Debian)")
    config = ["--kubeconfig", os.environ["KUBECONFIG"]]

    def run(*words: str, given: str = "") -> str:
        command = [kubectl, *config, *words]
        done = subprocess.run(
            command, input=given, capture_output=True, text=True,
            env={**os.environ, "HOME": str(bench.folder)},
        )  # fmt: skip
        assert 0 == done.returncode, done.stderr
        return done.stdout

    given = bench.submission("end", 2, gang=True)
    job = manifest.job_manifest(given.job, {}, given.name, 2, {"A": "b"})
    service = manifest.service_manifest(given.job, given.name, "a-uid")
    try_it = ["create", "--dry-run=client", "--validate=false", "-f", "-", "-o"]
    read = json.loads(run(*try_it, "json", given=json.dumps(job)))
    assert job["spec"] == read["spec"]
    assert {**job["metadata"], "namespace": "default"} == read["metadata"]
    assert "service/" in run(*try_it, "name", given=json.dumps(service))
    base = run("kustomize", str(ROLE.parent))
    made = run(*try_it, "name", given=base).split()
    assert {"deployment.apps", "serviceaccount", "role.rbac.authorization.k8s.io"} <= {
        each.partition("/")[0] for each in made
    }


def test_a_token_that_has_expired_is_asked_for_again(bench: Bench, kubernetes: Cluster) -> None:
    """A plugin that is executed gives the token, and later another one."""
    token = bench.folder / "token"
    plugin = bench.folder / "plugin"
    plugin.write_text(
        f"#!{sys.executable}\nimport json\n"
        f"token = open({str(token)!r}).read()\n"
        "print(json.dumps({'kind': 'ExecCredential', 'status': {'token': token},"
        "'apiVersion': 'client.authentication.k8s.io/v1'}))\n"
    )
    plugin.chmod(0o755)
    token.write_text(kubernetes.token)
    path = kubernetes.write_config()
    config = json.loads(path.read_text())
    execution = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}
    config["users"][0]["user"] = {"exec": {**execution, "interactiveMode": "Never"}}
    path.write_text(json.dumps(config))
    system = KubernetesSystem(access.KubernetesCluster())

    assert system.find("nothing", bench.job) is None
    before, kubernetes.token = kubernetes.token, "another"
    with pytest.raises(JobSystemBusy, match="credentials, which may have expired"):
        system.find("nothing", bench.job)
    assert before == token.read_text()
    token.unlink()  # the plugin fails: it may succeed later
    with pytest.raises(JobSystemUnauthorized, match="There is no way into a cluster"):
        system.find("nothing", bench.job)
    token.write_text("another")
    assert system.find("nothing", bench.job) is None
    system.close()


def test_all_that_is_asked_of_a_cluster_the_role_allows(bench: Bench, kubernetes: Cluster) -> None:
    gang = bench.submit("fail", 2, gang=True)
    outcome = bench.system.outcome_of(bench.until_over(gang))
    assert "ends with:\n    It does fail" in outcome.reason
    array = bench.submit("wait", 2)
    bench.until_written(2)
    bench.system.terminate([f"{array}:0"], "It is not wanted.")
    bench.until_over(f"{array}:0")
    bench.system.why_waiting(bench.status(array))
    bench.system.find(bench.name, bench.job)
    bench.system.terminate([array], "It is not wanted.")

    (role,) = (each for each in yaml.safe_load_all(ROLE.read_text()) if each["kind"] == "Role")
    allowed = {
        (verb, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }
    assert {*map(_asked, kubernetes.calls)} <= allowed


def _asked(call: tuple[str, str]) -> tuple[str, str]:
    """The verb and the resource of a call, as a Role names them."""
    method, path = call
    parts: Any = path.split("/namespaces/")[1].split("/")[1:]
    if method == "GET":
        verb = "list" if len(parts) == 1 else "get"
    else:
        verb = VERBS[method]
    return verb, parts[0] if len(parts) < 3 else f"{parts[0]}/{parts[2]}"
