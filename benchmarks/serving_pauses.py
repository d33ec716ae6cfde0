"""How long does the body of a request keep the event loop of the server waiting?

    python -m benchmarks.serving_pauses

Bodies of up to 45 MiB, in JSON and over gRPC, are read in this process as the server reads them,
while a task of the event loop does nothing but look at the clock. Prints the longest time between
two looks.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import uvloop
from bmnas_serve import server
from bmnas_serve.bodies import Bodies, effort
from bmnas_serve.codec import decode_request
from bmnas_serve.errors import FormatError
from bmnas_serve.grpc_codec import decode_message, read_message
from bmnas_serve.grpc_messages import ModelInferRequest
from bmnas_serve.manifest import TensorSpec

INPUTS = (TensorSpec("x", (-1, -1), "float32"),)
OUTPUTS = (TensorSpec("y", (-1, 1), "float32"),)


def read_json(body: bytes) -> object:
    """Read a body as the server reads it."""
    return decode_request(body, INPUTS, OUTPUTS, 10**6)


def read_grpc(body: bytes) -> object:
    """Read a message as the server reads it."""
    return decode_message(*read_message(body), INPUTS, OUTPUTS, 10**6)


def nested(rows: int, columns: int, value: str = "1.5") -> bytes:
    """Return a request in JSON for a tensor of rows."""
    row = f"[{','.join([value] * columns)}]"
    head = json.dumps({"name": "x", "datatype": "FP32", "shape": [rows, columns]})[:-1]
    return f'{{"inputs":[{head},"data":[{",".join([row] * rows)}]}}]}}'.encode()


def message(columns: int, **contents: Any) -> bytes:
    """Return a request over gRPC for a tensor of one row."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, columns], "contents": contents}
    return ModelInferRequest(inputs=[tensor]).SerializeToString()


async def longest(body: bytes, read: Callable[[], object]) -> tuple[float, str]:
    """Return for how many seconds the event loop waited at most, and what came of the body."""
    looks: list[float] = []

    async def look() -> None:
        while True:
            looks.append(time.perf_counter())
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    await asyncio.sleep(0.01)
    with Bodies() as bodies:
        try:
            await bodies.beside(effort(len(body), 0), read)
            said = "read"
        except FormatError as error:
            said = str(error)[:60]
    looking.cancel()
    return float(np.diff(looks).max()), said


def main() -> None:
    """Measure and print."""
    server._keep_pauses_short()
    many = 7_500_000
    bodies = {
        "rows of 2": nested(99_000, 2),
        "rows of 80": nested(90_000, 80),
        "rows of 300 integers": nested(26_000, 300, "1000"),
        "rows of 600, of both": nested(26_000, 300, "1,1.5"),
        "rows of 3,000": nested(2_600, 3_000),
        "one row": nested(1, many),
        "truth values": nested(90_000, 80, "true"),
        "900,000 nulls": nested(1, 900_000, "null"),
        "nulls": nested(90_000, 80, "null"),
        "gRPC, floats": message(many, fp32_contents=np.ones(many)),
        "gRPC, integers": message(many, uint_contents=np.ones(many, int)),
        "gRPC, empty inputs": b"\x2a\x00" * many,
    }
    for name, body in bodies.items():
        read = partial(read_grpc if name.startswith("gRPC") else read_json, body)
        seconds, said = uvloop.run(longest(body, read))
        print(f"{name:22} {len(body) / 2**20:5.1f} MiB {1000 * seconds:6.1f} ms  {said}")


if __name__ == "__main__":
    main()
