"""Clients of a served model on this machine: a steady load, and clients that do harm.

Run as a program it is hostile for a while:
``python -m benchmarks.serving_clients PORT MODEL SECONDS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvloop

HOST = "127.0.0.1"

TYPES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64"}
MIB = 2**20


@dataclass
class Load:
    """What came of a load: the seconds of each answer, and statuses other than 200.

    ``sent`` is when requests that were answered were sent, where it was noted.
    """

    seconds: float
    latencies: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def after(self, seconds: float) -> Load:
        """Return what came of the requests that were sent so many seconds after the first."""
        pairs = zip(self.sent, self.latencies, strict=True)
        begin = min(self.sent) + seconds
        late = [latency for sent, latency in pairs if sent >= begin]
        return Load(self.seconds - seconds, late)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready plain data, times in milliseconds."""
        p50, p99 = (1000 * np.percentile(self.latencies or [float("nan")], (50, 99))).tolist()
        return {"per_second": self.rate, "p50_ms": p50, "p99_ms": p99, "others": self.others}


class _Client(asyncio.Protocol):
    """Sends one request after the other on one connection until the time is over."""

    def __init__(self, request: bytes, load: Load, until: float, done: asyncio.Future[None]):
        self._request = request
        self._load = load
        self._until = until
        self._done = done
        self._received = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._send()

    def _send(self) -> None:
        if time.perf_counter() < self._until:
            self._sent = time.perf_counter()
            self._transport.write(self._request)
        else:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < _number(head, b"content-length"):
            return
        self._received = b""
        if head.startswith(b"HTTP/1.1 200 "):
            self._load.latencies.append(time.perf_counter() - self._sent)
            self._load.sent.append(self._sent)
            self._send()
            return
        status = head[9:12].decode()
        self._load.others[status] = self._load.others.get(status, 0) + 1
        asyncio.get_running_loop().call_later(_number(head, b"retry-after"), self._send)

    def connection_lost(self, error: Exception | None) -> None:
        if time.perf_counter() < self._until:
            self._load.others["lost"] = self._load.others.get("lost", 0) + 1
        if not self._done.done():
            self._done.set_result(None)


def _number(head: bytes, header: bytes) -> int:
    """Return the number in a header, 0 where it has none."""
    _, found, rest = head.lower().partition(b"\r\n" + header + b": ")
    return int(rest.partition(b"\r")[0]) if found else 0


def load(port: int, request: bytes, clients: int, seconds: float) -> Load:
    """Return what comes of so many clients that each send ``request`` again and again."""
    found = Load(seconds)

    async def go() -> None:
        loop = asyncio.get_running_loop()
        until = time.perf_counter() + seconds
        ends = [loop.create_future() for _ in range(clients)]
        for end in ends:
            await loop.create_connection(
                lambda end=end: _Client(request, found, until, end),  # type: ignore[misc]
                HOST,
                port,
            )
        await asyncio.gather(*ends)

    uvloop.run(go())
    return found


def http(model: str, body: bytes, headers: str = "Content-Type: application/json") -> bytes:
    """Return an infer request as it goes over the wire."""
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def json_request(model: str, inputs: dict[str, np.ndarray]) -> bytes:
    """Return a request with its tensors in JSON."""
    tensors = [{**_named(n, x), "data": x.ravel().tolist()} for n, x in inputs.items()]
    return http(model, json.dumps({"inputs": tensors}).encode())


def binary_request(model: str, inputs: dict[str, np.ndarray]) -> bytes:
    """Return a request with binary tensors that asks for such, as ``tritonclient`` sends it."""
    tensors = [
        {**_named(name, x), "parameters": {"binary_data_size": x.nbytes}}
        for name, x in inputs.items()
    ]
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(x.tobytes() for x in inputs.values())
    return http(model, body, f"Inference-Header-Content-Length: {len(head)}")


def _named(name: str, x: np.ndarray) -> dict[str, Any]:
    return {"name": name, "shape": list(x.shape), "datatype": TYPES[x.dtype.name]}


def grpc_load(
    port: int, model: str, inputs: dict[str, np.ndarray], clients: int, seconds: float
) -> Load:
    """Return what comes of so many gRPC clients, each a stream of calls on a shared channel.

    As over HTTP the request is made once, and of the answer no more is read than that it is one.
    """
    import grpc
    from bmnas_serve.grpc_messages import ModelInferRequest

    message = ModelInferRequest(
        model_name=model,
        inputs=[_named(name, x) for name, x in inputs.items()],
        raw_input_contents=[x.tobytes() for x in inputs.values()],
    ).SerializeToString()
    found = Load(seconds)

    async def client(infer: Any, until: float) -> None:
        while time.perf_counter() < until:
            sent = time.perf_counter()
            await infer(message)
            found.latencies.append(time.perf_counter() - sent)

    async def go() -> None:
        async with grpc.aio.insecure_channel(f"{HOST}:{port}") as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            until = time.perf_counter() + seconds
            await asyncio.gather(*(client(infer, until) for _ in range(clients)))

    uvloop.run(go())
    return found


async def _pieces(body: bytes, size: int, pause: float) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]
        await asyncio.sleep(pause)


def _objects(keys: int) -> bytes:
    return b"{" + b",".join(b'"k%d":0' % key for key in range(keys)) + b"}"


async def _harm(port: int, model: str, until: float) -> None:
    """Do one harmful thing after the other: slow, half-open, silent, large, wide and deep."""
    large = b'{"inputs":[' + b"1.5," * (30 * MIB // 4) + b"0]}"
    kinds = [
        (http(model, b"{" * 1000), 20, 0.2),  # slow
        (http(model, b"{" * 1000)[:-900], 4096, 0.0),  # half-open
        (b"", 4096, 0.0),  # silent
        (http(model, large), MIB, 0.0),
        (http(model, _objects(16_000)), MIB, 0.0),
        (http(model, _objects(200_000)), MIB, 0.0),
        (http(model, b"[" * 10 * MIB), MIB, 0.0),
        (http(model, b"[" + b"{}," * (10 * MIB // 3) + b"{}]"), MIB, 0.0),
    ]
    for sent, size, pause in itertools.cycle(kinds):
        left = until - time.perf_counter()
        if left <= 0:
            return
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(min(left, 2.0)):
                reader, writer = await asyncio.open_connection(HOST, port)
                try:
                    async for piece in _pieces(sent, size, pause):
                        writer.write(piece)
                        await writer.drain()
                    await reader.read(1000)
                finally:
                    writer.close()


async def _harm_all(port: int, model: str, seconds: float, clients: int = 4) -> None:
    until = time.perf_counter() + seconds
    await asyncio.gather(*(_harm(port, model, until) for _ in range(clients)))


if __name__ == "__main__":
    asyncio.run(_harm_all(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
