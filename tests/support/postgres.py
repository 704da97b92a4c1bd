"""Metadata on the private PostgreSQL server: a schema for each test."""

from __future__ import annotations

import itertools
import os

from tests.support.servers import Server

_numbers = itertools.count()


def new_schema(server: Server) -> str:
    """Return the URL of a metadata store in a new schema."""
    schema = f"test_{os.getpid()}_{next(_numbers)}"
    return f"postgresql://aflow:secret@127.0.0.1:{server.port}/postgres?schema={schema}"
