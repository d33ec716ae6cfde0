"""What runs a model file on one target: three methods, whatever the target.

``OnnxRunner`` is the one of onnxruntime, which ``Session.open`` takes. Another target, such as an
engine or a remote server, is another subclass of ``Runner``, and goes to ``Session.of_bundle``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.datatypes import BY_ONNX, PROTOCOL
from bmnas_serve.errors import BundleError, InferenceError, ServeError, one_line
from bmnas_serve.files import read_regular, reading
from bmnas_serve.manifest import TensorSpec

CPU = "CPUExecutionProvider"
_FOLDER_OF_TENSORS = "session.model_external_initializers_file_folder_path"


def check_one_runtime() -> None:
    """Raise ServeError when both builds of onnxruntime are installed.

    They install files of the same names over each other, and what then runs is chance.
    """
    if _is_installed("onnxruntime") and _is_installed("onnxruntime-gpu"):
        raise ServeError(
            "both onnxruntime and onnxruntime-gpu are installed and overwrite each other; run:"
            " pip uninstall -y onnxruntime onnxruntime-gpu, then install the one that is wanted"
        )


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Keep off standard error what libraries write past Python: failures are raised as well."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


check_one_runtime()

with _without_stderr():  # it looks for devices at once, and complains of those that there are not
    import onnxruntime as ort  # (a broken pair must be named before it fails to load)

ort.set_default_logger_severity(4)

#: onnxruntime's names of what computes, by the device that a user asks for.
PROVIDERS = {
    "cpu": (CPU,),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}


@dataclass(frozen=True)
class Description:
    """What a model takes and gives, as its file says, and what it runs on.

    ``threads`` is the number that one product is spread over, ``providers`` what computes it, the
    preferred first. ``metadata`` is what the file says beside.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    threads: int
    providers: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


class Runner(ABC):
    """A model file that is open on a target."""

    @classmethod
    @abstractmethod
    def open(cls, model: Path) -> Self:
        """Open the file ``model``; raises BundleError when that cannot be done."""

    @abstractmethod
    def describe(self) -> Description:
        """Return what the model takes and gives."""

    @abstractmethod
    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every output by name for ``inputs`` by name, which have the described shapes.

        Raises InferenceError when the target does not accept them or fails.
        """


class OnnxRunner(Runner):
    """An ``.onnx`` file in onnxruntime."""

    def __init__(self, model: Path, runtime: ort.InferenceSession) -> None:
        self._runtime = runtime
        self._name = model.stem
        self._description = Description(
            inputs=tuple(_spec(node, model) for node in runtime.get_inputs()),
            outputs=tuple(_spec(node, model) for node in runtime.get_outputs()),
            threads=runtime.get_session_options().intra_op_num_threads,
            providers=tuple(runtime.get_providers()),
            metadata=dict(runtime.get_modelmeta().custom_metadata_map),
        )
        self._outputs = [tensor.name for tensor in self._description.outputs]

    @classmethod
    def open(
        cls,
        model: Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] = (CPU,),
        content: bytes | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> Self:
        """Open the file ``model``, of which ``content`` is what was read, None where nothing was.

        ``threads`` None takes every CPU that this process may use. ``providers`` are onnxruntime's
        execution providers, the preferred first. The model may keep tensors in ``files``, by path
        from its folder, and in no others; None stands for any in its folder. Raises BundleError
        when the file is no model, and when a provider is not to be had: onnxruntime would run on
        the CPU without a word.
        """
        available = ort.get_available_providers()
        for provider in providers:
            if provider not in available:
                raise BundleError(
                    f"this onnxruntime has no {provider}, expected one of {', '.join(available)};"
                    " for CUDA and TensorRT install onnxruntime-gpu in the place of onnxruntime"
                )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or usable_cpus()
        # Failures are raised below as one line; onnxruntime would print them a second time.
        options.log_severity_level = 4
        if content is None:
            with reading(model):
                content = read_regular(model)
        if files is None:
            options.add_session_config_entry(_FOLDER_OF_TENSORS, str(model.parent))
        else:
            # One name that no model has: without any, files would be looked for in the current
            # folder.
            found = {"\n": b"\0", **{name: held for name, held in files.items() if held}}
            options.add_external_initializers_from_files_in_memory(
                list(found), list(found.values()), [len(held) for held in found.values()]
            )
        try:
            # With its fallback on, it goes on without a provider that fails, on the CPU.
            runtime = ort.InferenceSession(
                content, options, providers=list(providers), enable_fallback=0
            )
        except Exception as error:  # onnxruntime's exceptions have no base class of their own
            raise BundleError(
                f"{model}: onnxruntime cannot open the model: {one_line(error)}"
            ) from error
        received = runtime.get_providers()
        if received[: len(providers)] != list(providers):
            raise BundleError(
                f"{model}: onnxruntime runs on {', '.join(received)}, expected"
                f" {', '.join(providers)}: check the driver and the CUDA libraries"
            )
        return cls(model, runtime)

    def describe(self) -> Description:
        """Return what the model takes and gives."""
        return self._description

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every output by name; raises InferenceError when onnxruntime fails."""
        try:
            results = self._runtime.run(self._outputs, dict(inputs))
        except Exception as error:  # onnxruntime's exceptions have no base class of their own
            raise InferenceError(f"{self._name}: onnxruntime failed: {one_line(error)}") from error
        return dict(zip(self._outputs, map(np.asarray, results), strict=True))


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    # Not os.cpu_count(): a container or taskset may allow fewer than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _spec(node: Any, model: Path) -> TensorSpec:
    """Return an input or output as onnxruntime describes it."""
    if node.type not in BY_ONNX:
        raise BundleError(
            f"{model}: {node.name!r} has the type {node.type}, expected a tensor of"
            f" {', '.join(PROTOCOL)}"
        )
    shape = tuple(axis if isinstance(axis, int) and axis > 0 else -1 for axis in node.shape)
    return TensorSpec(node.name, shape, BY_ONNX[node.type])
