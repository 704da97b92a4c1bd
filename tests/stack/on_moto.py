"""The template on moto's CloudFormation, which supports most of it.

Resources that moto does not support are left out, and created directly if others need them.
Properties that it rejects are rewritten. The rest of the template is unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

# Types that moto does not support. (Secrets are created directly, as others refer to them.)
LEFT_OUT = (
    "AWS::S3::BucketPolicy",
    "AWS::SecretsManager::",
    "AWS::ApiGateway::VpcLink",
    "AWS::ApiGateway::Resource",
    "AWS::ApiGateway::Method",
    "AWS::ApiGateway::Deployment",
    "AWS::ApiGateway::Stage",
    "AWS::ApiGateway::ApiKey",
    "AWS::ApiGateway::UsagePlan",
)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # types of yaml are not read
    """Parses tags of CloudFormation as the functions that they stand for."""


def _function(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if name == "GetAtt":
        value = value.split(".", 1)
    return {name if name in ("Ref", "Condition") else f"Fn::{name}": value}


_Loader.add_multi_constructor("!", _function)


def loaded(path: Path) -> dict[str, Any]:
    """Return the template, with functions in place of tags."""
    whole: dict[str, Any] = yaml.load(path.read_text(), _Loader)
    return whole


def for_moto(template: Mapping[str, Any], secrets: Mapping[str, str]) -> str:
    """Return the template adapted to moto. `secrets` are the ARNs of those created directly, by
    name."""
    whole = dict(template)
    gone = {name for name, each in whole["Resources"].items() if each["Type"].startswith(LEFT_OUT)}
    kept = {name: each for name, each in whole["Resources"].items() if name not in gone}
    for each in kept.values():
        if "DependsOn" in each:
            named = each["DependsOn"]
            named = [named] if isinstance(named, str) else named
            each["DependsOn"] = [name for name in named if name not in gone]
        if each["Type"] == "AWS::ElasticLoadBalancingV2::Listener":
            each["Properties"]["Protocol"] = "HTTP"  # moto does not support listeners for TCP
        if each["Type"] == "AWS::Batch::ComputeEnvironment":
            # It knows nothing of the role that Batch makes for itself.
            each["Properties"]["ServiceRole"] = {"Fn::GetAtt": ["JobExecutionRole", "Arn"]}
    whole["Resources"] = kept
    return json.dumps(_filled_in(whole, secrets))


def _is_of_a_key(value: Any) -> bool:
    """Whether it is what a policy allows for a key of KMS, which no stack here has: in lists, moto
    takes AWS::NoValue for a value."""
    return isinstance(value, dict) and value.get("Fn::If", [""])[0] == "HasKmsKey"


def _filled_in(value: Any, secrets: Mapping[str, str]) -> Any:
    """Return the value with the ARN in place of references to a secret."""
    if isinstance(value, dict):
        if value.keys() == {"Ref"} and value["Ref"] in secrets:
            return secrets[value["Ref"]]
        return {key: _filled_in(each, secrets) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled_in(each, secrets) for each in value if not _is_of_a_key(each)]
    if isinstance(value, str):
        for name, arn in secrets.items():
            value = value.replace(f"${{{name}}}", arn)
    return value
