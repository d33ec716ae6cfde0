from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor, nn

from bmnas.backbones.base import Backbone, InputSpec, PooledHead
from bmnas.features.reshape import Pool
from bmnas.pipeline.multimodal import MultimodalNetwork
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.known import known_genotype
from bmnas.spaces.cells.network import FusionNetwork
from bmnas.spaces.cells.operations import PAPER

CHANNELS, LENGTH, CLASSES = 6, 4, 3
FEATURES = ("a.1", "a.2", "b.1", "b.2")
CHANNELS_RAW = {"a.1": 3, "a.2": 5, "b.1": 4, "b.2": 7}


class TwoStages(Backbone):
    """A backbone over vectors: two linear stages that count how often they ran."""

    family = "two-stages"
    types = ("vector",)

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__(InputSpec((inputs,), "float32", "numbers"))
        sizes = itertools.pairwise((inputs, *widths))
        self.feature_names = tuple(str(f + 1) for f in range(len(widths)))
        self.feature_channels = widths
        self.stem = nn.Identity()
        self.stages = nn.ModuleList(nn.Linear(*size) for size in sizes)
        self.head = PooledHead(widths[-1], CLASSES)


def genotype(*cells: tuple[tuple[str, str], list[tuple[str, str, str]]]) -> Genotype:
    return Genotype(
        FEATURES,
        CHANNELS,
        LENGTH,
        tuple(Cell(pair, tuple(Step(op, (i, j)) for op, i, j in steps)) for pair, steps in cells),
    )


def network(of: Genotype, seed: int = 0) -> FusionNetwork:
    """A network in float64 and evaluation mode, with random weights and statistics."""
    torch.manual_seed(seed)
    net = FusionNetwork(of, CHANNELS_RAW, classes=CLASSES, dropout=0.3).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return net


def pooled(of: Genotype, batch: int = 3) -> list[Tensor]:
    torch.manual_seed(99)
    every = {f: torch.randn(batch, LENGTH, c).double() for f, c in CHANNELS_RAW.items()}
    return [every[name] for name in of.live_features()]


class Literal:
    """The equations on (B, C, L), from the parameters of a network, step after step."""

    def __init__(self, net: FusionNetwork) -> None:
        self.values = {**dict(net.named_parameters()), **dict(net.named_buffers())}

    def take(self, *path: object) -> Tensor:
        return self.values[".".join(map(str, path))].detach()

    def linear_norm(self, x: Tensor, *path: object) -> Tensor:
        linear, norm = (*path, "linear"), (*path, "norm")
        h = torch.einsum("oc,bcl->bol", self.take(*linear, "weight"), x)
        h = h + self.take(*linear, "bias")[:, None]
        deviation = (self.take(*norm, "running_var") + 1e-5).sqrt()
        h = (h - self.take(*norm, "running_mean")[:, None]) / deviation[:, None]
        return h * self.take(*norm, "weight")[:, None] + self.take(*norm, "bias")[:, None]

    def layer_norm(self, x: Tensor, *path: object) -> Tensor:
        mean = x.mean((1, 2), keepdim=True)
        variance = x.var((1, 2), correction=0, keepdim=True)
        h = (x - mean) / (variance + 1e-5).sqrt()
        return h * self.take(*path, "weight").T + self.take(*path, "bias").T

    def operation(self, name: str, x: Tensor, y: Tensor, *path: object) -> Tensor:
        if name == "zero":
            return torch.zeros_like(x)
        if name == "sum":
            return x + y
        if name == "attention":
            weights = (x.transpose(1, 2) @ y / math.sqrt(CHANNELS)).softmax(-1)
            return self.layer_norm((weights @ y.transpose(1, 2)).transpose(1, 2), *path, "norm")
        if name == "linear_glu":
            gate = torch.sigmoid(self.linear_norm(y, *path, "gate"))
            return self.linear_norm(x, *path, "value") * gate
        return self.linear_norm(torch.cat((x, y), 1), *path, "project").clamp_min(0)

    def cell(self, cell: Cell, x: Tensor, y: Tensor, *path: object) -> Tensor:
        nodes, live = {"x": x, "y": y}, []
        for m, step in enumerate(cell.steps):
            # The layers of steps that are not zero are numbered without gaps.
            inner = (*path, "operations", len(live))
            first, second = (nodes[name] for name in step.inputs)
            nodes[f"step{m + 1}"] = self.operation(step.op, first, second, *inner)
            if step.op != "zero":
                live.append(nodes[f"step{m + 1}"])
        if len(cell.steps) > 1 and live:
            merged = self.linear_norm(torch.cat(live, 1), *path, "output", "merge").clamp_min(0)
        else:
            merged = live[0] if live else torch.zeros_like(x)
        return self.layer_norm(merged + x, *path, "output", "norm")

    def logits(self, of: Genotype, features: list[Tensor]) -> Tensor:
        size = (features[0].shape[0], CHANNELS, LENGTH)
        nodes = dict.fromkeys(of.features, torch.full(size, torch.nan, dtype=torch.float64))
        for f, (name, x) in enumerate(zip(of.live_features(), features, strict=True)):
            h = self.linear_norm(x.transpose(1, 2), "projections", f, "project")
            nodes[name] = h.clamp_min(0)
        for k, cell in enumerate(of.cells):
            x, y = (nodes[name] for name in cell.inputs)
            nodes[f"cell{k + 1}"] = self.cell(cell, x, y, "cells", k)
        joined = torch.cat([nodes[f"cell{k + 1}"] for k in range(len(of.cells))], 1)
        h = self.layer_norm(joined, "head", "norm").clamp_min(0).transpose(1, 2).flatten(1)
        return h @ self.take("head.classifier.weight").T + self.take("head.classifier.bias")


def random_genotype(seed: int, ops: tuple[str, ...] = PAPER) -> Genotype:
    draw = random.Random(seed)
    nodes, taken, cells = list(FEATURES), set(), []
    for k in range(draw.randint(1, 3)):
        first = draw.choice([n for n in nodes if n not in taken])
        second = draw.choice([n for n in nodes if n != first])
        inner, steps = ["x", "y"], []
        for m in range(draw.randint(1, 3)):
            steps.append((draw.choice(ops), *draw.sample(inner, 2)))
            inner.append(f"step{m + 1}")
        cells.append(((first, second), steps))
        nodes.append(f"cell{k + 1}")
        taken.update((first, second))
    return genotype(*cells)


@pytest.mark.parametrize("seed", range(12))
def test_a_network_computes_what_its_genotype_says(seed: int) -> None:
    of = random_genotype(seed, PAPER[1:])
    net = network(of, seed)
    torch.testing.assert_close(net(pooled(of)), Literal(net).logits(of, pooled(of)))


@pytest.mark.parametrize("op", PAPER[1:])
def test_the_order_of_inputs_is_kept(op: str) -> None:
    first = genotype((("a.1", "b.1"), [(op, "x", "y")]))
    second = genotype((("a.1", "b.1"), [(op, "y", "x")]))
    one, two = network(first), network(second)
    two.load_state_dict(one.state_dict())
    difference = (one(pooled(first)) - two(pooled(first))).abs().max()
    assert (difference < 1e-12) == (op == "sum")


@pytest.mark.parametrize("steps", list(itertools.product(["zero", "sum", "concat_fc"], repeat=2)))
def test_a_zero_step_is_a_step_whose_output_is_zero(steps: tuple[str, str]) -> None:
    of = genotype(
        (("a.1", "b.1"), [(steps[0], "x", "y"), (steps[1], "step1", "y")]),
        (("cell1", "a.2"), [("sum", "x", "y")]),
    )
    net = network(of)
    torch.testing.assert_close(net(pooled(of)), Literal(net).logits(of, pooled(of)))


def test_zero_steps_have_no_parameters() -> None:
    step = ("concat_fc", "x", "y")
    small = genotype((("a.1", "b.1"), [step, step]))
    with_zero = genotype((("a.1", "b.1"), [step, ("zero", "x", "y"), step]))
    sizes = [sum(p.numel() for p in network(of).parameters()) for of in (small, with_zero)]
    assert sizes[0] == sizes[1]
    only_zero = network(genotype((("a.1", "b.1"), [("zero", "x", "y"), ("zero", "x", "step1")])))
    assert not list(only_zero.cells[0].operations.parameters())
    assert only_zero.cells[0].output.merge is None
    assert only_zero.features == ("a.1",)


def test_features_that_no_cell_reads_have_no_projection() -> None:
    of = genotype((("a.2", "b.1"), [("sum", "x", "y")]))
    net = network(of)
    assert net.features == ("a.2", "b.1")
    assert [p.project.linear.in_features for p in net.projections] == [5, 4]
    # y is read by zero steps alone: it is dropped with them.
    assert network(genotype((("a.2", "b.1"), [("zero", "x", "y")]))).features == ("a.2",)


def test_the_classifier_is_the_last_layer() -> None:
    net = network(genotype((("a.1", "b.1"), [("sum", "x", "y")])))
    assert net.classifier is net.head.classifier


def test_the_number_of_features_is_checked() -> None:
    of = genotype((("a.1", "b.1"), [("sum", "x", "y")]))
    with pytest.raises(ValueError, match="is shorter"):
        network(of)(pooled(of)[:1])


@pytest.mark.parametrize("seed", range(12, 18))
def test_every_parameter_of_a_network_gets_a_gradient(seed: int) -> None:
    of = random_genotype(seed)
    net = network(of, seed).train()
    net(pooled(of, batch=8)).square().sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None]
    assert idle == []


def backbones() -> dict[str, Backbone]:
    torch.manual_seed(1)
    return {"a": TwoStages(4, (3, 5)), "b": TwoStages(6, (4, 7)), "c": TwoStages(2, (2,))}


def multimodal(of: Genotype, parts: dict[str, Backbone]) -> MultimodalNetwork:
    net = FusionNetwork(of, CHANNELS_RAW, classes=CLASSES, dropout=0.3)
    return MultimodalNetwork(parts, net).eval()


def test_a_multimodal_network_is_backbones_pooling_and_fusion() -> None:
    of = genotype((("a.2", "b.1"), [("concat_fc", "x", "y")]))
    parts = backbones()
    net = multimodal(of, parts)
    a, b = torch.randn(3, 4), torch.randn(3, 6)
    features = [parts["a"].features(a)[1], parts["b"].features(b)[0]]
    pool = Pool(LENGTH)
    expected = net.fusion([pool(f) for f in features])
    torch.testing.assert_close(net(a, b), expected)


def test_a_multimodal_network_keeps_only_what_is_read() -> None:
    of = genotype((("b.1", "a.2"), [("sum", "x", "y")]))
    parts = backbones()
    net = multimodal(of, parts)
    # Inputs stand in the order of the modalities, whatever order a Cell reads them in.
    assert net.modalities == ("a", "b")
    assert [len(net.backbone(name).stages) for name in net.modalities] == [2, 1]
    assert net.backbone("b").feature_names == ("1",)
    assert net.backbone("b").head is None
    with pytest.raises(RuntimeError, match="it has no head"):
        net.backbone("a")(torch.randn(3, 4))
    kept = {name.split(".")[1] for name, _ in net.named_parameters() if "backbones" in name}
    assert kept == {"a", "b"}
    # The caller's backbones stay whole, and are not trained along.
    assert [len(part.stages) for part in parts.values()] == [2, 2, 1]
    assert parts["b"].head is not None
    own = {id(p) for part in parts.values() for p in part.parameters()}
    assert not own & {id(p) for p in net.parameters()}


def test_one_modality_may_remain() -> None:
    net = multimodal(genotype((("a.1", "b.1"), [("zero", "x", "y")])), backbones())
    assert net.modalities == ("a",)
    assert net(torch.randn(3, 4)).shape == (3, CLASSES)


def test_gradients_reach_the_backbones() -> None:
    of = known_genotype("aoa", ("a.1", "b.2"), channels=CHANNELS, length=LENGTH)
    net = multimodal(of, backbones()).train()
    net(torch.randn(5, 4), torch.randn(5, 6)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
