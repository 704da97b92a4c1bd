from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.errors import ObjectNotFound, StorageError
from aflow.storage.base import check_name
from aflow.storage.logs import (
    TRUNCATED,
    LineSplitter,
    LogBuffer,
    LogRecord,
    as_text,
    chunk_name,
    read_chunks,
    read_log,
)
from aflow.storage.memory import MemoryStore

BYTES = st.binary() | st.text(alphabet="ab\n\r\0\x1b").map(str.encode)


# ------------------------------------------------------------------ lines


@pytest.mark.parametrize(
    ("printed", "line"),
    [
        (b"1/3\r2/3\r3/3\n", b"3/3"),
        (b"\r1/3\r2/3 \r\n", b"2/3 \r"),
        (b"of Windows\r\n", b"of Windows\r"),
        (b"\r\r\n", b"\r\r"),
        (b"a\rb\r\rc\n", b"c"),
    ],
)
def test_of_a_line_that_is_written_again_the_last_state_is_kept(
    printed: bytes, line: bytes
) -> None:
    assert [(line, True)] == LineSplitter().feed(printed)
    splitter = LineSplitter()
    found = [each for at in range(len(printed)) for each in splitter.feed(printed[at : at + 1])]
    assert [(line, True)] == found
    assert None is splitter.state


def test_the_state_of_a_line_that_is_written_again_can_be_looked_at() -> None:
    splitter = LineSplitter()
    assert [] == splitter.feed(b"plain")
    assert [None] == [splitter.state]
    assert [] == splitter.feed(b"\r1/3\r2/3\r")
    assert b"2/3" == splitter.state
    assert [(b"2/3\r", True)] == splitter.finish()


@given(st.lists(BYTES), st.integers(1, 20))
def test_no_byte_is_lost_however_the_pipe_cuts(chunks: list[bytes], max_line: int) -> None:
    chunks = [each.replace(b"\r", b"") for each in chunks]  # after which a line begins again
    splitter = LineSplitter(max_line)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.finish()
    printed = b"".join(chunks)
    if printed and not printed.endswith(b"\n"):
        printed += b"\n"

    assert printed == b"".join(text + b"\n" if whole else text for text, whole in lines)
    assert all(len(text) <= max_line and b"\n" not in text for text, _ in lines)


@given(st.lists(BYTES))
def test_lines_do_not_depend_on_how_the_pipe_cuts(chunks: list[bytes]) -> None:
    in_pieces, at_once = LineSplitter(), LineSplitter()
    cut = [line for chunk in chunks for line in in_pieces.feed(chunk)]

    assert at_once.feed(b"".join(chunks)) == cut
    assert at_once.finish() == in_pieces.finish()


def test_a_line_is_given_when_its_newline_comes() -> None:
    splitter = LineSplitter()

    assert [] == splitter.feed(b"  one")
    assert [(b"  one two", True), (b"", True)] == splitter.feed(b" two\n\nthree")
    assert [(b"three", True)] == splitter.finish()
    assert [] == splitter.finish()


def test_a_line_that_is_too_long_comes_in_pieces() -> None:
    splitter = LineSplitter(4)

    assert [(b"abcd", False), (b"efgh", False)] == splitter.feed(b"abcdefghi")
    assert [(b"ij", True), (b"klmn", False), (b"o", True)] == splitter.feed(b"j\nklmno\n")


def test_a_line_of_just_the_longest_size_is_whole() -> None:
    assert [(b"abcd", True)] == LineSplitter(4).feed(b"abcd\n")


# ------------------------------------------------------------------ records


def buffer_of(*lines: tuple[float, int, bytes], max_size: int = 10**6) -> LogBuffer:
    buffer = LogBuffer(max_size)
    for at, stream, data in lines:
        buffer.add(at, stream, data)
    return buffer


def test_a_record_is_time_stream_and_bytes() -> None:
    buffer = buffer_of((1700000000.25, 0, b"  indented"), (1700000000.5, 1, b"\xff\0\x1b[1m"))
    buffer.add(1700000001, 0, b"a piece", whole=False)

    assert (
        b"1700000000250000o   indented\n"
        b"1700000000500000e \xff\0\x1b[1m\n"
        b"1700000001000000O a piece\n"
    ) == buffer.take_chunk()


LINES = st.lists(
    st.tuples(
        st.floats(0, 4e9), st.integers(0, 1), BYTES.map(lambda data: data.replace(b"\n", b""))
    )
)


@given(LINES, st.integers(1, 5))
def test_no_line_is_lost_or_reordered_within_its_stream(
    lines: list[tuple[float, int, bytes]], chunk_size: int
) -> None:
    buffer = LogBuffer(10**9)
    chunks = []
    for number, (at, stream, data) in enumerate(lines):
        buffer.add(at, stream, data)
        if number % chunk_size == 0:
            chunks.append(buffer.take_chunk())
    records = list(read_log([*chunks, buffer.take_chunk()]))

    for stream, name in enumerate(("stdout", "stderr")):
        printed = [data for _, each, data in lines if each == stream]
        assert printed == [record.text for record in records if record.stream == name]
    assert sorted(record.at for record in records) == [record.at for record in records]


def test_streams_are_merged_by_time() -> None:
    log = buffer_of((3, 0, b"third"), (1, 1, b"first"), (2, 1, b"second")).take_chunk()

    assert [
        LogRecord(1.0, "stderr", b"first"),
        LogRecord(2.0, "stderr", b"second"),
        LogRecord(3.0, "stdout", b"third"),
    ] == list(read_log(log))


def test_a_clock_that_goes_back_does_not_reorder_a_stream() -> None:
    log = buffer_of((5, 0, b"first"), (3, 0, b"second"), (6, 0, b"third")).take_chunk()

    assert "first\nsecond\nthird\n" == as_text(read_log(log))
    assert [5.0, 5.0, 6.0] == [record.at for record in read_log(log)]


def test_sizes_are_those_of_the_text() -> None:
    buffer = buffer_of((1, 0, b"four"), (1, 1, b"sixsix"), (1, 0, b""))
    buffer.add(1, 0, b"piece", whole=False)
    records = list(read_log(buffer.take_chunk()))

    assert (11, 7) == (buffer.stdout_size, buffer.stderr_size)
    assert (11, 7) == (len(as_text(records, "stdout")), len(as_text(records, "stderr")))


def test_a_stream_that_grows_too_large_says_so_once_and_the_other_goes_on() -> None:
    buffer = LogBuffer(10)
    added = [buffer.add(1, 0, b"12345") for _ in range(4)]
    buffer.add(1, 1, b"other")

    assert [True, False, False, False] == added
    records = list(read_log(buffer.take_chunk()))
    assert f"12345\n{TRUNCATED.decode()}\n" == as_text(records, "stdout")
    assert "other\n" == as_text(records, "stderr")


def test_taking_a_chunk_begins_the_next() -> None:
    buffer = buffer_of((1, 0, b"first"))
    assert len(b"0000000001000000o first\n") == buffer.size
    first = buffer.take_chunk()
    buffer.add(2, 0, b"second")

    assert b"0000000001000000o first\n" == first
    assert b"0000000002000000o second\n" == buffer.take_chunk()
    assert (b"", 0) == (buffer.take_chunk(), buffer.size)


def test_text_that_is_no_utf8_is_shown_all_the_same() -> None:
    assert "caf\ufffd\n" == as_text([LogRecord(0, "stdout", b"caf\xe9")])


def test_pieces_of_a_line_are_joined() -> None:
    pieces = [LogRecord(0, "stdout", b"\xc3", whole=False), LogRecord(1, "stdout", b"\xa9")]

    assert "é\n" == as_text(pieces)


@pytest.mark.parametrize(
    "damaged",
    [
        b"0000000001000000o no end",
        b"short\n",
        b"000000000100000xo text\n",
        b"0000000001000000z t\n",
    ],
)
def test_bytes_that_are_no_log_are_reported(damaged: bytes) -> None:
    with pytest.raises(StorageError, match="A log is damaged"):
        read_log(damaged)


def test_chunks_are_objects_that_sort_by_number() -> None:
    store = MemoryStore()
    names = [chunk_name("Flow", "17-3", "_step", 4, 0, number) for number in (0, 9, 10, 123)]
    for name in names:
        store.put(check_name(name), [buffer_of((1, 0, name.encode())).take_chunk()])

    assert names == list(store.list("logs/Flow/17-3/_step/4/0/"))
    chunks = read_chunks(store, "Flow", "17-3", "_step", 4, 0, 1)
    assert [names[0].encode()] == [record.text for record in read_log(chunks)]


def test_a_chunk_that_is_gone_is_reported() -> None:
    with pytest.raises(ObjectNotFound, match="logs/Flow/1/start/1/0/00000000"):
        read_log(read_chunks(MemoryStore(), "Flow", "1", "start", 1, 0, 1))
