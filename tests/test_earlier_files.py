"""Files of an earlier version are read, and say what they said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bmnas_serve.session
import numpy as np
import pytest
import torch
from command_line import bmnas_command

from bmnas.pipeline.trained import load_network

EARLIER = Path(__file__).parent / "data" / "earlier"
SPACES = ("cells", "mfas", "tree")


def inputs() -> list[np.ndarray]:
    """Return three samples of the two modalities."""
    ramp = np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)
    return [ramp, 2 * ramp]


def logits_of(name: str) -> np.ndarray:
    return np.array(json.loads((EARLIER / f"{name}.logits.json").read_text()), np.float32)


@pytest.mark.parametrize("name", [*SPACES, "fusion"])
def test_networks(name: str) -> None:
    network = load_network(EARLIER / f"{name}.safetensors").network
    with torch.inference_mode():
        found = network(*map(torch.from_numpy, inputs()))
    # Another processor, or another order of the same sums, rounds otherwise.
    np.testing.assert_allclose(found.numpy(), logits_of(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SPACES)
def test_genotypes(name: str) -> None:
    path = EARLIER / f"{name}.genotype.json"
    found = load_network(EARLIER / f"{name}.safetensors").genotype
    assert found is not None
    assert found.to_dict() == json.loads(path.read_text())
    assert bmnas_command("show", path).status == 0


def test_bundle(tmp_path: Path) -> None:
    folder = shutil.copytree(EARLIER / "cells.bundle", tmp_path / "bundle")
    session = bmnas_serve.session.Session.open(folder)
    named = dict(zip([spec.name for spec in session.inputs], inputs(), strict=True))
    found = session.run(named)["logits"]
    np.testing.assert_allclose(found, logits_of("cells"), rtol=1e-4, atol=1e-5)
    assert bmnas_command("show", folder).status == 0
