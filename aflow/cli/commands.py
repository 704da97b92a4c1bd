"""The names of all commands, with their help. Each is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# The commands of a flow, in the order of the help.
COMMANDS = {
    "run": "Run the flow.",
    "resume": "Resume a run: reuse what it has finished, and run the rest.",
    "spin": "Run one step again on the inputs that it had before.",
    "check": "Check that the flow can run (the default command).",
    "show": "Show the steps of the flow, their docstrings, and which step follows which.",
    "dump": "Show the artifacts of tasks.",
    "logs": "Show what tasks have printed, or redact it.",
    "explain": "Explain why tasks ran, or why their results were reused.",
    "card": "View, get, list or create the cards of tasks.",
    "package": "Show, list or save the code package of the flow.",
    "batch": "List the jobs of AWS Batch that have not ended, or end them.",
    "kubernetes": "List the jobs of Kubernetes that have not ended, or end them.",
    "step-functions": "Deploy the flow to AWS Step Functions, and manage its runs.",
    "deploy": "The same as step-functions.",
    "tag": "Add, remove, replace or list the tags of runs.",
    "output-dot": "Write the graph for graphviz.",
    "output-raw": "Write the graph as text, or as JSON.",
    "version": "Show the version of aflow.",
    "help": "Show this help.",
}
# Those that accept a pathspec without a flow file.
NEED_NO_FILE = ("batch", "card", "dump", "explain", "kubernetes", "logs")

# Commands without a flow file: name -> help, and the function that creates the click command, which
# is imported when the command is used.
OTHERS = {
    "status": ("Show all flows, active runs, and the latest failures.", "aflow.cli.status:status"),
    "runs": ("List runs of a flow or of all flows.", "aflow.cli.runs:runs"),
    "code": ("Compare the code of a run with this folder, or fetch it.", "aflow.cli.code:code"),
    "gc": ("Delete old runs, and data without references.", "aflow.cli.gc:gc"),
    "recover": ("Recover a run whose coordinator has died.", "aflow.cli.recover:recover"),
    "worker": ("Lease tasks from a queue, and run them here.", "aflow.cli.worker:worker"),
    "workers": ("List, drain and start workers.", "aflow.cli.worker:workers"),
    "queue": ("Show, release and delete the messages of a queue.", "aflow.cli.queue:queue"),
    "configure": (
        "Set where data and metadata are, per user, in profiles.",
        "aflow.cli.configure:configure",
    ),
    "doctor": (
        "Check the configuration and everything it refers to.",
        "aflow.cli.doctor.command:doctor",
    ),
    "metadata-service": (
        "Serve metadata over HTTP, also to Metaflow's clients.",
        "aflow.cli.metadata_service:metadata_service",
    ),
    "cancel": ("Cancel a run.", "aflow.cli.cancel:cancel"),
    "server": ("Run flows that are submitted over HTTP.", "aflow.cli.server:server"),
    "ui": ("Show runs in a browser.", "aflow.cli.ui:ui"),
    "submit": (
        "Submit a flow to a server (aflow submit flow.py --alpha 0.5 --wait).",
        "aflow.cli.submit:submit",
    ),
    "stack": ("Print, check and import a CloudFormation stack for aflow.", "aflow.cli.stack:stack"),
    "schedule": ("Manage the schedules of a server.", "aflow.cli.schedule:schedule"),
    "token": ("Create, list and revoke API tokens.", "aflow.cli.token:token"),
    "completion": (
        "Print the completion script of a shell (bash, zsh, fish).",
        "aflow.cli.completion:completion",
    ),
    "init": ("Create a project: a flow, its test, a pipeline.", "aflow.cli.init:init"),
    "tutorials": (
        "List, describe and copy short flows to learn from.",
        "aflow.cli.tutorials.command:tutorials",
    ),
}
# Former names of commands, which scripts may use; the help does not list them.
EARLIER = {"adopt": "recover"}


def imported(name: str) -> Any:
    """Return an object by its name; its module is imported.

    Args:
        name: `package.module:name`.
    """
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
