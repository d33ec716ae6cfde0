from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_cases import ONE_OF_EACH, TinyNet, modality
from safetensors.torch import load_file, save_file

from bmnas.backbones import (
    Backbone,
    build_backbone,
    load_backbone,
    load_weights,
    save_backbone,
)
from bmnas.machine.errors import UserError
from bmnas.tasks.task import Modality


def built(kind: str = "vector", seed: int = 0) -> Backbone:
    part = modality(kind)
    torch.manual_seed(seed)
    return build_backbone(part, classes=3, rows=part.data).eval()


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("stages", [None, 2])
def test_a_saved_backbone_comes_back_as_it_was(
    kind: str, stages: int | None, tmp_path: Path
) -> None:
    backbone = built(kind)
    if stages is not None:
        backbone.truncate(stages)
    save_backbone(tmp_path / "b.safetensors", backbone, {"score": 0.5, "epochs": [1, 2]})
    again, extra = load_backbone(tmp_path / "b.safetensors")
    x = torch.from_numpy(backbone.encode(modality(kind).data))
    assert extra == {"score": 0.5, "epochs": [1, 2]}
    assert (again.head is None) == (stages is not None)
    assert again.input_spec == backbone.input_spec
    for left, right in zip(again.features(x), backbone.features(x), strict=True):
        assert torch.equal(left, right)
    if stages is None:
        assert torch.equal(again(x), backbone(x))


def test_equal_backbones_make_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_backbone(tmp_path / name, built(), {"x": 1, "y": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    save_backbone(path, built(), {})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        save_backbone(path, built(seed=1), {"score": float("nan")})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "foreign", "folder"])
def test_files_that_are_no_backbone_get_one_line(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    save_backbone(path, built(), {})
    whole = path.read_bytes()
    path.unlink()
    if damage == "foreign":
        save_file({"a": torch.zeros(2)}, path)
    elif damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "cut": whole[:-9], "text": b"{}" * 50}[damage])
    with pytest.raises(UserError, match=r"b\.safetensors") as caught:
        load_backbone(path)
    assert "\n" not in str(caught.value)


def test_tensors_that_do_not_fit_the_description_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    backbone = built()
    save_backbone(path, backbone, {})
    backbone.head = None
    description = backbone.spec() | {"head": True}
    backbone.spec = lambda: description  # type: ignore[method-assign]
    save_backbone(path, backbone, {})
    with pytest.raises(UserError, match=r"2 missing \(head\.linear\.weight, head\.linear\.bias\)"):
        load_backbone(path)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_in_the_usual_wrappings_load(
    wrapper: str | None, prefix: str, tmp_path: Path
) -> None:
    source, target = built(seed=1), built(seed=2)
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    content = state if wrapper is None else {wrapper: state, "epoch": 3}
    torch.save(content, tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert all(torch.equal(target.state_dict()[n], t) for n, t in source.state_dict().items())


def test_weights_load_from_safetensors(tmp_path: Path) -> None:
    source, target = built(seed=1), built(seed=2)
    save_backbone(tmp_path / "w.safetensors", source, {})
    load_weights(target, tmp_path / "w.safetensors")
    x = torch.from_numpy(source.encode(modality("vector").data))
    assert torch.equal(source(x), target(x))
    assert set(load_file(tmp_path / "w.safetensors")) == set(source.state_dict())


def test_weights_that_do_not_fit_show_counts_and_first_names(tmp_path: Path) -> None:
    state = built().state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["head.linear.bias"]
    state["head.linear.weight"] = torch.zeros(7, 128)
    torch.save(state, tmp_path / "w.pth")
    before = built(seed=4)
    weights = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(before, tmp_path / "w.pth")
    message = str(caught.value)
    assert "w.pth" in message
    assert "1 missing (head.linear.bias)" in message
    assert "1 unexpected (extra.weight)" in message
    assert "1 of another shape (head.linear.weight (7, 128) for (3, 128))" in message
    assert "\n" not in message
    assert all(torch.equal(before.state_dict()[n], t) for n, t in weights.items())


def test_long_lists_of_names_are_cut(tmp_path: Path) -> None:
    torch.save({f"x{n}": torch.zeros(1) for n in range(50)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"50 unexpected \(x0, x1, x2, x3, …\)"):
        load_weights(built(), tmp_path / "w.pt")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(
    writer: str, tmp_path: Path
) -> None:
    path, made = tmp_path / "w.pt", tmp_path / "made"
    content = {"state_dict": Bomb(made)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"w\.pt: .*could run code") as caught:
        load_weights(built(), path)
    assert not made.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {"a": "b"}}, 3])
def test_weights_that_are_no_state_dict_get_one_line(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="expected a state_dict of tensors"):
        load_weights(built(), tmp_path / "w.pt")


@pytest.mark.parametrize("data", [None, b"", b"PK\x03\x04 not really", b"hello"])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_missing_and_damaged_weights_get_one_line(
    name: str, data: bytes | None, tmp_path: Path
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name) as caught:
        load_weights(built(), tmp_path / name)
    assert "\n" not in str(caught.value)


def user_backbone(network: torch.nn.Module) -> tuple[Modality, Backbone]:
    rows = np.random.default_rng(0).integers(0, 256, (8, 12, 12), dtype=np.uint8)
    part = Modality("p", "image", rows, backbone=network, features=("first", "second"))
    return part, build_backbone(part, classes=3, rows=rows).eval()


def test_a_file_of_a_users_network_has_the_networks_own_names(tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = TinyNet().eval()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    part, backbone = user_backbone(TinyNet())
    load_weights(backbone, tmp_path / "w.pt")
    x = torch.from_numpy(part.data)
    assert torch.allclose(backbone(x), source(x[:, None] / 255), atol=1e-6)


def test_a_users_network_is_saved_but_not_imported_on_the_files_word(tmp_path: Path) -> None:
    part, backbone = user_backbone(TinyNet())
    backbone.truncate(1)
    path = tmp_path / "b.safetensors"
    save_backbone(path, backbone, {})
    with pytest.raises(UserError, match="user's own module"):
        load_backbone(path)
    again, _ = load_backbone(path, module=TinyNet)
    x = torch.from_numpy(part.data)
    assert torch.equal(again.features(x)[0], backbone.features(x)[0])


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(20, 20)
            self.second = torch.nn.Linear(20, 20)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.second(self.first(x).relu())
            return y

    rows = modality("vector").data
    part = Modality("v", "vector", rows, backbone=Tied(), features=("first", "second"))
    backbone = build_backbone(part, classes=2, rows=rows).eval()
    save_backbone(tmp_path / "b", backbone, {})
    again, _ = load_backbone(tmp_path / "b", module=Tied)
    x = torch.from_numpy(backbone.encode(rows))
    assert torch.equal(again(x), backbone(x))
