"""`kubernetes`: the jobs of Kubernetes that runs have submitted, listed and ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from aflow.cli.batch import Commands, wanted_jobs, whose
from aflow.cli.tables import show
from aflow.k8s.access import KubernetesCluster
from aflow.k8s.settings import KubernetesSettings

if TYPE_CHECKING:
    from aflow.cli.session import Session
    from aflow.executors.jobs.kubernetes import SubmittedJob
    from aflow.k8s.access import KubernetesCluster


def kubernetes_commands() -> Commands:
    """The commands below `kubernetes`, by name: help, parameters, body."""
    return {
        "list": ("List the jobs that have not ended.", whose(), list_),
        "kill": ("End the jobs that have not ended.", whose(), kill),
    }


def list_(session: Session, my_runs: bool, user: str | None, run_id: str | None) -> None:
    """Show a line for each job."""
    cluster, found = _found(session, my_runs, user, run_id)
    cluster.close()
    if not found:
        session.note("There are no jobs that have not ended.")
        return

    rows = [
        (
            f"{job.flow}/{job.run}/{job.step}",
            ", ".join(f"{count} {state}" for state, count in job.states.items()),
            job.created.rstrip("Z").replace("T", " ")[:19],
            job.user,
            f"{job.namespace}/{job.name}",
        )
        for job in found
    ]
    show(("step", "state", "submitted (UTC)", "user", "job"), rows)


def kill(session: Session, my_runs: bool, user: str | None, run_id: str | None) -> None:
    """End the jobs, and say which; the attempts that they run fail, and are not tried again."""
    from aflow.executors.jobs.kubernetes import KubernetesSystem

    cluster, found = _found(session, my_runs, user, run_id)
    system = KubernetesSystem(cluster)
    by = session.settings().user
    for job in found:
        system.terminate([job.id], f"It was ended by {by} (kubernetes kill)")
        click.echo(f"Ended the job {job.namespace}/{job.name} of {job.flow}/{job.run}/{job.step}.")
    system.close()
    if not found:
        session.note("There are no jobs that have not ended.")


def _found(
    session: Session, my_runs: bool, user: str | None, run_id: str | None
) -> tuple[KubernetesCluster, list[SubmittedJob]]:
    from aflow.executors.jobs.kubernetes import unfinished

    wanted = wanted_jobs(session, session.settings(), my_runs, user, run_id)
    cluster = KubernetesCluster()
    common = KubernetesSettings.load().namespace or cluster.namespace
    namespaces = sorted({common, *_own_namespaces(session)})
    return cluster, unfinished(cluster, namespaces, wanted.user, wanted.flow, wanted.run)


def _own_namespaces(session: Session) -> Iterator[str]:
    """The namespaces that steps of the flow name."""
    if session.flow is None:
        return
    for step in session.define().steps.values():
        kubernetes: Any = step.decorator("kubernetes")
        if kubernetes is not None and kubernetes.namespace:
            yield str(kubernetes.namespace)
