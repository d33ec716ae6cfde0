"""The export, from a trained network to a bundle folder that appears whole or not at all."""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import onnxscript
import torch
from bmnas_serve import manifest as bundle
from bmnas_serve.codec import encode_response, encode_tensor
from bmnas_serve.errors import InferenceError, ServeError
from bmnas_serve.inference import InferRequest, OutputRequest
from bmnas_serve.manifest import InputSpec, Manifest, TargetSpec, TaskSpec, TensorSpec
from bmnas_serve.repository import MODEL_VERSION
from bmnas_serve.runner import OnnxRunner
from bmnas_serve.session import Session

from bmnas.machine.costs import Latency, versions
from bmnas.machine.errors import UserError
from bmnas.machine.files import atomic_folder, sha256_file, write_json
from bmnas.machine.progress import Progress, Stage
from bmnas.machine.tensor_file import write_tensors
from bmnas.pipeline.multimodal import MultimodalNetwork, parameter_counts
from bmnas.pipeline.trained import TrainedNetwork
from bmnas.tasks.task import Modality, Task
from bmnas_export.errors import ExportError, ParityError, first_line
from bmnas_export.graph import export_graph, graph_facts
from bmnas_export.judge import Judge, head_of_manifest
from bmnas_export.locate import first_difference
from bmnas_export.measure import (
    BATCHES,
    ParityReport,
    SampleInputs,
    latency_report,
    measure_parity,
    measure_session,
    value_ranges,
)
from bmnas_export.pipeline import check_pipeline, write_pipeline
from bmnas_export.place import checked_target
from bmnas_export.prepare import ExportNetwork, prepare, reference_network
from bmnas_export.score import check_score, measure_score
from bmnas_export.targets import ONNX, TARGETS, Exported, ordered

#: Test samples and torch's logits of them, by which a bundle is verified without its task.
SAMPLES_FILE = "samples.safetensors"
SAMPLES_FORMAT = "bmnas.samples/1"
#: The drawing of the architecture, where there is one.
DRAWING_FILE = "architecture.svg"

_SAMPLES_BYTES = 8_000_000
_STAGES = ("samples", "graph", "check", "parity", "score", "latency", "write")


@dataclass(frozen=True)
class Bundle:
    """A bundle that was written.

    ``latency`` holds onnxruntime's by batch size, ``parameters`` the numbers of weights of fusion
    network, classifier and backbones, ``sizes`` the bytes of each file.
    """

    folder: Path
    manifest: Manifest
    parity: ParityReport
    latency: Mapping[int, Latency]
    parameters: Mapping[str, int]
    sizes: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return what was written and measured as JSON-ready plain data."""
        return {
            "bundle": str(self.folder),
            "files": dict(self.sizes),
            "targets": {name: asdict(found) for name, found in self.manifest.targets.items()},
            "parity": dict(self.manifest.parity),
            "latency": dict(self.manifest.latency),
            "parameters": dict(self.parameters),
        }


def export_bundle(
    trained: TrainedNetwork,
    task: Task,
    out: Path,
    *,
    targets: Sequence[str] = (ONNX,),
    scores: Mapping[str, Any] | None = None,
    drawing: str | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Export a trained network, compare it with torch on test samples, write it to ``out``.

    ``task`` holds the test samples. ``targets`` are of ``TARGETS``, or ``onnx``, which is in every
    bundle. ``scores`` go into the manifest, ``drawing`` is an SVG of the architecture. A bundle at
    ``out`` is replaced, once all went well.

    Raises UserError for an ``out``, a task or names that cannot be; ExportError when the network
    cannot be exported or scores otherwise than ``scores`` say, ParityError when onnxruntime and
    torch disagree, PrecisionError when a target loses more of the validation score than it may.
    """
    further, place = ordered(targets), checked_target(out)
    with (progress or Progress()).stage("export", len(_STAGES) + len(further)) as stage:
        stage.message("samples")
        reference = reference_network(trained.network)
        inputs = SampleInputs(task, trained.task, reference)
        manifest = _describe(trained, reference, inputs, scores or {})
        _next(stage, "graph")
        prepared = prepare(reference, trained.task.head)
        try:
            with atomic_folder(place) as folder:
                metadata = _metadata(trained, manifest)
                graph = export_graph(prepared, manifest.inputs, manifest.outputs, metadata)
                model = folder / bundle.MODEL_FILE
                model.write_bytes(graph)
                _next(stage, "check")
                session = Session.of_bundle(OnnxRunner.open(model), manifest, model)
                _next(stage, "parity")
                parity = _parity(prepared, reference, session, inputs, folder)
                _next(stage, "score")
                measured = _score(session, reference, inputs, manifest, parity)
                _next(stage, "latency")
                latency = measure_session(session, inputs, parity.seconds)
                made = _write_targets(folder, session, inputs, further, stage)
                _next(stage, "write")
                _write_example(folder, session, inputs)
                _write_samples(folder, parity, inputs)
                if drawing is not None:
                    (folder / DRAWING_FILE).write_text(drawing, "utf-8")
                manifest = replace(
                    manifest,
                    targets=made,
                    parity=parity.to_dict(),
                    scores=measured,
                    latency=latency_report(latency, session),
                    graph=graph_facts(folder / bundle.MODEL_FILE),
                    pipeline=_write_pipeline(folder, session, inputs),
                )
                manifest = _write_manifest(folder, manifest)
                bundle.load(folder)
                sizes = _sizes(folder, (*manifest.files, bundle.MANIFEST_FILE))
                stage.advance()
        except OSError as error:
            raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error
        except (ServeError, InferenceError) as error:
            raise ExportError(str(error)) from error
    return Bundle(out, manifest, parity, latency, parameter_counts(reference), sizes)


def _sizes(folder: Path, files: Iterable[str]) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in files}


def _write_targets(
    folder: Path, session: Session, test: SampleInputs, names: Sequence[str], stage: Stage
) -> Mapping[str, TargetSpec]:
    if not names:
        return {}
    judge = Judge(session, test.part("validation"))
    exported = Exported(folder, judge, test.part("train"), test)
    for name in names:
        _next(stage, name)
        exported.made[name] = TARGETS[name].write(exported)
    return exported.made


def _files(folder: Path) -> Iterator[str]:
    """Yield the files of the bundle so far, but its manifest."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != bundle.MANIFEST_FILE:
            yield path.relative_to(folder).as_posix()


def _write_example(folder: Path, session: Session, inputs: SampleInputs) -> None:
    """Write a request that can be sent as it is, the first test sample, and the answer to it."""
    arrays = {name: tensor.numpy() for name, tensor in inputs.batch(1).items()}
    request = {"inputs": [encode_tensor(name, array) for name, array in arrays.items()]}
    outputs = tuple(OutputRequest(spec.name) for spec in session.outputs)
    asked = InferRequest(id=None, inputs=arrays, outputs=outputs)
    response, _ = encode_response(session.name, MODEL_VERSION, asked, session.run(arrays))
    for name, body in (("example.json", request), ("example.expected.json", response)):
        # On one line: an image is thousands of numbers.
        (folder / name).write_text(json.dumps(body, allow_nan=False) + "\n", "utf-8")


def _parity(
    prepared: ExportNetwork,
    reference: MultimodalNetwork,
    session: Session,
    inputs: SampleInputs,
    folder: Path,
) -> ParityReport:
    """Compare with torch; where they differ, say from which node on."""
    try:
        return measure_parity(reference, session, inputs, prepared.head)
    except ParityError as error:
        batch = inputs.batch(min(len(inputs), BATCHES[-1]))
        model = folder / bundle.MODEL_FILE
        try:
            place = first_difference(prepared, session.inputs, model, batch)
        except Exception as fault:  # whatever it is, the difference is what counts
            place = f"where it begins was not found: {first_line(fault)}"
        raise ParityError(f"{error}; {place}; no bundle was written") from error


def _score(
    session: Session,
    reference: MultimodalNetwork,
    inputs: SampleInputs,
    manifest: Manifest,
    parity: ParityReport,
) -> dict[str, Any]:
    """Return the manifest's scores with that of the exported network, which is as it was."""
    head = head_of_manifest(manifest)
    measured = measure_score(session, reference, inputs, head, parity.served)
    recorded = manifest.scores.get("test")
    check_score(measured, recorded if isinstance(recorded, Mapping) else {})
    return {**manifest.scores, "exported": measured}


def _write_samples(folder: Path, parity: ParityReport, inputs: SampleInputs) -> None:
    """Write up to 64 of the samples compared and torch's logits, fewer where they are large."""
    compared = len(parity.logits)
    batch = inputs.batch(compared)
    row = sum(x.nbytes for x in batch.values()) // compared
    count = min(compared, max(2, _SAMPLES_BYTES // row))
    chosen = torch.linspace(0, compared - 1, count).round().long()
    tensors = {f"inputs.{name}": x[chosen] for name, x in batch.items()}
    tensors["logits"] = torch.from_numpy(parity.logits)[chosen]
    write_tensors(folder / SAMPLES_FILE, tensors, {"format": SAMPLES_FORMAT})


def _write_pipeline(folder: Path, session: Session, inputs: SampleInputs) -> dict[str, Any]:
    """Write the model for raw inputs, if there are some, and return what it takes."""
    types = {modality.name: modality.type for modality in inputs.task.modalities}
    taken = write_pipeline(folder, session.inputs, types)
    if taken:
        # Three: the graph was captured with two.
        batch = inputs.batch(min(len(inputs), 3))
        check_pipeline(folder, session, {name: x.numpy() for name, x in batch.items()})
    return taken


def _describe(
    trained: TrainedNetwork,
    network: MultimodalNetwork,
    inputs: SampleInputs,
    scores: Mapping[str, Any],
) -> Manifest:
    """Return the manifest as far as it is known before the export; digests are still zero."""
    info = trained.task
    with torch.inference_mode():
        columns = network(*inputs.batch(1).values()).shape[1]
    outputs = tuple(
        TensorSpec(output.name, (-1, output.columns), "float32", output.meaning)
        for output in info.head.served_outputs(len(info.class_names), columns)
    )
    taken = [name for name in network.modalities if name in {spec.name for spec in outputs}]
    if taken:
        raise UserError(
            f"task {info.name}: received a modality called {taken[0]!r}, which is the name of an"
            " output of the exported network: rename the modality"
        )
    ranges = value_ranges(inputs.task, network)
    manifest = Manifest(
        name=re.sub(r"[^A-Za-z0-9_.-]+", "-", info.name).lstrip("_.-") or "model",
        task=TaskSpec(info.name, info.kind, info.head.decision),
        inputs=tuple(
            _input(network, inputs.task.modality(name), span, (info.sources or {}).get(name))
            for name, span in ranges.items()
        ),
        outputs=outputs,
        class_names=info.class_names,
        files={bundle.MODEL_FILE: "0" * 64},
        threshold=info.threshold,
        scale=None if info.scale is None else asdict(info.scale),
        genotype=trained.genotype.to_dict() if trained.genotype else None,
        fusion=None if trained.genotype else _plain(trained),
        scores=scores,
        versions={
            **versions(),
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "onnxscript": onnxscript.__version__,
            **{name: importlib.metadata.version(name) for name in _packages(network)},
        },
    )
    try:
        return bundle.parse(manifest.to_dict())
    except ServeError as error:
        raise UserError(f"this network cannot be described for serving: {error}") from error


def _packages(network: MultimodalNetwork) -> tuple[str, ...]:
    """Return the packages that backbones are made with, beside torch."""
    backbones = [network.backbone(name) for name in network.modalities]
    transformers = any(backbone.family == "hf" for backbone in backbones)
    tokenizers = any("tokenizer" in backbone.input_spec.preprocessing for backbone in backbones)
    return ("transformers",) * transformers + ("tokenizers",) * (transformers or tokenizers)


def _input(
    network: MultimodalNetwork,
    modality: Modality,
    span: tuple[float, float] | None,
    trained: Mapping[str, Any] | None,
) -> InputSpec:
    """Return what is said of an input; ``trained`` is how its rows were made in training."""
    name, source = modality.name, modality.source
    if trained is not None:
        if not _alike({**trained, "folder": None}, {**(source or {}), "folder": None}):
            raise UserError(
                f"modality {name}: the task makes its rows otherwise than in training, as its "
                "table or task.toml has changed since: give those of then, or train again"
            )
        source = trained
    spec = network.backbone(name).input_spec
    # What the type has room for was documented there, not what training saw.
    stated = {key: value for key, value in spec.preprocessing.items() if key != "value_range"}
    how = {"type": modality.type, **stated}
    if source is not None:
        how["source"] = dict(source)
    absent = network.backbone(name).absent
    if absent is not None:
        how["missing"] = absent.tolist()
    return InputSpec(name, (-1, *spec.shape), spec.dtype, spec.meaning, how, span)


def _alike(one: Any, other: Any) -> bool:
    """Tell whether plain data are equal, numbers but for the rounding of another machine."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-12)
    return bool(one == other)


def _metadata(trained: TrainedNetwork, manifest: Manifest) -> dict[str, str]:
    kind = "genotype" if trained.genotype else "fusion"
    return {
        "bmnas.format": bundle.FORMAT,
        "bmnas.version": versions()["bmnas"],
        "bmnas.task": trained.task.name,
        "bmnas.contract": manifest.contract(),
        "bmnas.kind": trained.task.kind,
        "bmnas.class_names": json.dumps(trained.task.class_names),
        f"bmnas.{kind}": json.dumps(_plain(trained), sort_keys=True),
    }


def _plain(trained: TrainedNetwork) -> dict[str, Any]:
    """Return the architecture without its provenance, which may name folders of a machine."""
    # Of a hand-made fusion a manifest has name and sizes: it takes whatever features there are.
    left_out = ("provenance",) if trained.genotype else ("provenance", "format", "features")
    return {k: v for k, v in trained.architecture.to_dict().items() if k not in left_out}


def _write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    digests = {name: sha256_file(folder / name) for name in _files(folder)}
    complete = replace(manifest, files=digests)
    write_json(folder / bundle.MANIFEST_FILE, complete.to_file())
    return complete


def _next(stage: Stage, name: str) -> None:
    stage.advance()
    stage.message(name)
