"""The targets that a network can be exported for, and how each is made and judged."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from bmnas_serve.manifest import MODEL_FILE, TargetSpec, TensorSpec
from torch import nn

from bmnas.machine.costs import measure_latency
from bmnas.machine.errors import UserError, close
from bmnas_export import precision
from bmnas_export.engines import write_engine
from bmnas_export.errors import PrecisionError
from bmnas_export.graph import export_graph
from bmnas_export.judge import Agreement, Judge
from bmnas_export.measure import SampleInputs
from bmnas_export.triton import write_model

#: In every bundle; all other targets are made from it.
ONNX = "onnx"

_FLOAT16_POINTS, _INT8_POINTS = 0.2, 1.0  # what the score on validation may lose
_CALIBRATION = 192  # train samples on which the ranges of activations are seen
_CALIBRATION_BATCH = 16


@dataclass(frozen=True)
class Exported:
    """A bundle in the making: ``model.onnx`` lies in ``folder``, verified.

    ``judge`` compares files with ``model.onnx`` on validation samples, ``train`` are samples to see
    ranges on, ``test`` such to show; ``made`` holds the targets that are done.
    """

    folder: Path
    judge: Judge
    train: SampleInputs
    test: SampleInputs
    made: dict[str, TargetSpec] = field(default_factory=dict)

    def file_of(self, target: str) -> Path:
        """Return the model file of a target that is done."""
        return self.folder / (MODEL_FILE if target == ONNX else self.made[target].file)

    def batches(self) -> Sequence[Mapping[str, Any]]:
        """Return batches of train samples, spread evenly, arrays by input."""
        size = min(_CALIBRATION, len(self.train))
        arrays = {name: tensor.numpy() for name, tensor in self.train.batch(size).items()}
        return [
            {name: array[start : start + _CALIBRATION_BATCH] for name, array in arrays.items()}
            for start in range(0, size, _CALIBRATION_BATCH)
        ]


@dataclass(frozen=True)
class Target:
    """A form of the network that a bundle can hold beside ``model.onnx``.

    ``write`` makes its files in the bundle's folder and says what they are. It raises ExportError
    when the target cannot hold the network, PrecisionError when the score falls. ``source`` is the
    target that it is made from, which is made too. ``package`` is what has to be installed, by
    ``install``.
    """

    write: Callable[[Exported], TargetSpec]
    source: str = ONNX
    package: str | None = None
    install: str = ""


def write_onnx(
    folder: Path,
    network: nn.Module,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    metadata: Mapping[str, str],
) -> tuple[str, ...]:
    """Write one ONNX graph, which onnxruntime runs."""
    (folder / MODEL_FILE).write_bytes(export_graph(network, inputs, outputs, metadata))
    return (MODEL_FILE,)


def write_float16(exported: Exported) -> TargetSpec:
    """Write ``model.fp16.onnx``, float32 at both ends; refused when it loses .2 points."""
    out = exported.folder / "model.fp16.onnx"
    out.write_bytes(precision.to_float16(exported.file_of(ONNX)))
    measured = exported.judge.accept(out, _FLOAT16_POINTS)
    return TargetSpec(out.name, "float16", precision.producer(), measured=measured)


def write_int8(exported: Exported) -> TargetSpec:
    """Write ``model.int8.onnx`` for CPUs, refused when it loses a point.

    Of the ways to quantise that the graph allows, the one that runs fastest here at batch 1 among
    those that keep the score.
    """
    out, source = exported.folder / "model.int8.onnx", exported.file_of(ONNX)
    tries: dict[str, tuple[Agreement, float]] = {}
    files: dict[str, Path] = {}
    for name, write in _ways(source, exported.batches).items():
        files[name] = out.with_suffix(f".{len(files)}")
        write(files[name])
        tries[name] = exported.judge(files[name]), _latency(exported, files[name])
    kept = [name for name, (found, _) in tries.items() if found.lost <= _INT8_POINTS]
    if not kept:
        figures = "; ".join(f"{n}: {100 * found.score:.2f}" for n, (found, _) in tries.items())
        raise PrecisionError(
            f"{out.name}: scores on {len(exported.judge)} validation samples are"
            f" {figures or 'none, as it has no products with weights'}, in float32"
            f" {100 * exported.judge.reference:.2f}, expected to lose at most {_INT8_POINTS:g}"
            " point: leave this target out"
        )
    chosen = min(kept, key=lambda name: tries[name][1])
    files.pop(chosen).rename(out)
    for file in files.values():
        file.unlink()
    measured = tries[chosen][0].to_dict() | {
        "method": chosen,
        "tried": {n: {"score": found.score, "batch_1_ms": ms} for n, (found, ms) in tries.items()},
    }
    return TargetSpec(out.name, "int8", precision.producer(), measured=measured)


def _ways(
    source: Path, batches: Callable[[], Sequence[Mapping[str, Any]]]
) -> dict[str, Callable[[Path], None]]:
    """Return what can be quantised in the model ``source``, by name, and how."""
    there = {node.op_type for node in onnx.load(source).graph.node}
    products = [kind for kind in precision.PRODUCTS if kind in there]
    ways: dict[str, Callable[[Path], None]] = {}

    def static(operators: Sequence[str], out: Path) -> None:
        precision.quantize_static(source, out, batches(), operators)

    def mixed(out: Path) -> None:
        static(("Conv",), out)
        precision.quantize_dynamic(out, out)

    if products:
        ways[f"static {', '.join(products)}"] = partial(static, products)
    if "MatMul" in there:
        ways["dynamic MatMul"] = partial(precision.quantize_dynamic, source)
    if {"MatMul", "Conv"} <= there:
        ways["static Conv, dynamic MatMul"] = mixed
    return ways


def _latency(exported: Exported, model: Path) -> float:
    """Return the milliseconds that one sample takes, the median."""
    arrays = {name: tensor.numpy() for name, tensor in exported.train.batch(1).items()}
    run = partial(exported.judge.open(model).run, arrays)
    return measure_latency(run, repeats=50, budget=2.0).median_ms


def write_int8_tensorrt(exported: Exported) -> TargetSpec:
    """Write ``model.int8-trt.onnx``, symmetric and made for TensorRT; refused as ``write_int8``."""
    out = exported.folder / "model.int8-trt.onnx"
    source = exported.file_of(ONNX)
    precision.quantize_static(source, out, exported.batches(), precision.PRODUCTS, tensorrt=True)
    model = onnx.load(out)
    dtypes = precision.widened(model)
    onnx.save(model, out)
    measured = exported.judge.accept(out, _INT8_POINTS)
    return TargetSpec(out.name, "int8", precision.producer(), dtypes, measured)


def write_triton(exported: Exported) -> TargetSpec:
    """Write ``triton``, a model repository, with a model for each target that Triton runs."""
    manifest, sample = exported.judge.manifest, exported.test.batch(1)
    made = {name: spec for name, spec in exported.made.items() if name in _ON_TRITON}
    models = {manifest.name: ONNX, **{f"{manifest.name}-{name}": name for name in made}}
    for model, name in models.items():
        dtypes = made[name].dtypes if name in made else {}
        arrays = {key: tensor.numpy() for key, tensor in sample.items()}
        arrays |= {key: arrays[key].astype(dtype) for key, dtype in dtypes.items()}
        place = exported.folder / _TRITON / model
        write_model(place, exported.file_of(name), manifest, arrays)
    return TargetSpec(
        f"{_TRITON}/{manifest.name}/config.pbtxt",
        "as of the targets",
        precision.producer(),
        measured={"models": models},
    )


def _engine(package: str, file: str, source: str, install: str) -> Target:
    def write(exported: Exported) -> TargetSpec:
        out = exported.folder / file
        return write_engine(package, out, exported.file_of(source), exported.made.get(source))

    return Target(write, source, package, install)


_FROM = {"": ONNX, "-fp16": "onnx-fp16", "-int8": "onnx-int8-trt"}
_RTX = "pip install 'bmnas[trt-rtx]'"
_TENSORRT = "pip install tensorrt (it fetches NVIDIA's libraries from https://pypi.nvidia.com)"
_TRITON = "triton"

TARGETS: dict[str, Target] = {
    "onnx-fp16": Target(write_float16),
    "onnx-int8": Target(write_int8),
    "onnx-int8-trt": Target(write_int8_tensorrt),
    **{
        f"tensorrt-rtx{bits}": _engine("tensorrt_rtx", f"model{bits}.rtx.engine", source, _RTX)
        for bits, source in _FROM.items()
    },
    **{
        f"tensorrt{bits}": _engine("tensorrt", f"model{bits}.trt.engine", source, _TENSORRT)
        for bits, source in _FROM.items()
    },
    _TRITON: Target(write_triton),
}
_ON_TRITON = ("onnx-fp16", "onnx-int8", *(f"tensorrt{bits}" for bits in _FROM))


def ordered(names: Sequence[str]) -> list[str]:
    """Return the targets ``names`` beside ``onnx``, each after what it is made from, once each.

    ``triton`` comes last, as it takes what there is.
    Raises UserError that lists those there are, or says how to install what one needs.
    """
    known = [ONNX, *TARGETS]
    found: dict[str, None] = {}
    for name in names:
        if name not in known:
            raise UserError(
                f"received target {name!r}, expected one of {', '.join(known)}{close(name, known)}"
            )
        if name != ONNX:
            target = TARGETS[name]
            if target.package and importlib.util.find_spec(target.package) is None:
                raise UserError(
                    f"target {name} needs the package {target.package}, which is not installed:"
                    f" run {target.install}"
                )
            found |= dict.fromkeys(ordered([target.source])) | {name: None}
    return sorted(found, key=lambda name: name == _TRITON)
