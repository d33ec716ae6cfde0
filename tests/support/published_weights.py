"""State dicts with the keys and shapes of published weights, of any width, filled at random."""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]


def _filled(shapes: dict[str, tuple[int, ...]]) -> State:
    generator = torch.Generator().manual_seed(5)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.abs_().add_(0.5)
        elif tensor.dim() > 1:
            tensor.mul_(tensor[0].numel() ** -0.5)
    return state


def _norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts}


def vgg19(width: int, classes: int = 1000) -> State:
    """As torchvision's ``vgg19``; the dense layers are 8 wide."""
    w = width
    convolutions = {
        0: (w, 3), 2: (w, w),
        5: (2 * w, w), 7: (2 * w, 2 * w),
        10: (4 * w, 2 * w), 12: (4 * w, 4 * w), 14: (4 * w, 4 * w), 16: (4 * w, 4 * w),
        19: (8 * w, 4 * w), 21: (8 * w, 8 * w), 23: (8 * w, 8 * w), 25: (8 * w, 8 * w),
        28: (8 * w, 8 * w), 30: (8 * w, 8 * w), 32: (8 * w, 8 * w), 34: (8 * w, 8 * w),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (channels, channels_in) in convolutions.items():
        shapes[f"features.{number}.weight"] = (channels, channels_in, 3, 3)
        shapes[f"features.{number}.bias"] = (channels,)
    for number, (rows, columns) in {0: (8, 8 * w * 49), 3: (8, 8), 6: (classes, 8)}.items():
        shapes[f"classifier.{number}.weight"] = (rows, columns)
        shapes[f"classifier.{number}.bias"] = (rows,)
    return _filled(shapes)


def gp_vgg(width: int, classes: int) -> State:
    """As the image network of BM-NAS."""
    state = {
        name.replace("features", "vgg"): tensor
        for name, tensor in vgg19(width).items()
        if name.startswith("features")
    }
    head = _norm("bn4", 8 * width) | {
        "classifier.weight": (classes, 8 * width),
        "classifier.bias": (classes,),
    }
    return state | _filled(head)


def resnet50(width: int, classes: int = 1000, *, inflated: bool = False) -> State:
    """As torchvision's ``resnet50``, without the counts of batches that old files lack.

    ``inflated``: the kernels behind the first have three axes, as in MFAS.
    """

    def kernel(size: int) -> tuple[int, ...]:
        return (size,) * (3 if inflated else 2)

    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (width, 3, 7, 7)} | _norm("bn1", width)
    before = width
    for layer, blocks in enumerate((3, 4, 6, 3), start=1):
        inner = width * 2 ** (layer - 1)
        for block in range(blocks):
            place = f"layer{layer}.{block}"
            shapes[f"{place}.conv1.weight"] = (inner, before, *kernel(1))
            shapes[f"{place}.conv2.weight"] = (inner, inner, *kernel(3))
            shapes[f"{place}.conv3.weight"] = (4 * inner, inner, *kernel(1))
            for number, channels in ((1, inner), (2, inner), (3, 4 * inner)):
                shapes |= _norm(f"{place}.bn{number}", channels)
            if block == 0:
                shapes[f"{place}.downsample.0.weight"] = (4 * inner, before, *kernel(1))
                shapes |= _norm(f"{place}.downsample.1", 4 * inner)
            before = 4 * inner
    return _filled(shapes | {"fc.weight": (classes, before), "fc.bias": (classes,)})


def visual(width: int, classes: int) -> State:
    """As the RGB network of MFAS and BM-NAS."""
    state = resnet50(width, classes, inflated=True)
    return {
        name.replace("fc.", "classifier.") if name.startswith("fc.") else f"cnn.{name}": tensor
        for name, tensor in state.items()
    }


def resnext101(width: int, cardinality: int, classes: int, first: tuple[int, ...]) -> State:
    """As resnext-101 of 3D-ResNets-PyTorch; its first kernel has ``first`` channels and frames."""
    channels_in, frames = first
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (width, channels_in, frames, 7, 7)}
    shapes |= _norm("bn1", width)
    before = width
    for layer, blocks in enumerate((3, 4, 23, 3), start=1):
        inner = 2 * width * 2 ** (layer - 1)
        for block in range(blocks):
            place = f"layer{layer}.{block}"
            shapes[f"{place}.conv1.weight"] = (inner, before, 1, 1, 1)
            shapes[f"{place}.conv2.weight"] = (inner, inner // cardinality, 3, 3, 3)
            shapes[f"{place}.conv3.weight"] = (2 * inner, inner, 1, 1, 1)
            for number, channels in ((1, inner), (2, inner), (3, 2 * inner)):
                shapes |= _norm(f"{place}.bn{number}", channels)
            if block == 0:
                shapes[f"{place}.downsample.0.weight"] = (2 * inner, before, 1, 1, 1)
                shapes |= _norm(f"{place}.downsample.1", 2 * inner)
            before = 2 * inner
    return _filled(shapes | {"fc.weight": (classes, before), "fc.bias": (classes,)})


def hcn(width: int, time: int, classes: int) -> State:
    """As the skeleton network of MFAS and BM-NAS, and as HCN-pytorch."""
    w = width
    shapes: dict[str, tuple[int, ...]] = {}
    for m in ("", "m"):
        shapes |= {
            f"conv1{m}.0.weight": (w, 3, 1, 1), f"conv1{m}.0.bias": (w,),
            f"conv2{m}.weight": (time, w, 3, 1), f"conv2{m}.bias": (time,),
            f"conv3{m}.0.weight": (w // 2, 25, 3, 3), f"conv3{m}.0.bias": (w // 2,),
            f"conv4{m}.0.weight": (w, w // 2, 3, 3), f"conv4{m}.0.bias": (w,),
        }  # fmt: skip
    shapes |= {
        "conv5.0.weight": (2 * w, 2 * w, 3, 3), "conv5.0.bias": (2 * w,),
        "conv6.0.weight": (4 * w, 2 * w, 3, 3), "conv6.0.bias": (4 * w,),
        "fc7.0.weight": (8 * w, 4 * w * (time // 16) ** 2), "fc7.0.bias": (8 * w,),
        "fc8.weight": (classes, 8 * w), "fc8.bias": (classes,),
    }  # fmt: skip
    return _filled(shapes)


def maxout(width: int, columns: int, classes: int) -> State:
    """As MaxOut_MLP of BM-NAS, five maps a unit."""
    shapes: dict[str, tuple[int, ...]] = {
        "op1.lin.weight": (5 * width, columns), "op1.lin.bias": (5 * width,),
        "op3.lin.weight": (10 * width, width), "op3.lin.bias": (10 * width,),
        "hid2val.weight": (classes, 2 * width), "hid2val.bias": (classes,),
    }  # fmt: skip
    return _filled(shapes | _norm("op2.0", width) | _norm("op4.0", 2 * width))
