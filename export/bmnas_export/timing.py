"""How long a module takes once it is a graph: for searches that have a limit of latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bmnas_serve.errors import InferenceError, ServeError
from bmnas_serve.manifest import TensorSpec
from bmnas_serve.runner import OnnxRunner
from onnxscript import ir
from torch import Tensor, nn

from bmnas.machine.costs import measure_latency
from bmnas_export.errors import ExportError
from bmnas_export.graph import translate
from bmnas_export.prepare import exportable

_ROUNDS, _ALIKE, _WITHIN, _PAUSE = 40, 4, 1.02, 0.02  # seconds
_REPEATS, _WARM_UP, _BUDGET = 30, 3, 0.1


def time_module(module: nn.Module, inputs: Sequence[Tensor]) -> float:
    """Return the milliseconds that one run of ``module`` takes in onnxruntime with one thread.

    ``module`` takes ``*inputs``, each with a first axis of one sample, and returns tensors; it is
    exported as a bundle's network is. The least median of several rounds counts, for other work on
    the machine only ever adds; it ends with four of them within two percent, or after forty. Raises
    ExportError when it cannot be exported.
    """
    specs = [
        TensorSpec(f"input{number}", (-1, *x.shape[1:]), str(x.dtype).removeprefix("torch."))
        for number, x in enumerate(inputs)
    ]
    model = translate(exportable(module), specs).model
    content = ir.serde.serialize_model(model).SerializeToString()
    try:
        runner = OnnxRunner.open(Path("module.onnx"), threads=1, content=content)
        names = [spec.name for spec in runner.describe().inputs]
        arrays = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return _least_median(partial(runner.run, arrays))
    except (ServeError, InferenceError) as error:
        raise ExportError(str(error)) from error


def _least_median(run: Callable[[], object]) -> float:
    medians: list[float] = []
    for _ in range(_ROUNDS):
        found = measure_latency(run, repeats=_REPEATS, warm_up=_WARM_UP, budget=_BUDGET)
        medians.append(found.median_ms)
        if sum(median <= _WITHIN * min(medians) for median in medians) == _ALIKE:
            break
        time.sleep(_PAUSE)
    return min(medians)
