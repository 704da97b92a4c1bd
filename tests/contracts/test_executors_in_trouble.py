"""Steps that fork, leave daemons, damage their process or print endlessly; machines that are out of
descriptors or processes."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.executing import KINDS, ends, executing
from tests.contracts.flow_of_actions import SPOILS
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

MEGA = 1 << 20


# ------------------------------------------------------------------ steps that make processes


@pytest.mark.parametrize("kind", KINDS)
async def test_the_child_of_a_step_that_forks_reports_nothing(kind: str, tmp_path: Path) -> None:
    async with executing(tmp_path, kind) as bench:
        task = bench.launch("fork")
        assert ["succeeded"] == await bench.ended(task)

        assert bench.result(task) > 0
        assert [b"the child", b"the parent"] == bench.recorder.lines(task)
        assert "spoken" == await bench.does("speak")


@pytest.mark.parametrize("kind", KINDS)
async def test_processes_that_print_at_once_do_not_tear_each_other_s_lines(
    kind: str, tmp_path: Path
) -> None:
    async with executing(tmp_path, kind) as bench:
        task = bench.launch("sing_in_chorus", 3, 2000)
        assert ["succeeded"] == await bench.ended(task)

        expected = [b"voice %d line %d" % (v, n) for v in range(3) for n in range(2000)]
        assert sorted(expected) == bench.recorder.lines(task)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_daemon_that_holds_stdout_holds_up_nothing(kind: str, tmp_path: Path) -> None:
    async with executing(tmp_path, kind) as bench:
        daemon = await bench.does("leave_a_daemon")
        assert "spoken" == await bench.does("speak")
        await bench.executor.stop()
    assert ends(daemon)  # at the latest with the process of its task, though it left the session


async def test_what_a_step_leaves_running_ends_with_its_task(tmp_path: Path) -> None:
    async with executing(tmp_path, "task") as bench:
        child = await bench.does("leave_a_child")

        assert ends(child)


@pytest.mark.parametrize("kind", ["worker", "coroutine"])
async def test_what_a_step_leaves_running_ends_with_its_worker(kind: str, tmp_path: Path) -> None:
    async with executing(tmp_path, kind) as bench:
        child = await bench.does("leave_a_child")
        await bench.executor.stop()

        assert ends(child)


# ------------------------------------------------------------------ steps that spoil their process


@pytest.mark.parametrize("kind", KINDS)
async def test_shared_memory_of_a_process_that_is_killed_is_removed(
    kind: str, tmp_path: Path
) -> None:
    async with executing(tmp_path, kind) as bench:
        task = bench.launch("leave_memory_and_die")
        assert ["failed"] == await bench.ended(task)
        left = Path("/dev/shm", bench.recorder.out(task).decode().strip())
    wait_until(lambda: not left.exists())


@pytest.mark.parametrize("what", SPOILS)
async def test_the_next_task_of_a_worker_does_not_notice(what: str, tmp_path: Path) -> None:
    async with executing(tmp_path, "worker", workers=1) as bench:
        before = await bench.does("look")
        await bench.does("spoil", what)
        task = bench.launch("look")
        assert ["succeeded"] == await bench.ended(task)

        assert before == bench.result(task)
        assert [b"past Python", b"to stdout"] == bench.recorder.lines(task)
        assert b"to stderr\n" == bench.recorder.out(task, 1)


@pytest.mark.parametrize("what", SPOILS)
async def test_a_spoilt_process_of_its_own_still_reports(what: str, tmp_path: Path) -> None:
    async with executing(tmp_path, "task") as bench:
        assert ["succeeded"] == await bench.ended(bench.launch("spoil", what))
        assert "spoken" == await bench.does("speak")


@pytest.mark.parametrize("kind", ["task", "worker"])
@pytest.mark.parametrize("what", SPOILS)
async def test_a_step_that_spoils_its_process_and_fails_says_why(
    what: str, kind: str, tmp_path: Path
) -> None:
    async with executing(tmp_path, kind) as bench:
        task = bench.launch("spoil_and_fail", what)
        assert ["failed"] == await bench.ended(task)

        assert f"ValueError: {what}" == bench.reason(task)


# ------------------------------------------------------------------ steps that print


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_any_bytes_come_through(kind: str, stream: str, tmp_path: Path) -> None:
    data = bytes(range(256)) + b"\0\0\n\xff\xfe\n\r\n" + "☃".encode()
    async with executing(tmp_path, kind) as bench:
        task = bench.launch("write", data, 1000, 3, stream)
        await bench.ended(task)

        assert 3000 * data == bench.recorder.out(task, stream == "stderr")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_line_of_100_megabytes_is_never_held_whole(kind: str, tmp_path: Path) -> None:
    async with executing(tmp_path, kind) as bench:
        bench.recorder.keeps = lambda task: False
        with bounded_memory():
            task = bench.launch("write", b"x", MEGA, 100)
            assert ["succeeded"] == await bench.ended(task)

        assert 100 * MEGA == bench.recorder.sizes[task]
        assert bench.recorder.largest <= 1 << 18


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Check that the coordinator's peak memory grows by less than a part of the output."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


@pytest.mark.parametrize("kind", KINDS)
async def test_of_300_000_lines_none_is_lost(kind: str, tmp_path: Path) -> None:
    async with executing(tmp_path, kind) as bench:
        task = bench.launch("write_lines", 300_000)
        assert ["succeeded"] == await bench.ended(task)

        expected = "".join(f"line {number}\n" for number in range(300_000)).encode()
        assert expected == bench.recorder.out(task)


# ------------------------------------------------------------------ machines without room


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Limit the number of files that this process can open in addition."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # so that none becomes free meanwhile
    used = {int(each) for each in os.listdir("/proc/self/fd")}
    free = (number for number in itertools.count() if number not in used)
    limit = next(itertools.islice(free, count, None))  # what is open leaves gaps
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("kind", KINDS)
async def test_without_descriptors_an_attempt_is_lost_and_the_next_one_runs(
    kind: str, tmp_path: Path
) -> None:
    async with executing(tmp_path, kind) as bench:
        for count in range(4):
            with descriptors_left(count):
                task = bench.launch("speak")
            assert ["lost"] == await bench.ended(task)
            assert "Too many open files" in bench.reason(task)

        assert "spoken" == await bench.does("speak")


async def test_without_descriptors_a_task_waits_for_those_of_another_one(tmp_path: Path) -> None:
    async with executing(tmp_path, "task") as bench:
        other = bench.launch("wait")
        await bench.started(other)
        with descriptors_left(6):  # the other has two of them; a task needs six for a moment
            task, unwanted = bench.launch("speak"), bench.launch("speak")
            bench.cancel(unwanted)
            assert ["cancelled"] == await bench.ended(unwanted)
            bench.cancel(other)
            assert ["cancelled"] == await bench.ended(other)
            assert ["succeeded"] == await bench.ended(task)


async def test_without_descriptors_for_more_workers_those_there_are_go_on(tmp_path: Path) -> None:
    async with executing(tmp_path, "worker", workers=4) as bench:
        assert "spoken" == await bench.does("speak")
        with descriptors_left(0):
            tasks = [bench.launch("speak") for _ in range(20)]
            assert ["succeeded"] * 20 == await bench.ended(*tasks)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_that_the_kernel_cannot_take_yet_is_sent_later(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, errors = socket.send_fds, [errno.ETOOMANYREFS, errno.ENOBUFS]

    def crowded(*args: Any) -> int:
        if errors:
            raise OSError(errors.pop(), "too many descriptors are under way")
        return send(*args)

    monkeypatch.setattr(socket, "send_fds", crowded)
    async with executing(tmp_path, kind) as bench:
        assert "spoken" == await bench.does("speak")
        assert [] == errors


@pytest.mark.parametrize("kind", KINDS)
async def test_a_damaged_manifest_fails_its_task_alone(kind: str, tmp_path: Path) -> None:
    async with executing(tmp_path, kind) as bench:
        other = bench.launch("wait_async" if kind == "coroutine" else "wait")
        await bench.started(other)
        task = bench.prepare("speak")
        manifests = bench.specs[task].manifests
        manifests[max(manifests)] = b"damaged"  # of its input task
        bench.executor.launch(bench.specs[task])

        assert ["failed"] == await bench.ended(task)
        assert "A manifest is damaged" in bench.reason(task)
        bench.cancel(other)
        assert ["cancelled"] == await bench.ended(other)
