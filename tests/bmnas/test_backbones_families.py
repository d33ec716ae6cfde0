from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbone_cases import KINDS, ONE_OF_EACH, modality

from bmnas.backbones import DEFAULT_BACKBONES, Backbone, backbone_from_spec, build_backbone
from bmnas.backbones.conv import Standardise
from bmnas.machine.errors import UserError
from bmnas.tasks.task import MODALITY_TYPES, Modality


def built(kind: str, classes: int = 5) -> tuple[Backbone, torch.Tensor]:
    part = modality(kind)
    torch.manual_seed(0)
    backbone = build_backbone(part, classes=classes, rows=part.data)
    return backbone, torch.from_numpy(backbone.encode(part.data))


def test_every_type_has_a_default() -> None:
    assert set(DEFAULT_BACKBONES) == set(MODALITY_TYPES)


@pytest.mark.parametrize("kind", KINDS)
def test_features_have_the_promised_names_channels_and_ranks(kind: str) -> None:
    backbone, x = built(kind)
    features = backbone.eval().features(x)
    ranks = {"image": 4, "clip": 5, "waveform": 4, "vector": 2}
    assert 2 <= len(features) <= 4
    assert backbone.feature_names == tuple(str(n + 1) for n in range(len(features)))
    assert backbone.feature_channels == tuple(f.shape[1] for f in features)
    assert {f.dim() for f in features} == {ranks.get(kind.split()[0], 3)}
    assert all(f.shape[0] == len(x) and f.isfinite().all() for f in features)
    assert backbone(x).shape == (len(x), 5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_input_specification_is_that_of_the_encoded_rows(kind: str) -> None:
    backbone, x = built(kind)
    spec = backbone.input_spec
    assert spec.shape == tuple(x.shape[1:])
    assert str(x.dtype) == f"torch.{spec.dtype}"
    assert spec.meaning
    assert json.loads(json.dumps(spec.preprocessing, allow_nan=False))


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_truncating_keeps_the_first_features_as_they_were(kind: str) -> None:
    backbone, x = built(kind)
    full = backbone.eval().features(x)
    parameters = sum(p.numel() for p in backbone.parameters())
    backbone.truncate(2)
    kept = backbone.features(x)
    assert len(kept) == len(backbone.feature_names) == len(backbone.feature_channels) == 2
    for left, right in zip(kept, full, strict=False):
        assert torch.equal(left, right)
    assert sum(p.numel() for p in backbone.parameters()) < parameters
    with pytest.raises(RuntimeError, match="no head"):
        backbone(x)


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_description_rebuilds_the_truncated_form(kind: str, stages: int) -> None:
    backbone, x = built(kind)
    backbone.eval().truncate(stages)
    spec = json.loads(json.dumps(backbone.spec(), allow_nan=False))
    again = backbone_from_spec(spec).eval()
    assert again.head is None
    again.load_state_dict(backbone.state_dict())
    for left, right in zip(again.features(x), backbone.features(x), strict=True):
        assert torch.equal(left, right)
    assert again.spec() == backbone.spec()


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_the_same_seed_gives_the_same_weights(kind: str) -> None:
    first, second = built(kind)[0].state_dict(), built(kind)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def separable(kind: str) -> tuple[Modality, torch.Tensor]:
    part = modality(kind, rows=32)
    labels = np.arange(32) % 2
    rows = part.data.copy()
    if kind == "text":
        rows = np.where(labels == 1, "it is a cat", "it is a dog")
    elif kind == "waveform":
        time = np.arange(rows.shape[1]) / 8000
        tones = np.where(labels[:, None] == 1, 700, 300) * time
        rows = (5000 * np.sin(2 * np.pi * tones)).astype(np.int16) + rows // 10
    elif kind == "tokens":
        rows = rows % 10 + 10 * labels[:, None] + 1
    else:
        shape = (32, *[1] * (rows.ndim - 1))
        change = 60 if rows.dtype == np.uint8 else 1
        rows = rows // 2 + change * labels.reshape(shape)
        rows = rows.astype(part.data.dtype)
    return dataclasses.replace(part, data=rows), torch.from_numpy(labels)


@pytest.mark.parametrize("kind", ["image half", *ONE_OF_EACH[1:]])
def test_training_lowers_the_loss_on_a_separable_problem(kind: str) -> None:
    part, labels = separable(kind)
    torch.manual_seed(0)
    backbone = build_backbone(part, classes=2, rows=part.data)
    x = torch.from_numpy(backbone.encode(part.data))
    optimiser = torch.optim.Adam(backbone.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        loss = F.cross_entropy(backbone(x), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None for p in backbone.parameters())


def test_badly_scaled_columns_become_alike() -> None:
    draw = np.random.default_rng(0)
    good = draw.normal(size=(500, 5))
    rows = good * [1, 1e9, 1e-9, 1, 1] + [0, 0, 0, 1e6, 0]
    rows[3, 0] = 1e30  # one outlier must not flatten its column
    rows[:, 4] = 7.0
    backbone = build_backbone(Modality("v", "vector", rows), classes=2, rows=rows)
    x = torch.from_numpy(backbone.encode(rows))
    standard = backbone.stem.standardise(x)  # type: ignore[operator, union-attr]
    for column in range(4):
        assert 0.8 < standard[:, column].std() < 1.3
    assert standard[:, 4].abs().max() == 0
    assert standard.abs().max() <= 10
    assert all(f.isfinite().all() for f in backbone.features(x))


def test_a_nearly_always_zero_column_keeps_its_rare_values_apart() -> None:
    standardise = Standardise(1, 2)
    x = torch.zeros(1000, 1)
    x[7] = 3.0
    standardise.fit(x)
    assert standardise(x)[7] == 10.0
    assert standardise(x)[0].abs() < 0.1


def test_standardisation_by_hand() -> None:
    standardise = Standardise(2, 3, axis=2)
    x = torch.tensor([[[1.0, 10.0], [3.0, 10.0]]])
    standardise.fit(x)
    expected = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]])
    # The clipped tails, half a per cent at each end, move the deviation by as much.
    assert torch.allclose(standardise(x), expected, atol=0.02)


def test_colours_and_scale_of_uint8_images() -> None:
    backbone, x = built("image colour")
    prepared = backbone.stem.prepare(x)  # type: ignore[operator, union-attr]
    assert prepared.shape == (12, 3, 64, 64)
    assert torch.allclose(prepared[1, 2], x[1, :, :, 2].float() / 255)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Modality("p", "image", np.zeros((3, 8, 8)), backbone="cnnn"), "did you mean 'cnn'"),
        (Modality("p", "vector", np.zeros((3, 2)), features=("a",)), "received features"),
        (Modality("p", "image", np.zeros((3, 8, 8)), backbone="mlp"), "which reads vector"),
    ],
)
def test_a_backbone_that_does_not_fit_gets_one_line(part: Modality, message: str) -> None:
    with pytest.raises(UserError, match=f"modality p: .*{re.escape(message)}") as caught:
        build_backbone(part, classes=2, rows=part.data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [k for k in ONE_OF_EACH if k != "text"])
def test_encoding_rows_of_another_shape_is_refused(kind: str) -> None:
    backbone, _ = built(kind)
    rows = modality(kind).data
    with pytest.raises(UserError, match="received"):
        backbone.encode(rows[:, 1:])


@pytest.mark.parametrize(
    "change",
    [
        {"name": "resnet"},
        {"name": ["cnn"]},
        {"format": "bmnas.backbone/9"},
        {"config": {}},
        {"config": None},
        {"stages": 0},
        {"stages": 4},
        {"stages": True},
        {"head": 1},
        {"stages": 2, "head": True},
        {"more": 1},
    ],
)
def test_malformed_descriptions_get_one_line(change: dict[str, object]) -> None:
    spec = {**built("vector")[0].spec(), **change}
    with pytest.raises(UserError) as caught:
        backbone_from_spec(spec)
    assert "\n" not in str(caught.value)
