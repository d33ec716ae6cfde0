from __future__ import annotations

import copy
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_cases import TinyNet, modality
from torch import Tensor, nn

from bmnas.backbones import (
    Backbone,
    PooledHead,
    backbone_from_spec,
    build_backbone,
    load_backbone,
    save_backbone,
)
from bmnas.machine.errors import UserError
from bmnas.tasks.task import Modality

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 12), dtype=np.uint8)


def part_of(network: object, *features: str, **changes: Any) -> Modality:
    values: dict[str, Any] = {"name": "p", "type": "image", "data": IMAGES, **changes}
    return Modality(backbone=network, features=features, **values)


def built(network: object, *features: str, classes: int = 3, **changes: Any) -> Backbone:
    part = part_of(network, *features, **changes)
    return build_backbone(part, classes=classes, rows=part.data).eval()


def test_features_are_the_outputs_of_the_named_modules() -> None:
    torch.manual_seed(0)
    network = TinyNet().eval()
    backbone = built(network, "first", "second.0")
    x = torch.from_numpy(IMAGES)
    first = network.first(x[:, None] / 255)
    assert backbone.feature_names == ("first", "second.0")
    assert backbone.feature_channels == (4, 8)
    features = backbone.features(x)
    assert torch.allclose(features[0], first)
    assert torch.allclose(features[1], network.second[0](first))
    assert backbone.input_spec.shape == (12, 12)
    assert backbone.input_spec.dtype == "uint8"


def test_the_modules_own_output_is_the_logits_when_it_has_their_shape() -> None:
    network = TinyNet().eval()
    x = torch.from_numpy(IMAGES)
    assert torch.allclose(built(network, "first")(x), network(x[:, None] / 255), atol=1e-6)
    other = built(network, "first", classes=7)
    assert isinstance(other.head, PooledHead)
    assert other(x).shape == (6, 7)


def test_features_stand_in_the_order_they_run_in() -> None:
    assert built(TinyNet(), "second", "first").feature_names == ("first", "second")


def test_truncating_runs_and_keeps_only_what_is_needed() -> None:
    network = TinyNet()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    backbone = built(network, "first", "second").eval()
    x = torch.from_numpy(IMAGES)
    full = backbone.features(x)
    backbone.truncate(1)
    assert torch.equal(backbone.features(x)[0], full[0])
    assert all(name.startswith("network.first.") for name in backbone.state_dict())
    assert backbone.spec()["stages"] == 1
    backbone.truncate(1)
    assert torch.equal(backbone.features(x)[0], full[0])
    again = backbone_from_spec(backbone.spec(), module=TinyNet).eval()
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again.features(x)[0], full[0])
    # The user's own object is as it was: no hook, nothing cut.
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)
    assert not any(module._forward_hooks for module in network.modules())


class Normed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))


def test_a_batch_norm_that_was_cut_away_is_not_missed_in_the_file(tmp_path: Path) -> None:
    backbone = built(Normed, "0", "1")
    backbone.truncate(1)
    save_backbone(tmp_path / "b.safetensors", backbone, {})
    again, _ = load_backbone(tmp_path / "b.safetensors", Normed)
    x = torch.from_numpy(IMAGES)
    assert torch.equal(again.features(x)[0], backbone.features(x)[0])


class Attentive(nn.Module):
    """Uses ``out_proj`` of its attention without calling it; channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.unused = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.lstm(self.attention(x, x, x, need_weights=False)[0])[0]
        y: Tensor = self.unused(hidden)
        return y


def test_weights_that_are_used_without_a_call_survive_truncating() -> None:
    rows = modality("sequence").data
    backbone = built(
        Attentive(),
        "attention:channels_last",
        "lstm:channels_last",
        type="sequence",
        data=rows,
    )
    x = torch.from_numpy(backbone.encode(rows))
    features = backbone.features(x)
    assert [f.shape for f in features] == [(12, 6, 50), (12, 5, 50)]
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    backbone.truncate(1)
    assert torch.allclose(backbone.features(x)[0], features[0], atol=1e-6)
    names = set(backbone.state_dict())
    assert "network.attention.out_proj.weight" in names
    assert not any("lstm" in name or "unused" in name for name in names)
    assert not any(p.requires_grad for p in backbone.parameters())


def test_a_copy_records_its_own_features() -> None:
    backbone = built(TinyNet(), "first")
    again = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    x = torch.from_numpy(IMAGES)
    assert backbone.features(x)[0].abs().max() > 0
    assert again.features(x)[0].abs().max() == 0


def test_modes_are_left_as_they_were() -> None:
    network = TinyNet().train()
    network.first.eval()
    part = part_of(network, "first", "second")
    backbone = build_backbone(part, classes=3, rows=IMAGES)
    backbone.truncate(1)
    assert backbone.training
    assert not backbone.get_submodule("network.first").training


def test_texts_reach_a_users_network_as_word_numbers() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(50, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.words(x)
            return y

    rows = np.array(["a cat", "the red dog"])
    backbone = built(Bag(), "words:channels_last", type="text", data=rows)
    assert backbone.features(torch.from_numpy(backbone.encode(rows)))[0].shape == (2, 4, 3)
    assert "tokenizer" in backbone.input_spec.preprocessing


@pytest.mark.parametrize(
    ("kind", "shape", "scale"),
    [
        ("image colour", (12, 3, 64, 64), 255),
        ("clip", (12, 1, 6, 20, 20), 255),
        ("clip colour", (12, 3, 8, 32, 24), 255),
        ("waveform", (12, 4000), 32768),
        ("sequence", (12, 50, 6), 1),
        ("vector", (12, 20), 1),
    ],
)
def test_a_users_network_gets_the_tensors_of_its_field(
    kind: str, shape: tuple[int, ...], scale: float
) -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            self.same(x)
            return x

    part = modality(kind)
    backbone = built(Seen(), "same", type=part.type, data=part.data, sample_rate=part.sample_rate)
    seen = backbone.features(torch.from_numpy(backbone.encode(part.data)))[0]
    assert seen.shape == shape
    assert seen.max() == pytest.approx(part.data.max() / scale, rel=1e-5)


def test_module_and_class_are_found_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(144, 9), nn.Linear(9, num_classes))\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    backbone = built("own_net:Net", "1")
    assert backbone(torch.from_numpy(IMAGES)).shape == (6, 3)
    assert backbone.spec()["config"]["target"] == "own_net:Net"
    again = backbone_from_spec(backbone.spec(), module="own_net:Net")
    assert again.feature_channels == (9,)
    with pytest.raises(UserError, match="did you mean 'Net'"):
        built("own_net:Nett", "1")


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Identity()
        self.never = nn.Identity()
        self.whole = nn.Flatten(0)
        self.pick = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.whole(x)
        self.pick(x.argmax(-1))
        y: Tensor = self.same(self.same(x))
        return y


class Precise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.single, self.first = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(self.single(x).double())
        return y.mean((2, 3))


@pytest.mark.parametrize(
    ("network", "features", "message"),
    [
        (TinyNet(), (), "received no features, expected module paths of TinyNet"),
        (TinyNet(), ("frist",), "such as first"),
        (TinyNet(), ("first:last",), "expected first or first:channels_last"),
        (Twice(), ("same",), "called 2 times"),
        (Twice(), ("never",), "called 0 times"),
        (Twice(), ("whole",), "of shape (288,), expected float32 of (2, C)"),
        (Precise(), ("first",), "for a batch of 2 the module returned torch.float64 of shape"),
        (Precise(), ("single",), "the output: the module returned torch.float64, expected float32"),
        (Twice(), ("pick",), "returned torch.int64"),
        (nn.Sequential(nn.Linear(5, 5)), ("0",), "cannot take a batch of images of shape (2, 1,"),
        ("no_such_module_here:Net", ("a",), "no module 'no_such_module_here'"),
        ("a b:Net", ("a",), "expected module:attribute"),
        (nn.Linear, ("a",), "expected a class that needs no argument"),
        (lambda: 3, ("a",), "made a int"),
        (17, ("a",), "received a int"),
    ],
)
def test_what_cannot_be_a_backbone_gets_one_line(
    network: object, features: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=f".*{re.escape(message)}") as caught:
        built(network, *features)
    assert "\n" not in str(caught.value)
