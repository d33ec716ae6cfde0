"""What the feature cache saves: a search on it, and with the frozen backbones run at every step.

    python -m benchmarks.cached RUN --steps 30 --out FILE.json

``RUN`` is the folder of a finished search, whose task, settings and backbones are used. A search
with backbones at every step would take long: ``--steps`` steps of each kind are timed, in turns,
and multiplied. The extraction counts to the search on the cache. Backbones run forward alone, and
forward and backward, as in the program that was released with BM-NAS, which throws the gradients
of its frozen backbones away. The supernet here has no gradient for its features, so ones stand for
it; what it would cost the supernet is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bmnas
from bmnas.backbones import Backbone, load_backbone
from bmnas.features.cache import open_features
from bmnas.features.reshape import Pool, Reading
from bmnas.features.samples import RawInput, RawSamples, Samples, batches_per_epoch, label_tensor
from bmnas.machine.costs import hardware, versions
from bmnas.machine.files import read_json, write_json
from bmnas.machine.progress import Progress
from bmnas.spaces.cells.supernet import Supernet
from bmnas.tasks import reload_task


def main() -> None:
    """Time both kinds of step and print what whole searches would take."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="the folder of a finished search")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--epochs", type=int, help="of the search; default: those of the run")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    options = parser.parse_args()
    report = compare(options.run, options.steps, options.epochs)
    print(json.dumps(report, indent=2))
    if options.out is not None:
        write_json(options.out, report)


def compare(run: Path, steps: int, epochs: int | None) -> dict[str, Any]:
    """Return seconds of a step and of a search, on the cache and with backbones."""
    recorded = read_json(run / "config.json")
    task, search = reload_task(recorded["task"]["source"]), recorded["search"]
    folder = Path(recorded["backbones"]["folder"] or run / "backbones")
    backbones = {
        m.name: load_backbone(folder / f"{m.name}.safetensors")[0].eval() for m in task.modalities
    }
    cache = open_features(
        task,
        backbones,
        parts=("train", "validation"),
        reading=Reading(search["length"]),
        folder=folder / "features",
        device=torch.device("cpu"),
        progress=Progress(),
    )
    train = cache.samples("train")
    sizes = {name: search[name] for name in ("cells", "steps", "channels", "length", "dropout")}
    supernet = Supernet(list(train.channels.values()), classes=task.classes, **sizes)
    optimizer = torch.optim.Adam(supernet.parameters(), lr=1e-3, fused=True)
    raw = _Raw(task, backbones, Pool(search["length"]))
    kinds: dict[str, tuple[Samples, Callable[[list[Tensor]], list[Tensor]]]] = {
        "cached": (train, lambda features: features),
        "forward": (raw.samples, torch.no_grad()(raw.features)),
        "forward_and_backward": (raw.samples, raw.features),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(steps):
        chosen = torch.randperm(len(train))[: search["batch_size"]]
        for name, (samples, features_of) in kinds.items():
            started = time.perf_counter()
            batch = samples.batch(chosen)
            inputs, labels = batch.inputs, batch.labels
            for module in (supernet, *backbones.values()):
                module.zero_grad()
            features = features_of(inputs)
            torch.nn.functional.cross_entropy(supernet(features), labels).backward()
            optimizer.step()
            times[name].append(time.perf_counter() - started)
    parts = len(train), len(cache.samples("validation"))
    count = sum(batches_per_epoch(n, search["batch_size"]) for n in parts)
    count *= search["epochs"] if epochs is None else epochs
    step = {name: statistics.median(found) for name, found in times.items()}
    whole = {name: count * seconds for name, seconds in step.items()}
    whole["cached"] += cache.seconds
    return {
        "task": task.name,
        "steps": count,
        "step_seconds": step,
        "extraction_seconds": cache.seconds,
        "search_seconds": whole,
        "times_faster": {name: seconds / whole["cached"] for name, seconds in whole.items()},
        "hardware": hardware(),
        "versions": versions(),
    }


@dataclass(frozen=True)
class _Raw:
    task: bmnas.Task
    backbones: dict[str, Backbone]
    pool: Pool

    @property
    def samples(self) -> RawSamples:
        chosen = self.task.samples("train")
        inputs = [RawInput(m, self.backbones[m.name], chosen) for m in self.task.modalities]
        return RawSamples(inputs, label_tensor(self.task, chosen))

    def features(self, inputs: list[Tensor]) -> list[Tensor]:
        raw = zip(self.backbones.values(), inputs, strict=True)
        return [self.pool(feature) for backbone, x in raw for feature in backbone.features(x)]


if __name__ == "__main__":
    main()
