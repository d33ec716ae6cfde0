from __future__ import annotations

from pathlib import Path

import torch

from bmnas.machine.tensor_file import read_described, write_tensors


def test_tied_weights_are_written_once_for_each_of_their_names(tmp_path: Path) -> None:
    # safetensors refuses tensors that share memory.
    weight = torch.arange(3.0)
    write_tensors(tmp_path / "x", {"a": weight, "b": weight}, {"format": "f/1", "note": 1})
    description, found = read_described(tmp_path / "x", "f/1")
    assert description == {"format": "f/1", "note": 1}
    assert torch.equal(found["a"], weight)
    assert torch.equal(found["b"], weight)
    assert read_described(tmp_path / "x", "f/1", tensors=False)[1] == {}
