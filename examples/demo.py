"""The whole path on the embedded task: search, train, export, serve, verify; ends with a table.

Run by ``make demo``. Every stage is the command that a user would type, and is printed before it
runs; the served model then answers all test samples over HTTP, and its answers are compared with
those of torch.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import bmnas
from bmnas.pipeline.multimodal import raw_samples

RUN = Path("runs/demo")
BATCH = 64


def main() -> None:
    """Run the stages, verify what is served, print the table."""
    started = time.perf_counter()
    bmnas_command("search", "--task", "digits", "--run", RUN, "--overwrite")
    bmnas_command("train", "--genotype", RUN / "genotype.json")
    bmnas_command("export", "--genotype", RUN / "genotype.json")
    with served(RUN / "bundle") as address:
        accuracy, difference, agreeing = verify(address)
    print_compared()
    print_table(accuracy, difference, agreeing, time.perf_counter() - started)


def bmnas_command(*words: object) -> None:
    """Run a bmnas command, its result on the terminal."""
    command = ["bmnas", *map(str, words)]
    print(f"\n$ {' '.join(command)}", flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


@contextmanager
def served(bundle: Path) -> Iterator[str]:
    """Serve ``bundle`` on a free port and yield its address; stop the server at the end."""
    command = ["bmnas", "serve", str(bundle), "--port", "0"]
    print(f"\n$ {' '.join(command)}", flush=True)
    server = subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        for line in server.stderr:
            print(line, end="", flush=True)
            found = re.search(r"http://\S+", line)
            if found:
                yield found[0].rstrip("/.,")
                break
        else:
            raise SystemExit(f"the server ended with status {server.wait()}")
    finally:
        server.terminate()
        server.wait()


def verify(address: str) -> tuple[float, float, int]:
    """Send all test samples to the server and compare its answers with those of torch.

    Returns the served model's accuracy, the largest difference of a logit as a fraction of the
    largest logit, and how many predictions are those of torch.
    """
    task = bmnas.load_task("digits")
    network = bmnas.load_network(RUN / "network.safetensors").network
    samples = raw_samples(task, network, "test")
    received, expected = [], []
    for start in range(0, len(samples), BATCH):
        chosen = torch.arange(start, min(start + BATCH, len(samples)))
        inputs = samples.batch(chosen).inputs
        tensors = dict(zip(network.modalities, inputs, strict=True))
        received.append(infer(f"{address}/v2/models/digits/infer", tensors))
        with torch.inference_mode():
            expected.append(network(*inputs).numpy())
    served_logits, torch_logits = np.concatenate(received), np.concatenate(expected)
    difference = float(np.abs(served_logits - torch_logits).max() / np.abs(torch_logits).max())
    answers = served_logits.argmax(1)
    agreeing = int((answers == torch_logits.argmax(1)).sum())
    return float((answers == samples.labels.numpy()).mean()), difference, agreeing


def infer(url: str, tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """Return the logits (B, K) that the server answers over the Open Inference Protocol."""
    request = {
        "inputs": [
            {
                "name": name,
                "shape": list(tensor.shape),
                "datatype": {"uint8": "UINT8", "float32": "FP32"}[str(tensor.numpy().dtype)],
                "data": tensor.flatten().tolist(),
            }
            for name, tensor in tensors.items()
        ],
        "outputs": [{"name": "logits"}],
    }
    body = json.dumps(request).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as response:
        (logits,) = json.load(response)["outputs"]
    return np.array(logits["data"], dtype=np.float32).reshape(logits["shape"])


def print_compared() -> None:
    """Print what the search compared on validation, what was trained longest first."""
    lines = (RUN / "rerank.jsonl").read_text().splitlines()
    trained = sorted(map(json.loads, lines), key=lambda one: (-one["epochs"], -one["worth"]))
    table = Table(title="compared by the search, on validation", min_width=64)
    table.add_column("fusion network")
    for column in ("epochs", "accuracy by itself", "loss of the weighted sum"):
        table.add_column(column, justify="right")
    shown = set()
    for one in trained:
        genotype = json.dumps(one["genotype"])
        if genotype not in shown:
            shown.add(genotype)
            name = one["genotype"].get("name", "Cells")
            score, loss = f"{one['validation_score']:.4f}", f"{-one['worth']:.4f}"
            table.add_row(name, str(one["epochs"]), score, loss)
    table.caption = "each after its longest training; the longest trained and best is kept"
    Console().print("\n", table)


def print_table(accuracy: float, difference: float, agreeing: int, seconds: float) -> None:
    """Print what the README shows."""
    metrics: dict[str, Any] = json.loads((RUN / "metrics.json").read_text())
    latency = metrics["latency"]
    table = Table(title="digits: two halves of a handwritten digit", min_width=64)
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, scores in metrics["unimodal"].items():
        table.add_row(f"test accuracy, {name} alone", f"{scores['test']:.4f}")
    table.add_row("test accuracy, fused", f"{metrics['test']['score']:.4f}")
    table.add_row("test accuracy, as served over HTTP", f"{accuracy:.4f}")
    table.add_row(
        "served predictions equal to torch's", f"{agreeing} of {metrics['test']['samples']}"
    )
    table.add_row("largest difference of a logit, relative", f"{difference:.1e}")
    table.add_section()
    for part, count in metrics["parameters"].items():
        table.add_row(f"parameters, {part}", f"{count:,}")
    table.add_section()
    for name in ("backbones", "search", "train"):
        table.add_row(f"seconds, {name}", f"{metrics['seconds'][name]:.1f}")
    table.add_row("seconds, everything here", f"{seconds:.1f}")
    table.add_section()
    for engine in ("torch", "onnxruntime"):
        for batch in (1, 64):
            median = latency[engine][f"batch_{batch}"]["median_ms"]
            table.add_row(f"latency, {engine}, batch {batch}, median ms", f"{median:.3g}")
    threads = f"threads: torch {latency['threads']}, onnxruntime {latency['onnxruntime_threads']}"
    table.caption = f"{latency['hardware']}; {threads}; {RUN}/architecture.svg"
    Console().print("\n", table)


if __name__ == "__main__":
    main()
