"""What people use: ``/v1/predict`` for what they have, what a page needs to know, and the page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, Self, TypeVar
from weakref import WeakKeyDictionary

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bmnas_serve.assets import ASSETS, asset, content
from bmnas_serve.batcher import CLIENT
from bmnas_serve.bodies import Bodies, unless_gone
from bmnas_serve.errors import RequestError, busy, shorten
from bmnas_serve.forms import media_type, read_inputs
from bmnas_serve.lifecycle import Lifecycle
from bmnas_serve.logs import LOG
from bmnas_serve.openapi import document
from bmnas_serve.raw_model import Asked, Made, RawModel
from bmnas_serve.repository import Repository, Served
from bmnas_serve.responses import to_json
from bmnas_serve.session import Session

P = ParamSpec("P")
T = TypeVar("T")

#: Files are decoded by so many threads: one alone may take tens of milliseconds, and a large
#: picture hundreds of megabytes.
_THREADS = 2
#: How many requests may wait for them.
_WAITING = 64


class RawRoutes:
    """The routes; use it as a context manager, which has the threads that decode.

    Clients may see and use the test samples of bundles if ``samples``.
    """

    def __init__(
        self, repository: Repository, lifecycle: Lifecycle, bodies: Bodies, *, samples: bool = True
    ) -> None:
        self._repository = repository
        self._lifecycle = lifecycle
        self._bodies = bodies
        self._samples = samples
        self._threads = ThreadPoolExecutor(_THREADS, "bmnas-media")
        self._waiting = 0
        self._models: WeakKeyDictionary[Session, RawModel] = WeakKeyDictionary()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def routes(self) -> list[Route]:
        """Return the routes, but for that of the page itself."""
        model = "/v1/models/{name}"
        return [
            Route("/openapi.json", self.openapi),
            Route("/v1/models", self.models),
            Route(model, self.card),
            Route(f"{model}/architecture.svg", self.drawing),
            Route(f"{model}/samples/{{sample}}/{{input:path}}", self.sample),
            Route("/v1/predict", self.predict, methods=["POST"]),
            Route("/page/{file}", self.file),
        ]

    async def index(self, request: Request) -> Response:
        """Return the page."""
        return asset("index.html", request.headers.get("if-none-match"))

    async def file(self, request: Request) -> Response:
        """Return a file that the page loads."""
        name = request.path_params["file"]
        if name not in ASSETS:
            raise RequestError(404, f"there is nothing at {shorten(request.url.path)}")
        return asset(name, request.headers.get("if-none-match"))

    async def openapi(self, request: Request) -> Response:
        """Return the OpenAPI document of what is served now."""
        cards = {}
        for served in self._repository.served():
            if served.session.manifest is None:
                continue  # it takes tensors alone
            try:
                cards[served.name] = (await self._model(served)).card()
            except RequestError as error:
                if error.status in (503, 504):
                    raise
                LOG.warning(f"left out of /v1/predict in /openapi.json: {error.message}")
        routes = {route.path: route.methods or set() for route in request.app.routes}
        return _json(document(self._repository.served(), cards, routes))

    async def models(self, request: Request) -> Response:
        """Return the names and versions of what is served."""
        served = self._repository.served()
        return _json({"models": [{"name": one.name, "version": one.version} for one in served]})

    async def card(self, request: Request) -> Response:
        """Return what a person wants to know of a model."""
        with self._served(request, request.path_params["name"]) as served:
            model = await self._model(served)
            return _json({"name": served.name, "version": served.version, **model.card()})

    async def drawing(self, request: Request) -> Response:
        """Return the drawing of a model's architecture."""
        with self._served(request, request.path_params["name"]) as served:
            drawing = (await self._model(served)).drawing
        if drawing is None:
            raise RequestError(404, "the bundle holds no drawing of its architecture")
        return content(drawing, "image/svg+xml")

    async def sample(self, request: Request) -> Response:
        """Return an input of a sample, as a person sees or hears it."""
        with self._served(request, request.path_params["name"]) as served:
            model = await self._model(served)
            number, name = request.path_params["sample"], request.path_params["input"]
            if not _is_number(number):
                raise RequestError(404, f"received the sample {shorten(number)}, expected a number")
            kind, body = await self._beside(_deadline(served), model.shown, int(number), name)
        return content(body, kind)

    async def predict(self, request: Request) -> Response:
        """Return what a model says of what the body holds."""
        with (
            self._lifecycle.requests,
            self._served(request, _name(request)) as served,
            served.statistics.request() as laps,
        ):
            served.batcher.check_room()
            declared = _content_type(request)
            asked = Asked(_sample(request), _without(request), _explain(request))
            model = await self._model(served)
            async with self._bodies.received(request) as body:
                # A body has a time of its own; that of the answer begins after it.
                deadline = _deadline(served)
                made = await self._beside(deadline, _made, model, body, declared, asked)
            laps.lap()
            outputs = await served.batcher.predict(made.inputs, deadline=deadline)
            laps.lap()
            told = await self._beside(deadline, model.answer, made, outputs)
            spent = dict(zip(("input", "model"), laps.steps, strict=True))
        return _json(
            {
                "model_name": served.name,
                "model_version": served.version,
                **told,
                "milliseconds": {name: round(ns / 1e6, 3) for name, ns in spent.items()},
            },
            # While draining, clients shall come back through a new connection: to another server.
            {"connection": "close"} if self._lifecycle.draining else {},
        )

    def _served(self, request: Request, name: str) -> Served:
        return self._repository.get(name or self._only_name(), _query(request, "version"))

    def _only_name(self) -> str:
        names = list(dict.fromkeys(one.name for one in self._repository.served()))
        if len(names) != 1:
            expected = ", ".join(f"?model={name}" for name in names)
            status = 400 if names else 404
            raise RequestError(status, f"received no model, expected one of {expected or 'none'}")
        return names[0]

    async def _model(self, served: Served) -> RawModel:
        session = served.session
        if (found := self._models.get(session)) is None:
            found = await self._beside(_deadline(served), RawModel, session, self._samples)
            self._models[session] = found
        return found

    async def _beside(
        self, deadline: float, work: Callable[P, T], *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Return what ``work`` returns in a thread.

        ``deadline`` is a time of the event loop's clock. Raises RequestError: 503 when too many
        wait, 504 at the deadline, 499 when the client is gone before the work has begun.
        """
        if self._waiting >= _WAITING:
            raise busy("too many files of other requests are decoded")
        self._waiting += 1
        try:
            made = partial(work, *arguments, **options)
            future = self._threads.submit(unless_gone, CLIENT.get(), made)
            async with asyncio.timeout_at(deadline) as limit:
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            if not limit.expired():
                raise
            message = "no answer in time, as other requests are being worked on: send it again"
            raise RequestError(504, message) from error
        finally:
            self._waiting -= 1


def _deadline(served: Served) -> float:
    return asyncio.get_running_loop().time() + served.batcher.limits.seconds


def _made(model: RawModel, body: bytes | bytearray, content_type: str, asked: Asked) -> Made:
    given = read_inputs(body, content_type) if body or asked.sample is None else {}
    return model.made(given, asked)


def _json(data: Any, headers: Mapping[str, str] | None = None) -> Response:
    response = content(to_json(data), "application/json")
    response.headers.update(headers or {})
    return response


def _content_type(request: Request) -> str:
    """Return the Content-Type; raises RequestError (415) where the body cannot be read."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise RequestError(415, f"received the encoding {shorten(encoding)}, expected none")
    declared = request.headers.get("content-type", "")
    # A sample of the bundle needs no body.
    if declared or _query(request, "sample") is None:
        media_type(declared)
    return declared


def _query(request: Request, name: str) -> str | None:
    values = request.query_params.getlist(name)
    if len(values) > 1:
        raise RequestError(400, f"the query has {name} twice, expected once")
    return values[0] if values else None


def _name(request: Request) -> str:
    known = ("model", "version", "sample", "without", "explain")
    for name in request.query_params:
        if name not in known:
            raise RequestError(400, f"received ?{shorten(name)}, expected {', '.join(known)}")
    return _query(request, "model") or ""


def _sample(request: Request) -> int | None:
    text = _query(request, "sample")
    if text is None:
        return None
    if not _is_number(text):
        raise RequestError(400, f"sample: received {shorten(text)}, expected its number, from 0")
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _without(request: Request) -> tuple[str, ...]:
    return tuple(request.query_params.getlist("without"))


def _explain(request: Request) -> bool:
    text = _query(request, "explain") or "false"
    if text not in ("true", "false"):
        raise RequestError(400, f"explain: received {shorten(text)}, expected true or false")
    return text == "true"
