"""The temporary folder of one client."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from urllib.parse import quote

from aflow.data.files import refuse_disk
from aflow.errors import S3Failed


class Folder:
    """A folder in `parent` that is made when it is first needed, and goes with all in it."""

    def __init__(self, parent: str) -> None:
        self._parent = os.path.abspath(parent)
        self._path: str | None = None
        self._numbers = itertools.count()
        self._closed = False

    def new_file(self, url: str) -> str:
        """A path for what is at `url`, of which nothing is there yet. Raises S3Failed when it is
        closed, or where no folder can be made."""
        if self._closed:
            raise S3Failed("This client of S3 has been closed: make another one.")
        if self._path is None:
            try:
                self._path = tempfile.mkdtemp(dir=self._parent, prefix="aflow.s3.")
            except OSError as error:
                refuse_disk(self._parent, error)
        name = quote(url.rpartition("/")[2], safe="")[-100:]
        return os.path.join(self._path, f"{next(self._numbers)}-{name}")

    def close(self) -> None:
        """Remove it all. May be called twice."""
        self._closed = True
        if self._path is not None:
            shutil.rmtree(self._path)
            self._path = None
