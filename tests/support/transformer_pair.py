"""An image and a text transformer of Hugging Face transformers, fused; nothing of it is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import tokenizers
import torch
import transformers
from torch import nn

from bmnas.backbones.hf import HFBackbone
from bmnas.pipeline.trained import TrainedNetwork
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.tasks.pictures import PicturePlan
from bmnas.tasks.task import Modality, Task
from tests.support.tiny_networks import tiny_network

_PATCH = 16
_CLASSES = ("cat", "dog", "owl")


def transformer_pair(
    *,
    layers: int = 2,
    width: int = 16,
    heads: int = 2,
    side: int = 32,
    words: int = 6,
    vocabulary: int = 30,
    samples: Sequence[int] = (12, 6, 9),
) -> tuple[Task, TrainedNetwork]:
    """Return random images and texts, and a network of ViT and BERT with a Cell on their ends.

    Both have ``layers`` of ``width`` channels; ``side`` is that of the images, ``words`` the tokens
    of a text, ``samples`` the rows of train, validation and test.
    """
    draw, rows = np.random.default_rng(0), sum(samples)
    torch.manual_seed(0)
    common = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
    }
    numbers = {"[PAD]": 0, "[UNK]": 1} | {f"w{n}": n for n in range(2, vocabulary)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    text = HFBackbone(
        classes=len(_CLASSES),
        model=transformers.BertConfig(vocab_size=vocabulary, **common).to_dict(),
        reader={
            "type": "text",
            "shape": [words],
            "dtype": "int64",
            "tokenizer": json.loads(tokenizer.to_str()),
        },
        processor={"pad": 0, "fill": 0, "cls": True},
    )
    pixels = PicturePlan(
        size=(side, side),
        keeps=False,
        crop=None,
        resample=2,
        scale=1 / 255,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        rounds=False,
        antialias=False,
    )
    image = HFBackbone(
        classes=len(_CLASSES),
        model=transformers.ViTConfig(image_size=side, patch_size=_PATCH, **common).to_dict(),
        reader={"type": "image", "shape": [side, side, 3], "dtype": "uint8"},
        processor=pixels.to_dict(),
    )
    with torch.no_grad():
        for module in (*text.modules(), *image.modules()):
            # A new bias is zeros, and one like another is shared.
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.normal_(std=0.1)
    texts = [
        " ".join(f"w{n}" for n in draw.integers(2, vocabulary, draw.integers(1, words + 1)))
        for _ in range(rows)
    ]
    images = draw.integers(0, 256, (rows, side, side, 3), dtype=np.uint8)
    task = Task(
        name="pair",
        kind="multiclass",
        modalities=(
            Modality("image", "image", images, backbone=image),
            Modality("text", "text", np.array(texts), backbone=text),
        ),
        labels=np.arange(rows) % len(_CLASSES),
        part=np.repeat([0, 1, 2], samples),
        class_names=_CLASSES,
    )
    ends = (f"image.{image.feature_names[-1]}", f"text.{text.feature_names[-1]}")
    steps = (Step("attention", ("x", "y")), Step("concat_fc", ("step1", "y")))
    return task, tiny_network(task, Genotype(ends, width, 4, (Cell(ends, steps),)))
