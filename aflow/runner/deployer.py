"""Deployer: deploy flows to Step Functions from a program, by commands of the flow's file."""

from __future__ import annotations

import json
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aflow._core.clock import SystemClock
from aflow.client import Run
from aflow.client.where import place_at
from aflow.errors import CommandFailed, NotFound
from aflow.runner.command import FlowCommands

LOOK_AGAIN = 1.0  # seconds between polls of whether a run has started


class Deployer(FlowCommands):
    """Deploys the flow of a file.

        deployed = Deployer("flow.py").step_functions().create(max_workers=10)
        triggered = deployed.trigger(alpha=0.5)
        print(triggered.wait_for_run().pathspec)

    `show_output` copies the output of the commands, `env` adds environment variables, `cwd` is the
    working directory; `file_read_timeout` has no effect and is accepted for compatibility. All
    other keywords are options before the command (`branch`, `production`, ...). Raises
    FlowFileError if the file does not exist.
    """

    def step_functions(self, name: str | None = None) -> StepFunctionsDeployer:
        """Return the deployer of the flow to AWS Step Functions.

        Args:
            name: The name of the state machine; None to derive it from the flow.
        """
        return StepFunctionsDeployer(self, name)

    def result_of(
        self,
        command: str,
        arguments: Sequence[str],
        given: Mapping[str, Any],
        *,
        facts: bool = True,
    ) -> tuple[dict[str, Any], str]:
        """Run a command of the flow's file, and wait until it exits.

        Args:
            command: The name of the command.
            arguments: The arguments of the command.
            given: The options of the command, by name.
            facts: Whether the command writes facts to a file; if not, they are empty.

        Returns:
            The facts that the command has written, and its stdout.

        Raises:
            InvalidInput: If the command has no such option.
            CommandFailed: If the command fails.
        """
        with tempfile.TemporaryDirectory(prefix="aflow-") as name:
            folder = Path(name)
            file = folder / "facts.json"
            if facts:
                given = {**given, "deployer_attribute_file": file}
            started = self._command(command, arguments, given, folder)
            try:
                code = started.wait_here(self.show_output)
                printed = started.output("stdout")
                if code:
                    raise CommandFailed(
                        f"{shlex.join(started.command)} failed (exit code {code}). It said:\n"
                        f"{started.last_output()}"
                    )
            finally:
                started.cleanup()
            text = file.read_text("utf-8") if facts else "{}"
        return json.loads(text), printed


class StepFunctionsDeployer:
    """Deploys a flow to AWS Step Functions."""

    def __init__(self, deployer: Deployer, name: str | None) -> None:
        self._deployer = deployer
        self._given = {} if name is None else {"name": name}

    def create(self, **options: Any) -> DeployedFlow:
        """Deploy the flow, or a new version of it.

        Args:
            **options: The options of `step-functions create`.

        Returns:
            The deployed flow.
        """
        given = {**self._given, **options}
        facts, _ = self._deployer.result_of("step-functions create", [], given)
        return DeployedFlow(self._deployer, self._given, facts)


class ExecutionInfo(NamedTuple):
    """A row of `step-functions list-runs`."""

    run_id: str
    status: str


class DeployedFlow:
    """A deployed flow; `name` is the name of its state machine."""

    def __init__(
        self, deployer: Deployer, given: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> None:
        self._deployer = deployer
        self._given = given
        self.name: str = facts["name"]
        self.flow_name: str = facts["flow_name"]
        self.metadata: str = facts["metadata"]
        self.production_token: str = facts["production_token"]

    def trigger(self, **parameters: Any) -> TriggeredRun:
        """Start a run of the deployed flow.

        Args:
            **parameters: The values of the flow's parameters, by name.

        Returns:
            The run.
        """
        given = {**self._given, **parameters}
        facts, _ = self._deployer.result_of("step-functions trigger", [], given)
        return TriggeredRun(self, facts["pathspec"])

    def list_runs(self, states: Sequence[str] = ()) -> list[ExecutionInfo]:
        """Return the runs in one of these states (`RUNNING`, `TIMED_OUT`, ...).

        Args:
            states: The states; empty for all runs.
        """
        given = {**self._given, **{state.lower(): True for state in states}}
        _, printed = self._deployer.result_of("step-functions list-runs", [], given, facts=False)
        rows = [line.split() for line in printed.splitlines()]
        return [ExecutionInfo(row[0], row[-1]) for row in rows if row]

    def terminate(self, run_id: str, authorize: str | None = None) -> None:
        """Stop a run.

        Args:
            run_id: The id of the run.
            authorize: The production token of another user's deployment; None for your own.
        """
        given = {**self._given, "authorize": authorize}
        self._deployer.result_of("step-functions terminate", [run_id], given, facts=False)

    def delete(self, authorize: str | None = None) -> None:
        """Delete the state machine, and the schedules and rules that start it.

        Args:
            authorize: The production token of another user's deployment; None for your own.
        """
        given = {**self._given, "authorize": authorize}
        self._deployer.result_of("step-functions delete", [], given, facts=False)


class TriggeredRun:
    """A run that was started on Step Functions; it is recorded when its first job starts."""

    def __init__(self, deployed: DeployedFlow, pathspec: str) -> None:
        self._deployed = deployed
        self.pathspec = pathspec

    @property
    def run(self) -> Run | None:
        """The run; None if its first job has not started."""
        try:
            place = place_at(self._deployed.metadata)
            return Run(self.pathspec, _namespace_check=False, _place=place)
        except NotFound:
            return None

    def wait_for_run(self, timeout: float | None = None) -> Run:
        """Return the run, once its first job has started; raises TimeoutError if it does not.

        Args:
            timeout: The maximum time to wait, in seconds; None for no limit.
        """
        clock = SystemClock()
        begun = clock.monotonic()
        while (found := self.run) is None:
            if timeout is not None and clock.monotonic() - begun > timeout:
                raise TimeoutError(f"{self.pathspec} has not begun in {timeout} seconds.")
            time.sleep(LOOK_AGAIN)
        return found

    def terminate(self, authorize: str | None = None) -> None:
        """Stop the run.

        Args:
            authorize: The production token of another user's deployment; None for your own.
        """
        self._deployed.terminate(self.pathspec.rpartition("/")[2], authorize)
