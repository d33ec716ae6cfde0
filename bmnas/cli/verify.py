"""``bmnas verify``: whether a bundle still is what was exported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from bmnas.cli.options import Json
from bmnas.cli.output import print_facts, print_json
from bmnas.cli.serve import needing


def verify(
    bundle: Annotated[Path, Argument(help="A bundle folder that 'bmnas export' wrote.")],
    as_json: Json = False,
) -> None:
    """Check a bundle without its task: every digest, the graph, and what it says of test samples.

    The bundle holds test samples and torch's logits of them; the model is run on them in batches
    of 1, 2, 7 and 64. What was changed since the export is one line each, and the status is 1.

    Example: bmnas verify runs/digits/bundle
    """
    with needing("export", "verifying"):
        from bmnas_export.verify import verify_bundle

        found = verify_bundle(bundle)
    parity = found.parity
    if as_json:
        measured = None if parity is None else parity.to_dict()
        told = {"problems": found.problems, "parity": measured, "targets": found.targets}
        print_json({"bundle": str(bundle), **told})
    for problem in () if as_json else found.problems:
        typer.echo(f"error: {problem}", err=True)
    if found.problems:
        raise typer.Exit(1)
    if parity is not None and not as_json:
        files, batches = found.manifest.files, ", ".join(str(b.batch) for b in parity.batches)
        equals = f"to {parity.difference:.1e} of the largest logit, batches of {batches}"
        facts = {
            "bundle": bundle,
            "digests": f"those of {len(files)} files and of the manifest are right",
            # bmnas show draws its parts.
            "graph": {n: fact for n, fact in found.manifest.graph.items() if n != "parts"},
            "equals torch": equals,
            "score": found.manifest.scores.get("exported", {}),
            **found.targets,
        }
        print_facts(facts, "Verified")
