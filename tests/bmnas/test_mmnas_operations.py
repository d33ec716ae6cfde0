"""The operations of MMnas, each against a literal computation in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from bmnas.spaces.mmnas.operations import (
    Around,
    AttentiveSum,
    Block,
    OfficialNorm,
    Relations,
    relations,
)

WIDTH, HEAD, HIDDEN = 12, 4, 3
Array = np.ndarray
#: Tokens that count, of T and of N; rows that do not count at all are among them.
MASKS = {
    "some": (
        [[1, 1, 0], [1, 1, 1], [0, 1, 0]],
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]],
    ),
    "none": ([[0, 0, 0], [1, 0, 0]], [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0]]),
    "one": ([[1]], [[1]]),
}


def array(x: Tensor) -> Array:
    found: Array = x.detach().double().numpy()
    return found


def softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max())
    found: Array = e / e.sum()
    return found


def attention(block: Block, x: Array, y: Array, mask: Array, added: Array | None = None) -> Array:
    """Head by head, token by token: x of one sample (T, d), y (S, d), added (h, T, S)."""
    f = block.operation
    w = {name: array(getattr(f, name).weight) for name in ("query", "key", "value", "merge")}
    out = np.zeros_like(x)
    for h in range(WIDTH // HEAD):
        own = slice(h * HEAD, (h + 1) * HEAD)
        q, k, v = x @ w["query"][own].T, y @ w["key"][own].T, y @ w["value"][own].T
        for t in range(len(x)):
            logits = np.array([q[t] @ k[s] / math.sqrt(HEAD) for s in range(len(y))])
            if added is not None:
                logits = logits + added[h, t]
            logits[~mask] = -1e9
            out[t, own] = softmax(logits) @ v
    found: Array = out @ w["merge"].T
    return found


def normed(block: Block, x: Array) -> Array:
    weight, bias = array(block.norm.weight), array(block.norm.bias)
    rows = []
    for row in x:
        if isinstance(block.norm, OfficialNorm):
            rows.append((row - row.mean()) / (row.std(ddof=1) + 1e-6) * weight + bias)
        else:
            rows.append((row - row.mean()) / math.sqrt(row.var() + 1e-5) * weight + bias)
    return np.stack(rows)


def literal_relations(boxes: Array, mask: Array) -> Array:
    found = np.zeros((len(boxes), len(boxes), 4))
    for i, j in np.argwhere(mask[:, None] & mask[None]):
        (ax, ay, bx, by), (cx, cy, dx, dy) = boxes[i], boxes[j]
        w, h, w2, h2 = bx - ax + 1, by - ay + 1, dx - cx + 1, dy - cy + 1
        found[i, j] = [
            math.log(max(abs((ax + bx) / 2 - (cx + dx) / 2) / w, 1e-3)),
            math.log(max(abs((ay + by) / 2 - (cy + dy) / 2) / h, 1e-3)),
            math.log(w / w2),
            math.log(h / h2),
        ]
    return found


def literal(block: Block, around: dict[str, Array], x: Array, kind: str) -> Array:
    """What a block of ``kind`` makes of one sample ``x`` (T, d)."""
    if kind == "ffn":
        f = block.operation
        hidden = np.maximum(x @ array(f.first.weight).T + array(f.first.bias), 0)
        z = hidden @ array(f.second.weight).T + array(f.second.bias)
    elif kind == "ga":
        z = attention(block, x, around["encoded"], around["counted"])
    elif kind == "sa":
        z = attention(block, x, x, around["mask"])
    else:
        layer = block.operation.relation
        strength = np.maximum(around["related"] @ array(layer.weight).T + array(layer.bias), 0)
        added = np.log(np.maximum(strength, 1e-6)).transpose(2, 0, 1)
        z = attention(block, x, x, around["mask"], added)
    return normed(block, x + z)


@pytest.fixture
def boxes() -> Callable[[int, int], Tensor]:
    def drawn(rows: int, count: int) -> Tensor:
        first = torch.randint(0, 40, (rows, count, 2)).float()
        return torch.cat([first, first + torch.randint(1, 30, (rows, count, 2))], -1)

    torch.manual_seed(3)
    return drawn


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("norm", ["layer", "official"])
@pytest.mark.parametrize("kind", ["sa", "rsa", "ga", "ffn"])
def test_an_operation_is_the_literal_computation(
    kind: str, norm: str, masks: str, boxes: Callable[[int, int], Tensor]
) -> None:
    counted, mask = (torch.tensor(each, dtype=torch.bool) for each in MASKS[masks])
    rows, (texts, count) = len(mask), (counted.shape[1], mask.shape[1])
    torch.manual_seed(0)
    block = Block(kind, WIDTH, HEAD, HIDDEN, norm, 0.5).double().eval()  # type: ignore[arg-type]
    for parameter in block.norm.parameters():
        torch.nn.init.normal_(parameter)
    around = Around(
        mask,
        torch.randn(rows, texts, WIDTH).double(),
        counted,
        Relations().double()(boxes(rows, count).double(), mask),
    )
    x = torch.randn(rows, count, WIDTH).double()
    given = {name: x.numpy(force=True) for name, x in vars(around).items()}
    wanted = [
        literal(block, {name: each[n] for name, each in given.items()}, array(x[n]), kind)
        for n in range(rows)
    ]
    np.testing.assert_allclose(array(block(x, around)), np.stack(wanted), atol=1e-9)
    single = Around(*(y.float() if y.is_floating_point() else y for y in vars(around).values()))
    np.testing.assert_allclose(array(block.float()(x.float(), single)), np.stack(wanted), atol=1e-5)


def test_relations_are_the_literal_ones(boxes: Callable[[int, int], Tensor]) -> None:
    drawn, mask = boxes(3, 5), torch.tensor(MASKS["some"][1], dtype=torch.bool)
    found = relations(drawn, mask)
    for n in range(3):
        wanted = literal_relations(array(drawn[n]), mask[n].numpy())
        np.testing.assert_allclose(found[n].numpy(), wanted, atol=1e-6)
    assert float(found[0, 0, 0, 0]) == pytest.approx(math.log(1e-3))
    # Of padding, whose boxes are nothing, neither infinity nor NaN.
    assert relations(torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.bool)).abs().sum() == 0


def test_relations_of_the_same_windows_are_computed_once(
    boxes: Callable[[int, int], Tensor],
) -> None:
    torch.manual_seed(0)
    related, block = Relations(), Block("rsa", WIDTH, HEAD, HIDDEN, "layer", 0.0)
    windows, mask = boxes(1, 5).expand(3, -1, -1), torch.ones(3, 5, dtype=torch.bool)
    x, layers = torch.randn(3, 5, WIDTH), (related, block)

    def run(rows: list[slice]) -> list[Tensor]:
        for layer in layers:
            layer.zero_grad()
        parts = [block(x[n], Around(mask[n], related=related(windows[n], mask[n]))) for n in rows]
        found = torch.cat(parts)
        found.square().sum().backward()
        return [found, *(w.grad for layer in layers for w in layer.parameters())]

    assert related(windows, mask).shape[0] == 1
    torch.testing.assert_close(
        run([slice(None)]), run([slice(n, n + 1) for n in range(3)]), rtol=1e-4, atol=1e-6
    )
    other, fewer = windows.clone(), mask.clone()
    other[2, 0, 0] -= 1
    fewer[1, 4] = False
    assert related(other, mask).shape[0] == related(windows, fewer).shape[0] == 3


def test_the_attentive_sum_is_the_literal_one() -> None:
    torch.manual_seed(0)
    layer, x = AttentiveSum(WIDTH, 7, 0.5).double().eval(), torch.randn(3, 3, WIDTH).double()
    mask = torch.tensor(MASKS["some"][0], dtype=torch.bool)
    for row, own, counts in zip(layer(x, mask), x.numpy(), mask.numpy(), strict=True):
        hidden = np.maximum(own @ array(layer.hidden.weight).T + array(layer.hidden.bias), 0)
        logits = (hidden @ array(layer.weigh.weight).T)[:, 0] + array(layer.weigh.bias)
        weights = softmax(np.where(counts, logits, -1e9))
        flat = weights @ own @ array(layer.merge.weight).T + array(layer.merge.bias)
        np.testing.assert_allclose(array(row), flat, atol=1e-12)


@pytest.mark.parametrize("kind", ["sa", "rsa", "ga"])
def test_attention_begins_sharper_than_in_the_official_program(kind: str) -> None:
    def begun(norm: Literal["layer", "official"]) -> Block:
        torch.manual_seed(0)
        return Block(kind, WIDTH, HEAD, HIDDEN, norm, 0.0)

    layer, official = (begun(norm).operation for norm in ("layer", "official"))
    for name, parameter in official.named_parameters():
        times = 3 if name.startswith(("query", "key")) else 1
        assert torch.equal(layer.get_parameter(name), times * parameter)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["sa", "rsa", "ga"])
def test_half_precision_and_no_token_give_numbers(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    block = Block(kind, WIDTH, HEAD, HIDDEN, "layer", 0.0).to(dtype)
    none, x = torch.zeros(2, 3, dtype=torch.bool), torch.randn(2, 3, WIDTH, dtype=dtype)
    related = torch.rand(2, 3, 3, 64, dtype=dtype)
    x.requires_grad_(True)
    z = block(x, Around(none, x, none, related))
    z.float().square().sum().backward()
    assert z.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
