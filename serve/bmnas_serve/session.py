"""A model that is open in onnxruntime: the one path on which exported networks are run.

The exporter verifies through this class and the server answers through it, so that what was
checked is what is served.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmnas_serve import manifest as bundle
from bmnas_serve.datatypes import BY_NUMPY, BY_ONNX
from bmnas_serve.errors import BundleError, InferenceError, RuntimeConflictError, one_line
from bmnas_serve.manifest import InputSpec, Manifest, TensorSpec

CPU = "CPUExecutionProvider"


def check_one_runtime() -> None:
    """Raise RuntimeConflictError when both builds of onnxruntime are installed.

    They install files of the same names over each other, and what then runs is chance.
    """
    builds = ("onnxruntime", "onnxruntime-gpu")
    if all(_is_installed(build) for build in builds):
        raise RuntimeConflictError(
            "both onnxruntime and onnxruntime-gpu are installed and overwrite each other; run:"
            " pip uninstall -y onnxruntime onnxruntime-gpu, then install the one that is wanted"
        )


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


check_one_runtime()

import onnxruntime as ort  # noqa: E402  (a broken pair must be named before it fails to load)


class Session:
    """An opened model.

    Attributes:
        name: the model's name.
        inputs: what ``run`` takes.
        outputs: what ``run`` returns.
        manifest: the bundle's manifest; None for a bare ``.onnx`` file.
        intra_op_threads: threads that one product is spread over.
        providers: the execution providers in use, the preferred first.
    """

    def __init__(
        self,
        runtime: ort.InferenceSession,
        name: str,
        inputs: tuple[InputSpec, ...],
        outputs: tuple[TensorSpec, ...],
        manifest: Manifest | None,
    ) -> None:
        self._runtime = runtime
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self.manifest = manifest
        self.intra_op_threads: int = runtime.get_session_options().intra_op_num_threads
        self.providers: tuple[str, ...] = tuple(runtime.get_providers())

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        intra_op_threads: int | None = None,
        providers: Sequence[str] = (CPU,),
    ) -> Session:
        """Open a bundle folder or a bare ``.onnx`` file.

        ``intra_op_threads`` None takes every CPU that this process may use. ``providers`` are
        onnxruntime's execution providers, the preferred first.
        Raises BundleError when the bundle is malformed or damaged, when the model and its
        manifest disagree, and when a provider is not to be had: onnxruntime would otherwise
        run on the CPU without a word.
        """
        if not path.exists():
            raise BundleError(
                f"{path}: there is no such file or folder; expected a bundle folder that"
                " 'bmnas export' wrote, or the path of an .onnx file"
            )
        if not path.is_dir():
            runtime = _open_runtime(path, intra_op_threads, providers)
            inputs = tuple(InputSpec(*_spec(node, path)) for node in runtime.get_inputs())
            outputs = tuple(TensorSpec(*_spec(node, path)) for node in runtime.get_outputs())
            return cls(runtime, path.stem, inputs, outputs, None)
        manifest = bundle.load(path)
        bundle.verify_files(manifest, path)
        model = path / bundle.MODEL_FILE
        runtime = _open_runtime(model, intra_op_threads, providers)
        _check_agreement(runtime.get_inputs(), manifest.inputs, "input", model)
        _check_agreement(runtime.get_outputs(), manifest.outputs, "output", model)
        return cls(runtime, manifest.name, manifest.inputs, manifest.outputs, manifest)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once on ``inputs``, by name; returns every output, by name.

        Arrays have the shapes and dtypes of ``self.inputs``. Raises InferenceError when
        onnxruntime does not accept them or fails.
        """
        names = [tensor.name for tensor in self.outputs]
        try:
            results = self._runtime.run(names, dict(inputs))
        except Exception as error:  # onnxruntime's exceptions have no base class of their own
            raise InferenceError(f"{self.name}: onnxruntime failed: {one_line(error)}") from error
        return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}


def _open_runtime(
    model: Path, intra_op_threads: int | None, providers: Sequence[str]
) -> ort.InferenceSession:
    available = ort.get_available_providers()
    for provider in providers:
        if provider not in available:
            raise BundleError(
                f"this onnxruntime has no {provider}, expected one of {', '.join(available)};"
                " for CUDA install onnxruntime-gpu in the place of onnxruntime"
            )
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads or _usable_cpus()
    # Failures are raised below as one line; onnxruntime would print them a second time.
    options.log_severity_level = 4
    try:
        runtime = ort.InferenceSession(str(model), options, providers=list(providers))
    except Exception as error:  # onnxruntime's exceptions have no base class of their own
        raise BundleError(
            f"{model}: onnxruntime cannot open the model: {one_line(error)}"
        ) from error
    received = runtime.get_providers()
    if received[: len(providers)] != list(providers):
        raise BundleError(
            f"{model}: onnxruntime runs on {', '.join(received)}, expected {', '.join(providers)}:"
            " check the driver and the CUDA libraries"
        )
    return runtime


def _usable_cpus() -> int:
    # Not os.cpu_count(): a container or taskset may allow fewer than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _spec(node: Any, model: Path) -> tuple[str, tuple[int, ...], str]:
    """Return name, shape and dtype of an input or output as onnxruntime describes it."""
    if node.type not in BY_ONNX:
        raise BundleError(
            f"{model}: {node.name!r} has the type {node.type}, expected a tensor of"
            f" {', '.join(BY_NUMPY)}"
        )
    shape = tuple(axis if isinstance(axis, int) and axis > 0 else -1 for axis in node.shape)
    return node.name, shape, BY_ONNX[node.type].numpy


def _check_agreement(
    nodes: Sequence[Any], tensors: Sequence[TensorSpec], role: str, model: Path
) -> None:
    """Raise BundleError unless the model has exactly the tensors of the manifest."""
    found = {node.name: _spec(node, model)[1:] for node in nodes}
    listed = {tensor.name: (tensor.shape, tensor.dtype) for tensor in tensors}
    if found.keys() != listed.keys():
        raise BundleError(
            f"{model}: the model has the {role}s {', '.join(found)}, the manifest lists"
            f" {', '.join(listed)}: export again"
        )
    for name, (shape, dtype) in listed.items():
        if found[name] != (shape, dtype):
            raise BundleError(
                f"{model}: {role} {name!r} is {found[name][1]} {list(found[name][0])}, the"
                f" manifest says {dtype} {list(shape)}: export again"
            )
