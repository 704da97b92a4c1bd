import socket
import time

from aflow import FlowSpec, current, parallel, slurm, step

PORT = 21_727


class Gang(FlowSpec):
    """Two nodes that talk to each other, each in a job step of its own."""

    @step
    def start(self):
        self.next(self.meet, num_parallel=2)

    @slurm
    @parallel
    @step
    def meet(self):
        gang = current.parallel
        self.place = gang.node_index
        self.heard = ""
        if gang.node_index == 0:
            with socket.create_server(("", PORT)) as server, server.accept()[0] as line:
                self.heard = line.recv(10).decode()
        else:
            with self.line_to(gang.main_ip) as line:
                line.sendall(b"hello")
        self.next(self.join)

    def line_to(self, address):
        while True:
            try:
                return socket.create_connection((address, PORT), timeout=60)
            except ConnectionRefusedError:
                time.sleep(0.1)

    @step
    def join(self, inputs):
        self.reported = [(each.place, each.heard) for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Gang()
