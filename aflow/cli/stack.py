"""`aflow stack`: what aflow needs in AWS, as a template, and the settings of what is made of it."""

from __future__ import annotations

from collections.abc import Sequence

import click

from aflow.cli.configure import STACK_HELP, import_stack, stack_parameters

_HELP = """What aflow needs in AWS: S3, Batch, a metadata service, roles (see docs/aws.md).

\b
  aflow stack template > aflow.yaml
  aws cloudformation deploy --template-file aflow.yaml --stack-name aflow \\
      --capabilities CAPABILITY_IAM --parameter-overrides Image=REGISTRY/aflow:0.1.0
  aflow stack import aflow            the same as: aflow configure import-stack aflow
"""


def stack(words: Sequence[str]) -> object:
    """Run the command with these words."""
    group = click.Group("stack", help=_HELP)
    group.add_command(
        click.Command("template", help="Print the CloudFormation template.", callback=_template)
    )
    group.add_command(
        click.Command("import", help=STACK_HELP, params=stack_parameters(), callback=import_stack)
    )
    return group.main([*words], prog_name="aflow stack", standalone_mode=False)


def _template() -> None:
    from aflow.stack.settings import template

    click.echo(template(), nl=False)
