"""Steps that cause or meet trouble: other tasks are not affected."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aflow.scheduler.states import AttemptState, RunState
from tests.flows.conftest import Workspace, children_of
from tests.flows.test_decorators import one_step, states
from tests.flows.test_failures import ISOLATIONS
from tests.flows.test_language import FAN
from tests.support.disks import small_disk
from tests.support.waiting import wait_until


def test_lines_of_processes_that_print_at_the_same_time_stay_whole(workspace: Workspace) -> None:
    workspace.write("""
        import multiprocessing

        def speak(name):
            for number in range(200):
                print(name, number)

        class Flow_(FlowSpec):
            @step
            def start(self):
                with multiprocessing.get_context("fork").Pool(3) as pool:
                    pool.map(speak, ["one", "two", "three"], chunksize=1)
                    pool.close()
                    pool.join()
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    ran = workspace.run("--isolation", "worker")
    assert ran.code == 0, ran.out + ran.err
    said = [line for line in ran.lines if line.startswith(("one", "two", "three"))]
    assert {f"{name} {n}" for name in ("one", "two", "three") for n in range(200)} == {*said}


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_the_next_task_does_not_notice_what_a_step_did_to_its_process(
    workspace: Workspace, isolation: str
) -> None:
    workspace.write("""
        import asyncio, random, threading

        def state():
            handler = signal.getsignal(signal.SIGTERM)
            return (os.getcwd(), dict(os.environ), os.umask(0o022), handler,
                    sys.stdout.writable(), os.fstat(0).st_rdev)

        class Flow_(FlowSpec):
            @step
            def start(self):
                os.umask(0o022)
                self.before = state()[:3]
                os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone")
                os.environ["LEAK"] = "1"; os.environ.pop("AFLOW_USER", None)
                os.umask(0o777)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                asyncio.run(asyncio.sleep(0))
                if os.fork() == 0:
                    print("the child of the step")
                    return
                os.wait()
                print("the step itself")
                os.close(0); os.close(1); os.close(2)
                sys.stdout = None
                self.next(self.end)

            @step
            def end(self):
                now = state()
                assert now[:2] == self.before[:2], (now, self.before)
                assert now[2] == 0o022
                assert now[3] is signal.SIG_DFL
                print("unharmed", random.random() != random.random())
    """)
    ran = workspace.run("--isolation", isolation, "--max-workers", "1")
    assert ran.code == 0, ran.out + ran.err
    assert "unharmed True" in ran.lines
    assert "the step itself" in ran.lines
    workspace.check()


# What the standard library keeps in one place for the whole process, changed in every such place.
STATE_OF_A_PROCESS = """
    import asyncio, decimal, faulthandler, gc, locale, logging, multiprocessing, random, resource
    import socket, tempfile, threading, warnings
    import numpy

    decimal.getcontext().prec = 20
    random.seed(42)

    def odd(*args):
        pass

    def state():
        warned = []
        warnings.showwarning = lambda *args, **options: warned.append(args)
        warnings.warn("each task is to see this one")
        loop = asyncio.get_event_loop_policy().new_event_loop()
        loop.close()
        return {
            "decimal": (decimal.getcontext().prec, decimal.getcontext().rounding),
            "random": random.random(),
            "warnings": (len(warnings.filters), len(warned)),
            "locale": locale.setlocale(locale.LC_ALL),
            "zone": (time.tzname, time.localtime(0).tm_hour),
            "recursion": sys.getrecursionlimit(),
            "digits": sys.get_int_max_str_digits(),
            "hooks": (sys.excepthook is odd, sys.displayhook is odd, threading.excepthook is odd,
                      sys.gettrace(), sys.getprofile(), threading.gettrace()),
            "gc": (gc.isenabled(), gc.get_threshold()),
            "socket": socket.getdefaulttimeout(),
            "temporary": tempfile.gettempdir(),
            "logging": (logging.root.level, len(logging.root.handlers)),
            "disabled": logging.root.manager.disable,
            "start method": multiprocessing.get_start_method(allow_none=True),
            "files": resource.getrlimit(resource.RLIMIT_NOFILE),
            "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            "handler": signal.getsignal(signal.SIGPROF),
            "words": [*sys.argv[1:]],
            "folders": sys.path.count("a folder"),
            "processors": os.sched_getaffinity(0),
            "loop": asyncio.get_event_loop_policy()._local.__dict__ == {},
        }

    def change():
        decimal.getcontext().prec = 3
        random.seed(1); numpy.random.seed(1)
        warnings.simplefilter("error")
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
        os.environ["TZ"] = "Asia/Tokyo"; time.tzset()
        sys.setrecursionlimit(5000); sys.set_int_max_str_digits(0)
        sys.excepthook = sys.displayhook = threading.excepthook = odd
        sys.setprofile(odd); threading.settrace(odd)
        gc.disable(); gc.set_threshold(1)
        socket.setdefaulttimeout(0.001)
        tempfile.tempdir = "/nowhere"
        logging.basicConfig(level="DEBUG")
        logging.disable(logging.CRITICAL)
        multiprocessing.set_start_method("spawn")
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        signal.signal(signal.SIGPROF, odd)
        signal.setitimer(signal.ITIMER_PROF, 0.01, 0.01)
        sys.argv.append("another"); sys.path.insert(0, "a folder"); sys.path.insert(0, "a folder")
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        faulthandler.dump_traceback_later(1, exit=True)
        asyncio.run(asyncio.sleep(0))

    class Flow_(FlowSpec):
        @step
        def start(self):
            self.xs = [1, 2, 3]
            self.next(self.work, foreach="xs")
        @step
        def work(self):
            self.state, self.drawn, self.process = state(), numpy.random.random(), os.getpid()
            change()
            sum(range(3_000_000))  # as long as a timer of the step before needs to ring
            self.next(self.join)
        @step
        def join(self, inputs):
            self.states = [each.state for each in inputs]
            self.drawn = len({each.drawn for each in inputs})
            self.processes = len({each.process for each in inputs})
            self.next(self.end)
        @step
        def end(self):
            first, *others = self.states
            for each in others:
                found = {name: each[name] for name in first if each[name] != first[name]}
                assert found in ({}, {"folders": 1}), (found, first)
            assert first["random"] == random.Random(42).random()
            assert first["decimal"][0] == 20
            print("as at first:", self.drawn, "of", self.processes)
"""


@pytest.mark.parametrize(("isolation", "processes"), [("worker", 1), ("task", 3)])
def test_what_a_step_changes_of_the_standard_library_the_next_one_does_not_see(
    workspace: Workspace, isolation: str, processes: int
) -> None:
    workspace.write(STATE_OF_A_PROCESS)
    ran = workspace.run("--isolation", isolation, "--max-workers", "1")
    assert ran.code == 0, ran.out + ran.err
    assert f"as at first: 3 of {processes}" in ran.lines


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_daemon_that_holds_on_to_stdout_does_not_hold_up_the_run(
    workspace: Workspace, isolation: str
) -> None:
    workspace.write(one_step(
        "import subprocess\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('left it behind')"
    ))  # fmt: skip
    ran = workspace.run("--isolation", isolation)
    assert ran.code == 0, ran.out + ran.err
    assert "left it behind" in ran.lines
    workspace.check()  # it has exited, too


STARTS_OTHERS = """
    import subprocess

    def start_others():
        # One in a session of its own, and a daemon of another program whose parents are gone.
        child = subprocess.Popen(["sleep", "3600"], start_new_session=True)
        daemon = "setsid sleep 3600 > /dev/null 2>&1 & echo $!"
        answer = subprocess.run(["env", "-i", "/bin/sh", "-c", daemon], capture_output=True)
        with open("pids", "a") as file:
            print(child.pid, answer.stdout.decode().strip(), file=file, flush=True)
        return child

    class Flow_(FlowSpec):
        hangs = Parameter("hangs", default=False)

        @catch(var="late")
        @timeout(seconds=1)
        @step
        def start(self):
            if not self.hangs:
                start_others().wait()
            self.next(self.end)

        @step
        def end(self):
            child = start_others()
            if self.hangs and not os.path.exists("go"):
                child.wait()
    """


def living(workspace: Workspace) -> list[int]:
    """Return the processes started by steps that are still alive."""
    pids = map(int, (workspace.path / "pids").read_text().split())
    return [pid for pid in pids if is_alive(pid)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_what_tasks_have_started_ends_with_them_in_whatever_session(
    workspace: Workspace, isolation: str
) -> None:
    workspace.write(STARTS_OTHERS)
    ran = workspace.run("--isolation", isolation)
    assert 0 == ran.code, ran.err
    assert 4 == len((workspace.path / "pids").read_text().split())
    assert [] == living(workspace)


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_what_tasks_have_started_ends_with_a_run_that_is_stopped_or_killed(
    workspace: Workspace, isolation: str, signum: signal.Signals
) -> None:
    workspace.write(STARTS_OTHERS)
    process = workspace.start("--no-pylint", "run", "--isolation", isolation, "--hangs", "True")
    wait_until(lambda: (workspace.path / "pids").exists() and len(living(workspace)) == 2)
    process.send_signal(signum)
    ran = workspace.finish(process)
    assert ran.code != 0
    wait_until(lambda: [] == living(workspace))


def test_what_tasks_have_started_ends_when_the_process_that_they_came_of_is_killed(
    workspace: Workspace,
) -> None:
    workspace.write(STARTS_OTHERS)
    process = workspace.start("--no-pylint", "run", "--hangs", "True")
    wait_until(lambda: (workspace.path / "pids").exists() and len(living(workspace)) == 2)
    first = living(workspace)
    (workspace.path / "go").touch()
    for zygote in children_of(process.pid):
        os.kill(zygote, signal.SIGKILL)
    ran = workspace.finish(process)
    assert not set(first) & set(living(workspace)), ran.err
    workspace.check()


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_what_a_step_leaves_behind_may_print_when_its_task_has_ended(
    workspace: Workspace, isolation: str
) -> None:
    workspace.write("""
        import asyncio, threading

        def keep_on(done):
            for number in range(200):
                print("still alive", flush=True)
                if done.wait(0.01):
                    return

        class Flow_(FlowSpec):
            @step
            async def start(self):
                async def keep_alive():
                    while True:
                        await asyncio.sleep(0.01)
                        print("still alive", flush=True)
                asyncio.create_task(keep_alive())
                self.next(self.work)
            @step
            def work(self):
                threading.Thread(target=keep_on, args=(threading.Event(),), daemon=True).start()
                print("x" * 3_000_000)  # it is stored while the thread goes on
                self.next(self.second)
            @step
            async def second(self):
                await asyncio.sleep(0.5)
                print("the last line")
                self.next(self.end)
            @step
            def end(self):
                pass
        """)
    ran = workspace.run("--isolation", isolation)
    assert 0 == ran.code, ran.err
    assert "the last line" in ran.lines
    workspace.check()


def test_a_stopped_task_is_ended_by_its_time_limit_and_cannot_commit_later(
    workspace: Workspace,
) -> None:
    workspace.write(one_step(
        "if current.retry_count == 0: os.kill(os.getpid(), signal.SIGSTOP)\nself.x = 1",
        "@retry(times=1, seconds=0)\n@timeout(seconds=0.2)",
    ))  # fmt: skip
    ran = workspace.run()
    assert ran.code == 0, ran.out + ran.err
    metadata = workspace.metadata
    run = metadata.runs("Flow_")[0]
    ends = [attempt.state.value for attempt in metadata.attempts(run.key, 1)]
    metadata.close()
    assert ["timed_out", "succeeded"] == ends
    workspace.check()


def test_a_poison_task_does_not_take_its_neighbours_along(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.xs = list(range(40))
                self.next(self.work, foreach="xs")

            @catch(var="problem", print_exception=False)
            @retry(times=2, seconds=0)
            @step
            def work(self):
                if self.input == 7:
                    os.kill(os.getpid(), signal.SIGKILL)
                self.tries = current.retry_count
                self.next(self.join)

            @step
            def join(self, inputs):
                self.bad = [i for i, each in enumerate(inputs) if each.problem is not None]
                self.tries = sum(each.tries for each in inputs if each.problem is None)
                self.next(self.end)

            @step
            def end(self):
                print("bad", self.bad, "tries of the others", self.tries)
    """)
    ran = workspace.run("--isolation", "worker", "--max-workers", "2")
    assert ran.code == 0, ran.out + ran.err
    assert "bad [7] tries of the others 0" in ran.lines
    workspace.check()


@pytest.mark.parametrize(
    ("action", "reported"),
    [
        ("helper = asyncio.ensure_future(asyncio.sleep(60)); await asyncio.sleep(0)\n"
         "helper.cancel(); await helper", "CancelledError"),
        ("raise asyncio.CancelledError('by hand')", "CancelledError: by hand"),
        ("asyncio.current_task().cancel(); await asyncio.sleep(5)", "CancelledError"),
        ("asyncio.get_running_loop().stop(); await asyncio.sleep(5)", "cannot stop the event loop"),
        ("[each.cancel() for each in asyncio.all_tasks()]; await asyncio.sleep(5)",
         "CancelledError"),
    ],
)  # fmt: skip
def test_what_cancels_itself_fails_like_any_error_and_its_neighbours_go_on(
    workspace: Workspace, action: str, reported: str
) -> None:
    lines = "\n".join(" " * 20 + line for line in action.splitlines())
    workspace.write(f"""
        import asyncio

        class Flow_(FlowSpec):
            @step
            def start(self):
                self.items = ["calm", "odd"]
                self.next(self.work, foreach="items")

            @retry(times=1, minutes_between_retries=0)
            @catch(var="failure")
            @step
            async def work(self):
                with open("count-" + self.input, "a") as count:
                    count.write("x")
                if self.input == "odd":
                    while not os.path.exists("count-calm"):
                        await asyncio.sleep(0.01)
{lines}
                while not os.path.exists("count-odd") or os.path.getsize("count-odd") < 2:
                    await asyncio.sleep(0.01)
                self.next(self.join)

            @step
            def join(self, inputs):
                print("failures", [str(each.failure) for each in inputs])
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    ran = workspace.run()
    assert ran.code == 0, ran.out + ran.err
    (line,) = [line for line in ran.lines if line.startswith("failures")]
    assert line.startswith("failures ['None', "), line
    assert reported in line
    counts = {name: (workspace.path / f"count-{name}").read_text() for name in ("calm", "odd")}
    assert {"calm": "x", "odd": "xx"} == counts


def test_a_cancelled_error_out_of_an_ordinary_step_is_an_error(workspace: Workspace) -> None:
    workspace.write(one_step("import asyncio\nraise asyncio.CancelledError"))
    ran = workspace.run()
    assert ran.code == 1, ran.out + ran.err
    assert "CancelledError: what the step awaited was cancelled" in ran.out + ran.err


def test_many_failures_at_once_are_retried_as_often_as_said_and_no_more(
    workspace: Workspace,
) -> None:
    workspace.write(
        FAN.replace("        self.y = ", "        assert current.retry_count\n        self.y = ")
    )
    ran = workspace.run(
        "--n", "100", "--isolation", "worker", "--with", "retry:times=1,seconds=0.2"
    )
    assert ran.code == 0, ran.out + ran.err
    _, tasks = workspace.latest()
    assert {2} == {each.attempts for each in tasks if each.task.step == "work"}
    workspace.check()


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_output_past_the_limit_is_dropped_and_memory_stays_bounded(
    workspace: Workspace, isolation: str
) -> None:
    workspace.write(one_step(
        "line = 'x' * 999\n"
        "for _ in range(30_000): print(line)\n"
        "sys.stdout.write('y' * 20_000_000 + chr(10))\n"
        "print(chr(0), chr(27) + '[31m', file=sys.stderr)"
    ))  # fmt: skip
    process = workspace.start("--no-pylint", "run", "--isolation", isolation, "--max-log-size", "1")
    ran = workspace.finish(process)
    assert ran.code == 0, ran.err
    assert 30_000 == sum("x" * 999 in line for line in ran.lines)
    task = workspace.latest()[1][0]
    assert task.attempt is not None
    assert task.attempt.stdout_size < 1_100_000
    logs = workspace.finish(workspace.start("logs", f"{run_id(workspace)}/start"))
    assert "[TRUNCATED - MAXIMUM LOG FILE SIZE REACHED]" in logs.out
    assert "\x00 \x1b[31m" in logs.out + logs.err


def run_id(workspace: Workspace) -> str:
    """Return the id of the latest run."""
    metadata = workspace.metadata
    try:
        return metadata.runs("Flow_")[0].run
    finally:
        metadata.close()


def test_a_damaged_blob_is_named_and_not_used(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.x = os.urandom(100_000)
                self.next(self.damage)

            @step
            def damage(self):
                import pathlib
                for blob in pathlib.Path(".aflow/blobs").glob("*/*"):
                    data = bytearray(blob.read_bytes())
                    data[5000] ^= 1
                    blob.chmod(0o600)
                    blob.write_bytes(data)
                self.next(self.end)

            @step
            def end(self):
                print(len(self.x))
    """)
    ran = workspace.run()
    assert ran.code == 1
    assert "Artifact 'x'" in ran.out
    assert "is damaged" in ran.out
    assert ["succeeded", "succeeded", "failed"] == states(workspace.latest()[1])
    workspace.check()


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_full_disk_ends_the_run_with_one_sentence(workspace: Workspace, isolation: str) -> None:
    with small_disk(workspace.path, "8m"):
        workspace.write(one_step("self.x = os.urandom(16 << 20)"))
        ran = workspace.run("--isolation", isolation)
        assert ran.code == 1, ran.out + ran.err
        assert "full" in ran.out + ran.err
        assert "Traceback" not in ran.out + ran.err
        assert RunState.FAILED is workspace.latest()[0]
        workspace.check()


def test_runs_in_one_folder_at_the_same_time_do_not_disturb_one_another(
    workspace: Workspace,
) -> None:
    workspace.write(FAN)
    running = [workspace.start("--no-pylint", "run", "--isolation", "worker") for _ in range(6)]
    ended = [workspace.finish(process) for process in running]
    assert [0] * 6 == [ran.code for ran in ended], ended
    metadata = workspace.metadata
    runs = metadata.runs("Flow_")
    metadata.close()
    assert 6 == len({run.run for run in runs})
    assert {RunState.SUCCEEDED} == {run.state for run in runs}
    workspace.check()


def test_a_wide_foreach_and_a_nested_one_come_out_right(workspace: Workspace) -> None:
    workspace.write(FAN.replace('print("ys", self.ys)', 'print("sum", sum(self.ys))'))
    ran = workspace.run("--n", "5000", "--max-num-splits", "5000", "--isolation", "worker")
    assert ran.code == 0, ran.err
    assert f"sum {sum(x * x for x in range(5000))}" in ran.lines
    workspace.check()


def test_an_exception_of_many_megabytes_is_recorded_in_few_kilobytes(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.next(self.end)
            @step
            def end(self):
                raise ValueError("head " + "x" * 20_000_000 + " tail")
        """)
    ran = workspace.run()
    assert 1 == ran.code
    assert 1_000_000 > len(ran.out) + len(ran.err)
    assert "head xxx" in ran.err
    assert "characters left out) ..." in ran.err
    assert " tail" in ran.err
    assert 2_000_000 > (workspace.path / ".aflow" / "metadata.db").stat().st_size
    [_, failed] = workspace.latest()[1]
    assert failed.attempt is not None
    assert 5_000 > len(failed.attempt.reason)


NOBODY = 61_234  # a user without other processes, and so with a separate process limit
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


def allow_processes(process: subprocess.Popen[str], count: int | str) -> None:
    """Let everything that this process has started have so many processes of its user."""
    todo = children_of(process.pid)
    while todo:
        pid = todo.pop()
        todo += children_of(pid)
        limit = ["prlimit", "--pid", str(pid), f"--nproc={count}:"]
        subprocess.run([*AS_NOBODY, *limit], capture_output=True, check=False)  # it may have ended


def test_where_no_process_can_be_started_tasks_wait_for_one_and_then_say_so(
    workspace: Workspace,
) -> None:
    if os.getuid() or not all(map(shutil.which, ["setpriv", "prlimit"])):
        pytest.skip("limits of processes are set for another user, which takes root and setpriv")
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                print("go on", flush=True)
                while not os.path.exists("gate"):
                    time.sleep(0.01)
                self.xs = [1, 2]
                self.next(self.work, foreach="xs")

            @step
            def work(self):
                self.next(self.join)

            @step
            def join(self, inputs):
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    os.chown(workspace.path, NOBODY, NOBODY)
    may_read_python = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    command = [sys.executable, "flow.py", "--no-pylint", "run", "--max-workers", "2"]
    process = subprocess.Popen(
        [*AS_NOBODY, *may_read_python, *command], cwd=workspace.path, text=True,
        env={**os.environ, "HOME": str(workspace.path)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said = ""
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if "go on" in line:
                allow_processes(process, 1)
                (workspace.path / "gate").touch()
            elif "no process could be started" in line:
                allow_processes(process, 500)
    assert 0 == process.returncode, said
    assert (
        "The task was lost: no process could be started: Resource temporarily unavailable (use "
        "fewer workers, --max-workers, or allow more processes: ulimit -u, pids.max)."
    ) in said
    metadata = workspace.metadata  # the second time a process was waited for, and came
    attempts = metadata.attempts(metadata.runs("Flow_")[0].key, 2)
    metadata.close()
    assert [AttemptState.LOST, AttemptState.SUCCEEDED] == [each.state for each in attempts]
    workspace.check()


@pytest.mark.parametrize(
    "body",
    [
        "__reduce_ex__ = lambda self, protocol: None",
        "__reduce_ex__ = lambda self, protocol: (list, (), None, map(int, 'x'), None)",
        "__reduce_ex__ = lambda self, protocol: sys.exit(3)",
    ],
)
def test_a_run_takes_no_harm_from_an_object_whose_content_cannot_be_read(
    workspace: Workspace, body: str
) -> None:
    workspace.write(f"""
        class Odd:
            {body}

        ODD = Odd()

        class Flow_(FlowSpec):
            @step
            def start(self):
                ODD
                self.next(self.end)

            @step
            def end(self):
                pass
    """)
    ran = workspace.run()
    assert 0 == ran.code, ran.err
