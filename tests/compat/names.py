"""Prints the names of Metaflow that user code may import, as JSON: module -> names."""

import importlib
import inspect
import json
import pkgutil
import re

import metaflow
from metaflow.exception import MetaflowException

# All that is public in these; of other modules the exceptions.
PUBLIC = ("", "cards", "client", "events", "exception", "multicore_utils", "plugins.parsers")
# All that these define themselves.
DEFINED = ("mflog.mflog", "tagging_util", "unbounded_foreach")
# Classes that user code instantiates or refers to, by the module that it imports them from.
USED = {
    "metadata_provider": ["MetaDatum"],
    "plugins": ["InternalTestUnboundedForeachInput"],
    "plugins.aws.batch.batch_decorator": ["BatchDecorator"],
    "plugins.project_decorator": ["ProjectDecorator"],
    "system": ["system_logger", "system_monitor"],
}
# Not looked into: what belongs to clouds and tools that aflow has not, and what users never see.
OTHERS = ("_vendor", "tutorials", "tutorials_cmd", "azure", "gcp", "airflow", "kubernetes", "argo")
INTERNAL = ("heartbeat", "test", "pypi", "uv", "secrets", "s3op", "cmd", "__main__", "filecache")

LEAKED = ("EXT_PKG", "package_sources")


def main():
    found = {name: public(name) for name in PUBLIC} | USED
    found |= {name: defined(name) for name in DEFINED}
    for module in pkgutil.walk_packages(metaflow.__path__, "metaflow."):
        parts = module.name.split(".")
        if not any(part.startswith((*OTHERS, *INTERNAL)) for part in parts):
            try:
                importlib.import_module(module.name)
            except ImportError:  # needs a package that is not installed
                continue
    for kind in descendants(MetaflowException):
        own = kind.__module__.partition(".")[2]
        if not any(part.startswith((*OTHERS, *INTERNAL)) for part in own.split(".")):
            found.setdefault(own, []).append(kind.__name__)
    print(json.dumps(found))


def public(own):
    module = importlib.import_module(("metaflow." + own).rstrip("."))
    names = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    ]
    if own == "":  # many of these are neither classes nor functions
        return [each for each in names if not each.endswith("_internal") and each not in LEAKED]
    return [each for each in names if is_of_metaflow(getattr(module, each))]


def defined(own):
    module = importlib.import_module(f"metaflow.{own}")
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "") == module.__name__
        and not isinstance(value, type(re))
    ]


def is_of_metaflow(value):
    return str(getattr(value, "__module__", "")).startswith("metaflow.")


def descendants(kind):
    for each in kind.__subclasses__():
        yield each
        yield from descendants(each)


main()
