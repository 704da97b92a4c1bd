"""The routes by which the web UI changes something beside runs that begin: tags, deletion, tokens;
and what the server says of itself: what it is, what `aflow doctor` finds, what `aflow gc` would
delete."""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

from aflow._core import ids
from aflow._core.settings import Settings
from aflow._core.version import __version__
from aflow.errors import AflowError, InvalidInput, NotFound
from aflow.executors.queue_status import (
    HEARTBEAT,
    SILENT,
    chosen,
    messages_of,
    plain,
    pool_status,
    pools_of,
    worker_as_json,
    workers_of,
)
from aflow.interop.keys import FIRST_KEY, READ_ONLY
from aflow.metadata import tokens
from aflow.metadata.base import WORKER_EXPIRY, documents_of
from aflow.runs import gc
from aflow.scheduler.states import TERMINAL_RUN_STATES
from aflow.server.auth import attended, caller_of, refusal
from aflow.server.bodies import json_of
from aflow.server.run_requests import fields_of, order_of, resume_order

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.metadata.base import Documents, MetadataStore, RunRecord, WorkerRegistry
    from aflow.queue.base import Queue
    from aflow.server.runs import Runs
    from aflow.server.views import Views
    from aflow.storage.base import ObjectStore

_MOST_DELETED = 200  # runs of one plan
_SHOWN = 200  # messages
_MOST_TAGS = 50  # of one request
_CHECK = 120.0  # seconds that `aflow doctor` may take
_NAMED = 200  # runs that a plan names
_LONGEST_LIFE = 10 * 365 * 86400  # seconds


class ActionRoutes:
    """Answers what pages ask to be changed."""

    def __init__(
        self,
        metadata: MetadataStore,
        views: Views,
        runs: Runs,
        clock: Clock,
        store: ObjectStore,
        queue: Callable[[], Queue] | None = None,
    ) -> None:
        self._queue = queue
        self._views = views
        self._metadata = metadata
        self._runs = runs
        self._clock = clock
        self._store = store
        self._checking = asyncio.Lock()  # one check, one plan at a time: each reads a lot

    async def show_server(self, _: web.Request) -> web.StreamResponse:
        """What the server is: version, where data and metadata are, what goes on."""
        return web.json_response(
            {
                "version": __version__,
                "python": platform.python_version(),
                "metadata": self._metadata.url,
                "storage": self._store.url,
                "previews": Settings.load(self._runs.environment).previews,
                "runs_here": len(self._runs.going_on()),
            }
        )

    async def check_settings(self, _: web.Request) -> web.StreamResponse:
        """What `aflow doctor` finds with the settings that the server gives its runs: this machine,
        datastore, metadata, queue, and what is set of AWS."""
        async with self._checking:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "aflow", "doctor", "--json",
                env=self._runs.environment, stdin=DEVNULL, stdout=PIPE, stderr=PIPE,
            )  # fmt: skip
            try:
                async with asyncio.timeout(_CHECK):
                    out, err = await process.communicate()
            except TimeoutError as error:
                raise AflowError(
                    f"aflow doctor did not end within {_CHECK:.0f} seconds."
                ) from error
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        try:
            found = json.loads(out)
        except ValueError as error:
            said = err.decode("utf-8", "replace").strip()[-500:]
            raise AflowError(f"aflow doctor failed: {said or 'it printed nothing.'}") from error
        return web.json_response({"findings": found})

    async def plan_collection(self, request: web.Request) -> web.StreamResponse:
        """What `aflow gc` would delete: runs that ended more than `older_than` seconds ago, or did
        not succeed (`failed`), of a `flow`, but for the `keep` newest of each; and what nothing
        refers to any more. Nothing is deleted."""
        fields = fields_of(await json_of(request))
        wanted = _wanted(fields, self._clock.now())

        def plan() -> gc.Removed:
            return gc.collect(self._metadata, self._store, wanted, self._clock.now(), dry_run=True)

        async with self._checking:
            removed = await attended(request, asyncio.to_thread(plan))
        runs = [f"{run.flow}/{run.run}" for run in removed.runs]
        return web.json_response(
            {
                "runs": runs[:_NAMED],
                "count": len(runs),
                "objects": removed.objects,
                "size": removed.size,
                "young": removed.young,
            }
        )

    # ------------------------------------------------------------ runs

    async def tag_run(self, request: web.Request) -> web.StreamResponse:
        """Remove (`remove`), then add (`add`) tags of a run; the tags that it has now."""
        fields = fields_of(await json_of(request))
        add, remove = _texts(fields, "add"), _texts(fields, "remove")
        run = await self._run(request)
        found = await asyncio.to_thread(self._metadata.change_tags, run.key, add, remove)
        return web.json_response({"tags": list(found)})

    async def resume_run(self, request: web.Request) -> web.StreamResponse:
        """Resume a run that has ended with the code that it had: from where it failed, or from a
        `step` on; with other values for some `parameters`, which the steps that run see. Answers
        with the new run."""
        fields = fields_of(await json_of(request))
        unknown = sorted(fields.keys() - {"step", "parameters", "max_workers"})
        if unknown:
            raise InvalidInput(f"There is no field {unknown[0][:80]!r} of a run that is resumed.")
        step = fields.get("step")
        if step is not None and not isinstance(step, str):
            raise InvalidInput("'step' has to be the name of a step.")
        run = await self._run(request)
        code = _code_of(run)
        wanted = resume_order(
            code["key"], code["script"], run.flow, run.run, step,
            fields.get("parameters"), fields.get("max_workers"),
        )  # fmt: skip
        pathspec = await asyncio.shield(self._runs.begin(wanted))
        return web.json_response({"run": pathspec}, status=201)

    async def rerun(self, request: web.Request) -> web.StreamResponse:
        """Run the code of a run again, from the start: with its parameters, but for those in
        `parameters`, and with `tags` and `max_workers`. Answers with the new run."""
        fields = fields_of(await json_of(request))
        given = fields.get("parameters", {})
        if not isinstance(given, dict):
            raise InvalidInput("'parameters' has to be an object: values by name.")
        run = await self._run(request)
        code = _code_of(run)
        parameters = await asyncio.to_thread(self._views.parameters_again, run, given)
        named = {"package": code["key"], "script": code["script"], "flow": run.flow}
        wanted = order_of({**fields, **named, "parameters": parameters})
        pathspec = await asyncio.shield(self._runs.begin(wanted))
        return web.json_response({"run": pathspec}, status=201)

    async def plan_deletion(self, request: web.Request) -> web.StreamResponse:
        """Which of these runs (`runs`, pathspecs with commas between them) can be deleted: those
        that have ended, and that no run which goes on has resumed."""
        specs = request.query.get("runs", "").split(",")
        if not 1 <= len(specs) <= _MOST_DELETED:
            raise InvalidInput(f"`runs` names 1 to {_MOST_DELETED} runs, as Flow/1,Flow/2.")
        found = [ids.Pathspec.parse(each) for each in specs]

        def plan() -> list[str]:
            records = [self._metadata.run(s.flow, s.run or "") for s in found]
            return [
                f"{run.flow}/{run.run}"
                for run in records
                if run is not None and self._why_not(run) is None
            ]

        return web.json_response({"runs": await asyncio.to_thread(plan)})

    async def delete_run(self, request: web.Request) -> web.StreamResponse:
        """Delete the records of a run that has ended. What it has left in the datastore goes with
        the next `aflow gc`, but for what other runs share."""
        run = await self._run(request)

        def delete() -> str | None:
            why_not = self._why_not(run)
            if why_not is None:
                self._metadata.delete_run(run.key)
            return why_not

        why_not = await asyncio.to_thread(delete)
        if why_not is not None:
            return refusal(409, why_not)
        return web.json_response({"run": f"{run.flow}/{run.run}"})

    def _why_not(self, run: RunRecord) -> str | None:
        """Why a run cannot be deleted; None where it can."""
        if run.key >= FIRST_KEY:
            return READ_ONLY
        if run.state not in TERMINAL_RUN_STATES:
            return f"{run.flow}/{run.run} cannot be deleted: it goes on. Cancel it first."
        alive = [state for state in type(run.state) if state not in TERMINAL_RUN_STATES]
        for each in self._metadata.runs(run.flow, states=alive):
            if each.origin_run == run.run:
                return (
                    f"{run.flow}/{run.run} cannot be deleted: {each.run} resumes it, and goes on."
                )
        return None

    async def _run(self, request: web.Request) -> RunRecord:
        flow = str(ids.flow_name(request.match_info["flow"]))
        name = str(ids.run_id(request.match_info["run"]))
        record = await asyncio.to_thread(self._metadata.run, flow, name)
        if record is None:
            raise NotFound(f"There is no run {flow}/{name}.")
        return record

    # ------------------------------------------------------------ the queue

    async def show_queue(self, _: web.Request) -> web.StreamResponse:
        """The queue of this server: its pools, the workers that have announced themselves, and the
        messages that are buried."""
        if self._queue is None:
            return web.json_response({"url": None, "pools": [], "workers": [], "buried": []})
        async with self._opened() as queue:
            found = await workers_of(queue)
            names = await pools_of(queue, (), found)
            now = self._clock.now()
            pools = [await pool_status(queue, each, found, now) for each in names]
            buried = [m for each in names for m in await messages_of(queue, each, False, _SHOWN)]
            workers = [
                {
                    "name": plain(name),
                    "pools": [plain(pool) for pool in each.pools],
                    "slots": each.slots,
                    "held": len(each.held),
                    "declined": sorted({plain(why) for why in each.declined.values()}),
                }
                for name, each in sorted((found or {}).items())
            ]
            url = queue.url
        messages = [message.as_json() for message in buried]
        return web.json_response(
            {"url": url, "pools": pools, "workers": workers, "buried": messages}
        )

    async def release_messages(self, request: web.Request) -> web.StreamResponse:
        """Give buried messages (`ids`) to workers again; how many were."""
        ids_ = await self._ids(request)
        async with self._opened() as queue:
            topics = await chosen(queue, (), ids_, False)
            count = sum([await queue.redrive(topic, names) for topic, names in topics.items()])
        return web.json_response({"count": count})

    async def delete_messages(self, request: web.Request) -> web.StreamResponse:
        """Forget messages (`ids`) that are buried, or wait. The runs of their tasks notice."""
        ids_ = await self._ids(request)
        async with self._opened() as queue:
            for topic, names in (await chosen(queue, (), ids_, False)).items():
                await queue.remove(topic, names)
        return web.json_response({"count": len(ids_)})

    async def _ids(self, request: web.Request) -> list[str]:
        found = fields_of(await json_of(request)).get("ids")
        if not isinstance(found, list) or not 1 <= len(found) <= _SHOWN:
            raise InvalidInput(f"'ids' has to be a list of 1 to {_SHOWN} ids of messages.")
        if not all(isinstance(each, str) and 0 < len(each) <= 300 for each in found):
            raise InvalidInput("An id of a message is a text of at most 300 characters.")
        return found

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Queue]:
        if self._queue is None:
            raise InvalidInput("This server has no queue: start it with --queue URL.")
        queue = await asyncio.to_thread(self._queue)
        try:
            yield queue
        finally:
            await queue.close()

    # ------------------------------------------------------------ workers

    async def list_workers(self, _: web.Request) -> web.StreamResponse:
        """The workers that have registered in the metadata, by name: state, host, pools, slots,
        what each runs, version, last heartbeat. One is silent after `silent_after` seconds without
        a heartbeat, and left out after `expires_after`."""
        found = await asyncio.to_thread(self._registry.workers)
        now = self._clock.now()
        return web.json_response(
            {
                "workers": [worker_as_json(each, now) for each in found],
                "heartbeat": HEARTBEAT,
                "silent_after": SILENT,
                "expires_after": WORKER_EXPIRY,
            }
        )

    async def show_worker(self, request: web.Request) -> web.StreamResponse:
        """A worker that has registered."""
        return web.json_response(await asyncio.to_thread(self._worker, request))

    async def drain_worker(self, request: web.Request) -> web.StreamResponse:
        """Have a worker take no more tasks, and end when what it runs has ended; it hears of that
        with its next heartbeat."""
        caller = caller_of(request)
        who = "Somebody" if caller is None or not caller.name else caller.name

        def drain() -> dict[str, Any]:
            registry, name = self._registry, request.match_info["name"]
            registry.drain_worker(name, f"{who} has asked for it over HTTP.")
            return self._worker(request)

        return web.json_response(await asyncio.to_thread(drain), status=202)

    def _worker(self, request: web.Request) -> dict[str, Any]:
        name = request.match_info["name"]
        found = next((each for each in self._registry.workers() if each.name == name), None)
        if found is None:
            raise NotFound(f"There is no worker {name[:100]!r}, or not any more.")
        return worker_as_json(found, self._clock.now())

    @property
    def _registry(self) -> WorkerRegistry:
        kept: Any = self._metadata
        if not hasattr(kept, "beat_worker"):
            raise InvalidInput(f"Workers do not register in {self._metadata.url}.")
        registry: WorkerRegistry = kept
        return registry

    # ------------------------------------------------------------ tokens

    def _documents(self) -> Documents:
        found = documents_of(self._metadata)
        if found is None:
            raise InvalidInput(
                "Tokens are kept in the metadata, and these are those of another service: make "
                "tokens there."
            )
        return found

    async def list_tokens(self, _: web.Request) -> web.StreamResponse:
        """All tokens, without what they are."""
        found = await asyncio.to_thread(tokens.tokens, self._documents())
        rows = [
            {
                "name": each.name,
                "scope": each.scope,
                "created_at": each.created_at,
                "expires_at": each.expires_at,
            }
            for each in found
        ]
        return web.json_response({"tokens": rows})

    async def add_token(self, request: web.Request) -> web.StreamResponse:
        """Make a token (`name`, `scope`, `seconds` that it lasts); it is in this answer alone."""
        fields = fields_of(await json_of(request))
        name, scope = fields.get("name"), fields.get("scope", "read")
        seconds = fields.get("seconds")
        if not isinstance(name, str):
            raise InvalidInput("A token needs a name.")
        if scope not in tokens.SCOPES:
            raise InvalidInput(f"'scope' has to be one of {', '.join(tokens.SCOPES)}.")
        if seconds is not None and (
            type(seconds) not in (int, float) or not 0 < seconds <= _LONGEST_LIFE
        ):
            raise InvalidInput("'seconds' has to be a positive number, of at most ten years.")
        caller = caller_of(request)
        if caller is not None and caller.token is not None and caller.token.expires_at is not None:
            # A token does not outlive the one that made it.
            left = max(1.0, caller.token.expires_at - self._clock.now())
            seconds = left if seconds is None else min(seconds, left)
        made = await asyncio.to_thread(
            tokens.create, self._documents(), name, scope, self._clock.now(), seconds
        )
        return web.json_response({"token": made}, status=201)

    async def revoke_token(self, request: web.Request) -> web.StreamResponse:
        """Revoke a token, at once."""
        name = request.match_info["name"]
        await asyncio.to_thread(tokens.revoke, self._documents(), name)
        return web.json_response({"token": name})


def _wanted(fields: dict[str, Any], now: float) -> gc.RunsToDelete:
    older, keep = fields.get("older_than"), fields.get("keep", 0)
    failed, flow = fields.get("failed", False), fields.get("flow")
    if older is not None and (type(older) not in (int, float) or not 0 <= older <= _LONGEST_LIFE):
        raise InvalidInput("'older_than' has to be a number of seconds, of at most ten years.")
    if type(keep) is not int or keep < 0:
        raise InvalidInput("'keep' has to be a whole number from 0 on.")
    if not isinstance(failed, bool):
        raise InvalidInput("'failed' has to be true or false.")
    return gc.RunsToDelete(
        flow=None if flow is None else str(ids.flow_name(flow)),
        before=None if older is None else now - older,
        failed=failed,
        keep=keep,
    )


def _code_of(run: RunRecord) -> dict[str, str]:
    code = run.settings.get("code") or {}
    if not isinstance(code.get("key"), str) or not isinstance(code.get("script"), str):
        raise InvalidInput(
            f"The code of {run.flow}/{run.run} was not kept, so it cannot be run again here: "
            "submit the flow with its file."
        )
    return {"key": code["key"], "script": code["script"]}


def _texts(fields: dict[str, Any], name: str) -> list[str]:
    found = fields.get(name, [])
    if not isinstance(found, list) or len(found) > _MOST_TAGS:
        raise InvalidInput(f"{name!r} has to be a list of at most {_MOST_TAGS} tags.")
    return [str(ids.tag(each)) for each in found]
