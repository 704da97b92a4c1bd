"""Which keys of settings there are, and what is to be said of those that do nothing. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from aflow.aws import settings as aws
from aflow.config import KEYS as OF_SETTINGS
from aflow.flow.names import did_you_mean

PREFIXES = ("AFLOW_", "METAFLOW_")
# Those that are looked up one by one, where they are needed.
OF_PARTS = frozenset(
    {
        "CARD_NO_WARNING",
        "DATASTORE_SYSROOT_LOCAL",
        "HISTORY",
        "SERVER",
        "SERVICE_AUTH_KEY_SECRET",
        "SERVICE_HEADERS",
        "SFN_COMPRESS_STATE_MACHINE",
        "SKIP_INSTALL_DEPENDENCIES",
        "TOKEN_HOME",
    }
)
# Those that are read before any file is, or that belong to one run.
OF_THE_ENVIRONMENT = frozenset(
    {"BOOT_PATIENCE", "FLOW_CONFIG", "FLOW_CONFIG_VALUE", "HOME", "PROFILE", "SAFE_DIRECTORIES"}
)
# Keys of Metaflow that aflow reads nothing from, and why that is no loss.
WITHOUT_EFFECT = {
    "SFN_DYNAMO_DB_TABLE": "state machines of aflow need no table",
    "CARD_S3ROOT": "cards are kept beside the artifacts",
    "SERVICE_RETRY_COUNT": "a service that is away is waited for, for two minutes",
    "S3_RETRY_COUNT": "what fails in S3 is tried again, eight times in all",
    "S3_TRANSIENT_RETRY_COUNT": "what fails in S3 is tried again, eight times in all",
    "MAXIMUM_FOREACH_VALUE_CHARS": "values of a foreach are always shown in short",
    "PROFILE_FROM_START": "start-up is fast; AFLOW_DEBUG=1 shows tracebacks",
    "DATASTORE_SYSROOT_AZURE": "there is no datastore in Azure",
    "DATASTORE_SYSROOT_GS": "there is no datastore in Google Cloud",
    "KUBERNETES_NAMESPACE": "nothing runs on Kubernetes",
    "DEFAULT_AWS_CLIENT_PROVIDER": "botocore finds the credentials",
}


def known() -> frozenset[str]:
    """All keys that have an effect, without prefix."""
    of_aws = {key for keys in aws.KEYS.values() for key in keys}
    return OF_SETTINGS | of_aws | OF_PARTS | OF_THE_ENVIRONMENT


def bare(key: str) -> str:
    """The key without its prefix."""
    return key.removeprefix("AFLOW_").removeprefix("METAFLOW_")


def remark(key: str) -> str:
    """What is to be said of a key in a file of settings; "" of one that counts."""
    name = bare(key)
    if not key.startswith(PREFIXES):
        return "no setting: names begin with AFLOW_ or METAFLOW_"
    if name in OF_THE_ENVIRONMENT or (name.startswith("RUN_") and name not in known()):
        return "without effect in a file: it is read from the environment alone"
    if name in known():
        return ""
    if name.startswith("DEBUG_"):
        return "without effect: AFLOW_DEBUG=1 shows tracebacks"
    if name in WITHOUT_EFFECT:
        return f"without effect: {WITHOUT_EFFECT[name]}"
    return f"no setting that aflow knows.{did_you_mean(name, sorted(known()))}".rstrip(".")


def remarks(keys: Iterable[str]) -> list[tuple[str, str]]:
    """The keys of which there is something to be said, with that."""
    return [(key, said) for key in sorted(keys) if (said := remark(key))]
