"""``bmnas export``: a trained network as a bundle that ``bmnas serve`` serves."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from bmnas_export import Bundle

    from bmnas.pipeline.trained import TaskInfo, TrainedNetwork
    from bmnas.spaces.architecture import Architecture
    from bmnas.tasks import Task


def export(
    genotype: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The genotype of a trained network, or its run folder.",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Instead: the run folder of a trained network, also of a hand-made fusion.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Its weights.",
            show_default="network.safetensors in the run folder",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of the bundle.", show_default="bundle in the run folder"
        ),
    ] = None,
    target: Annotated[Literal["onnx"], typer.Option(help="Format of the network.")] = "onnx",
    task: Annotated[
        str | None,
        typer.Option(
            help="Task whose test samples the network is tried with.",
            show_default="the one it was trained on",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the task's data.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write backbones, fusion and classifier as one ONNX graph with all that serving it needs.

    The graph is compared with torch on real test samples in onnxruntime, and timed. When they
    disagree nothing is written, and a bundle that is there already stays.

    Example: bmnas export --genotype runs/digits/genotype.json
    """
    from bmnas.machine.errors import UserError

    genotype, folder = _what(genotype, run)
    weights = folder / "network.safetensors" if weights is None else weights
    out = folder / "bundle" if out is None else out
    if genotype is not None and genotype.is_file() and not weights.is_file():
        raise UserError(f"{weights}: no such file; make it with: {_train(genotype)}")
    require_export()
    with _held(weights.parent):
        trained, samples = _load(genotype, weights, task, data)
        bundle = _export(trained, samples, weights.parent, out)
    _print(bundle, as_json)


def export_run(run: Path, task: Task) -> None:
    """Write the bundle of the network that was trained in ``run``, into it."""
    from bmnas.pipeline.trained import load_network

    require_export()
    with _held(run):
        trained = load_network(run / "network.safetensors", task)
        _export(trained, task, run, run / "bundle")


def require_export() -> None:
    """Raise UserError where what exporting needs is not installed."""
    from bmnas_serve.errors import ServeError

    from bmnas.machine.errors import UserError

    try:
        import bmnas_export  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"exporting needs the package {error.name}, which is not installed: run"
            " pip install 'bmnas[export]'"
        ) from error
    except ServeError as error:
        raise UserError(str(error)) from error


def _export(trained: TrainedNetwork, task: Task, folder: Path, out: Path) -> Bundle:
    """Write the bundle, and note its latency in the run ``folder`` of the weights, if it is one."""
    import bmnas_export

    from bmnas.machine.progress import Bars

    try:
        bundle = bmnas_export.export_bundle(
            trained, task, out, scores=_scores(folder), progress=Bars()
        )
    except bmnas_export.ExportError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    _record(folder, bundle)
    return bundle


def _what(genotype: Path | None, run: Path | None) -> tuple[Path | None, Path]:
    """Return the file of the genotype, None where the run has none, and the run folder."""
    from bmnas.machine.errors import UserError
    from bmnas.pipeline.run_folder import Run, genotype_file

    if genotype is not None and run is None:
        file = genotype_file(genotype)
        return file, file.parent
    if run is None or genotype is not None:
        raise UserError(
            f"received {'neither' if run is None else 'both'} --genotype and --run, expected one "
            "of them"
        )
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; expected the run folder of a trained network")
    file = Run(run).genotype
    return file if file.is_file() else None, run


def _held(folder: Path) -> AbstractContextManager[None]:
    """Hold a run's folder from the start: told now that it is in use, not after minutes."""
    from bmnas.pipeline.run_folder import Run, locked

    return locked(folder) if Run(folder).metrics.is_file() else nullcontext()


def _record(folder: Path, bundle: Bundle) -> None:
    """Note the latency in ``metrics.json`` beside the weights, for ``bmnas compare``."""
    from bmnas.pipeline.run_folder import Run

    run = Run(folder)
    if run.metrics.is_file():
        latency = bundle.manifest.latency
        measured = {
            "onnxruntime": latency["onnxruntime"],
            # "threads" are those of torch.
            "onnxruntime_threads": latency["threads"],
        }
        run.update_metrics({"latency": measured})


def _load(
    genotype: Path | None, weights: Path, task: str | None, data: Path | None
) -> tuple[TrainedNetwork, Task]:
    from bmnas.pipeline.trained import load_network, read_description
    from bmnas.spaces.registry import load_architecture

    # Before the weights: where both are missing, the genotype was named.
    asked = None if genotype is None else load_architecture(genotype)
    found, info = read_description(weights)
    if genotype is not None and asked is not None:
        _check_genotype(found, asked, genotype, weights)
    samples = _load_task(info, weights, task, data)
    return load_network(weights, samples), samples


def _check_genotype(found: Architecture, asked: Architecture, path: Path, weights: Path) -> None:
    """Raise UserError unless ``weights`` are those of the genotype ``asked`` in ``path``."""
    from bmnas.machine.errors import UserError

    if found == asked:
        return
    if found.FORMAT != asked.FORMAT:
        what = f"it is a {found.summary()}"
    else:
        what = f"they differ in {_difference(found.to_dict(), asked.to_dict())}"
    raise UserError(
        f"{weights}: trained for another genotype than {path}: {what}; give the weights that"
        f" belong to it with --weights, or make them with: {_train(path)}"
    )


def _load_task(info: TaskInfo, weights: Path, task: str | None, data: Path | None) -> Task:
    from bmnas.machine.errors import UserError
    from bmnas.tasks import load_task, reload_task

    source = info.source
    recorded = isinstance(source, dict) and isinstance(source.get("task"), str)
    if task is not None:
        return load_task(task, data)
    if not recorded:
        raise UserError(
            f"{weights}: does not say where the data of the task {info.name!r} is; name the task"
            " with --task (and --data)"
        )
    if data is not None:
        return reload_task({**source, "data": str(data)})
    try:
        return reload_task(source)
    except UserError as error:
        raise UserError(f"{error} (it was trained on this; --task and --data change it)") from error


def _train(genotype: Path) -> str:
    import shlex

    return f"bmnas train --genotype {shlex.quote(str(genotype))}"


def _difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    name = next(key for key in found if found[key] != asked.get(key))
    if not isinstance(found[name], list) or not isinstance(asked.get(name), list):
        return f"{name}: {found[name]} and {asked.get(name)}"
    if len(found[name]) != len(asked[name]):
        return f"{name}: {len(found[name])} and {len(asked[name])}"
    pairs = zip(found[name], asked[name], strict=True)
    return next(f"{name}[{k}]" for k, (left, right) in enumerate(pairs) if left != right)


def _scores(folder: Path) -> dict[str, Any]:
    """Return the scores of ``metrics.json`` beside the weights, nothing where there is none."""
    from bmnas.machine.errors import UserError
    from bmnas.machine.files import read_json

    path = folder / "metrics.json"
    if not path.exists():
        return {}
    metrics = read_json(path)
    if not isinstance(metrics, dict):
        raise UserError(f"{path}: received {type(metrics).__name__}, expected a JSON object")
    return {key: metrics[key] for key in ("metric", "unimodal", "search", "test") if key in metrics}


def _print(bundle: Bundle, as_json: bool) -> None:
    import json
    import shlex

    if as_json:
        print(json.dumps(bundle.to_dict(), indent=2))
        return

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(bundle):
        table.add_row(name, escape(value))
    Console().print(table)
    # Plain: a command that is wrapped or coloured cannot be copied.
    typer.echo(f"Next: bmnas serve {shlex.quote(str(bundle.folder))}", err=True)


def _facts(bundle: Bundle) -> list[tuple[str, str]]:
    from bmnas.report.style import measure

    parity, parameters = bundle.parity, bundle.parameters
    batches = ", ".join(str(batch.batch) for batch in parity.batches)
    threads = bundle.manifest.latency["threads"]
    facts = [
        ("bundle", str(bundle.folder)),
        ("files", ", ".join(f"{name} {_bytes(size)}" for name, size in bundle.sizes.items())),
        ("parameters", ", ".join(f"{name} {count:,}" for name, count in parameters.items())),
        ("inputs", ", ".join(_tensor(tensor) for tensor in bundle.manifest.inputs)),
        ("outputs", ", ".join(_tensor(tensor) for tensor in bundle.manifest.outputs)),
        ("equals torch", f"to {parity.difference:.1e} of the largest logit, batches of {batches}"),
        ("", f"{parity.agree} of {parity.rows} predictions of test samples are the same"),
    ]
    for size, latency in bundle.latency.items():
        facts.append(
            (
                f"batch {size}",
                f"{measure(latency.median_ms, '.3g')} ms median,"
                f" {measure(latency.p99_ms, '.3g')} ms p99"
                f" (onnxruntime, {threads} threads)",
            )
        )
    return facts


def _tensor(tensor: Any) -> str:
    axes = ", ".join("batch" if axis == -1 else str(axis) for axis in tensor.shape)
    return f"{tensor.name} {tensor.dtype} ({axes})"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
