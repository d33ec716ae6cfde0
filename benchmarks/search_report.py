"""What is told of searches on a table: rows of a Markdown table, and what the truth allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from bmnas.lab.tables import Entry, Table, replay
from bmnas.spaces.cells.genotype import Genotype

_GROUPS = 20  # replays are cheap: so many for every search


def modalities(genotype: Genotype) -> int:
    """Return how many modalities a network reads."""
    return len({name.partition(".")[0] for name in genotype.live_features()})


def collapsed(genotype: Genotype) -> dict[str, bool]:
    """Tell whether a network is nothing but sums, and whether it reads one modality alone."""
    ops = {cell.steps[m].op for cell in genotype.cells for m in cell.live_steps()}
    return {"sums": ops <= {"sum"}, "one_modality": modalities(genotype) == 1}


def found_row(table: Table, genotypes: Sequence[Genotype]) -> dict[str, Any]:
    """Return the row of a search that found ``genotypes``, one for each seed."""
    row = judged(table, map(table.entry, genotypes))
    for name in ("sums", "one_modality"):
        row[name] = float(np.mean([collapsed(genotype)[name] for genotype in genotypes]))
    return row


def replay_row(table: Table, strategy: str, budget: int, seeds: int) -> dict[str, Any]:
    """Return the row of a replayed strategy; worst values are means over groups of ``seeds``."""
    found = [
        replay(table, strategy, seed=seed, budget=budget).best for seed in range(_GROUPS * seeds)
    ]
    row = judged(table, found)
    groups = [judged(table, found[g * seeds : (g + 1) * seeds]) for g in range(_GROUPS)]
    for name in ("percentile_worst", "regret_worst"):
        row[name] = float(np.mean([group[name] for group in groups]))
    genotypes = [entry.genotype for entry in found]
    for name in ("sums", "one_modality"):
        row[name] = float(np.mean([collapsed(genotype)[name] for genotype in genotypes]))
    return row | {"as_candidates": budget}


def judged(table: Table, entries: Iterable[Entry]) -> dict[str, Any]:
    """Return percentiles and regrets (fractions) of what several searches found."""
    entries = list(entries)
    percentiles = [table.percentile(entry) for entry in entries]
    regrets = [table.regret(entry) for entry in entries]
    return {
        "percentile_median": float(np.median(percentiles)),
        "percentile_worst": float(np.min(percentiles)),
        "regret_mean": float(np.mean(regrets)),
        "regret_worst": float(np.max(regrets)),
        "test_mean": float(np.mean([np.mean(entry.test) for entry in entries])),
    }


def truth(table: Table) -> dict[str, Any]:
    """Return how well validation tells test, and how far seeds agree.

    Of the latter only where the table has several seeds.
    """
    validation, test = table.arrays["validation"], table.arrays["test"]
    top = np.argsort(-table.scores("validation"))[: max(2, len(table) // 10)]
    pairs = list(combinations(range(table.seeds), 2))
    one_seed = [table.at(int(n)) for n in validation.argmax(axis=0)]
    best = table.best("validation")
    found = {
        "networks": len(table),
        "best_test": float(table.scores().max()),
        "tau_validation_test": kendall_tau(table.scores("validation"), table.scores()),
        "tau_validation_test_of_the_top_tenth": kendall_tau(
            table.scores("validation")[top], table.scores()[top]
        ),
        "best_of_validation": judged(table, [best]),
        "best_of_validation_with_one_seed": judged(table, one_seed),
    }
    if pairs:
        taus = [kendall_tau(validation[:, i], validation[:, j]) for i, j in pairs]
        found["tau_between_seeds"] = float(np.mean(taus))
        found["deviation_between_seeds"] = float(test.std(axis=1, ddof=1).mean())
    return found


def kendall_tau(one: Any, other: Any) -> float:
    """Return Kendall's tau-b of two rankings: 1 is the same order, -1 the opposite, 0 none."""
    return float(kendalltau(one, other).statistic)


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown: a table of searches, then what else was measured."""
    lines = [
        "| search | percentile, median | worst | regret, points, mean | worst | sums only | "
        "one modality | candidates, or their cost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in report["rows"].items():
        numbers = (
            f"{row['percentile_median']:.1f}", f"{row['percentile_worst']:.1f}",
            f"{100 * row['regret_mean']:.2f}", f"{100 * row['regret_worst']:.2f}",
            f"{row['sums']:.0%}", f"{row['one_modality']:.0%}", str(row["as_candidates"]),
        )  # fmt: skip
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    known = report["truth"]
    lines += [
        "",
        f"{known['networks']:,} networks, the best {known['best_test']:.2%} on test. Kendall's tau "
        f"of validation and test {known['tau_validation_test']:.2f}, among the top tenth "
        f"{known['tau_validation_test_of_the_top_tenth']:.2f}.",
    ]
    for stage, what in (
        ("mixture", "supernet"),
        ("single_path", "supernet trained on one path at a time"),
    ):
        ranked = [f[stage] for f in report["supernet"]]
        taus, own = ([r[part] for r in ranked] for part in ("test", "test_of_several_modalities"))
        lines.append(
            f"Kendall's tau of the {what} and test: {np.mean(taus):.2f}, among networks of several "
            f"modalities {np.mean(own):.2f}."
        )
    return "\n".join(lines)
