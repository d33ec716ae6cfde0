"""``bmnas genotype``: a known fusion module as a genotype, without a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from bmnas.cli.options import Json, TaskOptions, grouped
from bmnas.cli.output import next_command, print_json
from bmnas.machine.errors import UserError
from bmnas.pipeline.run_folder import Run, best_cells, genotype_file
from bmnas.report.text import genotype_text
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.known import (
    FUSION_MODULES,
    late_pairs,
    module_genotype,
    random_pairs,
)
from bmnas.spaces.mmnas.known import SEQUENCES
from bmnas.spaces.registry import load_architecture
from bmnas.tasks import check_task


@grouped
def genotype(
    *,
    module: Annotated[
        str,
        Argument(
            help=f"One of {', '.join(FUSION_MODULES)}; or a sequence of MMnas: "
            f"{', '.join(SEQUENCES)}, or a file arch/*.json of its authors."
        ),
    ],
    pairs: Annotated[
        str,
        Option(
            metavar="late|random|PATH",
            help="Pairs of features to fuse: the last ones of all modalities, random ones, or "
            "those of a genotype that was found (its file or run folder; needs no --task).",
        ),
    ] = "late",
    source: TaskOptions,
    run: Annotated[
        Path | None,
        Option(help="Folder to write genotype.json to, by default runs/<task>-<module>-<pairs>."),
    ] = None,
    seed: Annotated[int, Option(help="Seed of random pairs.")] = 0,
    as_json: Json = False,
) -> None:
    """Write the genotype of a known fusion module: every Cell is that module.

    bmnas train takes it like a genotype that a search found. Channels, length and the number of
    random Cells come from the preset; with the pairs of a run, its backbones can be used again. A
    known sequence of MMnas has the width that the preset's section mmnas trains in the end, mcan
    and guided also its lengths; one from a file, of which the last epoch counts, has the authors'
    sizes.

    Example: bmnas genotype aoa --pairs late --task digits
    """
    options: dict[str, Any] = {"task": source.task, "data": source.data}
    made: Architecture
    if module in SEQUENCES or module.endswith(".json"):
        made, name = _sequence(module, source)
    elif pairs in ("late", "random"):
        made, name = _for_task(module, pairs, source, seed)
    else:
        file = genotype_file(Path(pairs))
        found = best_cells(file)
        shape = {"channels": found.channels, "length": found.length}
        taken = [cell.inputs for cell in found.cells]
        made = module_genotype(module, taken, found.features, **shape, pairs_name="found")
        name, options = f"{file.resolve().parent.name}-{module}", _of_run(Run(file.parent))
    path = Run(Path("runs") / name if run is None else run).genotype
    if path.is_file() and load_architecture(path) != made:
        raise UserError(f"{path}: holds another genotype; choose another folder with --run")
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(path)
    if as_json:
        print_json({"genotype": made.to_dict(), "path": str(path)})
    else:
        print(genotype_text(made))
        next_command("train", genotype=path, **options)


def _sequence(name: str, source: TaskOptions) -> tuple[Architecture, str]:
    """Return the sequence ``name``, or of that file, on a task's features; and a folder's name."""
    from bmnas.pipeline.sequences import sequence_for

    task, config = source.load()
    check_task(task)
    return sequence_for(task, config, name), f"{task.name}-{Path(name).stem}"


def _for_task(module: str, pairs: str, source: TaskOptions, seed: int) -> tuple[Genotype, str]:
    """Return ``module`` on late or random pairs of a task's features, and its folder's name."""
    from bmnas.machine.runtime import check_seed
    from bmnas.pipeline.unimodal import feature_names

    check_seed(seed)
    task, config = source.load()
    check_task(task)
    settings, features = config.search, feature_names(task)
    late = pairs == "late"
    made = module_genotype(
        module,
        late_pairs(features) if late else random_pairs(features, settings.cells, seed),
        features,
        channels=settings.channels,
        length=settings.length,
        pairs_name=pairs if late else f"random ({seed})",
    )
    return made, f"{task.name}-{module}-{pairs}"


def _of_run(run: Run) -> dict[str, Any]:
    """Return the options that train a genotype on the task and the backbones of ``run``."""
    if not run.config.is_file():
        return {}
    config = run.read_config()
    source = config["task"]["source"]
    backbones = (config.get("backbones") or {}).get("folder") or run.backbones
    return {"task": source.get("task"), "data": source.get("data"), "backbones": backbones}
