"""`aflow stack`: what aflow needs in AWS, as a template, and the settings of what is made of it."""

from __future__ import annotations

import click

from aflow.cli.configure import STACK_HELP, import_stack, stack_parameters
from aflow.cli.errors import USAGE

_HELP = """What aflow needs in AWS: S3, Batch, a metadata service, roles (see docs/aws.md).

\b
  aflow stack template > aflow.yaml
  aflow stack check Image=REGISTRY/aflow:0.2.0 ComputeType=SPOT
  aws cloudformation deploy --template-file aflow.yaml --stack-name aflow \\
      --capabilities CAPABILITY_IAM --parameter-overrides Image=REGISTRY/aflow:0.2.0
  aflow stack import aflow            the same as: aflow configure import-stack aflow
"""


_CHECK_HELP = """Say whether a stack can be made with these parameters.

Each is NAME=VALUE, as `aws cloudformation deploy --parameter-overrides` takes them. A sentence for
each that cannot be used; nothing is sent anywhere."""


def stack() -> click.Command:
    """The command."""
    group = click.Group("stack", help=_HELP)
    group.add_command(
        click.Command("template", help="Print the CloudFormation template.", callback=_template)
    )
    given = click.Argument(["parameters"], nargs=-1, metavar="[NAME=VALUE]...")
    group.add_command(click.Command("check", help=_CHECK_HELP, params=[given], callback=_check))
    group.add_command(
        click.Command("import", help=STACK_HELP, params=stack_parameters(), callback=import_stack)
    )
    return group


def _template() -> None:
    from aflow.aws.stack.settings import template

    click.echo(template(), nl=False)


def _check(parameters: tuple[str, ...]) -> int:
    from aflow.aws.stack.parameters import given_as, parameters_of, refusals
    from aflow.aws.stack.settings import template

    found = refusals(parameters_of(template()), given_as(parameters))
    for each in found:
        click.echo(each, err=True)
    if not found:
        click.echo("A stack can be made with these parameters.")
    return USAGE if found else 0
