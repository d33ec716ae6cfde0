"""``bmnas genotype``: a known fusion module as a genotype, without a search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bmnas.cli.options import Json, TaskOptions, grouped
from bmnas.cli.output import next_command, print_json
from bmnas.spaces.cells.known import FUSION_MODULES

if TYPE_CHECKING:
    from bmnas.spaces.cells.genotype import Genotype


@grouped
def genotype(
    *,
    module: Annotated[
        str, typer.Argument(help=f"One of {', '.join(FUSION_MODULES)}.", show_default=False)
    ],
    pairs: Annotated[
        str,
        typer.Option(
            metavar="late|random|PATH",
            help="Pairs of features to fuse: the last ones of all modalities, random ones, or "
            "those of a genotype that was found (its file or run folder; needs no --task).",
        ),
    ] = "late",
    source: TaskOptions,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder to write genotype.json to.",
            show_default="runs/<task>-<module>-<pairs>",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random pairs.")] = 0,
    as_json: Json = False,
) -> None:
    """Write the genotype of a known fusion module: every Cell is that module.

    bmnas train takes it like a genotype that a search found. Channels, length and the number of
    random Cells come from the preset; with the pairs of a run, its backbones can be used again.

    Example: bmnas genotype aoa --pairs late --task digits
    """
    from bmnas.report.text import genotype_text

    found = pairs not in ("late", "random")
    if found:
        made, name = _of_pairs(module, Path(pairs))
    else:
        made, name = _for_task(module, pairs == "late", source, seed)
    default = f"{name}-{module}" if found else f"{name}-{module}-{pairs}"
    path = (Path("runs") / default if run is None else run) / "genotype.json"
    _write(made, path)
    if as_json:
        print_json({"genotype": made.to_dict(), "path": str(path)})
        return
    print(genotype_text(made))
    options = _of_run(Path(pairs)) if found else {"task": source.task, "data": source.data}
    next_command("train", genotype=path, **options)


def _of_pairs(module: str, pairs: Path) -> tuple[Genotype, str]:
    """Return ``module`` on the pairs of a found genotype, and the name of its run."""
    from bmnas.pipeline.run_folder import genotype_file
    from bmnas.spaces.cells.genotype import Genotype
    from bmnas.spaces.fusions.genotypes import module_genotype, searched_pairs

    path = genotype_file(pairs)
    found = Genotype.load(path)
    made = module_genotype(
        module,
        searched_pairs(found),
        found.features,
        channels=found.channels,
        length=found.length,
        pairs_name="found",
    )
    return made, path.resolve().parent.name


def _of_run(found: Path) -> dict[str, Any]:
    """Return the options with which a genotype is trained on what the run of ``found`` used."""
    from bmnas.pipeline.run_folder import Run, genotype_file

    run = Run(genotype_file(found).parent)
    if not run.config.is_file():
        return {}
    config = run.read_config()
    source = config["task"]["source"]
    backbones = (config.get("backbones") or {}).get("folder") or run.backbones
    return {"task": source.get("task"), "data": source.get("data"), "backbones": backbones}


def _for_task(module: str, late: bool, source: TaskOptions, seed: int) -> tuple[Genotype, str]:
    """Return ``module`` on pairs of the features of a task, and the task's name."""
    from bmnas.machine.runtime import check_seed
    from bmnas.pipeline.unimodal import feature_names
    from bmnas.spaces.fusions.genotypes import late_pairs, module_genotype, random_pairs
    from bmnas.tasks import check_task

    check_seed(seed)
    task, config = source.load()
    check_task(task)
    settings, features = config.search, feature_names(task)
    made = module_genotype(
        module,
        late_pairs(features) if late else random_pairs(features, settings.cells, seed),
        features,
        channels=settings.channels,
        length=settings.length,
        pairs_name="late" if late else f"random ({seed})",
    )
    return made, task.name


def _write(made: Genotype, path: Path) -> None:
    from bmnas.machine.errors import UserError
    from bmnas.spaces.cells.genotype import Genotype

    if path.is_file() and Genotype.load(path) != made:
        raise UserError(f"{path}: holds another genotype; choose another folder with --run")
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(path)
