from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from backbone_cases import TinyNet, modality
from torch import Tensor, nn

from bmnas.backbones import BACKBONES, Backbone, build_backbone
from bmnas.backbones.bag import BagOfWords
from bmnas.backbones.resnet3d import Bottleneck, ResNet3DBackbone
from bmnas.backbones.words import TextBackbone
from bmnas.tasks.task import Modality


class Everything(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.backbone.head is None:
            return tuple(self.backbone.features(x))
        features, logits = self.backbone.features_and_logits(x)
        return (*features, logits)


def graph_of(network: nn.Module, x: Tensor) -> onnxruntime.InferenceSession:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter itself uses what newer versions of Python and copyreg deprecate.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            network,
            (x[:2],),
            dynamo=True,
            opset_version=20,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    program.save(buffer)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(buffer.getvalue(), options)


def assert_graph_equals_torch(backbone: Backbone, rows: np.ndarray) -> None:
    # Weights as after some training: a fresh BatchNorm would hide a lost one.
    torch.manual_seed(1)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    network = Everything(backbone).eval()
    x = torch.from_numpy(backbone.encode(rows))
    session = graph_of(network, x)
    name = session.get_inputs()[0].name
    for batch in (1, 2, 7):
        with torch.no_grad():
            expected = network(x[:batch])
        received = session.run(None, {name: x[:batch].numpy()})
        assert len(received) == len(expected)
        for left, right in zip(received, expected, strict=True):
            scale = max(1.0, float(right.abs().max()))
            np.testing.assert_allclose(left / scale, right / scale, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["image half", "image colour", "clip", "waveform", "sequence", "vector", "text", "tokens"],
)
def test_the_exported_graph_equals_torch(kind: str) -> None:
    part = modality(kind)
    torch.manual_seed(0)
    assert_graph_equals_torch(build_backbone(part, classes=3, rows=part.data), part.data)


@pytest.mark.slow
def test_a_text_network_with_a_linear_model_exports() -> None:
    part = modality("text")
    torch.manual_seed(0)
    backbone = build_backbone(part, classes=3, rows=part.data)
    assert isinstance(backbone, TextBackbone)
    bag, ids = BagOfWords(backbone.entries, 3), torch.from_numpy(backbone.encode(part.data))
    bag.count(ids, ids != 0)
    backbone.take_bag(bag)
    assert_graph_equals_torch(backbone, part.data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "shape", "config"),
    [
        ("vgg19", (32, 40, 3), {"width": 2}),
        ("maxout", (12,), {"width": 4}),
        ("inflated_resnet50", (4, 24, 20, 3), {"width": 2}),
        ("hcn", (16, 150), {"width": 4}),
        ("resnext101_3d", (8, 24, 20), {"width": 2, "cardinality": 2}),
    ],
)
def test_networks_of_papers_export(
    family: str, shape: tuple[int, ...], config: dict[str, Any]
) -> None:
    rows = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    if family not in ("maxout", "hcn"):
        rows, config = (rows * 50 + 128).clip(0, 255).astype(np.uint8), config | {"dtype": "uint8"}
    torch.manual_seed(0)
    backbone = BACKBONES[family](classes=3, shape=shape, **config)
    if isinstance(backbone, ResNet3DBackbone):
        shorten(backbone)
    assert_graph_equals_torch(backbone, rows)


def shorten(backbone: ResNet3DBackbone) -> None:
    """Leave two blocks in each layer: the first changes the size, and all others are alike."""
    for layer in backbone.modules():
        if isinstance(layer, nn.Sequential) and isinstance(layer[0], Bottleneck):
            assert len(layer) >= 3
            del layer[2:]


@pytest.mark.slow
@pytest.mark.parametrize("kept", [1, 2])
def test_a_users_network_exports_with_its_taps(kept: int) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (8, 16, 16), dtype=np.uint8)
    part = Modality("p", "image", rows, backbone=TinyNet(), features=("first", "second"))
    backbone = build_backbone(part, classes=3, rows=rows)
    if kept == 1:
        backbone.truncate(1)
    assert_graph_equals_torch(backbone, rows)


@pytest.mark.slow
def test_a_shortened_transformer_exports(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    config = transformers.BertConfig(
        vocab_size=9,
        max_position_embeddings=12,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
        num_hidden_layers=4,
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    words = {"[PAD]": 0, "[UNK]": 1, "a": 2, "red": 3, "cat": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rows = np.array(["a red cat", "cat", "a b c d", ""] * 2)
    backbone = build_backbone(
        Modality("t", "text", rows, backbone=f"hf:{tmp_path}"), classes=3, rows=rows
    )
    backbone.truncate(2)
    assert_graph_equals_torch(backbone, rows)
