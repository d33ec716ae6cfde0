"""Accuracy on a task over several seeds: each modality alone, hand-made fusions, searches.

    python -m benchmarks.results av-digits --seeds 3 --fusions gmu aoa/late aoa/found

Besides late fusion, ``--fusions`` takes names of ``bmnas.baselines.FUSIONS``, and known modules of
the pool over pairs of features: sum, concat_fc, mha2, aoa with /late, /random or /found, the last
being the pairs of the first strategy. ``all`` stands for every one of them.

The mean of the unimodal logits is that, with nothing trained; late fusion is the mean of the logits
of linear classifiers. All ways of fusing share a seed's unimodal networks and feature cache, and
are trained with the same settings of the task's preset on train and validation; test data is read
once by each, at the end. Work goes on where it was stopped. Prints a Markdown table and writes one
JSON file.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import bmnas
from bmnas.architecture import Architecture, NamedFusion, build_fusion
from bmnas.backbones import load_backbone
from bmnas.baselines import FUSIONS
from bmnas.baselines.genotypes import late_pairs, module_genotype, random_pairs, searched_pairs
from bmnas.config import SearchConfig
from bmnas.cost import hardware, parameter_counts, versions
from bmnas.files import read_json, write_json
from bmnas.genotype import FUSION_MODULES, Genotype
from bmnas.joint import channels_of, evaluate_fusion, fit_fusion
from bmnas.metrics import Objective
from bmnas.progress import Bars
from bmnas.runtime import seed_stage

PAIRS = ("late", "random", "found")
BY_HAND = (*FUSIONS, *(f"{module}/{pairs}" for module in FUSION_MODULES for pairs in PAIRS))


def main() -> None:
    """Run every way of fusing for every seed; print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", help="as for bmnas search --task")
    parser.add_argument("--data", type=Path, help="the folder of the task's data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strategies", nargs="+", default=["bmnas", "random"])
    parser.add_argument("--fusions", nargs="+", default=[], choices=(*BY_HAND, "all"))
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="run folders")
    parser.add_argument("--out", type=Path, help="a folder for the JSON file")
    options = parser.parse_args()
    task = bmnas.load_task(options.task, options.data)
    # A task's options are part of its name here: two splits are two lines of runs.
    name = Path(options.task).stem.replace(":", "_").replace("=", "-").replace(",", "_")
    fusions = BY_HAND if "all" in options.fusions else options.fusions
    config = bmnas.load_preset(task.preset)
    runs = [
        one_seed(task, config, options.runs / name / str(seed), seed, options.strategies, fusions)
        for seed in range(options.seeds)
    ]
    rows = summary(runs)
    report = {
        "task": options.task,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": f"python -m benchmarks.results {options.task} --seeds {options.seeds} "
        f"--strategies {' '.join(options.strategies)}"
        + (f" --fusions {' '.join(options.fusions)}" if options.fusions else ""),
        "hardware": hardware(),
        "versions": versions(),
        "preset": config.to_dict(),
        "rows": rows,
        "seeds": runs,
    }
    print(markdown(rows))
    if options.out is not None:
        write_json(options.out / f"{report['date']}-{name}.json", report)


def one_seed(
    task: bmnas.Task,
    config: bmnas.Config,
    folder: Path,
    seed: int,
    strategies: Sequence[str],
    fusions: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """Return the facts of every way of fusing, and of each modality alone, for one seed."""
    Console(stderr=True).print(f"{task.name}, seed {seed}")
    facts: dict[str, dict[str, Any]] = {}
    shared = folder / "backbones"
    for strategy in strategies:
        found = bmnas.search(
            task,
            run=folder / strategy,
            config=config,
            strategy=strategy,
            seed=seed,
            existing="resume",
            backbones=shared,
            progress=Bars(),
        )
        trained = bmnas.train(found.run / "genotype.json", task, existing="resume", progress=Bars())
        facts[f"search: {strategy}"] = {
            "test": trained.score,
            "fusion": trained.metrics["parameters"]["fusion"],
            "seconds": trained.metrics["seconds"]["search"],
        }
    for modality, scores in trained.metrics["unimodal"].items():
        facts[f"{modality} alone"] = {"test": scores["test"], "seconds": 0.0, "fusion": 0}
    mean = trained.metrics["test"]["unimodal_mean"]
    facts["mean of unimodal logits"] = {"test": mean, "fusion": 0, "seconds": 0.0}
    found_genotype = Genotype.load(folder / strategies[0] / "genotype.json")
    for name in ("late fusion", *fusions):
        path = folder / f"{name.replace(' ', '-').replace('/', '-')}.json"
        facts[name] = by_hand(name, task, config, path, shared, seed, found_genotype)
    return facts


def by_hand(
    name: str,
    task: bmnas.Task,
    config: bmnas.Config,
    path: Path,
    shared: Path,
    seed: int,
    found: Genotype,
) -> dict[str, Any]:
    """Train and test a fusion on the backbones in ``shared``; the facts are kept in ``path``."""
    if path.is_file():
        kept: dict[str, Any] = read_json(path)
        return kept
    backbones = {
        m.name: load_backbone(shared / f"{m.name}.safetensors")[0] for m in task.modalities
    }
    raw = channels_of(backbones)
    architecture = architecture_of(name, list(raw), config.search, seed, found)
    seed_stage(seed, "train")
    dropout = config.train.dropout
    fusion = build_fusion(
        architecture,
        raw,
        classes=task.classes,
        dropout=dropout,
        modality_heads=config.train.modality_heads,
    )
    objective = Objective(task.kind, config.train.threshold)
    runtime = bmnas.Runtime.choose()
    network = fit_fusion(
        task,
        backbones,
        fusion,
        config.train,
        objective,
        features=shared / "features",
        cache_dtype=config.search.cache_dtype,
        runtime=runtime,
        checkpoint=None,
        progress=Bars(),
    )
    facts = {
        "test": evaluate_fusion(task, network, "test", objective, runtime).score,
        "fusion": parameter_counts(network)["fusion"],
        "seconds": 0.0,
    }
    write_json(path, facts)
    return facts


def architecture_of(
    name: str, features: Sequence[str], config: SearchConfig, seed: int, found: Genotype
) -> Architecture:
    """Return what ``name`` stands for: late fusion, a fusion by its name, or module/pairs."""
    module, _, kind = name.partition("/")
    if not kind:
        named = "two_stream" if name == "late fusion" else name
        return NamedFusion(named, config.channels, config.length)
    if kind == "late":
        pairs = late_pairs(features)
    elif kind == "random":
        pairs = random_pairs(features, config.cells, seed)
    else:
        pairs = searched_pairs(found)
    shape = {"channels": config.channels, "length": config.length}
    return module_genotype(module, pairs, features, **shape, pairs_name=kind)


def summary(runs: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return mean and sample standard deviation of the test score of each row, in per cent."""
    rows = {}
    for name in runs[0]:
        scores = [100 * run[name]["test"] for run in runs]
        rows[name] = {
            "mean": float(np.mean(scores)),
            "std": float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
            "scores": scores,
            "fusion": float(np.median([run[name]["fusion"] for run in runs])),
            "seconds": float(np.median([run[name]["seconds"] for run in runs])),
        }
    return rows


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table, the weakest first."""
    lines = [
        "| | test, % | each seed | fusion parameters (median) | search seconds (median) |",
        "|---|---|---|---|---|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["mean"]):
        scores = ", ".join(f"{score:.2f}" for score in row["scores"])
        seconds = f"{row['seconds']:.1f}" if row["seconds"] else ""
        fusion = f"{row['fusion']:,.0f}" if row["fusion"] else ""
        lines.append(
            f"| {name} | {row['mean']:.2f} ± {row['std']:.2f} | {scores} | {fusion} | {seconds} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
