"""The CloudFormation template is valid and documented, and grants no unnecessary permissions."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from aflow.aws.stack.parameters import refusals, template, values_of
from tests.stack.on_moto import loaded

# Actions that IAM knows no resources for, or that list what there is.
WITHOUT_RESOURCES = {
    "batch:DescribeJobs",
    "batch:DescribeJobDefinitions",
    "batch:DescribeJobQueues",
    "batch:DescribeComputeEnvironments",
    "batch:ListJobs",
    "states:ListStateMachines",
    "logs:CreateLogDelivery",
    "logs:GetLogDelivery",
    "logs:UpdateLogDelivery",
    "logs:DeleteLogDelivery",
    "logs:ListLogDeliveries",
    "logs:PutResourcePolicy",
    "logs:DescribeResourcePolicies",
    "logs:DescribeLogGroups",
    "ecr:GetAuthorizationToken",
}
# The keys of a working configuration.
SETTINGS = {
    "AFLOW_BATCH_ASSIGN_PUBLIC_IP",
    "AFLOW_BATCH_GPU_JOB_QUEUE",
    "AFLOW_BATCH_LOG_GROUP",
    "METAFLOW_BATCH_CONTAINER_IMAGE",
    "METAFLOW_BATCH_JOB_QUEUE",
    "METAFLOW_DATASTORE_SYSROOT_S3",
    "METAFLOW_DATATOOLS_S3ROOT",
    "METAFLOW_DATATOOLS_SYSROOT_S3",
    "METAFLOW_ECS_FARGATE_EXECUTION_ROLE",
    "METAFLOW_ECS_S3_ACCESS_IAM_ROLE",
    "METAFLOW_EVENTS_SFN_ACCESS_IAM_ROLE",
    "METAFLOW_SERVICE_AUTH_KEY",
    "METAFLOW_SERVICE_INTERNAL_URL",
    "METAFLOW_SERVICE_URL",
    "METAFLOW_SFN_DYNAMO_DB_TABLE",
    "METAFLOW_SFN_EXECUTION_LOG_GROUP_ARN",
    "METAFLOW_SFN_IAM_ROLE",
    "METAFLOW_SFN_STATE_MACHINE_PREFIX",
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template that the command prints."""
    file = tmp_path_factory.mktemp("template") / "aflow.yaml"
    command = [sys.executable, "-m", "aflow", "stack", "template"]
    file.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    return file


@pytest.fixture(scope="module")
def whole(file: Path) -> dict[str, Any]:
    """The parsed template."""
    return loaded(file)


@pytest.mark.slow
def test_the_command_prints_a_template_that_cfn_lint_has_nothing_to_say_of(file: Path) -> None:
    linter = shutil.which("cfn-lint", path=str(Path(sys.executable).parent))
    assert linter is not None, "cfn-lint is one of the development tools"

    done = subprocess.run([linter, "--non-zero-exit-code", "informational", file],
                          capture_output=True, text=True)  # fmt: skip

    assert (0, "") == (done.returncode, done.stdout + done.stderr)
    assert template() == file.read_text()


def test_the_template_can_be_sent_as_it_is(file: Path, whole: dict[str, Any]) -> None:
    assert 51_200 >= file.stat().st_size, "CloudFormation takes larger ones from a bucket alone"

    written = file.with_name("with-comments.yaml")
    command = [sys.executable, "-m", "aflow", "stack", "template", "--comments"]
    written.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    assert "# ---" in written.read_text()
    assert loaded(written) == whole, "they say the same"


# What checkov finds, and why it stays. `scripts/checkov` installs it, into a folder of its own.
_KEYS = "keys of AWS itself encrypt it: a customer key costs money, and protects nothing more here"
EXCEPTIONS = {
    ("CKV_AWS_18", "AccessLogs"): "the logs of the logs would be logged without end",
    ("CKV_AWS_19", "Bucket"): "it is encrypted: checkov does not look into the branches of !If",
    ("CKV_AWS_21", "AccessLogs"): "S3 writes each log once; nobody else may write them",
    ("CKV_AWS_65", "Cluster"): "container insights are paid for; one service has its own logs",
    ("CKV_AWS_73", "ApiStage"): "the API passes requests on, and the service logs them",
    ("CKV_AWS_76", "ApiStage"): "it needs a role of the whole account; the service logs requests",
    ("CKV_AWS_91", "LoadBalancer"): "network load balancers log TLS alone, which it has none of",
    ("CKV_AWS_115", "ImageStarter"): "it runs when the stack is made, and starts one build",
    ("CKV_AWS_116", "ImageStarter"): "CloudFormation calls it, and waits for its answer",
    ("CKV_AWS_117", "ImageStarter"): "it calls AWS alone, and nothing of the network",
    ("CKV_AWS_118", "Database"): "enhanced monitoring is paid for, and may be switched on",
    ("CKV_AWS_119", "Table"): _KEYS,
    ("CKV_AWS_120", "ApiStage"): "metadata change all the time: a cache would be wrong",
    ("CKV_AWS_136", "Images"): "it has the key that KmsKeyArn names, else one of AWS itself",
    ("CKV_AWS_149", "DatabaseSecret"): _KEYS,
    ("CKV_AWS_149", "ServiceKey"): _KEYS,
    ("CKV_AWS_157", "Database"): "DatabaseMultiAZ is a parameter, since it doubles the price",
    ("CKV_AWS_158", "JobLogs"): _KEYS,
    ("CKV_AWS_158", "ServiceLogs"): _KEYS,
    ("CKV_AWS_158", "StepFunctionsLogs"): _KEYS,
    ("CKV_AWS_161", "Database"): "the service alone reaches it, with a password that no one knows",
}


def test_checkov_finds_nothing_but_what_is_so_for_a_reason(file: Path, repository: Path) -> None:
    own = repository / ".checkov" / "bin" / "checkov"
    checkov = str(own) if own.exists() else shutil.which("checkov")
    if checkov is None:
        pytest.skip("checkov is not installed: scripts/checkov installs it")

    done = subprocess.run(
        [checkov, "-f", file, "--framework", "cloudformation", "-o", "json", "--quiet"],
        capture_output=True, text=True,
    )  # fmt: skip

    failed = json.loads(done.stdout)["results"]["failed_checks"]
    assert EXCEPTIONS.keys() == {
        (each["check_id"], each["resource"].rpartition(".")[2]) for each in failed
    }


def test_every_role_is_for_services_of_this_account_alone(whole: dict[str, Any]) -> None:
    trusting = {
        name: statement
        for name, each in whole["Resources"].items()
        if each["Type"] == "AWS::IAM::Role"
        for statement in each["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    }
    mine = {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}
    people = {"AWS": {"Ref": "UserPrincipalArn"}}
    assert people == trusting.pop("UserRole")["Principal"], "it is for whom the parameter names"
    # Instances, notebooks and functions are no services that act for others: they say no account.
    assert {"ImageStarterRole", "InstanceRole", "NotebookRole"} == {
        name for name, each in trusting.items() if each.get("Condition") != mine
    }


def test_a_stack_reaches_its_own_part_of_bucket_and_account(whole: dict[str, Any]) -> None:
    text = json.dumps([each["Resource"] for _, each in statements(whole)])
    named = set(
        re.findall(r"(stateMachine:|execution:|rule/|schedule/|job-definition/)([^\"]+)", text)
    )
    assert {"${AWS::StackName}_*", "*/${AWS::StackName}_*", "aflow_*",
            "StepFunctionsGetEventsForBatchJobsRule"} == {name for _, name in named}  # fmt: skip
    assert "${Bucket.Arn}/metaflow/*" in text
    assert "${Bucket.Arn}/*" not in text
    bucket = whole["Resources"]["Bucket"]["Properties"]
    assert {"Status": "Enabled"} == bucket["VersioningConfiguration"]
    assert {"Ref": "AccessLogs"} == bucket["LoggingConfiguration"]["DestinationBucketName"]


def test_roles_that_read_artifacts_may_use_the_key_that_encrypts_them(
    whole: dict[str, Any],
) -> None:
    keys = [name for name, each in statements(whole) if "kms:Decrypt" in words(each["Action"])]
    assert ["DataPolicy"] == keys

    reading = {"Ref": "DataPolicy"}
    for role in ("JobRole", "ServiceRole", "StepFunctionsRole", "NotebookRole", "UserRole"):
        policies = whole["Resources"][role]["Properties"]["ManagedPolicyArns"]
        assert json.dumps(reading) in json.dumps(policies), role
    encrypted = whole["Resources"]["Bucket"]["Properties"]["BucketEncryption"]
    assert '{"Ref": "KmsKeyArn"}' in json.dumps(encrypted)


def statements(whole: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every allowing statement of a policy, and the resource that it belongs to."""
    for name, resource in whole["Resources"].items():
        if not resource["Type"].startswith("AWS::IAM::"):
            continue
        properties = resource["Properties"]
        documents = [each["PolicyDocument"] for each in properties.get("Policies", ())]
        documents += [properties["PolicyDocument"]] if "PolicyDocument" in properties else []
        for document in documents:
            for each in document["Statement"]:
                statement = each["Fn::If"][1] if "Fn::If" in each else each
                assert "Allow" == statement["Effect"]
                yield name, statement


def words(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_no_role_may_do_everything_of_a_service(whole: dict[str, Any]) -> None:
    found = [*statements(whole)]

    assert 20 < len(found)
    assert [] == [
        (name, action)
        for name, statement in found
        for action in words(statement["Action"])
        if "*" in action or "NotAction" in statement
    ]


def texts(*nodes: ast.AST) -> list[str]:
    """Those of them that are the constant texts of a program."""
    constants = [each.value for each in nodes if isinstance(each, ast.Constant)]
    return [each for each in constants if isinstance(each, str)]


def called(repository: Path, *modules: str) -> set[str]:
    """Return the AWS actions that these modules call, in IAM's notation."""
    asked = ("self.call", ".try_call", "self.pages", "aws.call", "account.call")
    calls = []
    for module in modules:
        for node in ast.walk(ast.parse((repository / "aflow" / module).read_text())):
            if isinstance(node, ast.Call):
                function, *values = node.func, *node.args
                if ast.unparse(function) == "partial":
                    function, *values = values
                if ast.unparse(function).endswith(asked):
                    calls.append(values)
    return {
        f"{service.replace('stepfunctions', 'states')}:{name.title().replace('_', '')}"
        for constant, named, *_ in calls
        for service in texts(constant)
        for name in texts(*ast.walk(named))
    }


def test_who_has_the_policy_for_people_may_run_deploy_and_look(
    whole: dict[str, Any], repository: Path
) -> None:
    policy = [each for name, each in statements(whole) if name == "UserPolicy"]
    allowed = {action for each in policy for action in words(each["Action"])}
    asked = called(
        repository,
        "step_functions/deployer.py",
        "aws/client.py",
        "cli/doctor/probes.py",
        "cli/doctor/checks.py",
    )
    for_all = {"sts:GetCallerIdentity"}  # which nobody has to be allowed

    assert 30 < len(asked)
    assert {"batch:SubmitJob", "batch:ListJobs", "batch:TerminateJob", "iam:GetRole"} < asked
    assert for_all == asked - allowed


def test_steps_may_read_secrets_below_the_prefix_and_the_key_of_the_service(
    whole: dict[str, Any],
) -> None:
    reading = {
        name: each["Resource"]
        for name, each in statements(whole)
        if "secretsmanager:GetSecretValue" in words(each["Action"])
    }

    assert {"ServiceExecutionRole", "SecretsPolicy", "UserPolicy", "KeyPolicy"} == reading.keys()
    assert {"Ref": "ServiceKey"} == reading["KeyPolicy"], "of the metadata service, for the client"
    assert reading["SecretsPolicy"]["Fn::Sub"].endswith(":secret:${SecretsPrefix}*")
    assert [{"Ref": "JobRole"}] == whole["Resources"]["SecretsPolicy"]["Properties"]["Roles"]
    # Secrets without a name of their own are named after what they are called in the template.
    assert not any(name.startswith("aflow/") for name in whole["Resources"])


def test_what_has_resources_is_allowed_for_named_ones_alone(whole: dict[str, Any]) -> None:
    anywhere = {
        action
        for _, statement in statements(whole)
        if "*" in statement["Resource"] or statement["Resource"] == "*"
        for action in words(statement["Action"])
    }

    assert set() == anywhere - WITHOUT_RESOURCES


def test_roles_are_passed_to_named_services_alone(whole: dict[str, Any]) -> None:
    passing = [each for _, each in statements(whole) if "iam:PassRole" in words(each["Action"])]

    assert 1 == len(passing)
    assert "iam:PassedToService" in passing[0]["Condition"]["StringEquals"]
    assert all("Fn::GetAtt" in each for each in passing[0]["Resource"])


def test_policies_are_not_longer_than_iam_takes(whole: dict[str, Any]) -> None:
    arn = "arn:aws-us-gov:service:us-gov-west-1:123456789012:" + "x" * 60
    lengths = {
        name: len(re.sub(r'\{"(Ref|Fn::GetAtt)[^}]*\}', arn, json.dumps(document)).replace(" ", ""))
        for name, document in (
            (name, each["Properties"]["PolicyDocument"])
            for name, each in whole["Resources"].items()
            if each["Type"] == "AWS::IAM::ManagedPolicy"
        )
    }

    assert {"DataPolicy", "UserPolicy"} == lengths.keys()
    assert all(6_144 > length for length in lengths.values()), lengths


def test_nobody_comes_in_from_outside_of_the_network(whole: dict[str, Any]) -> None:
    groups = [
        rule
        for each in whole["Resources"].values()
        if each["Type"] == "AWS::EC2::SecurityGroup"
        for rule in each["Properties"].get("SecurityGroupIngress", ())
    ]

    assert groups
    assert all("SourceSecurityGroupId" in r or {"Ref": "VpcCidr"} == r["CidrIp"] for r in groups)


def test_every_parameter_says_what_it_is_and_what_it_takes(whole: dict[str, Any]) -> None:
    bounds = {"AllowedPattern", "AllowedValues", "MinValue"}
    free = {
        name
        for name, each in whole["Parameters"].items()
        if not bounds & each.keys() or 30 > len(each["Description"])
    }
    asked = whole["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]

    assert {"InstanceTypes"} == free, "what Batch itself checks"
    assert {*whole["Parameters"]} == {name for group in asked for name in group["Parameters"]}
    assert [] == [n for n, each in whole["Parameters"].items() if "Default" not in each]


def test_every_default_is_one_that_its_parameter_takes(whole: dict[str, Any]) -> None:
    for name, each in whole["Parameters"].items():
        default = each.get("Default")
        if default is not None and "AllowedPattern" in each:
            assert re.fullmatch(each["AllowedPattern"], default), name
        if default is not None and "MinValue" in each:
            assert each["MinValue"] <= default <= each["MaxValue"], name


def test_the_outputs_name_every_setting(whole: dict[str, Any]) -> None:
    named = re.findall(r"\[(\w+)\]", " ".join(o["Description"] for o in whole["Outputs"].values()))

    assert SETTINGS == {*named}
    assert len(SETTINGS) == len(named)


def test_nothing_runs_while_nothing_is_to_be_done(whole: dict[str, Any]) -> None:
    assert 0 == whole["Parameters"]["MinVCPUs"]["Default"]
    assert "none" == whole["Parameters"]["NotebookInstanceType"]["Default"]


def test_data_outlive_the_stack(whole: dict[str, Any]) -> None:
    kept = {name: each["DeletionPolicy"] for name, each in whole["Resources"].items()
            if "DeletionPolicy" in each}  # fmt: skip

    assert {
        "Bucket": "Retain", "AccessLogs": "Retain", "Images": "Retain", "Database": "Snapshot"
    } == kept  # fmt: skip


def test_whatever_logs_forgets_after_the_days_that_one_says(whole: dict[str, Any]) -> None:
    groups = [e for e in whole["Resources"].values() if e["Type"] == "AWS::Logs::LogGroup"]

    assert 3 == len(groups), "of jobs, of the service, of state machines"
    assert all({"Ref": "LogDays"} == each["Properties"]["RetentionInDays"] for each in groups)


# ------------------------------------------------------------ parameters

IMAGE = "Image=123456789012.dkr.ecr.us-east-1.amazonaws.com/aflow:0.2.0"


def checked(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aflow", "stack", "check", *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_parameters_that_can_be_used_are_said_to() -> None:
    done = checked(IMAGE, "ComputeType=SPOT", "MaxVCPUs=10000", "InstanceTypes=m7i,c7i")

    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["MaxVCPUs=0"], "MaxVCPUs is '0', and has to be from 1 to 10000."),
        (["MaxVCPUs=10001"], "MaxVCPUs is '10001', and has to be from 1 to 10000."),
        (["MaxVCPUs=many"], "MaxVCPUs is 'many', and has to be a whole number."),
        (["LogDays=2"], "LogDays is '2', and has to be one of 1, 3, 5,"),
        (["ComputeType=GPU"], "ComputeType is 'GPU', and has to be one of EC2, SPOT,"),
        (["JobPolicyArn=admin"], "JobPolicyArn is 'admin', and has to be empty, or the ARN of"),
        (["MaxVCPU=1"], "The template has no parameter MaxVCPU. Did you mean MaxVCPUs?"),
        (["MinVCPUs=65"], "MinVCPUs is 65, more than MaxVCPUs (64)"),
        (["VpcCidr=10.9.0.0/16"], "Subnet1Cidr (10.20.0.0/20) does not lie in VpcCidr (10.9.0.0/"),
        (["Subnet2Cidr=10.20.0.0/24"], "Subnet2Cidr (10.20.0.0/24) have addresses in common."),
        (["VpcCidr=10.20.0.1/16"], "VpcCidr is '10.20.0.1/16', which is not a network"),
        (["VpcCidr=10.20.0.0/8"], "VpcCidr is '10.20.0.0/8', and has to be of the form"),
        (["VpcId=vpc-0a1b2c3d"], "VpcId is given without SubnetIds: a network that is there"),
        (["SubnetIds=subnet-0a1b2c3d,subnet-1a1b2c3d"], "SubnetIds is given without VpcId"),
        (["VpcId=vpc-0a1b2c3d", "SubnetIds=subnet-0a1b2c3d"], "and has to be empty, or ids of two"),
        (
            ["VpcId=vpc-0a1b2c3d", "SubnetIds=subnet-0a1b2c3d,subnet-0a1b2c3d"],
            "name each subnet once, in two zones at least.",
        ),
        (["VpcId=mine"], "VpcId is 'mine', and has to be empty, or the id of a VPC."),
        (
            ["PublicAddresses=false", "NatSubnetCidr=10.20.0.0/24"],
            "Subnet1Cidr (10.20.0.0/20) and NatSubnetCidr (10.20.0.0/24) have addresses in common.",
        ),
        (["PublicAddresses=no"], "PublicAddresses is 'no', and has to be one of true, false."),
        (["ImagePackage="], "ImagePackage is '', and has to be s3://BUCKET/PATH.whl, or require"),
        (["GpuInstanceTypes=g5.xlarge; g4"], "has to be empty, or types and families with commas"),
    ],
)
def test_a_parameter_out_of_range_is_refused_with_the_range(
    words: list[str], said: str, whole: dict[str, Any]
) -> None:
    found = refusals(whole["Parameters"], values_of([IMAGE, *words]))

    assert [True] == sorted({said in each for each in found} - {False}), found


@pytest.mark.parametrize(
    "words",
    [
        ["VpcId=vpc-0a1b2c3d", "SubnetIds=subnet-0a1b2c3d,subnet-0123456789abcdef0",
         "VpcCidr=172.31.0.0/16", "PublicAddresses=false"],
        ["PublicAddresses=false", "GpuInstanceTypes=g5.xlarge,p4d"],
        ["ImagePackage=s3://wheels/aflow_runtime-0.1.0-py3-none-any.whl"],
        ["ImagePackage=aflow-runtime[aws,postgres,server]==0.1.0 numpy>=2", "ImageNumber=2"],
    ],
)  # fmt: skip
def test_networks_queues_and_images_of_many_kinds_can_be_had(
    words: list[str], whole: dict[str, Any]
) -> None:
    assert [] == refusals(whole["Parameters"], values_of(words))


def test_the_command_refuses_all_that_is_wrong_at_once() -> None:
    done = checked("MaxVCPUs=0", "LogDays=2")

    assert (2, "") == (done.returncode, done.stdout)
    assert 2 == len(done.stderr.splitlines())
    assert "'x' is not a parameter: write NAME=VALUE." in checked("x").stderr


# ------------------------------------------------------------ the image that the stack builds

BUILDSPEC_TOOLS = {
    "aws": 'echo "aws $*" >> calls; [[ $1 != s3 ]] || touch "$(basename "$4")"',
    "docker": 'echo "docker $*" >> calls; [[ $1 != build || -z ${BROKEN-} ]] || exit 1; '
    "[[ $1 != inspect ]] || echo registry/images@sha256:0a1b",
}
ANSWER = {"StackId": "stack", "RequestId": "1", "LogicalResourceId": "BuiltImage"}


class Answers:
    """The server to which custom resources of CloudFormation send their responses."""

    def __enter__(self) -> Answers:
        self.given: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                said = self.rfile.read(int(self.headers["Content-Length"]))
                outer.given.append(json.loads(said))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/answer?signed=yes"
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def build(whole: dict[str, Any], folder: Path, package: str, url: str, **more: str) -> Path:
    """Run the commands of the build, as CodeBuild does, and return the folder in which they ran."""
    phase = yaml.safe_load(
        whole["Resources"]["ImageBuild"]["Properties"]["Source"]["BuildSpec"]
    )["phases"]["build"]  # fmt: skip
    tools, source = folder / "tools", folder / "source"
    for made in (tools, source):
        made.mkdir(parents=True)
    for name, body in BUILDSPEC_TOOLS.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(folder),
        "REPOSITORY": "registry/images", "BASE": "python:3.12", "TAG": "1-abc",
        "PACKAGE": package, "CODEBUILD_LOG_PATH": "image/1234", "ANSWER": json.dumps(ANSWER),
        "ANSWER_TO": url, **more,
    }  # fmt: skip
    for command in (*phase["commands"], *phase["finally"]):
        subprocess.run(["bash", "-c", command], cwd=source, env=environment, check=False)
    return source


needs_jq = pytest.mark.skipif(
    shutil.which("jq") is None or shutil.which("curl") is None, reason="needs jq and curl"
)


@needs_jq
def test_the_stack_builds_an_image_of_requirements_and_hears_its_digest(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    with Answers() as answers:
        source = build(whole, tmp_path, "aflow-runtime[aws]==0.1.0 numpy>=2", answers.url)

    dockerfile = (source / "Dockerfile").read_text().splitlines()
    assert "FROM python:3.12" == dockerfile[0]
    (install,) = [line for line in dockerfile if "pip install" in line]
    words = install.removeprefix("RUN ").partition(" && ")[0]
    asked = subprocess.run(
        ["sh", "-c", words.replace("python -m pip", "printf '%s\\n'")],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert ["aflow-runtime[aws]==0.1.0", "numpy>=2"] == asked[-2:]
    assert "USER 1000:1000" in dockerfile
    assert not any(line.startswith("ENTRYPOINT") for line in dockerfile), "jobs bring their command"
    assert "docker push registry/images:1-abc" in (source / "calls").read_text()
    data = {"Image": "registry/images@sha256:0a1b"}
    assert [{**ANSWER, "Status": "SUCCESS", "Data": data}] == answers.given


@needs_jq
def test_the_stack_builds_an_image_of_a_wheel_in_s3(whole: dict[str, Any], tmp_path: Path) -> None:
    wheel = "aflow_runtime-0.1.0-py3-none-any.whl"
    with Answers() as answers:
        source = build(whole, tmp_path, f"s3://wheels/{wheel}", answers.url)

    assert f"aws s3 cp --only-show-errors s3://wheels/{wheel} ." in (source / "calls").read_text()
    assert f"/tmp/{wheel}" in (source / "Dockerfile").read_text()
    assert ["SUCCESS"] == [each["Status"] for each in answers.given]


@needs_jq
def test_a_build_that_fails_is_said_to_the_stack_with_the_place_of_its_log(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    with Answers() as answers:
        build(whole, tmp_path, "aflow-runtime", answers.url, BROKEN="1")

    (said,) = answers.given
    assert "FAILED" == said["Status"]
    assert "The image was not built: see the stream image/1234 of the logs." == said["Reason"]


def test_the_build_is_started_with_what_it_answers_to(whole: dict[str, Any]) -> None:
    code = whole["Resources"]["ImageStarter"]["Properties"]["Code"]["ZipFile"]
    assert 4096 > len(code), "longer code has to be in a bucket"
    started: list[dict[str, Any]] = []
    there = SimpleNamespace(
        client=lambda name: SimpleNamespace(
            start_build=lambda **how: started.append({"of": name, **how})
        )
    )
    names: dict[str, Any] = {}
    before = sys.modules.get("boto3")
    sys.modules["boto3"] = there  # type: ignore[assignment]
    try:
        exec(compile(code, "index.py", "exec"), names)
    finally:
        sys.modules.pop("boto3") if before is None else sys.modules.update(boto3=before)
    asked = {
        **ANSWER, "RequestId": "0123456789abcdef",
        "ResourceProperties": {"Project": "build", "Number": "3"},
    }  # fmt: skip

    with Answers() as answers:
        names["start"]({**asked, "RequestType": "Create", "ResponseURL": answers.url}, None)
        assert [] == answers.given, "the build answers"
        names["start"]({**asked, "RequestType": "Delete", "ResponseURL": answers.url}, None)
        del asked["ResourceProperties"]["Project"]  # type: ignore[attr-defined]
        names["start"]({**asked, "RequestType": "Update", "ResponseURL": answers.url}, None)

    (build_,) = started
    given = {each["name"]: each["value"] for each in build_["environmentVariablesOverride"]}
    assert ("codebuild", "build") == (build_["of"], build_["projectName"])
    assert ("3-01234567", answers.url) == (given["TAG"], given["ANSWER_TO"])
    assert "BuiltImage" == json.loads(given["ANSWER"])["LogicalResourceId"]
    assert ["SUCCESS", "FAILED"] == [each["Status"] for each in answers.given]
    assert "The build of the image did not start: 'Project'" == answers.given[1]["Reason"]
    assert all(each["PhysicalResourceId"] for each in answers.given)
