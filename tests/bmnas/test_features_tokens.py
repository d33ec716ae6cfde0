"""Features that are read token by token, with the masks that backbones give."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_features import CPU, made
from torch import Tensor, nn

from bmnas.features.cache import FeatureCache, open_features
from bmnas.features.reshape import Reading
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Progress
from bmnas.tasks import Modality, Task, check_task
from bmnas.training.fit import fit
from bmnas.training.heads import head_for
from bmnas.training.metrics import evaluate
from bmnas.training.settings import Recipe

SAMPLES = 48


def task() -> Task:
    """Texts of one to four words and pictures; boxes are an extra of each sample."""
    draw = np.random.default_rng(0)
    labels = np.arange(SAMPLES) % 2
    texts = [" ".join([("no", "yes")[k]] * (1 + n % 4)) for n, k in enumerate(labels)]
    pictures = draw.normal(size=(SAMPLES, 8, 8)).astype(np.float32)
    return Task(
        name="words",
        kind="multiclass",
        modalities=(
            Modality("words", "text", np.array(texts)),
            Modality("picture", "image", pictures),
        ),
        labels=labels,
        part=np.arange(SAMPLES) // 4 % 3,
        class_names=("no", "yes"),
        extras={"boxes": draw.random((SAMPLES, 3, 4)).astype(np.float32)},
    )


def opened(folder: Path, given: Task, reading: Reading, **settings: Any) -> FeatureCache:
    return open_features(
        given,
        made(given),
        parts=("train", "validation"),
        reading=reading,
        folder=folder,
        device=CPU,
        progress=Progress(),
        **settings,
    )


def test_tokens_are_the_positions_of_the_raw_features(tmp_path: Path) -> None:
    given = task()
    samples = opened(tmp_path, given, Reading(None)).samples("train")
    backbones, rows = made(given), given.samples("train")
    batch = samples.batch(torch.arange(len(samples)))
    for name, x in zip(samples.names, batch.inputs, strict=True):
        modality, _, feature = name.partition(".")
        backbone = backbones[modality].eval()
        raw = torch.from_numpy(backbone.encode(given.modality(modality).data[rows]))
        with torch.no_grad():
            expected = backbone.features(raw)[backbone.feature_names.index(feature)]
        # The cache computes in other batches, which may round otherwise.
        torch.testing.assert_close(x, expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masks_come_from_the_backbone_and_never_from_zeros(tmp_path: Path, dtype: str) -> None:
    given = task()
    backbones = made(given)
    with torch.no_grad():
        # No number of a feature is zero for lack of content: all of them are.
        for parameter in backbones["words"].stages.parameters():
            parameter.zero_()
    samples = open_features(
        given,
        backbones,
        parts=("train",),
        reading=Reading(None),
        folder=tmp_path,
        device=CPU,
        progress=Progress(),
        dtype=dtype,
    ).samples("train")
    batch = samples.batch(torch.arange(len(samples)))
    words = [len(str(given.modalities[0].data[n]).split()) for n in given.samples("train")]
    for name, x, mask in zip(samples.names, batch.inputs, batch.masks, strict=True):
        assert mask.dtype == torch.bool
        if name.startswith("words"):
            assert not x.any()
            assert mask.sum(1).tolist() == words
        else:
            assert mask.all()


def test_extras_follow_their_samples(tmp_path: Path) -> None:
    given = task()
    samples = opened(tmp_path, given, Reading(None)).samples("train").take(torch.tensor([4, 0, 2]))
    batch = samples.batch(torch.tensor([2, 0]))
    chosen = given.samples("train")[[2, 4]]
    np.testing.assert_array_equal(batch.extras["boxes"].numpy(), given.extras["boxes"][chosen])
    assert batch.arguments == (batch.inputs, batch.masks, batch.extras)
    pooled = opened(tmp_path, given, Reading(4)).samples("train").batch(torch.tensor([0]))
    assert pooled.arguments == (pooled.inputs,)


def test_readings_lie_beside_each_other(tmp_path: Path) -> None:
    given, readings = task(), (Reading(None), Reading(4), Reading(2))
    first = [opened(tmp_path, given, reading) for reading in readings]
    again = [opened(tmp_path, given, reading) for reading in readings]
    assert [cache.keys for cache in again] == [cache.keys for cache in first]
    assert len({cache.keys for cache in first}) == 3
    # Nothing was extracted a second time.
    assert [cache.seconds for cache in again] == [cache.seconds for cache in first]


class Reader(nn.Module):
    """The mean of the tokens that count, and the first box, to logits."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.linear = nn.Linear(sum(widths) + 4, 2)

    def forward(
        self, tokens: list[Tensor], masks: tuple[Tensor, ...], extras: dict[str, Tensor]
    ) -> Tensor:
        means = [
            (x * m[..., None]).sum(1) / m.sum(1, keepdim=True)
            for x, m in zip(tokens, masks, strict=True)
        ]
        logits: Tensor = self.linear(torch.cat([*means, extras["boxes"][:, 0]], dim=1))
        return logits


def test_the_loops_train_and_judge_a_network_that_reads_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    cache, head = opened(tmp_path, task(), Reading(None)), head_for("multiclass")
    train = cache.samples("train")
    network = Reader(list(train.channels.values()))
    fit(
        network,
        network,
        train,
        head,
        Recipe(10, 8, 0.1, 1e-3),
        stage="tokens",
    )
    assert evaluate(network, network, cache.samples("validation"), head, CPU).score > 0.9


def test_extras_are_checked() -> None:
    given = dataclasses.replace(task(), extras={"boxes": np.zeros((3, 4))})
    with pytest.raises(UserError, match=r"extras: boxes: received float64 of shape \(3, 4\)"):
        check_task(given)
