"""Do predicted latencies hold, and do limits? Networks drawn at random, exported and timed whole.

    python -m benchmarks.predicted_latency TASK --run DIR --networks 25 --out FILE.json

``DIR`` is a run folder of TASK whose backbones are trained. Networks of several spaces are drawn by
turns, with unimodal logits and without. Each is predicted from the table of parts and timed whole.
Then a limit is set at each quartile of what was measured: of the networks that it lets through, by
prediction and by measurement, some are timed once more. Prints a line for each network, and writes
all figures to FILE.json.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import bmnas_export
import numpy as np
from torch import Tensor, nn

from bmnas.machine.costs import hardware, versions
from bmnas.machine.files import write_json
from bmnas.pipeline.config import config_for
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.latency import LatencyTable
from bmnas.pipeline.multimodal import channels_of
from bmnas.pipeline.network_costs import NetworkCosts
from bmnas.pipeline.run_folder import Run
from bmnas.pipeline.unimodal import unimodal_networks
from bmnas.spaces.registry import space_named
from bmnas.strategies.target import Aim, Target
from bmnas.tasks import load_task

_COMPARED = 3  # whole networks, as in a search


class Again(LatencyTable):
    """A table in which whole networks are timed each time."""

    def network(self, key: str, module: nn.Module, arguments: Any) -> float:
        """Return what the whole network takes now."""
        return self._time(module, arguments)


def main() -> None:
    """Draw, predict, measure; print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--spaces", nargs="+", default=["cells", "cells", "mfas", "trees"])
    parser.add_argument("--networks", type=int, default=25)
    parser.add_argument("--again", type=int, default=3, help="timed once more, of each limit")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    task = load_task(options.task)
    context = RunContext(Run(options.run), task, config_for(task), 0)
    backbones = {name: found.backbone for name, found in unimodal_networks(context).items()}
    features = list(channels_of(backbones))
    spaces = [space_named(name).of(features, {}) for name in options.spaces]
    calls = 0

    def timer(module: nn.Module, inputs: Sequence[Tensor]) -> float:
        nonlocal calls
        calls += 1
        return bmnas_export.time_module(module, inputs)

    draw, rows = Random("predicted latency"), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        table = LatencyTable(Path(folder) / "latencies.json", timer)
        costs = NetworkCosts(task, backbones, context.head, table)
        costs.compare((spaces[0].sample(draw), n % 2 == 0) for n in range(_COMPARED))
        networks = [
            (spaces[n % len(spaces)].sample(draw), n // len(spaces) % 2 == 0)
            for n in range(options.networks)
        ]
        for found, heads in networks:
            predicted = costs.predict(found, heads=heads).latency_ms
            measured = costs.measure(found, heads=heads).latency_ms
            assert predicted is not None
            assert measured is not None
            error = predicted / measured - 1
            row = {"predicted_ms": predicted, "measured_ms": measured, "error": error}
            rows.append({"format": found.FORMAT, "unimodal_logits": heads, **row})
            print(f"{found.FORMAT} {heads!s:5} {predicted:.4f} {measured:.4f} {error:+.3f}")
        parts = calls
        # The same table of parts; the networks that a limit lets through are timed anew.
        anew = NetworkCosts(
            task, backbones, context.head, Again(Path(folder) / "latencies.json", timer)
        )
        limits = []
        for limit in np.quantile([row["measured_ms"] for row in rows], (0.25, 0.5, 0.75)):
            target = Target(float(limit), timer=timer)
            kept = []
            for found, heads in networks:
                if Aim(target, costs, lambda same: same, (heads,)).confirms(found):
                    kept.append((found, heads))
            # The slowest: those that are most likely to be too slow.
            kept.sort(key=lambda pair: -(costs.measure(pair[0], heads=pair[1]).latency_ms or 0))
            slowest = [anew.measure(f, heads=h).latency_ms for f, h in kept[: options.again]]
            limits.append({"limit_ms": limit, "let_through": len(kept), "again_ms": slowest})
            print(f"limit {limit:.4f}: {len(kept)} let through, slowest again {slowest}")
    errors = [abs(row["error"]) for row in rows]
    write_json(
        options.out,
        {
            "date": datetime.date.today().isoformat(),
            "task": options.task,
            "hardware": hardware(),
            "versions": versions("onnxruntime"),
            "median_error": statistics.median(errors),
            "largest_error": max(errors),
            "timed": parts,
            "networks": rows,
            "limits": limits,
        },
    )
    print(f"median error {statistics.median(errors):.3f}, largest {max(errors):.3f}; {parts} timed")


if __name__ == "__main__":
    main()
