"""A stack created from the template on a stand-in for AWS: its outputs are working settings."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.flows.conftest import Workspace
from tests.stack.conftest import IMAGE, KEY, Made
from tests.support.aws.account import Account
from tests.support.servers import Server
from tests.support.service import InThread

# One process of the test session makes the stack.
pytestmark = pytest.mark.xdist_group("stack")

FLOW = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.rows = list(range(10))
        self.next(self.end)

    @step
    def end(self):
        print("rows", len(self.rows))
"""


def aflow(
    made: Made, home: Path, *words: str, answer: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command as a user with this home."""
    return subprocess.run(
        [sys.executable, "-m", "aflow", *words],
        env=os.environ | made.environment | {"AFLOW_HOME": str(home)} | env,
        input=answer,
        capture_output=True,
        text=True,
    )


def imported(made: Made, home: Path) -> dict[str, Any]:
    """Return the settings that are imported from the stack."""
    done = aflow(made, home, "stack", "import", made.name)
    assert 0 == done.returncode, done.stderr
    found: dict[str, Any] = json.loads((home / "config.json").read_text())
    return found


def test_every_output_names_something_that_is_there(made: Made, tmp_path: Path) -> None:
    found = imported(made, tmp_path)

    def name(key: str) -> str:
        return str(found[key]).rpartition("/")[2]

    bucket = found["METAFLOW_DATASTORE_SYSROOT_S3"].split("/")[2]
    made.aws("s3").head_bucket(Bucket=bucket)
    queues = made.aws("batch").describe_job_queues(jobQueues=[found["METAFLOW_BATCH_JOB_QUEUE"]])
    table = made.aws("dynamodb").describe_table(TableName=found["METAFLOW_SFN_DYNAMO_DB_TABLE"])
    roles = {
        key: made.aws("iam").get_role(RoleName=name(key))["Role"]["AssumeRolePolicyDocument"]
        for key in found
        if key.endswith("_ROLE")
    }
    definition = made.aws("batch").register_job_definition(
        jobDefinitionName="step",
        type="container",
        containerProperties={
            "image": found["METAFLOW_BATCH_CONTAINER_IMAGE"],
            "jobRoleArn": found["METAFLOW_ECS_S3_ACCESS_IAM_ROLE"],
            "executionRoleArn": found["METAFLOW_ECS_FARGATE_EXECUTION_ROLE"],
            "resourceRequirements": [{"type": "VCPU", "value": "1"},
                                     {"type": "MEMORY", "value": "2048"}],
        },
    )  # fmt: skip
    machine = made.aws("stepfunctions").create_state_machine(
        name="flow",
        definition='{"StartAt": "end", "States": {"end": {"Type": "Pass", "End": true}}}',
        roleArn=found["METAFLOW_SFN_IAM_ROLE"],
        loggingConfiguration={"level": "ALL", "destinations": [{"cloudWatchLogsLogGroup": {
            "logGroupArn": found["METAFLOW_SFN_EXECUTION_LOG_GROUP_ARN"]}}]},
    )  # fmt: skip
    made.aws("events").put_rule(Name="daily", ScheduleExpression="rate(1 day)")
    targets = made.aws("events").put_targets(
        Rule="daily",
        Targets=[{"Id": "flow", "Arn": machine["stateMachineArn"],
                  "RoleArn": found["METAFLOW_EVENTS_SFN_ACCESS_IAM_ROLE"]}],
    )  # fmt: skip

    assert ["ENABLED"] == [each["state"] for each in queues["jobQueues"]]
    assert "ttl" not in table["Table"]["KeySchema"][0]["AttributeName"]
    assert 4 == len(roles)
    assert "events.amazonaws.com" in str(roles["METAFLOW_EVENTS_SFN_ACCESS_IAM_ROLE"])
    assert definition["revision"] == 1
    assert 0 == targets["FailedEntryCount"]
    assert IMAGE == found["METAFLOW_BATCH_CONTAINER_IMAGE"]
    assert found["METAFLOW_SERVICE_URL"].startswith("https://")
    assert ("s3", "service") == (found["METAFLOW_DEFAULT_DATASTORE"],
                                 found["METAFLOW_DEFAULT_METADATA"])  # fmt: skip


def test_the_other_outputs_name_policies_a_secret_and_a_notebook(made: Made) -> None:
    outputs, iam = made.outputs(), made.aws("iam")
    who = f"person-{os.getpid()}"
    iam.create_user(UserName=who)
    for key in ("UserPolicyArn", "DataPolicyArn"):
        iam.attach_user_policy(UserName=who, PolicyArn=outputs[key])

    attached = iam.list_attached_user_policies(UserName=who)["AttachedPolicies"]
    assert {outputs["UserPolicyArn"], outputs["DataPolicyArn"]} == {
        each["PolicyArn"] for each in attached
    }
    kept = made.aws("secretsmanager").get_secret_value(SecretId=outputs["DatabaseSecretArn"])
    assert "{}" == kept["SecretString"], "what the test has put there"
    name = outputs["NotebookUrl"].rpartition("/")[2]
    notebook = made.aws("sagemaker").describe_notebook_instance(NotebookInstanceName=name)
    assert "ml.t3.medium" == notebook["InstanceType"]


def test_doctor_finds_that_all_of_the_stack_can_be_used(made: Made, tmp_path: Path) -> None:
    home = tmp_path / "home"
    service = InThread(f"sqlite:///{tmp_path}/metadata.db", [KEY])
    found = imported(made, home) | {"METAFLOW_SERVICE_URL": service.url}
    (home / "config.json").write_text(json.dumps(found))

    try:
        done = aflow(made, home, "doctor", "--json")
    finally:
        service.stop()

    assert 0 == done.returncode, done.stdout + done.stderr
    states = {each["name"]: each["state"] for each in json.loads(done.stdout)}
    assert {
        "credentials", "datastore", "metadata", "job queue", "compute", "job role", "job image",
        "job logs", "execution role", "state machines", "schedules", "logs", "table", "clock",
    } <= states.keys()  # fmt: skip
    assert {"ok"} == {*states.values()}


def test_flows_run_with_the_settings_of_the_stack(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    home = tmp_path / "home"
    found = imported(made, home)
    assert KEY == found["METAFLOW_SERVICE_AUTH_KEY"]
    assert 0o600 == (home / "config.json").stat().st_mode & 0o777
    service = InThread(f"sqlite:///{tmp_path}/metadata.db", [KEY])
    # The one thing that a stand-in does not have: what listens at the address of the API.
    (home / "config.json").write_text(json.dumps(found | {"METAFLOW_SERVICE_URL": service.url}))
    workspace.write(FLOW)
    for key, value in made.environment.items():
        monkeypatch.setenv(key, value)

    try:
        ran = workspace.run(AFLOW_HOME=str(home))
        listed = aflow(made, home, "runs", "Flow_")
    finally:
        service.stop()

    assert 0 == ran.code, ran.err
    assert "Flow_/" in listed.stdout, listed.stderr
    bucket = found["METAFLOW_DATASTORE_SYSROOT_S3"].split("/")[2]
    kept = made.aws("s3").list_objects_v2(Bucket=bucket)["Contents"]
    assert all(each["Key"].startswith("metaflow/") for each in kept)


def test_steps_run_as_jobs_in_the_queue_of_the_stack(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    found = imported(made, home)
    service = InThread(f"sqlite:///{tmp_path}/metadata.db", [KEY])
    here = dict.fromkeys(("METAFLOW_SERVICE_URL", "METAFLOW_SERVICE_INTERNAL_URL"), service.url)
    (home / "config.json").write_text(json.dumps(found | here))
    workspace = Workspace(tmp_path)
    workspace.write(FLOW)
    for key, value in made.environment.items():
        monkeypatch.setenv(key, value)

    batch = made.aws("batch")
    queue = {"jobQueue": found["METAFLOW_BATCH_JOB_QUEUE"], "jobStatus": "SUCCEEDED"}

    def succeeded() -> set[str]:
        return {each["jobId"] for each in batch.list_jobs(**queue)["jobSummaryList"]}

    earlier = succeeded()  # other tests use the stack, too

    try:
        ran = workspace.run("--with", "batch", AFLOW_HOME=str(home))
    finally:
        service.stop()

    assert 0 == ran.code, ran.out + ran.err
    assert "rows 10" in ran.lines
    jobs = succeeded() - earlier
    assert 2 == len(jobs)
    used = batch.describe_jobs(jobs=[*jobs])["jobs"]
    (definition,) = {each["jobDefinition"] for each in used}
    reported = batch.describe_job_definitions(jobDefinitions=[definition])["jobDefinitions"]
    properties = reported[0]["containerProperties"]
    assert IMAGE == properties["image"]
    assert found["METAFLOW_ECS_S3_ACCESS_IAM_ROLE"] == properties["jobRoleArn"]


def actions_of(made: Made, policy: str) -> str:
    """A policy that allows the same actions, on anything: the stand-in knows no resources of
    requests, and writes some actions in small letters, which is the same to IAM. (Its ARN.)"""
    iam = made.aws("iam")
    version = iam.get_policy(PolicyArn=policy)["Policy"]["DefaultVersionId"]
    document = iam.get_policy_version(PolicyArn=policy, VersionId=version)["PolicyVersion"]
    named = [each["Action"] for each in document["Document"]["Statement"]]
    actions = [one for each in named for one in ([each] if isinstance(each, str) else each)]
    small = [each.lower() for each in actions]
    allowed = {"Effect": "Allow", "Action": [*actions, *small], "Resource": "*"}
    made_policy = iam.create_policy(
        PolicyName=f"actions-of-{policy.rpartition('/')[2]}",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": allowed}),
    )
    return str(made_policy["Policy"]["Arn"])


def test_who_has_the_policies_of_the_stack_may_take_its_settings_and_look_at_all(
    made: Made, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    outputs = made.outputs()
    service = InThread(f"sqlite:///{tmp_path}/metadata.db", [KEY])
    policies = [actions_of(made, outputs[key]) for key in ("UserPolicyArn", "DataPolicyArn")]

    try:
        with Account(made.server).nobody(*policies) as who:
            person = {**who, "METAFLOW_SERVICE_URL": service.url}
            taken = aflow(made, home, "stack", "import", made.name, **person)
            looked = aflow(made, home, "doctor", "--json", **person)
    finally:
        service.stop()

    assert 0 == taken.returncode, taken.stderr
    assert 0 == looked.returncode, looked.stdout + looked.stderr
    states = {each["name"]: each["state"] for each in json.loads(looked.stdout)}
    assert {"ok"} == {*states.values()}
    assert {"job role", "job image", "state machines", "schedules", "logs", "table"} < states.keys()


def settings_of_the_notebook(made: Made, home: Path) -> dict[str, str]:
    """Return the settings that the stack's script writes at the start of the notebook, for a user
    with this home."""
    reported = made.aws("sagemaker").describe_notebook_instance_lifecycle_config(
        NotebookInstanceLifecycleConfigName=made.resources()["NotebookStart"][1].rpartition("/")[2]
    )
    script = base64.b64decode(reported["OnStart"][0]["Content"]).decode()
    # On a notebook there are these two commands.
    for name, body in {"sudo": 'shift 3; exec bash "$@"', "aws": f"echo {KEY}"}.items():
        (home / name).write_text(f"#!/bin/bash\n{body}\n")
        (home / name).chmod(0o755)
    environment = {"HOME": str(home), "PATH": f"{home}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)
    written: dict[str, str] = json.loads((home / ".metaflowconfig" / "config.json").read_text())
    return written


def test_the_notebook_begins_with_the_same_settings(made: Made, tmp_path: Path) -> None:
    found = imported(made, tmp_path / "imported")

    written = settings_of_the_notebook(made, tmp_path)

    internal = found["METAFLOW_SERVICE_INTERNAL_URL"]
    # What the stack has not is empty there, which is as if it were not set.
    assert found | {"METAFLOW_SERVICE_URL": internal} == {k: v for k, v in written.items() if v}


def test_the_notebook_of_the_stack_draws_runs_with_the_settings_it_has(
    made: Made, repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written = settings_of_the_notebook(made, tmp_path)
    service = InThread(f"sqlite:///{tmp_path}/service.db", [KEY])
    home = tmp_path / ".metaflowconfig"
    # The one thing that a stand-in does not have: what listens at the address of the load balancer.
    (home / "config.json").write_text(json.dumps(written | {"METAFLOW_SERVICE_URL": service.url}))
    for key, value in {**made.environment, "METAFLOW_HOME": str(home)}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("AFLOW_CLIENT_CACHE_PATH", str(tmp_path / "cache"))
    workspace = Workspace(tmp_path)
    workspace.write(FLOW)
    notebook = nbformat.read(repository / "examples" / "notebooks" / "runs.ipynb", as_version=4)

    try:
        ran = workspace.run()
        NotebookClient(
            notebook, timeout=90, kernel_name="python3", resources={"metadata": {"path": str(home)}}
        ).execute()
    finally:
        service.stop()

    assert 0 == ran.code, ran.err
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", ())]
    said = "".join(each["text"] for each in outputs if each["output_type"] == "stream")
    assert service.url in said
    assert "1 succeeded" in said
    assert 1 == len([each for each in outputs if "image/png" in each.get("data", {})])


def test_what_else_is_set_in_a_profile_stays(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "config_team.json"
    before = {"AFLOW_USER": "ann", "AFLOW_DATASTORE_SYSROOT_S3": "s3://another/place"}
    file.write_text(json.dumps(before))
    words = ("configure", "import-stack", made.name, "--profile", "team")

    refused = aflow(made, tmp_path, *words, answer="n\n")
    assert (1, before) == (refused.returncode, json.loads(file.read_text()))
    assert 0 == aflow(made, tmp_path, *words, "--yes").returncode

    after = json.loads(file.read_text())
    assert "ann" == after["AFLOW_USER"]
    assert "AFLOW_DATASTORE_SYSROOT_S3" not in after
    assert KEY not in aflow(made, tmp_path, "configure", "show", "--profile", "team").stdout


def test_a_stack_that_is_not_there_is_named(made: Made, tmp_path: Path) -> None:
    done = aflow(made, tmp_path, "stack", "import", "another")

    assert 2 == done.returncode
    assert "There is no stack another in this region and account" in done.stderr
    assert [] == [*tmp_path.iterdir()]


def test_a_stack_of_another_kind_is_no_configuration(made: Made, tmp_path: Path) -> None:
    body = json.dumps({"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}})
    made.aws("cloudformation").create_stack(StackName="topics", TemplateBody=body)

    done = aflow(made, tmp_path, "stack", "import", "topics")

    assert 2 == done.returncode
    assert "says nowhere where artifacts are" in done.stderr


def network_of(number: int) -> dict[str, str]:
    """Return addresses that no other stack uses."""
    return {
        "VpcCidr": f"10.{number}.0.0/16",
        "Subnet1Cidr": f"10.{number}.0.0/20",
        "Subnet2Cidr": f"10.{number}.16.0/20",
        "DatabaseSubnet1Cidr": f"10.{number}.32.0/24",
        "DatabaseSubnet2Cidr": f"10.{number}.33.0/24",
        "NatSubnetCidr": f"10.{number}.34.0/24",
    }


def test_on_fargate_there_are_no_instances(stack_server: Server, repository: Path) -> None:
    other = Made(stack_server, f"aflow-fargate-{os.getpid()}")
    file = repository / "aflow" / "aws" / "stack" / "cloudformation.yaml"

    other.create(file, ComputeType="FARGATE", StepTable="false", **network_of(30))

    outputs = other.outputs()
    environments = other.aws("batch").describe_compute_environments()["computeEnvironments"]
    assert "FARGATE" in {each["computeResources"]["type"] for each in environments}
    assert outputs.keys().isdisjoint({"TableName", "NotebookUrl"})
    types = {type_ for type_, _ in other.resources().values()}
    assert "AWS::Batch::JobQueue" in types
    assert types.isdisjoint({"AWS::EC2::LaunchTemplate", "AWS::IAM::InstanceProfile"})
    assert types.isdisjoint({"AWS::EC2::NatGateway", "AWS::CodeBuild::Project"})


def test_a_stack_in_a_network_that_is_there_makes_none(
    stack_server: Server, repository: Path, tmp_path: Path
) -> None:
    other = Made(stack_server, f"aflow-within-{os.getpid()}")
    ec2 = other.aws("ec2")
    vpc = ec2.create_vpc(CidrBlock="172.20.0.0/16")["Vpc"]["VpcId"]
    subnets = {
        ec2.create_subnet(
            VpcId=vpc, CidrBlock=f"172.20.{number}.0/24", AvailabilityZone=f"us-east-1{zone}"
        )["Subnet"]["SubnetId"]
        for number, zone in enumerate("ab")
    }

    other.create(
        repository / "aflow" / "aws" / "stack" / "cloudformation.yaml",
        VpcId=vpc, SubnetIds=",".join(sorted(subnets)), VpcCidr="172.20.0.0/16",
        PublicAddresses="false", GpuInstanceTypes="g5.xlarge",
    )  # fmt: skip

    made = other.resources()
    kinds = {kind for kind, _ in made.values() if kind.startswith("AWS::EC2::")}
    assert kinds.isdisjoint({"AWS::EC2::VPC", "AWS::EC2::Subnet", "AWS::EC2::InternetGateway"})
    group = made["JobSecurityGroup"][1]
    assert vpc == ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["VpcId"]
    listed = other.aws("batch").describe_compute_environments()["computeEnvironments"]
    own = {made[name][1].rpartition("/")[2] for name in ("Instances", "GpuInstances")}
    used = [e["computeResources"] for e in listed if e["computeEnvironmentName"] in own]
    assert [subnets, subnets] == [{*each["subnets"]} for each in used]
    found = imported(other, tmp_path)
    assert "DISABLED" == found["AFLOW_BATCH_ASSIGN_PUBLIC_IP"]
    assert made["GpuJobQueue"][1] == found["AFLOW_BATCH_GPU_JOB_QUEUE"]
    assert made["JobLogs"][1] == found["AFLOW_BATCH_LOG_GROUP"]


def test_private_subnets_have_their_way_out_over_one_gateway(
    stack_server: Server, repository: Path
) -> None:
    other = Made(stack_server, f"aflow-private-{os.getpid()}")
    file = repository / "aflow" / "aws" / "stack" / "cloudformation.yaml"

    other.create(file, PublicAddresses="false", ComputeType="FARGATE", **network_of(31))

    made, ec2 = other.resources(), other.aws("ec2")
    subnets = [made[name][1] for name in ("Subnet1", "Subnet2")]
    reported = ec2.describe_subnets(SubnetIds=subnets)["Subnets"]
    assert [False, False] == [each["MapPublicIpOnLaunch"] for each in reported]

    def way_out(table: str) -> dict[str, Any]:
        (found,) = ec2.describe_route_tables(RouteTableIds=[made[table][1]])["RouteTables"]
        (route,) = [e for e in found["Routes"] if e.get("DestinationCidrBlock") == "0.0.0.0/0"]
        return dict(route)

    assert made["Nat"][1] == way_out("RouteTable")["NatGatewayId"]
    assert made["InternetGateway"][1] == way_out("NatRouteTable")["GatewayId"]


def test_steps_that_ask_for_gpus_run_in_their_queue_and_log_to_the_stack(
    made: Made, repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpus = f"gpus-{os.getpid()}"
    environments = made.aws("batch").describe_job_queues()["jobQueues"][0]
    made.aws("batch").create_job_queue(
        jobQueueName=gpus, state="ENABLED", priority=1,
        computeEnvironmentOrder=environments["computeEnvironmentOrder"],
    )  # fmt: skip
    home = tmp_path / "home"
    found = imported(made, home)
    service = InThread(f"sqlite:///{tmp_path}/metadata.db", [KEY])
    here = dict.fromkeys(("METAFLOW_SERVICE_URL", "METAFLOW_SERVICE_INTERNAL_URL"), service.url)
    (home / "config.json").write_text(
        json.dumps({**found, **here, "AFLOW_BATCH_GPU_JOB_QUEUE": gpus})
    )
    workspace = Workspace(tmp_path)
    workspace.write(
        FLOW.replace("    @step\n    def start", "    @resources(gpu=1)\n    @step\n    def start")
    )
    for key, value in made.environment.items():
        monkeypatch.setenv(key, value)

    try:
        ran = workspace.run("--with", "batch", AFLOW_HOME=str(home))
    finally:
        service.stop()

    assert 0 == ran.code, ran.out + ran.err
    batch = made.aws("batch")
    (job,) = batch.list_jobs(jobQueue=gpus, jobStatus="SUCCEEDED")["jobSummaryList"]
    (reported,) = batch.describe_jobs(jobs=[job["jobId"]])["jobs"]
    assert "start" == reported["parameters"]["aflow.step_name"]
    (definition,) = batch.describe_job_definitions(jobDefinitions=[reported["jobDefinition"]])[
        "jobDefinitions"
    ]
    logs = definition["containerProperties"]["logConfiguration"]
    assert {"awslogs-group": found["AFLOW_BATCH_LOG_GROUP"]} == logs["options"]
