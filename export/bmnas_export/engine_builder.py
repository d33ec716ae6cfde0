"""Builds a TensorRT engine; run as a program, by ``engines``, as NVIDIA's libraries may crash.

It knows the standard library and the package that it is told: ``tensorrt``, 10.16 or 11, or
``tensorrt_rtx``. Precision is what the ONNX file says: networks that are strongly typed are the
one kind that all of them build.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what ``request`` asks of ``package``; ``error`` in the answer says what went wrong.

    ``do`` is ``version``; ``check``: whether the file ``engine`` can be loaded; or ``build``: write
    ``engine`` from the ONNX file ``model`` for ``batches``, the smallest, usual and largest size.
    ``timings`` is a file of measurements to use and to add to, None for none.
    """
    trt: Any = importlib.import_module(request["package"])
    found = {"version": trt.__version__}
    if request["do"] == "version":
        return found
    said: list[str] = []
    logger = _logger(trt, said)
    if request["do"] == "check":
        engine = Path(request["engine"]).read_bytes()
        return {"usable": trt.Runtime(logger).deserialize_cuda_engine(engine) is not None}
    report = _build(trt, logger, request)
    if "error" in report:
        report["error"] = " ".join("; ".join((report["error"], *said)).split())
    return found | report


def _logger(trt: Any, said: list[str]) -> Any:
    """Return a logger that keeps errors in ``said``."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # what is not known has no type
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                said.append(message)

    return Logger()


def _build(trt: Any, logger: Any, request: dict[str, Any]) -> dict[str, Any]:
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(request["model"]).read_bytes()):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        return {"error": "; ".join(("it cannot read the graph", *errors))}
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    config = builder.create_builder_config()
    # On by default: it would round the products of float32 to 10 bits.
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    for tensor in inputs:
        shape = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, *((size, *shape) for size in request["batches"]))
    config.add_optimization_profile(profile)
    timings, cache = request["timings"], None
    if timings is not None:
        known = Path(timings).read_bytes() if Path(timings).is_file() else b""
        cache = config.create_timing_cache(known)
        config.set_timing_cache(cache, ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return {"error": "it built no engine"}
    Path(request["engine"]).write_bytes(engine)
    if cache is not None:
        Path(timings).write_bytes(cache.serialize())
    return {
        "layers": network.num_layers,
        "inputs": _described(inputs),
        "outputs": _described(outputs),
    }


def _described(tensors: Iterable[Any]) -> dict[str, Any]:
    return {t.name: {"shape": list(t.shape), "dtype": t.dtype.name.lower()} for t in tensors}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(answer(json.load(sys.stdin))), encoding="utf-8")
