"""Secrets are not displayed by accident."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from dataclasses import asdict

import cloudpickle
import msgpack
import pytest

from aflow._core.secret import Secret, revealed, sealed, without_passwords
from aflow._core.settings import RunOptions, Settings, environment_with

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
    options = RunOptions(queue=settings.queue, metadata=settings.metadata)
    for kept in (settings, options):
        written = (repr(kept), pickle.dumps(kept), cloudpickle.dumps(kept), asdict(kept))
        assert CANARY not in repr(written)
        assert CANARY not in json.dumps([kept.queue, kept.metadata])
    # What connects, and a program that is started, have it all the same.
    assert url in (revealed(settings.queue or ""), revealed(settings.metadata))
    assert url in environment_with({"A": settings.queue or "", "B": settings.metadata}).values()


@pytest.mark.parametrize(
    ("written", "shown", "meant"),
    [
        ("postgresql://u:{}@h:5/db", "postgresql://u@h:5/db", "postgresql://u:{}@h:5/db"),
        ("postgresql://u:{}/a@h/db", "postgresql://u@h/db", "postgresql://u:{}%2Fa@h/db"),
        ("postgresql://u:1/{}@h/db", "postgresql://u@h/db", "postgresql://u:1%2F{}@h/db"),
        ("postgresql://u:a@{}@h/db?x=b@c", "postgresql://u@h/db?x=b@c", "postgresql://u:a%40{}@h/db?x=b@c"),
        ("postgresql://u:%41%-{}@h/db", "postgresql://u@h/db", "postgresql://u:%41%25-{}@h/db"),
        ("redis://:a?b#c[ {}@h/0", "redis://h/0", "redis://:a%3Fb%23c%5B%20{}@h/0"),
        ("redis+sentinel://u:{}@a:1,b:2/n", "redis+sentinel://u@a:1,b:2/n", "redis+sentinel://u:{}@a:1,b:2/n"),
        ("postgresql://h/d?sslpassword={}&a=1", "postgresql://h/d?a=1", "postgresql://h/d?sslpassword={}&a=1"),
        ("https://u:{}@h/x", "https://u@h/x", "https://u:{}@h/x"),
    ],
)  # fmt: skip
def test_a_password_is_found_however_it_is_written(written: str, shown: str, meant: str) -> None:
    url = written.format(CANARY)
    assert (shown, meant.format(CANARY)) == (sealed(url), revealed(sealed(url)))
    assert f"--queue={shown}" == without_passwords(f"--queue={url}")


@pytest.mark.parametrize(
    "url",
    [
        "http://h:80/a@b", "--note=http://host:8080/user@domain", "postgresql://u@h/d?x=a@b",
        "redis+sentinel://a:1,[::1]:2/n", "postgresql:///db?host=/tmp", "sqlite:////a=b@c:d",
    ],
)  # fmt: skip
def test_a_url_without_a_password_stays_as_it_is(url: str) -> None:
    assert url == without_passwords(url) == sealed(url)
