"""`import metaflow` gives aflow: the one place that knows both names of things.

    import aflow.compat
    aflow.compat.install()
    from metaflow import FlowSpec, step          # aflow's

`aflow run theirs.py` and `python -m aflow theirs.py run` do the same where Metaflow is not
installed, or with `--compat`. Names that aflow has not are told when they are asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module, util
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_ROOT = "metaflow"

_EXCEPTIONS = {
    "CommandException": "aflow.errors:InvalidInput",
    "ExternalCommandFailed": "aflow.errors:CommandFailed",
    "InvalidDecoratorAttribute": "aflow.errors:InvalidDecorator",
    "MetaflowDataMissing": "aflow.errors:ObjectNotFound",
    "MetaflowException": "aflow.errors:AflowError",
    "MetaflowExceptionWrapper": "aflow.flow.caught:ExceptionWrapper",
    "MetaflowInternalError": "aflow.errors:AflowError",
    "MetaflowInvalidPathspec": "aflow.errors:InvalidName",
    "MetaflowNamespaceMismatch": "aflow.errors:NamespaceMismatch",
    "MetaflowNotFound": "aflow.errors:NotFound",
    "MetaflowTaggingError": "aflow.errors:InvalidName",
    "MetaflowUnknownUser": "aflow.errors:InvalidSetting",
    "MissingInMergeArtifactsException": "aflow.errors:MissingInMergeArtifacts",
    "ParameterFieldFailed": "aflow.errors:InvalidParameter",
    "ParameterFieldTypeMismatch": "aflow.errors:InvalidParameter",
    "UnhandledInMergeArtifactsException": "aflow.errors:UnhandledInMergeArtifacts",
    "METAFLOW_EXIT_DISALLOW_RETRY": "aflow.attempt:NO_RETRY_EXIT_CODE",
}
_CUSTOM = {
    name: f"aflow.flow.custom:{name}"
    for name in ("UserStepDecorator", "StepMutator", "user_step_decorator", "USER_SKIP_STEP")
}
_PARSERS = {
    name: f"aflow.flow.parsers:{name}"
    for name in (
        "conda_environment_yml_parser",
        "pyproject_toml_parser",
        "requirements_txt_parser",
        "yaml_parser",
    )
}
_CARDS = {
    name: f"aflow.cards.components:{name}"
    for name in (
        "Artifact",
        "Error",
        "Image",
        "JSONViewer",
        "Markdown",
        "ProgressBar",
        "PythonCode",
        "Table",
        "ValueBox",
        "VegaChart",
    )
} | {
    "EventsTimeline": "aflow.cards.viewers:EventsTimeline",
    "YAMLViewer": "aflow.cards.viewers:YAMLViewer",
    "MetaflowCard": "aflow.cards.card:Card",
    "MetaflowCardComponent": "aflow.cards.components:Component",
    "BlankCard": "aflow.cards.card:BlankCard",
    "DefaultCard": "aflow.cards.card:DefaultCard",
    "ErrorCard": "aflow.cards.card:ErrorCard",
    "get_cards": "aflow.cards.get:get_cards",
}
_PARAMETERS = {
    "DeployTimeField": "aflow.flow.parameters:Parameter",
    "JSONType": "aflow:JSONType",
    "JSONTypeClass": "aflow.flow.parameters:JSONTypeClass",
    "Parameter": "aflow:Parameter",
    "ParameterContext": "aflow.flow.parameters:ParameterContext",
}
_CLIENT = {
    name: f"aflow:{name}"
    for name in (
        "DataArtifact",
        "Flow",
        "Metaflow",
        "Run",
        "Step",
        "Task",
        "default_metadata",
        "default_namespace",
        "get_metadata",
        "get_namespace",
        "inspect_spin",
        "metadata",
        "namespace",
    )
} | {"MetaflowData": "aflow.client:TaskData"}
_S3 = {
    "S3": "aflow:S3",
    "S3GetObject": "aflow:S3GetObject",
    "S3Object": "aflow:S3Object",
    "S3PutObject": "aflow:S3PutObject",
    "RangeInfo": "aflow.data.objects:RangeInfo",
    "MetaflowS3AccessDenied": "aflow.errors:S3AccessDenied",
    "MetaflowS3Exception": "aflow.errors:S3Failed",
    "MetaflowS3InsufficientDiskSpace": "aflow.errors:S3DiskFull",
    "MetaflowS3InvalidObject": "aflow.errors:S3InvalidObject",
    "MetaflowS3InvalidRange": "aflow.errors:S3InvalidRange",
    "MetaflowS3NotFound": "aflow.errors:S3NotFound",
    "MetaflowS3URLException": "aflow.errors:S3InvalidUrl",
}
_CONFIGS = {name: f"aflow:{name}" for name in ("Config", "ConfigValue", "config_expr")}
_PARALLEL = {
    name: f"aflow.multicore:{name}" for name in ("parallel_imap_unordered", "parallel_map")
}

# Module -> its names, each with its home in aflow. Of the root, all names of aflow's own door, too.
MODULES: dict[str, dict[str, str]] = {
    "": {
        **_PARALLEL,
        "JSONTypeClass": "aflow.flow.parameters:JSONTypeClass",
        "metaflow_version": "aflow:__version__",
        "profile": "aflow.profiling:profile",
    },
    "cards": _CARDS,
    "client": _CLIENT,
    "client.core": _CLIENT,
    "datastore": {},
    "datatools": _S3,
    "decorators": {"step": "aflow:step"},
    "events": {"Trigger": "aflow.flow.events:Trigger"},
    "exception": _EXCEPTIONS,
    "flowspec": {"FlowSpec": "aflow:FlowSpec"},
    "graph": {"FlowGraph": "aflow.flow.graph:Graph"},
    "includefile": {"IncludeFile": "aflow:IncludeFile"},
    "metaflow_config": {},
    "metaflow_current": {"current": "aflow:current"},
    "metaflow_profile": {"profile": "aflow.profiling:profile"},
    "metaflow_version": {"get_version": "aflow.compat:get_version"},
    "multicore_utils": _PARALLEL,
    "parameters": _PARAMETERS,
    "plugins": {},
    "plugins.cards": {},
    "plugins.cards.card_client": {"get_cards": "aflow.cards.get:get_cards"},
    "plugins.cards.card_modules": {},
    "plugins.cards.card_modules.basic": _CARDS,
    "plugins.cards.card_modules.card": _CARDS,
    "plugins.cards.card_modules.components": _CARDS,
    "plugins.datatools": _S3,
    "plugins.datatools.s3": _S3,
    "plugins.datatools.s3.s3": _S3,
    "plugins.parsers": _PARSERS,
    "runner": {},
    "runner.deployer": {"Deployer": "aflow:Deployer"},
    "runner.metaflow_runner": {
        "ExecutingRun": "aflow.programmatic.executing:ExecutingRun",
        "Runner": "aflow:Runner",
    },
    "runner.nbrun": {"NBRunner": "aflow:NBRunner"},
    "tuple_util": {"ForeachFrame": "aflow.storage.manifest:ForeachFrame"},
    "user_configs": {},
    "user_configs.config_parameters": _CONFIGS,
    "user_decorators": {},
    "user_decorators.mutable_flow": {"MutableFlow": "aflow:MutableFlow"},
    "user_decorators.mutable_step": {"MutableStep": "aflow:MutableStep"},
    "user_decorators.user_flow_decorator": {"FlowMutator": "aflow:FlowMutator"},
    "user_decorators.user_step_decorator": _CUSTOM,
    "util": {"get_username": "aflow.compat:get_username"},
    "version": {"metaflow_version": "aflow:__version__"},
}


def install() -> None:
    """Let `import metaflow`, and its submodules, give aflow from now on; may be called again.

    Raises InvalidInput where Metaflow itself has been imported already.
    """
    there = sys.modules.get(_ROOT)
    if there is not None and not isinstance(there, _Alias):
        from aflow.errors import InvalidInput

        raise InvalidInput(
            "Metaflow has been imported already in this process: call aflow.compat.install() "
            "before anything imports it."
        )
    if not is_installed():
        sys.meta_path.insert(0, _Finder())


def is_installed() -> bool:
    """Whether aflow stands for Metaflow."""
    return any(isinstance(each, _Finder) for each in sys.meta_path)


def install_if_missing() -> None:
    """The same, where Metaflow is not installed."""
    if _ROOT not in sys.modules and util.find_spec(_ROOT) is None:
        install()


def get_username() -> str:
    """Who runs this."""
    from aflow.config import Settings

    return Settings.load().user


def get_version(public: bool = False) -> str:
    """The version of aflow."""
    from aflow.version import __version__

    return __version__


class _Alias(ModuleType):
    """A module of Metaflow whose names are aflow's."""

    def __getattr__(self, name: str) -> Any:
        own = self.__name__.removeprefix(_ROOT).removeprefix(".")
        home = MODULES[own].get(name)
        if home is not None:
            value = _value(home)
        elif own == "metaflow_config" and name.isupper():
            value = _setting(name)
        elif f"{own}.{name}".removeprefix(".") in MODULES:
            return import_module(f"{self.__name__}.{name}")
        else:
            value = self._from_the_door(own, name)
        setattr(self, name, value)
        return value

    def _from_the_door(self, own: str, name: str) -> Any:
        door = sys.modules["aflow"]
        if own == "" and name in door.__all__:
            return getattr(door, name)
        raise AttributeError(
            f"{self.__name__} has {name!r} in Metaflow, and aflow has nothing for it "
            "(docs/metaflow.md says what there is)."
            if not name.startswith("__")
            else name
        )

    def __dir__(self) -> list[str]:
        own = self.__name__.removeprefix(_ROOT).removeprefix(".")
        return sorted({*MODULES[own], *(sys.modules["aflow"].__all__ if own == "" else ())})


class _Finder(MetaPathFinder, Loader):
    """Finds `metaflow` and what is in it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module that we stand for, None for all others."""
        if fullname != _ROOT and not fullname.startswith(f"{_ROOT}."):
            return None
        own = fullname.removeprefix(_ROOT).removeprefix(".")
        return ModuleSpec(fullname, self, is_package=True) if own in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module, which gets its names when they are asked for."""
        made = _Alias(spec.name)
        made.__dict__["__all__"] = dir(made)
        return made

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: there is no code to run."""


def _value(home: str) -> Any:
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)


def _setting(name: str) -> Any:
    """A value of metaflow_config: as the settings have it, None where aflow has no such setting."""
    from aflow.config import Settings

    settings = Settings.load()
    known = {
        "DATASTORE_SYSROOT_LOCAL": str(settings.root.parent),
        "DEFAULT_DATASTORE": settings.datastore,
        "DEFAULT_METADATA": settings.metadata,
        "DEFAULT_ENVIRONMENT": settings.environment,
    }
    return known.get(name)
