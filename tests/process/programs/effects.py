"""Side effects of the end of a process: each function causes something that Python's own exit
handles. `effects.py KIND FOLDER` runs each of them in a forked process, in a separate folder, that
exits by KIND: `python` is Python's normal exit, `raised` is Leave of aflow._core.ending, and
`at once` is os._exit.
"""

import asyncio
import atexit
import bz2
import codecs
import concurrent.futures
import contextlib
import dbm.dumb
import functools
import gzip
import io
import logging.handlers
import lzma
import mmap
import multiprocessing
import os
import shelve
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
import weakref
import zipfile
from pathlib import Path

from aflow._core import ending

KEPT = {}  # what module globals would be


def note(text):
    with open("noted", "a") as file:
        file.write(text + "\n")


def keep(thing):
    KEPT[len(KEPT)] = thing
    return thing


def nothing():
    note("nothing")


def a_text_file():
    keep(open("file", "w")).write("x")


def a_binary_file():
    keep(open("file", "wb")).write(b"x")


def a_file_for_both():
    keep(open("file", "w+b")).write(b"x")


def a_file_in_a_cycle():
    files = [open("file", "w")]
    files[0].write("x")
    files.append(files)


def a_file_in_slots():
    class Holder:
        __slots__ = ("file",)

    keep(Holder()).file = open("file", "w")
    KEPT[0].file.write("x")


def a_file_in_a_frame():
    def fail():
        file = open("file", "w")
        file.write("x")
        raise ValueError

    try:
        fail()
    except ValueError as error:
        keep(error)


def a_file_of_codecs():
    keep(codecs.open("file", "w", "utf-16")).write("x")


def a_file_of_layers():
    keep(io.TextIOWrapper(io.BufferedWriter(io.FileIO("file", "w")))).write("x")


def a_file_class_of_ones_own():
    class Shouting(io.TextIOWrapper):
        def close(self):
            if not self.closed:
                self.write("closed!")
            super().close()

    keep(Shouting(open("file", "wb"))).write("x")


def bytes_that_notice_their_end():
    class Buffer(io.BytesIO):
        def close(self):
            note("closed")
            super().close()

    keep(Buffer())


def a_gzip_file():
    keep(gzip.open("file", "wt")).write("x" * 100)


def a_bz2_file():
    keep(bz2.open("file", "wt")).write("x" * 100)


def an_xz_file():
    keep(lzma.open("file", "wt")).write("x" * 100)


def a_zip_file():
    keep(zipfile.ZipFile("file", "w")).writestr("a", "b")


def a_tar_file():
    keep(tarfile.open("file", "w:gz")).add(__file__, "effects.py")


def a_temporary_file():
    keep(tempfile.NamedTemporaryFile(dir=".", prefix="temporary")).write(b"x")


def a_temporary_folder():
    keep(tempfile.TemporaryDirectory(dir=".", prefix="temporary"))


def a_spooled_file():
    keep(tempfile.SpooledTemporaryFile(max_size=10)).write(b"x")


def a_shelf():
    # Of this kind, which every Python has: the bytes of the file depend on its contents alone.
    shelf = keep(shelve.Shelf(dbm.dumb.open("shelf"), writeback=True))
    shelf["a"] = [1]
    shelf["a"].append(2)


def log_records_that_are_held_back():
    handler = logging.handlers.MemoryHandler(1000, target=logging.FileHandler("log"))
    logging.getLogger("held").addHandler(handler)
    logging.getLogger("held").warning("x")


class Ending:
    def __init__(self, text):
        self.text = text

    def __del__(self):
        note(self.text)


def an_object():
    keep(Ending("object"))


def an_object_in_a_cycle():
    ending = Ending("cycle")
    ending.me = ending


def an_object_of_a_heir():
    keep(type("Heir", (Ending, dict), {})("heir"))


def a_generator_in_finally():
    def wait():
        try:
            yield
        finally:
            note("finally")

    next(keep(wait()))


def a_generator_in_with():
    def wait():
        with open("file", "w") as file:
            file.write("x")
            yield
            file.write("y")

    next(keep(wait()))


def a_generator_that_waits_for_another():
    def inner():
        try:
            yield 1
        except GeneratorExit:
            note("inner")
            raise

    def outer():
        yield from inner()

    next(keep(outer()))


def a_context_that_is_entered():
    @contextlib.contextmanager
    def context():
        try:
            yield
        finally:
            note("left")

    keep(context()).__enter__()


def a_coroutine_that_waits():
    class Pause:
        def __await__(self):
            yield

    async def wait():
        try:
            await Pause()
        finally:
            note("coroutine")

    keep(wait()).send(None)


def a_coroutine_that_was_never_awaited():
    async def never():
        pass

    keep(never())


def an_asynchronous_generator():
    async def numbers():
        try:
            yield 1
        finally:
            note("numbers")

    with contextlib.suppress(StopIteration):
        keep(numbers()).asend(None).send(None)


def a_task_that_is_pending():
    loop = keep(asyncio.new_event_loop())
    loop.create_task(asyncio.Event().wait())
    loop.run_until_complete(asyncio.sleep(0))


def a_future_with_an_error_that_nobody_has_seen():
    loop = asyncio.new_event_loop()
    keep(loop.create_future()).set_exception(ValueError("unseen"))
    loop.close()


def an_exit_function():
    atexit.register(note, "exit function")


def an_exit_function_that_fails():
    atexit.register(note, "before")
    atexit.register(lambda: 1 // 0)


def an_exit_function_that_opens_a_file():
    atexit.register(a_text_file)


def a_finalizer():
    weakref.finalize(keep(type("Thing", (), {})()), note, "finalizer")


def a_weak_reference_with_a_callback():
    thing = keep(type("Thing", (), {})())
    KEPT["reference"] = weakref.ref(thing, lambda _: note("gone"))


def a_weak_reference_with_a_partial_callback():
    thing = keep(type("Thing", (), {})())
    KEPT["reference"] = weakref.ref(thing, functools.partial(lambda text, _: note(text), "gone"))


def a_thread():
    def work():
        threading.Event().wait(0.05)
        note("thread")

    threading.Thread(target=work).start()


def an_executor():
    executor = keep(concurrent.futures.ThreadPoolExecutor(1))
    executor.submit(lambda: (threading.Event().wait(0.05), note("executor")))


def a_process():
    work = multiprocessing.get_context("fork").Process(target=note, args=("process",))
    work.start()


def a_pipe_to_a_program():
    command = ["sh", "-c", "cat > file"]
    program = keep(subprocess.Popen(command, stdin=subprocess.PIPE, text=True))
    program.stdin.write("x")


def a_database_with_an_open_transaction():
    database = keep(sqlite3.connect("database"))
    database.execute("create table t (a)")
    database.commit()
    database.execute("insert into t values (1)")


def a_database_with_a_log():
    database = keep(sqlite3.connect("database"))
    database.execute("pragma journal_mode = wal")
    database.execute("create table t (a)")


def a_database_of_another_thread():
    made = threading.Thread(target=a_database_with_a_log)
    made.start()
    made.join()


def a_socket():
    one, other = socket.socketpair()
    keep(one).sendall(b"x")
    keep(other)


def a_file_over_a_socket():
    one, other = socket.socketpair()
    if os.fork() == 0:
        one.close()
        Path("received").write_bytes(other.recv(10))
        os._exit(0)
    other.close()
    keep(one.makefile("w")).write("x")
    one.close()


def a_map_of_a_file():
    Path("file").write_bytes(b"x" * 10)
    with open("file", "r+b") as file:
        keep(mmap.mmap(file.fileno(), 10))[0] = ord("y")


def printed_without_a_newline():
    sys.stdout.write("no newline")


def printed_through_another_stream():
    sys.stdout = io.TextIOWrapper(open("file", "wb"), write_through=False)
    print("x")


def a_stream_of_ones_own():
    class Tee:
        def __init__(self, stream):
            self.stream = stream
            self.held = []

        def write(self, text):
            self.held.append(text)

        def flush(self):
            self.stream.write("".join(self.held))
            self.held.clear()

    sys.stdout = Tee(sys.stdout)
    print("x")


def a_closed_stdout():
    sys.stdout.close()


def no_stdout():
    sys.stdout = None
    a_text_file()


EFFECTS = [
    each
    for name, each in list(globals().items())
    if type(each).__name__ == "function" and name not in ("note", "keep")
]


def let_happen(effect, folder):
    place = Path(folder, effect.__name__)
    place.mkdir(parents=True)
    os.chdir(place)
    for number, name in enumerate(("stdout", "stderr"), start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    effect()


def in_forked_processes(folder):
    """Return whether this is a forked process in which an effect has happened."""
    for effect in EFFECTS:
        pid = os.fork()
        if pid == 0:
            let_happen(effect, folder)
            return True
        _, status = os.waitpid(pid, 0)
        Path(folder, effect.__name__, "status").write_text(str(status))
    return False


if __name__ == "__main__":
    if sys.argv[1] == "as a task":  # this file was executed in a process that was forked before
        let_happen(globals()[sys.argv[3]], sys.argv[2])
    elif in_forked_processes(sys.argv[2]):
        if "ahead" in sys.argv[1]:
            ending.look_ahead()
        if "raised" in sys.argv[1]:
            raise ending.Leave(3)
        if sys.argv[1] == "at once":
            os._exit(3)
        sys.exit(3)
