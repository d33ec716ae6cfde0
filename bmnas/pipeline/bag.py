"""A linear model of words beside a trained text network: each learns by itself, then both vote.

A linear model errs elsewhere than a network, and on small data it is often as good. Trained
together, the network would learn only what the linear model has left over.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bmnas.backbones.bag import BagOfWords
from bmnas.backbones.base import Backbone
from bmnas.backbones.words import MaskedHead, WordConvBackbone
from bmnas.features.samples import label_tensor
from bmnas.tasks.rows import read_rows
from bmnas.tasks.task import Modality, Part, Task
from bmnas.training.heads import TaskHead
from bmnas.training.linear import LinearInput, fits
from bmnas.training.weighing import fit_weighing

_MOST_WEIGHTS = 4_000_000  # of more words times classes the network takes care alone


def add_bag(
    backbone: Backbone, task: Task, modality: Modality, head: TaskHead, alone: Tensor
) -> bool:
    """Add a linear model to ``backbone``, trained and on the CPU; tell whether there is one now.

    There is one for texts and tokens where validation gains by it. It learns the train samples; its
    weight decay and the weights of both votes are those of the least loss on validation, where
    ``alone`` (n, K) is what the network says by itself.
    """
    if not isinstance(backbone, WordConvBackbone) or not isinstance(backbone.head, MaskedHead):
        return False
    own = backbone.head.linear
    if backbone.entries * own.out_features > _MOST_WEIGHTS:
        return False
    bag = BagOfWords(backbone.entries, own.out_features)
    train = _ids(backbone, task, modality, "train")
    bag.count(*train[:2])
    inputs, judged = (
        [_input(bag, *ids)] for ids in (train, _ids(backbone, task, modality, "validation"))
    )
    labels, wanted = (
        label_tensor(task, task.having(modality, part)) for part in ("train", "validation")
    )
    tried = list(fits(inputs, labels, judged, head, own.out_features))
    _, (matrix, bias), logits = min(tried, key=lambda one: float(head.loss(one[2], wanted)))
    votes = fit_weighing({"network": alone, "words": logits}, wanted, head)
    if "words" not in votes.weights:
        return False
    network, words = votes.weights.get("network", 0.0), votes.weights["words"]
    with torch.no_grad():
        bag.weights.weight.copy_(words * matrix)
        own.weight.mul_(network)
        own.bias.mul_(network).add_(words * bias + votes.bias)
    backbone.take_bag(bag)
    return True


def _ids(
    backbone: WordConvBackbone, task: Task, modality: Modality, part: Part
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the word numbers (R, T) of a part's rows, what is no padding, each sample's row."""
    used, place = np.unique(modality.rows_of(task.having(modality, part)), return_inverse=True)
    x = torch.from_numpy(backbone.encode(np.asarray(read_rows(modality.data, used))))
    return backbone.known(x), backbone.content(x, torch.bool).squeeze(1), torch.from_numpy(place)


def _input(bag: BagOfWords, ids: Tensor, content: Tensor, place: Tensor) -> LinearInput:
    number = torch.arange(len(ids)).unsqueeze(1).expand_as(ids)
    where = torch.stack([number[content], ids[content]])
    values = bag.values(ids, content)[content]
    shape = (len(ids), len(bag.idf))
    rows = torch.sparse_coo_tensor(where, values, shape, check_invariants=True).coalesce()
    return LinearInput(rows, place)
