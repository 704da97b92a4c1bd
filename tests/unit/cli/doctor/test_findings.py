"""How the doctor interprets the responses of services, tested without requests."""

from __future__ import annotations

from typing import Any

import pytest

from aflow.cli.doctor.findings import (
    WITHOUT_EFFECT,
    Finding,
    State,
    fail,
    known,
    of_clock,
    of_machines,
    of_queue,
    of_service,
    of_space,
    of_table,
    ok,
    remark,
    trusts,
    warn,
    worst,
)

NOW = 1_700_000_000.0
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"  # the same
GIB = 1 << 30


@pytest.mark.parametrize(
    ("free", "state"), [(50 * GIB, "ok"), (GIB, "warn"), (100 << 20, "fail"), (0, "fail")]
)
def test_little_space_is_a_doubt_and_none_a_failure(free: int, state: str) -> None:
    assert state == of_space("disk", "/data", free).state


@pytest.mark.parametrize(
    ("off", "state", "said"),
    [
        (0.4, "ok", "agrees with that of AWS"),
        (-45, "warn", "45 s behind that of AWS"),
        (45, "warn", "45 s ahead of that of AWS"),
        (-900, "fail", "900 s behind that of AWS"),
        (900, "fail", "900 s ahead of that of AWS"),
    ],
)
def test_a_clock_that_is_off_is_reported_by_how_much(off: float, state: str, said: str) -> None:
    found = of_clock("clock", NOW + off, DATE, "AWS")

    assert state == found.state
    assert said in found.message


def test_a_date_that_is_none_is_a_doubt() -> None:
    assert State.WARN == of_clock("clock", NOW, "soon", "AWS").state


def queues(state: str, status: str) -> dict[str, Any]:
    return {"jobQueues": [{"state": state, "status": status, "statusReason": "Why."}]}


@pytest.mark.parametrize(
    ("answer", "state", "said"),
    [
        (queues("ENABLED", "VALID"), "ok", "ENABLED and VALID"),
        (queues("DISABLED", "VALID"), "fail", "DISABLED and VALID, so that jobs in it never start"),
        (queues("ENABLED", "INVALID"), "fail", "ENABLED and INVALID"),
        ({"jobQueues": []}, "fail", "There is no job queue q"),
    ],
)
def test_jobs_start_in_a_queue_that_is_enabled_and_valid_alone(
    answer: dict[str, Any], state: str, said: str
) -> None:
    found = of_queue("queue", "q", answer)

    assert state == found.state
    assert said in found.text


def machines(kind: str = "SPOT", **more: Any) -> dict[str, Any]:
    whole = {"state": "ENABLED", "status": "VALID",
             "computeResources": {"type": kind, "maxvCpus": 8}}  # fmt: skip
    return {"computeEnvironments": [whole | more]}


def test_a_queue_needs_machines_and_those_of_fargate_a_role() -> None:
    assert "SPOT with up to 8 vCPUs." == of_machines("c", "q", machines(), False).message
    assert State.FAIL == of_machines("c", "q", machines(state="DISABLED"), True).state
    assert State.FAIL == of_machines("c", "q", {}, True).state
    assert (
        "AFLOW_ECS_FARGATE_EXECUTION_ROLE"
        in of_machines("c", "q", machines("FARGATE_SPOT"), False).advice
    )
    assert State.OK == of_machines("c", "q", machines("FARGATE"), True).state


def policy(**statement: Any) -> dict[str, Any]:
    whole = {"Effect": "Allow", "Action": "sts:AssumeRole",
             "Principal": {"Service": "states.amazonaws.com"}}  # fmt: skip
    return {"Statement": [whole | statement]}


@pytest.mark.parametrize(
    ("document", "trusted"),
    [
        (policy(), True),
        ({"Statement": policy()["Statement"][0]}, True),
        (policy(Principal={"Service": ["x.amazonaws.com", "states.amazonaws.com"]}), True),
        (policy(Principal="*", Action=["sts:*"]), True),
        (policy(Principal={"Service": "ec2.amazonaws.com"}), False),
        (policy(Principal={"AWS": "arn:aws:iam::123456789012:root"}), False),
        (policy(Action="sts:TagSession"), False),
        (policy(Effect="Deny"), False),
        ({}, False),
        (None, False),
        ("", False),
    ],
)
def test_a_role_is_assumed_by_those_whom_it_trusts(document: Any, trusted: bool) -> None:
    assert trusted == trusts(document, "states.amazonaws.com")


def test_who_is_denied_is_not_trusted_whatever_else_is_said() -> None:
    both = {"Statement": [*policy()["Statement"], *policy(Effect="Deny")["Statement"]]}

    assert not trusts(both, "states.amazonaws.com")


@pytest.mark.parametrize(
    ("status", "version", "own", "state", "said"),
    [
        (200, "2.5.0", True, "ok", "aflow's metadata service, version 2.5.0"),
        (200, "2.5.1", False, "ok", "Metaflow's own metadata service, version 2.5.1"),
        (200, None, False, "fail", "is not a metadata service"),
        (403, None, False, "fail", "Set AFLOW_SERVICE_AUTH_KEY"),
        (502, None, False, "fail", "answers 502"),
    ],
)
def test_a_service_is_known_by_what_it_answers(
    status: int, version: str | None, own: bool, state: str, said: str
) -> None:
    found = of_service("metadata", "http://host", status, version, own)

    assert state == found.state
    assert said in found.text


def test_the_table_of_metaflow_has_its_key() -> None:
    def table(name: str) -> dict[str, Any]:
        return {"Table": {"KeySchema": [{"AttributeName": name, "KeyType": "HASH"}]}}

    assert State.OK == of_table("table", "t", table("pathspec")).state
    assert State.FAIL == of_table("table", "t", table("id")).state


def test_the_worst_counts() -> None:
    assert State.OK == worst([ok("a", "x")])
    assert State.WARN == worst([ok("a", "x"), warn("b", "x")])
    assert State.FAIL == worst([fail("c", "x"), ok("a", "x"), warn("b", "x")])
    assert "What. Do." == Finding("a", State.FAIL, "What.", "Do.").text


# ------------------------------------------------------------ keys


def test_a_key_that_does_nothing_is_reported_and_one_that_counts_is_not() -> None:
    assert "" == remark("METAFLOW_BATCH_JOB_QUEUE") == remark("AFLOW_DATATOOLS_SYSROOT_S3")
    assert "without effect: state machines of aflow need no table" == remark(
        "METAFLOW_SFN_DYNAMO_DB_TABLE"
    )
    assert "Did you mean 'DATASTORE_SYSROOT_S3'?" in remark("AFLOW_DATSTORE_SYSROOT_S3")
    assert "names begin with AFLOW_" in remark("USER")
    assert "read from the environment alone" in remark("METAFLOW_RUN_TAG")
    assert "" == remark("AFLOW_USER")
    assert "" not in (remark("METAFLOW_CARD_S3ROOT"), remark("AFLOW_X"))


def test_no_key_is_both_without_effect_and_known() -> None:
    assert set() == known() & WITHOUT_EFFECT.keys()
