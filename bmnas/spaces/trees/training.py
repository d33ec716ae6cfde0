"""Training trees with patience, several at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bmnas.features.samples import FeatureSamples
from bmnas.machine.progress import Silent
from bmnas.spaces.trees.forest import Forest
from bmnas.spaces.trees.network import TreeFusion
from bmnas.spaces.trees.settings import EvolutionConfig
from bmnas.training.fit import Group, Recipe, fit, require_finite_loss
from bmnas.training.heads import TaskHead
from bmnas.training.metrics import Evaluation, evaluate_several


@dataclass
class Trial:
    """How a tree does: epochs so far, those since its best one, and what that came to."""

    epochs: int = 0
    waited: int = 0
    best: Evaluation | None = None

    def see(self, found: Evaluation) -> None:
        """Take note of another epoch; of equal scores the earliest counts."""
        self.epochs += 1
        self.waited += 1
        if self.best is None or found.score > self.best.score:
            self.best, self.waited = found, 0


def train_trees(
    networks: Sequence[TreeFusion],
    train: FeatureSamples,
    validation: FeatureSamples,
    head: TaskHead,
    settings: EvolutionConfig,
    *,
    device: torch.device,
    stage: str,
    tell: Callable[[str], None],
) -> list[tuple[int, Evaluation]]:
    """Train ``networks`` on the same batches; return the epochs of each and its best evaluation.

    Each has its own patience, which ends its counting; its part of the computation goes on until
    the last one ends. Draws from torch's global generator. ``tell`` gets a line an epoch. Raises
    UserError when the loss is no longer finite.
    """
    forest = Forest(networks, train.names).to(device)
    trials = [Trial() for _ in networks]
    validation = validation.select(forest.features)

    def over() -> bool:
        found = evaluate_several(forest, forest, validation, head, device)
        running = [n for n, trial in enumerate(trials) if trial.waited < settings.patience]
        for number in running:
            require_finite_loss(found[number].loss, stage, trials[number].epochs + 1)
            trials[number].see(found[number])
        tell(f"epoch {max(trial.epochs for trial in trials)}, {len(running)} in training")
        return all(trial.waited >= settings.patience for trial in trials)

    fit(
        forest,
        forest,
        [Group(list(forest.parameters()), settings.max_lr)],
        train.select(forest.features),
        head,
        # The learning rate stays as it is.
        Recipe(settings.epochs, settings.batch_size, settings.max_lr, weight_decay=0.0),
        device=device,
        checkpoint=None,
        progress=Silent(),
        stage=stage,
        loss=lambda output, labels: head.network_losses(output[-1], labels).sum(),
        until=over,
    )
    return [(trial.epochs, trial.best) for trial in trials if trial.best is not None]
