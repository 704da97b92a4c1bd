"""`aflow stack`: a CloudFormation template of all resources for aflow, and its settings."""

from __future__ import annotations

import click

from aflow.aws.stack.parameters import parameters_of, refusals, template, values_of
from aflow.cli.configure import STACK_HELP, import_stack, stack_parameters
from aflow.cli.errors import USAGE
from aflow.cli.options import Subcommand, command_group, flag

_HELP = """Print, check and import a CloudFormation stack with everything that aflow needs in AWS.

\b
  aflow stack template > aflow.yaml
  aflow stack check ComputeType=SPOT MaxVCPUs=256
  aws cloudformation deploy --template-file aflow.yaml --stack-name aflow \\
      --capabilities CAPABILITY_IAM --parameter-overrides ComputeType=SPOT MaxVCPUs=256
  aflow stack import aflow            the same as: aflow configure import-stack aflow
"""

_TEMPLATE_HELP = """Print the CloudFormation template, with each resource on one line.

CloudFormation accepts this form directly. The form with comments is larger than its limit: deploy
it through a bucket (`aws cloudformation deploy --s3-bucket NAME`)."""

_CHECK_HELP = """Check whether a stack can be created with these parameters.

Parameters are NAME=VALUE, as for `aws cloudformation deploy --parameter-overrides`. The command
prints a sentence for each invalid parameter. It sends nothing to AWS."""


def stack() -> click.Command:
    """Return the command `stack`."""
    comments = flag("--comments", help="Print the template with comments and line breaks.")
    given = click.Argument(["parameters"], nargs=-1, metavar="[NAME=VALUE]...")
    return command_group(
        "stack",
        _HELP,
        {
            "template": Subcommand(_TEMPLATE_HELP, [comments], _template),
            "check": Subcommand(_CHECK_HELP, [given], _check),
            "import": Subcommand(STACK_HELP, stack_parameters(), import_stack),
        },
    )


def _template(comments: bool) -> None:
    click.echo(template(comments=comments), nl=False)


def _check(parameters: tuple[str, ...]) -> int:
    found = refusals(parameters_of(template(comments=True)), values_of(parameters))
    for each in found:
        click.echo(each, err=True)
    if not found:
        click.echo("A stack can be made with these parameters.")
    return USAGE if found else 0
