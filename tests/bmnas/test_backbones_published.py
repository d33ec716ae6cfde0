from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import published_weights as weights
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from bmnas.backbones import BACKBONES, Backbone, build_backbone, load_weights, save_backbone
from bmnas.machine.errors import UserError
from bmnas.tasks.task import Modality

K = 5
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

#: Of each family: keywords of a narrow one, and weights that fit it with another head.
NARROW: dict[str, tuple[dict[str, Any], weights.State]] = {
    "vgg19": ({"shape": [32, 40, 3], "dtype": "uint8", "width": 2}, weights.vgg19(2)),
    "inflated_resnet50": (
        {"shape": [4, 24, 20, 3], "dtype": "uint8", "width": 2},
        weights.resnet50(2),
    ),
    "resnext101_3d": (
        {"shape": [8, 24, 20, 3], "dtype": "uint8", "width": 2, "cardinality": 2},
        weights.resnext101(2, 2, 400, (3, 7)),
    ),
    "hcn": ({"shape": [16, 150], "width": 4}, weights.hcn(4, 16, 60)),
    "maxout": ({"shape": [12], "width": 4}, weights.maxout(4, 12, 23)),
}


def made(family: str, classes: int = K, **other: Any) -> Backbone:
    torch.manual_seed(0)
    return BACKBONES[family](classes=classes, **(NARROW[family][0] | other)).eval()


def example(backbone: Backbone, rows: int = 3) -> Tensor:
    torch.manual_seed(1)
    shape = (rows, *backbone.input_spec.shape)
    if backbone.input_spec.dtype == "uint8":
        return torch.randint(0, 256, shape, dtype=torch.uint8)
    return torch.randn(shape)


def loaded(backbone: Backbone, state: weights.State, folder: Path) -> bool:
    torch.save(state, folder / "w.pth")
    whole, _ = load_weights(backbone, folder / "w.pth")
    backbone.eval()
    return whole


@pytest.mark.parametrize(
    ("family", "shape", "classes", "parameters", "features"),
    [
        # The convolutions of VGG-19 are 20,024,384; BatchNorm and head here 2 * 512 + 513 K.
        (
            "vgg19",
            [256, 160, 3],
            23,
            20_024_384 + 2 * 512 + 513 * 23,
            [(512, 32, 20), (512, 32, 20), (512, 16, 10), (512, 8, 5)],
        ),
        # 300 * 5 * 64 + 5 * 64, 64 * 5 * 128 + 5 * 128, two BatchNorms, 128 K + K.
        ("maxout", [300], 23, 96_320 + 41_600 + 128 + 256 + 2_967, [(64,), (128,)]),
        # ResNet-50 is 25,557,032 with 1000 classes, of which its head 2,049,000. Kernels of 3 x 3,
        # 9 p^2 in each block of p channels, become three times as many.
        (
            "inflated_resnet50",
            [8, 256, 256, 3],
            60,
            25_557_032
            - 2_049_000
            + 18 * (3 * 64**2 + 4 * 128**2 + 6 * 256**2 + 3 * 512**2)
            + 2049 * 60,
            [(512, 8, 32, 32), (1024, 8, 16, 16), (2048, 8, 8, 8), (2048,)],
        ),
        # 48.34 M with 400 classes (Köpüklü et al., 2019, arXiv 1904.02422).
        (
            "resnext101_3d",
            [32, 112, 112, 3],
            400,
            48_340_816,
            [(512, 8, 14, 14), (1024, 4, 7, 7), (2048, 2, 4, 4), (2048,)],
        ),
        # A grey clip has a third of the first kernels: 64 * 7^3 in place of 3 * 64 * 7^3.
        (
            "resnext101_3d",
            [32, 112, 112],
            83,
            48_340_816 - 2 * 64 * 343 - 2049 * (400 - 83),
            [(512, 8, 14, 14), (1024, 4, 7, 7), (2048, 2, 4, 4), (2048,)],
        ),
        # Twice (3 * 64 + 64, 64 * 32 * 3 + 32, 25 * 32 * 9 + 32, 32 * 64 * 9 + 64), and so on.
        (
            "hcn",
            [32, 150],
            60,
            2 * (256 + 6_176 + 7_232 + 18_496) + 147_584 + 295_168 + 524_800 + 513 * 60,
            [(128, 4, 4), (256, 2, 2), (1024,), (512,)],
        ),
    ],
)
def test_parameters_and_features_of_the_whole_networks(
    family: str,
    shape: list[int],
    classes: int,
    parameters: int,
    features: list[tuple[int, ...]],
) -> None:
    pixels = {} if family in ("hcn", "maxout") else {"dtype": "uint8"}
    with torch.device("meta"):
        backbone = BACKBONES[family](classes=classes, shape=shape, **pixels).eval()
        x = torch.empty(2, *shape, dtype=getattr(torch, backbone.input_spec.dtype))
        found, logits = backbone.features_and_logits(x)
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    assert [tuple(f.shape) for f in found] == [(2, *of) for of in features]
    assert backbone.feature_channels == tuple(of[0] for of in features)
    assert logits.shape == (2, classes)


def test_vgg_with_its_dense_layers_is_as_published() -> None:
    state = {name: t.numel() for name, t in weights.vgg19(1).items() if "classifier" not in name}
    assert len(state) == 32
    with torch.device("meta"):
        backbone = BACKBONES["vgg19"](classes=1000, shape=[224, 224, 3], dtype="uint8")
    convolutions = sum(p.numel() for p in backbone.stages.parameters())
    dense = (512 * 49 + 1) * 4096 + 4097 * 4096 + 4097 * 1000
    assert (convolutions, convolutions + dense) == (20_024_384, 143_667_240)


@pytest.mark.parametrize(
    ("family", "heads"),
    [("vgg19", 6), ("inflated_resnet50", 2), ("resnext101_3d", 2), ("hcn", 2), ("maxout", 6)],
)
def test_published_weights_load_but_for_a_head_of_other_classes(
    family: str, heads: int, tmp_path: Path
) -> None:
    backbone, state = made(family), NARROW[family][1]
    head = {name: t.clone() for name, t in backbone.state_dict().items() if "head." in name}
    assert not loaded(backbone, state, tmp_path)
    own = backbone.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in head.items())
    here = {re.sub(r"^(stem|stages\.\d)\.", "", name): tensor for name, tensor in own.items()}
    compared = 0
    for name, tensor in state.items():
        found = here.get(name.removeprefix("features."))
        if found is not None:
            found = found.sum(2) if found.dim() > tensor.dim() else found
            torch.testing.assert_close(found, tensor)
            compared += 1
    assert compared == len(state) - heads
    assert backbone(example(backbone)).isfinite().all()


@pytest.mark.parametrize(
    ("family", "state", "head"),
    [
        ("vgg19", weights.gp_vgg(2, K), "classifier"),
        ("inflated_resnet50", weights.resnet50(2, K), "fc"),
        ("inflated_resnet50", weights.visual(2, K), "classifier"),
        ("resnext101_3d", weights.resnext101(2, 2, K, (3, 7)), "fc"),
        ("hcn", weights.hcn(4, 16, K), "fc8"),
        ("maxout", weights.maxout(4, 12, K), "hid2val"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_head_of_as_many_classes_is_taken(
    family: str, state: weights.State, head: str, wrapped: bool, tmp_path: Path
) -> None:
    backbone = made(family)
    if wrapped:
        path = tmp_path / "w.pth"
        inside = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"arch": "x", "epoch": 3, "state_dict": inside}, path)
    else:
        path = tmp_path / "w.safetensors"
        save_file(state, path)
    assert load_weights(backbone, path)[0]
    assert isinstance(backbone.head, nn.Sequential)
    linear = backbone.head[-1].state_dict()
    assert torch.equal(linear["weight"], state[f"{head}.weight"])
    assert torch.equal(linear["bias"], state[f"{head}.bias"])


@pytest.mark.parametrize("family", NARROW)
def test_files_of_its_own_load_whole(family: str, tmp_path: Path) -> None:
    source, target = made(family), BACKBONES[family](classes=K, **NARROW[family][0]).eval()
    save_backbone(tmp_path / "b.safetensors", source, {})
    assert load_weights(target, tmp_path / "b.safetensors")[0]
    assert torch.equal(source(example(source)), target(example(source)))


def test_first_layer_of_vgg_by_hand(tmp_path: Path) -> None:
    backbone, state = made("vgg19"), NARROW["vgg19"][1]
    loaded(backbone, state, tmp_path)
    x = example(backbone)
    first = backbone.stages[0][:2](backbone.stem(x))  # type: ignore[index]
    pixels = (x.numpy()[1, 4:7, 8:11] / 255 - MEAN) / DEVIATION
    kernel, bias = state["features.0.weight"].numpy(), state["features.0.bias"].numpy()
    expected = [(pixels.transpose(2, 0, 1) * kernel[c]).sum() + bias[c] for c in range(2)]
    np.testing.assert_allclose(first[1, :, 5, 9].detach(), np.maximum(expected, 0), rtol=1e-4)


def test_inflated_kernels_see_a_still_clip_as_a_picture(tmp_path: Path) -> None:
    backbone, state = made("inflated_resnet50"), NARROW["inflated_resnet50"][1]
    loaded(backbone, state, tmp_path)
    convolution = backbone.get_submodule("stages.0.layer1.0.conv2")
    picture = torch.randn(1, 2, 6, 5)
    clip = picture.unsqueeze(2).expand(-1, -1, 4, -1, -1)
    found = convolution(clip)
    expected = F.conv2d(picture, state["layer1.0.conv2.weight"], padding=1)
    for frame in range(4):
        torch.testing.assert_close(found[:, :, frame], expected, rtol=1e-4, atol=1e-5)
    by_hand = (picture[0, :, 1:4, 2:5] * state["layer1.0.conv2.weight"][1]).sum()
    torch.testing.assert_close(found[0, 1, 2, 2, 3], by_hand, rtol=1e-4, atol=1e-5)


def test_first_kernel_of_mfas_sees_blue_first(tmp_path: Path) -> None:
    backbone, state = made("inflated_resnet50"), weights.visual(2, K)
    assert loaded(backbone, state, tmp_path)
    x = example(backbone)
    first = backbone.stem[:3](x)  # type: ignore[index]
    # Its program: frames as OpenCV reads them, BGR, minus the means of RGB.
    bgr = x.numpy()[0, 3, 1:8, 1:8, ::-1]
    pixels = ((bgr / 255 - MEAN) / DEVIATION).transpose(2, 0, 1)
    expected = (pixels * state["cnn.conv1.weight"].numpy()[1]).sum()
    np.testing.assert_allclose(first[0, 1, 3, 2, 2].detach(), expected, rtol=1e-4)
    save_backbone(tmp_path / "b.safetensors", backbone, {})
    again = made("inflated_resnet50")
    load_weights(again, tmp_path / "b.safetensors")
    assert torch.equal(again(x), backbone(x))


@pytest.mark.parametrize("first", [(3, 3), (3, 7), (1, 7)])
@pytest.mark.parametrize("grey", [False, True])
def test_first_layer_of_resnext_by_hand(first: tuple[int, int], grey: bool, tmp_path: Path) -> None:
    backbone = made("resnext101_3d", shape=[8, 24, 20] if grey else [8, 24, 20, 3])
    state = weights.resnext101(2, 2, 400, first)
    if first[0] == 1 and not grey:
        with pytest.raises(UserError, match=r"1 of another shape \(stem\.conv1\.weight"):
            loaded(backbone, state, tmp_path)
        return
    loaded(backbone, state, tmp_path)
    x = example(backbone)
    found = backbone.stem[:3](x)  # type: ignore[index]
    kernel, half = state["conv1.weight"].numpy()[1], first[1] // 2
    clip = x.numpy()[2, 4 - half : 5 + half, 1:8, 3:10].astype(np.float64)
    if grey:
        expected = ((clip - 114.7748) * kernel.mean(0)).sum()
    else:
        clip = clip - np.array([114.7748, 107.7354, 99.4750])
        expected = (clip.transpose(3, 0, 1, 2) * kernel).sum()
    np.testing.assert_allclose(found[2, 1, 4, 2, 3].detach(), expected, rtol=1e-3, atol=1e-2)


def test_hcn_by_hand(tmp_path: Path) -> None:
    backbone, state = made("hcn"), weights.hcn(4, 16, K)
    loaded(backbone, state, tmp_path)
    x = example(backbone)
    found, logits = backbone.features_and_logits(x)
    # The program's own order of axes: (N, C, T, V, M), persons one after the other.
    axes = x.view(3, 16, 2, 25, 3).permute(0, 4, 1, 3, 2)
    steps = axes[:, :, 1:] - axes[:, :, :-1]
    place = ((torch.arange(16) + 0.5) * 15 / 16 - 0.5).clamp(min=0)
    before = place.long()
    share = (place - before).view(1, 1, -1, 1, 1)
    after = (before + 1).clamp(max=14)
    motion = steps[:, :, before] * (1 - share) + steps[:, :, after] * share

    def layer(y: Tensor, name: str, padding: tuple[int, int] = (1, 1)) -> Tensor:
        return F.conv2d(y, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    maps = []
    for person in range(2):
        branches = []
        for values, m in ((axes, ""), (motion, "m")):
            y = layer(values[..., person], f"conv1{m}.0", (0, 0)).relu()
            y = layer(y, f"conv2{m}", (1, 0)).permute(0, 3, 2, 1)
            y = F.max_pool2d(layer(y, f"conv3{m}.0"), 2)
            branches.append(F.max_pool2d(layer(y, f"conv4{m}.0"), 2))
        fifth = F.max_pool2d(layer(torch.cat(branches, 1), "conv5.0").relu(), 2)
        maps.append((fifth, F.max_pool2d(layer(fifth, "conv6.0").relu(), 2)))
    fifth, sixth = (torch.maximum(first, second) for first, second in zip(*maps, strict=True))
    dense = F.linear(sixth.flatten(1), state["fc7.0.weight"], state["fc7.0.bias"]).relu()
    for ours, expected in zip(found, (fifth, sixth, sixth.flatten(1), dense), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    expected = F.linear(dense, state["fc8.weight"], state["fc8.bias"])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_maxout_by_hand(tmp_path: Path) -> None:
    backbone, state = made("maxout"), weights.maxout(4, 12, K)
    assert loaded(backbone, state, tmp_path)
    x = example(backbone)
    first = backbone.features(x)[0]
    kernel, bias = state["op1.lin.weight"], state["op1.lin.bias"]
    # Unit 2 has the maps 10 to 14.
    expected = max(float(kernel[row] @ x[1] + bias[row]) for row in range(10, 15))
    assert first[1, 2].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", NARROW)
def test_weights_of_another_network_get_one_line(family: str, tmp_path: Path) -> None:
    backbone, state = made(family), dict(NARROW[family][1])
    del state[next(iter(state))]
    state["neck.weight"] = torch.zeros(1)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(UserError) as caught:
        loaded(backbone, state, tmp_path)
    message = str(caught.value)
    assert "1 missing (st" in message
    assert "1 unexpected (neck.weight)" in message
    assert f"expected weights of {BACKBONES[family].published}, or saved by bmnas" in message
    assert "\n" not in message
    assert all(torch.equal(backbone.state_dict()[n], t) for n, t in before.items())


def test_half_a_head_is_missed(tmp_path: Path) -> None:
    state = weights.hcn(4, 16, K)
    del state["fc8.bias"]
    with pytest.raises(UserError, match=r"1 missing \(head\.fc8\.bias\)"):
        loaded(made("hcn"), state, tmp_path)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            Modality("p", "image", np.zeros((4, 31, 40, 3), np.uint8), backbone="vgg19"),
            "received images of 31 x 40 pixels for backbone 'vgg19', expected 32 or more a side",
        ),
        (
            Modality("p", "clip", np.full((4, 8, 16, 16), 255.0), backbone="resnext101_3d"),
            "received pixels from 255 to 255 for backbone 'resnext101_3d', expected uint8, or",
        ),
        (
            Modality("p", "sequence", np.zeros((4, 32, 75)), backbone="hcn"),
            "received rows of (32, 75) for backbone 'hcn', expected 16 steps or more of 150",
        ),
        (
            Modality("p", "sequence", np.zeros((4, 15, 150)), backbone="hcn"),
            "received rows of (15, 150)",
        ),
        (Modality("p", "clip", np.zeros((4, 8, 9, 9)), backbone="vgg19"), "which reads image"),
    ],
)
def test_rows_that_a_network_cannot_take_get_one_line(part: Modality, message: str) -> None:
    with pytest.raises(UserError, match=f"modality p: .*{re.escape(message)}") as caught:
        build_backbone(part, classes=2, rows=part.data)
    assert "\n" not in str(caught.value)


def test_a_modality_names_its_backbone() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 20, 150))
    part = Modality("p", "sequence", rows, backbone="hcn")
    backbone = build_backbone(part, classes=2, rows=rows)
    assert backbone.input_spec.shape == (20, 150)
    assert backbone.eval()(torch.from_numpy(backbone.encode(rows))).shape == (6, 2)


@pytest.mark.parametrize("family", ["vgg19", "inflated_resnet50"])
def test_a_grey_picture_is_one_with_three_equal_colours(family: str) -> None:
    colour = made(family)
    grey = made(family, shape=NARROW[family][0]["shape"][:-1])
    x = example(grey)
    torch.testing.assert_close(grey(x), colour(x.unsqueeze(-1).expand(*x.shape, 3)))


@pytest.mark.parametrize("family", NARROW)
def test_every_weight_is_trained_and_truncating_keeps_the_first_features(family: str) -> None:
    backbone = made(family)
    x = example(backbone)
    full = backbone.features(x)
    F.cross_entropy(backbone.train()(x), torch.arange(3)).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in backbone.parameters())
    backbone = made(family)
    backbone.truncate(1)
    (kept,) = backbone.features(x)
    assert torch.equal(kept, full[0])
