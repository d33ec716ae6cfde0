"""Routes about the models that are served: index, load, unload, configuration, statistics."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bmnas_serve import metadata, parameters
from bmnas_serve.bodies import Bodies
from bmnas_serve.checks import Check, boolean, table
from bmnas_serve.errors import FormatError, RequestError
from bmnas_serve.repository import Repository, check_model_control
from bmnas_serve.responses import JsonResponse
from bmnas_serve.strict_json import parse_json

#: What these bodies may have, in bytes: they hold a few words, and are read at once.
LARGEST = 2**16


class RepositoryRoutes:
    """The routes; clients may load and unload models if ``model_control``."""

    def __init__(
        self, repository: Repository, bodies: Bodies, max_batch: int, model_control: bool
    ) -> None:
        self._repository = repository
        self._bodies = bodies
        self._max_batch = max_batch
        self._model_control = model_control

    def routes(self) -> list[Route]:
        """Return what the application answers here."""
        control = "/v2/repository/models/{name}"
        model = "/v2/models/{name}"
        return [
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route(f"{control}/load", self.load, methods=["POST"]),
            Route(f"{control}/unload", self.unload, methods=["POST"]),
            Route("/v2/models/stats", self.statistics),
            *(
                Route(f"{path}/{end}", endpoint)
                for path in (model, f"{model}/versions/{{version}}")
                for end, endpoint in (("stats", self.statistics), ("config", self.config))
            ),
        ]

    async def index(self, request: Request) -> Response:
        """Answer which models and versions there are, or are ready."""
        asked = await self._body(request, {"ready": boolean})
        return JsonResponse(await self._repository.index(ready=asked.get("ready", False)))

    async def load(self, request: Request) -> Response:
        """Load a model, once more if it is served."""
        name = await self._controlled(request)
        await self._repository.load(name)
        return JsonResponse({})

    async def unload(self, request: Request) -> Response:
        """Serve a model no more."""
        name = await self._controlled(request)
        self._repository.unload(name)
        return JsonResponse({})

    async def statistics(self, request: Request) -> Response:
        """Answer what was served, of one version, of one model or of all."""
        served = self._repository.served(
            request.path_params.get("name"), request.path_params.get("version")
        )
        return JsonResponse(metadata.model_statistics(served))

    async def config(self, request: Request) -> Response:
        """Answer how a model is run."""
        name = request.path_params["name"]
        served = self._repository.get(name, request.path_params.get("version"))
        versions = self._repository.versions(name)
        return JsonResponse(metadata.model_config(served.session, versions, self._max_batch))

    async def _controlled(self, request: Request) -> str:
        """Return the model that a request may load or unload."""
        if "origin" in request.headers:
            # A page that somebody has open must not change what this machine serves.
            raise RequestError(403, "web pages may not load and unload models")
        check_model_control(self._model_control)
        await self._body(request, {"parameters": parameters.LOAD})
        return str(request.path_params["name"])

    async def _body(self, request: Request, members: dict[str, Check]) -> dict[str, Any]:
        async with self._bodies.received(request, LARGEST) as body:
            if not body:
                return {}
            try:
                return table(parse_json(body), "", {}, members)
            except ValueError as error:
                raise FormatError(f"the body is not JSON: {error}") from error
