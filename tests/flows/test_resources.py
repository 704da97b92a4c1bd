"""Steps with resource requirements: slots, exclusive GPUs, threads, memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aflow._core import system
from aflow.executors.local import admission
from aflow.scheduler.slots import Slots
from tests.flows.conftest import Workspace
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

SHARED = """

class Flow_(FlowSpec):
    @step
    def start(self):
        self.xs = list(range(6))
        self.next(self.fit, foreach="xs")

    @resources(gpu=1, cpu=2, licence=1)
    @environment(vars={"MKL_NUM_THREADS": "7"})
    @step
    def fit(self):
        names = "CUDA_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES OMP_NUM_THREADS MKL_NUM_THREADS"
        self.seen = [os.environ.get(name) for name in names.split()]
        began = time.time()
        time.sleep(0.2)
        self.span = (began, time.time())
        self.next(self.join)

    @step
    def join(self, inputs):
        self.seen = sorted({tuple(each.seen) for each in inputs})
        by_device = {}
        for each in inputs:
            by_device.setdefault(each.seen[0], []).append(each.span)
        for spans in by_device.values():
            spans.sort()
            assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:])), "two had one GPU"
        self.count = len(by_device)
        self.next(self.end)

    @step
    def end(self):
        print("seen", self.seen, self.count)
"""

GROWING = """
import subprocess
from aflow import OutOfMemory

class Flow_(FlowSpec):
    @retry(times=2, seconds=0, on=OutOfMemory)
    @resources(memory=lambda attempt: 80 * 5 ** attempt)
    @step
    def start(self):
        hold = bytearray(150 << 20)
        hold[::4096] = b"x" * len(hold[::4096])
        if current.retry_count == 0:
            time.sleep(60)
        self.tries = current.retry_count
        self.next(self.middle)

    @retry(times=1, seconds=0)
    @resources(memory=lambda attempt: 80 * 5 ** attempt)
    @step
    def middle(self):
        if current.retry_count == 0:
            child = "x = bytearray(150 << 20); import time; time.sleep(60)"
            code = subprocess.call([sys.executable, "-c", child])
            raise ValueError(f"its child ended with {code}")
        self.next(self.end)

    @retry(times=1, seconds=0, on=OutOfMemory)
    @step
    def end(self):
        if current.retry_count == 0:
            raise MemoryError("none is left")
        print("tries", self.tries)
"""


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_tasks_have_gpus_of_their_own_and_start_when_one_is_free(
    isolation: str, workspace: Workspace
) -> None:
    workspace.write(SHARED)
    ran = workspace.run("--resources", "gpu=2,licence=9,cpu=64", "--isolation", isolation)

    assert 0 == ran.code, ran.err
    seen = "[('0', '0', '2', '7'), ('1', '1', '2', '7')]"
    assert f"seen {seen} 2" in ran.out
    workspace.check()


def test_ids_of_gpus_and_threads_that_are_set_stay_as_they_are(workspace: Workspace) -> None:
    workspace.write(SHARED)
    own = {"CUDA_VISIBLE_DEVICES": "GPU-5f2,GPU-9a1", "OMP_NUM_THREADS": "3"}
    ran = workspace.run("--resources", "licence=2,cpu=64", **own)

    assert 0 == ran.code, ran.err
    seen = "[('GPU-5f2', 'GPU-5f2', '3', '7'), ('GPU-9a1', 'GPU-9a1', '3', '7')]"
    assert f"seen {seen} 2" in ran.out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "Step fit asks for licence=1, and there is licence=0"),
        (["--resources", "gpu=0,licence=1"], "Step fit asks for gpu=1, and there is gpu=0"),
        (["--resources", "gpu"], "allowed: names and amounts such as gpu=4,memory=64000"),
        (["--resources", "gpu=1,gpu=2"], "each name once"),
        (["--resources", "gpu=2,licence=1"], "says gpu=2, and CUDA_VISIBLE_DEVICES names 1 of"),
    ],
)
def test_what_can_never_start_is_one_sentence_before_the_run_begins(
    given: list[str], words: str, workspace: Workspace
) -> None:
    workspace.write(SHARED)
    ran = workspace.run(*given, CUDA_VISIBLE_DEVICES="3")

    assert 0 != ran.code
    assert words in ran.err + ran.out
    assert "Workflow starting" not in ran.out


def test_a_task_over_its_memory_fails_as_such_and_has_more_at_the_next_try(
    workspace: Workspace,
) -> None:
    workspace.write(GROWING)
    ran = workspace.run()

    assert 0 == ran.code, ran.err
    assert "OutOfMemory: the task needs more than the 80 MB of memory that it asked for" in ran.out
    assert "Task failed. MemoryError: none is left" in ran.out
    assert "tries 1" in ran.out
    start = workspace.latest()[1][0].attempt
    assert start is not None
    assert start.max_rss is not None
    assert start.max_rss > 150 << 20
    workspace.check()


def test_a_task_that_somebody_kills_is_not_taken_for_one_over_its_memory(
    workspace: Workspace,
) -> None:
    workspace.write("""
    from aflow import OutOfMemory

    class Flow_(FlowSpec):
        @retry(times=3, seconds=0, on=OutOfMemory)
        @resources(memory=500)
        @step
        def start(self):
            os.kill(os.getpid(), signal.SIGKILL)
            self.next(self.end)

        @step
        def end(self):
            pass
    """)
    ran = workspace.run()

    assert 1 == ran.code
    assert "was killed (SIGKILL)" in ran.out
    assert "OutOfMemory" not in ran.out + ran.err
    assert 1 == ran.out.count("Task failed."), "it is not tried again"
    workspace.check()


def test_a_group_of_the_kernel_bounds_all_processes_of_a_task_where_one_may_be_made(
    tmp_path: Path,
) -> None:
    group = system.memory_group(60 << 20)
    if group is None:
        pytest.skip("this process may make no cgroup with a limit of memory")
    program = f"""if True:
        import os, sys
        from aflow._core.system import join_memory_group
        join_memory_group({group.path!r})
        child = os.fork()
        if not child:
            x = bytearray(100 << 20)
            os._exit(0)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -9)
    """
    try:
        assert 0 == group.kills()
        killed = subprocess.run([sys.executable, "-c", program], check=False).returncode
        assert killed in (0, -signal.SIGKILL)
        assert group.kills() >= 1
    finally:
        wait_until(group.remove)
    assert not Path(group.path).exists()


def test_groups_of_version_2_are_those_that_were_delegated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This uses files in a folder: no kernel with version 2 was available for this test."""
    home = tmp_path / "service"
    home.mkdir()
    (home / "cgroup.controllers").write_text("cpu memory")
    (home / "cgroup.subtree_control").write_text("memory")
    proc = {
        "self/cgroup": b"0::/service",
        "self/mountinfo": f"30 1 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw\n".encode(),
    }
    old = home / f"aflow-{1 << 30}-1"
    old.mkdir()
    monkeypatch.setattr(system, "read_proc", proc.get)
    system._home_of_groups.cache_clear()
    try:
        group = system.memory_group(60 << 20)
        assert group is not None
        assert str(home) == os.path.dirname(group.path)
        assert str(60 << 20) == Path(group.path, "memory.max").read_text()
        assert not old.exists(), "what a program has left that was killed"
        Path(group.path, "memory.events").write_text("oom 3\noom_kill 2\n")
        assert 2 == group.kills()

        (home / "cgroup.subtree_control").write_text("")
        (home / "cgroup.procs").write_text("1\n")
        system._home_of_groups.cache_clear()
        assert system.memory_group(60 << 20) is None, "others are in it"
    finally:
        system._home_of_groups.cache_clear()


def test_a_gang_starts_when_all_its_members_fit_and_is_refused_where_they_never_do(
    workspace: Workspace,
) -> None:
    workspace.write("""
    from aflow import parallel

    class Flow_(FlowSpec):
        size = Parameter("size", default=2)

        @step
        def start(self):
            self.next(self.meet, num_parallel=self.size)

        @resources(gpu=1)
        @parallel
        @step
        def meet(self):
            self.device = os.environ["CUDA_VISIBLE_DEVICES"]
            self.next(self.join)

        @step
        def join(self, inputs):
            self.devices = sorted(each.device for each in inputs)
            self.next(self.end)

        @step
        def end(self):
            print("devices", self.devices)
    """)
    ran = workspace.run("--resources", "gpu=2")
    assert 0 == ran.code, ran.err
    assert "devices ['0', '1']" in ran.out

    ran = workspace.run("--resources", "gpu=2", "--size", "3")
    assert 1 == ran.code
    assert "Step meet: the gang of 3 asks for gpu=3, and there is gpu=2" in ran.out + ran.err


def test_a_worker_has_slots_too_and_leaves_to_others_what_can_never_start_there(
    workspace: Workspace,
) -> None:
    workspace.write(SHARED)
    queue = f"sqlite:///{workspace.path}/queue.db"
    workers: list[subprocess.Popen[str]] = []

    def start(resources: str) -> subprocess.Popen[str]:
        command = ["-m", "aflow", "worker", "--queue", queue, "--pool", "gpu", "--pool", "default"]
        worker = subprocess.Popen(
            [sys.executable, *command, "--slots", "4", "--resources", resources],
            cwd=workspace.path, env=dict(os.environ), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        workers.append(worker)
        return worker

    try:
        poor = start("gpu=0,licence=9,cpu=64")
        run = workspace.start("run", "--executor", "queue", "--queue", queue)
        assert poor.stderr is not None
        assert any("asks for gpu=1, and there is gpu=0" in line for line in poor.stderr)
        start("gpu=2,licence=9,cpu=64")
        ran = workspace.finish(run)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()

    assert 0 == ran.code, ran.err
    assert "seen [('0', '0', '2', '7'), ('1', '1', '2', '7')] 2" in ran.out


@pytest.mark.parametrize(
    ("said", "devices"),
    [
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("none", ()),
        ("0,-1,1", ("0",)),
        ("1, 0,1", ("1", "0")),
        ("GPU-5f2a,GPU-9a1b", ("GPU-5f2a", "GPU-9a1b")),
        ("MIG-GPU-5f2a/1/0", ("MIG-GPU-5f2a/1/0",)),
    ],
)
def test_a_variable_names_the_gpus_before_what_is_none(said: str, devices: tuple[str, ...]) -> None:
    assert devices == admission.visible_devices(said)


def test_on_a_machine_of_amd_the_inner_variable_chooses_among_what_the_outer_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def granted(**variables: str) -> dict[str, str]:
        with monkeypatch.context() as patch:
            for name in ("CUDA", "ROCR", "HIP"):
                patch.delenv(f"{name}_VISIBLE_DEVICES", raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            machine = admission.machine_with({})
        slots = Slots(machine.amounts, machine.devices, None)
        begun: list[admission.Granted] = []
        queue = admission.SlotQueue(slots, machine)
        queue.submit([1], [None], {"gpu": 1}, lambda _, each: begun.append(each))  # type: ignore[list-item]
        return begun[0].late

    monkeypatch.setattr(admission, "_amd_count", lambda: 4)
    assert {"ROCR_VISIBLE_DEVICES": "0"} == granted()
    assert {"ROCR_VISIBLE_DEVICES": "2"} == granted(ROCR_VISIBLE_DEVICES="2,3")
    inner = {"HIP_VISIBLE_DEVICES": "1"}
    assert inner == granted(ROCR_VISIBLE_DEVICES="2,3", **inner)
    monkeypatch.setattr(admission, "_amd_count", lambda: 0)
    assert {"HIP_VISIBLE_DEVICES": "1"} == granted(**inner)


def test_memory_of_processes_is_that_of_their_sessions(tmp_path: Path) -> None:
    from aflow._core.system import memory_of

    program = (
        "import os, sys; x = bytearray(50 << 20); os.fork(); "
        "print(len(x), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.readline()
    found = memory_of([process.pid, 1 << 30])
    process.communicate(b"")

    assert [process.pid] == [*found]
    assert 50 << 20 < found[process.pid] < 90 << 20, "what both have is counted once"
