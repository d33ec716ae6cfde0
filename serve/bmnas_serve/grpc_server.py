"""The Open Inference Protocol v2 over gRPC: the service, its statuses, and its server."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Its failures are raised here as one line; it would print them a second time.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from bmnas_serve import metadata, parameters
from bmnas_serve.bodies import Bodies, effort
from bmnas_serve.errors import FormatError, InferenceError, RequestError, ServeError
from bmnas_serve.grpc_codec import Head, decode_message, encode_message, plain, read_message
from bmnas_serve.grpc_messages import SERVICE, message_class
from bmnas_serve.inference import InferRequest
from bmnas_serve.lifecycle import Lifecycle
from bmnas_serve.logs import LOG, REQUEST_ID
from bmnas_serve.metrics import Metrics
from bmnas_serve.outputs import text_bytes
from bmnas_serve.repository import Repository, Served, check_model_control
from bmnas_serve.repository_routes import LARGEST
from bmnas_serve.settings import Settings

#: What gRPC calls the statuses of HTTP; others are of its own making.
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
#: What answers without a token: probes have none.
_OPEN = ("ServerLive", "ServerReady")
#: How many calls are taken in besides those that wait for a model.
_OTHER_CALLS = 1024

Answer = Callable[[Any, Any], Awaitable[Any]]


@dataclass(frozen=True)
class Service:
    """What answers the methods of ``inference.proto``."""

    repository: Repository
    lifecycle: Lifecycle
    bodies: Bodies
    max_batch: int
    model_control: bool

    def answers(self) -> dict[str, Answer]:
        """Return for each method what answers it: plain data for a message, or its bytes.

        To infer takes the bytes of its message, all others the message.
        """
        return {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_model_load,
            "RepositoryModelUnload": self._repository_model_unload,
            "ModelInfer": self._model_infer,
        }

    async def _server_live(self, asked: Any, context: Any) -> Any:
        return {"live": True}

    async def _server_ready(self, asked: Any, context: Any) -> Any:
        return {"ready": self.lifecycle.ready}

    async def _model_ready(self, asked: Any, context: Any) -> Any:
        try:
            self._get(asked)
        except RequestError:  # one that is not there is not ready: an answer, not a mistake
            return {"ready": False}
        return {"ready": self.lifecycle.ready}

    async def _server_metadata(self, asked: Any, context: Any) -> Any:
        return metadata.server_metadata()

    async def _model_metadata(self, asked: Any, context: Any) -> Any:
        served = self._get(asked)
        return metadata.model_metadata(served.session, self.repository.versions(served.name))

    async def _model_config(self, asked: Any, context: Any) -> Any:
        served = self._get(asked)
        versions = self.repository.versions(served.name)
        return {"config": metadata.model_config(served.session, versions, self.max_batch)}

    async def _model_statistics(self, asked: Any, context: Any) -> Any:
        served = self.repository.served(asked.name or None, asked.version or None)
        return metadata.model_statistics(served)

    async def _repository_index(self, asked: Any, context: Any) -> Any:
        return {"models": await self.repository.index(ready=asked.ready)}

    async def _repository_model_load(self, asked: Any, context: Any) -> Any:
        self._check_control(asked)
        await self.repository.load(asked.model_name)
        return {}

    async def _repository_model_unload(self, asked: Any, context: Any) -> Any:
        self._check_control(asked)
        self.repository.unload(asked.model_name)
        return {}

    async def _model_infer(self, received: bytes, context: Any) -> bytes:
        """Decode, predict, encode, as over HTTP."""
        clock = asyncio.get_running_loop().time
        arrived = clock()
        with self.lifecycle.requests:
            with self.bodies.holding(len(received)):
                size = effort(0, len(received))
                head, raw = await self.bodies.beside(size, read_message, received)
            served = self.repository.get(head.model, head.version or None)
            with served, served.statistics.request() as laps:
                served.batcher.check_room()
                with self.bodies.holding(len(received)):
                    binary = sum(map(len, raw))
                    size = effort(len(received) - binary, binary)
                    request = await self.bodies.beside(size, self._decode, served, head, raw)
                limits = [] if request.timeout is None else [request.timeout]
                if (left := context.time_remaining()) is not None:
                    limits.append(left + clock() - arrived)
                laps.lap()
                outputs = await served.predict(request.inputs, min(limits, default=None), arrived)
                laps.lap()
                binary = sum(outputs[one.name].nbytes for one in request.outputs)
                size = effort(text_bytes(request.outputs, outputs), binary)
                return await self.bodies.beside(size, _encode, served, request, outputs)

    def _decode(self, served: Served, head: Head, raw: Sequence[memoryview]) -> InferRequest:
        session = served.session
        return decode_message(head, raw, session.inputs, session.outputs, self.max_batch)

    def _get(self, asked: Any) -> Served:
        return self.repository.get(asked.name, asked.version or None)

    def _check_control(self, asked: Any) -> None:
        check_model_control(self.model_control)
        parameters.LOAD(plain(asked.parameters), "parameters")


def _encode(served: Served, asked: InferRequest, outputs: Mapping[str, NDArray[Any]]) -> bytes:
    manifest = served.session.manifest
    message = encode_message(served.name, served.version, asked, outputs, manifest)
    return bytes(message.SerializeToString())


class GrpcServer:
    """A server of ``service`` at the gRPC port of ``settings``; ``metrics`` count its requests."""

    def __init__(self, service: Service, settings: Settings, metrics: Metrics) -> None:
        self._service = service
        self._settings = settings
        self._metrics = metrics
        # Names of requests in the log, as over HTTP.
        self._name, self._numbers = secrets.token_hex(4), itertools.count(1)
        self._server: Any = None

    async def start(self) -> str:
        """Begin to answer; return the address. Raises ServeError when it cannot be had."""
        settings = self._settings
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=settings.queue.rows + _OTHER_CALLS,
            options=[
                # Or another process could take the same port, and some of the requests.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
            ],
        )
        methods = {
            name: self._handler(SERVICE.methods_by_name[name], answer)
            for name, answer in self._service.answers().items()
        }
        handler = grpc.method_handlers_generic_handler(SERVICE.full_name, methods)
        self._server.add_generic_rpc_handlers((handler,))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            port = self._listen(f"{host}:{settings.grpc_port}")
        except RuntimeError as error:
            raise ServeError(
                f"cannot listen at {settings.host} port {settings.grpc_port} for gRPC; choose"
                " another with --grpc-port, 0 takes any free one"
            ) from error
        await self._server.start()
        return f"{host}:{port}"

    async def stop(self, seconds: float) -> None:
        """Take no more requests; return when those in flight are answered, or at the limit."""
        await self._server.stop(seconds)

    def _listen(self, address: str) -> Any:
        certificate, key = self._settings.certificate, self._settings.key
        if certificate is None or key is None:
            return self._server.add_insecure_port(address)
        pair = (key.read_bytes(), certificate.read_bytes())
        return self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))

    def _handler(self, method: Any, answer: Answer) -> Any:
        """Return how gRPC calls a method: with its errors as statuses."""
        request_class = message_class(method.input_type.name)
        answer_class = message_class(method.output_type.name)
        infers = method.name == "ModelInfer"
        token = None if method.name in _OPEN else self._settings.token

        async def handle(received: bytes, context: Any) -> Any:
            REQUEST_ID.set(f"{self._name}-{next(self._numbers)}")
            code, started = grpc.StatusCode.CANCELLED, time.perf_counter()
            try:
                if token is not None:
                    _check_token(context, token)
                asked = received if infers else _read(request_class, received)
                found = await answer(asked, context)
                code, message = grpc.StatusCode.OK, ""
            except Exception as error:
                code, message = _status(method.name, error)
            finally:
                seconds = time.perf_counter() - started
                self._metrics.answered(f"gRPC {method.name}", code.name, seconds)
            if code is not grpc.StatusCode.OK:
                await context.abort(code, message)
            if isinstance(found, dict):
                # The protocol's messages have less than its JSON: no parameters of a model.
                message = ParseDict(found, answer_class(), ignore_unknown_fields=True)
                return message.SerializeToString()
            return found

        return grpc.unary_unary_rpc_method_handler(handle)


def _read(message_class: Any, received: bytes) -> Any:
    if len(received) > LARGEST:
        raise RequestError(413, f"the message has more than {LARGEST:,} bytes")
    return message_class.FromString(received)


def _status(method: str, error: Exception) -> tuple[grpc.StatusCode, str]:
    """Return how gRPC says what went wrong; the log has what is not the client's mistake."""
    match error:
        case RequestError():
            return _CODES.get(error.status, grpc.StatusCode.UNKNOWN), error.message
        case FormatError():
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        case DecodeError():
            message = f"received bytes that are no message, expected that of {method}"
            return grpc.StatusCode.INVALID_ARGUMENT, message
        case InferenceError():
            LOG.error("%s: %s", method, error)
            return grpc.StatusCode.INTERNAL, str(error)
    LOG.error("a defect, in %s", method, exc_info=error)
    return grpc.StatusCode.INTERNAL, "a defect of the server; its log has the details"


def _check_token(context: Any, token: str) -> None:
    given = dict(context.invocation_metadata()).get("authorization", "")
    scheme, _, shown = str(given).partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(shown.encode(), token.encode()):
        raise RequestError(
            401, "expected the metadata authorization: Bearer and the server's token"
        )
