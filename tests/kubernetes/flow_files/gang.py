import socket
import sys
import time

from aflow import FlowSpec, Parameter, current, kubernetes, parallel, retry, step

PORT = 21_737


class Gang(FlowSpec):
    """Two members that talk to each other, each in its own pod. With losses, their first attempts
    wait to be lost."""

    lost = Parameter("lost", default=False)

    @step
    def start(self):
        self.next(self.meet, num_parallel=2)

    @kubernetes(
        namespace="default",
        executable=sys.executable,
        persistent_volume_claims={"data": "/"},
        port=PORT,
    )
    @parallel
    @retry(times=0)
    @step
    def meet(self):
        if self.lost and current.retry_count == 0:
            print("working on", flush=True)
            time.sleep(600)
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
