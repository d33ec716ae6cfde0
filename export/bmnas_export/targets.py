"""The targets that a network can be exported for, and how each is made and judged."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from bmnas_serve.manifest import MODEL_FILE, TargetSpec

from bmnas.machine.costs import measure_latency
from bmnas.machine.errors import UserError, close
from bmnas_export import precision
from bmnas_export.engines import write_engine
from bmnas_export.errors import PrecisionError
from bmnas_export.judge import Judge
from bmnas_export.measure import SampleInputs
from bmnas_export.triton import write_model

#: In every bundle; all other targets are made from it.
ONNX = "onnx"

_FLOAT16_POINTS, _INT8_POINTS = 0.2, 1.0  # what the score on validation may lose
_NOTHING = 0.1  # points of it that are as good as none
_EQUALLY_FAST = 1.05
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


def write_float16(exported: Exported) -> TargetSpec:
    """Write ``model.fp16.onnx``, float32 at both ends; refused when it loses .2 points."""
    out = exported.folder / "model.fp16.onnx"
    out.write_bytes(precision.to_float16(exported.file_of(ONNX)))
    measured = exported.judge.accept(out, _FLOAT16_POINTS)
    return TargetSpec(out.name, "float16", precision.producer(), measured=measured)


def write_int8(exported: Exported) -> TargetSpec:
    """Write ``model.int8.onnx`` for CPUs, refused when it loses a point.

    Of the ways to quantise that the graph allows, the one that runs fastest here at batch 1 among
    those that lose nothing, else among those that keep the score.
    """
    source = exported.file_of(ONNX)
    there = _operators(source)
    ways = _static_ways(exported, precision.quantize_static)

    def mixed(out: Path) -> None:
        precision.quantize_static(source, out, exported.batches(), ["Conv"])
        precision.quantize_dynamic(out, out)

    if "MatMul" in there:
        ways["dynamic MatMul"] = partial(precision.quantize_dynamic, source)
    if {"MatMul", "Conv"} <= there:
        ways["static Conv, dynamic MatMul"] = mixed
    return _best_int8(exported, "model.int8.onnx", ways, _latency)


def write_int8_tensorrt(exported: Exported) -> TargetSpec:
    """Write ``model.int8-trt.onnx``, symmetric and made for TensorRT; refused as ``write_int8``.

    Of the ways that keep the score the one with the most products in int8.
    """

    def static(
        source: Path, out: Path, batches: Any, operators: Sequence[str], narrow: int
    ) -> None:
        precision.quantize_static(source, out, batches, operators, narrow=narrow, tensorrt=True)
        model = onnx.load(out)
        precision.widened(model)
        onnx.save(model, out)

    spec = _best_int8(exported, "model.int8-trt.onnx", _static_ways(exported, static))
    dtypes = precision.widened(onnx.load(exported.file_of(ONNX)))
    return replace(spec, dtypes=dtypes)


def _operators(model: Path) -> set[str]:
    return {node.op_type for node in onnx.load(model).graph.node}


def _static_ways(
    exported: Exported, write: Callable[..., None]
) -> dict[str, Callable[[Path], None]]:
    """Return ways to quantise, by name: all products with weights, or convolutions alone.

    Convolutions hardly lose; a single linear layer, whose inputs may differ a hundredfold, can lose
    all. The less does the first layer of a backbone, the more does what follows it.
    """
    source = exported.file_of(ONNX)
    products = [kind for kind in precision.PRODUCTS if kind in _operators(source)]

    def static(chosen: Sequence[str], narrow: int, out: Path) -> None:
        write(source, out, exported.batches(), chosen, narrow=narrow)

    sets = {", ".join(chosen): chosen for chosen in (products, products[:1]) if chosen}
    few, some = precision.FEW, precision.SOME
    ways: dict[str, Callable[[Path], None]] = {
        f"static {name}": partial(static, chosen, few) for name, chosen in sets.items()
    }
    model = onnx.load(source)
    if len({tuple(precision.narrow_convolutions(model, most)) for most in (few, some)}) > 1:
        ways[f"static Conv of more than {some} channels"] = partial(static, ["Conv"], some)
    return ways


def _best_int8(
    exported: Exported,
    file: str,
    ways: Mapping[str, Callable[[Path], None]],
    milliseconds: Callable[[Exported, Path], float] | None = None,
) -> TargetSpec:
    """Write ``file`` in the fastest of ``ways``; without a clock, in the first.

    That is of those that lose nothing where there are some, else of those that keep the score. Of
    ways that are as good as equally fast it is the one that decides most samples as in float32.
    """
    out, judge = exported.folder / file, exported.judge
    kept: list[tuple[bool, float, int, str, Path]] = []
    tried: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for place, (name, write) in enumerate(ways.items()):
            model = Path(folder, f"{place}.onnx")
            write(model)
            found = judge(model)
            cost = float(place) if milliseconds is None else milliseconds(exported, model)
            tried[name] = found.to_dict() | ({"batch_1_ms": cost} if milliseconds else {})
            if found.lost <= _INT8_POINTS:
                less = found.lost > max(_NOTHING, found.chance)
                kept.append((less, cost, -found.agree, name, model))
        if not kept:
            figures = "; ".join(f"{n}: {100 * each['score']:.2f}" for n, each in tried.items())
            raise PrecisionError(
                f"{file}: scores on {len(judge):,} validation samples are"
                f" {figures or 'none, as it has no products with weights'}, in float32"
                f" {100 * judge.reference:.2f}, expected to lose at most {_INT8_POINTS:g} point:"
                " leave this target out"
            )
        less, fastest, *_ = min(kept)
        near = [each for each in kept if each[0] == less and each[1] <= _EQUALLY_FAST * fastest]
        *_, chosen, model = min(near, key=lambda each: each[2])
        shutil.copyfile(model, out)
    measured = {**tried[chosen], "method": chosen, "tried": tried}
    return TargetSpec(file, "int8", precision.producer(), measured=measured)


def _latency(exported: Exported, model: Path) -> float:
    """Return the milliseconds that one sample takes, the median."""
    arrays = {name: tensor.numpy() for name, tensor in exported.train.batch(1).items()}
    run = partial(exported.judge.open(model).run, arrays)
    return measure_latency(run, repeats=50, budget=2.0).median_ms


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
