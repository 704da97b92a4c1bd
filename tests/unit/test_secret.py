"""A secret is not seen by accident."""

from __future__ import annotations

import copy
import json
import pickle
import traceback

import cloudpickle
import msgpack
import pytest

from aflow._core.secret import Secret
from aflow._core.settings import Settings

CANARY = "canary-0123456789abcdef0123456789abcdef"


def test_a_secret_shows_itself_to_the_one_who_asks_alone() -> None:
    secret = Secret(CANARY)
    assert CANARY == secret.reveal()
    texts = (str(secret), repr(secret), f"{secret}", f"{[secret]!r:>9}", "%s %r" % (secret, secret))  # noqa: UP031
    assert not any(CANARY in text for text in texts)
    assert secret == Secret(CANARY)
    assert secret not in (Secret("another"), CANARY)
    assert (True, False) == (bool(secret), bool(Secret("")))


@pytest.mark.parametrize(
    "write", [pickle.dumps, cloudpickle.dumps, json.dumps, msgpack.packb, copy.deepcopy]
)
def test_a_secret_is_neither_pickled_nor_written_down(write: object) -> None:
    with pytest.raises(TypeError) as caught:
        write({"key": [Secret(CANARY)]})  # type: ignore[operator]
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_settings_show_no_key() -> None:
    settings = Settings.load({"AFLOW_SIGNING_KEY": CANARY, "AFLOW_SERVICE_AUTH_KEY": f"a,{CANARY}"})
    assert CANARY not in repr(settings)
    assert (CANARY.encode(),) == settings.signing_key_bytes
    assert ["a", CANARY] == [each.reveal() for each in settings.service_auth_keys]


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("QUEUE", f"redis://:{CANARY}@host:6379/0"),
        ("QUEUE", f"postgresql://host/name?password={CANARY}"),
        ("DEFAULT_METADATA", f"postgresql://user:{CANARY}@host/name"),
    ],
)
def test_settings_show_no_password_of_a_url(key: str, url: str) -> None:
    settings = Settings.load({f"AFLOW_{key}": url})
    assert CANARY not in repr(settings)
    assert url in (settings.queue, settings.metadata)
