"""`step-functions`: deploy the flow to AWS Step Functions, as a state machine of Batch jobs."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from aflow._core.clock import SystemClock
from aflow._core.settings import switched_on
from aflow.cli.checks import check_graph
from aflow.cli.errors import printable
from aflow.cli.options import (
    Subcommand,
    count_option,
    file_option,
    flag,
    option,
    parameter_options,
    parameters_file,
    tags_option,
    taken_out,
    write_file,
)
from aflow.cli.session import Session
from aflow.errors import InvalidInput
from aflow.flow.decorators.attach import attach

if TYPE_CHECKING:
    from aflow.flow.parameters import Parameter
    from aflow.step_functions.deployer import StateMachineDeployer

_STATES = ("running", "succeeded", "failed", "timed-out", "aborted")


def step_functions_commands(declared: Mapping[str, Parameter]) -> dict[str, Subcommand]:
    """Return the subcommands of `step-functions`, by name.

    Args:
        declared: The parameters of the flow, by attribute.
    """
    own = parameter_options(declared)

    def start(session: Session, **values: Any) -> None:
        given = taken_out(values, declared, own)
        trigger(session, given, **values)

    files = [
        file_option("--run-id-file", "Write the id of the run to this file."),
        file_option("--deployer-attribute-file", "Write name, flow and run to this file, as JSON."),
        parameters_file(),
    ]
    run = click.Argument(["run_id"], metavar="RUN")
    states = [flag(f"--{state}", help=f"Only runs with the status {state}.") for state in _STATES]
    return {
        "create": Subcommand(
            "Deploy the flow or a new version of it.", _create_parameters(), create
        ),
        "trigger": Subcommand("Start a run.", [_name(), *own.values(), *files], start),
        "list-runs": Subcommand("List the runs.", [_name(), *states], list_runs),
        "terminate": Subcommand("Stop a run.", [run, _name(), _authorize()], terminate),
        "resume": Subcommand(
            "Start a run that reuses the finished tasks of another run.",
            [run, _name()],
            resume,
        ),
        "delete": Subcommand(
            "Delete the state machine, its schedule and its event rules.",
            [_name(), _authorize()],
            delete,
        ),
        "diff": Subcommand(
            "Show what `create` would change.",
            [each for each in _create_parameters() if each.name in _SHAPING],
            diff,
        ),
    }


# Options that change the state machine.
_SHAPING = (
    "name", "tags", "batch_tags", "namespace", "max_workers", "timeout", "distributed", "compress",
    "on_error", "on_success",
)  # fmt: skip


def step_functions_options() -> list[click.Parameter]:
    """Return the options before a subcommand, as in Metaflow."""
    return [_name()]


def _name() -> click.Parameter:
    return option("--name", metavar="NAME", help="Name of the state machine.  [default: the flow]")


def _authorize() -> click.Parameter:
    return option(
        "--authorize",
        metavar="TOKEN",
        help="The production token, to change the deployment of another user.",
    )


def _create_parameters() -> list[click.Parameter]:
    return [
        _name(),
        _authorize(),
        flag("--generate-new-token", help="Generate a new production token."),
        option(
            "--new-token", "--given-token", "new_token", metavar="TOKEN",
            help="Set this production token.",
        ),
        tags_option("A tag for all runs; may be given several times."),
        option(
            "--aws-batch-tag", "batch_tags", multiple=True, metavar="KEY=VALUE",
            help="A tag for all jobs.",
        ),
        option(
            "--namespace", metavar="NAME",
            help="Namespace of the client inside runs.  [default: production:<token>]",
        ),
        flag("--only-json", help="Only show the definition of the state machine."),
        count_option(
            "--max-workers", least=0, default=100,
            help="The most items of a foreach at a time; 0: no limit.",
        ),
        count_option(
            "--workflow-timeout", "timeout", metavar="SECONDS", help="Time limit of a run."
        ),
        flag("--log-execution-history", help="Log executions to CloudWatch."),
        flag(
            "--use-distributed-map/--no-use-distributed-map", "distributed",
            help="Run a foreach as a distributed map: more than 40 items at a time.",
        ),
        option(
            "--compress-state-machine/--no-compress-state-machine", "compress", default=None,
            help="Write the definition without spaces.",
        ),
        option(
            "--notify-on-error", "on_error", metavar="ARN",
            help="Notify this SNS topic or event bus of failed runs.",
        ),
        option(
            "--notify-on-success", "on_success", metavar="ARN",
            help="Notify this SNS topic or event bus of successful runs.",
        ),
        file_option(
            "--deployer-attribute-file", "Write name, flow and token to this file, as JSON."
        ),
    ]  # fmt: skip


# ------------------------------------------------------------------ commands


def create(
    session: Session,
    authorize: str | None,
    generate_new_token: bool,
    new_token: str | None,
    only_json: bool,
    log_execution_history: bool,
    deployer_attribute_file: str | None,
    **shape: Any,
) -> None:
    """Deploy the flow or a new version of it."""
    deployer = _deployer(session, **shape)
    if only_json:
        click.echo(deployer.definition_alone(new_token or authorize))
        return
    from aflow.step_functions.deployer import starts

    session.note(f"Deploying {deployer.flow} to AWS Step Functions...")
    done = deployer.create(
        authorize=authorize,
        new_token=new_token,
        generate=generate_new_token,
        log_history=log_execution_history,
    )
    label = done.plan.label
    outcome = "has been deployed" if done.new_machine else "has a new version"
    click.echo(f"{deployer.flow} {outcome} as the state machine {done.plan.name}.")
    for sentence in starts(done.plan):
        click.echo(sentence)
    if done.before is not None and done.before.owner != label.owner:
        click.echo(
            f"It belongs to {label.owner} now. {done.before.owner} and all who have the token "
            f"{done.before.token} need the new one to deploy it: --authorize {label.token}."
        )
    elif label.owner != session.settings().user:
        click.echo(f"It goes on to belong to {label.owner}.")
    click.echo(f"Its production token is {label.token}: others need it to change what is deployed.")
    click.echo(f"Its runs are in the namespace production:{label.token}.")
    if deployer.records_in_store:
        click.echo(
            f"Jobs record their runs in {session.settings().storage_url}: the metadata service is "
            "one of Metaflow's own, in which they are registered."
        )
    facts = {"name": done.plan.name, "flow_name": label.flow, "metadata": session.settings().place}
    _write(deployer_attribute_file, json.dumps({**facts, "production_token": label.token}))


def trigger(
    session: Session,
    given: Mapping[str, Any],
    name: str | None,
    run_id_file: str | None,
    deployer_attribute_file: str | None,
) -> None:
    """Start a run."""
    deployer = _deployer(session, name=name)
    execution = deployer.trigger({key: each for key, each in given.items() if each is not None})
    _write(run_id_file, execution.run)
    facts = {"name": deployer.name, "metadata": session.settings().place}
    pathspec = f"{deployer.flow}/{execution.run}"
    _write(deployer_attribute_file, json.dumps({**facts, "pathspec": pathspec}))
    click.echo(f"{deployer.name} is started (run-id {execution.run}).")


def list_runs(session: Session, name: str | None, **chosen: bool) -> None:
    """Print one line per run."""
    deployer = _deployer(session, name=name)
    states = [
        state.upper() for state, is_chosen in chosen.items() if is_chosen
    ]  # such as TIMED_OUT
    found = deployer.executions(states)
    reasons = deployer.reasons(found)
    for each in found:
        ended = f" ended:{_time(each.stopped_at)}" if each.stopped_at is not None else ""
        click.echo(f"{each.run} started:{_time(each.started_at)}{ended} {each.status}")
        for line in reasons.get(each.run, "").splitlines():
            click.echo(f"    {printable(line)}")
    if not found:
        session.note(f"{deployer.name} has no such runs.")


def terminate(session: Session, run_id: str, name: str | None, authorize: str | None) -> None:
    """Stop a run."""
    deployer = _deployer(session, name=name)
    before = deployer.terminate(run_id, authorize, SystemClock()).status
    if before == "RUNNING":
        click.echo(f"{deployer.flow}/{run_id} is terminated.")
    else:
        click.echo(f"{deployer.flow}/{run_id} had ended ({before}), which is recorded now.")


def resume(session: Session, run_id: str, name: str | None) -> None:
    """Start a run that reuses the finished tasks of this one."""
    execution = _deployer(session, name=name).resume(run_id)
    click.echo(f"{run_id} is resumed (run-id {execution.run}).")


def delete(session: Session, name: str | None, authorize: str | None) -> None:
    """Delete the state machine."""
    deployer = _deployer(session, name=name)
    deployer.delete(authorize, SystemClock())
    click.echo(f"{deployer.name} is deleted. Executions that run go on to their end.")


def diff(session: Session, **shape: Any) -> int:
    """Print the differences as a patch. Returns the exit code: 1 if there are any."""
    deployer = _deployer(session, **shape)
    before, after = (text.splitlines() for text in deployer.differences())
    lines = [*difflib.unified_diff(before, after, "deployed", "new", lineterm="")]
    for line in lines:
        click.echo(line)
    if not lines:
        session.note(f"{deployer.name} is deployed as it is.")
    return 1 if lines else 0


# ------------------------------------------------------------------ helpers


def _deployer(session: Session, **shape: Any) -> StateMachineDeployer:
    # Imported here, because the help does not need them.
    from aflow.step_functions.deployer import StateMachineDeployer
    from aflow.step_functions.plan import DeploymentOptions

    settings = session.settings()
    definition = session.define()
    check_graph(definition, session.note)
    decospecs = (*session.top["with_"], *settings.default_decospecs)
    group = click.get_current_context().parent
    if shape.get("name") is None and group is not None:
        shape["name"] = group.params.get("name")
    if shape.get("compress") is None:
        shape["compress"] = switched_on("SFN_COMPRESS_STATE_MACHINE")
    shape["batch_tags"] = tuple(map(_key_and_value, shape.get("batch_tags", ())))
    options = DeploymentOptions(
        **shape,
        branch=session.top["branch"],
        production=session.top["production"],
        decospecs=decospecs,
    )
    return StateMachineDeployer(attach(definition, decospecs), settings, options)


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidInput(f"--aws-batch-tag takes KEY=VALUE, not {text!r}.")
    return key, value


def _write(file: str | None, text: str) -> None:
    if file is not None:
        write_file(file, text)


def _time(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
