"""Modules as people have them: they write into what they give, squeeze, read what never runs."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bmnas.backbones import backbone_from_spec, build_backbone, load_weights
from bmnas.backbones.module import ModuleBackbone
from bmnas.machine.errors import UserError
from bmnas.tasks.task import Modality

DRAW = np.random.default_rng(0)
VECTORS = DRAW.normal(size=(12, 8)).astype(np.float32)
IMAGES = DRAW.integers(0, 256, (8, 12, 12, 3), dtype=np.uint8)
SEQUENCES = DRAW.normal(size=(6, 20, 6)).astype(np.float32)
SEQUENCES[:, 13:] = 0


def built(network: nn.Module, type_: str, rows: np.ndarray, *features: str) -> ModuleBackbone:
    torch.manual_seed(0)
    part = Modality("a", type_, rows, backbone=network, features=features)  # type: ignore[arg-type]
    backbone = build_backbone(part, classes=4, rows=rows)
    assert isinstance(backbone, ModuleBackbone)
    return backbone.eval()


class InPlace(nn.Module):
    """Each ReLU, and the input's scaling, writes into what is there."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.inplace = inplace
        self.fc1, self.bn1 = nn.Linear(8, 32), nn.BatchNorm1d(32)
        self.fc2, self.bn2 = nn.Linear(32, 32), nn.BatchNorm1d(32)
        self.relu = nn.ReLU(inplace=inplace)
        self.out = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mul_(2) if self.inplace else x * 2
        x = self.relu(self.bn1(self.fc1(x)))
        logits: Tensor = self.out(self.relu(self.bn2(self.fc2(x))))
        return logits


def test_a_tap_has_what_the_layer_gave_whatever_is_written_into_it_later() -> None:
    torch.manual_seed(1)
    network = InPlace()
    plain = InPlace(inplace=False)
    plain.load_state_dict(network.state_dict())
    x = torch.from_numpy(VECTORS)
    backbone = built(network, "vector", VECTORS, "bn1", "bn2")
    with torch.no_grad():
        expected = built(plain, "vector", VECTORS, "bn1", "bn2").features_and_logits(x)
        kept, logits = backbone.features_and_logits(x)
        cached = backbone.features(x)
    for left, whole, right in zip(cached, kept, expected[0], strict=True):
        assert torch.equal(left, right)
        assert torch.equal(whole, right)
    assert torch.equal(logits, expected[1])
    assert np.array_equal(x.numpy(), VECTORS)
    # Cut off after the first, and trained: as with a network that writes into nothing.
    backbone.truncate(1)
    assert torch.equal(backbone.features(x)[0], expected[0][0])
    backbone.train().features(x)[0].sum().backward()


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(6, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.enc = nn.TransformerEncoder(layer, 2)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        padding = (x == 0).all(-1)
        padding[:, 0] = False
        logits: Tensor = self.fc(self.enc(self.inp(x), src_key_padding_mask=padding).mean(1))
        return logits


def test_a_transformer_that_masks_padding_is_tapped() -> None:
    taps = ("enc.layers.0.linear1:channels_last", "enc.layers.1:channels_last")
    backbone = built(Encoder(), "sequence", SEQUENCES, *taps)
    x = torch.from_numpy(SEQUENCES)
    with torch.no_grad():
        features, logits = backbone.features_and_logits(x)
        shapes = [tuple(feature.shape) for feature in features]
        assert shapes == [(6, 32, 20), (6, 16, 20)]
        # What masked positions hold does not matter to the others.
        backbone.train().apply(lambda m: setattr(m, "p", 0.0) if hasattr(m, "p") else None)
        for layer in backbone.network.enc.layers:  # type: ignore[union-attr]
            layer.self_attn.dropout = 0.0
        torch.testing.assert_close(backbone(x), logits)


class Squeezed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True).squeeze()


class Pooled(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 8, 3), pool, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.pool(self.conv(x)))
        return logits


class SqueezedLogits(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :, None].squeeze()


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return x - x.mean(0)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x.mean((2, 3)))


class OnlyEvaluated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("targets should be given in training")
        return x.mean((2, 3))


class OfEight(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).reshape(2, 8)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Pooled(Squeezed()), r"feature 'pool': for a batch of 1 .* shape \(8,\), expected 1, 8"),
        (
            SqueezedLogits(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())),
            r"the output: for a batch of 1 in evaluation .* shape \(4,\), expected 1, 4",
        ),
        (Pooled(OfEight()), "Pooled cannot take a batch of 1 in evaluation"),
        (Pooled(Mixing()), "feature 'pool': an input gives other values among three than by"),
        (Pooled(Noisy()), "in evaluation nothing may be random"),
        (Pooled(OnlyEvaluated()), "cannot take a batch of 2 in training: targets should be"),
    ],
)
def test_a_module_that_cannot_serve_is_refused_before_anything_is_trained(
    network: nn.Module, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        built(network, "image", IMAGES, "conv", "pool")
    assert "\n" not in str(caught.value)


class Attributes(nn.Module):
    """Reads what never runs: a dropout's probability, a list without layers, a later layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dropout, self.extra = nn.Linear(8, 8), nn.Dropout(0.1), nn.ModuleList()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 6)])
        self.aside = nn.Linear(8, 8)  # in training alone
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = nn.functional.dropout(x, self.dropout.p, self.training)
        for layer in self.extra:
            x = layer(x)
        if self.training:
            x = self.aside(x)
        width = self.fc.in_features + len(self.layers)
        for layer in self.layers:
            x = layer(x) * width
        logits: Tensor = self.fc(x)
        return logits


def test_what_is_cut_off_keeps_its_attributes_and_loses_its_weights() -> None:
    backbone = built(Attributes(), "vector", VECTORS, "first", "layers.0", "layers.1")
    x = torch.from_numpy(VECTORS)
    whole = copy.deepcopy(backbone)
    backbone.truncate(2)
    with torch.no_grad():
        for left, right in zip(backbone.features(x), whole.features(x), strict=False):
            assert torch.equal(left, right)
    names = {name.rpartition(".")[0] for name in backbone.state_dict()}
    assert names == {"network.first", "network.layers.0", "network.aside"}
    backbone.train().features(x)[1].sum().backward()
    again = backbone_from_spec(backbone.spec(), module=Attributes())
    again.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval().features(x)[1], whole.features(x)[1])


def test_rehearsing_leaves_statistics_and_draws_as_they_were() -> None:
    network = InPlace()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(3)
    draws = torch.rand(2)
    torch.manual_seed(3)
    part = Modality("a", "vector", VECTORS, backbone=network, features=("bn1",))
    backbone = build_backbone(part, classes=4, rows=VECTORS)
    assert torch.equal(torch.rand(2), draws)
    after = backbone.weights_module().state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def plain_state() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return InPlace().state_dict()


def renamed(state: dict[str, Tensor], before: str) -> dict[str, Tensor]:
    return {before + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        renamed(plain_state(), "module."),
        renamed(plain_state(), "_orig_mod."),
        renamed(plain_state(), "module._orig_mod."),
        {name.replace("fc1.", "fc1._orig_mod."): x for name, x in plain_state().items()},
        {"state_dict": renamed(plain_state(), "model."), "epoch": 3, "hyper_parameters": {"lr": 1}},
        {"model": {"state_dict": renamed(plain_state(), "module.")}, "optimizer": {"state": {}}},
        {"state_dict": {**renamed(plain_state(), "net."), "loss.weight": torch.ones(4)}},
    ],
    ids=["parallel", "compiled", "both", "compiled part", "lightning", "nested", "with a loss"],
)
def test_layouts_of_public_checkpoints_load(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.ckpt")
    backbone = built(InPlace(), "vector", VECTORS, "bn1", "bn2")
    _, left_out = load_weights(backbone, tmp_path / "w.ckpt")
    assert isinstance(backbone.head, nn.Identity)
    found = backbone.weights_module().state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain_state().items())
    lost = ("1 tensors beside net (loss.weight)",) if "loss.weight" in str(content) else ()
    assert left_out == lost


@pytest.mark.parametrize("lacks", [False, True])
def test_a_head_of_another_size_is_left_out_and_a_new_one_stands_there(
    lacks: bool, tmp_path: Path
) -> None:
    state = plain_state()
    state["out.weight"], state["out.bias"] = torch.ones(1000, 32), torch.ones(1000)
    if lacks:
        state = {name: x for name, x in state.items() if not name.startswith("out.")}
    torch.save(state, tmp_path / "w.pt")
    backbone = built(InPlace(), "vector", VECTORS, "bn1", "bn2")
    whole, left_out = load_weights(backbone, tmp_path / "w.pt")
    assert not whole
    told = ("out.weight, which it lacks", "out.bias, which it lacks")
    sizes = ("out.weight (1000, 32) for (4, 32)", "out.bias (1000,) for (4,)")
    assert left_out == (told if lacks else sizes)
    head = backbone.get_parameter("head.linear.weight")
    assert head.shape == (4, 32)
    assert torch.equal(backbone.get_parameter("network.bn2.weight"), state["bn2.weight"])
    again = backbone_from_spec(backbone.spec(), module=InPlace())
    again.load_state_dict(backbone.state_dict())
    x = torch.from_numpy(VECTORS)
    assert torch.equal(again.eval()(x), backbone.eval()(x))


def test_another_size_that_a_feature_needs_is_refused(tmp_path: Path) -> None:
    state = plain_state() | {"fc2.weight": torch.ones(16, 32)}
    torch.save(state, tmp_path / "w.pt")
    backbone = built(InPlace(), "vector", VECTORS, "bn1", "bn2")
    with pytest.raises(UserError, match=r"1 of another shape \(fc2.weight \(16, 32\)"):
        load_weights(backbone, tmp_path / "w.pt")


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    state = plain_state()
    state["fc1.weight"][0, :3] = torch.tensor([torch.nan, torch.inf, torch.nan])
    torch.save(state, tmp_path / "w.pt")
    backbone = built(InPlace(), "vector", VECTORS, "bn1", "bn2")
    with pytest.raises(UserError, match=r"w\.pt: received 3 weights .* in fc1\.weight, expected"):
        load_weights(backbone, tmp_path / "w.pt")
