"""Is a model replaced under mixed traffic without a failed request, and without growth of memory?

    python -m benchmarks.serving_replacement BUNDLE --seconds 300 --out FILE.json

Serves a folder of two models, both copies of BUNDLE, to clients over HTTP (bytes and JSON) and
gRPC, and every ``--every`` seconds puts a new version of the first in the place of the one before.
Answers are compared with those of the bundle in this process. All traffic stays on this machine
and ends after ``--seconds``. Prints one line a replacement and writes FILE.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import itertools
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.session import Session

from bmnas.machine.costs import hardware, versions
from bmnas.machine.files import write_json

REPLACED, STAYING = "replaced", "staying"
#: How many clients ask at once, each over its own protocol.
CLIENTS = {"HTTP bytes": 4, "HTTP JSON": 2, "gRPC": 4}
#: The relative difference that answers may have: a batch is computed in another order.
TOLERANCE = 1e-4


@dataclass
class Tally:
    """What came of the requests; ``mib`` is the memory of the server by seconds."""

    answered: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    replacements: int = 0
    mib: list[tuple[float, float]] = field(default_factory=list)


def main() -> None:
    """Serve, replace, count; print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--every", type=float, default=10)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        shutil.copytree(asked.bundle, models / REPLACED / "1")
        shutil.copytree(asked.bundle, models / STAYING)
        with _served(models) as (process, http, grpc):
            tally = asyncio.run(_run(models, process, http, grpc, asked.seconds, asked.every))
    settled = [mib for second, mib in tally.mib if second > asked.seconds / 5]
    write_json(
        asked.out,
        {
            "date": datetime.date.today().isoformat(),
            "bundle": asked.bundle.parent.name,
            "seconds": asked.seconds,
            "clients": CLIENTS,
            "replacements": tally.replacements,
            "versions_that_answered": len(tally.versions),
            "answered": dict(tally.answered),
            "failed": len(tally.failures),
            "failures": tally.failures[:10],
            "mib_first": tally.mib[0][1],
            "mib_after_a_fifth": settled[0],
            "mib_last": settled[-1],
            "mib": tally.mib,
            "hardware": hardware(),
            "versions": versions(),
        },
    )
    print(f"{sum(tally.answered.values()):,} answered, {len(tally.failures)} failed")
    print(f"memory {settled[0]:.0f} MiB after a fifth of the time, {settled[-1]:.0f} at the end")
    if tally.failures:
        sys.exit(f"error: {tally.failures[0]}")


@contextlib.contextmanager
def _served(models: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Serve the folder while the block runs; yield the process and its two addresses."""
    command = [sys.executable, "-m", "bmnas", "serve", str(models), "--port", "0"]
    process = subprocess.Popen([*command, "--grpc-port", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://(\S+) and gRPC at (\S+)", line):
                yield process, found[1], found[2]
                return
        raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.communicate()


async def _run(
    models: Path, process: subprocess.Popen[str], http: str, grpc: str, seconds: float, every: float
) -> Tally:
    session = Session.open(models / STAYING, intra_op_threads=1)
    rng = np.random.default_rng(0)
    inputs = {
        spec.name: rng.integers(0, 5, (2, *spec.shape[1:])).astype(spec.dtype)
        for spec in session.inputs
    }
    name, expected = next(iter(session.run(inputs).items()))
    tally, stop = Tally(), time.monotonic() + seconds

    async def client(kind: str, infer: Callable[[str], Awaitable[Any]]) -> None:
        for model in itertools.cycle((REPLACED, STAYING)):
            if time.monotonic() > stop:
                return
            try:
                result = await infer(model)
                received = result.as_numpy(name)
                np.testing.assert_allclose(received, expected, rtol=TOLERANCE, atol=TOLERANCE)
            except Exception as error:  # whatever it is, it is counted
                tally.failures.append(f"{kind}, {model}: {error}")
                continue
            tally.answered[kind] += 1
            if model == REPLACED:
                response = result.get_response()
                version = response["model_version"] if kind != "gRPC" else response.model_version
                tally.versions.add(version)

    async with (
        triton_http_aio.InferenceServerClient(http) as over_http,
        triton_grpc_aio.InferenceServerClient(grpc) as over_grpc,
    ):
        tensors = {
            "HTTP bytes": _tensors(triton_http, inputs, binary_data=True),
            "HTTP JSON": _tensors(triton_http, inputs, binary_data=False),
            "gRPC": _tensors(triton_grpc, inputs),
        }
        plain = [triton_http.InferRequestedOutput(name, binary_data=False)]
        calls: dict[str, Callable[[str], Awaitable[Any]]] = {
            "HTTP bytes": lambda m: over_http.infer(m, tensors["HTTP bytes"]),
            "HTTP JSON": lambda m: over_http.infer(m, tensors["HTTP JSON"], outputs=plain),
            "gRPC": lambda m: over_grpc.infer(m, tensors["gRPC"]),
        }
        asking = [client(kind, calls[kind]) for kind, n in CLIENTS.items() for _ in range(n)]
        replacing = _replace(models, process.pid, over_http, tally, seconds, every)
        await asyncio.gather(*asking, replacing)
    return tally


async def _replace(
    models: Path, pid: int, client: Any, tally: Tally, seconds: float, every: float
) -> None:
    """Put the next version in the place of the last, again and again, and read the memory."""
    start = time.monotonic()
    tally.mib.append((0.0, _mib(pid)))
    for number in range(2, 2 + int(seconds / every)):
        await asyncio.sleep(max(0.0, start + (number - 1) * every - time.monotonic()))
        folder = models / REPLACED
        await asyncio.to_thread(shutil.copytree, models / STAYING, folder / f"{number}.part")
        (folder / f"{number}.part").rename(folder / str(number))
        shutil.rmtree(folder / str(number - 1))
        await client.load_model(REPLACED)
        tally.replacements += 1
        tally.mib.append((time.monotonic() - start, _mib(pid)))
        second, mib = tally.mib[-1]
        answered = sum(tally.answered.values())
        print(f"{second:5.0f} s, version {number}: {answered:,} answered,", end=" ")
        print(f"{len(tally.failures)} failed, {mib:.0f} MiB", flush=True)


def _tensors(module: Any, inputs: dict[str, np.ndarray], **options: bool) -> list[Any]:
    tensors = []
    for name, array in inputs.items():
        tensor = module.InferInput(name, list(array.shape), PROTOCOL[array.dtype.name])
        tensors.append(tensor.set_data_from_numpy(array, **options))
    return tensors


def _mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
