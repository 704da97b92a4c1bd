"""The handlers of the routes of schedules."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import web

from aflow.errors import InvalidInput, InvalidSetting
from aflow.server import schedules
from aflow.server.auth import caller_of
from aflow.server.routes import schemas
from aflow.server.routes.actions import fields_in, started
from aflow.server.run_requests import order_of
from aflow.server.schedules import Schedule

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.server.schedules import Scheduling

_TICKS = 5  # ticks in a preview
_FIELDS = (  # fields of a schedule with the same names in the API
    *("name", "cron", "missed", "overlap", "paused", "created_by", "latest"),
    *("reason", "started", "skipped"),
)


class ScheduleRoutes:
    """The handlers of the routes of schedules. `scheduling` is None if the metadata store cannot
    keep schedules."""

    def __init__(self, scheduling: Scheduling | None, clock: Clock) -> None:
        self._scheduling = scheduling
        self._clock = clock

    async def list_schedules(self, _: web.Request) -> web.StreamResponse:
        """List all schedules by name."""
        found = await asyncio.to_thread(lambda: [*map(self._as_json, self._kept.all())])
        return web.json_response({"schedules": found})

    async def show_schedule(self, request: web.Request) -> web.StreamResponse:
        """Show a schedule."""
        name = request.match_info["name"]
        found = await asyncio.to_thread(lambda: self._as_json(self._kept.get(name)))
        return web.json_response(found)

    async def put_schedule(self, request: web.Request) -> web.StreamResponse:
        """Create or replace a schedule.

        The schedule starts no more runs once the token of this request has been revoked or has
        expired."""
        fields = await fields_in(request, schemas.SCHEDULE_REQUEST, "of a schedule")
        order = fields.get("run")
        if not isinstance(order, dict):
            raise InvalidInput("'run' has to be an object: what POST /v1/runs takes.")
        if order_of(order).flow is None:
            raise InvalidInput("'run' has to name its 'flow'.")
        name, now = request.match_info["name"], self._clock.now()
        by = _author(request)

        def put() -> dict[str, Any]:  # in a thread: finding the next tick may take a while
            schedule = schedules.new(name, {**fields, "order": order, **by}, now)
            self._kept.put(schedule)
            return self._as_json(schedule)

        return web.json_response(await asyncio.to_thread(put))

    async def change_schedule(self, request: web.Request) -> web.StreamResponse:
        """Change a schedule.

        Pause or resume it (`paused`), or change its `cron`, `timezone`, `missed`, `overlap`, or the
        `parameters` and `tags` of its runs. Fields that are left out keep their values."""
        fields = await fields_in(request, schemas.SCHEDULE_CHANGES, "that could be changed")
        if not fields:
            known = ", ".join(sorted(schemas.SCHEDULE_CHANGES["properties"]))
            raise InvalidInput(f"Name a field to change: {known}.")
        name = request.match_info["name"]
        # A caller who only pauses or resumes a schedule does not become its author.
        by = {} if fields.keys() == {"paused"} else _author(request)
        changed = await asyncio.to_thread(
            lambda: self._as_json(self._kept.change(name, {**fields, **by}))
        )
        return web.json_response(changed)

    async def preview_schedule(self, request: web.Request) -> web.StreamResponse:
        """Show the next five times at which a cron expression is due."""
        cron, zone = request.query.get("cron", ""), request.query.get("timezone") or None
        if len(cron) > 500:
            raise InvalidInput("'cron' has to be an expression such as '0 12 ? * MON-FRI *'.")
        now = self._clock.now()
        found = await asyncio.to_thread(schedules.ticks, cron, zone, now, _TICKS)
        return web.json_response({"next": found})

    async def delete_schedule(self, request: web.Request) -> web.StreamResponse:
        """Delete a schedule and keep its runs."""
        name = request.match_info["name"]
        await asyncio.to_thread(self._kept.delete, name)
        return web.json_response({"schedule": name})

    async def trigger_schedule(self, request: web.Request) -> web.StreamResponse:
        """Start a run of a schedule now."""
        return await started(self._kept.trigger(request.match_info["name"]))

    @property
    def _kept(self) -> Scheduling:
        if self._scheduling is None:
            raise InvalidSetting(
                "This server keeps no schedules: its metadata are those of a service. Start one "
                "with --metadata postgresql://..., or sqlite:////path."
            )
        return self._scheduling

    def _as_json(self, schedule: Schedule) -> dict[str, Any]:
        order = schedule.order
        shown = {name: getattr(schedule, name) for name in _FIELDS}
        try:
            shown["next"] = schedules.upcoming(schedule, self._clock.now())
        except InvalidInput as error:  # such as a time zone that this machine does not know
            shown |= {"next": None, "reason": str(error)}
        return {
            **shown,
            "flow": order.get("flow"),
            "timezone": schedule.timezone or "UTC",
            "parameters": order.get("parameters", {}),
            "tags": order.get("tags", []),
            "script": order.get("script"),
        }


def _author(request: web.Request) -> dict[str, Any]:
    """Return the fields of the author of a schedule."""
    caller = caller_of(request)
    return {
        "token": caller and caller.token and caller.token.digest,
        "created_by": "" if caller is None else caller.name,
    }
