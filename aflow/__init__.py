"""aflow: flows of steps whose artifacts are stored automatically, on a light asyncio runtime.

This is the only public module. It is lazy: `import aflow` costs almost nothing, and each name is
imported from its module when it is first used.
"""

import sys

import aflow.metadata as _metadata_package
import aflow.queue as _queue_package
from aflow._core.shadowed import keep_hidden_by_main

keep_hidden_by_main()  # before aflow imports a module that the program's file could shadow

# Type checkers treat this as typing.TYPE_CHECKING. Importing typing would take ten times as long
# as all the rest of `import aflow`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType, TracebackType
    from typing import Any

    from aflow import errors as errors
    from aflow._core.version import __version__ as __version__
    from aflow.aws.s3.client import S3 as S3
    from aflow.aws.s3.client import AsyncS3 as AsyncS3
    from aflow.aws.s3.objects import S3GetObject as S3GetObject
    from aflow.aws.s3.objects import S3Object as S3Object
    from aflow.aws.s3.objects import S3PutObject as S3PutObject
    from aflow.cards.get import get_cards as get_cards
    from aflow.client import DataArtifact as DataArtifact
    from aflow.client import Flow as Flow
    from aflow.client import Metaflow as Metaflow
    from aflow.client import Run as Run
    from aflow.client import Step as Step
    from aflow.client import Task as Task
    from aflow.client import default_metadata as default_metadata
    from aflow.client import default_namespace as default_namespace
    from aflow.client import get_metadata as get_metadata
    from aflow.client import get_namespace as get_namespace
    from aflow.client import inspect_spin as inspect_spin
    from aflow.client import metadata as metadata
    from aflow.client import namespace as namespace
    from aflow.compat.multicore import parallel_imap_unordered as parallel_imap_unordered
    from aflow.compat.multicore import parallel_map as parallel_map
    from aflow.compat.profiling import profile as profile
    from aflow.coordinator import Coordinator as Coordinator
    from aflow.errors import OutOfMemory as OutOfMemory
    from aflow.flow.configs import Config as Config
    from aflow.flow.configs import ConfigValue as ConfigValue
    from aflow.flow.configs import conda_environment_yml_parser as conda_environment_yml_parser
    from aflow.flow.configs import config_expr as config_expr
    from aflow.flow.configs import pyproject_toml_parser as pyproject_toml_parser
    from aflow.flow.configs import requirements_txt_parser as requirements_txt_parser
    from aflow.flow.configs import yaml_parser as yaml_parser
    from aflow.flow.current import current as current
    from aflow.flow.custom import USER_SKIP_STEP as USER_SKIP_STEP
    from aflow.flow.custom import FlowMutator as FlowMutator
    from aflow.flow.custom import StepMutator as StepMutator
    from aflow.flow.custom import UserStepDecorator as UserStepDecorator
    from aflow.flow.custom import user_step_decorator as user_step_decorator
    from aflow.flow.decorators.cache import cache as cache
    from aflow.flow.decorators.card import card as card
    from aflow.flow.decorators.catch import catch as catch
    from aflow.flow.decorators.compute import batch as batch
    from aflow.flow.decorators.compute import kubernetes as kubernetes
    from aflow.flow.decorators.compute import slurm as slurm
    from aflow.flow.decorators.concurrency import concurrency as concurrency
    from aflow.flow.decorators.environment import environment as environment
    from aflow.flow.decorators.exit_hook import exit_hook as exit_hook
    from aflow.flow.decorators.packages import conda as conda
    from aflow.flow.decorators.packages import conda_base as conda_base
    from aflow.flow.decorators.packages import pypi as pypi
    from aflow.flow.decorators.packages import pypi_base as pypi_base
    from aflow.flow.decorators.parallel import parallel as parallel
    from aflow.flow.decorators.parallel import pytorch_parallel as pytorch_parallel
    from aflow.flow.decorators.process import process as process
    from aflow.flow.decorators.project import project as project
    from aflow.flow.decorators.queue import queue as queue
    from aflow.flow.decorators.resources import resources as resources
    from aflow.flow.decorators.retry import retry as retry
    from aflow.flow.decorators.schedule import schedule as schedule
    from aflow.flow.decorators.secrets import secrets as secrets
    from aflow.flow.decorators.timeout import timeout as timeout
    from aflow.flow.decorators.trigger import namespaced_event_name as namespaced_event_name
    from aflow.flow.decorators.trigger import trigger as trigger
    from aflow.flow.decorators.trigger import trigger_on_finish as trigger_on_finish
    from aflow.flow.mutators import MutableFlow as MutableFlow
    from aflow.flow.mutators import MutableStep as MutableStep
    from aflow.flow.parameters import IncludeFile as IncludeFile
    from aflow.flow.parameters import JSONType as JSONType
    from aflow.flow.parameters import Parameter as Parameter
    from aflow.flow.spec import FlowSpec as FlowSpec
    from aflow.flow.spec import step as step
    from aflow.flow.trigger_events import MetaflowEvent as MetaflowEvent
    from aflow.flow.trigger_events import Trigger as Trigger
    from aflow.runner.deployer import Deployer as Deployer
    from aflow.runner.direct import arun as arun
    from aflow.runner.direct import run as run
    from aflow.runner.notebook import NBDeployer as NBDeployer
    from aflow.runner.notebook import NBRunner as NBRunner
    from aflow.runner.runner import ExecutingRun as ExecutingRun
    from aflow.runner.runner import ExecutingTask as ExecutingTask
    from aflow.runner.runner import Runner as Runner
else:
    ModuleType = type(sys)  # avoids importing types

_HOMES = {
    "aflow.client": (
        "DataArtifact Flow Metaflow Run Step Task default_metadata default_namespace "
        "get_metadata get_namespace inspect_spin namespace"
    ),
    "aflow.coordinator": "Coordinator",
    "aflow.aws.s3.objects": "S3GetObject S3Object S3PutObject",
    "aflow.aws.s3.client": "AsyncS3 S3",
    "aflow.flow.current": "current",
    "aflow.flow.custom": (
        "FlowMutator StepMutator USER_SKIP_STEP UserStepDecorator user_step_decorator"
    ),
    "aflow.errors": "OutOfMemory",
    "aflow.flow.decorators.cache": "cache",
    "aflow.cards.get": "get_cards",
    "aflow.flow.decorators.card": "card",
    "aflow.flow.decorators.catch": "catch",
    "aflow.flow.decorators.compute": "batch kubernetes slurm",
    "aflow.flow.decorators.concurrency": "concurrency",
    "aflow.flow.decorators.environment": "environment",
    "aflow.flow.decorators.packages": "conda conda_base pypi pypi_base",
    "aflow.flow.decorators.parallel": "parallel pytorch_parallel",
    "aflow.flow.decorators.process": "process",
    "aflow.flow.decorators.resources": "resources",
    "aflow.flow.decorators.retry": "retry",
    "aflow.flow.decorators.secrets": "secrets",
    "aflow.flow.decorators.timeout": "timeout",
    "aflow.flow.trigger_events": "MetaflowEvent Trigger",
    "aflow.flow.decorators.exit_hook": "exit_hook",
    "aflow.flow.decorators.project": "project",
    "aflow.flow.decorators.schedule": "schedule",
    "aflow.flow.decorators.trigger": "namespaced_event_name trigger trigger_on_finish",
    "aflow.flow.mutators": "MutableFlow MutableStep",
    "aflow.flow.parameters": "IncludeFile JSONType Parameter",
    "aflow.flow.configs": (
        "Config ConfigValue config_expr "
        "conda_environment_yml_parser pyproject_toml_parser requirements_txt_parser yaml_parser"
    ),
    "aflow.flow.spec": "FlowSpec step",
    "aflow.runner.deployer": "Deployer",
    "aflow.runner.direct": "arun run",
    "aflow.runner.notebook": "NBDeployer NBRunner",
    "aflow.runner.runner": "ExecutingRun ExecutingTask Runner",
    "aflow.compat.multicore": "parallel_imap_unordered parallel_map",
    "aflow.compat.profiling": "profile",
    "aflow._core.version": "__version__",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
# The packages `metadata` and `queue` are functions as well (see below). `queue` is left out here,
# because `from aflow import *` would hide the standard library's module.
__all__ = tuple(
    # Constants first, then classes, then functions.
    sorted(
        [*_HOME_OF, "errors", "metadata"],
        key=lambda name: (not name.isupper(), not name[0].isupper(), name),
    )
)


def __getattr__(name: str) -> "Any":
    home = _HOME_OF.get(name)
    if home is None and name != "errors":
        raise AttributeError(f"module 'aflow' has no attribute {name!r}")
    from importlib import import_module

    if home is None:
        return import_module("aflow.errors")
    if name == "FlowSpec":
        _fork_zygote()
    value = getattr(import_module(home), name)
    if name == "FlowSpec":
        _connect_the_command_line()
    if name == "current":
        _connect_the_client()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


def _fork_zygote() -> None:
    """Fork the zygote if the program starts a run."""
    # The commands of zygote_start.STARTING, whose import would slow down the other commands.
    if not {"run", "resume", "spin"}.isdisjoint(getattr(sys, "argv", ())[1:]):
        from aflow.cli.prefork import fork_zygote_in_program

        fork_zygote_in_program()


def _connect_the_command_line() -> None:
    """Let `MyFlow()` in a script start the command line, which aflow.flow may not import."""
    import os

    from aflow.flow.spec import set_launcher

    # The values at the start: the program may change both before it calls its flow.
    argv, folder = [*sys.argv], None
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # the working directory was removed
        pass

    def launch(flow: "FlowSpec") -> None:
        from aflow._core.deferred import defer_all, loaded

        modules = loaded()  # before the command line imports its own modules
        from aflow._core import process

        process.seldom()
        defer_all()
        from aflow.cli import loading

        # Before the rest of the command line is imported: this starts a child process, which
        # imports its modules at the same time.
        if loading.begins(type(flow), argv, folder, modules):
            from aflow.cli.main import run_script

            run_script(flow)

    set_launcher(launch)
    main = sys.modules.get("__main__")
    if getattr(main, "__file__", None) and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _report_definition_error


def _report_definition_error(
    kind: type[BaseException], error: BaseException, traceback: "TracebackType | None"
) -> None:
    """Act as sys.excepthook of a script that defines a flow: print a definition error as one
    sentence."""
    from aflow.cli.errors import report_definition_error  # not at the top: it imports click

    report_definition_error(kind, error, traceback)


def _connect_the_client() -> None:
    """Let `current.run` and `current.task` return client objects, which aflow.flow may not
    import."""
    from aflow.flow.current import set_lookup

    def find(pathspec: str) -> "Run | Task":
        from aflow.client import Run, Task

        # A run may read itself, whatever namespace it was started in.
        kind = Run if pathspec.count("/") == 1 else Task
        return kind(pathspec, _namespace_check=False)

    set_lookup(find)


class _MetadataFacade(ModuleType):
    """The package `aflow.metadata`, callable as the client's function `metadata()`.

    The package and the function share a name: importing the package would hide the function.
    """

    def __call__(self, description: str) -> str:
        from aflow.client import metadata as switch

        answer: str = switch(description)
        return answer


class _QueueFacade(ModuleType):
    """The package `aflow.queue`, callable as the decorator `@queue`, for the same reason."""

    def __call__(self, *args: "Any", **options: "Any") -> "Any":
        from aflow.flow.decorators.queue import queue as decorate

        return decorate(*args, **options)


_metadata_package.__class__ = _MetadataFacade
_queue_package.__class__ = _QueueFacade
