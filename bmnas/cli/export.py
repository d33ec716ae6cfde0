"""``bmnas export``: a trained network as a bundle that ``bmnas serve`` serves."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from bmnas.cli.options import Data, Json
from bmnas.cli.output import next_command, print_facts, print_json
from bmnas.cli.serve import needing
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Bars
from bmnas.pipeline.run_folder import Run
from bmnas.report.latency import latency_tables
from bmnas.report.metrics import BatchLatency, LatencyMetrics, RunMetrics
from bmnas.report.tables import print_tables, shown
from bmnas.spaces.registry import load_architecture
from bmnas.tasks import Task, load_task, reload_task

if TYPE_CHECKING:
    from bmnas_export import Bundle
    from torch import Tensor, nn

    from bmnas.pipeline.trained import TrainedNetwork
    from bmnas.strategies.target import Timer


def export(
    run: Annotated[
        Path,
        Option(
            "--genotype", "--run", help="Run folder of a trained network, or its genotype's file."
        ),
    ],
    weights: Annotated[
        Path | None, Option(help="Weights of the network, by default those in the run folder.")
    ] = None,
    out: Annotated[
        Path | None, Option(help="Folder of the bundle, by default bundle in the run folder.")
    ] = None,
    target: Annotated[
        list[str] | None,
        Option(help="What to export for beside onnx, see docs/export.md; may be given again."),
    ] = None,
    task: Annotated[
        str | None,
        Option(help="Task to check the model on, by default the one it was trained on."),
    ] = None,
    data: Data = None,
    benchmark: Annotated[
        bool,
        Option(
            "--benchmark", help="Time every target and torch: 1 thread and all, batch 1, 8, 64."
        ),
    ] = False,
    compiled: Annotated[
        bool, Option("--compile", help="With --benchmark, also time torch.compile.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write backbones, fusion and classifier as one model file, with all that serving it needs.

    The model is run on real test samples and compared with torch, and timed. If the two disagree,
    nothing is written and a bundle that exists already is kept.

    Example: bmnas export --genotype runs/digits/genotype.json
    """
    require_export()
    if compiled and not benchmark:
        raise UserError("--compile: counts for nothing without --benchmark: give both")
    # A hand-made fusion has no genotype.
    genotype = Run(run).genotype if run.is_dir() and Run(run).genotype.is_file() else run
    folder = run if run.is_dir() else run.parent
    weights = Run(folder).network if weights is None else weights
    with _locked(weights.parent):
        trained, samples = _load(None if genotype.is_dir() else genotype, weights, task, data)
        place = folder / "bundle" if out is None else out
        bundle = _export(trained, samples, weights.parent, place, target or ())
        if benchmark:
            bundle = _timed(bundle, trained, samples, compiled=compiled)
    if as_json:
        print_json(bundle.to_dict())
    else:
        print_facts(_facts(bundle), "Bundle")
        print_tables(latency_tables(bundle.manifest.to_dict()))
        next_command("serve", bundle.folder)


def export_run(run: Path, task: Task) -> None:
    """Write the bundle of the network that was trained in ``run``, into it."""
    from bmnas.pipeline.trained import load_network

    require_export()
    with _locked(run):
        trained = load_network(Run(run).network, task)
        _export(trained, task, run, run / "bundle")


def latency_timer() -> Timer:
    """Return what times a part of a network; it raises UserError for what cannot be exported."""
    require_export()
    import bmnas_export

    def timed(module: nn.Module, inputs: Sequence[Tensor]) -> float:
        try:
            return bmnas_export.time_module(module, inputs)
        except bmnas_export.ExportError as error:
            raise UserError(f"a limit of latency needs networks that export: {error}") from error

    return timed


def require_export() -> None:
    """Raise UserError where what exporting needs is not installed."""
    with needing("export", "exporting"):
        import bmnas_export  # noqa: F401


def _export(
    trained: TrainedNetwork, task: Task, folder: Path, out: Path, targets: Sequence[str] = ()
) -> Bundle:
    """Write the bundle; where ``folder`` is a run, take its scores and note the latency there."""
    import bmnas_export

    run = Run(folder)
    sections = ("metric", "unimodal", "search", "test", "importance")
    scores = run.read_metrics().only(*sections).to_dict()
    drawn = run.drawing.is_file() and trained.genotype is not None
    try:
        bundle = bmnas_export.export_bundle(
            trained,
            task,
            out,
            targets=targets,
            scores=scores,
            drawing=run.drawing.read_text("utf-8") if drawn else None,
            progress=Bars(),
        )
    except bmnas_export.ExportError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    if run.metrics.is_file():
        latency = bundle.manifest.latency
        batches = {n: BatchLatency(**found) for n, found in latency["onnxruntime"].items()}
        measured = LatencyMetrics(onnxruntime=batches, onnxruntime_threads=latency["threads"])
        run.update_metrics(RunMetrics(latency=measured))
    return bundle


def _timed(bundle: Bundle, trained: TrainedNetwork, task: Task, *, compiled: bool) -> Bundle:
    """Return the bundle, which is written already, with what a benchmark measured."""
    import bmnas_export

    manifest = bmnas_export.benchmark_bundle(
        bundle.folder, trained, task, compiled=compiled, progress=Bars()
    )
    written = bundle.folder / "manifest.json"
    sizes = {**bundle.sizes, written.name: written.stat().st_size}
    return replace(bundle, manifest=manifest, sizes=sizes)


def _locked(folder: Path) -> AbstractContextManager[None]:
    """Lock a run's folder before the work: that it is in use is told now, not after minutes."""
    from bmnas.machine.distributed import lock_folders

    return lock_folders(folder) if Run(folder).metrics.is_file() else nullcontext()


def _load(
    genotype: Path | None, weights: Path, task: str | None, data: Path | None
) -> tuple[TrainedNetwork, Task]:
    """Return the network in ``weights`` and its task; it must be that of the genotype's file.

    Or the sum of unimodal logits alone, for which a training may leave the fusion network out.
    """
    from bmnas.pipeline.trained import load_network, read_description
    from bmnas.spaces.fusions.space import NO_FUSION, NamedFusion

    # Before the weights: where both are missing, the genotype was named.
    asked = None if genotype is None else load_architecture(genotype)
    found, info = read_description(weights)
    left_out = isinstance(found, NamedFusion) and found.name == NO_FUSION
    if asked is not None and found != asked and not left_out:
        raise UserError(
            f"{weights}: trained for another genotype than {genotype}; give the weights that "
            f"belong to it with --weights, or make them with: "
            f"bmnas train --genotype {shlex.quote(str(genotype))}"
        )
    try:
        samples = reload_task(info.source, data) if task is None else load_task(task, data)
    except UserError as error:
        if task is not None:
            raise
        raise UserError(f"{error} (it was trained on this; --task and --data change it)") from error
    return load_network(weights, samples), samples


def _facts(bundle: Bundle) -> dict[str, object]:
    parity, threads = bundle.parity, bundle.manifest.latency["threads"]
    batches = ", ".join(str(batch.batch) for batch in parity.batches)
    sizes: Counter[str] = Counter()
    for name, size in bundle.sizes.items():
        first, below, _ = name.partition("/")
        sizes[first + below] += size
    return {
        "bundle": bundle.folder,
        "files": {name: f"{size / 1e3:,.1f} kB" for name, size in sizes.items()},
        "parameters": bundle.parameters,
        "inputs": [_tensor(tensor) for tensor in bundle.manifest.inputs],
        "outputs": [_tensor(tensor) for tensor in bundle.manifest.outputs],
        "equals torch": f"to {parity.difference:.1e} of the largest logit, batches of {batches}",
        "predictions": f"{parity.agree} of {parity.rows} in these batches are decided the same",
        **{
            f"batch {size}": f"{shown(time.median_ms, '.3g')} ms median, "
            f"{shown(time.p99_ms, '.3g')} ms p99 (onnxruntime, {threads} threads)"
            for size, time in bundle.latency.items()
        },
        **{name: _judged(found.measured) for name, found in bundle.manifest.targets.items()},
    }


def _judged(measured: Mapping[str, Any]) -> str:
    """Return in one line how a target's file answers, as far as it can be run here."""
    if "score" not in measured:
        return "built; it is not run here"
    return (
        f"scores {100 * measured['score']:.2f} on validation, onnx"
        f" {100 * measured['reference']:.2f}; {measured['agree']} of {measured['samples']} are the"
        " same"
    )


def _tensor(tensor: Any) -> str:
    axes = ", ".join("batch" if axis == -1 else str(axis) for axis in tensor.shape)
    return f"{tensor.name} {tensor.dtype} ({axes})"
