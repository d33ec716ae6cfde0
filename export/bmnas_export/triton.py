"""A model repository for NVIDIA's Triton Inference Server, of what a bundle holds.

The format: https://docs.nvidia.com/deeplearning/triton-inference-server, "Model Configuration".
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.manifest import Manifest, TensorSpec
from numpy.typing import NDArray

from bmnas_export.engines import BATCHES

_LABELS = "labels.txt"


def write_model(
    folder: Path,
    model: Path,
    manifest: Manifest,
    sample: Mapping[str, NDArray[Any]],
) -> None:
    """Write the model that is called as ``folder`` is, from the file ``model``.

    An ``.onnx`` file runs in Triton's onnxruntime backend, another one in its TensorRT backend.
    ``sample`` holds an array (1, *shape) for each input, of the type that the file takes; Triton
    runs it before it says that the model is ready.
    """
    backend, file = (
        ("onnxruntime", "model.onnx") if model.suffix == ".onnx" else ("tensorrt", "model.plan")
    )
    (folder / "1").mkdir(parents=True)
    (folder / "warmup").mkdir()
    shutil.copyfile(model, folder / "1" / file)
    for place, array in enumerate(sample.values()):
        (folder / "warmup" / str(place)).write_bytes(array.tobytes())
    labels = "".join(f"{' '.join(name.split())}\n" for name in manifest.class_names)
    (folder / _LABELS).write_text(labels, encoding="utf-8")
    lines = [
        f"name: {_text(folder.name)}",
        f"backend: {_text(backend)}",
        f"default_model_filename: {_text(file)}",
        f"max_batch_size: {BATCHES[-1]}",
        *_inputs(manifest.inputs, sample),
        *_outputs(manifest),
        # Requests that wait for a run are joined to one.
        "dynamic_batching { }",
        *_warm_up(sample),
    ]
    (folder / "config.pbtxt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _inputs(specs: Iterable[TensorSpec], sample: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    for spec in specs:
        kind = sample[spec.name].dtype.name
        yield f"input {{ name: {_text(spec.name)} {_form(kind, spec.shape)} }}"


def _outputs(manifest: Manifest) -> Iterator[str]:
    for spec in manifest.outputs:
        named = spec.name == "probabilities" and spec.shape[1:] == (len(manifest.class_names),)
        labels = f" label_filename: {_text(_LABELS)}" if named else ""
        yield f"output {{ name: {_text(spec.name)} {_form(spec.dtype, spec.shape)}{labels} }}"


def _warm_up(sample: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    yield 'model_warmup { name: "first test sample" batch_size: 1'
    for place, (name, array) in enumerate(sample.items()):
        form = f'{_form(array.dtype.name, array.shape)} input_data_file: "{place}"'
        yield f"  inputs {{ key: {_text(name)} value {{ {form} }} }}"
    yield "}"


def _form(dtype: str, shape: tuple[int, ...]) -> str:
    """Return type and axes without the batch, as Triton counts them."""
    return f"data_type: TYPE_{PROTOCOL[dtype]} dims: {list(shape[1:])}"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
