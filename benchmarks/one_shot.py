"""The supernet's own ranking: each network of a space as the supernet scores it, untrained.

A supernet whose alpha, beta and gamma are one-hot computes one network with the weights that all
networks share. It knows no order of operands, as both inputs of its steps are one sum, so some
networks get the same score.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from bmnas.genotype import PRIMITIVES, Genotype
from bmnas.metrics import Objective
from bmnas.primitives import Dropout
from bmnas.samples import FeatureSamples
from bmnas.supernet import Supernet

_SURE = 50.0  # a logit whose sigmoid is 1 in float32
_BATCH = 250


def one_shot_scores(
    supernet: Supernet,
    genotypes: Sequence[Genotype],
    samples: FeatureSamples,
    objective: Objective,
    *,
    batch_statistics: bool,
) -> list[float]:
    """Return the score on ``samples`` of ``supernet`` discretised to each of ``genotypes``.

    BatchNorms use the running statistics of the relaxed supernet, which are those of a mixture, or
    with ``batch_statistics`` those of each batch, without dropout. ``supernet`` stays as it is.
    """
    network = copy.deepcopy(supernet).train(batch_statistics)
    for module in network.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    batches = [samples.batch(chosen) for chosen in torch.arange(len(samples)).split(_BATCH)]
    labels = torch.cat([own for _, own in batches])
    known: dict[tuple[bytes, ...], float] = {}
    scores = []
    for genotype in genotypes:
        choices = discretise(network, genotype)
        if choices not in known:
            with torch.no_grad():
                logits = torch.cat([network(features) for features, _ in batches])
            known[choices] = objective.score(logits, labels)
        scores.append(known[choices])
    return scores


@torch.no_grad()
def discretise(supernet: Supernet, genotype: Genotype) -> tuple[bytes, ...]:
    """Make the architecture of ``supernet`` that of ``genotype``; return what tells it from others.

    Genotypes that the supernet cannot tell apart give the same.
    """
    for parameter in supernet.architecture_parameters():
        parameter.fill_(-_SURE)
    nodes = [*genotype.features, *(f"cell{k + 1}" for k in range(len(genotype.cells)))]
    supernet.alpha[..., 0] = supernet.beta[..., 0] = _SURE  # Zero; below, Identity
    for k, cell in enumerate(genotype.cells):
        read = cell.inputs if cell.reads_y() else cell.inputs[:1]
        for name in read:
            supernet.alpha[k, nodes.index(name)] = torch.tensor([-_SURE, _SURE])
        for m, step in enumerate(cell.steps):
            supernet.gamma[k, m, PRIMITIVES.index(step.op)] = _SURE
            for name in step.inputs:
                j = "xy".index(name) if name in "xy" else 1 + int(name.removeprefix("step"))
                supernet.beta[k, m, j] = torch.tensor([-_SURE, _SURE])
    # A step reads one sum through x and through y; what a zero step reads is of no account.
    beta = supernet.beta[..., 1].clone()
    beta[:, :, 0] = beta[:, :, :2].sum(-1)
    beta[:, :, 1] = 0
    beta[supernet.gamma[..., PRIMITIVES.index("zero")] > 0] = 0
    parts = (supernet.alpha, beta, supernet.gamma)
    return tuple(part.detach().numpy().tobytes() for part in parts)
