"""A model that is open: the one path on which exported networks are run.

The exporter verifies through this class and the server answers through it, so that what was
checked is what is served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from bmnas_serve import manifest as bundle
from bmnas_serve.datatypes import WIDER
from bmnas_serve.errors import BundleError
from bmnas_serve.files import read_regular, reading, sha256_of
from bmnas_serve.manifest import InputSpec, Manifest, TensorSpec
from bmnas_serve.runner import CPU, OnnxRunner, Runner


@dataclass(frozen=True)
class Source:
    """A bundle, or a bare model, as it was read: what was verified is what is opened.

    ``content`` is that of the file ``model``. ``files`` are those in which a bundle's model may
    keep tensors, by path from its folder. ``manifest``, ``files`` and ``folder`` are None for a
    bare file. ``sha256`` is that of the manifest, or of the bare file.
    """

    model: Path
    content: bytes
    sha256: str
    manifest: Manifest | None = None
    files: Mapping[str, bytes] | None = None
    folder: Path | None = None

    @classmethod
    def read(cls, path: Path, target: str | None = None) -> Self:
        """Read a bundle folder or a bare ``.onnx`` file, each file once; see ``Session.open``."""
        with reading(path):
            if path.is_dir():
                return cls._of_bundle(path, target)
            if not path.exists():
                raise BundleError(
                    f"{path}: there is no such file or folder; expected a bundle folder that"
                    " 'bmnas export' wrote, or the path of an .onnx file"
                )
            if target is not None:
                raise BundleError(f"{path}: received target {target!r} for a file, expected none")
            content = read_regular(path)
        return cls(path, content, _sha256(content))

    @classmethod
    def _of_bundle(cls, folder: Path, target: str | None) -> Self:
        listed = bundle.read_content(folder)
        manifest = bundle.load_content(listed, folder)
        model = folder / _file_of(target or "onnx", manifest, folder)
        files: dict[str, bytes] = {}

        def kept(path: Path) -> str:
            if not path.is_relative_to(model.parent):
                return sha256_of(path)
            content = read_regular(path)
            files[path.relative_to(model.parent).as_posix()] = content
            return _sha256(content)

        bundle.verify_files(manifest, folder, kept)
        return cls(model, files.pop(model.name), _sha256(listed), manifest, files, folder)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Session:
    """An opened model: a ``runner``, and the ``manifest`` of its bundle, None for a bare file.

    ``name`` is the model's; ``inputs`` and ``outputs`` are what ``run`` takes and returns.
    ``folder`` is that of the bundle, where it lies in one.
    ``sha256`` is that of the bundle's manifest, which holds those of its other files, or of the
    bare file; empty where neither was read. ``batch_rows`` is how many rows of requests are run
    together at most.
    """

    sha256 = ""
    batch_rows = 64

    def __init__(
        self,
        runner: Runner,
        name: str,
        inputs: tuple[InputSpec, ...],
        outputs: tuple[TensorSpec, ...],
        manifest: Manifest | None = None,
    ) -> None:
        self.runner = runner
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self.manifest = manifest
        self.folder: Path | None = None
        self._wider = {
            found.name: found.dtype
            for found in runner.describe().inputs
            if {spec.name: spec.dtype for spec in inputs}[found.name] != found.dtype
        }

    @property
    def joins(self) -> bool:
        """Whether rows of several requests can be run together.

        Of a bare file nothing says that its rows do not depend on each other.
        """
        specs = (*self.inputs, *self.outputs)
        return self.manifest is not None and all(spec.shape[:1] == (-1,) for spec in specs)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        target: str | None = None,
        intra_op_threads: int | None = None,
        providers: Sequence[str] = (CPU,),
    ) -> Self:
        """Open a bundle folder or a bare ``.onnx`` file in onnxruntime, see ``OnnxRunner.open``.

        ``target`` is one of the bundle's, None for ``model.onnx``. Raises BundleError when the
        bundle is malformed or damaged, when it lacks the target, when the model and its manifest
        disagree, and when a provider is not to be had.
        """
        source = Source.read(path, target)
        return cls.of_source(source, intra_op_threads=intra_op_threads, providers=providers)

    @classmethod
    def of_source(
        cls,
        source: Source,
        *,
        intra_op_threads: int | None = None,
        providers: Sequence[str] = (CPU,),
    ) -> Self:
        """Open what was read from files, see ``open``."""
        model, manifest = source.model, source.manifest
        runner = OnnxRunner.open(
            model,
            threads=intra_op_threads,
            providers=providers,
            content=source.content,
            files=source.files,
        )
        if manifest is None:
            found = runner.describe()
            inputs = tuple(InputSpec(t.name, t.shape, t.dtype) for t in found.inputs)
            session = cls(runner, model.stem, inputs, found.outputs)
        else:
            session = cls.of_bundle(runner, manifest, model)
        session.folder = source.folder
        session.sha256 = source.sha256
        return session

    @classmethod
    def of_bundle(cls, runner: Runner, manifest: Manifest, model: Path) -> Self:
        """Return the session of a bundle whose file ``model`` is open in ``runner``.

        Raises BundleError where the file and the manifest disagree.
        """
        found = runner.describe()
        own = manifest.contract()
        contract = found.metadata.get("bmnas.contract", own)
        if contract != own:
            raise BundleError(
                f"{model}: was exported for other inputs, outputs, class names or threshold than"
                f" the manifest has: their sha256 is {own}, expected {contract}:"
                " export again"
            )
        _check_agreement(found.inputs, manifest.inputs, "input", model)
        _check_agreement(found.outputs, manifest.outputs, "output", model)
        return cls(runner, manifest.name, manifest.inputs, manifest.outputs, manifest)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once on ``inputs``, by name; returns every output, by name.

        Arrays have the shapes and dtypes of ``self.inputs``. Raises InferenceError when the runner
        does not accept them or fails.
        """
        wider = {
            name: inputs[name].astype(dtype)
            for name, dtype in self._wider.items()
            if name in inputs  # the runner says what is missing
        }
        return self.runner.run({**inputs, **wider})


def _file_of(target: str, manifest: Manifest, folder: Path) -> str:
    """Return the file of a target that onnxruntime opens; raises BundleError that lists those."""
    files = {"onnx": bundle.MODEL_FILE}
    files |= {name: found.file for name, found in manifest.targets.items()}
    opened = {name: file for name, file in files.items() if file.endswith(".onnx")}
    if target not in opened:
        raise BundleError(
            f"{folder}: received target {target!r}, expected one that the bundle holds for"
            f" onnxruntime: {', '.join(opened)}"
        )
    return opened[target]


def _check_agreement(
    found: Sequence[TensorSpec], expected: Sequence[TensorSpec], role: str, model: Path
) -> None:
    """Raise BundleError unless the model has exactly the tensors of the manifest."""
    has = {tensor.name: (tensor.dtype, list(tensor.shape)) for tensor in found}
    listed = {tensor.name: (tensor.dtype, list(tensor.shape)) for tensor in expected}
    if has.keys() != listed.keys():
        raise BundleError(
            f"{model}: the model has the {role}s {', '.join(has)}, the manifest lists"
            f" {', '.join(listed)}: export again"
        )
    for name, (dtype, shape) in listed.items():
        if has[name] not in ((dtype, shape), (WIDER.get(dtype), shape)):
            raise BundleError(
                f"{model}: {role} {name!r} is {has[name][0]} {has[name][1]}, the manifest says"
                f" {dtype} {shape}: export again"
            )
