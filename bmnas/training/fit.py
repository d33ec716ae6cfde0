"""Training for a fixed number of epochs: the loop of all that is not Algorithm 1.

Backbones, candidates, a supernet one path at a time, final networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, LRScheduler

from bmnas.features.samples import Samples, batches_per_epoch, epoch_batches, iterate_batches
from bmnas.machine.checkpoint import Checkpoint, Record, Stateful
from bmnas.machine.distributed import (
    broadcast_buffers,
    data_parallel,
    gather_rows,
    mean,
    split_batches,
)
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Progress
from bmnas.training.heads import TaskHead
from bmnas.training.metrics import Forward, Output, logits_of
from bmnas.training.settings import Recipe

#: The loss of what a network returned, a number, for the labels of a batch.
Loss = Callable[[Output, Tensor], Tensor]

_SILENT = Progress()


def fit(
    network: nn.Module,
    forward: Forward,
    samples: Samples,
    head: TaskHead,
    recipe: Recipe,
    *,
    stage: str,
    checkpoint: Checkpoint | None = None,
    progress: Progress = _SILENT,
    loss: Loss | None = None,
    until: Callable[[], bool] | None = None,
) -> list[Record]:
    """Train ``network`` on ``samples`` and return a record of every epoch.

    Trained are its parameters that want gradients, on the device they are on. ``forward`` maps the
    inputs of a batch to logits (B, K), or to a tuple that starts with them; of N networks that are
    trained as one they may be (B, N, K). ``loss`` is what is minimised, by default that of
    ``head`` on the logits. After every epoch ``until`` says whether to stop; what it remembers is
    not in the checkpoint. Raises UserError, naming ``stage``, when the loss is no longer finite.
    """
    optimizer = _optimizer(network, recipe)
    schedule = _schedule(optimizer, recipe, batches_per_epoch(len(samples), recipe.batch_size))
    parts: dict[str, Stateful] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    records = [] if checkpoint is None else checkpoint.restore(parts)
    minimised = loss or (lambda output, labels: head.loss(logits_of(output), labels))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    forward = data_parallel(network, parameters, forward)
    with progress.stage(stage, recipe.epochs) as shown:
        shown.advance(len(records))
        for epoch in range(len(records) + 1, recipe.epochs + 1):
            rate = schedule.get_last_lr()[0]
            network.train()
            batches = epoch_batches(len(samples), recipe.batch_size)
            found, logits, labels = _epoch(
                forward, samples, batches, minimised, optimizer, schedule, parameters[0].device
            )
            score = _score(head, logits, labels)
            records.append(
                {
                    "epoch": epoch,
                    "learning_rate": rate,
                    "train_loss": require_finite_loss(found, stage, epoch),
                    "train_score": score,
                }
            )
            if checkpoint is not None:
                checkpoint.save(parts, records)
            shown.message(f"loss {found:.3f}  {head.metric} {score:.3f}")
            shown.advance()
            if until is not None and until():
                break
    broadcast_buffers(network)
    network.eval()
    return records


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    slow = [] if recipe.backbone_lr is None else [p for n, p in named if n.startswith("backbones.")]
    backbones = set(slow)
    groups = [{"params": [p for _, p in named if p not in backbones], "lr": recipe.max_lr}]
    if slow:
        groups.append({"params": slow, "lr": recipe.backbone_lr})
    return torch.optim.Adam(
        groups,
        weight_decay=recipe.weight_decay,
        decoupled_weight_decay=recipe.decoupled,
        fused=True,
    )


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, batches: int) -> LRScheduler:
    """Return the schedule for epochs of ``batches`` steps."""
    if recipe.first_cycle is None:
        return CosineAnnealingLR(optimizer, T_max=recipe.epochs * batches, eta_min=recipe.min_lr)
    return CosineAnnealingWarmRestarts(
        optimizer, T_0=recipe.first_cycle * batches, T_mult=2, eta_min=recipe.min_lr
    )


def _epoch(
    forward: Forward,
    samples: Samples,
    batches: Iterable[Tensor],
    minimised: Loss,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    device: torch.device,
) -> tuple[float, Tensor, Tensor]:
    """Make a step for each of ``batches``; return the mean loss, all logits and all labels."""
    total, all_logits, all_labels = torch.zeros((), device=device), [], []
    for batch in iterate_batches(samples, split_batches(batches), device):
        output = forward(*batch.arguments)
        loss = minimised(output, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.detach()
        all_logits.append(logits_of(output).detach().float())
        all_labels.append(batch.labels)
    # The device synchronises here, once an epoch.
    mean_loss = float(mean(total)) / len(all_labels)
    logits, labels = (gather_rows(torch.cat(every)) for every in (all_logits, all_labels))
    return mean_loss, logits, labels


def _score(head: TaskHead, logits: Tensor, labels: Tensor) -> float:
    """Return the score of logits (n, K), or the mean score of N networks' (n, N, K)."""
    networks = logits.unbind(1) if logits.dim() == 3 else (logits,)
    return fmean(head.score(own, labels) for own in networks)


def require_finite_loss(loss: float, stage: str, epoch: int) -> float:
    """Return ``loss``; raises UserError when it is NaN or infinite."""
    if not math.isfinite(loss):
        raise UserError(
            f"{stage}: the loss is {loss} in epoch {epoch}: training diverged; lower max_lr in the "
            "configuration, or check the scale of the inputs"
        )
    return loss
