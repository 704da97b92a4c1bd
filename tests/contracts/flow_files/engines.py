import os
import socket
import time
from pathlib import Path

from aflow import FlowSpec, Parameter, catch, current, parallel, resources, retry, step

# By which a step learns which GPUs are its own: as aflow, the agents of AWS and of Kubernetes, and
# Slurm say it.
DEVICES = "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "SLURM_JOB_GPUS"


class Engines(FlowSpec):
    """A flow for every engine: a foreach that loses a node, a gang, a foreach in a foreach with a
    retry, a loop, a step that always fails, one that requires a GPU, and one that fails until the
    run is resumed. Files in a folder record what has run and control the faults."""

    folder = Parameter("folder")

    @step
    def start(self):
        print("folder", self.folder)
        self.next(self.number, self.wide, self.loop)

    # ------------------------------------------------------------ a node that is lost, and a gang

    @step
    def number(self):
        self.numbers = [0, 1, 2]
        self.next(self.square, foreach="numbers")

    @retry(times=0)
    @step
    def square(self):
        self.place("began", str(self.input)).write_text(
            "\n".join([str(os.getpid()), *(f"{key}={each}" for key, each in os.environ.items())])
        )
        while not self.place("lost").exists():
            if self.input == 1 and self.place("away").exists():
                print("the machine goes away now", flush=True)
            time.sleep(0.05)
        self.squared = self.input * self.input
        self.next(self.squares)

    @step
    def squares(self, inputs):
        self.total = [each.squared for each in inputs]
        self.next(self.meet, num_parallel=2)

    @parallel
    @step
    def meet(self):
        gang = current.parallel
        self.member = gang.node_index, gang.num_nodes
        if gang.node_index == 0:
            with socket.create_server(("", 0)) as server:
                port = self.place("port")
                port.with_suffix(".new").write_text(str(server.getsockname()[1]))
                port.with_suffix(".new").rename(port)
                line, _ = server.accept()
                with line:
                    self.heard = line.recv(10).decode()
        else:
            while not self.place("port").exists():
                time.sleep(0.05)
            address = gang.main_ip, int(self.place("port").read_text())
            self.place("address").write_text(gang.main_ip)
            with socket.create_connection(address, timeout=60) as line:
                line.sendall(b"hello")
        self.next(self.met)

    @step
    def met(self, inputs):
        self.members = [each.member for each in inputs]
        self.heard = inputs[0].heard
        self.merge_artifacts(inputs, include=["total"])
        self.next(self.join)

    # ------------------------------------------------------------ shapes

    @step
    def wide(self):
        self.rows = [1, 2]
        self.next(self.row, foreach="rows")

    @step
    def row(self):
        self.columns = ["a", "b"][: self.input]
        self.next(self.cell, foreach="columns")

    # The attempt that fails may be the second one: the first may have run on the node that is lost.
    @retry(times=3, minutes_between_retries=0)
    @step
    def cell(self):
        if self.input == "b" and not self.place("failed").exists():
            self.place("failed").touch()
            raise ValueError("not yet")
        self.value = f"{self.input}{len(self.foreach_stack())}"
        self.next(self.across)

    @step
    def across(self, inputs):
        self.cells = [each.value for each in inputs]
        self.next(self.down)

    @step
    def down(self, inputs):
        self.table = [each.cells for each in inputs]
        self.next(self.join)

    @step
    def loop(self):
        self.count = getattr(self, "count", 0) + 1
        self.which = "again" if self.count < 3 else "done"
        self.next({"again": self.loop, "done": self.out}, condition="which")

    @catch(var="problem")
    @step
    def out(self):
        if self.count:
            raise RuntimeError("for good")
        self.next(self.join)

    # ------------------------------------------------------------ a GPU, and a resume

    @step
    def join(self, inputs):
        self.found = inputs.met.total, inputs.met.members, inputs.met.heard, inputs.down.table
        self.count = inputs.out.count
        self.problem = str(inputs.out.problem)
        self.next(self.train)

    @resources(gpu=1, cpu=1, memory=500)
    @step
    def train(self):
        named = next(filter(None, map(os.environ.get, DEVICES)), "")
        self.gpus = len([each for each in named.split(",") if each])
        self.next(self.mend)

    @step
    def mend(self):
        if not self.place("mended").exists():
            raise ValueError("not mended")
        self.next(self.end)

    @step
    def end(self):
        print("found", self.found, self.count, self.gpus)

    def place(self, *names):
        return Path(self.folder, "-".join(names))


if __name__ == "__main__":
    Engines()
