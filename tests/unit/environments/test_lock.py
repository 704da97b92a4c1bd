"""Locks of environments: their content, and their errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aflow.environments.lock import Lock, LockedPackage, lock_of, normalized
from aflow.errors import InvalidLock

ONE = LockedPackage(
    name="tiny",
    version="1.0",
    file="tiny-1.0-py3-none-any.whl",
    sha256="1" * 64,
    url="https://index.example/tiny-1.0-py3-none-any.whl",
)
OTHER = LockedPackage(
    name="other", version="2.0", file="other-2.0-py3-none-any.whl", sha256="2" * 64, source="here"
)
LOCK = lock_of("3.12", "x86_64-manylinux_2_28", [ONE, OTHER])


def test_a_lock_is_the_same_after_a_journey_as_bytes() -> None:
    assert Lock.decode(LOCK.encode()) == LOCK
    assert Lock.decode(LOCK.encode()).digest == LOCK.digest
    assert LOCK.versions == {"other": "2.0", "tiny": "1.0"}


def test_its_digest_depends_on_content_and_not_on_order_or_place() -> None:
    moved = LockedPackage(
        name="tiny", version="1.0", file=ONE.file, sha256=ONE.sha256, url="https://mirror/t.whl"
    )
    assert lock_of("3.12", "x86_64-manylinux_2_28", [OTHER, moved]).digest == LOCK.digest
    changed = LockedPackage(name="tiny", version="1.0", file=ONE.file, sha256="3" * 64)
    assert lock_of("3.12", "x86_64-manylinux_2_28", [changed, OTHER]).digest != LOCK.digest
    assert lock_of("3.13", "x86_64-manylinux_2_28", [ONE, OTHER]).digest != LOCK.digest
    assert lock_of("3.12", "aarch64-manylinux_2_28", [ONE, OTHER]).digest != LOCK.digest


PLAIN: dict[str, Any] = LOCK.as_dict()
BROKEN: list[dict[str, Any]] = [
    {"packages": [{"name": "x"}]},
    {"packages": [PLAIN["packages"][0] | {"file": "../../x.whl"}]},
    {"packages": [PLAIN["packages"][0] | {"sha256": "abc"}]},
    {"packages": [PLAIN["packages"][0] | {"kind": "egg"}]},
    {"version": 99},
]


@pytest.mark.parametrize(
    "data", [b"no json", b"[]", b"{}", *(json.dumps(PLAIN | each).encode() for each in BROKEN)]
)
def test_what_is_no_lock_is_refused_in_one_sentence(data: bytes) -> None:
    with pytest.raises(InvalidLock) as caught:
        Lock.decode(data)
    assert str(caught.value).count("\n") == 0


def test_names_are_compared_as_indexes_compare_them() -> None:
    assert normalized("Scikit_Learn") == normalized("scikit.learn") == "scikit-learn"
