"""A hundred slow answers in about a second: steps that are coroutines.

    python async_fetch.py run --max-workers 100

Most of the time of such a task is waiting. So `async def` steps run side by side on one event
loop, in one process, and a hundred of them are a hundred coroutines, not processes. The flow
starts a small web server of its own, so that it works without a network. Look at the result with

    from aflow import Flow

    data = Flow("AsyncFetchFlow").latest_successful_run.data
    print(data.answers[:3], data.slowest)
"""

import asyncio

from aflow import FlowSpec, Parameter, step


async def answer(reader, writer):
    """A web page that takes its time: half a second."""
    request = await reader.readline()
    await asyncio.sleep(0.5)
    body = b"you asked for " + request.split()[1]
    writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()


async def fetch(port, path):
    """The body of a page of the web server on this machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET %s HTTP/1.0\r\n\r\n" % path.encode())
    await writer.drain()
    page = await reader.read()
    writer.close()
    return page.partition(b"\r\n\r\n")[2].decode()


class AsyncFetchFlow(FlowSpec):
    """Ask for many pages at once."""

    pages = Parameter("pages", help="How many pages to ask for", default=100)

    @step
    def start(self):
        self.paths = [f"/page/{number}" for number in range(self.pages)]
        self.next(self.get, foreach="paths")

    @step
    async def get(self):
        # Each task brings its own server, on a port of its own: tasks share nothing.
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            loop = asyncio.get_running_loop()
            begun = loop.time()
            self.text = await fetch(port, self.input)
            self.seconds = loop.time() - begun
        self.next(self.collect)

    @step
    def collect(self, inputs):
        # Inputs come in the order of the list, whichever task was done first.
        self.answers = [each.text for each in inputs]
        self.slowest = max(each.seconds for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        print(f"{len(self.answers)} answers, the slowest after {self.slowest:.2f} s")


if __name__ == "__main__":
    AsyncFetchFlow()
