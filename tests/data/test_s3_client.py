"""`aflow.S3` on a stand-in for S3: its results, its errors, and that it leaves no files behind."""

from __future__ import annotations

import io
import os
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from aflow import S3, AsyncS3, S3GetObject, S3PutObject, errors
from aflow.aws.s3.objects import RangeInfo
from aflow.storage.s3 import PART
from tests.support.s3 import S3Bucket

LARGE = os.urandom(1 << 20) * 20 + b"the end"  # more than two parts


@pytest.fixture
def s3(s3_bucket: S3Bucket, tmp_path: Path) -> Iterator[S3]:
    """A client for a prefix in an empty bucket."""
    with S3(s3root=s3_bucket.url, tmproot=str(tmp_path)) as client:
        yield client


def test_what_is_put_is_got_with_all_that_was_said_of_it(s3: S3, s3_bucket: S3Bucket) -> None:
    url = s3.put("a/b ü?#.txt", "tëxt", content_type="text/plain", metadata={"who": "me"})

    assert f"s3://{s3_bucket.name}/a/prefix/a/b ü?#.txt" == url
    found = s3.get("a/b ü?#.txt")
    assert "tëxt" == found.text
    assert "tëxt".encode() == found.blob
    assert (url, "a/b ü?#.txt", f"s3://{s3_bucket.name}/a/prefix") == (
        found.url,
        found.key,
        found.prefix,
    )
    assert (5, True, True, True) == (found.size, found.exists, found.downloaded, found.has_info)
    assert ("text/plain", {"who": "me"}) == (found.content_type, found.metadata)
    assert RangeInfo(5, 0, 5) == found.range_info
    assert found.last_modified is not None
    plain = s3.get("a/b ü?#.txt", return_info=False)
    assert (b"t", False, None) == ((plain.blob or b"")[:1], plain.has_info, plain.content_type)
    assert "(5 bytes, local)" in repr(plain)
    known = s3.info("a/b ü?#.txt")
    assert (5, False, "text/plain", None) == (
        known.size,
        known.downloaded,
        known.content_type,
        known.blob,
    )
    assert known.last_modified == found.last_modified


def test_large_objects_go_in_parts_and_come_whole(s3: S3, tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(LARGE)

    s3.put("bytes", LARGE)
    s3.put_files([("file", str(file)), S3PutObject("open", path=str(file))])
    with file.open("rb") as opened:
        s3.put("stream", opened)
        assert not opened.closed

    assert [True] * 4 == [
        each.blob == LARGE for each in s3.get_many(["bytes", "file", "open", "stream"])
    ]
    asked = S3GetObject("bytes", 5, 2 * PART + 7)
    assert LARGE[5 : 2 * PART + 12] == s3.get(asked).blob


@pytest.mark.parametrize(
    ("offset", "length", "expected", "info"),
    [
        (2, 3, b"234", RangeInfo(10, 2, 3)),
        (7, None, b"789", RangeInfo(10, 7, 3)),
        (None, 4, b"0123", RangeInfo(10, 0, 4)),
        (None, -4, b"6789", RangeInfo(10, 6, 4)),
        (8, 100, b"89", RangeInfo(10, 8, 2)),
        (None, None, b"0123456789", RangeInfo(10, 0, 10)),
    ],
)
def test_a_range_of_an_object(
    s3: S3, offset: int | None, length: int | None, expected: bytes, info: RangeInfo
) -> None:
    s3.put("x", b"0123456789")

    found = s3.get_many([S3GetObject("x", offset, length)])[0]

    assert (expected, len(expected), info) == (found.blob, found.size, found.range_info)


def test_a_range_past_the_end_is_refused(s3: S3) -> None:
    s3.put("x", b"0123456789")

    with pytest.raises(errors.S3InvalidRange, match="ends before the range"):
        s3.get(S3GetObject("x", 10, 5))
    for offset, length in ((5, 0), (-3, None), (-3, 2)):
        with pytest.raises(errors.S3InvalidRange, match="x has no range with offset="):
            s3.get(S3GetObject("x", offset, length))


def test_many_come_in_the_order_of_their_keys(s3: S3) -> None:
    values = {f"many/{number}": f"value {number}" * number for number in range(50)}
    written = s3.put_many(list(values.items()))

    assert [(key, s3.info(key).url) for key in list(values)[:2]] == written[:2]
    assert list(values.values()) == [each.text for each in s3.get_many(values)]
    twice = s3.get_many(["many/3", "none", "many/3"], return_missing=True)
    assert ["many/3", "none", "many/3"] == [each.key for each in twice]
    assert [True, False, True] == [each.exists for each in twice]
    assert [9 * 0, 7] == [each.size for each in s3.info_many(["many/0", "many/1"])]


def test_what_is_missing_is_reported_or_given_as_missing(s3: S3, tmp_path: Path) -> None:
    for ask in (
        lambda: s3.get("none"),
        lambda: s3.info("none"),
        lambda: s3.get_many(["none"]),
        lambda: s3.info_many(["none"]),
    ):
        with pytest.raises(errors.S3NotFound, match=r"no object s3://.*/a/prefix/none"):
            ask()
    with pytest.raises(errors.S3NotFound, match=r"local file .* cannot be read: No such file"):
        s3.put_files([("x", str(tmp_path / "none"))])
    missing = s3.get("none", return_missing=True)
    assert (False, False, None, None) == (
        missing.exists,
        missing.downloaded,
        missing.size,
        missing.text,
    )
    assert not s3.info("none", return_missing=True).exists
    assert "(object does not exist)" in repr(missing)


def test_lists_are_of_one_level_or_of_all(s3: S3, s3_bucket: S3Bucket) -> None:
    s3.put_many([(key, key) for key in ("a/0", "a/b/1", "a/c/2", "a/d/e/3", "f/4", "ab/5", "g")])
    base = f"s3://{s3_bucket.name}/a/prefix"

    level = s3.list_paths(["a", "f"])
    assert [("0", True), ("b", False), ("c", False), ("d", False), ("4", True)] == [
        (each.key, each.exists) for each in level
    ]
    assert f"{base}/a/b/" == level[1].url
    assert ["0", "b/1", "c/2", "d/e/3"] == [each.key for each in s3.list_recursive(["a/"])]
    assert ["a", "ab", "f", "g"] == sorted(each.key for each in s3.list_paths())
    assert 7 == len(s3.list_recursive())
    assert [] == s3.list_paths(["nothing"])
    assert [] == s3.list_paths([]) == s3.list_recursive([]) == s3.get_recursive([])
    assert {"0": "a/0", "b/1": "a/b/1", "c/2": "a/c/2", "d/e/3": "a/d/e/3"} == {
        each.key: each.text for each in s3.get_recursive(["a"])
    }
    every = s3.get_all(return_info=True)
    assert 7 == len(every)
    assert all(each.text == each.key and each.has_info for each in every)


def test_lists_go_on_page_by_page(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aflow.aws.s3.transfers.PAGE", 3)
    s3.put_many([(key, b"") for key in ("0", "1/x", "2", "3/x", "3/y", "3/z", "3/zz", "4", "5")])

    assert ["0", "1", "2", "3", "4", "5"] == [each.key for each in s3.list_paths()]
    assert 9 == len(s3.list_recursive())


def test_what_is_there_stays_where_that_is_wanted(s3: S3) -> None:
    s3.put("x", "old")

    assert s3.info("x").url == s3.put("x", "new", overwrite=False)
    assert [("y", s3.info("x").url[:-1] + "y")] == s3.put_many(
        [("x", "new"), ("y", "new")], overwrite=False
    )
    assert "old" == s3.get("x").text
    s3.put("x", "new")
    assert "new" == s3.get("x").text


def test_of_many_writers_of_one_key_one_is_first(s3: S3) -> None:
    writers = [
        threading.Thread(target=s3.put, args=("x", str(number), False)) for number in range(8)
    ]
    for each in writers:
        each.start()
    first = {s3.get("x", return_missing=True).text for _ in range(5)}
    for each in writers:
        each.join()

    assert 1 == len((first | {s3.get("x").text}) - {None})


def test_what_can_be_put(s3: S3, tmp_path: Path) -> None:
    for value in ("text", b"text", bytearray(b"text"), memoryview(b"text"), io.BytesIO(b"text")):
        s3.put("x", value)
        assert "text" == s3.get("x").text
    s3.put(S3PutObject("y", value="given", metadata={"a": "b"}), content_type="text/html")
    assert ("given", {"a": "b"}, "text/html") == (
        s3.get("y").text,
        s3.get("y").metadata,
        s3.get("y").content_type,
    )
    s3.put("empty", b"")
    assert (b"", 0, True) == (s3.get("empty").blob, s3.get("empty").size, s3.get("empty").exists)
    with pytest.raises(errors.S3InvalidObject, match="for 'x' is int: give a text, bytes or a"):
        s3.put("x", 5)  # type: ignore[arg-type]
    text = (tmp_path / "text").open("w+")
    with text, pytest.raises(errors.S3InvalidObject, match="'rb'"):
        s3.put("x", text)  # type: ignore[arg-type]


def test_encryption_is_asked_for_and_reported(s3_bucket: S3Bucket) -> None:
    with S3(s3root=s3_bucket.url, encryption="AES256") as s3:
        s3.put("x", b"x")
        s3.put("large", LARGE)

        assert ["AES256"] * 2 == [each.encryption for each in s3.info_many(["x", "large"])]


def test_temporary_files_go_when_the_client_is_closed(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    client = S3(s3root=s3_bucket.url, tmproot=str(tmp_path))
    client.put("x/evil..name", b"x")
    assert [] == list(tmp_path.iterdir())
    path = Path(client.get("x/evil..name").path or "")
    assert tmp_path == path.parent.parent
    assert 0o600 == path.stat().st_mode & 0o777

    client.close()
    client.close()

    assert [] == list(tmp_path.iterdir())
    with pytest.raises(errors.S3Failed, match="has been closed"):
        client.get("x/evil..name")
    client.close()


def test_memory_does_not_grow_with_what_is_downloaded(s3: S3) -> None:
    s3.put_many([(str(number), LARGE) for number in range(4)])
    tracemalloc.start()
    try:
        s3.get_all()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 2 * len(LARGE)


def test_a_place_that_cannot_be_written_is_one_sentence(s3_bucket: S3Bucket) -> None:
    with S3(s3root=s3_bucket.url, tmproot="/proc/none") as s3:
        s3.put("x", b"x")
        with pytest.raises(errors.S3Failed, match="/proc/none cannot be written"):
            s3.get("x")


def test_whole_urls_need_no_prefix(
    s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AFLOW_S3_ENDPOINT_URL", s3_bucket.endpoint)
    url = f"s3://{s3_bucket.name}/x#1?y"
    with S3(tmproot=str(tmp_path)) as s3:
        assert url == s3.put(url, "text")
        assert ("text", url, None) == (s3.get(url).text, s3.get(url).key, s3.get(url).prefix)
        with pytest.raises(errors.S3InvalidUrl, match="without a prefix takes whole URLs"):
            s3.get("x")
        with pytest.raises(errors.S3InvalidUrl, match="get_all"):
            s3.get_all()
        with pytest.raises(errors.S3NotFound, match="There is no object s3://no-such-bucket-x/y"):
            s3.info("s3://no-such-bucket-x/y")
        with pytest.raises(errors.S3InvalidUrl, match="there is no such bucket"):
            s3.get("s3://no-such-bucket-x/y")
    with S3(s3root=s3_bucket.url) as s3, pytest.raises(errors.S3InvalidUrl, match="whole URL"):
        s3.get(url)
    with pytest.raises(errors.S3InvalidUrl, match="s3root= has to be a URL"):
        S3(s3root="bucket/x")


def test_a_role_is_assumed_and_keys_may_be_given(
    s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"aws_access_key_id": "own", "aws_secret_access_key": "own", "region_name": "eu-west-1"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_bucket.endpoint)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    role = "arn:aws:iam::123456789012:role/data"
    with S3(s3root=f"s3://{s3_bucket.name}", role=role, session_vars=keys) as s3:
        s3.put("x", "text")
    params = {**keys, "endpoint_url": s3_bucket.endpoint}
    with S3(s3root=f"s3://{s3_bucket.name}", client_params=params) as s3:
        assert "text" == s3.get("x").text
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with (
        S3(s3root=f"s3://{s3_bucket.name}") as s3,
        pytest.raises(errors.S3AccessDenied, match="there are no credentials"),
    ):
        s3.get("x")


async def test_the_same_methods_can_be_awaited(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    async with AsyncS3(s3root=s3_bucket.url, tmproot=str(tmp_path)) as s3:
        url = await s3.put("a/x", "text")
        await s3.put_many([("a/y", b"1"), ("a/z", b"2")])
        await s3.put_files([("file", __file__)])

        assert (url, "text") == ((await s3.get("a/x")).url, (await s3.get("a/x")).text)
        assert [b"1", b"2"] == [each.blob for each in await s3.get_many(["a/y", "a/z"])]
        assert 3 == len(await s3.get_recursive(["a"]))
        assert 4 == len(await s3.get_all())
        assert 4 == len(await s3.list_recursive())
        assert ["a", "file"] == [each.key for each in await s3.list_paths()]
        assert 4 == (await s3.info("a/x")).size
        assert [1, None] == [
            each.size for each in await s3.info_many(["a/y", "no"], return_missing=True)
        ]
        with pytest.raises(errors.S3NotFound):
            await s3.get("no")

    assert [] == list(tmp_path.iterdir())
