"""A cache of clients for stand-ins of AWS, which are closed at the end of the session."""

from __future__ import annotations

from typing import Any

_clients: dict[tuple[str, str, str], Any] = {}


def client(endpoint: str, service: str, region: str = "us-east-1") -> Any:
    """Return the cached client of a service. Creating one takes a tenth of a second: it reads a
    service description of megabytes."""
    import botocore.session  # lazy: every test session imports this module, few use it

    key = endpoint, service, region
    if key not in _clients:
        _clients[key] = botocore.session.get_session().create_client(
            service, region, endpoint_url=endpoint,
            aws_access_key_id="test", aws_secret_access_key="test",
        )  # fmt: skip
    return _clients[key]


def close_clients() -> None:
    """Close the connections of all clients."""
    for each in _clients.values():
        each.close()
    _clients.clear()
