"""The format of a bundle: ``manifest.json`` beside ``model.onnx``.

The exporter builds a ``Manifest`` and writes ``to_dict()``; the server reads it with ``load``.
Both go through the same checks, so what cannot be served cannot be written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from bmnas_serve.datatypes import BY_NUMPY
from bmnas_serve.errors import BundleError, shorten
from bmnas_serve.strict_json import parse_json

FORMAT = "bmnas.bundle/1"
MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
#: How an answer follows from the outputs: the class of the highest probability, the classes whose
#: probability is above the threshold, or the outputs as they are.
DECISIONS = ("argmax", "threshold", "none")
#: The decision of the kinds of task whose manifests need not state it.
KINDS = {"multiclass": "argmax", "multilabel": "threshold"}

_LIMIT = 64_000_000  # bytes; a manifest of a thousand classes takes about a hundred thousand
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FREE = ("scores", "parity", "latency", "versions")
_REQUIRED = ("format", "name", "task", "inputs", "outputs", "class_names", "files")
_OPTIONAL = ("threshold", "genotype", "fusion", *_FREE)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    ``shape`` holds an axis' length, or -1 where any length from 1 is good (the batch axis, which
    stands first). ``dtype`` is numpy's name (``float32``). ``meaning`` is a sentence for people.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    meaning: str = ""

    def __post_init__(self) -> None:
        _text(self.name, "name", empty=False)
        _text(self.meaning, f"{self.name}: meaning")
        if not isinstance(self.shape, tuple) or not all(_is_axis(axis) for axis in self.shape):
            raise _wrong(f"{self.name}: shape", self.shape, "integers from 1, or -1 for any length")
        if not isinstance(self.dtype, str) or self.dtype not in BY_NUMPY:
            raise _wrong(f"{self.name}: dtype", self.dtype, f"one of {', '.join(BY_NUMPY)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the tensor as JSON-ready plain data."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "meaning": self.meaning,
        }


@dataclass(frozen=True)
class InputSpec(TensorSpec):
    """An input; ``preprocessing`` says how raw data becomes the tensor, as a JSON object."""

    preprocessing: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        _free(self.preprocessing, f"{self.name}: preprocessing")

    def to_dict(self) -> dict[str, Any]:
        """Return the input as JSON-ready plain data."""
        return {**super().to_dict(), "preprocessing": dict(self.preprocessing)}


@dataclass(frozen=True)
class TaskSpec:
    """The task that the model was made for.

    ``decision`` is one of ``DECISIONS``; it may be left out for a kind in ``KINDS``.
    """

    name: str
    kind: str
    decision: str = ""

    def __post_init__(self) -> None:
        _text(self.name, "task.name", empty=False)
        _text(self.kind, "task.kind", empty=False)
        if not self.decision and self.kind not in KINDS:
            raise _wrong(
                "task.kind", self.kind, f"one of {', '.join(KINDS)}, or a task.decision beside it"
            )
        decision = self.decision or KINDS[self.kind]
        if decision not in DECISIONS or KINDS.get(self.kind, decision) != decision:
            known = KINDS.get(self.kind)
            raise _wrong("task.decision", decision, known or f"one of {', '.join(DECISIONS)}")
        object.__setattr__(self, "decision", decision)

    def to_dict(self) -> dict[str, Any]:
        """Return the task as JSON-ready plain data."""
        # Left out where it is known: servers of earlier versions do not know the field.
        stated = {} if self.kind in KINDS else {"decision": self.decision}
        return {"name": self.name, "kind": self.kind, **stated}


@dataclass(frozen=True)
class Manifest:
    """What a bundle says about its model.

    ``threshold`` is the probability from which a label is given: a number where the task's
    decision is ``threshold``, else None. ``files`` maps each file of the bundle to its SHA-256.
    ``genotype``, ``fusion`` (instead of it: a hand-made fusion, by name), ``scores``, ``parity``,
    ``latency`` and ``versions`` are JSON objects of free form. Raises BundleError when a value
    breaks the format.
    """

    name: str
    task: TaskSpec
    inputs: tuple[InputSpec, ...]
    outputs: tuple[TensorSpec, ...]
    class_names: tuple[str, ...]
    files: Mapping[str, str]
    threshold: float | None = None
    genotype: Mapping[str, Any] | None = None
    fusion: Mapping[str, Any] | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise _wrong("name", self.name, "letters, digits, '_', '-' and '.'")
        _check_tensors(self.inputs, "inputs")
        _check_tensors(self.outputs, "outputs")
        _check_classes(self.class_names, self.outputs, self.task)
        _check_threshold(self.threshold, self.task)
        _check_files(self.files)
        if self.genotype is not None:
            _free(self.genotype, "genotype")
        if self.fusion is not None:
            _free(self.fusion, "fusion")
        for name in _FREE:
            _free(getattr(self, name), name)

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON-ready plain data in the format of the file."""
        return {
            "format": FORMAT,
            "name": self.name,
            "task": self.task.to_dict(),
            "inputs": [tensor.to_dict() for tensor in self.inputs],
            "outputs": [tensor.to_dict() for tensor in self.outputs],
            "class_names": list(self.class_names),
            "threshold": self.threshold,
            "genotype": None if self.genotype is None else dict(self.genotype),
            # Left out where there is none: servers of earlier versions do not know the field.
            **({} if self.fusion is None else {"fusion": dict(self.fusion)}),
            **{name: dict(getattr(self, name)) for name in _FREE},
            "files": dict(self.files),
        }


def load(folder: Path) -> Manifest:
    """Read the manifest of the bundle ``folder``; BundleError names the file and the place."""
    path = folder / MANIFEST_FILE
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT + 1)
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder}: not a bundle: it has no {MANIFEST_FILE}; expected a folder that"
            " 'bmnas export' wrote, or the path of an .onnx file"
        ) from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _LIMIT:
        raise BundleError(f"{path}: more than the {_LIMIT:,} bytes that a manifest may have")
    try:
        data = parse_json(content)
    except ValueError as error:
        raise BundleError(f"{path}: not a JSON file: {error}") from error
    return parse(data, str(path))


def parse(data: Any, source: str = "manifest") -> Manifest:
    """Build a manifest from plain data; ``source`` is named in messages.

    Raises BundleError on anything that is not exactly the documented format.
    """
    try:
        top = _object(data, "the manifest", _REQUIRED, _OPTIONAL)
        if top["format"] != FORMAT:
            raise _wrong("format", top["format"], f"{FORMAT!r}: export again with this version")
        task = _object(top["task"], "task", ("name", "kind"), ("decision",))
        return Manifest(
            name=top["name"],
            task=TaskSpec(**task),
            inputs=tuple(
                InputSpec(**_tensor(item, f"inputs[{i}]", ("preprocessing",)))
                for i, item in enumerate(_list(top["inputs"], "inputs"))
            ),
            outputs=tuple(
                TensorSpec(**_tensor(item, f"outputs[{i}]"))
                for i, item in enumerate(_list(top["outputs"], "outputs"))
            ),
            class_names=tuple(_list(top["class_names"], "class_names")),
            files=top["files"],
            **{key: top[key] for key in _OPTIONAL if key in top},
        )
    except BundleError as error:
        raise BundleError(f"{source}: {error}") from error


def verify_files(manifest: Manifest, folder: Path) -> None:
    """Compare each file of the bundle ``folder`` with its SHA-256 in the manifest.

    Raises BundleError naming the first file that is missing or differs.
    """
    for name, expected in manifest.files.items():
        path = folder / name
        try:
            with path.open("rb") as file:
                received = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BundleError(
                f"{path}: cannot be read: {error.strerror}; {MANIFEST_FILE} lists it: export again"
            ) from error
        if received != expected:
            raise BundleError(
                f"{path}: damaged or changed after export: its sha256 is {received}, expected"
                f" {expected}: export again"
            )


def _check_tensors(tensors: tuple[TensorSpec, ...], place: str) -> None:
    if not tensors:
        raise BundleError(f"{place}: received none, expected at least one tensor")
    names = [tensor.name for tensor in tensors]
    if len(set(names)) < len(names):
        raise _wrong(place, names, "names that differ")
    for tensor in tensors:
        if not tensor.shape or tensor.shape[0] != -1 or -1 in tensor.shape[1:]:
            raise _wrong(
                f"{place}: {tensor.name}: shape",
                list(tensor.shape),
                "the batch axis -1 first and fixed lengths after it",
            )


def _check_classes(
    class_names: tuple[str, ...], outputs: tuple[TensorSpec, ...], task: TaskSpec
) -> None:
    for position, name in enumerate(class_names):
        _text(name, f"class_names[{position}]", empty=False)
    if not class_names or len(set(class_names)) < len(class_names):
        raise _wrong("class_names", list(class_names), "at least one name, and names that differ")
    # A kind that states its decision may have logits of another number.
    by_class = ("logits", "probabilities") if task.kind in KINDS else ("probabilities",)
    for tensor in outputs if task.decision != "none" else ():
        if tensor.name in by_class and tensor.shape != (-1, len(class_names)):
            raise _wrong(
                f"outputs: {tensor.name}: shape",
                list(tensor.shape),
                f"{[-1, len(class_names)]}, one column for each of the class_names",
            )


def _check_threshold(threshold: float | None, task: TaskSpec) -> None:
    if task.decision != "threshold":
        if threshold is not None:
            raise _wrong("threshold", threshold, f"null, as the task is {task.kind}")
    elif not _is_number(threshold) or not 0 <= threshold <= 1:
        raise _wrong("threshold", threshold, f"a number from 0 to 1, as the task is {task.kind}")


def _check_files(files: Mapping[str, str]) -> None:
    if not isinstance(files, Mapping) or MODEL_FILE not in files:
        raise _wrong("files", files, f"an object of sha256 digests with {MODEL_FILE!r} in it")
    for name, digest in files.items():
        # A plain name only: a manifest must not make the server read outside its folder.
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise _wrong("files", name, "the plain name of a file in the bundle")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise _wrong(f"files.{name}", digest, "a sha256 of 64 hexadecimal digits")


def _tensor(data: Any, place: str, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    tensor = _object(data, place, ("name", "shape", "dtype"), ("meaning", *optional))
    return {**tensor, "shape": tuple(_list(tensor["shape"], f"{place}.shape"))}


def _object(
    data: Any, place: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _wrong(place, data, "a JSON object")
    missing = [key for key in required if key not in data]
    if missing:
        raise BundleError(f"{place}: lacks {', '.join(map(repr, missing))}")
    unknown = [key for key in data if key not in required and key not in optional]
    if unknown:
        known = ", ".join((*required, *optional))
        raise BundleError(f"{place}: has the unknown field {shorten(unknown[0])}, expected {known}")
    return data


def _list(data: Any, place: str) -> list[Any]:
    if not isinstance(data, list):
        raise _wrong(place, data, "a list")
    return data


def _free(value: Any, place: str) -> None:
    if not isinstance(value, Mapping):
        raise _wrong(place, value, "a JSON object")
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{place}: not plain JSON data: {error}") from error


def _text(value: Any, place: str, *, empty: bool = True) -> None:
    if not isinstance(value, str) or not (value or empty):
        raise _wrong(place, value, "a string" if empty else "a string that is not empty")


def _is_axis(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (value == -1 or value >= 1)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(place: str, received: Any, expected: str) -> BundleError:
    return BundleError(f"{place}: received {shorten(received)}, expected {expected}")
