"""Which region of a picture a text means: a score and a better box for each (Yu et al., 2020).

A network hands on its regions with what it says of them: nine numbers each, a score, four deltas
and the corners x1, y1, x2, y2 of the region, first and last pixel. One without area is padding.

Legend: n samples, R regions, N networks, K = 9 R outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bmnas.backbones.regions import areas
from bmnas.tasks.kinds import Grounding
from bmnas.training.task_head import ServedOutput, TaskHead, calibration_error

#: Intersection over union from which a box is the one that is meant.
HIT = 0.5
_NUMBERS = 9
_DEVIATIONS = 0.1, 0.1, 0.2, 0.2  # by which deltas are divided, as in Fast R-CNN
_MOST = math.log(1000 / 16)  # that a region grows, as a delta
_BOX_LOSS = 0.5  # weight of the deltas' loss
_SHARPER = -5.0, 3.0  # between which the logarithm of a sharpness is looked for


class GroundingHead(TaskHead):
    """One of the regions: KL divergence and smooth L1, and how often the box is right.

    Regions with an intersection over union of one half or more share the probability in proportion
    to it; a sample without any has no loss. The deltas are those of Fast R-CNN (Girshick, 2015).
    """

    kind = Grounding()
    metric = "accuracy_at_iou_50"
    summed = 0
    decision = "none"
    activation = "softmax"
    sharpens = True

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the divergence, a mean over samples, and half the deltas' loss, over regions."""
        divergence, apart, good = self._terms(logits, labels)
        found = good.any(-1).sum().clamp(min=1), good.sum().clamp(min=1)
        return divergence.sum() / found[0] + _BOX_LOSS * apart.sum() / found[1]

    def network_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss (N,) of each of N networks from logits (n, N, K)."""
        return torch.stack([self.loss(own, labels) for own in logits.unbind(1)])

    def sample_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each sample as if it were the only one."""
        divergence, apart, good = self._terms(logits, labels)
        return divergence + _BOX_LOSS * apart.sum(-1) / good.sum(-1).clamp(min=1)

    def _terms(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return divergences (n,), losses of deltas (n, R), and which regions are good ones."""
        scores, deltas, boxes = _parts(logits)
        overlap = _overlaps(boxes, labels)
        good = overlap >= HIT
        target = torch.where(good, overlap, 0)
        target = target / target.sum(-1, keepdim=True).clamp(min=HIT)
        divergence = F.kl_div(scores.log_softmax(-1), target, reduction="none").sum(-1)
        wanted = deltas_of(boxes, labels[:, None])
        apart = F.smooth_l1_loss(deltas, wanted, reduction="none").sum(-1)
        return divergence, torch.where(good, apart, 0), good

    def score(self, logits: Tensor, labels: Tensor) -> float:
        """Return how many boxes share half or more of their area with the right one."""
        return float(self._hits(logits, labels).double().mean())

    def details(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Return how often one of the regions is good: what choosing alone could reach."""
        _, _, boxes = _parts(logits)
        good = (_overlaps(boxes, labels) >= HIT).any(-1)
        return {"proposal_recall": float(good.double().mean())}

    def columns(self, logits: Tensor, labels: Tensor) -> dict[str, Sequence[object]]:
        """Return the corners of the right box and of the found one, overlap and probability."""
        boxes = self.boxes(logits)
        named = {"label": labels, "prediction": boxes}
        corners = {
            f"{name} {corner}": each.tolist()
            for name, own in named.items()
            for corner, each in zip(("x1", "y1", "x2", "y2"), own.T, strict=True)
        }
        sure = self.probabilities(logits).amax(-1)
        more = {"overlap": overlaps(boxes, labels), "probability": sure}
        return {**corners, **{name: each.tolist() for name, each in more.items()}}

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax (n, R) of the scores."""
        return _parts(logits)[0].softmax(-1)

    def calibration_error(self, logits: Tensor, labels: Tensor) -> float:
        """Return the error of the probability of the region that is chosen."""
        return calibration_error(self.probabilities(logits).amax(-1), self._hits(logits, labels))

    def sharpness(self, logits: Tensor, labels: Tensor) -> float:
        """Return what scores are to be multiplied by: temperature scaling (Guo et al., 2017).

        With it the probability of the region that is chosen suits best how often its box is right;
        which one is chosen stays.
        """
        from scipy.optimize import minimize_scalar

        scores, hits = _parts(logits.double())[0], self._hits(logits, labels).double()

        def loss(log: float) -> float:
            sure = (scores * math.exp(log)).softmax(-1).amax(-1)
            return float(F.binary_cross_entropy(sure.clamp(max=1.0), hits))

        return math.exp(minimize_scalar(loss, bounds=_SHARPER, method="bounded").x)

    def decide(self, logits: Tensor) -> Tensor:
        """Return the number (n, 1) of the region with the highest score."""
        return _parts(logits)[0].argmax(-1, keepdim=True)

    def boxes(self, logits: Tensor) -> Tensor:
        """Return the box (n, 4) of that region, moved by its deltas.

        It ends where the last of the regions does: they cover the picture, whose size is not known
        here.
        """
        _, deltas, boxes = _parts(logits)
        chosen = self.decide(logits)[..., None].expand(-1, -1, len(_DEVIATIONS))
        found = moved(boxes.gather(1, chosen), deltas.gather(1, chosen)).squeeze(1)
        return torch.minimum(found, boxes[..., 2:].amax(1).repeat(1, 2))

    def alike(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Return scores and deltas (n, 5 R), and corners (n, 4 R), as large as pictures."""
        regions = logits.unflatten(-1, (-1, _NUMBERS))
        return regions[..., :-4].flatten(1), regions[..., -4:].flatten(1)

    def _hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        return overlaps(self.boxes(logits), labels) >= HIT

    def served_outputs(self, classes: int, outputs: int) -> tuple[ServedOutput, ...]:
        """Return what is served of each sample: all regions, the box that is meant, how sure."""
        return (
            ServedOutput("logits", outputs, "nine of each region: score, deltas, corners"),
            ServedOutput("box", 4, "corners x1, y1, x2, y2 of what is meant, in pixels"),
            ServedOutput("probability", 1, "softmax of the scores at the region it comes from"),
        )

    def served(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Return logits (n, K), boxes (n, 4) and probabilities (n, 1)."""
        return logits, self.boxes(logits), self.probabilities(logits).amax(-1, keepdim=True)


def _parts(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores (n, R), deltas (n, R, 4) and corners (n, R, 4) of logits (n, K)."""
    regions = logits.unflatten(-1, (-1, _NUMBERS))
    boxes = regions[..., -4:].detach()
    # Neither -inf, of which a product with 0 is NaN, nor what half precision has no room for.
    least = max(-1e9, torch.finfo(logits.dtype).min / 2)
    return torch.where(areas(boxes), regions[..., 0], least), regions[..., 1:5], boxes


def _overlaps(boxes: Tensor, labels: Tensor) -> Tensor:
    """Return the overlaps (n, R) of regions (n, R, 4) with labels (n, 4): of padding none."""
    return overlaps(boxes, labels[:, None]) * areas(boxes)


def overlaps(one: Tensor, two: Tensor) -> Tensor:
    """Return the intersection over union (…) of boxes (…, 4) in pixels, both corners inside."""
    low, high = torch.maximum(one[..., :2], two[..., :2]), torch.minimum(one[..., 2:], two[..., 2:])
    common = (high - low + 1).clamp(min=0).prod(-1)
    return common / (_sizes(one).prod(-1) + _sizes(two).prod(-1) - common)


def deltas_of(boxes: Tensor, wanted: Tensor) -> Tensor:
    """Return the deltas (…, 4) that move ``boxes`` (…, 4) to ``wanted`` (…, 4)."""
    size, goal = _sizes(boxes), _sizes(wanted)
    shift = (wanted[..., :2] + goal / 2 - boxes[..., :2] - size / 2) / size
    return torch.cat([shift, (goal / size).log()], dim=-1) / boxes.new_tensor(_DEVIATIONS)


def moved(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Return ``boxes`` (…, 4) moved by ``deltas`` (…, 4); none begins before the first pixel."""
    shift, grown = (deltas * boxes.new_tensor(_DEVIATIONS)).split(2, dim=-1)
    size = _sizes(boxes)
    middle, size = boxes[..., :2] + size / 2 + shift * size, size * grown.clamp(max=_MOST).exp()
    low = middle - size / 2
    return torch.cat([low, low + size - 1], dim=-1).clamp(min=0)


def _sizes(boxes: Tensor) -> Tensor:
    """Return widths and heights (…, 2) of boxes (…, 4)."""
    return boxes[..., 2:] - boxes[..., :2] + 1
