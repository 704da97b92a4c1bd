"""S3 with faults: which calls are retried, which fail immediately; nothing is half-written.

A proxy in front of the stand-in makes the faults; objects are large enough to go in parts.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from aflow import S3, errors
from aflow._core.aws import faults as refusals
from aflow._core.backoff import Backoff
from aflow._core.clock import SystemClock
from aflow.storage import s3
from aflow.storage.blobs import BlobStore
from aflow.storage.retry import RetryingStore
from aflow.storage.s3 import PART, S3Store
from tests.support.faulty import Fault, FaultyProxy
from tests.support.s3 import S3Bucket
from tests.support.waiting import wait_until

LARGE = os.urandom(1 << 20) * 17 + b"the end"  # three parts
SMALL = b"small"

# What S3 and the network do, and clients have to bear.
BAD_WEATHER = {
    "thirty_percent_slow_down_and_errors": [
        Fault("answer", 0.3),
        Fault("answer", 0.1, status=500, code="InternalError"),
    ],
    "resets": [Fault("reset", 0.1)],
    "answers_that_are_lost": [Fault("lost", 0.1)],
    "bodies_that_are_cut_off": [Fault("cut", 0.1, "GET")],
    "resets_in_the_middle_of_a_body": [Fault("dropped", 0.1, "PUT")],
}


def kinds() -> list[Fault]:
    """One fault of each kind."""
    found = {each.kind: each for several in BAD_WEATHER.values() for each in several}
    return list(found.values())


def faults(name: str) -> list[Fault]:
    """Return new faults, with counters at zero."""
    from copy import deepcopy

    return deepcopy(BAD_WEATHER[name])


@pytest.fixture
def proxy(s3_bucket: S3Bucket) -> Iterator[FaultyProxy]:
    """A proxy in front of the bucket, without faults until they are added."""
    with FaultyProxy(s3_bucket.endpoint, seed=7) as proxy:
        yield proxy


@pytest.fixture
def place(s3_bucket: S3Bucket, proxy: FaultyProxy) -> str:
    """The URL of the bucket through the proxy."""
    return f"s3://{s3_bucket.name}/p?endpoint={proxy.url}"


@pytest.fixture
def store(s3_bucket: S3Bucket, place: str) -> RetryingStore:
    """The store, which does not wait between retries."""
    return RetryingStore(s3_bucket.store(place), pause=lambda seconds: None)


@pytest.mark.parametrize("weather", BAD_WEATHER)
def test_the_datastore_gets_through(store: RetryingStore, proxy: FaultyProxy, weather: str) -> None:
    store.put_if_absent("before", [SMALL])
    proxy.faults += faults(weather)

    assert store.put_if_absent("large", [LARGE[:100], LARGE[100:]])
    store.put("again", [LARGE])
    assert LARGE == bytes(store.get("large"))
    assert LARGE[5:-5] == bytes(store.get("again", 5, len(LARGE) - 10))
    for number in range(5):
        assert store.put_if_absent(f"small/{number}", [SMALL])
        assert not store.put_if_absent(f"small/{number}", [SMALL + b"er"])
        assert SMALL == bytes(store.get(f"small/{number}"))
    assert [f"small/{number}" for number in range(5)] == list(store.list("small/"))

    assert all(each.hits for each in proxy.faults), proxy.seen


def test_the_client_of_s3_gets_through_all_of_it(
    proxy: FaultyProxy, place: str, tmp_path: Path
) -> None:
    with S3(s3root=place, tmproot=str(tmp_path)) as s3:
        values = {str(number): f"value {number}" for number in range(10)}
        proxy.faults += [Fault(each.kind, 0.1, each.method) for each in kinds()]

        s3.put("large", LARGE)
        s3.put_many(list(values.items()))

        assert LARGE == s3.get("large").blob
        assert list(values.values()) == [each.text for each in s3.get_many(values)]
        assert all(each.hits for each in proxy.faults), proxy.seen


def test_a_server_that_is_slow_is_waited_for(store: RetryingStore, proxy: FaultyProxy) -> None:
    proxy.faults.append(Fault("late", times=2))

    store.put("x", [SMALL])

    assert [SMALL, 1] == [bytes(store.get("x")), len(proxy.requests("PUT"))]


def test_a_server_that_stays_away_is_one_sentence(
    store: RetryingStore, proxy: FaultyProxy, place: str
) -> None:
    proxy.faults.append(Fault("answer", 1.0))

    with pytest.raises(errors.StoreUnavailable, match=r"is busy \(SlowDown\).* tried 8 times"):
        store.put("x", [SMALL])
    assert 8 == len(proxy.seen)
    with S3(s3root=place) as s3, pytest.MonkeyPatch.context() as patch:
        patch.setattr("aflow.storage.retry.BACKOFF", Backoff(0.001, 0.1))
        with pytest.raises(errors.S3Failed, match=r"is busy \(SlowDown\).* tried 8 times"):
            s3.put("x", SMALL)


@pytest.mark.parametrize(
    ("status", "code", "reported", "kind"),
    [
        (403, "AccessDenied", "access is denied: check the policies", errors.S3AccessDenied),
        (403, "InvalidAccessKeyId", "correct AWS_ACCESS_KEY_ID", errors.S3AccessDenied),
        (403, "SignatureDoesNotMatch", "correct AWS_SECRET_ACCESS_KEY", errors.S3AccessDenied),
        (400, "ExpiredToken", "the credentials have expired", errors.S3AccessDenied),
        (403, "RequestTimeTooSkewed", "the clock of this machine is wrong", errors.S3AccessDenied),
        (404, "NoSuchBucket", "there is no such bucket", errors.S3InvalidUrl),
        (404, "NoSuchKey", "There is no object", errors.S3NotFound),
        (301, "PermanentRedirect", "the bucket is in another region", errors.S3Failed),
        (400, "AuthorizationHeaderMalformed", "the region is wrong", errors.S3Failed),
        (400, "InvalidDigest", "InvalidDigest", errors.S3Failed),
    ],
)
def test_what_is_refused_is_said_at_once(
    store: RetryingStore,
    proxy: FaultyProxy,
    place: str,
    status: int,
    code: str,
    reported: str,
    kind: type[Exception],
) -> None:
    proxy.faults.append(Fault("answer", status=status, code=code, target="[?/]x"))

    with pytest.raises(errors.StorageError, match=reported) as caught:
        store.get("x")
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)
    first = len(proxy.requests(target="/x"))
    with S3(s3root=place) as s3, pytest.raises(kind, match=reported):
        s3.get("x")

    # botocore looks up the region of the bucket and retries there; aflow does not retry.
    asked = 2 if status == 301 else 1
    assert [asked, asked] == [first, len(proxy.requests(target="/x")) - first]


def test_credentials_that_expire_in_the_middle_are_one_sentence(
    store: RetryingStore, proxy: FaultyProxy
) -> None:
    store.put("x", [SMALL])
    proxy.faults.append(Fault("answer", status=400, code="ExpiredToken", target="partNumber"))

    with pytest.raises(errors.StoreUnavailable, match="have expired: get new ones"):
        store.put("large", [LARGE])

    assert ["x"] == list(store.list(""))
    assert 1 == len(proxy.requests("DELETE", "uploadId")), "the parts are given up"


def test_a_server_that_ignores_conditions_is_refused(s3_bucket: S3Bucket) -> None:
    with FaultyProxy(s3_bucket.endpoint, deaf=True) as proxy:
        store = s3_bucket.store(f"s3://{s3_bucket.name}/p?endpoint={proxy.url}")

        with pytest.raises(errors.StoreUnavailable, match=r"ignores the conditions .*If-None"):
            store.put_if_absent("x", [SMALL])

        assert store.size("x") is None
        store.put("x", [SMALL])


def test_a_write_whose_answer_is_lost_is_known_to_be_ours(
    store: RetryingStore, proxy: FaultyProxy
) -> None:
    assert store.put_if_absent("before", [SMALL])
    proxy.faults.append(Fault("lost", 1.0, "PUT", "/x", times=1))

    assert store.put_if_absent("x", [SMALL])
    assert not store.put_if_absent("x", [SMALL])


def test_a_body_with_a_flipped_bit_is_not_believed(
    store: RetryingStore, proxy: FaultyProxy
) -> None:
    blobs = BlobStore(store)
    key = blobs.put(LARGE)
    proxy.faults.append(Fault("flipped", 1.0, "GET"))

    with pytest.raises(errors.StorageError, match=key):
        blobs.get(key)
    proxy.faults.clear()
    assert LARGE == bytes(blobs.get(key))


def test_an_object_that_changes_while_it_is_read_is_read_anew(
    store: RetryingStore, proxy: FaultyProxy, s3_bucket: S3Bucket
) -> None:
    store.put("x", [LARGE])
    other = LARGE[::-1]
    behind = s3_bucket.store(f"s3://{s3_bucket.name}/p?endpoint={s3_bucket.endpoint}")
    proxy.faults.append(Fault("late", 1.0, "GET", times=1, seconds=0))
    changing = threading.Event()

    class Changing(FaultyProxy):
        def _fault(self, method: str, target: str) -> Fault | None:
            if method == "GET" and len(self.requests("GET")) == 1 and not changing.is_set():
                changing.set()
                behind.put("x", [other])
            return None

    with Changing(s3_bucket.endpoint) as changes:
        reader = s3_bucket.store(f"s3://{s3_bucket.name}/p?endpoint={changes.url}")
        assert other == bytes(RetryingStore(reader, pause=lambda seconds: None).get("x"))
    assert changing.is_set()


KILLED = """
import os, sys
from aflow.storage.s3 import S3Store
S3Store(sys.argv[1]).put("large", [bytes(60 << 20)])
"""


def test_an_upload_that_is_killed_leaves_no_object_and_its_parts_are_swept(
    s3_bucket: S3Bucket, proxy: FaultyProxy, place: str
) -> None:
    proxy.faults.append(Fault("late", 1.0, "PUT", "partNumber=3", seconds=60))
    writer = subprocess.Popen([sys.executable, "-c", KILLED, place])
    wait_until(lambda: proxy.requests("PUT", "partNumber=3"), "the upload does not begin")
    writer.kill()
    writer.wait()
    store = s3_bucket.store(f"s3://{s3_bucket.name}/p?endpoint={s3_bucket.endpoint}")

    assert store.size("large") is None
    assert [] == list(store.list(""))
    now = SystemClock().now()
    assert 1 == store.sweep(0, now + 10)
    assert 0 == store.sweep(0, now + 10)


def on(store: S3Store, event: str, act: Callable[..., Any]) -> None:
    """Call `act` with the parameters of each request of this kind before it is sent."""

    async def listen(s3: Any) -> None:
        s3.meta.events.register(event, act)

    store._portal.call(listen)


def test_all_pages_of_abandoned_uploads_are_swept(strict_bucket: S3Bucket) -> None:
    store = strict_bucket.store()
    for number in range(5):
        store._ask("create_multipart_upload", Key=f"a/prefix/large-{number}")
    listing = "provide-client-params.s3.ListMultipartUploads"
    on(store, listing, lambda params, **_: {**params, "MaxUploads": 2})

    assert 5 == store.sweep(0, SystemClock().now() + 10)
    assert 0 == store.sweep(0, SystemClock().now() + 10)

    def refuse(**_: Any) -> None:
        raise refusals.ClientError({"Error": {"Code": "AccessDenied"}}, "ListMultipartUploads")

    on(store, listing, refuse)
    assert 0 == store.sweep(0, SystemClock().now() + 10)  # a run can start without the permission


def test_a_removal_that_is_interrupted_loses_no_object_that_was_touched(
    s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "COPIED_AT_ONCE", PART)  # the object is copied in parts
    inner, other = s3_bucket.store(), s3_bucket.store()
    store = RetryingStore(inner, pause=lambda seconds: None)
    store.put("large", [LARGE])
    looks = itertools.count()
    touched: list[bool] = []

    def touch(**_: Any) -> None:
        if not touched:
            touched.append(other.touch("large"))

    def look(params: Any, **_: Any) -> None:
        if "touched/" in params["Key"] and next(looks) == 1:  # the object has been removed
            raise ConnectionResetError("the response is lost")

    def make_old(parsed: Any, **_: Any) -> None:
        if parsed.get("ContentLength") == len(LARGE):
            parsed["LastModified"] -= timedelta(hours=1)

    on(inner, "provide-client-params.s3.CreateMultipartUpload", touch)
    on(inner, "provide-client-params.s3.HeadObject", look)
    on(inner, "after-call.s3.HeadObject", make_old)
    since = SystemClock().now() - 60

    assert store.remove_untouched("large", since) is None
    assert [True] == touched
    assert LARGE == bytes(store.get("large"))
    assert len(LARGE) == store.remove_untouched("large", SystemClock().now() + 10)
    assert store.size("large") is None
    assert s3_bucket.names() == []


def test_the_list_of_the_parts_of_an_upload_has_their_checksums(s3_bucket: S3Bucket) -> None:
    reported: list[bytes] = []

    async def listen(s3: Any) -> None:
        s3.meta.events.register(
            "before-call.s3.CompleteMultipartUpload",
            lambda params, **_: reported.append(params["body"]),
        )

    store = s3_bucket.store()
    store._portal.call(listen)
    store.put("large", [LARGE])

    assert LARGE == bytes(store.get("large"))
    (body,) = reported
    checksums = [zlib.crc32(LARGE[at : at + PART]).to_bytes(4) for at in range(0, len(LARGE), PART)]
    assert [base64.b64encode(each) for each in checksums] == re.findall(
        b"<ChecksumCRC32>(.*?)</ChecksumCRC32>", body
    )


def test_two_writers_of_one_digest_both_succeed(store: RetryingStore, proxy: FaultyProxy) -> None:
    proxy.faults += faults("thirty_percent_slow_down_and_errors")
    keys: list[str] = []

    def write() -> None:
        keys.append(str(BlobStore(store).put(LARGE)))

    writers = [threading.Thread(target=write) for _ in range(4)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()

    assert 4 == len(keys)
    assert 1 == len(set(keys))
    assert 1 == len(list(store.list("blobs")))
