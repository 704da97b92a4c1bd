"""The settings that are derived from the outputs of a CloudFormation stack."""

from __future__ import annotations

import pytest

from aflow.aws.stack.settings import StackOutput, settings_of
from aflow.errors import InvalidInput

DATASTORE = StackOutput(
    "Datastore", "s3://b/x", "URL for the datastore [METAFLOW_DATASTORE_SYSROOT_S3]"
)


def none(place: str) -> str:
    raise AssertionError(f"nothing is kept in {place}")


def test_an_output_is_the_setting_that_its_description_names() -> None:
    others = [
        StackOutput("VPCId", "vpc-1", "The network"),
        StackOutput("Empty", "", "[METAFLOW_SFN_IAM_ROLE]"),
    ]

    assert {
        "METAFLOW_DATASTORE_SYSROOT_S3": "s3://b/x",
        "METAFLOW_DEFAULT_DATASTORE": "s3",
    } == settings_of("s", [DATASTORE, *others], none)


def test_the_key_is_fetched_from_where_it_is_kept() -> None:
    key = StackOutput("ApiKeyId", "abc123", "Fetch the key [METAFLOW_SERVICE_AUTH_KEY]")
    url = StackOutput("Url", "https://host/api/", "[METAFLOW_SERVICE_URL]")

    found = settings_of("s", [DATASTORE, key, url], {"abc123": "the key"}.__getitem__)

    assert "the key" == found["METAFLOW_SERVICE_AUTH_KEY"]
    assert "service" == found["METAFLOW_DEFAULT_METADATA"]


def test_a_stack_without_a_datastore_is_no_configuration() -> None:
    with pytest.raises(InvalidInput, match="The stack s says nowhere where artifacts are"):
        settings_of("s", [], none)
