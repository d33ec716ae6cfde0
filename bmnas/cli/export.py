"""``bmnas export``: a trained network as a bundle that ``bmnas serve`` serves."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bmnas.cli.options import Data, Json, grouped
from bmnas.cli.output import next_command, print_facts, print_json
from bmnas.cli.serve import needing

if TYPE_CHECKING:
    from bmnas_export import Bundle

    from bmnas.pipeline.trained import TaskInfo, TrainedNetwork
    from bmnas.spaces.architecture import Architecture
    from bmnas.tasks import Task


@dataclass(frozen=True)
class Source:
    """Which network is exported."""

    genotype: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The genotype of a trained network, or its run folder.",
            show_default=False,
        ),
    ] = None
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Instead: the run folder of a trained network, also of a hand-made fusion.",
            show_default=False,
        ),
    ] = None
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with the weights of the network.",
            show_default="network.safetensors in the run folder",
        ),
    ] = None

    def files(self) -> tuple[Path | None, Path]:
        """Return the files of the genotype, None where the run has none, and of the weights."""
        from bmnas.machine.errors import UserError
        from bmnas.pipeline.run_folder import Run, genotype_file

        if (self.genotype is None) == (self.run is None):
            found = "neither" if self.run is None else "both"
            raise UserError(f"received {found} --genotype and --run, expected one of them")
        if self.run is not None and not self.run.is_dir():
            raise UserError(
                f"{self.run}: no such folder; expected the run folder of a trained network"
            )
        genotype = Run(self.run).genotype if self.run else genotype_file(self.genotype or Path())
        weights = self.weights or genotype.parent / "network.safetensors"
        if genotype.is_file() and not weights.is_file():
            raise UserError(f"{weights}: no such file; make it with: {_train(genotype)}")
        return genotype if genotype.is_file() or self.genotype else None, weights


@grouped
def export(
    *,
    source: Source,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of the bundle.", show_default="bundle in the run folder"
        ),
    ] = None,
    target: Annotated[str, typer.Option(help="Format of the network: onnx.")] = "onnx",
    task: Annotated[
        str | None,
        typer.Option(
            help="Task whose test samples the model is checked on.",
            show_default="the one it was trained on",
        ),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Write backbones, fusion and classifier as one model file, with all that serving it needs.

    The model is run on real test samples and compared with torch, and timed. If the two disagree,
    nothing is written and a bundle that exists already is kept.

    Example: bmnas export --genotype runs/digits/genotype.json
    """
    genotype, weights = source.files()
    folder = weights.parent if genotype is None else genotype.parent
    require_export()
    with _locked(weights.parent):
        trained, samples = _load(genotype, weights, task, data)
        place = folder / "bundle" if out is None else out
        bundle = _export(trained, samples, weights.parent, place, target)
    if as_json:
        print_json(bundle.to_dict())
        return
    print_facts(_facts(bundle))
    next_command("serve", bundle.folder)


def export_run(run: Path, task: Task) -> None:
    """Write the bundle of the network that was trained in ``run``, into it."""
    from bmnas.pipeline.trained import load_network

    require_export()
    with _locked(run):
        trained = load_network(run / "network.safetensors", task)
        _export(trained, task, run, run / "bundle", "onnx")


def require_export() -> None:
    """Raise UserError where what exporting needs is not installed."""
    with needing("export", "exporting"):
        import bmnas_export  # noqa: F401


def _export(trained: TrainedNetwork, task: Task, folder: Path, out: Path, target: str) -> Bundle:
    """Write the bundle; where ``folder`` is a run, take its scores and note the latency there."""
    import bmnas_export

    from bmnas.machine.progress import Bars
    from bmnas.pipeline.run_folder import Run
    from bmnas.report.metrics import BatchLatency, LatencyMetrics, RunMetrics

    run = Run(folder)
    scores = run.read_metrics().scores()
    try:
        bundle = bmnas_export.export_bundle(
            trained, task, out, target=target, scores=scores, progress=Bars()
        )
    except bmnas_export.ExportError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    if run.metrics.is_file():
        latency = bundle.manifest.latency
        measured = LatencyMetrics(
            onnxruntime={n: BatchLatency(**found) for n, found in latency["onnxruntime"].items()},
            onnxruntime_threads=latency["threads"],
        )
        run.update_metrics(RunMetrics(latency=measured))
    return bundle


def _locked(folder: Path) -> AbstractContextManager[None]:
    """Lock a run's folder before the work: that it is in use is told now, not after minutes."""
    from bmnas.machine.distributed import lock_folders
    from bmnas.pipeline.run_folder import Run

    return lock_folders(folder) if Run(folder).metrics.is_file() else nullcontext()


def _load(
    genotype: Path | None, weights: Path, task: str | None, data: Path | None
) -> tuple[TrainedNetwork, Task]:
    """Return the network in ``weights`` and its task; it must be that of the genotype's file."""
    from bmnas.machine.errors import UserError
    from bmnas.pipeline.trained import load_network, read_description
    from bmnas.spaces.registry import load_architecture

    # Before the weights: where both are missing, the genotype was named.
    asked = None if genotype is None else load_architecture(genotype)
    found, info = read_description(weights)
    if genotype is not None and asked is not None and found != asked:
        raise UserError(
            f"{weights}: trained for another genotype than {genotype}: {_difference(found, asked)};"
            " give the weights that belong to it with --weights, or make them with: "
            f"{_train(genotype)}"
        )
    samples = _load_task(info, weights, task, data)
    return load_network(weights, samples), samples


def _difference(found: Architecture, asked: Architecture) -> str:
    if found.FORMAT != asked.FORMAT:
        return f"it is a {found.summary()}"
    one, other = found.to_dict(), asked.to_dict()
    return f"they differ in {next(key for key in one if one[key] != other.get(key))}"


def _load_task(info: TaskInfo, weights: Path, task: str | None, data: Path | None) -> Task:
    from bmnas.machine.errors import UserError
    from bmnas.tasks import load_task, reload_task

    if task is not None:
        return load_task(task, data)
    if not isinstance(info.source.get("task"), str):
        raise UserError(
            f"{weights}: does not say where the data of the task {info.name!r} is; name the task"
            " with --task (and --data)"
        )
    try:
        return reload_task(info.source, data)
    except UserError as error:
        if data is not None:
            raise
        raise UserError(f"{error} (it was trained on this; --task and --data change it)") from error


def _train(genotype: Path) -> str:
    return shlex.join(["bmnas", "train", "--genotype", str(genotype)])


def _facts(bundle: Bundle) -> list[tuple[str, str]]:
    from bmnas.report.style import formatted

    parity, parameters = bundle.parity, bundle.parameters
    batches = ", ".join(str(batch.batch) for batch in parity.batches)
    threads = bundle.manifest.latency["threads"]
    return [
        ("bundle", str(bundle.folder)),
        ("files", ", ".join(f"{name} {_bytes(size)}" for name, size in bundle.sizes.items())),
        ("parameters", ", ".join(f"{name} {count:,}" for name, count in parameters.items())),
        ("inputs", ", ".join(_tensor(tensor) for tensor in bundle.manifest.inputs)),
        ("outputs", ", ".join(_tensor(tensor) for tensor in bundle.manifest.outputs)),
        ("equals torch", f"to {parity.difference:.1e} of the largest logit, batches of {batches}"),
        ("", f"{parity.agree} of {parity.rows} predictions of test samples are the same"),
        *(
            (
                f"batch {size}",
                f"{formatted(latency.median_ms, '.3g')} ms median, "
                f"{formatted(latency.p99_ms, '.3g')} ms p99 (onnxruntime, {threads} threads)",
            )
            for size, latency in bundle.latency.items()
        ),
    ]


def _tensor(tensor: Any) -> str:
    axes = ", ".join("batch" if axis == -1 else str(axis) for axis in tensor.shape)
    return f"{tensor.name} {tensor.dtype} ({axes})"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
