import socket
import time

from aflow import FlowSpec, batch, current, parallel, retry, step

PORT = 21_717


class Ganged(FlowSpec):
    """Members that talk to member 0; one of them has to restart."""

    @step
    def start(self):
        self.next(self.meet, num_parallel=3)

    @batch
    @parallel
    @retry(times=1, minutes_between_retries=0)
    @step
    def meet(self):
        gang = current.parallel
        self.place = gang.node_index
        if gang.node_index == 0:
            with socket.create_server(("", PORT)) as server:
                self.heard = sorted(self.receive(server) for _ in range(2))
        else:
            if gang.node_index == 2 and current.retry_count == 0:
                raise ValueError("not yet")
            with self.line_to(gang.main_ip) as line:
                line.sendall(str(gang.node_index).encode())
        self.next(self.join)

    def line_to(self, address):
        while True:
            try:
                return socket.create_connection((address, PORT), timeout=60)
            except ConnectionRefusedError:
                time.sleep(0.1)

    def receive(self, server):
        line, _ = server.accept()
        with line:
            return int(line.recv(10))

    @step
    def join(self, inputs):
        self.heard = next(each.heard for each in inputs if each.place == 0)
        self.places = sorted(each.place for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Ganged()
