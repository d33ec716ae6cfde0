"""Whether a bundle still is what was exported: its files, its manifest, what its model says.

Nothing but the bundle is needed: it holds test samples and torch's logits of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from bmnas_serve import manifest as bundle
from bmnas_serve.errors import BundleError, InferenceError, ServeError
from bmnas_serve.manifest import Manifest
from bmnas_serve.runner import OnnxRunner
from bmnas_serve.session import Session
from numpy.typing import NDArray

from bmnas.machine.errors import UserError
from bmnas.machine.tensor_file import read_tensors
from bmnas.training.heads import head_for
from bmnas_export.bundle import SAMPLES_FILE, SAMPLES_FORMAT
from bmnas_export.errors import ExportError, ParityError
from bmnas_export.graph import external_files, graph_facts
from bmnas_export.measure import BATCHES, ParityReport, compare
from bmnas_export.pipeline import check_pipeline

_SLACK = 0.1  # of the stored samples: they are others than those that a target was judged on


@dataclass(frozen=True)
class Verification:
    """What was found: ``problems``, a line each, and how near to torch the model is, if it runs."""

    manifest: Manifest
    problems: tuple[str, ...]
    parity: ParityReport | None


def verify_bundle(folder: Path) -> Verification:
    """Verify the bundle ``folder``: digests, the graph, stored samples in several batches.

    Raises BundleError where there is no manifest that can be read, or one of an earlier version,
    which has no digests; UserError for a kind of task that is not registered.
    """
    data = bundle.read(folder)
    manifest = bundle.parse(data, str(folder / bundle.MANIFEST_FILE))
    if data["format"] == bundle.EARLIER:
        raise BundleError(
            f"{folder}: received a bundle of format {bundle.EARLIER!r}, which holds nothing to"
            " verify it by: export again with this version"
        )
    head = head_for(manifest.task.kind, manifest.threshold)
    problems = [*bundle.changes(data, folder), *bundle.file_changes(manifest, folder)]
    parity, model = None, folder / bundle.MODEL_FILE
    try:
        session = Session.of_bundle(OnnxRunner.open(model), manifest, model)
        problems += _graph_problems(manifest, folder)
        _, stored = read_tensors(folder / SAMPLES_FILE, described=SAMPLES_FORMAT)
        arrays = {name: tensor.numpy() for name, tensor in stored.items()}
        pairs = []
        for size in sorted({min(size, len(arrays["logits"])) for size in BATCHES}):
            inputs = {spec.name: arrays[f"inputs.{spec.name}"][:size] for spec in manifest.inputs}
            pairs.append((arrays["logits"][:size], session.run(inputs)))
        parity = compare(pairs, head, len(arrays["logits"]))
        problems += _target_problems(folder, manifest, inputs, arrays["logits"])
        if manifest.pipeline:
            check_pipeline(folder, session, inputs)
    except KeyError as error:
        problems.append(f"{folder / SAMPLES_FILE}: lacks the tensor {error}")
    except ParityError as error:
        problems.append(f"{model}: does not say what torch said of stored samples: {error}")
    except (ServeError, InferenceError, UserError, ExportError) as error:
        problems.append(str(error))
    return Verification(manifest, tuple(problems), parity)


def _target_problems(
    folder: Path, manifest: Manifest, inputs: Mapping[str, NDArray[Any]], logits: NDArray[Any]
) -> Iterator[str]:
    """Yield a line for each target in fewer bits that decides otherwise than when it was judged."""
    head = head_for(manifest.task.kind, manifest.threshold)
    expected = head.decide(torch.from_numpy(logits))
    for name, spec in manifest.targets.items():
        if not spec.file.endswith(".onnx") or "agree" not in spec.measured:
            continue
        path = folder / spec.file
        session = Session.of_bundle(OnnxRunner.open(path), manifest, path)
        found = head.decide(torch.from_numpy(session.run(inputs)["logits"]))
        agree = int((found == expected).all(1).sum())
        share = spec.measured["agree"] / spec.measured["samples"]
        if agree < (share - _SLACK) * len(expected):
            yield (
                f"{path}: decides {agree} of {len(expected)} stored samples as torch did, expected"
                f" about {share:.0%} of them, as of validation when {name} was exported"
            )


def _graph_problems(manifest: Manifest, folder: Path) -> Iterator[str]:
    path = folder / bundle.MODEL_FILE
    model = onnx.load(path, load_external_data=False)
    for name in sorted(external_files(model) - manifest.files.keys()):
        yield f"{path}: keeps tensors in {name!r}, which {bundle.MANIFEST_FILE} does not list"
    for name, value in graph_facts(path).items():
        if manifest.graph.get(name) != value:
            yield f"{path}: its {name} is {value}, the manifest says {manifest.graph.get(name)}"
    contract = {entry.key: entry.value for entry in model.metadata_props}.get("bmnas.contract")
    if contract != manifest.contract():
        yield (
            f"{path}: was exported for other inputs, outputs, class names or threshold than the"
            f" manifest has: their sha256 is {manifest.contract()}, expected {contract}"
        )
