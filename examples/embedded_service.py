"""A web service that runs flows on request, in its own process: aflow embedded in aiohttp.

    pip install 'aflow-runtime[server]'
    python embedded_service.py --port 8080

    curl -d '{"samples": 2000000}' localhost:8080/runs              {"run": "1767..."}
    curl localhost:8080/runs/1767...                                {"state": ..., "pi": 3.14...}
    curl -N localhost:8080/runs/1767.../events                      what happens, while it happens
    curl -X DELETE localhost:8080/runs/1767...                      stop it

At most two runs go on at once: a third request is answered with 503, and the caller tries again.
The runs are those of the folder: `aflow runs`, `python embedded_service.py` and the client see the
same ones. Ctrl-C is aiohttp's; runs that go on are stopped when it leaves.
"""

import argparse
import asyncio
import json
import random
from contextlib import aclosing
from pathlib import Path

from aiohttp import web

import aflow
from aflow import FlowSpec, Parameter, step

ROOT = Path(".aflow").resolve()  # where the command line and the client look, too
COORDINATOR = web.AppKey("coordinator", aflow.Coordinator)
PARTS = 4


class PiFlow(FlowSpec):
    """How many of many random points of a square are in the circle."""

    samples = Parameter("samples", help="How many points", default=100_000)

    @step
    def start(self):
        self.seeds = list(range(PARTS))
        self.next(self.throw, foreach="seeds")

    @step
    def throw(self):
        points = random.Random(self.input)
        count = self.samples // PARTS
        self.inside = sum(points.random() ** 2 + points.random() ** 2 < 1 for _ in range(count))
        self.next(self.join)

    @step
    def join(self, inputs):
        self.pi = 4 * sum(each.inside for each in inputs) / (self.samples // PARTS * PARTS)
        self.next(self.end)

    @step
    def end(self):
        print(f"pi is about {self.pi}")


routes = web.RouteTableDef()


@routes.post("/runs")
async def start(request):
    """Begin a run; the body is JSON with the parameter."""
    try:
        asked = await request.json()
        run = await request.app[COORDINATOR].start(PiFlow, samples=asked["samples"])
    except aflow.errors.CoordinatorFull as error:
        raise web.HTTPServiceUnavailable(text=f"{error}\n", headers={"Retry-After": "5"}) from error
    except aflow.errors.InvalidInput as error:
        raise web.HTTPBadRequest(text=f"{error}\n") from error
    except (ValueError, KeyError, TypeError) as error:
        raise web.HTTPBadRequest(text='The body is JSON, as {"samples": 1000}.\n') from error
    return web.json_response({"run": run.id}, status=202)


@routes.get("/runs/{run}")
async def look(request):
    """How far a run is, and what came out of it."""
    return web.json_response(await asyncio.to_thread(result_of, request.match_info["run"]))


def result_of(run_id):
    """What the client says of a run. It reads files, so it works in a thread."""
    aflow.namespace(None)
    try:
        run = aflow.Run(f"PiFlow/{run_id}")
    except (aflow.errors.NotFound, aflow.errors.InvalidName) as error:
        raise web.HTTPNotFound(text=f"{error}\n") from error
    return {"state": run.status, "pi": run.data.pi if run.successful else None}


@routes.get("/runs/{run}/events")
async def listen(request):
    """What happens in a run, as server-sent events, until it ends or the listener leaves."""
    run = going_on(request)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    async with aclosing(run.events()) as events:
        async for event in events:
            data = json.dumps(event._asdict(), default=str)
            await response.write(f"event: {type(event).__name__}\ndata: {data}\n\n".encode())
    return response


@routes.delete("/runs/{run}")
async def stop(request):
    """Stop a run, and answer when it has stopped."""
    ended = await going_on(request).cancel("Somebody asked for it.")
    return web.json_response({"state": ended.state.value, "reason": ended.reason})


def going_on(request):
    """The run of the address, as long as it goes on."""
    for run in request.app[COORDINATOR].runs:
        if run.id == request.match_info["run"]:
            return run
    raise web.HTTPNotFound(text="No such run is going on.\n")


async def coordinate(app):
    """The coordinator lives as long as the application."""
    async with aflow.Coordinator(
        storage=ROOT.as_uri(),
        metadata=f"sqlite:///{ROOT}/metadata.db",
        max_workers=2,
        max_runs=2,
        when_full="refuse",
    ) as app[COORDINATOR]:
        yield


def main():
    parser = argparse.ArgumentParser(description="Runs PiFlow on request.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    given = parser.parse_args()
    app = web.Application()
    app.add_routes(routes)
    app.cleanup_ctx.append(coordinate)
    web.run_app(app, host=given.host, port=given.port)


if __name__ == "__main__":
    main()
