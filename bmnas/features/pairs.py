"""Pairs of rows of two modalities, for tasks about what belongs together.

Samples are pairs that do. Training shows each with a false second and a false first beside it;
judging shows every first with every second, a gallery. Rows of samples of one group belong together
in any pair.

Legend: n samples, B batch, A rows of the first modality, S rows of the second.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bmnas.features.samples import Batch, FeatureSamples, RawInput, RawSamples
from bmnas.machine.errors import UserError
from bmnas.tasks.kinds import task_kind
from bmnas.tasks.task import Task

#: With the modality in front, what pairs call the numbers of its rows, many of which are equal.
ROWS = ".rows"
#: What a pair's label says besides whether it matches, where it is in no gallery.
NOWHERE = -1


@dataclass
class Wrong:
    """What samples are shown wrongly paired with: any, or one of the ``hard`` ones (2, n, k).

    Those are numbers of samples whose second row, and of others whose first, is shown with each.
    ``find`` finds them, before every pass of a training.
    """

    find: Callable[[], Tensor] | None = None
    hard: Tensor | None = None

    def renew(self) -> None:
        """Find what is hard by now."""
        if self.find is not None:
            self.hard = self.find()


@dataclass(frozen=True)
class PairSamples(FeatureSamples):
    """Samples whose batches have three pairs for each: it, and two that do not belong together.

    ``labels`` are the groups (n,) of the samples; those of a batch are as ``MatchingHead`` takes
    them. Draws from torch's global generator.
    """

    wrong: Wrong = field(default_factory=Wrong)

    def take(self, chosen: Tensor) -> FeatureSamples:
        """Return the samples ``chosen`` (n,) only; what is hard has other numbers there."""
        return FeatureSamples.take(dataclasses.replace(self, wrong=Wrong()), chosen)

    def batch(self, chosen: Tensor, device: torch.device | None = None) -> Batch:
        """Return 3 B pairs of the samples ``chosen`` (B,) on ``device``.

        On a CPU tokens are as many as the longest of these rows has, and ``extras`` number the
        rows, for networks that encode each once. Accelerators compile for one size.
        """
        first, second, labels = drawn_pairs(self.labels, chosen, self.wrong.hard)
        pairs = paired(self, first, second, labels)
        batch = pairs.batch(torch.arange(len(labels)), device)
        if not batch.masks or (device or self.device).type != "cpu":
            return batch
        counts = [_longest(mask) for mask in batch.masks]
        return Batch(
            [x[:, :count] for x, count in zip(batch.inputs, counts, strict=True)],
            batch.labels,
            tuple(mask[:, :count] for mask, count in zip(batch.masks, counts, strict=True)),
            {name + ROWS: rows for name, rows in pairs.rows.items()},
        )


class RawPairSamples(RawSamples):
    """``PairSamples`` of raw inputs of two modalities."""

    def __init__(
        self, inputs: Sequence[RawInput], labels: Tensor, *, training: bool = False
    ) -> None:
        super().__init__(inputs, labels, training=training)
        self.wrong = Wrong()

    def reading(self, chosen: Tensor) -> Callable[[], Batch]:
        """Return what reads 3 B pairs of the samples ``chosen`` (B,): its draws are made now."""
        *pair, labels = drawn_pairs(self.labels, chosen, self.wrong.hard)
        draws = self.draws(len(labels))

        def read() -> Batch:
            inputs = [x.batch(own, draws) for x, own in zip(self.inputs, pair, strict=True)]
            return Batch(inputs, labels)

        return read


def _longest(mask: Tensor) -> int:
    """Return up to where tokens count in any row of ``mask`` (B, T), at least 1."""
    counted = mask.any(0).nonzero()
    return int(counted[-1]) + 1 if len(counted) else 1


def shown(task: Task, samples: FeatureSamples) -> FeatureSamples:
    """Return ``samples`` as training sees them: of a matching task with wrong pairs beside them."""
    if not task_kind(task.kind).PAIRS:
        return samples
    fields = {field.name: getattr(samples, field.name) for field in dataclasses.fields(samples)}
    return PairSamples(**fields)


def judged(task: Task, samples: FeatureSamples, most: int) -> FeatureSamples:
    """Return ``samples`` as networks are judged on them: as a gallery in a matching task."""
    return gallery(samples, most) if task_kind(task.kind).PAIRS else samples


def drawn_pairs(
    groups: Tensor, chosen: Tensor, hard: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the samples of first and second row (3 B,) of pairs, and their labels (3 B, 3).

    For each of ``chosen`` (B,): it, its first row with another second one, its second with another
    first; others are of another of the ``groups`` (n,), or of what is ``hard`` (2, n, k), see
    ``Wrong``. Raises UserError where there is only one group.
    """
    if hard is None:
        one, other = (others(groups, chosen) for _ in range(2))
    else:
        place = torch.randint(hard.shape[2], (2, len(chosen)))
        one, other = hard[torch.arange(2)[:, None], chosen, place]
    first = torch.stack([chosen, chosen, other], dim=1).flatten()
    second = torch.stack([chosen, one, chosen], dim=1).flatten()
    labels = torch.full((len(first), 3), NOWHERE)
    labels[:, 0] = torch.tensor([1, 0, 0]).repeat(len(chosen))
    return first, second, labels


def others(groups: Tensor, chosen: Tensor) -> Tensor:
    """Return a sample of another of the ``groups`` (n,) for each of ``chosen`` (B,), by chance.

    Raises UserError where there is only one group.
    """
    if (groups == groups[0]).all():
        raise UserError("received samples that all belong together, expected two groups or more")
    drawn = torch.randint(len(groups), chosen.shape)
    while (same := groups[drawn] == groups[chosen]).any():
        drawn = torch.where(same, torch.randint(len(groups), chosen.shape), drawn)
    return drawn


def paired(
    samples: FeatureSamples, first: Tensor, second: Tensor, labels: Tensor
) -> FeatureSamples:
    """Return pairs: the first modality of samples ``first``, the second of samples ``second``."""
    pairs = zip(samples.rows.items(), (first, second), strict=True)
    rows = {name: index[chosen.to(index.device)] for (name, index), chosen in pairs}
    return FeatureSamples(samples.names, samples.arrays, rows, labels, samples.masks)


def gallery(samples: FeatureSamples, most: int) -> FeatureSamples:
    """Return every first row of ``samples`` with every second one, those of a first together.

    Labels (A S, 3) are whether they match, and the numbers of both rows. Where that are more than
    ``most`` pairs, only a part of the groups is taken, evenly spaced.
    """
    groups = samples.labels.numpy()
    kept = np.unique(groups)
    pairs = math.prod(len(torch.unique(index)) for index in samples.rows.values())
    if pairs > most:
        count = max(2, int(len(kept) * math.sqrt(most / pairs)))
        kept = kept[np.linspace(0, len(kept) - 1, count).astype(np.int64)]
    inside = np.flatnonzero(np.isin(groups, kept))
    # One sample of each row, by which to find it.
    one, two = (
        torch.from_numpy(inside[np.unique(index.cpu().numpy()[inside], return_index=True)[1]])
        for index in samples.rows.values()
    )
    first, second = one.repeat_interleave(len(two)), two.repeat(len(one))
    place = torch.arange(len(one)).repeat_interleave(len(two))
    labels = torch.stack(
        [
            (samples.labels[first] == samples.labels[second]).long(),
            place,
            torch.arange(len(two)).repeat(len(one)),
        ],
        dim=1,
    )
    found = paired(samples, first, second, labels)
    extras = {name + ROWS: labels[:, 1 + way] for way, name in enumerate(samples.rows)}
    return dataclasses.replace(found, extras=extras)
