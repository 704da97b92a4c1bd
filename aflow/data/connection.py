"""How a client of S3 reaches its server, and as whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from aiobotocore.credentials import (
    AioAssumeRoleCredentialFetcher,
    AioDeferredRefreshableCredentials,
)
from aiobotocore.session import AioSession

from aflow.data.places import Root
from aflow.storage import s3_wire
from aflow.storage.s3_errors import Subject, translated


class Identity(NamedTuple):
    """Who asks: a role to be assumed, arguments of a session (`profile_name`, `region_name`,
    `aws_access_key_id`...) and of a client (`endpoint_url`, `verify`, `config`...), as boto3 names
    them."""

    role: str | None = None
    session_vars: Mapping[str, Any] | None = None
    client_params: Mapping[str, Any] | None = None


async def connect(root: Root, identity: Identity) -> Any:
    """A client of S3, for `s3_wire.disconnect`. Raises AccessDenied where the role may not be
    assumed, and what `translated` does."""
    return await _connect(root, identity, lambda: _connect(root, identity, None))


async def _connect(root: Root, identity: Identity, again: s3_wire.Again | None) -> Any:
    of_session = dict(identity.session_vars or {})
    subject = Subject(root.url or "S3", "")
    with translated(subject):
        session = s3_wire.new_session(of_session.pop("profile_name", None))
        options = {
            "endpoint_url": root.endpoint,
            "region_name": root.region,
            **of_session,
            **(identity.client_params or {}),
        }
        if identity.role is not None:
            await _assume(session, identity.role, of_session)
            options = {name: value for name, value in options.items() if name not in _KEYS}
        return await s3_wire.connect(session, again, **options)


_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


async def _assume(session: AioSession, role: str, own: Mapping[str, Any]) -> None:
    """Let the session have the credentials of the role, fetched anew before they expire."""
    if own.get(_KEYS[0]):
        session.set_credentials(*(own.get(name) for name in _KEYS))
    region = own.get("region_name")

    def client(service: str, **options: Any) -> Any:
        return session.create_client(service, region_name=region, **options)

    fetcher = AioAssumeRoleCredentialFetcher(client, await session.get_credentials(), role)
    held = AioDeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")
    await held.get_frozen_credentials()
    session._credentials = held
