"""Search, train, export and ask the served path, all from Python, on the embedded task.

    python examples/from_python.py FOLDER [EPOCHS]

EPOCHS shortens every stage: with 1 it takes seconds and finds nothing good.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bmnas_export import export_bundle
from bmnas_serve.session import Session

import bmnas


def main(folder: Path, epochs: int | None = None) -> None:
    """Leave a run and its bundle in ``folder``, and print what the served network says."""
    task = bmnas.load_task("digits")
    config = bmnas.config_for(task)
    for stage in ("unimodal", "search", "train"):
        config = config.override(stage, epochs=epochs)
    config = config.override("search", candidate_epochs=epochs)

    found = bmnas.search(task, run=folder, config=config)
    trained = bmnas.train(folder / "genotype.json", task)
    print(f"validation {found.validation:.3f} in the search, test {trained.score:.3f} when trained")

    network = bmnas.load_network(trained.network)
    bundle = export_bundle(network, task, folder / "bundle", scores=trained.metrics)
    print(f"differs from torch by {bundle.parity.difference:.0e} of the largest logit")

    session = Session.open(bundle.folder)  # what `bmnas serve` runs; needs no torch
    chosen = task.samples("test")[:8]
    halves = {m.name: m.data[m.rows_of(chosen)] for m in task.modalities}
    answers = session.run({tensor.name: halves[tensor.name] for tensor in session.inputs})
    print("served", answers["probabilities"].argmax(axis=1), "right", task.labels[chosen])


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
