"""``bmnas genotype``: a known fusion module as a genotype, without a search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bmnas.cli.stage_options import Data, Json

if TYPE_CHECKING:
    from bmnas.spaces.cells.genotype import Genotype


def genotype(
    module: Annotated[
        str, typer.Argument(help="sum, concat_fc, mha2 or aoa.", show_default=False)
    ],
    pairs: Annotated[
        str,
        typer.Option(
            metavar="late|random|PATH",
            help="What it fuses: the last features of all modalities, pairs drawn at random, or "
            "those of a found genotype (its file or run folder).",
        ),
    ] = "late",
    task: Annotated[
        str, typer.Option(help="As for search; a found genotype needs none.")
    ] = "digits",
    data: Data = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder to write genotype.json to.",
            show_default="runs/<task>-<module>-<pairs>",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Channels, length and number of random Cells.", show_default="the task's own"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random pairs.")] = 0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Write the genotype of a known fusion module: every Cell is that module.

    It is trained like a found one. With the pairs of a run the next command names its backbones.

    Example: bmnas genotype aoa --pairs late --task digits
    """
    import json
    import shlex

    made, name = _make(module, pairs, task, data, preset, seed)
    found = pairs not in ("late", "random")
    default = f"{name}-{module}" if found else f"{name}-{module}-{pairs}"
    folder = Path("runs") / default if run is None else run
    _write(made, folder / "genotype.json")
    if as_json:
        facts = {"genotype": made.to_dict(), "path": str(folder / "genotype.json")}
        print(json.dumps(facts, indent=2))
        return
    from bmnas.report.text import genotype_text

    print(genotype_text(made))
    path = shlex.quote(str(folder / "genotype.json"))
    options = _of_run(Path(pairs)) if found else {"task": task, "data": data}
    words = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value]
    typer.echo(" ".join([f"Next: bmnas train --genotype {path}", *words]), err=True)


def _make(
    module: str, pairs: str, task: str, data: Path | None, preset: str | None, seed: int
) -> tuple[Genotype, str]:
    """Return the genotype and the name of what it is for."""
    from bmnas.pipeline.run_folder import genotype_file
    from bmnas.spaces.cells.genotype import Genotype
    from bmnas.spaces.fusions.genotypes import module_genotype, searched_pairs

    if pairs in ("late", "random"):
        return _for_task(module, pairs, task, data, preset, seed)
    path = genotype_file(Path(pairs))
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
    task, options = source.get("task"), source.get("options")
    if task is not None and isinstance(options, dict):
        task = f"{task}:{','.join(f'{name}={value}' for name, value in options.items())}"
    return {"task": task, "data": source.get("data"), "backbones": backbones}


def _for_task(
    module: str, pairs: str, task: str, data: Path | None, preset: str | None, seed: int
) -> tuple[Genotype, str]:
    from bmnas.machine.runtime import check_seed
    from bmnas.pipeline.config import config_for
    from bmnas.pipeline.unimodal import feature_names
    from bmnas.spaces.fusions.genotypes import late_pairs, module_genotype, random_pairs
    from bmnas.tasks import check_task, load_task

    check_seed(seed)
    loaded = load_task(task, data)
    check_task(loaded)
    settings = config_for(loaded, preset).search
    features = feature_names(loaded)
    late = pairs == "late"
    made = module_genotype(
        module,
        late_pairs(features) if late else random_pairs(features, settings.cells, seed),
        features,
        channels=settings.channels,
        length=settings.length,
        pairs_name="late" if late else f"random ({seed})",
    )
    return made, loaded.name


def _write(made: Genotype, path: Path) -> None:
    from bmnas.machine.errors import UserError
    from bmnas.spaces.cells.genotype import Genotype

    if path.is_file() and Genotype.load(path) != made:
        raise UserError(f"{path}: holds another genotype; choose another folder with --run")
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(path)
