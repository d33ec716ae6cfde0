"""Whether two things belong together: pairs, right and wrong, and the ranks of a gallery.

Legend: n pairs, A first rows of a gallery, S second ones, B batch, W words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bmnas.tasks.kinds import Matching
from bmnas.training.task_head import ServedOutput, TaskHead

#: Among how many of the best a match is looked for.
BEST = 1, 5, 10
_SCALE = 10.0  # of a cosine, for it to decide as logits do


class MatchingHead(TaskHead):
    """A logit for each pair: binary cross-entropy, and recall among the best of a gallery.

    Labels (n, 3) are whether a pair matches, and the numbers of its two rows in a gallery; negative
    where it is in none. The score of a gallery is the mean of the recalls at 1, 5 and 10, of
    firsts among seconds and the other way; that of other pairs is how many are told rightly.
    """

    kind = Matching()
    metric = "mean_recall"
    train_metric = "accuracy_of_pairs"
    summed = 3  # pairs
    decision = "none"
    activation = "sigmoid"

    def sample_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of each pair, twice where it matches (Yu et al., 2020)."""
        match = labels[:, 0].to(logits.dtype)
        return (1 + match) * F.binary_cross_entropy_with_logits(
            logits[:, 0], match, reduction="none"
        )

    def score(self, logits: Tensor, labels: Tensor) -> float:
        """Return the mean recall of a gallery, the share of right decisions of other pairs."""
        if (labels[:, 1:] < 0).any():
            return float(((logits[:, 0] > 0) == (labels[:, 0] > 0)).double().mean())
        found = self.details(logits, labels)
        recalls = [value for name, value in found.items() if "recall" in name]
        return sum(recalls) / len(recalls)

    def details(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Return recalls at 1, 5 and 10 and the median rank, both ways, of a gallery."""
        if (labels[:, 1:] < 0).any():
            return {}
        sizes = (labels[:, 1:].amax(0) + 1).tolist()
        scores, match = (torch.zeros(sizes, dtype=logits.dtype) for _ in range(2))
        place = labels[:, 1], labels[:, 2]
        scores[place], match[place] = logits[:, 0], labels[:, 0].to(match.dtype)
        ways = {"first": (scores, match > 0), "second": (scores.T, (match > 0).T)}
        found: dict[str, float] = {}
        for way, (own, right) in ways.items():
            rank = ranks(own, right).double()
            found |= {f"recall_at_{k}_by_{way}": float((rank <= k).double().mean()) for k in BEST}
            found[f"median_rank_by_{way}"] = float(rank.median())
        return found

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the sigmoid."""
        return logits.sigmoid()

    def decide(self, logits: Tensor) -> Tensor:
        """Return whether each pair (n, 1) matches."""
        return logits > 0

    def served_outputs(self, classes: int, outputs: int) -> tuple[ServedOutput, ...]:
        """Return what is served of each pair."""
        return (
            ServedOutput("logits", outputs, "how well a pair matches: ranks go by it"),
            ServedOutput("probability", 1, "sigmoid of the logit"),
        )


def shared_words(first: Tensor, second: Tensor) -> Tensor:
    """Return how similar the words are (B, 1) that two networks predict by logits (B, W).

    Ten times the cosine of their probabilities. What was learned of a word serves for any text that
    has it, also for one that training did not show.
    """
    one, two = (F.normalize(logits.sigmoid(), dim=1) for logits in (first, second))
    return _SCALE * (one * two).sum(1, keepdim=True)


def ranks(scores: Tensor, right: Tensor) -> Tensor:
    """Return the rank (A,) of the best right one of each row of ``scores`` (A, S), 1 the best.

    Wrong ones with the same score come first, so that equal scores are worth nothing. Rows with
    nothing right are left out.
    """
    scores, right = scores[right.any(1)], right[right.any(1)]
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return 1 + ((scores >= best) & ~right).sum(1)
