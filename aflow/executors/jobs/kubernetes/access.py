"""Calls to the API server of a cluster, with a kubeconfig or as a pod of the cluster.

kubernetes-asyncio finds the server and the credentials: a kubeconfig (KUBECONFIG, ~/.kube/config)
with tokens, client certificates and exec plugins, or the service account of this pod. This module
makes the calls itself, since a run needs few of them. Calls block and are thread-safe; a thread
with an event loop executes them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus
from http.client import responses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aflow._core.settings import environment_value, looked_up
from aflow._core.threads import Portal
from aflow.errors import (
    AflowError,
    InvalidSetting,
    JobSystemBusy,
    JobSystemError,
    JobSystemUnauthorized,
    MissingExtra,
)

if TYPE_CHECKING:
    from kubernetes_asyncio.client import Configuration
    from kubernetes_asyncio.client.rest import RESTClientObject

TIMEOUT = 60.0  # seconds for one call
PAGE = 500  # objects per response of a list
LISTINGS = 3  # attempts to fetch a list whose continuation token expires
_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_BUSY = frozenset({429, 500, 502, 503, 504})
_JSON, _PATCH = "application/json", "application/merge-patch+json"

Object = dict[str, Any]


class KubernetesApiError(JobSystemError):
    """The API server rejects a call: its status, and its reason (such as AlreadyExists)."""

    def __init__(self, message: str, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class KubernetesCluster:
    """The cluster that settings and kubeconfig name. The first call opens the connections."""

    def __init__(self) -> None:
        context = looked_up("KUBERNETES_CONTEXT")

        async def opened() -> _Connections:
            return _Connections(context)

        self._portal = Portal("aflow-kubernetes", opened, _Connections.close)

    # ------------------------------------------------------------ location

    @property
    def server(self) -> str:
        """The address of the API server. Raises InvalidSetting and MissingExtra."""
        return self._portal.call(_Connections.current).host

    @property
    def namespace(self) -> str:
        """The namespace of the context, or of this pod. Raises InvalidSetting and MissingExtra."""
        return self._portal.call(_Connections.current).namespace

    # ------------------------------------------------------------ calls

    def get(self, path: str, **query: Any) -> Object:
        """Return one object.

        Args:
            path: The path on the API server, such as `/api/v1/namespaces/NAME/pods/POD`.
            **query: Parameters of the URL, such as `labelSelector`.
        """
        return self._json("GET", path, query)

    def listed(self, path: str, **query: Any) -> list[Object]:
        """Return all objects of a list, fetched in pages.

        Starts again from the first page if the continuation token expires.

        Args:
            path: The path of a collection.
            **query: Parameters of the URL, such as `labelSelector`; `limit` is the size of a page.

        Raises:
            JobSystemBusy: If the token expired in each of several attempts.
        """
        query.setdefault("limit", PAGE)
        for _ in range(LISTINGS):
            found: list[Object] = []
            more: dict[str, Any] = {}
            try:
                while True:
                    answer = self.get(path, **query, **more)
                    found += answer.get("items") or ()
                    token = (answer.get("metadata") or {}).get("continue")
                    if not token:
                        return found
                    more = {"continue": token}
            except KubernetesApiError as error:
                if error.status != HTTPStatus.GONE:
                    raise
        raise JobSystemBusy(
            f"The API server {self.server} expired a list before all its pages were fetched."
        )

    def first(self, path: str, limit: int, **query: Any) -> list[Object]:
        """Return the first objects of a list.

        Args:
            path: The path of a collection.
            limit: The maximum number of objects; later pages are not fetched.
            **query: Parameters of the URL, such as `labelSelector`.
        """
        return self.get(path, limit=limit, **query).get("items") or []

    def create(self, path: str, body: Object, **query: Any) -> Object:
        """Create an object.

        Args:
            path: The path of the collection.
            body: The object, as plain values.
            **query: Parameters of the URL, such as `dryRun`.

        Returns:
            The object as stored by the server, with its uid.
        """
        return self._json("POST", path, query, body)

    def patch(self, path: str, body: Object) -> Object:
        """Merge fields into an object.

        Args:
            path: The path of the object.
            body: The fields to change (a JSON merge patch).

        Returns:
            The changed object.
        """
        return self._json("PATCH", path, {}, body, _PATCH)

    def delete(self, path: str, **query: Any) -> Object:
        """Delete an object, or the objects of a collection that the query selects.

        Args:
            path: The path of the object, or of a collection.
            **query: Parameters of the URL, such as `propagationPolicy`.

        Returns:
            The response of the server.
        """
        return self._json("DELETE", path, query)

    def text(self, path: str, **query: Any) -> str:
        """Return a response that is not JSON, such as the log of a pod.

        Args:
            path: The path, such as `.../pods/POD/log`.
            **query: Parameters of the URL, such as `tailLines`.
        """
        return self._portal.call(lambda to: to.answer("GET", path, query, None, _JSON))

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        self._portal.close()

    def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        body: Object | None = None,
        kind: str = _JSON,
    ) -> Object:
        text = self._portal.call(lambda to: to.answer(method, path, query, body, kind))
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise JobSystemBusy(
                f"What answers at {self.server} is not an API server of Kubernetes."
            )
        return found


class _Connections:
    """The current connection, and earlier ones that concurrent calls may still use."""

    def __init__(self, context: str | None) -> None:
        self._context = context
        self._link: _ApiConnection | None = None
        self._all: list[_ApiConnection] = []
        self._making = asyncio.Lock()

    async def current(self) -> _ApiConnection:
        async with self._making:  # credential plugins may prompt the user, so run them once
            if self._link is None:
                try:
                    self._link = await _ApiConnection.made(self._context)
                except InvalidSetting as error:
                    if not self._all:
                        raise
                    # It has worked before: a plugin cannot renew expired credentials at present.
                    raise JobSystemUnauthorized(str(error)) from error
                self._all.append(self._link)
            return self._link

    async def answer(
        self, method: str, path: str, query: Mapping[str, Any], body: Object | None, kind: str
    ) -> str:
        link = await self.current()
        status, text = await link.request(method, path, query, body, kind)
        if status == HTTPStatus.UNAUTHORIZED:
            # An expired token may have been renewed in its file, or by the plugin.
            if self._link is link:
                self._link = None
            link = await self.current()
            status, text = await link.request(method, path, query, body, kind)
        if status < HTTPStatus.BAD_REQUEST:
            return text
        raise _fault(link, status, text)

    async def close(self) -> None:
        for link in self._all:
            await link.client.close()


class _ApiConnection:
    """The credentials for an API server, and an HTTP client with them."""

    def __init__(self, configuration: Configuration, client: RESTClientObject, namespace: str):
        self._configuration = configuration
        self.client = client
        self.host = str(configuration.host)
        self.namespace = namespace

    @classmethod
    async def made(cls, context: str | None) -> _ApiConnection:
        """Return a connection. Raises MissingExtra, and InvalidSetting if there is no cluster."""
        try:
            from kubernetes_asyncio import config
            from kubernetes_asyncio.client import Configuration
            from kubernetes_asyncio.client.rest import RESTClientObject
        except ImportError as error:
            raise MissingExtra(
                "Kubernetes needs kubernetes-asyncio: install aflow-runtime[kubernetes]."
            ) from error
        configuration = Configuration()
        files = environment_value("KUBECONFIG") or "~/.kube/config"
        namespace = "default"
        try:
            own = _own_namespace(files)
            if own is not None:
                config.load_incluster_config(configuration)
                namespace = own
            else:
                loader = await config.load_kube_config(
                    files, context, configuration, persist_config=False
                )
                current = loader.current_context or {}
                namespace = (current.get("context") or {}).get("namespace") or namespace
            client = RESTClientObject(configuration)
        except AflowError:
            raise
        except Exception as error:
            # Missing or malformed files, and plugins, raise arbitrary exceptions.
            why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            where = f"the context {context!r} of {files}" if context else files
            raise InvalidSetting(
                f"There is no way into a cluster of Kubernetes by {where}: {why}. Set KUBECONFIG,"
                " and AFLOW_KUBERNETES_CONTEXT for another context than the current one."
            ) from error
        return cls(configuration, client, namespace)

    async def request(
        self, method: str, path: str, query: Mapping[str, Any], body: Object | None, kind: str
    ) -> tuple[int, str]:
        """Return the status and the text of the response. Raises JobSystemBusy if there is none."""
        headers = {"Content-Type": kind, "Accept": "*/*"}
        token = await self._configuration.get_api_key_with_prefix("BearerToken")
        if token:
            headers["authorization"] = token
        try:
            answer = await self.client.request(
                method,
                self.host + path,
                query_params={name: str(value) for name, value in query.items()},
                headers=headers,
                body=body,
                _preload_content=False,
                _request_timeout=TIMEOUT,
            )
            return answer.status, await answer.text(errors="replace")
        except TimeoutError as error:
            raise JobSystemBusy(
                f"The API server {self.host} did not answer within {TIMEOUT:.0f} seconds."
            ) from error
        except (OSError, _client_error()) as error:
            why = str(error).rstrip(".") or type(error).__name__
            raise JobSystemBusy(f"The API server {self.host} cannot be reached: {why}.") from error


def _client_error() -> type[Exception]:
    import aiohttp  # installed with kubernetes-asyncio, and imported by it already

    return aiohttp.ClientError


def _own_namespace(files: str) -> str | None:
    """Return the namespace of this pod; None outside of a cluster, or if there is a kubeconfig."""
    if environment_value("KUBERNETES_SERVICE_HOST") is None or not _POD.exists():
        return None
    if any(Path(each).expanduser().exists() for each in files.split(":") if each):
        return None
    return (_POD / "namespace").read_text("utf-8").strip() or "default"


def _fault(link: _ApiConnection, status: int, text: str) -> JobSystemError:
    """Return the exception for an error response."""
    try:
        status_object = json.loads(text)
        message = str(status_object.get("message") or "")
        reason = str(status_object.get("reason") or "")
    except (ValueError, AttributeError):
        message, reason = "", ""
    sentence = " ".join((message or responses.get(status, "an error")).split()).rstrip(".")
    if status == HTTPStatus.UNAUTHORIZED:
        return JobSystemUnauthorized(
            f"The API server {link.host} does not accept the credentials, which may have expired "
            f"({sentence}): log in to the cluster again."
        )
    if status in _BUSY:
        return JobSystemBusy(f"The API server {link.host} answers {status}: {sentence}.")
    return KubernetesApiError(f"{sentence}.", status, reason)
