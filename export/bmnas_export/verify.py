"""Whether a bundle still is what was exported: its files, its manifest, what its model says.

Nothing but the bundle is needed: it holds test samples and torch's logits of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
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
from bmnas_export.bundle import SAMPLES_FILE, SAMPLES_FORMAT
from bmnas_export.errors import ExportError, ParityError
from bmnas_export.graph import external_files, graph_facts
from bmnas_export.judge import head_of_manifest
from bmnas_export.measure import BATCHES, ParityReport, compare
from bmnas_export.pipeline import check_pipeline

#: Of logits scaled to a maximum of one: another processor rounds otherwise, digests are exact.
_TOLERANCE = 1e-4
#: Standard deviations of a count: the stored samples are others than those that were judged.
_SLACK = 4


@dataclass(frozen=True)
class Verification:
    """What was found: ``problems``, a line each, and how near to torch the model is, if it runs.

    ``targets`` says of each target that could be looked at what it was held against.
    """

    manifest: Manifest
    problems: tuple[str, ...]
    parity: ParityReport | None
    targets: Mapping[str, str]


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
    head_of_manifest(manifest)
    problems = [*bundle.changes(data, folder), *bundle.file_changes(manifest, folder)]
    checks = _Checks(folder, manifest)
    for check in (checks.graph, checks.parity, checks.targets, checks.pipeline):
        try:
            problems += check()
        except ParityError as error:
            model = folder / bundle.MODEL_FILE
            problems.append(f"{model}: does not say what torch said of stored samples: {error}")
        except (ServeError, InferenceError, UserError, ExportError) as error:
            problems.append(str(error))
    # What cannot be opened is told once, not by every check.
    problems = list(dict.fromkeys(problems))
    return Verification(manifest, tuple(problems), checks.report, checks.seen)


class _Checks:
    """The checks of a bundle, each of which returns a line a problem or raises one."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.report: ParityReport | None = None
        self.seen: dict[str, str] = {}

    @functools.cached_property
    def session(self) -> Session:
        model = self.folder / bundle.MODEL_FILE
        return Session.of_bundle(OnnxRunner.open(model), self.manifest, model)

    @functools.cached_property
    def samples(self) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
        """The stored inputs by name, and torch's logits of them."""
        path = self.folder / SAMPLES_FILE
        _, stored = read_tensors(path, described=SAMPLES_FORMAT)
        wanted = ["logits", *(f"inputs.{spec.name}" for spec in self.manifest.inputs)]
        for name in wanted:
            if name not in stored or not len(stored[name]):
                raise BundleError(f"{path}: lacks the tensor {name!r}: export again")
        logits, *arrays = (stored[name].numpy() for name in wanted)
        return dict(zip((spec.name for spec in self.manifest.inputs), arrays, strict=True)), logits

    def graph(self) -> Iterable[str]:
        return list(_graph_problems(self.session, self.folder))

    def parity(self) -> Iterable[str]:
        arrays, logits = self.samples
        pairs = []
        for size in sorted({min(size, len(logits)) for size in BATCHES}):
            inputs = {name: x[:size] for name, x in arrays.items()}
            pairs.append((logits[:size], self.session.run(inputs)))
        head = head_of_manifest(self.manifest)
        self.report = compare(pairs, head, len(logits), _TOLERANCE)
        return ()

    def targets(self) -> Iterable[str]:
        return list(_target_problems(self.folder, self.manifest, *self.samples, self.seen))

    def pipeline(self) -> Iterable[str]:
        if self.manifest.pipeline:
            check_pipeline(self.folder, self.session, self.samples[0])
        return ()


def _target_problems(
    folder: Path,
    manifest: Manifest,
    inputs: Mapping[str, NDArray[Any]],
    logits: NDArray[Any],
    seen: dict[str, str],
) -> Iterator[str]:
    """Yield a line for each target in fewer bits that decides otherwise than when it was judged.

    ``seen`` receives what each was held against.
    """
    head = head_of_manifest(manifest)
    expected = head.decide(torch.from_numpy(logits))
    for name, spec in manifest.targets.items():
        judged = "agree" in spec.measured and spec.measured.get("samples")
        if not spec.file.endswith(".onnx") or not judged:
            seen[name] = "its digest alone, as it is not run here"
            continue
        path = folder / spec.file
        session = Session.of_bundle(OnnxRunner.open(path), manifest, path)
        found = head.decide(torch.from_numpy(session.run(inputs)["logits"]))
        agree = int((found == expected).all(1).sum())
        seen[name] = f"decides {agree} of {len(expected)} stored samples as torch did"
        share, count = spec.measured["agree"] / spec.measured["samples"], len(expected)
        if agree < count * share - _SLACK * math.sqrt(count * share * (1 - share)) - 1:
            yield (
                f"{path}: decides {agree} of {len(expected)} stored samples as torch did, expected"
                f" about {share:.0%} of them, as of validation when {name} was exported"
            )


def _graph_problems(session: Session, folder: Path) -> Iterator[str]:
    manifest, path = session.manifest, folder / bundle.MODEL_FILE
    assert manifest is not None
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
