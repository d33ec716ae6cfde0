"""``bmnas tabular``: a space of networks trained completely, and searches replayed on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from bmnas.cli.options import Backbones, Json, Seed, TaskOptions, grouped
from bmnas.cli.output import next_command, print_facts, print_json
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Bars
from bmnas.pipeline.run_folder import genotype_file
from bmnas.spaces.cells.canonical import canonical
from bmnas.spaces.cells.genotype import Genotype

if TYPE_CHECKING:
    from bmnas.lab.tables import Entry, Table

tabular = typer.Typer(no_args_is_help=True)

File = Annotated[Path, Argument(help="A table that bmnas tabular build wrote.")]


@tabular.callback()
def group() -> None:
    """Train every network of a small space, and replay searches on what came out.

    Example: bmnas tabular build --task digits --steps 1 --out digits.npz
    """


@dataclass(frozen=True)
class Space:
    """Which networks are trained, and how."""

    cells: Annotated[int, Option(help="Number of fusion Cells.")] = 1
    steps: Annotated[int, Option(help="Steps in each Cell.")] = 2
    channels: Annotated[int, Option(help="Channels of every fused feature.")] = 32
    length: Annotated[
        int | None,
        Option(help="Positions that every feature is pooled to; by default the preset's."),
    ] = None
    candidate_epochs: Annotated[
        int | None, Option(help="Epochs of every network, by default the preset's.")
    ] = None


@tabular.command()
@grouped
def build(
    *,
    out: Annotated[Path, Option(help="The table, a .npz file.")],
    source: TaskOptions,
    space: Space,
    seeds: Annotated[int, Option(help="Trainings of every network.")] = 3,
    seed: Annotated[int, Option(help="The first seed; the backbones have this one too.")] = 0,
    run: Annotated[
        Path | None,
        Option(help="Folder of what is done so far, by default runs/tabular-<task>."),
    ] = None,
    backbones: Backbones = None,
    workers: Annotated[
        int | None, Option(help="Processes, of one thread each; by default one a core.")
    ] = None,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace the table that FILE holds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train every network of a space on the feature cache, many at once, and write the table.

    Isomorphic genotypes count as one network. Each is trained as a candidate of a search is, and
    tested too, since the table holds test scores. A build that was stopped goes on when the same
    command is run again.

    Example: bmnas tabular build --task digits --steps 1 --seeds 1 --out digits.npz
    """
    from bmnas.lab.table_build import build_table
    from bmnas.machine.runtime import cores

    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists; replace it with --overwrite, or choose another --out")
    task, config = source.load()
    table = build_table(
        task,
        out,
        config=config.override("search", **asdict(space)),
        run=Path("runs") / f"tabular-{task.name}" if run is None else run,
        seed=seed,
        seeds=seeds,
        backbones=backbones,
        workers=cores() if workers is None else workers,
        progress=Bars(),
    )
    _print(_summary(table), as_json)
    next_command("tabular", "replay", out, strategy="evolution")


@tabular.command()
def show(
    table: File,
    genotype: Annotated[
        Path | None, Option(help="A genotype's file or run folder: print its entry.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what a table holds, or what it knows of one network.

    Example: bmnas tabular show digits.npz --genotype runs/digits
    """
    from bmnas.lab.tables import load

    loaded = load(table)
    if genotype is None:
        _print(_summary(loaded), as_json)
    else:
        entry = loaded.entry(Genotype.load(genotype_file(genotype)))
        _print(_facts(loaded, entry), as_json)


@tabular.command()
def replay(
    table: File,
    strategy: Annotated[
        str, Option(help="random, local, regularised, mfas or evolution.")
    ] = "random",
    budget: Annotated[int, Option(help="Candidates that it may look up.")] = 50,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Replay a search on a table: candidates are looked up, not trained.

    Example: bmnas tabular replay digits.npz --strategy local --budget 100 --seed 3
    """
    from bmnas.lab.tables import load
    from bmnas.lab.tables import replay as run_replay

    loaded = load(table)
    found = run_replay(loaded, strategy, seed=seed, budget=budget)
    facts = {"strategy": strategy, "seed": seed, "candidates": len(found.asked)}
    _print({**facts, **_facts(loaded, found.best)}, as_json)


def _summary(table: Table) -> dict[str, Any]:
    search, best = table.about["search"], _facts(table, table.best())
    return {
        "task": table.about["task"].get("name"),
        "networks": len(table),
        "seeds": table.seeds,
        **{name: search[name] for name in ("cells", "steps", "channels", "length")},
        "epochs": search.get("candidate_epochs"),
        "hours": round(float(table.arrays["seconds"].sum()) * table.seeds / 3600, 3),
        "best": best["network"],
        "best_test": best["test"],
        "best_validation": table.best("validation").validation,
    }


def _facts(table: Table, entry: Entry) -> dict[str, Any]:
    return {
        "network": canonical(entry.genotype),
        "validation": entry.validation,
        "test": entry.test,
        "percentile": round(table.percentile(entry), 2),
        "regret": round(table.regret(entry), 5),
        "parameters": entry.parameters,
        "latency_ms": round(entry.latency_ms, 4),
        "seconds": round(entry.seconds, 3),
    }


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        print_facts(facts, "Network" if "network" in facts else "Table")
