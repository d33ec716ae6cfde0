"""The Open Inference Protocol v2 over HTTP: routes, statuses, bodies."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from bmnas_serve import metadata
from bmnas_serve.bodies import Bodies, effort
from bmnas_serve.codec import decode_request, encode_response
from bmnas_serve.errors import FormatError, InferenceError, RequestError, shorten
from bmnas_serve.inference import InferRequest
from bmnas_serve.lifecycle import Lifecycle
from bmnas_serve.logs import LOG
from bmnas_serve.metrics import CONTENT_TYPE, Metrics
from bmnas_serve.outputs import text_bytes
from bmnas_serve.raw_routes import RawRoutes
from bmnas_serve.repository import Repository, Served
from bmnas_serve.repository_routes import RepositoryRoutes
from bmnas_serve.responses import JsonResponse, to_json
from bmnas_serve.session import Session
from bmnas_serve.settings import MAX_BATCH

_MODELS = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
#: The header that says where the JSON ends and the bytes of the tensors begin.
JSON_SIZE = "Inference-Header-Content-Length"
#: Clients send JSON as the second of them too.
_MEDIA = ("application/json", "application/octet-stream")


_INFER = re.compile(r"/v2/models/(?P<name>[^/]+)(/versions/(?P<version>[^/]+))?/infer")

#: What is answered in JSON; any other exception is a defect, which the server's log tells in full.
_TOLD = (RequestError, FormatError, InferenceError, HTTPException)


def create_app(
    repository: Repository,
    *,
    lifecycle: Lifecycle | None = None,
    max_batch: int = MAX_BATCH,
    bodies: Bodies | None = None,
    metrics: Metrics | None = None,
    model_control: bool = True,
    samples: bool = True,
) -> Starlette:
    """Return the ASGI application that serves the models of ``repository``, and closes it.

    ``lifecycle`` is shared with whoever stops the server. Larger batches than ``max_batch`` are
    answered with 400. ``bodies`` has the limits of bodies; it is closed too. ``metrics`` is read at
    /metrics.
    Clients may load and unload models if ``model_control``, and see the test samples of bundles if
    ``samples``.
    """
    lifecycle, metrics = lifecycle or Lifecycle(), metrics or Metrics()
    bodies = bodies or Bodies(lifecycle=lifecycle)
    metrics.watch(repository, lifecycle, bodies)
    raw = RawRoutes(repository, lifecycle, bodies, samples=samples)
    endpoints = _Endpoints(repository, lifecycle, max_batch, bodies, metrics, raw)
    about_models = RepositoryRoutes(repository, bodies, max_batch, model_control)
    return _App(
        endpoints.infer,
        # Routes are tried in order. Those about all models come before those of one, or a model
        # that is called stats would hide their statistics.
        routes=[*endpoints.infer_routes(), *about_models.routes(), *endpoints.routes()],
        exception_handlers=dict.fromkeys((*_TOLD, Exception), _on_error),
        lifespan=endpoints.lifespan,
    )


class _App(Starlette):
    """Starlette; but to infer, what is asked most, does without its layers, and so takes less."""

    def __init__(self, infer: Callable[[Request], Awaitable[Response]], **options: Any) -> None:
        super().__init__(**options)
        self._infer = infer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _INFER.fullmatch(scope.get("path", "")) if scope.get("method") == "POST" else None
        if found is None:
            await super().__call__(scope, receive, send)
            return
        given = {name: text for name, text in found.groupdict().items() if text is not None}
        scope.update(app=self, endpoint=self._infer, path_params=given)
        request = Request(scope, receive)
        try:
            response = await self._infer(request)
        except Exception as error:
            response = await _on_error(request, error)
            await response(scope, receive, send)
            if not isinstance(error, _TOLD):
                raise
            return
        await response(scope, receive, send)


class _Endpoints:
    def __init__(
        self,
        repository: Repository,
        lifecycle: Lifecycle,
        max_batch: int,
        bodies: Bodies,
        metrics: Metrics,
        raw: RawRoutes,
    ) -> None:
        self._repository = repository
        self._lifecycle = lifecycle
        self._max_batch = max_batch
        self._bodies = bodies
        self._metrics = metrics
        self._raw = raw
        self._examples: WeakKeyDictionary[Session, bytes] = WeakKeyDictionary()

    def routes(self) -> list[Route]:
        routes = [
            *self._raw.routes(),
            Route("/", self.index),
            Route("/metrics", self.metrics),
            Route("/v2", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
        ]
        for model in _MODELS:
            routes += [
                Route(model, self.model),
                Route(f"{model}/ready", self.model_ready),
                Route(f"{model}/example.json", self.example),
            ]
        return routes

    def infer_routes(self) -> list[Route]:
        return [Route(f"{model}/infer", self.infer, methods=["POST"]) for model in _MODELS]

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._lifecycle.started = True
        try:
            with self._bodies, self._raw:
                yield
        finally:
            self._lifecycle.started = False
            self._repository.close()

    async def index(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return await self._raw.index(request)
        base_url = str(request.base_url).rstrip("/")
        return JsonResponse(metadata.index_data(self._repository.served(), base_url))

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def server(self, request: Request) -> Response:
        return JsonResponse(metadata.server_metadata())

    async def live(self, request: Request) -> Response:
        return JsonResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        return self._readiness({})

    async def model(self, request: Request) -> Response:
        served = self._served(request)
        versions = self._repository.versions(served.name)
        return JsonResponse(metadata.model_metadata(served.session, versions))

    async def model_ready(self, request: Request) -> Response:
        return self._readiness({"name": self._served(request).name})

    def _readiness(self, body: dict[str, Any]) -> Response:
        ready = self._lifecycle.ready
        return JsonResponse({**body, "ready": ready}, status_code=200 if ready else 503)

    async def example(self, request: Request) -> Response:
        session = self._served(request).session
        if (found := self._examples.get(session)) is None:
            size = metadata.example_bytes(session)
            found = await self._bodies.beside(size, metadata.example_json, session)
            self._examples[session] = found
        return Response(found, media_type="application/json")

    async def infer(self, request: Request) -> Response:
        """Decode, predict, encode: the three steps stay apart."""
        with (
            self._lifecycle.requests,
            self._served(request) as served,
            served.statistics.request() as laps,
        ):
            served.batcher.check_room()
            json_size = _json_size(request)
            async with self._bodies.received(request) as body:
                arrived = asyncio.get_running_loop().time()
                text = len(body) if json_size is None else min(json_size, len(body))
                slow = effort(text, len(body) - text)
                asked = await self._bodies.beside(slow, self._decode, served, body, json_size)
            laps.lap()
            outputs = await served.predict(asked.inputs, asked.timeout, arrived)
            laps.lap()
            size = text_bytes(asked.outputs, outputs)
            return await self._bodies.beside(size, self._answer, served, asked, outputs)

    def _decode(
        self, served: Served, received: bytes | bytearray, json_size: int | None
    ) -> InferRequest:
        session = served.session
        return decode_request(received, session.inputs, session.outputs, self._max_batch, json_size)

    def _answer(
        self, served: Served, asked: InferRequest, outputs: dict[str, NDArray[Any]]
    ) -> Response:
        body, binary = encode_response(
            served.name, served.version, asked, outputs, served.session.manifest
        )
        if not binary:
            return JsonResponse(body, headers=self._closing())
        head = to_json(body)
        headers = {JSON_SIZE: str(len(head)), **self._closing()}
        return Response(
            b"".join((head, *binary)), headers=headers, media_type="application/octet-stream"
        )

    def _closing(self) -> dict[str, str]:
        # While draining, clients shall come back through a new connection: to another server.
        return {"connection": "close"} if self._lifecycle.draining else {}

    def _served(self, request: Request) -> Served:
        return self._repository.get(request.path_params["name"], request.path_params.get("version"))


def _json_size(request: Request) -> int | None:
    """Return how many bytes of the body are JSON, None for all of them.

    Raises RequestError (415) unless the body is declared as of the protocol, or as nothing.
    """
    headers = request.headers
    encoding = headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise RequestError(415, f"received the encoding {shorten(encoding)}, expected none")
    declared = headers.get("content-type", "application/json")
    media, _, options = declared.lower().partition(";")
    charset = options.replace(" ", "").replace('"', "")
    if media.strip() not in _MEDIA or charset not in ("", "charset=utf-8"):
        raise RequestError(
            415,
            f"received Content-Type {shorten(declared)}, expected application/json in UTF-8, or"
            " application/octet-stream",
        )
    size = headers.get(JSON_SIZE)
    if size is None:
        return None
    if not (size.isascii() and size.isdigit() and len(size) < 12):
        raise RequestError(
            400, f"{JSON_SIZE}: received {shorten(size)}, expected a number of bytes"
        )
    return int(size)


async def _on_error(request: Request, error: Exception) -> Response:
    headers: dict[str, str] = {}
    match error:
        case RequestError():
            status, message = error.status, error.message
            # Where the body has not been read to its end, the connection cannot go on.
            headers = {"connection": "close"} if status in (408, 413) else {}
            if error.retry_after is not None:
                headers |= {"retry-after": str(error.retry_after)}
        case FormatError():
            status, message = 400, str(error)
        case InferenceError():
            status, message = 500, str(error)
            LOG.error(message)
        case HTTPException():
            status, headers = error.status_code, dict(error.headers or {})
            known = {
                404: f"there is nothing at {shorten(request.url.path)}",
                405: f"{request.method} is not allowed at {shorten(request.url.path)}",
            }.get(status)
            message = f"{known}; GET / lists the endpoints" if known else error.detail
        case _:
            status, message = 500, "a defect of the server; its log has the details"
    return JsonResponse({"error": message}, status_code=status, headers=headers)
