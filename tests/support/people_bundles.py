"""A tiny bundle whose inputs are a picture, a sound, a text and fields, with samples."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bmnas_serve.manifest import InputSpec, Manifest, TaskSpec, TensorSpec
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from tiny_bundles import CLASSES, constant, save_model, value

WORDS = ("[pad]", "[unknown]", "cat", "dog", "owl", "barks")
SAMPLES = 5

PHOTO = {"height": 6, "width": 4, "fit": "crop", "grey": False, "resize": [], "resample": 2}
FACTS = (
    {"column": "age", "mean": 5.0, "deviation": 2.0, "gaps": True},
    {"column": "city", "names": ["Oslo", "Rome"]},
)


def tokenizer() -> dict[str, Any]:
    """Return a tokenizer.json of ``WORDS``."""
    package = pytest.importorskip("tokenizers")
    numbers = {word: number for number, word in enumerate(WORDS)}
    made = package.Tokenizer(package.models.WordLevel(numbers, unk_token="[unknown]"))
    made.normalizer = package.normalizers.Lowercase()
    made.pre_tokenizer = package.pre_tokenizers.Whitespace()
    content: dict[str, Any] = json.loads(made.to_str())
    return content


def inputs() -> tuple[InputSpec, ...]:
    """Return the inputs, each with how it is made."""
    photo = {"type": "image", "source": {"column": "photo", "files": {**PHOTO, "type": "image"}}}
    files = {"sample_rate": 800, "samples": 80, "type": "waveform"}
    sound = {"type": "waveform", "source": {"column": "sound", "files": files}}
    title = {"type": "text", "tokenizer": tokenizer(), "length": 4, "pad": 0}
    facts = {"type": "vector", "source": {"vector": list(FACTS)}}
    return (
        InputSpec("photo", (-1, 6, 4, 3), "uint8", "a picture", photo, (0, 255)),
        InputSpec("sound", (-1, 80), "float32", "0.1 s of sound", sound, (-1, 1)),
        InputSpec("title", (-1, 4), "int64", "a text", title),
        InputSpec("facts", (-1, 4), "float32", "age and city", facts, (-2, 2)),
    )


def samples() -> dict[str, np.ndarray]:
    """Return rows of each input."""
    rng = np.random.default_rng(0)
    city = np.eye(2, dtype="f4")[rng.integers(2, size=SAMPLES)]
    age = np.stack([rng.normal(size=SAMPLES), np.zeros(SAMPLES)], 1).astype("f4")
    return {
        "photo": rng.integers(0, 256, (SAMPLES, 6, 4, 3), dtype=np.uint8),
        "sound": rng.uniform(-0.5, 0.5, (SAMPLES, 80)).astype("f4"),
        "title": rng.integers(2, len(WORDS), (SAMPLES, 4)),
        "facts": np.concatenate([age, city], 1),
    }


def save_people(folder: Path, **changes: Any) -> Path:
    """Write the bundle; ``changes`` go into its manifest, ``drawing`` is its architecture."""
    folder.mkdir(parents=True)
    specs = inputs()
    rng = np.random.default_rng(1)
    nodes, sums = [], []
    for spec in specs:
        size = int(np.prod(spec.shape[1:]))
        weights = (rng.normal(size=(size, 3)) / np.sqrt(size)).astype("f4")
        scale = np.float32(1 / 64 if spec.dtype == "uint8" else 1)
        nodes += [
            constant(f"w_{spec.name}", weights * scale),
            constant(f"flat_{spec.name}", np.array([-1, size], "i8")),
            helper.make_node("Cast", [spec.name], [f"f_{spec.name}"], to=TensorProto.FLOAT),
            helper.make_node(
                "Reshape", [f"f_{spec.name}", f"flat_{spec.name}"], [f"r_{spec.name}"]
            ),
            helper.make_node("MatMul", [f"r_{spec.name}", f"w_{spec.name}"], [f"a_{spec.name}"]),
        ]
        sums.append(f"a_{spec.name}")
    nodes += [
        helper.make_node("Sum", sums, ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("Identity", ["logits"], ["prediction"]),
    ]
    kinds = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    given = [value(s.name, kinds[s.dtype], ["batch", *s.shape[1:]]) for s in specs]
    names = ("logits", "probabilities", "prediction")
    outputs = [value(name, TensorProto.FLOAT, ["batch", 3]) for name in names]
    save_model(folder / "model.onnx", nodes, given, outputs)
    rows = {f"inputs.{name}": array for name, array in samples().items()}
    save_file(rows, folder / "samples.safetensors")
    if (drawing := changes.pop("drawing", "<svg xmlns='http://www.w3.org/2000/svg'/>")) is not None:
        (folder / "architecture.svg").write_text(drawing)
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    manifest = Manifest(
        name="pets",
        task=TaskSpec("pets", "multiclass"),
        inputs=specs,
        outputs=tuple(TensorSpec(name, (-1, 3), "float32") for name in names),
        class_names=CLASSES,
        files=files,
        genotype={"format": "bmnas.genotype/1"},
        scores={
            "metric": "accuracy",
            "test": {"score": 0.75, "samples": 20},
            "unimodal": {"photo": {"test": 0.5}},
        },
        latency={"onnxruntime": {"batch_1": {"median_ms": 0.5, "p99_ms": 1.0}}, "threads": 1},
        versions={"bmnas": "0.1.0"},
    )
    manifest = dataclasses.replace(manifest, **changes)
    (folder / "manifest.json").write_text(json.dumps(manifest.to_file()))
    return folder


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a bundle in a process of its own; yields the address."""
    command = [sys.executable, "-m", "bmnas", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            told = ""
            for line in server.stderr:
                told += line
                if found := re.search(r"http://\S+", line):
                    yield found[0]
                    break
            else:
                pytest.fail(f"the server did not start: {told}")
        finally:
            server.terminate()
            server.wait(30)


def picture(size: tuple[int, int] = (31, 40), form: str = "PNG", level: int = 90) -> bytes:
    """Return a picture of (H, W)."""
    image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    image.fromarray(np.full((*size, 3), level, np.uint8)).save(out, form)
    return out.getvalue()


def sound(rate: int = 8000, seconds: float = 0.3, form: str = "WAV") -> bytes:
    """Return a tone."""
    soundfile = pytest.importorskip("soundfile")
    out = io.BytesIO()
    time = np.arange(round(rate * seconds)) / rate
    soundfile.write(out, 0.4 * np.sin(2 * np.pi * 100 * time), rate, format=form)
    return out.getvalue()
