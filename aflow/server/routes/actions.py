"""The handlers of the routes that change runs, tokens, messages and workers, of dry runs, and of
the server's own state: its configuration, the result of `aflow doctor` and what `aflow gc` would
delete."""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from aiohttp import web

from aflow._core import ids
from aflow._core.clock import LATEST
from aflow._core.settings import Settings
from aflow._core.version import __version__
from aflow.errors import (
    AflowError,
    CoordinatorClosed,
    CoordinatorFull,
    InvalidInput,
    MetadataUnavailable,
    NotFound,
    StoreUnavailable,
    VersionConflict,
)
from aflow.executors.factory import keep_from_workers
from aflow.executors.protocol import DEFAULT_POOL, tasks_topic
from aflow.executors.queue_status import (
    HEARTBEAT,
    SILENT,
    chosen,
    messages_of,
    plain,
    pool_status,
    pools_of,
    rates_of,
    worker_as_json,
    workers_of,
)
from aflow.metadata import tokens
from aflow.metadata.base import FIRST_KEY, READ_ONLY, WORKER_EXPIRY, documents_of, registry_of
from aflow.queue.base import check_topic
from aflow.runs import gc
from aflow.runs.liveness import request_end
from aflow.scheduler.states import LIVE_RUN_STATES, TERMINAL_RUN_STATES, RunState
from aflow.server.auth import attended, caller_of, refusal
from aflow.server.filters import RunFilter, parse
from aflow.server.request_bodies import json_of, number_of
from aflow.server.routes import schemas
from aflow.server.routes.views import run_of
from aflow.server.run_requests import RunRequest, check_names, fields_of, order_of, resume_order
from aflow.server.views import cursor_after, position

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.metadata.base import Documents, MetadataStore, RunRecord, WorkerRegistry
    from aflow.queue.base import Queue
    from aflow.server.runs import Runs
    from aflow.server.views import Views
    from aflow.storage.base import ObjectStore

T = TypeVar("T")

_BATCH = 200  # runs that one request changes
_BATCH_LOOKS = 2000  # runs that one dry run reads
_BATCH_TIME = 2.0  # seconds after which a request starts no change of another run
_MOST_DELETED = 200  # runs in one plan
_SHOWN = 200  # messages
_PEEKED = 1000  # waiting messages that are read
_MOST_TAGS = 50  # tags in one request
_MEASURING = 60.0  # maximum duration of a measurement of storage, in seconds
_CHECK = 120.0  # seconds that `aflow doctor` may take
_NAMED_OF_MANY = 20  # runs listed in the response to a change of many
ACTIONS = ("cancel", "resume", "tag", "untag", "delete")  # on many runs
_NAMED = 200  # runs listed in a plan
_LONGEST_LIFE = 10 * 365 * 86400  # seconds


class ActionRoutes:
    """The handlers of the routes that change something."""

    def __init__(
        self,
        metadata: MetadataStore,
        views: Views,
        runs: Runs,
        clock: Clock,
        store: ObjectStore,
        queue: Callable[[], Queue] | None = None,
        watch: Callable[[str], object] | None = None,
    ) -> None:
        self._queue = queue
        self._watch = watch
        self._views = views
        self._metadata = metadata
        self._runs = runs
        self._clock = clock
        self._store = store
        self._checking = asyncio.Lock()  # one check or plan at a time: each reads a lot of data

    async def show_server(self, request: web.Request) -> web.StreamResponse:
        """Show the version and the configuration of the server, and the caller."""
        caller = caller_of(request)
        return web.json_response(
            {
                "caller": caller
                and {
                    "name": caller.name,
                    "scope": caller.scope,
                    "expires_at": caller.token and caller.token.expires_at,
                },
                "version": __version__,
                "python": platform.python_version(),
                "metadata": self._metadata.url,
                "storage": self._store.url,
                "previews": Settings.load(self._runs.place.environment).previews,
                "runs_here": len(self._runs.going_on()),
            }
        )

    async def check_settings(self, request: web.Request) -> web.StreamResponse:
        """Run `aflow doctor` with the settings that the server gives its runs.

        It checks the machine, the datastore, the metadata, the queue, and the configured services
        of AWS. Fails with 500 after two minutes."""
        return web.json_response({"findings": await self._alone(request, self._doctor)})

    async def _doctor(self) -> Any:
        """Return what `aflow doctor` finds. If this is cancelled, its process ends."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "aflow", "doctor", "--json",
            env=self._runs.place.environment, stdin=DEVNULL, stdout=PIPE, stderr=PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_CHECK):
                out, err = await process.communicate()
        except TimeoutError as error:
            raise AflowError(f"aflow doctor did not end within {_CHECK:.0f} seconds.") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            return json.loads(out)
        except ValueError as error:
            printed = err.decode("utf-8", "replace").strip()[-500:]
            raise AflowError(f"aflow doctor failed: {printed or 'it printed nothing.'}") from error

    async def _alone(self, request: web.Request, work: Callable[[], Awaitable[T]]) -> T:
        """Return the result of a check or plan, of which there is one at a time. One whose client
        has gone does not begin."""

        async def in_turn() -> T:
            async with self._checking:
                return await work()

        return await attended(request, in_turn())

    async def plan_collection(self, request: web.Request) -> web.StreamResponse:
        """Show what `aflow gc` would delete.

        A run must match all of the filters. Nothing is deleted."""
        fields = await fields_in(request, schemas.COLLECTION_REQUEST, "of a collection")
        now = self._clock.now()
        runs_to_delete = _runs_to_delete(fields, now)

        def plan() -> gc.Removed:
            return gc.collect(self._metadata, self._store, runs_to_delete, now, dry_run=True)

        removed = await self._alone(request, partial(asyncio.to_thread, plan))
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

    async def measure_storage(self, request: web.Request) -> web.StreamResponse:
        """Measure the size of the artifacts and the code of each flow.

        Objects that several runs of a flow share are counted once. The manifests of all runs are
        read, for at most a minute."""
        give_up_at = self._clock.monotonic() + _MEASURING

        def measure() -> gc.StorageSizes:
            return gc.sizes(self._metadata, lambda: self._clock.monotonic() > give_up_at)

        found = await self._alone(request, partial(asyncio.to_thread, measure))
        flows = [each._asdict() for each in found.flows]
        return web.json_response({**found._asdict(), "flows": flows})

    # ------------------------------------------------------------ runs

    async def tag_run(self, request: web.Request) -> web.StreamResponse:
        """Add tags to a run, and remove tags.

        Tags are removed first."""
        fields = await fields_in(request, schemas.TAG_CHANGES, "of a change of tags")
        add, remove = _texts(fields, "add"), _texts(fields, "remove")
        run = await run_of(request, self._views)
        found = await asyncio.to_thread(self._metadata.change_tags, run.key, add, remove)
        return web.json_response({"tags": list(found)})

    async def cancel_run(self, request: web.Request) -> web.StreamResponse:
        """Cancel a run.

        The coordinator of the run stops it, on whichever machine it runs. A run without a
        coordinator is recorded as cancelled immediately."""
        run = await run_of(request, self._views)
        state = await self._cancel(run)
        return web.json_response({"run": f"{run.flow}/{run.run}", "state": state}, status=202)

    async def _cancel(self, run: RunRecord) -> str:
        """Request a run to stop. Returns `stopping` or `cancelled`. Raises VersionConflict if the
        run has ended, and InvalidInput if it is read-only."""
        if run.key >= FIRST_KEY:
            raise InvalidInput(READ_ONLY)
        path = f"{run.flow}/{run.run}"
        # Recorded first: if the coordinator crashes before it gets the signal, the next one stops
        # the run.
        reason, now = "The run was cancelled over HTTP.", self._clock.now()
        outcome = await asyncio.to_thread(request_end, self._metadata, run, reason, now)
        if outcome == "over":
            raise VersionConflict(f"{path} cannot be cancelled: it has ended.")
        self._runs.cancel(path)
        if outcome == "ended":
            await asyncio.to_thread(keep_from_workers, run)
        if outcome == "asked" and self._watch is not None:
            self._watch(path)
        return "cancelled" if outcome == "ended" else "stopping"

    async def foresee_run(self, request: web.Request) -> web.StreamResponse:
        """Show what a run would do.

        The parameters are checked. For each step the response counts the tasks that would run and
        those whose results would be reused. Nothing is run."""
        return await self._foreseen(request, order_of(fields_of(await json_of(request))))

    async def foresee_resume(self, request: web.Request) -> web.StreamResponse:
        """Show what a resume of a run would do.

        Takes the body of `resume`. Nothing is run."""
        return await self._foreseen(request, await self._resume_order(request))

    async def foresee_rerun(self, request: web.Request) -> web.StreamResponse:
        """Show what a rerun of a run would do.

        Takes the body of `rerun`. Nothing is run."""
        return await self._foreseen(request, await self._rerun_order(request))

    async def _foreseen(self, request: web.Request, order: RunRequest) -> web.StreamResponse:
        return web.json_response(await attended(request, self._runs.foresee(order)))

    async def resume_run(self, request: web.Request) -> web.StreamResponse:
        """Resume a run that has ended, with its original code.

        The new run reuses the results of finished tasks. It continues where the run failed, or from
        `step`. `parameters` replace values for the steps that run."""
        return await started(self._runs.begin(await self._resume_order(request)))

    async def _resume_order(self, request: web.Request) -> RunRequest:
        fields = await fields_in(request, schemas.RESUME_REQUEST, "of a run that is resumed")
        step = fields.get("step")
        if step is not None and not isinstance(step, str):
            raise InvalidInput("'step' has to be the name of a step.")
        run = await run_of(request, self._views)
        return resume_order(
            *_code_of(run), run.flow, run.run, step,
            fields.get("parameters"), fields.get("max_workers"),
        )  # fmt: skip

    async def rerun(self, request: web.Request) -> web.StreamResponse:
        """Run the code of a run again from the start.

        The new run has the parameters of the earlier one, except for those in `parameters`."""
        return await started(self._runs.begin(await self._rerun_order(request)))

    async def _rerun_order(self, request: web.Request) -> RunRequest:
        fields = await fields_in(request, schemas.RERUN_REQUEST, "of a run that is run again")
        changed = fields.get("parameters", {})
        if not isinstance(changed, dict):
            raise InvalidInput("'parameters' has to be an object: values by name.")
        run = await run_of(request, self._views)
        package, script = _code_of(run)
        parameters = await asyncio.to_thread(self._views.parameters_again, run, changed)
        named = {"package": package, "script": script, "flow": run.flow}
        return order_of({**fields, **named, "parameters": parameters})

    # ------------------------------------------------------------ many runs at once

    async def change_many(self, request: web.Request) -> web.StreamResponse:
        """Change all runs that match a filter, newest first.

        One request changes at most 200 runs and takes about two seconds; send the `cursor` of the
        response until it is null. With `dry_run` nothing is changed: the response counts the runs
        that would be changed, and those that cannot be, by reason. Send its `until` with the
        requests that follow, so that runs created in the meantime are not changed."""
        batch = _batch_of(
            await fields_in(request, schemas.BATCH_REQUEST, "here"), self._clock.now()
        )
        done = BatchDone(batch.until)
        if batch.dry_run:
            await asyncio.to_thread(self._count, batch, done)
        else:
            await asyncio.shield(self._change(batch, done))
        return web.json_response(done.as_json())

    def _count(self, batch: Batch, done: BatchDone) -> None:
        done.cursor, looked_at = batch.cursor, 0
        give_up_at = self._clock.monotonic() + _BATCH_TIME
        resumed = self._resumed_by_others()
        while True:
            runs, done.cursor = self._views.records(batch.filter, done.cursor, _BATCH)
            for run in runs:
                done.note(run, self._refused(batch.action, run, resumed))
            looked_at += len(runs)
            late = self._clock.monotonic() > give_up_at
            if done.cursor is None or looked_at >= _BATCH_LOOKS or late:
                return

    async def _change(self, batch: Batch, done: BatchDone) -> None:
        find, refused = self._views.records, self._refused
        runs, cursor = await asyncio.to_thread(find, batch.filter, batch.cursor, _BATCH)
        resumed = await asyncio.to_thread(self._resumed_by_others)
        give_up_at = self._clock.monotonic() + _BATCH_TIME
        for number, run in enumerate(runs):
            why_not = refused(batch.action, run, resumed)
            if why_not is None:
                try:
                    await self._change_one(batch, run)
                except (CoordinatorFull, CoordinatorClosed, StoreUnavailable) as error:
                    done.stopped, done.cursor = str(error), done.cursor or batch.cursor
                    return
                except MetadataUnavailable:
                    raise
                except AflowError as error:
                    why_not = str(error)
            done.note(run, why_not)
            done.cursor = cursor_after(run)
            if self._clock.monotonic() > give_up_at and number + 1 < len(runs):
                return
        done.cursor = cursor

    async def _change_one(self, batch: Batch, run: RunRecord) -> None:
        if batch.action == "cancel":
            await self._cancel(run)
        elif batch.action == "resume":
            await self._runs.begin(resume_order(*_code_of(run), run.flow, run.run, None))
        elif batch.action == "delete":
            await asyncio.to_thread(self._metadata.delete_run, run.key)
        else:
            add, remove = (batch.tags, []) if batch.action == "tag" else ([], batch.tags)
            await asyncio.to_thread(self._metadata.change_tags, run.key, add, remove)

    def _resumed_by_others(self) -> set[tuple[str, str]]:
        """Return the runs that have been resumed by active runs."""
        found = self._metadata.runs(None, states=LIVE_RUN_STATES)
        return {(run.flow, run.origin_run) for run in found if run.origin_run is not None}

    def _refused(
        self, action: str, run: RunRecord, resumed: Container[tuple[str, str]]
    ) -> str | None:
        """Return the reason why an action is not possible for a run; None if it is."""
        if run.key >= FIRST_KEY:
            return "recorded elsewhere, and only shown here"
        over = run.state in TERMINAL_RUN_STATES
        if action == "cancel" and over:
            return "ended already"
        if action in ("resume", "delete") and not over:
            return "still going on"
        if action == "resume" and run.state is RunState.SUCCEEDED:
            return "succeeded: there is nothing to resume"
        if action == "resume" and "key" not in (run.settings.get("code") or {}):
            return "the code was not kept"
        if action == "delete" and (run.flow, run.run) in resumed:
            return "resumed by a run that goes on"
        return None

    async def plan_deletion(self, request: web.Request) -> web.StreamResponse:
        """List which of the given runs can be deleted.

        A run can be deleted when it has ended and no active run has resumed it."""
        specs = request.query.get("runs", "").split(",")
        if not 1 <= len(specs) <= _MOST_DELETED:
            raise InvalidInput(f"`runs` names 1 to {_MOST_DELETED} runs, as Flow/1,Flow/2.")
        found = [ids.Pathspec.parse(each) for each in specs]

        def plan() -> list[str]:
            records = [self._metadata.run(s.flow, s.run or "") for s in found]
            resumed = self._resumed_by_others()
            return [
                f"{run.flow}/{run.run}"
                for run in records
                if run is not None and self._refused("delete", run, resumed) is None
            ]

        return web.json_response({"runs": await asyncio.to_thread(plan)})

    async def delete_run(self, request: web.Request) -> web.StreamResponse:
        """Delete the records of a run that has ended.

        The next `aflow gc` deletes its data from the datastore, except data shared with other runs.
        """
        run = await run_of(request, self._views)

        def delete() -> str | None:
            why_not = self._refused("delete", run, self._resumed_by_others())
            if why_not is None:
                self._metadata.delete_run(run.key)
            return why_not

        why_not = await asyncio.to_thread(delete)
        if why_not is not None:
            return refusal(409, f"{run.flow}/{run.run} cannot be deleted: it is {why_not}.")
        return web.json_response({"run": f"{run.flow}/{run.run}"})

    # ------------------------------------------------------------ the queue

    async def show_queue(self, _: web.Request) -> web.StreamResponse:
        """Show the queue of the server: pools, workers, buried messages."""
        if self._queue is None:
            return web.json_response({"url": None, "pools": [], "workers": [], "buried": []})
        async with self._opened() as queue:
            found = await workers_of(queue)
            names = await pools_of(queue, (), found)
            now = self._clock.now()
            pools = [await pool_status(queue, each, found, now) for each in names]
            rates = await asyncio.to_thread(self._rates, queue.url)
            for each in pools:
                each["rate"] = rates.get(each["pool"])
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

    def _rates(self, url: str) -> dict[str, float]:
        """Return the recent throughput of the registered workers of a queue, in tasks per minute by
        pool."""
        registry = registry_of(self._metadata)
        if registry is None:
            return {}
        return rates_of([each for each in registry.workers() if each.queue == url])

    async def list_messages(self, request: web.Request) -> web.StreamResponse:
        """List the messages of a pool that wait for a worker."""
        pool = request.query.get("pool", DEFAULT_POOL)
        limit = number_of(request, "limit", 100, _PEEKED)
        check_topic(tasks_topic(pool))
        async with self._opened() as queue:
            found = await messages_of(queue, pool, True, max(limit, 1))
            depth = await queue.depth(tasks_topic(pool))
        runs = Counter("/".join(each.task.split("/")[:2]) for each in found)
        return web.json_response(
            {
                "pool": pool,
                "ready": depth.ready,
                "messages": [each.as_json() for each in found],
                "runs": [{"run": run, "ready": count} for run, count in runs.most_common()],
            }
        )

    async def release_messages(self, request: web.Request) -> web.StreamResponse:
        """Deliver buried messages to workers again."""
        ids_ = await _message_ids(request)
        async with self._opened() as queue:
            topics = await chosen(queue, (), ids_, False)
            count = sum([await queue.redrive(topic, names) for topic, names in topics.items()])
        return web.json_response({"count": count})

    async def delete_messages(self, request: web.Request) -> web.StreamResponse:
        """Delete buried or waiting messages.

        An active run sends a deleted message again if it still waits for its task."""
        ids_ = await _message_ids(request)
        async with self._opened() as queue:
            for topic, names in (await chosen(queue, (), ids_, False)).items():
                await queue.remove(topic, names)
        return web.json_response({"count": len(ids_)})

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
        """List the workers that are registered in the metadata, by name."""
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
        """Show a registered worker."""
        return web.json_response(await asyncio.to_thread(self._worker, request))

    async def drain_worker(self, request: web.Request) -> web.StreamResponse:
        """Drain a worker: it leases no more tasks, and exits after its running ones.

        The worker receives the request with its next heartbeat."""
        caller = caller_of(request)
        caller_name = "A user" if caller is None or not caller.name else caller.name

        def drain() -> dict[str, Any]:
            registry, name = self._registry, request.match_info["name"]
            registry.drain_worker(name, f"{caller_name} has asked for it over HTTP.")
            return self._worker(request)

        return web.json_response(await asyncio.to_thread(drain), status=202)

    def _worker(self, request: web.Request) -> dict[str, Any]:
        name = request.match_info["name"]
        found = next((each for each in self._registry.workers() if each.name == name), None)
        if found is None:
            raise NotFound(f"There is no worker {name[:100]!r}; it may have ended.")
        return worker_as_json(found, self._clock.now())

    @property
    def _registry(self) -> WorkerRegistry:
        registry = registry_of(self._metadata)
        if registry is None:
            raise InvalidInput(f"Workers do not register in {self._metadata.url}.")
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
        """List all tokens without their secrets."""
        found = await asyncio.to_thread(tokens.tokens, self._documents())
        # (The digest stays private: it identifies the token.)
        shown = schemas.TOKEN.keys()
        rows = [{field: getattr(each, field) for field in shown} for each in found]
        return web.json_response({"tokens": rows})

    async def add_token(self, request: web.Request) -> web.StreamResponse:
        """Create a token.

        The secret is only in this response. A token does not outlive the token that created it."""
        fields = await fields_in(request, schemas.TOKEN_REQUEST, "of a token")
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
            # A new token must not outlive the token that created it.
            left = max(1.0, caller.token.expires_at - self._clock.now())
            seconds = left if seconds is None else min(seconds, left)
        made = await asyncio.to_thread(
            tokens.create, self._documents(), name, scope, self._clock.now(), seconds
        )
        return web.json_response({"token": made}, status=201)

    async def revoke_token(self, request: web.Request) -> web.StreamResponse:
        """Revoke a token immediately."""
        name = request.match_info["name"]
        await asyncio.to_thread(tokens.revoke, self._documents(), name)
        return web.json_response({"token": name})


class Batch(NamedTuple):
    """A validated request to change many runs."""

    action: str
    filter: RunFilter
    tags: list[str]
    until: float
    cursor: str | None
    dry_run: bool


def _batch_of(fields: dict[str, Any], now: float) -> Batch:
    """Return the validated request. Raises InvalidInput."""
    action, words = fields.get("action"), fields.get("filter", "")
    until, cursor = fields.get("until"), fields.get("cursor")
    dry_run, tags = fields.get("dry_run", False), _texts(fields, "tags")
    if action not in ACTIONS:
        raise InvalidInput(f"'action' has to be one of {', '.join(ACTIONS)}.")
    if not isinstance(words, str):
        raise InvalidInput("'filter' has to be a text.")
    if until is not None and (type(until) not in (int, float) or not 0 <= until <= LATEST):
        raise InvalidInput("'until' has to be a time in seconds since 1970.")
    if cursor is not None and not isinstance(cursor, str):
        raise InvalidInput("'cursor' has to be one that an answer had.")
    if not isinstance(dry_run, bool):
        raise InvalidInput("'dry_run' has to be true or false.")
    if (action in ("tag", "untag")) is not bool(tags):
        raise InvalidInput("'tags' are those to add or remove, with the actions tag and untag.")
    runs = parse(words, now)
    before = now if until is None else float(until)
    limit = before if runs.until is None else min(before, runs.until)
    if cursor is not None:
        position(cursor)  # validated before anything is changed
    return Batch(
        action=action,
        filter=replace(runs, until=limit),
        tags=tags,
        until=before,
        cursor=cursor,
        dry_run=dry_run,
    )


class BatchDone:
    """The progress of a request to change many runs. `until` is that of the request, or its
    time."""

    def __init__(self, until: float) -> None:
        self.cursor: str | None = None
        self.stopped: str | None = None
        self._until = until
        self._runs: list[str] = []
        self._count = 0
        self._refused: Counter[str] = Counter()

    def note(self, run: RunRecord, why_not: str | None) -> None:
        """Count a run as changed (or changeable, in a dry run), or as refused for a reason.

        Args:
            run: The run.
            why_not: The reason why the run cannot be changed; None if it can.
        """
        if why_not is not None:
            self._refused[why_not] += 1
            return
        self._count += 1
        if len(self._runs) < _NAMED_OF_MANY:
            self._runs.append(f"{run.flow}/{run.run}")

    def as_json(self) -> dict[str, Any]:
        """Return the body of the response."""
        refused = [{"reason": why, "count": n} for why, n in self._refused.most_common(20)]
        return {
            "count": self._count, "runs": self._runs, "refused": refused, "cursor": self.cursor,
            "until": self._until, "stopped": self.stopped,
        }  # fmt: skip


def _runs_to_delete(fields: dict[str, Any], now: float) -> gc.RunsToDelete:
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


async def _message_ids(request: web.Request) -> list[str]:
    fields = await fields_in(request, schemas.MESSAGE_IDS, "here")
    found = fields.get("ids")
    if not isinstance(found, list) or not 1 <= len(found) <= _SHOWN:
        raise InvalidInput(f"'ids' has to be a list of 1 to {_SHOWN} ids of messages.")
    if not all(isinstance(each, str) and 0 < len(each) <= 300 for each in found):
        raise InvalidInput("An id of a message is a text of at most 300 characters.")
    return found


def _code_of(run: RunRecord) -> tuple[str, str]:
    """Return the key of a run's code package and the flow's file in it. Raises InvalidInput."""
    code = run.settings.get("code") or {}
    if not isinstance(code.get("key"), str) or not isinstance(code.get("script"), str):
        raise InvalidInput(
            f"The code of {run.flow}/{run.run} was not kept, so it cannot be run again here: "
            "submit the flow with its file."
        )
    return code["key"], code["script"]


async def fields_in(request: web.Request, schema: schemas.Schema, where: str) -> dict[str, Any]:
    """Return the fields of a body, all of which are known.

    Args:
        request: The request.
        schema: The schema of the body.
        where: The object, for the error message: `of a run`.

    Raises:
        InvalidInput: If the body is not a JSON object, or a field is unknown.
    """
    fields = fields_of(await json_of(request))
    check_names(fields, schema["properties"], where)
    return fields


async def started(begun: Awaitable[str]) -> web.StreamResponse:
    """Return the response for a started run.

    Args:
        begun: Starts the run, and returns its pathspec. Continues if the client disconnects, so
            that the server knows each run it has started.
    """
    return web.json_response({"run": await asyncio.shield(begun)}, status=201)


def _texts(fields: dict[str, Any], name: str) -> list[str]:
    found = fields.get(name, [])
    if not isinstance(found, list) or len(found) > _MOST_TAGS:
        raise InvalidInput(f"{name!r} has to be a list of at most {_MOST_TAGS} tags.")
    return [str(ids.tag(each)) for each in found]
