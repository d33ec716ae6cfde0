"""The formula of each hand-made fusion, written out in NumPy, and fusions to compare with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny_networks import roughen

from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.space import NamedFusion
from bmnas.spaces.registry import build_fusion

TWO = {"image.1": 3, "image.2": 5, "audio.1": 4, "audio.2": 2}
THREE = {**TWO, "text.1": 6}
LENGTH, CHANNELS, CLASSES = 4, 6, 3

Array = NDArray[Any]


def built(
    name: str, channels_raw: Mapping[str, int] = TWO, seed: int = 0, classes: int = CLASSES
) -> Fusion:
    """Return the fusion as after some training, in evaluation mode and float64."""
    torch.manual_seed(seed)
    what = NamedFusion(name, CHANNELS, LENGTH)
    fusion = build_fusion(what, channels_raw, classes=classes, dropout=0.1)
    roughen(fusion)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return fusion.double().eval()


def pooled(fusion: Fusion, channels_raw: Mapping[str, int] = TWO, rows: int = 7) -> list[Array]:
    draw = np.random.default_rng(1)
    return [draw.normal(size=(rows, LENGTH, channels_raw[name])) for name in fusion.features]


class Weights:
    """What a fusion holds, by name, as arrays; the layers as NumPy formulas."""

    def __init__(self, fusion: Fusion) -> None:
        self.arrays = {name: value.numpy() for name, value in fusion.state_dict().items()}

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def linear(self, x: Array, name: str) -> Array:
        y: Array = x @ self[f"{name}.weight"].T
        return y + self[f"{name}.bias"] if f"{name}.bias" in self.arrays else y

    def norm(self, x: Array, name: str) -> Array:
        mean, variance = self[f"{name}.running_mean"], self[f"{name}.running_var"]
        y: Array = (x - mean) / np.sqrt(variance + 1e-5) * self[f"{name}.weight"]
        return y + self[f"{name}.bias"]

    def linear_norm(self, x: Array, name: str) -> Array:
        return self.norm(self.linear(x, f"{name}.linear"), f"{name}.norm")

    def projection(self, x: Array, n: int) -> Array:
        return relu(self.linear_norm(x, f"projections.{n}.project"))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def flat(x: Array) -> Array:
    return x.reshape(len(x), -1)


def two_stream(w: Weights, x: Sequence[Array]) -> Array:
    logits = [w.linear(flat(f), f"classifiers.{m}") for m, f in enumerate(x)]
    return np.mean(logits, axis=0)


def weighted_two_stream(w: Weights, x: Sequence[Array]) -> Array:
    share = np.exp(w["weights"]) / np.exp(w["weights"]).sum()
    logits = [w.linear(flat(f), f"classifiers.{m}") for m, f in enumerate(x)]
    return np.sum([a * own for a, own in zip(share, logits, strict=True)], axis=0)


def concat(w: Weights, x: Sequence[Array]) -> Array:
    joined = np.concatenate([flat(f) for f in x], axis=1)
    return w.linear(relu(w.linear_norm(joined, "hidden")), "output")


def gmu(w: Weights, x: Sequence[Array]) -> Array:
    values = [w.linear(w.norm(flat(f), f"norms.{m}"), f"values.{m}") for m, f in enumerate(x)]
    gates = sigmoid(np.concatenate(values, axis=1) @ w["unit.gate.weight"].T)
    if len(x) == 2:
        h = gates * np.tanh(values[0]) + (1 - gates) * np.tanh(values[1])
    else:
        parts = np.split(gates, len(x), axis=1)
        h = np.sum([z * np.tanh(v) for z, v in zip(parts, values, strict=True)], axis=0)
    for norm, maxout in ((0, 1), (2, 3)):
        pieces = w.linear(w.norm(h, f"decide.{norm}"), f"decide.{maxout}.pieces")
        h = np.maximum(pieces[:, :CHANNELS], pieces[:, CHANNELS:])
    return w.linear(w.norm(h, "decide.4"), "output")


def central(w: Weights, x: Sequence[Array], names: Sequence[Sequence[int]]) -> Array:
    """Return h_C after the last level; ``names`` are the numbers of the features at each."""
    before: list[Array] = []
    for level, numbers in enumerate(names):
        hidden = [*before, *(w.projection(x[n], n) for n in numbers)]
        a = w[f"layers.{level}.weights"]
        total = sum(a[i] * h for i, h in enumerate(hidden))
        before = [relu(w.linear_norm(np.asarray(total), f"layers.{level}.layer"))]
    return before[0]


def centralnet(w: Weights, x: Sequence[Array]) -> Array:
    numbers = [(0, 2), (1, 3)] if len(x) == 4 else [(0, 2), (1, 3, 4)]
    return w.linear(flat(central(w, x, numbers)), "classifiers.0")


def mmtm(w: Weights, x: Sequence[Array]) -> Array:
    squeezed = np.concatenate([f.mean(1) for f in x], axis=1)
    e = relu(w.linear(squeezed, "transfer.squeeze"))
    assert e.shape[1] == 2 * sum(f.shape[2] for f in x) // 4
    logits = []
    for m, f in enumerate(x):
        scale = 2 * sigmoid(w.linear(e, f"transfer.excite.{m}"))
        logits.append(w.linear(flat(f * scale[:, None]), f"classifiers.{m}"))
    return np.mean(logits, axis=0)


def mtut(w: Weights, x: Sequence[Array]) -> Array:
    hidden = [relu(w.linear_norm(f, f"projections.{m}")) for m, f in enumerate(x)]
    return np.mean([w.linear(flat(h), f"classifiers.{m}") for m, h in enumerate(hidden)], axis=0)


def difference(kernel: Array, x: Array, theta: float) -> Array:
    """Return the convolution, position by position, less theta of the difference."""
    y = np.zeros((*x.shape[:2], len(kernel)))
    for t in range(x.shape[1]):
        for k in (-1, 0, 1):
            if 0 <= t + k < x.shape[1]:
                y[:, t] += x[:, t + k] @ kernel[:, :, k + 1].T
        y[:, t] -= theta * x[:, t] @ (kernel[:, :, 0] + kernel[:, :, 2]).T
    return y


def cdc_t(w: Weights, x: Sequence[Array]) -> Array:
    fused: list[Array] = []
    for level, numbers in enumerate([(0, 2), (1, 3)] if len(x) == 4 else [(0, 2), (1, 3, 4)]):
        side = [*fused, *(w.projection(x[n], n) for n in numbers)]
        kernel = w[f"connections.{level}.difference.weight"]
        y = difference(kernel, np.concatenate(side, axis=2), 0.6)
        fused = [relu(w.norm(y, f"connections.{level}.norm"))]
    return w.linear(flat(fused[0]), "output")


def vectors(w: Weights, x: Sequence[Array]) -> list[Array]:
    return [relu(w.linear_norm(flat(f), f"vectors.{m}")) for m, f in enumerate(x)]


def tensor(w: Weights, x: Sequence[Array]) -> Array:
    extended = [np.insert(z, 0, 1, axis=1) for z in vectors(w, x)]
    letters = "ijk"[: len(x)]
    outer = np.einsum(f"{','.join('b' + i for i in letters)}->b{letters}", *extended)
    return w.linear(relu(w.linear_norm(flat(outer), "hidden")), "output")


def lmf(w: Weights, x: Sequence[Array]) -> Array:
    """Return what a linear layer gives on the tensor, whose weights are summed up first."""
    extended = [np.insert(z, 0, 1, axis=1) for z in vectors(w, x)]
    factors = [
        np.insert(w[f"factors.{m}.weight"].T, 0, w[f"factors.{m}.bias"], axis=0)
        for m in range(len(x))
    ]
    letters = "ijk"[: len(x)]
    weights = ",".join(i + "rc" for i in letters) + f"->{letters}c"
    whole = np.einsum(weights, *(f.reshape(len(f), 4, CHANNELS) for f in factors))
    h = np.einsum(
        f"{','.join('b' + i for i in letters)},{letters}c->bc", *extended, whole, optimize=True
    )
    return w.linear(w.norm(h, "norm"), "output")


def mi_matrix(w: Weights, x: Sequence[Array]) -> Array:
    z, weight, start = vectors(w, x), w["output.weight"], 0
    logits: Array = w["output.bias"]
    for m, n in [(0, 1)] if len(x) == 2 else [(0, 1), (0, 2), (1, 2)]:
        own = weight[:, start : start + CHANNELS**2].reshape(CLASSES, CHANNELS, CHANNELS)
        logits, start = logits + np.einsum("bi,kij,bj->bk", z[m], own, z[n]), start + CHANNELS**2
    for vector in z:
        logits, start = logits + vector @ weight[:, start : start + CHANNELS].T, start + CHANNELS
    assert start == weight.shape[1]
    return logits


def cross_attention(w: Weights, x: Array, y: Array, name: str) -> Array:
    query, key, value = (
        w.linear(of, f"{name}.{part}") for of, part in ((x, "query"), (y, "key"), (y, "value"))
    )
    scores = np.exp(query @ key.swapaxes(1, 2) / np.sqrt(query.shape[2]))
    attended: Array = scores / scores.sum(2, keepdims=True) @ value
    return attended


def non_local_gate(w: Weights, x: Sequence[Array]) -> Array:
    h = [w.projection(f, m) for m, f in enumerate(x)]
    logits = []
    for m, own in enumerate(h):
        others = np.concatenate(h[:m] + h[m + 1 :], axis=1)
        gathered = cross_attention(w, own, others, f"blocks.{m}.attention")
        changed = own + w.linear_norm(gathered, f"blocks.{m}.change")
        logits.append(w.linear(flat(changed), f"classifiers.{m}"))
    return np.mean(logits, axis=0)


def transformer_layer(w: Weights, x: Array, y: Array, name: str) -> Array:
    def norm(of: Array, n: int) -> Array:
        centred = of - of.mean(2, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(2, keepdims=True) + 1e-5)
        normed: Array = scaled * w[f"{name}.norms.{n}.weight"] + w[f"{name}.norms.{n}.bias"]
        return normed

    target = norm(x, 0)
    h = norm(target + cross_attention(w, target, norm(y, 1), f"{name}.attention"), 2)
    return h + w.linear(relu(w.linear(h, f"{name}.first")), f"{name}.second")


def mult(w: Weights, x: Sequence[Array]) -> Array:
    h = [w.projection(f, m) + w["positions"][m] for m, f in enumerate(x)]
    means, layer = [], 0
    for m in range(len(h)):
        gathered = []
        for n in range(len(h)):
            if n != m:
                gathered.append(transformer_layer(w, h[m], h[n], f"crossmodal.{layer}"))
                layer += 1
        z = np.concatenate(gathered, axis=2)
        means.append(transformer_layer(w, z, z, f"alone.{m}").mean(1))
    return w.linear(np.concatenate(means, axis=1), "output")


def dot_product(w: Weights, x: Sequence[Array]) -> Array:
    u = []
    for m, f in enumerate(x):
        hidden = relu(w.linear_norm(flat(f), f"encoders.{m}.0"))
        found = w.linear(hidden, f"encoders.{m}.3")
        u.append(found / np.linalg.norm(found, axis=1, keepdims=True))
    cosine = (u[0] * u[1]).sum(1, keepdims=True)
    return np.exp(w["output.scale"]) * cosine + w["output.bias"]


FORMULAS = (
    *(two_stream, weighted_two_stream, concat, gmu, centralnet, mmtm, mtut, cdc_t),
    *(tensor, lmf, mi_matrix, non_local_gate, mult),
)
