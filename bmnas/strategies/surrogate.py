"""The surrogate of MFAS: what a network will score, told from its architecture by an LSTM.

Legend: N architectures of one depth, D layers, M + 1 numbers that describe a layer of M modalities.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.machine.runtime import one_thread
from bmnas.spaces.space import Encoded

SIZE = 100
EPOCHS = 50
LEARNING_RATE = 1e-3


class Surrogate(nn.Module):
    """Linear(M + 1 to 100), sigmoid, LSTM(100), Linear(100 to 1) of its last output, sigmoid.

    Weights of the linear layers start in U(-0.1, 0.1), their biases at 1.8.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(width, SIZE)
        self.lstm = nn.LSTM(SIZE, SIZE)
        self.output = nn.Linear(SIZE, 1)
        for linear in (self.embed, self.output):
            nn.init.uniform_(linear.weight, -0.1, 0.1)
            nn.init.constant_(linear.bias, 1.8)

    def forward(self, layers: Tensor) -> Tensor:
        """Return scores (N) between 0 and 1 of architectures (D, N, M + 1)."""
        states, _ = self.lstm(self.embed(layers).sigmoid())
        scores: Tensor = self.output(states[-1]).sigmoid().squeeze(-1)
        return scores


class ScorePool:
    """The scores of the architectures that were trained, and the surrogate that learns from them.

    Of an architecture that was trained more than once the highest score counts. Everything is on
    one core of the CPU: its products are small, and a search that is resumed repeats it bit for
    bit.
    """

    def __init__(self, width: int) -> None:
        self.surrogate = Surrogate(width)
        self.optimizer = torch.optim.Adam(self.surrogate.parameters(), lr=LEARNING_RATE)
        self._by_depth: dict[int, dict[Encoded, float]] = {}

    def learn(self, architectures: Sequence[Encoded], scores: Sequence[float]) -> None:
        """Take in more scores, then go on training the surrogate for 50 epochs on all of them.

        An epoch is one step of Adam on the mean squared error for each depth, all architectures of
        that depth at once, depths in the order in which they came.
        """
        for architecture, score in zip(architectures, scores, strict=True):
            known = self._by_depth.setdefault(len(architecture), {})
            known[architecture] = max(score, known.get(architecture, score))
        batches = [
            (_tensor(list(known)), torch.tensor(list(known.values())))
            for known in self._by_depth.values()
        ]
        # Of so little work several threads wait for each other longer than they compute.
        with one_thread():
            for _ in range(EPOCHS):
                for layers, known_scores in batches:
                    loss = F.mse_loss(self.surrogate(layers), known_scores)
                    self.optimizer.zero_grad()
                    loss.backward()
                    self.optimizer.step()

    @torch.no_grad()
    def predict(self, architectures: Sequence[Encoded]) -> list[float]:
        """Return the scores that the surrogate expects of ``architectures`` of one depth."""
        with one_thread():
            predicted: list[float] = self.surrogate(_tensor(architectures)).tolist()
        return predicted


def _tensor(architectures: Sequence[Encoded]) -> Tensor:
    """Return architectures of one depth as (D, N, M + 1)."""
    return torch.tensor(architectures, dtype=torch.float32).transpose(0, 1)
