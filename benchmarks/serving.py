"""The server against onnxruntime in this process, under overload, and among hostile clients.

    python -m benchmarks.serving BUNDLE --out FILE.json

``--only digits overload`` measures these parts alone and leaves the others of FILE as they are. All
traffic stays on this machine and ends after about five minutes. Rates are shares of what
onnxruntime does in this process at batch 1 with the same number of threads, measured before and
after each load, the median of three; clients run here too, so they take their part of the cores.
Of overload, too, the median of three counts: it ends up late where the machine stops for a moment.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import datetime
import gc
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from bmnas_serve.manifest import load
from bmnas_serve.session import Session
from rich.console import Console
from rich.table import Table

from benchmarks import serving_clients as clients
from benchmarks.serving_models import audio_bundle, slow_bundle
from bmnas.machine.costs import hardware, versions
from bmnas.machine.files import write_json

SECONDS = 2.0
#: Of so many loads the one of median share counts: the machine may be shared.
LOADS = 3
CLIENTS = (1, 16, 64)
PARTS = ("digits", "audio-sized", "overload", "hostile", "stopping")


class Server:
    """``bmnas serve`` in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.model = load(folder).name
        command = [sys.executable, "-m", "bmnas", "serve", str(folder), "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = ""
        for line in self.process.stderr:
            said += line
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise RuntimeError(f"the server did not start: {said}")
        threads = re.search(r": (\d+) threads? \(", said)
        self.threads = int(threads[1]) if threads else 1
        found_grpc = re.search(r"gRPC\D+127\.0\.0\.1:(\d+)", said)
        self.grpc_port = int(found_grpc[1]) if found_grpc else None

    def metric(self, name: str) -> float:
        """Return a metric without labels."""
        connection = http.client.HTTPConnection(clients.HOST, self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])

    @property
    def mib(self) -> float:
        """The memory of the server."""
        return self.metric("process_resident_memory_bytes") / 2**20


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[Server]:
    """Serve a bundle while the block runs."""
    server = Server(folder, *options)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def reference(session: Session, inputs: dict[str, np.ndarray], seconds: float = 0.5) -> float:
    """Return how many runs a second onnxruntime makes in this process."""
    session.run(inputs)
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        session.run(inputs)
        count += 1
    return count / spent


def speed(folder: Path, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return rates and latencies by protocol and number of clients."""
    found: dict[str, Any] = {}
    with served(folder, "--grpc-port", "0") as server:
        session = Session.open(folder, intra_op_threads=server.threads)
        found["threads"] = server.threads

        def once(run: Callable[[int], clients.Load], count: int) -> dict[str, Any]:
            before, cpu = reference(session, inputs), server.metric("process_cpu_seconds_total")
            outcome = run(count)
            cpu = server.metric("process_cpu_seconds_total") - cpu
            alone = (before + reference(session, inputs)) / 2
            return {
                **outcome.to_dict(),
                "alone_per_second": alone,
                "share": outcome.rate / alone,
                "server_cpu_us": 1e6 * cpu / len(outcome.latencies),
            }

        def measure(name: str, run: Callable[[int], clients.Load]) -> None:
            run(4)  # warm up
            for count in CLIENTS:
                loads = sorted((once(run, count) for _ in range(LOADS)), key=itemgetter("share"))
                shares = [load["share"] for load in loads]
                found[f"{name}, {count}"] = {**loads[LOADS // 2], "shares": shares}

        for name, encode in (("binary", clients.binary_request), ("JSON", clients.json_request)):
            request = encode(server.model, inputs)
            measure(name, lambda n, r=request: clients.load(server.port, r, n, SECONDS))  # type: ignore[misc]
        port, model = server.grpc_port, server.model
        assert port is not None
        measure("gRPC", lambda n: clients.grpc_load(port, model, inputs, n, SECONDS))
    return found


def overload(folder: Path) -> dict[str, Any]:
    """Return what 256 clients get from a slow model whose queue holds 64 rows.

    Those that are refused come back after the second that Retry-After names.
    """
    inputs = {"x": np.zeros((1, 64), np.float32)}
    # One thread: a run of two would wait for the core that clients and event loop are on.
    queue = ("--queue-rows", "64", "--batch-rows", "16", "--threads", "1")
    with served(folder, *queue) as server:
        request = clients.binary_request(server.model, inputs)
        clients.load(server.port, request, 16, 1.0)
        capacity = clients.load(server.port, request, 32, 3.0)
        before = server.mib
        crowd = clients.load(server.port, request, 256, 6.0)
        after = server.mib
        again = clients.load(server.port, request, 32, 3.0)
    able = (capacity.rate + again.rate) / 2
    # Not the first second, in which the connections are made. Then the queue is full always.
    steady = crowd.after(1.0)
    # The queue, the batch that runs, and the time of one more to receive and to answer.
    bound = (64 + 2 * 16) / steady.rate
    return {
        "capacity_per_second": able,
        **crowd.to_dict(),
        "goodput": crowd.rate / able,
        "steady": steady.to_dict(),
        "bound_ms": 1000 * bound,
        "p99_ratio": steady.to_dict()["p99_ms"] / (1000 * bound),
        "mib_before": before,
        "mib_after": after,
    }


def hostile(folder: Path, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return what 16 clients get alone, and beside 4 that do harm."""
    with served(folder) as server:
        request = clients.binary_request(server.model, inputs)
        clients.load(server.port, request, 16, 1.0)
        alone = clients.load(server.port, request, 16, 8.0)
        before, peak = server.mib, 0.0
        command = [sys.executable, "-m", "benchmarks.serving_clients"]
        arguments = [str(server.port), server.model, "20"]
        harm = subprocess.Popen([*command, *arguments])
        time.sleep(2)
        beside = clients.Load(0.0)
        for _ in range(8):
            part = clients.load(server.port, request, 16, 1.0)
            beside.seconds += 1.0
            beside.latencies += part.latencies
            for status, count in part.others.items():
                beside.others[status] = beside.others.get(status, 0) + count
            peak = max(peak, server.mib)
        harm.wait(60)
    found = {"alone": alone.to_dict(), "beside": beside.to_dict()}
    ratio = found["beside"]["p99_ms"] / found["alone"]["p99_ms"]
    return {**found, "p99_ratio": ratio, "mib_before": before, "mib_peak": peak}


def stopping(folder: Path) -> dict[str, Any]:
    """Return how many of 64 requests in flight are answered after SIGTERM, and when it ends."""
    inputs = {"x": np.zeros((1, 64), np.float32)}
    with served(folder, "--batch-rows", "16") as server:
        request = clients.binary_request(server.model, inputs)
        ready = threading.Barrier(65)

        def ask() -> bool:
            with socket.create_connection((clients.HOST, server.port), timeout=60) as client:
                ready.wait(30)
                client.sendall(request)
                return client.recv(12) == b"HTTP/1.1 200"

        with (
            concurrent.futures.ThreadPoolExecutor(64) as crowd,
            socket.create_connection((clients.HOST, server.port), timeout=60) as unfinished,
        ):
            unfinished.sendall(request[:-20])
            answers = [crowd.submit(ask) for _ in range(64)]
            ready.wait(30)
            time.sleep(0.05)
            start = time.perf_counter()
            server.process.send_signal(signal.SIGTERM)
            answered = sum(answer.result() for answer in answers)
            server.process.wait(60)
            return {"answered": answered, "seconds": time.perf_counter() - start}


def show(found: dict[str, Any]) -> None:
    """Print the figures."""
    console = Console(width=100)
    table = Table(title="share of onnxruntime in process, by clients")
    for column in (
        "input",
        "protocol, clients",
        "share",
        "answers/s",
        "p50 ms",
        "p99 ms",
        "CPU us",
    ):
        table.add_column(column)
    for name in PARTS[:2]:
        for key, row in found.get(name, {}).items():
            if key != "threads":
                cells = [row[k] for k in ("per_second", "p50_ms", "p99_ms", "server_cpu_us")]
                table.add_row(name, key, f"{row['share']:.2f}", *(f"{cell:.1f}" for cell in cells))
    console.print(table)
    for name in PARTS[2:]:
        if name in found:
            console.print(name, found[name])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle of the task digits")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    asked = parser.parse_args()
    example = json.loads((asked.bundle / "example.json").read_text())
    digits = {
        tensor["name"]: np.array(tensor["data"], "u1").reshape(tensor["shape"])
        for tensor in example["inputs"]
    }
    gc.collect()
    gc.freeze()  # or the clients stop for 50 ms now and then, and their answers are late
    rng = np.random.default_rng(0)
    sound = {
        "image": rng.integers(0, 256, (1, 28, 28), dtype=np.uint8),
        "sound": rng.normal(size=(1, 8000)).astype(np.float32),
    }
    with tempfile.TemporaryDirectory() as folder:
        slow = slow_bundle(Path(folder) / "slow")
        audio = audio_bundle(Path(folder) / "sound")
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "digits": lambda: speed(asked.bundle, digits),
            "audio-sized": lambda: speed(audio, sound),
            "overload": lambda: sorted(
                (overload(slow) for _ in range(LOADS)), key=itemgetter("p99_ratio")
            )[LOADS // 2],
            "hostile": lambda: hostile(asked.bundle, digits),
            "stopping": lambda: stopping(slow),
        }
        found = {name: parts[name]() for name in PARTS if name in asked.only}
    show(found)
    if asked.out:
        before = json.loads(asked.out.read_text()) if asked.out.exists() else {}
        named = versions("onnxruntime", "uvicorn", "starlette", "uvloop", "httptools", "grpcio")
        about = {"date": f"{datetime.date.today()}", "hardware": hardware(), "versions": named}
        found = {name: {**before, **found}[name] for name in PARTS if name in {*before, *found}}
        write_json(asked.out, {**about, **found})


if __name__ == "__main__":
    main()
