"""The CloudFormation template, and validation of its parameters.

The validation finds errors that CloudFormation would report, some of them only after fifteen
minutes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from ipaddress import IPv4Network
from itertools import combinations
from typing import Any

from aflow.errors import InvalidInput, MissingExtra

_SUBNETS = ("Subnet1Cidr", "Subnet2Cidr", "DatabaseSubnet1Cidr", "DatabaseSubnet2Cidr")
_NAT_SUBNET = "NatSubnetCidr"
_EVERYTHING = 10**9  # columns: never break a line


def template(*, comments: bool = False) -> str:
    """Return the CloudFormation template.

    Without comments, each resource is on one line. This keeps the template below 51,200 bytes, the
    limit of CloudFormation for templates that are not in a bucket.

    Args:
        comments: Whether to return the template as written, with comments.

    Raises:
        MissingExtra: If PyYAML is not installed.
    """
    text = (files("aflow.aws.stack") / "cloudformation.yaml").read_text("utf-8")
    return text if comments else _compact(text)


def _compact(text: str) -> str:
    yaml = _yaml()

    class Dumper(yaml.SafeDumper):  # type: ignore[misc, name-defined]
        """Writes no space after a comma, and no quotes after a tag."""

        whitespace: bool
        analysis: Any

        def write_indicator(self, indicator: str, *more: Any, **named: Any) -> None:
            super().write_indicator(indicator, *more, **named)
            self.whitespace = self.whitespace or indicator == ","

        def choose_scalar_style(self) -> Any:
            self.analysis = self.analysis or self.analyze_scalar(self.event.value)
            tagged = self.event.tag is not None and self.event.tag.startswith("!")
            if tagged and self.analysis.allow_flow_plain:
                return ""
            return super().choose_scalar_style()

    def on_one_line(node: Any, depth: int) -> None:
        if not isinstance(node, yaml.ScalarNode):
            node.flow_style = depth > 1
            for each in node.value:
                for part in each if isinstance(each, tuple) else [each]:
                    on_one_line(part, depth + 1)

    # Serialize nodes, to keep the short forms of functions (!Ref).
    whole = yaml.compose(text, Loader=yaml.SafeLoader)
    on_one_line(whole, 0)
    written: str = yaml.serialize(whole, Dumper=Dumper, width=_EVERYTHING, indent=1)
    return written


def _yaml() -> Any:
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingExtra(
            "Reading the template needs PyYAML: install aflow-runtime[aws]."
        ) from error
    return yaml


def parameters_of(template: str) -> dict[str, dict[str, Any]]:
    """Return the parameters of a template by name.

    Args:
        template: The text of the template, in YAML.

    Raises:
        MissingExtra: If PyYAML is not installed.
    """
    yaml = _yaml()
    # Functions of CloudFormation, which only occur outside of parameters, are loaded as None.
    loader: Any = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("!", lambda loader, name, node: None)
    found: dict[str, dict[str, Any]] = yaml.load(template, loader)["Parameters"]
    return found


def values_of(arguments: Iterable[str]) -> dict[str, str]:
    """Return the values of `NAME=VALUE` arguments, by name.

    Args:
        arguments: The arguments of the command line.

    Raises:
        InvalidInput: If an argument does not have this form.
    """
    found = {}
    for argument in arguments:
        name, mark, value = argument.partition("=")
        if not name or not mark:
            raise InvalidInput(f"{argument!r} is not a parameter: write NAME=VALUE.")
        found[name] = value
    return found


def refusals(parameters: Mapping[str, Mapping[str, Any]], values: Mapping[str, str]) -> list[str]:
    """Return a sentence for each invalid or missing value.

    Args:
        parameters: The parameters of the template, by name.
        values: The values that the user has set, by name.
    """
    found = [*_unknown(parameters, values), *_missing(parameters, values)]
    for name, value in values.items():
        if name in parameters:
            found += _of_one(name, value, parameters[name])
    if not found:
        whole = {name: str(each.get("Default", "")) for name, each in parameters.items()}
        found += _together({**whole, **values})
    return found


def _unknown(parameters: Mapping[str, Any], values: Mapping[str, str]) -> Iterator[str]:
    import difflib

    for name in values.keys() - parameters.keys():
        near = difflib.get_close_matches(name, parameters, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        yield f"The template has no parameter {name}.{hint}"


def _missing(
    parameters: Mapping[str, Mapping[str, Any]], values: Mapping[str, str]
) -> Iterator[str]:
    for name, each in parameters.items():
        if "Default" not in each and name not in values:
            yield f"{name} has to be given: {each['Description']}"


def _of_one(name: str, value: str, parameter: Mapping[str, Any]) -> Iterator[str]:
    shown = f"{name} is {value!r}, and has to be"
    allowed = [str(each) for each in parameter.get("AllowedValues", ())]
    if parameter["Type"] == "Number" and not re.fullmatch(r"\d{1,15}", value):
        yield f"{shown} a whole number."
    elif "MinValue" in parameter and not (
        parameter["MinValue"] <= int(value) <= parameter["MaxValue"]
    ):
        yield f"{shown} from {parameter['MinValue']} to {parameter['MaxValue']}."
    elif allowed and value not in allowed:
        yield f"{shown} one of {', '.join(allowed)}."
    elif not re.fullmatch(parameter.get("AllowedPattern", ".*"), value):
        constraint = parameter.get("ConstraintDescription", "has to be of another form.")
        yield f"{name} is {value!r}, and {constraint}"


def _together(values: Mapping[str, str]) -> Iterator[str]:
    """Yield errors in combinations of values."""
    least, most = int(values["MinVCPUs"]), int(values["MaxVCPUs"])
    if least > most:
        yield f"MinVCPUs is {least}, more than MaxVCPUs ({most}): more would have to run than may."
    if bool(values["VpcId"]) != bool(values["SubnetIds"]):
        there, absent = ("VpcId", "SubnetIds") if values["VpcId"] else ("SubnetIds", "VpcId")
        yield f"{there} is given without {absent}: a network that is there needs both."
    subnets = values["SubnetIds"].split(",")
    if len(set(subnets)) < len(subnets):
        yield f"SubnetIds is {values['SubnetIds']!r}: name each subnet once, in two zones at least."
    yield from _networks(values)


def _networks(values: Mapping[str, str]) -> Iterator[str]:
    """Yield errors in the network addresses of the stack."""
    if values["VpcId"]:
        used: tuple[str, ...] = ()
    elif values["PublicAddresses"] == "false":
        used = (*_SUBNETS, _NAT_SUBNET)
    else:
        used = _SUBNETS
    nets: dict[str, IPv4Network] = {}
    for name in ("VpcCidr", *used):
        try:
            nets[name] = IPv4Network(values[name])
        except ValueError as error:
            yield f"{name} is {values[name]!r}, which is not a network: {error}."
            return
    for name in used:
        if not nets[name].subnet_of(nets["VpcCidr"]):
            yield f"{name} ({nets[name]}) does not lie in VpcCidr ({nets['VpcCidr']})."
    for one, other in combinations(used, 2):
        if nets[one].overlaps(nets[other]):
            yield f"{one} ({nets[one]}) and {other} ({nets[other]}) have addresses in common."
