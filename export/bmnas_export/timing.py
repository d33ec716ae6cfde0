"""How long a module takes once it is a graph: for searches that have a limit of latency."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bmnas_serve.manifest import TensorSpec
from bmnas_serve.runner import OnnxRunner
from onnxscript import ir
from torch import Tensor, nn

from bmnas.machine.costs import measure_latency
from bmnas_export.fold import drop_open_masks, fold_norms
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
    program = translate(exportable(module), specs)
    fold_norms(program.model)
    drop_open_masks(program.model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.onnx"
        path.write_bytes(ir.serde.serialize_model(program.model).SerializeToString())
        runner = OnnxRunner.open(path, threads=1)
    names = [spec.name for spec in runner.describe().inputs]
    arrays = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    run = partial(runner.run, arrays)
    medians: list[float] = []
    for _ in range(_ROUNDS):
        found = measure_latency(run, repeats=_REPEATS, warm_up=_WARM_UP, budget=_BUDGET)
        medians.append(found.median_ms)
        if sum(median <= _WITHIN * min(medians) for median in medians) == _ALIKE:
            break
        time.sleep(_PAUSE)
    return min(medians)
