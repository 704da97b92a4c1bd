"""Runs flows on Metaflow for a test session. Usage: forked.py DESCRIPTOR, the one of a socket.

Each run and each of its tasks is a fork of this process: importing Metaflow is nine tenths of the
cost of such a process, and is done here once. Everything else is unmodified Metaflow.

A request is a packet with JSON and four descriptors: the stdin, stdout and stderr of the program,
and one to which the server writes its process id and then its return code, one per line.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
from subprocess import PIPE
from types import SimpleNamespace

# Not its command line: that is made for the flow which imports it.
import metaflow.runtime

LONGEST = 1 << 20


def serve(asked):
    """Fork a process for each request until the socket is closed. Returns in these processes, with
    the program to run."""
    while True:
        sent, descriptors, _, _ = socket.recv_fds(asked, LONGEST, 4)
        if not sent:
            os._exit(0)
        # The parent writes the program's exit status: a run waits for several programs at a time.
        parent = os.fork()
        if parent == 0:
            asked.close()
            pid = os.fork()
            if pid == 0:
                for number, descriptor in enumerate(descriptors[:3]):
                    os.dup2(descriptor, number)
                for descriptor in descriptors:
                    os.close(descriptor)
                return json.loads(sent)
            for descriptor in descriptors[:3]:
                os.close(descriptor)
            os.write(descriptors[3], b"%d\n" % pid)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(descriptors[3], b"%d\n" % status)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(-1, os.WNOHANG)  # processes that have exited in between


class Task:
    """The part of subprocess.Popen that Metaflow uses, for a process that the peer of the socket
    forks."""

    asked: socket.socket

    def __init__(self, command, env, **_):
        pipes = [os.pipe() for _ in range(4)]
        (input_read, stdin), (stdout, output), (stderr, errors), (status, ended) = pipes
        given = [input_read, output, errors, ended]
        request = {
            "arguments": command[1:],
            "folder": os.getcwd(),
            "environment": env,
            "run": False,
        }
        socket.send_fds(self.asked, [json.dumps(request).encode()], given)
        for each in given:
            os.close(each)
        self.stdin = os.fdopen(stdin, "wb")
        self.stdout, self.stderr = os.fdopen(stdout, "rb"), os.fdopen(stderr, "rb")
        self._status = os.fdopen(status, "rb", buffering=0)
        self.pid = int(self._status.readline())
        self.returncode = None

    def poll(self):
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self):
        if self.returncode is None:
            self.returncode = int(self._status.readline())
        return self.returncode

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def terminate(self):
        os.kill(self.pid, signal.SIGTERM)


def run(asked):
    """Serve, and be the program of a request."""
    wanted = serve(asked)
    if wanted["run"]:
        # What forks its tasks is forked before anything of the flow is in this process.
        Task.asked, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            Task.asked.close()
            run(other)
            return
        other.close()
        metaflow.runtime.subprocess = SimpleNamespace(Popen=Task, PIPE=PIPE)
    os.chdir(wanted["folder"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    sys.argv[:] = wanted["arguments"]
    sys.path[0] = wanted["folder"]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)  # a program may exit immediately
    # Metaflow has put tuples that it pickles into the program that imported it.
    tuples = {n: v for n, v in globals().items() if isinstance(v, type) and issubclass(v, tuple)}
    runpy.run_path(sys.argv[0], tuples, run_name="__main__")


if __name__ == "__main__":
    gc.freeze()  # otherwise each process would copy pages that it only reads
    run(socket.socket(fileno=int(sys.argv[1])))
