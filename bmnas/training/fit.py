"""Training for a fixed number of epochs: the loop of all that is not Algorithm 1.

Backbones, candidates, a supernet one path at a time, final networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    LRScheduler,
)

from bmnas.features.pairs import PairSamples, RawPairSamples
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
_RISING, _FALL = 4, 0.2  # epochs until a rate is whole, and its part after a fall


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
    most = largest_gradient(head, min(recipe.batch_size, len(samples)), recipe.gpu_batch)
    optimizer = _optimizer(network, recipe, most)
    schedule = _schedule(optimizer, recipe, batches_per_epoch(len(samples), recipe.batch_size))
    parts: dict[str, Stateful] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    records = [] if checkpoint is None else checkpoint.restore(parts)
    minimised = loss or loss_of_logits(head)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    forward = data_parallel(network, parameters, forward)
    with progress.stage(stage, recipe.epochs) as shown:
        shown.advance(len(records))
        for epoch in range(len(records) + 1, recipe.epochs + 1):
            rate = schedule.get_last_lr()[0]
            network.train()
            seen: list[tuple[Tensor, Tensor]] = []
            found = descend(
                forward, samples, recipe.batch_size, minimised, optimizer, schedule, seen=seen
            )
            logits, labels = (gather_rows(torch.cat(each)) for each in zip(*seen, strict=True))
            score = _score(head, logits, labels)
            records.append(
                {
                    "epoch": epoch,
                    "learning_rate": rate,
                    "train_loss": require_finite_loss(found, stage, epoch),
                    "train_score": score,
                }
            )
            if checkpoint is not None and (epoch == recipe.epochs or checkpoint.due):
                checkpoint.save(parts, records)
            shown.message(_told(records[-1], head))
            shown.advance()
            if until is not None and until():
                break
    broadcast_buffers(network)
    network.eval()
    return records


def _told(record: Record, head: TaskHead) -> str:
    """Return the loss and every score of an epoch; a checkpoint may have added some."""
    metrics = {"train_score": head.train_metric or head.metric}
    scores = (
        f"{key.removesuffix('_score')} {metrics.get(key, head.metric)} {value:.3f}"
        for key, value in record.items()
        if key.endswith("_score")
    )
    return "  ".join([f"loss {record['train_loss']:.3f}", *scores])


def _optimizer(network: nn.Module, recipe: Recipe, most: float) -> torch.optim.Optimizer:
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    slow = [] if recipe.backbone_lr is None else [p for n, p in named if n.startswith("backbones.")]
    backbones = set(slow)
    fast = [p for _, p in named if p not in backbones]
    rates = ((fast, recipe.max_lr), (slow, recipe.backbone_lr))
    groups = [{"params": params, "lr": rate} for params, rate in rates if params]
    if recipe.official:
        return clipped_adam(groups, recipe.max_lr, most)
    return torch.optim.Adam(
        groups,
        weight_decay=recipe.weight_decay,
        decoupled_weight_decay=recipe.decoupled,
        fused=True,
    )


def clipped_adam(parameters: Sequence[Any], rate: float, most: float) -> torch.optim.Optimizer:
    """Return Adam as MMnas has it, for gradients of a norm of ``most`` or less."""
    optimizer = torch.optim.Adam(parameters, rate, (0.9, 0.98), eps=1e-9 * most, fused=True)
    own = [p for group in optimizer.param_groups for p in group["params"]]

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(own, most)

    optimizer.register_step_pre_hook(clip)
    return optimizer


def largest_gradient(head: TaskHead, batch: int, gpu_batch: int = 0) -> float:
    """Return how large a gradient may be in the official training of MMnas.

    Where losses are summed there, over what a GPU has of a batch, a norm of one is the most: of
    their mean, which is what is minimised here, it is one by the number of terms.
    """
    return 1 / max(1, head.summed * min(gpu_batch or batch, batch))


def official_schedule(
    optimizer: torch.optim.Optimizer, batches: int, falls: Sequence[int] = ()
) -> LRScheduler:
    """Return the schedule of MMnas for epochs of ``batches`` steps.

    A quarter, a half and three quarters of the rate in the first three epochs, then all of it, a
    fifth of what it was from each of the epochs ``falls`` on, which are counted from 0.
    """

    def factor(step: int) -> float:
        epoch = step // batches
        fallen = sum(epoch >= fall for fall in falls)
        return min(epoch + 1, _RISING) / _RISING * _FALL**fallen

    return LambdaLR(optimizer, factor)


def cosine_schedule(
    optimizer: torch.optim.Optimizer, steps: int, min_lr: float, warmup_steps: int
) -> LRScheduler:
    """Return a cosine of ``steps`` down to ``min_lr``, times a rise in the first ``warmup_steps``.

    Of a short training that is a quarter of its steps, or it would learn next to nothing.
    """
    rise = min(warmup_steps, steps // 4)
    if not rise:
        return CosineAnnealingLR(optimizer, T_max=steps, eta_min=min_lr)

    def factor_of(peak: float) -> Callable[[int], float]:
        least = min_lr / peak if peak else 0.0  # a rate of 0 stays there

        def factor(step: int) -> float:
            fallen = least + (1 - least) * (1 + math.cos(math.pi * step / steps)) / 2
            return fallen * min(1.0, (step + 1) / rise)

        return factor

    return LambdaLR(optimizer, [factor_of(group["lr"]) for group in optimizer.param_groups])


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, batches: int) -> LRScheduler:
    """Return the schedule for epochs of ``batches`` steps."""
    if recipe.official:
        return official_schedule(optimizer, batches, recipe.falls)
    if recipe.first_cycle is None:
        steps = recipe.epochs * batches
        rise = min(recipe.warmup_steps, steps // 4)
        return cosine_schedule(optimizer, round(steps / recipe.part), recipe.min_lr, rise)
    return CosineAnnealingWarmRestarts(
        optimizer, T_0=recipe.first_cycle * batches, T_mult=2, eta_min=recipe.min_lr
    )


def loss_of_logits(head: TaskHead) -> Loss:
    """Return the task's loss of the logits of whatever a network returns."""
    return lambda output, labels: head.loss(logits_of(output), labels)


def descend(
    forward: Forward,
    samples: Samples,
    batch_size: int,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler | None = None,
    *,
    seen: list[tuple[Tensor, Tensor]] | None = None,
) -> float:
    """Make one pass over ``samples`` in random batches and return its mean loss.

    The logits and labels of each batch are put into ``seen``.
    """
    if isinstance(samples, PairSamples | RawPairSamples):
        samples.wrong.renew()
    device = optimizer.param_groups[0]["params"][0].device
    total, count = torch.zeros((), device=device), 0
    batches = split_batches(epoch_batches(len(samples), batch_size))
    for batch in iterate_batches(samples, batches, device):
        output = forward(*batch.arguments)
        minimised = loss(output, batch.labels)
        optimizer.zero_grad()
        minimised.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        total += minimised.detach()
        count += 1
        if seen is not None:
            seen.append((logits_of(output).detach().float(), batch.labels))
    # The device synchronises here, once a pass.
    return float(mean(total)) / count


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
