"""`import metaflow` imports aflow: the only module that maps Metaflow's names to aflow's.

    import aflow.compat.metaflow
    aflow.compat.metaflow.install()
    from metaflow import FlowSpec, step          # aflow's

`aflow run theirs.py` and `python -m aflow theirs.py run` do the same if Metaflow is not installed,
or with `--compat`. Names that aflow does not have raise an error when they are used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module, util
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from aflow._core.settings import Settings, looked_up
from aflow._core.version import __version__
from aflow.errors import AflowError, InvalidInput

if TYPE_CHECKING:
    from importlib.abc import Loader
else:
    Loader = object  # importing importlib.abc takes longer than all the rest of this module

_ROOT = "metaflow"
METAFLOW_EXIT_ALLOW_RETRY = 203
NOT_CHOSEN = False  # value of a namespace and a metadata provider that were not chosen
# Libraries that Metaflow bundles: `from metaflow._vendor import click`.
_VENDORED = ("click", "importlib_metadata", "packaging", "typing_extensions", "yaml")

_EXCEPTIONS = {
    "CommandException": "aflow.errors:InvalidInput",
    "ExternalCommandFailed": "aflow.errors:CommandFailed",
    "InvalidDecoratorAttribute": "aflow.errors:InvalidDecorator",
    "MetaflowDataMissing": "aflow.errors:ObjectNotFound",
    "MetaflowException": "aflow.errors:AflowError",
    "MetaflowExceptionWrapper": "aflow.flow.decorators.catch:ExceptionWrapper",
    "MetaflowInternalError": "aflow.compat.metaflow:MetaflowInternalError",
    "MetaflowInvalidPathspec": "aflow.errors:InvalidName",
    "MetaflowNamespaceMismatch": "aflow.errors:NamespaceMismatch",
    "MetaflowNotFound": "aflow.errors:NotFound",
    "MetaflowTaggingError": "aflow.errors:InvalidName",
    "MetaflowUnknownUser": "aflow.errors:InvalidSetting",
    "MissingInMergeArtifactsException": "aflow.errors:MissingInMergeArtifacts",
    "ParameterFieldFailed": "aflow.errors:InvalidParameter",
    "ParameterFieldTypeMismatch": "aflow.errors:InvalidParameter",
    "UnhandledInMergeArtifactsException": "aflow.errors:UnhandledInMergeArtifacts",
    "METAFLOW_EXIT_ALLOW_RETRY": "aflow.compat.metaflow:METAFLOW_EXIT_ALLOW_RETRY",
    "METAFLOW_EXIT_DISALLOW_RETRY": "aflow.task.spec:NO_RETRY_EXIT_CODE",
}


def _same(names: str, home: str) -> dict[str, str]:
    """Return a mapping of several names of Metaflow to a single object of aflow."""
    return dict.fromkeys(names.split(), home)


def _in(module: str, names: str) -> dict[str, str]:
    """Return a mapping of names of Metaflow that a module of aflow has under the same names."""
    return {name: f"{module}:{name}" for name in names.split()}


_DECORATORS = {"step": "aflow:step"} | _same(
    "BadFlowDecoratorException BadStepDecoratorException DuplicateFlowDecoratorException "
    "DuplicateStepDecoratorException UnknownFlowDecoratorException UnknownStepDecoratorException",
    "aflow.errors:InvalidDecorator",
)
_CARD_ERRORS = {
    "CardNotPresentException": "aflow.errors:CardNotFound",
    "TaskNotFoundException": "aflow.errors:NotFound",
    "UnrenderableCardException": "aflow.errors:AflowError",
    "UnresolvableDatastoreException": "aflow.errors:StorageError",
} | _same(
    "CardClassFoundException ComponentOverwriteNotSupportedException IncorrectArgumentException "
    "IncorrectCardArgsException IncorrectPathspecException TypeRequiredException",
    "aflow.errors:InvalidInput",
)
_CUSTOM = _in(
    "aflow.flow.custom", "UserStepDecorator StepMutator user_step_decorator USER_SKIP_STEP"
)
_PARSERS = _in(
    "aflow.flow.configs",
    "conda_environment_yml_parser pyproject_toml_parser requirements_txt_parser yaml_parser",
)
_CARD_BASES = {
    "MetaflowCard": "aflow.cards.card:Card",
    "MetaflowCardComponent": "aflow.cards.components:Component",
}
_CARDS = {
    **_in(
        "aflow.cards.components",
        "Artifact Error EventsTimeline Image JSONViewer Markdown ProgressBar PythonCode Table "
        "ValueBox VegaChart YAMLViewer",
    ),
    **_in("aflow.cards.card", "BlankCard DefaultCard ErrorCard"),
    **_CARD_BASES,
    "DefaultCardJSON": "aflow.cards.card:JSONCard",
    "PageComponent": "aflow.cards.components:Page",
    "TaskSpecCard": "aflow.cards.card:TaskspecCard",
    "get_cards": "aflow.cards.get:get_cards",
}
_TEST_CARDS = _CARD_BASES | _in(
    "aflow.cards.probes",
    "TestEditableCard TestEditableCard2 TestErrorCard TestImageCard TestJSONComponent "
    "TestMockCard TestNonEditableCard TestPathSpecCard TestRefreshCard TestRefreshComponentCard "
    "TestStringComponent TestTimeoutCard _component_values_to_hash",
)
_PARAMETERS = {
    **_in("aflow", "JSONType Parameter"),
    **_in("aflow.flow.parameters", "JSONTypeClass ParameterContext"),
    **_same("ParameterFieldFailed ParameterFieldTypeMismatch", "aflow.errors:InvalidParameter"),
    "DeployTimeField": "aflow.flow.parameters:Parameter",
}
_CLIENT = {
    **_in(
        "aflow",
        "DataArtifact Flow Metaflow Run Step Task default_metadata default_namespace get_metadata "
        "get_namespace inspect_spin metadata namespace",
    ),
    "MetaflowCode": "aflow.client.code:RunCode",
    "MetaflowData": "aflow.client:TaskData",
    "MetaflowObject": "aflow.client.base:ClientObject",
}
_S3 = {
    **_in("aflow", "S3 S3GetObject S3Object S3PutObject"),
    "RangeInfo": "aflow.aws.s3.objects:RangeInfo",
    "MetaflowS3AccessDenied": "aflow.errors:S3AccessDenied",
    "MetaflowS3Exception": "aflow.errors:S3Failed",
    "MetaflowS3InsufficientDiskSpace": "aflow.errors:S3DiskFull",
    "MetaflowS3InvalidObject": "aflow.errors:S3InvalidObject",
    "MetaflowS3InvalidRange": "aflow.errors:S3InvalidRange",
    "MetaflowS3NotFound": "aflow.errors:S3NotFound",
    "MetaflowS3URLException": "aflow.errors:S3InvalidUrl",
}
_AWS = "aflow.errors:AwsError"
_PARALLEL = _in("aflow.compat.multicore", "parallel_imap_unordered parallel_map")
# Errors of a function in another process are raised unchanged: they may be of any class.
_MULTICORE = _PARALLEL | {"MulticoreException": "builtins:Exception"}
_UTIL = {
    **_in(
        "aflow.compat.metaflow", "get_username is_stringish resolve_identity to_bytes to_unicode"
    ),
    "TempDir": "tempfile:TemporaryDirectory",
    "cached_property": "functools:cached_property",
    "url_quote": "urllib.parse:quote",
    "url_unquote": "urllib.parse:unquote",
    "which": "shutil:which",
}


def _of_helpers(names: str) -> dict[str, str]:
    return _in("aflow.metadata.metaflow.helpers", names)


_FLOW_DECORATORS = "aflow.flow.decorators"
_UBF = _of_helpers("CONTROL_TASK_TAG UBF_CONTROL UBF_TASK UnboundedForeachInput")
_TEST_UBF = _of_helpers("InternalTestUnboundedForeachInput")
_METADATA = _of_helpers("DataArtifact MetaDatum")
_MFLOG = _of_helpers(
    "ISOFORMAT MFLogline MISSING_TIMESTAMP MISSING_TIMESTAMP_STR VERSION decorate is_structured "
    "merge_logs parse refine set_should_persist unset_should_persist utc_to_local"
)
_SYSTEM = _of_helpers("system_logger system_monitor")

# By module: its names, and where aflow has them. The root also has all public names of aflow.
MODULES: dict[str, dict[str, str]] = {
    "": {
        **_PARALLEL,
        **_in("aflow.runner.deployer", "DeployedFlow"),
        **_in("aflow.flow.parameters", "JSONTypeClass"),
        "metaflow_version": "aflow:__version__",
        "unbounded_test_foreach_internal": "aflow.metadata.metaflow.helpers:unbounded_test_foreach",
        "profile": "aflow.compat.profiling:profile",
    },
    "_vendor": {},
    "cards": _CARDS,
    "cli": {"start": "aflow.runner.click_api:start"},
    "cli_components.run_cmds": {"run": "aflow.runner.click_api:run"},
    "client": _CLIENT,
    "client.core": _CLIENT
    | _same("current_metadata current_namespace", "aflow.compat.metaflow:NOT_CHOSEN")
    | {name: home for name, home in _EXCEPTIONS.items() if "Not" in name},
    "datastore.exceptions": {
        "DataException": "aflow.errors:StorageError",
        "UnpicklableArtifactException": "aflow.errors:ArtifactNotPicklable",
    },
    "datatools": _S3,
    "decorators": _DECORATORS,
    "events": _in("aflow", "MetaflowEvent Trigger"),
    "exception": _EXCEPTIONS,
    "flowspec": {
        "FlowSpec": "aflow:FlowSpec",
        "InvalidNextException": "aflow.errors:InvalidTransition",
        "MetaflowException": "aflow.errors:AflowError",
        "MissingInMergeArtifactsException": "aflow.errors:MissingInMergeArtifacts",
        "UnhandledInMergeArtifactsException": "aflow.errors:UnhandledInMergeArtifacts",
    },
    "graph": {
        "DAGNode": "aflow.flow.metaflow_names:GraphNode",
        "FlowGraph": "aflow.flow.metaflow_names:FlowGraph",
    },
    "includefile": _in("aflow.flow.parameters", "IncludeFile IncludedFile"),
    "lint": {"LintWarn": "aflow.errors:InvalidFlow"},
    "metadata_provider": _METADATA,
    "metadata_provider.metadata": _METADATA,
    "metaflow_config": {},
    "metaflow_config_funcs": {"from_conf": "aflow.compat.metaflow:from_conf"},
    "metaflow_current": {**_in("aflow", "current"), **_in("aflow.flow.current", "Current")},
    "metaflow_environment": {"InvalidEnvironmentException": "aflow.errors:InvalidSetting"},
    "metaflow_profile": {"profile": "aflow.compat.profiling:profile"},
    "metaflow_version": {"get_version": "aflow.compat.metaflow:get_version"},
    "mflog": _of_helpers("LOG_SOURCES RUNTIME_LOG_SOURCE TASK_LOG_SOURCE"),
    "mflog.mflog": _MFLOG,
    "multicore_utils": _MULTICORE,
    "package": {"NonUniqueFileNameToFilePathMappingException": "aflow.errors:CodePackageError"},
    "parameters": _PARAMETERS,
    "plugins": _TEST_UBF,
    "plugins.aws.batch.batch_decorator": {
        "BatchDecorator": "aflow.flow.decorators.compute:BatchDecorator"
    },
    "plugins.aws.batch.batch": _same("BatchException BatchKilledException", _AWS),
    "plugins.aws.batch.batch_client": _same("BatchJobException", _AWS),
    "plugins.aws.step_functions.schedule_decorator": {
        "ScheduleDecorator": f"{_FLOW_DECORATORS}.schedule:ScheduleDecorator"
    },
    "plugins.aws.step_functions.step_functions": _same(
        "StepFunctionsException StepFunctionsSchedulingException", _AWS
    ),
    "plugins.aws.step_functions.step_functions_cli": _same(
        "IncorrectMetadataServiceVersion IncorrectProductionToken RunIdMismatch "
        "StepFunctionsStateMachineNameTooLong",
        "aflow.errors:InvalidInput",
    ),
    "plugins.cards.card_client": {
        "Card": "aflow.cards.get:FoundCard",
        **_in("aflow.cards.get", "CardContainer get_cards"),
    },
    "plugins.cards.card_modules.basic": _CARDS,
    "plugins.cards.card_modules.card": _CARDS,
    "plugins.cards.card_modules.components": _CARDS,
    "plugins.cards.card_modules.test_cards": _TEST_CARDS,
    "plugins.cards.exception": _CARD_ERRORS,
    "plugins.catch_decorator": {
        "CatchDecorator": "aflow.flow.decorators.catch:Catch",
        "FailureHandledByCatch": "aflow.flow.decorators.catch:FailureHandledByCatch",
    },
    "plugins.datatools": _S3,
    "plugins.datatools.local": {
        "MetaflowLocalNotFound": "aflow.errors:ObjectNotFound",
        "MetaflowLocalURLException": "aflow.errors:InvalidName",
    },
    "plugins.datatools.s3": _S3,
    "plugins.datatools.s3.s3": _S3,
    "plugins.environment_decorator": {
        "EnvironmentDecorator": "aflow.flow.decorators.environment:Environment"
    },
    "plugins.events_decorator": {
        "TriggerDecorator": f"{_FLOW_DECORATORS}.trigger:TriggeredBy",
        "TriggerOnFinishDecorator": f"{_FLOW_DECORATORS}.trigger:TriggeredOnFinish",
    },
    "plugins.frameworks.pytorch": {
        "PytorchParallelDecorator": "aflow.flow.decorators.parallel:PytorchParallel"
    },
    "plugins.metadata_providers.service": {"ServiceException": "aflow.errors:MetadataError"},
    "plugins.parallel_decorator": {"ParallelDecorator": "aflow.flow.decorators.parallel:Parallel"},
    "plugins.parsers": _PARSERS,
    "plugins.project_decorator": {"ProjectDecorator": f"{_FLOW_DECORATORS}.project:Project"},
    "plugins.resources_decorator": {
        "ResourcesDecorator": "aflow.flow.decorators.resources:Resources"
    },
    "plugins.retry_decorator": {"RetryDecorator": "aflow.flow.decorators.retry:Retry"},
    "plugins.secrets.secrets_decorator": {
        "SecretsDecorator": "aflow.flow.decorators.secrets:Secrets"
    },
    "plugins.test_unbounded_foreach_decorator": _UBF | _TEST_UBF,
    "plugins.timeout_decorator": {
        "TimeoutDecorator": "aflow.flow.decorators.timeout:Timeout",
        "TimeoutException": "aflow.errors:TaskTimedOut",
    },
    "pylint_wrapper": {"PyLintWarn": "aflow.errors:InvalidInput"},
    "runner.deployer": _in("aflow.runner.deployer", "DeployedFlow Deployer TriggeredRun"),
    "runner.click_api": _in("aflow.runner.click_api", "click_to_python_types extract_all_params"),
    "runner.metaflow_runner": _in(
        "aflow.runner.runner", "ExecutingProcess ExecutingRun ExecutingTask Runner"
    ),
    "runner.nbdeploy": {"NBDeployer": "aflow:NBDeployer"},
    "runner.nbrun": {"NBRunner": "aflow:NBRunner"},
    "runtime": {"TaskFailed": "aflow.errors:RunFailed"},
    "system": _SYSTEM,
    "system.system_logger": _of_helpers("SystemLogger"),
    "system.system_monitor": _of_helpers("SystemMonitor"),
    "tagging_util": {
        "MAX_TAG_SIZE": "aflow._core.ids:MAX_TAG_LENGTH",
        "MAX_USER_TAG_SET_SIZE": "aflow._core.ids:MAX_TAGS",
        "MetaflowTaggingError": "aflow.errors:InvalidName",
        **_of_helpers("is_utf8_decodable is_utf8_encodable validate_tag validate_tags"),
    },
    "tuple_util": {"ForeachFrame": "aflow.flow.metaflow_names:ForeachFrame"},
    "unbounded_foreach": _UBF,
    "user_configs.config_parameters": _in("aflow", "Config ConfigValue config_expr"),
    "user_decorators.mutable_flow": {"MutableFlow": "aflow:MutableFlow"},
    "user_decorators.mutable_step": {"MutableStep": "aflow:MutableStep"},
    "user_decorators.user_flow_decorator": {"FlowMutator": "aflow:FlowMutator"},
    "user_decorators.user_step_decorator": _CUSTOM,
    "util": _UTIL,
    "version": {"metaflow_version": "aflow:__version__"},
}
for _module in [*MODULES]:  # packages of these modules have no names of their own
    while _module := _module.rpartition(".")[0]:
        MODULES.setdefault(_module, {})


def install() -> None:
    """Make `import metaflow`, and its submodules, import aflow from now on; may be called again.

    Raises:
        InvalidInput: If Metaflow itself has been imported already.
    """
    there = sys.modules.get(_ROOT)
    if there is not None and not isinstance(there, _Alias):
        raise InvalidInput(
            "Metaflow has been imported already in this process: call aflow.compat.install() "
            "before anything imports it."
        )
    if not is_installed():
        sys.meta_path.insert(0, _Finder())


def is_installed() -> bool:
    """Return whether aflow replaces Metaflow in this process."""
    return any(isinstance(each, _Finder) for each in sys.meta_path)


def install_if_missing() -> None:
    """Make `import metaflow` import aflow if Metaflow is not installed."""
    if _ROOT not in sys.modules and util.find_spec(_ROOT) is None:
        install()


def name_in_metaflow(kind: type) -> tuple[str, str] | None:
    """Return the module and the name that a class of aflow has in Metaflow, if aflow replaces
    Metaflow; None for all other classes.

    Args:
        kind: The class.
    """
    if not kind.__module__.startswith("aflow.") or not is_installed():
        return None
    home = f"{kind.__module__}:{kind.__qualname__}"
    for module in ("exception", *sorted(MODULES)):  # if several have it, the most general one
        for name, where in MODULES[module].items():
            if where == home:
                return f"{_ROOT}.{module}", name
    return None


class MetaflowInternalError(AflowError):
    """Only for flows to raise; aflow does not raise it."""


def get_username() -> str:
    """Return the name of the user of this program."""
    return Settings.load().user


def resolve_identity() -> str:
    """Return the default namespace of this program's runs: `user:ann`, or the one in the
    settings."""
    return Settings.load().default_namespace


def from_conf(name: str, default: Any = None, validate_fn: Any = None) -> Any:
    """Return the setting AFLOW_<name> or METAFLOW_<name> of the environment or a file, converted to
    the type of the default: numbers and bools from text, lists and dicts from JSON.

    Args:
        name: The name of the setting.
        default: The value if the setting is absent.
        validate_fn: Called with the name and the value; None for no validation.
    """
    text = looked_up(name)
    value: Any = text
    if text is None:
        value = default
    elif isinstance(default, bool):
        value = text.lower() not in ("0", "false", "")
    elif isinstance(default, int | float):
        value = type(default)(text)
    elif isinstance(default, list | dict):
        import json

        value = json.loads(text)
    if validate_fn is not None and value is not None:
        validate_fn(f"METAFLOW_{name}", value)
    return value


def to_unicode(value: object) -> str:
    """Return the value as a string; bytes are decoded as UTF-8.

    Args:
        value: The value.
    """
    return value.decode() if isinstance(value, bytes) else str(value)


def to_bytes(value: object) -> bytes:
    """Return the value as bytes; all else is converted to a string and encoded as UTF-8.

    Args:
        value: The value.
    """
    return value if isinstance(value, bytes) else str(value).encode()


def is_stringish(value: object) -> bool:
    """Return whether the value is a string or bytes.

    Args:
        value: The value.
    """
    return isinstance(value, str | bytes)


def get_version(public: bool = False) -> str:
    """Return the version of aflow.

    Args:
        public: Accepted for compatibility; has no effect.
    """
    return __version__


class _Alias(ModuleType):
    """A module of Metaflow whose attributes are aflow's."""

    def __getattr__(self, name: str) -> Any:
        own = self.__name__.removeprefix(_ROOT).removeprefix(".")
        if own.startswith("_vendor."):
            return getattr(import_module(own.removeprefix("_vendor.")), name)
        home = MODULES[own].get(name)
        if own == "_vendor" and name in _VENDORED:
            return import_module(f"{self.__name__}.{name}")
        if home is not None:
            value = _value(home)
        elif own == "metaflow_config" and name.isupper():
            value = _setting(name)
        elif f"{own}.{name}".removeprefix(".") in MODULES:
            return import_module(f"{self.__name__}.{name}")
        else:
            value = self._from_the_facade(own, name)
        setattr(self, name, value)
        return value

    def _from_the_facade(self, own: str, name: str) -> Any:
        facade = sys.modules["aflow"]
        if own == "" and name in facade.__all__:
            return getattr(facade, name)
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(_absent(f"{self.__name__}.{name}"))

    def __dir__(self) -> list[str]:
        own = self.__name__.removeprefix(_ROOT).removeprefix(".")
        if own.startswith("_vendor."):
            return dir(import_module(own.removeprefix("_vendor.")))
        return sorted({*MODULES[own], *(sys.modules["aflow"].__all__ if own == "" else ())})


class _Finder(Loader):
    """Finds and loads `metaflow` and its submodules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of Metaflow; None for all others."""
        if fullname != _ROOT and not fullname.startswith(f"{_ROOT}."):
            return None
        own = fullname.removeprefix(_ROOT).removeprefix(".")
        library = own.removeprefix("_vendor.")
        vendored = library != own and library.partition(".")[0] in _VENDORED
        if own in MODULES or (vendored and util.find_spec(library) is not None):
            return ModuleSpec(fullname, self, is_package=True)
        raise ModuleNotFoundError(_absent(fullname), name=fullname)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module, whose attributes are imported on access."""
        made = _Alias(spec.name)
        made.__dict__["__all__"] = dir(made)
        return made

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: there is no code to execute."""


def _absent(name: str) -> str:
    return f"aflow has nothing that stands for {name} (docs/metaflow.md says what there is)."


def _value(home: str) -> Any:
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)


def _setting(name: str) -> Any:
    """Return a value of metaflow_config: from aflow's settings, or the setting with this name; None
    if there is none."""
    settings = Settings.load()
    known = {
        "DATASTORE_SYSROOT_LOCAL": str(settings.root.parent),
        "DEFAULT_DATASTORE": settings.datastore,
        "DEFAULT_METADATA": settings.metadata,
        "DEFAULT_ENVIRONMENT": settings.environment,
    }
    return known[name] if name in known else looked_up(name)
