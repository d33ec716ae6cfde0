"""The format of a bundle: ``manifest.json`` beside ``model.onnx``.

The exporter builds a ``Manifest`` and writes ``to_dict()``; the server reads it with ``load``.
Both go through ``parse``, so what cannot be served cannot be written. Each member of the file has
its SHA-256 in the member ``sha256``, and each other file of the bundle in ``files``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.checks import (
    Check,
    each,
    finite,
    nonempty,
    nullable,
    one_of,
    plain_object,
    table,
    text,
    wrong,
)
from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.errors import BundleError, FormatError
from bmnas_serve.files import open_regular, sha256_of
from bmnas_serve.strict_json import parse_json

FORMAT = "bmnas.bundle/2"
#: Read too, but without digests of its own.
EARLIER = "bmnas.bundle/1"
MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
#: How an answer follows from the outputs: the class of the highest probability, the classes whose
#: probability is above the threshold, or the outputs as they are.
DECISIONS = ("argmax", "threshold", "none")
#: The decision of the kinds of task whose manifests need not state it.
KINDS = {"multiclass": "argmax", "multilabel": "threshold"}

#: What a client goes by.
_CONTRACT = ("task", "inputs", "outputs", "class_names", "threshold", "scale")

_LIMIT = 64_000_000  # bytes; a manifest of a thousand classes takes about a hundred thousand
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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


@dataclass(frozen=True)
class InputSpec(TensorSpec):
    """An input; ``preprocessing`` says how raw data becomes the tensor, as a JSON object.

    ``range`` holds the lowest and the highest value that training saw, None where that says
    nothing, as of text. An input is ``optional`` that may be left out: ``preprocessing`` then has
    ``missing``, which is the row that stands for it, or the one number that this row consists of.
    """

    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    range: tuple[float, float] | None = None

    @property
    def optional(self) -> bool:
        """Whether it may be left out."""
        return "missing" in self.preprocessing

    def stand_ins(self, count: int) -> NDArray[Any]:
        """Return what stands for an optional input that is left out, (count, *shape)."""
        row = np.asarray(self.preprocessing["missing"], self.dtype)
        return np.ascontiguousarray(np.broadcast_to(row, (count, *self.shape[1:])))


@dataclass(frozen=True)
class TaskSpec:
    """The task that the model was made for.

    ``decision`` is one of ``DECISIONS``; it may be left out for a kind in ``KINDS``.
    """

    name: str
    kind: str
    decision: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "decision", self.decision or KINDS.get(self.kind, ""))


@dataclass(frozen=True)
class TargetSpec:
    """The network once more, for one target: ``file``, which is opened, is one of the bundle's.

    ``precision`` is the type of its weights, ``producer`` maps the packages that made it to their
    versions. ``dtypes`` holds the inputs that are of another type than in the manifest, by name.
    ``measured`` is a JSON object of free form: parity, score, how it was made.
    """

    file: str
    precision: str
    producer: Mapping[str, Any]
    dtypes: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """What a bundle says about its model.

    ``threshold`` is the probability above which a label is given: a number where the task's
    decision is ``threshold``, else None. ``scale`` holds ``mean`` and ``deviation`` of labels that
    are numbers, a number for each of ``class_names``; None for other tasks. ``files`` maps
    each file of the bundle to its SHA-256.
    ``targets`` are the forms of the network beside ``model.onnx``, by name.
    ``genotype``, ``fusion`` (instead of it: a hand-made fusion, by name), ``scores``, ``parity``,
    ``latency``, ``graph`` (opset, size, … of the model), ``pipeline`` (what ``pipeline.onnx`` takes
    where that is of any size) and ``versions`` are JSON objects of free form.
    """

    name: str
    task: TaskSpec
    inputs: tuple[InputSpec, ...]
    outputs: tuple[TensorSpec, ...]
    class_names: tuple[str, ...]
    files: Mapping[str, str]
    threshold: float | None = None
    scale: Mapping[str, Any] | None = None
    targets: Mapping[str, TargetSpec] = field(default_factory=dict)
    genotype: Mapping[str, Any] | None = None
    fusion: Mapping[str, Any] | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Any] = field(default_factory=dict)
    graph: Mapping[str, Any] = field(default_factory=dict)
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON-ready plain data, without digests of its own."""
        data = {"format": FORMAT, **asdict(self)}
        # Earlier versions know no scale: their digests, and what they can read, stay as they were.
        return data if self.scale is not None else {k: v for k, v in data.items() if k != "scale"}

    def to_file(self) -> dict[str, Any]:
        """Return the content of the file: ``to_dict`` with the SHA-256 of each member."""
        data = self.to_dict()
        return {**data, "sha256": _digests(data)}

    def contract(self) -> str:
        """Return the SHA-256 of what a client goes by, which the model's metadata hold too."""
        data = self.to_dict()
        return _digest({name: data[name] for name in _CONTRACT if name in data})


def _digest(value: Any) -> str:
    """Return the SHA-256 of plain data as JSON: keys sorted, no spaces, ASCII."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _digests(data: Mapping[str, Any]) -> dict[str, str]:
    return {name: _digest(value) for name, value in data.items() if name != "sha256"}


def load(folder: Path) -> Manifest:
    """Read the manifest of the bundle ``folder``; BundleError names the file and the place."""
    return load_content(read_content(folder), folder)


def load_content(content: bytes, folder: Path) -> Manifest:
    """Return what ``load`` does, where ``content`` is what ``read_content`` returned."""
    data = _json(content, folder)
    manifest = parse(data, str(folder / MANIFEST_FILE))
    digested = data["format"] != EARLIER or "sha256" in data
    for problem in changes(data, folder) if digested else ():
        raise BundleError(f"{problem}: export again")
    return manifest


def read(folder: Path) -> Any:
    """Return the JSON value in the manifest of ``folder`` unchecked; raises BundleError."""
    return _json(read_content(folder), folder)


def read_content(folder: Path) -> bytes:
    """Return the bytes of the manifest of ``folder``; raises BundleError."""
    path = folder / MANIFEST_FILE
    try:
        with open_regular(path) as file:
            content = file.read(_LIMIT + 1)
    except FileNotFoundError as error:
        what = f"not a bundle: it has no {MANIFEST_FILE}" if folder.is_dir() else "there is none"
        inside = folder / "bundle"  # of a run
        also = f"; did you mean {inside}?" if (inside / MANIFEST_FILE).is_file() else ""
        raise BundleError(
            f"{folder}: {what}; expected a folder that 'bmnas export' wrote, or the path of an"
            f" .onnx file{also}"
        ) from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _LIMIT:
        raise BundleError(f"{path}: more than the {_LIMIT:,} bytes that a manifest may have")
    return content


def _json(content: bytes, folder: Path) -> Any:
    try:
        return parse_json(content)
    except ValueError as error:
        raise BundleError(f"{folder / MANIFEST_FILE}: not a JSON file: {error}") from error


def changes(data: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Yield one line for each member of the manifest ``data`` of ``folder`` that was changed."""
    stated, found = data.get("sha256", {}), _digests(data)
    for name in {**found, **stated}:
        if found.get(name) != stated.get(name):
            yield (
                f"{folder / MANIFEST_FILE}: {name}: changed after export: its sha256 is"
                f" {found.get(name, 'none')}, expected {stated.get(name, 'one')}"
            )


def _is_axis(value: Any) -> bool:
    return type(value) is int and (value == -1 or value >= 1)


def _shape(value: Any, place: str) -> tuple[int, ...]:
    axes = tuple(value) if isinstance(value, list | tuple) and all(map(_is_axis, value)) else ()
    if not axes or axes[0] != -1 or -1 in axes[1:]:
        raise wrong(place, value, "the batch axis -1 first and fixed lengths after it")
    return axes


def _range(value: Any, place: str) -> tuple[float, float]:
    ends = tuple(value) if isinstance(value, list | tuple) else ()
    numbers = len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    if not numbers or not ends[0] <= ends[1]:
        raise wrong(place, value, "two numbers, the lowest and the highest")
    return ends


_TENSOR: dict[str, Check] = {"name": nonempty, "shape": _shape, "dtype": one_of(PROTOCOL)}


def _input(data: Any, place: str) -> InputSpec:
    optional = {"meaning": text, "preprocessing": plain_object, "range": nullable(_range)}
    spec = InputSpec(**table(data, place, _TENSOR, optional))
    if spec.optional:
        try:
            spec.stand_ins(1)
        except (ValueError, TypeError, OverflowError) as error:
            missing = spec.preprocessing["missing"]
            expected = f"a number, or a row of {list(spec.shape[1:])}"
            raise wrong(f"{place}.preprocessing.missing", missing, expected) from error
    return spec


def _output(data: Any, place: str) -> TensorSpec:
    return TensorSpec(**table(data, place, _TENSOR, {"meaning": text}))


def _task(data: Any, place: str) -> TaskSpec:
    task = TaskSpec(
        **table(data, place, {"name": nonempty, "kind": nonempty}, {"decision": one_of(DECISIONS)})
    )
    if not task.decision:
        expected = f"one of {', '.join(KINDS)}, or a task.decision beside it"
        raise wrong(f"{place}.kind", task.kind, expected)
    if KINDS.get(task.kind, task.decision) != task.decision:
        raise wrong(f"{place}.decision", task.decision, KINDS[task.kind])
    return task


def _matching(pattern: re.Pattern[str], expected: str) -> Check:
    def check(value: Any, place: str) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise wrong(place, value, expected)
        return value

    return check


def _scale(data: Any, place: str) -> Mapping[str, tuple[float, ...]]:
    return table(data, place, {"mean": each(finite), "deviation": each(finite)}, {})


def _files(data: Any, place: str) -> Mapping[str, str]:
    if not isinstance(data, dict) or MODEL_FILE not in data:
        raise wrong(place, data, f"an object of sha256 digests with {MODEL_FILE!r} in it")
    # A plain path only: a manifest must not make the server read outside its folder.
    plain = _matching(_FILE_NAME, "the plain path of a file in the bundle")
    digest = _matching(_SHA256, "a sha256 of 64 hexadecimal digits")
    return {plain(key, place): digest(found, f"{place}.{key}") for key, found in data.items()}


def _targets(data: Any, place: str) -> Mapping[str, TargetSpec]:
    required: dict[str, Check] = {
        "file": nonempty,
        "precision": nonempty,
        "producer": plain_object,
    }
    optional: dict[str, Check] = {"dtypes": plain_object, "measured": plain_object}
    return {
        name: TargetSpec(**table(found, f"{place}.{name}", required, optional))
        for name, found in plain_object(data, place).items()
    }


def _format(value: Any, place: str) -> Any:
    if value not in (FORMAT, EARLIER):
        raise wrong(place, value, f"{FORMAT!r} or {EARLIER!r}: export again with this version")
    return value


_REQUIRED: dict[str, Check] = {
    "format": _format,
    "name": _matching(_NAME, "letters, digits, '_', '-' and '.'"),
    "task": _task,
    "inputs": each(_input),
    "outputs": each(_output),
    "class_names": each(nonempty),
    "files": _files,
}
_OPTIONAL: dict[str, Check] = {
    "threshold": lambda value, place: value,  # it depends on the task
    "scale": nullable(_scale),
    "targets": _targets,
    "genotype": nullable(plain_object),
    "fusion": nullable(plain_object),
    **dict.fromkeys(("scores", "parity", "latency", "graph", "pipeline", "versions"), plain_object),
    "sha256": plain_object,
}


def parse(data: Any, source: str = "manifest") -> Manifest:
    """Build a manifest from plain data; ``source`` is named in messages.

    Raises BundleError on anything that is not exactly the documented format.
    """
    try:
        members = table(data, "", _REQUIRED, _OPTIONAL)
        del members["format"]
        members.pop("sha256", None)
        manifest = Manifest(**members)
        _check_names(manifest)
        _check_threshold(manifest.threshold, manifest.task)
        for name, target in manifest.targets.items():
            if target.file not in manifest.files:
                raise wrong(f"targets.{name}.file", target.file, "one of files")
    except FormatError as error:
        raise BundleError(f"{source}: {error}") from error
    return manifest


def _check_names(manifest: Manifest) -> None:
    for place, tensors in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        names = [tensor.name for tensor in tensors]
        if not names or len(set(names)) < len(names):
            raise wrong(place, names, "at least one tensor, and names that differ")
    classes, task = manifest.class_names, manifest.task
    if not classes or len(set(classes)) < len(classes):
        raise wrong("class_names", list(classes), "at least one name, and names that differ")
    for name, numbers in (manifest.scale or {}).items():
        if len(numbers) != len(classes):
            raise wrong(f"scale.{name}", list(numbers), "a number for each of the class_names")
    # A kind that states its decision may have logits of another number.
    by_class = ("logits", "probabilities") if task.kind in KINDS else ("probabilities",)
    for i, tensor in enumerate(manifest.outputs if task.decision != "none" else ()):
        if tensor.name in by_class and tensor.shape != (-1, len(classes)):
            expected = f"{[-1, len(classes)]}, one column for each of the class_names"
            raise wrong(f"outputs[{i}].shape", list(tensor.shape), expected)


def _check_threshold(threshold: Any, task: TaskSpec) -> None:
    if task.decision != "threshold":
        if threshold is not None:
            raise wrong("threshold", threshold, f"null, as the task is {task.kind}")
    elif type(threshold) not in (int, float) or not 0 <= threshold <= 1:
        raise wrong("threshold", threshold, f"a number from 0 to 1, as the task is {task.kind}")


def verify_files(
    manifest: Manifest, folder: Path, sha256: Callable[[Path], str] = sha256_of
) -> None:
    """Compare each file of the bundle ``folder`` with its SHA-256 in the manifest.

    ``sha256`` reads a file and returns its own. Raises BundleError naming the first file that is
    missing or differs.
    """
    for problem in file_changes(manifest, folder, sha256):
        raise BundleError(f"{problem}: export again")


def file_changes(
    manifest: Manifest, folder: Path, sha256: Callable[[Path], str] = sha256_of
) -> Iterator[str]:
    """Yield one line for each file of the bundle ``folder`` that is missing or was changed."""
    for name, expected in manifest.files.items():
        path = folder / name
        try:
            received = sha256(path)
        except OSError as error:
            yield f"{path}: cannot be read: {error.strerror}; {MANIFEST_FILE} lists it"
            continue
        if received != expected:
            yield (
                f"{path}: damaged or changed after export: its sha256 is {received}, expected"
                f" {expected}"
            )
