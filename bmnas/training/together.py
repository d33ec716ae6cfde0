"""Many networks as one: what they do alike is computed at once, whatever their search spaces.

A small network takes longer to call than to compute. ``Together`` records what each of N networks
does (``recording``) and merges the calls that differ in their tensors alone (``merging``). As no
network reads the weights of another, the sum of their losses gives each the gradients of its own.

Legend: N networks, n samples, B batch, L length, C_raw channels of a raw feature, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from bmnas.features.reshape import MASK
from bmnas.features.samples import FeatureSamples
from bmnas.training.fit import fit, require_finite_loss
from bmnas.training.heads import TaskHead
from bmnas.training.merging import Program
from bmnas.training.metrics import Evaluation, Output, predict
from bmnas.training.recording import ApartError, Recorder, Weight, arguments_of
from bmnas.training.settings import ShortTraining


class Together(nn.Module):
    """N networks of any search spaces as one, with the weights that they have.

    ``pooled`` is a batch of every feature that one of them reads, and of their masks, of which
    shape, type and device matter; ``features`` are these features, in the order in which
    ``forward`` takes them. In training all networks see the same dropout masks, as they see the
    same batches: what becomes of one does not depend on those beside it.

    Calls that torch cannot batch are made one by one. Where one of the networks cannot be recorded
    (it asks for the value of a tensor, changes a tensor in place, BatchNorm apart, or has a
    backward pass of its own), all are computed one by one, as ``alone``, with weights of their own.
    So is a single network, as it takes less time by itself.
    """

    def __init__(self, networks: Sequence[nn.Module], pooled: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._networks: Sequence[Any] = tuple(networks)
        self.features = tuple(dict.fromkeys(f for n in self._networks for f in n.features))
        self.alone = nn.ModuleList()
        self._steps, self._more = 0, list[int]()
        self._tensors = [_tensors(network) for network in networks]
        self._places: dict[Weight, tuple[str, int]] = {}
        self._programs: dict[Any, tuple[Program, list[int]] | None] = {}
        names = (*self.features, *(name + MASK for name in self.features))
        inputs = {name: pooled[name] for name in names if name in pooled}
        self._device = next(iter(inputs.values())).device
        found = self._programs[self._key(inputs)] = self._program(inputs)
        if found is None:
            self.alone.extend(networks)

    def forward(
        self,
        pooled: Sequence[Tensor],
        masks: Sequence[Tensor] = (),
        extras: Mapping[str, Tensor] | None = None,
    ) -> Output:
        """Return logits (B, N, K) of all networks from the pooled ``features``, (B, L, C_raw) each.

        Of tokens (B, T, C_raw) also from their ``masks`` (B, T). In training what networks give
        besides their logits follows, for ``loss``.
        """
        named = self._named(pooled, masks)
        key = self._key(named)
        if key not in self._programs:
            self._programs[key] = self._program(named)
        merged = self._programs[key]
        if merged is None:
            return self._one_by_one(named, extras)
        program, self._more = merged
        seed = int(torch.randint(2**62, ())) if self.training else 0
        given = {**self._parameters, **self._buffers, **named}
        logits, *more = program(cast(Mapping[str, Tensor], given), seed, self._device)
        self._steps += self.training
        return (logits.transpose(0, 1), *(x[0] for x in more)) if more else logits.transpose(0, 1)

    def loss(self, head: TaskHead, output: Output, labels: Tensor) -> Tensor:
        """Return the sum of the networks' losses of what ``forward`` gave in training."""
        logits, *rest = (output,) if isinstance(output, Tensor) else output
        if not any(network.has_own_loss for network in self._networks):
            return head.network_losses(logits, labels).sum()
        losses = []
        for own, count, network in zip(logits.unbind(1), self._more, self._networks, strict=True):
            more, rest = rest[:count], rest[count:]
            losses.append(network.loss(head, (own, *more) if more else own, labels))
        return torch.stack(losses).sum()

    @torch.no_grad()
    def unstack(self) -> None:
        """Give every network the weights and the statistics that it has here."""
        for weight, (name, row) in self._places.items():
            weight.of(self._tensors[weight.network][weight.name]).copy_(getattr(self, name)[row])
        for network in self._networks:
            for name, buffer in network.named_buffers():
                if name.endswith("num_batches_tracked"):
                    buffer += self._steps
        self._steps = 0

    def _named(self, pooled: Sequence[Tensor], masks: Sequence[Tensor]) -> dict[str, Tensor]:
        names = [f + MASK for f in self.features if masks]
        return dict(zip((*self.features, *names), (*pooled, *masks), strict=True))

    def _key(self, named: Mapping[str, Tensor]) -> Any:
        return self.training, *((x.shape, x.dtype) for x in named.values())

    def _one_by_one(
        self, named: Mapping[str, Tensor], extras: Mapping[str, Tensor] | None
    ) -> Output:
        if not self.alone:
            self.unstack()
        given = [arguments_of(network.features, named) for network in self._networks]
        outputs = [
            network.train(self.training)(*own, *([extras] if extras and len(own) > 1 else []))
            for network, own in zip(self._networks, given, strict=True)
        ]
        each = [own if isinstance(own, tuple) else (own,) for own in outputs]
        self._more = [len(own) - 1 for own in each]
        logits = torch.stack([own[0] for own in each], dim=1)
        return (logits, *(x for own in each for x in own[1:])) if any(self._more) else logits

    def _program(self, named: Mapping[str, Tensor]) -> tuple[Program, list[int]] | None:
        """Return a program of the networks, and how much each of them gives after its logits.

        None where they are computed one by one.
        """
        if self.alone or len(self._networks) == 1:
            return None
        recorder = Recorder(named)
        try:
            results = [
                recorder.record(number, network.train(self.training), network.features)
                for number, network in enumerate(self._networks)
            ]
        except ApartError:
            if self.training and self._programs:
                raise  # the optimiser has merged weights already
            return None
        wanted = [[each[0] for each in results], *([x] for each in results for x in each[1:])]
        return Program(wanted, self._place), [len(each) - 1 for each in results]

    @torch.no_grad()
    def _place(self, weights: Sequence[Weight]) -> list[tuple[str, int]]:
        """Return stack and row of each of ``weights``; those that have none get a new stack."""
        new = [weight for weight in dict.fromkeys(weights) if weight not in self._places]
        if new:
            whole = [self._tensors[weight.network][weight.name] for weight in new]
            rows = [w.of(x).detach() for w, x in zip(new, whole, strict=True)]
            stack = torch.stack(rows).to(self._device)
            name = f"stack{len(self._parameters) + len(self._buffers)}"
            if isinstance(whole[0], nn.Parameter):
                stack = nn.Parameter(stack, requires_grad=whole[0].requires_grad)
                self.register_parameter(name, stack)
            else:
                self.register_buffer(name, stack)
            self._places.update({weight: (name, row) for row, weight in enumerate(new)})
        return [self._places[weight] for weight in weights]


@dataclass
class Trained:
    """How a network does: its best evaluation, and after how many epochs its training ended."""

    best: Evaluation
    epochs: int = 1
    waited: int = 0

    def see(self, found: Evaluation) -> None:
        """Take note of another epoch; of equal scores the earliest counts."""
        self.epochs, self.waited = self.epochs + 1, self.waited + 1
        if found.score > self.best.score:
            self.best, self.waited = found, 0


def fit_together(
    networks: Sequence[nn.Module] | Together,
    train: FeatureSamples,
    validation: FeatureSamples,
    head: TaskHead,
    training: ShortTraining,
    *,
    device: torch.device,
    stage: str,
) -> list[Trained]:
    """Train ``networks`` on the same batches and return how each does on ``validation``.

    They may be given as ``joined``, to be used further, and end with the weights of the last epoch.
    Of each the last epoch counts, and no other is measured; with ``training.best`` the best one,
    of equal ones the earliest. With ``patience`` a network that has not risen for so many epochs
    has ended; it is computed on until all have. Draws from torch's global generator. Raises
    UserError when a loss is no longer finite.
    """
    together = joined(networks, train, training.batch_size, device)
    found: list[Trained] = []

    def measure() -> bool:
        each = evaluate_together(together, validation, head, device)
        epoch = 1 + max((own.epochs for own in found), default=0)
        for number, now in enumerate(each):
            if not found or found[number].waited != training.patience:
                require_finite_loss(now.loss, stage, epoch)
                if found:
                    found[number].see(now)
        if not found:
            found.extend(map(Trained, each))
        return all(own.waited == training.patience for own in found)

    fit(
        together,
        together,
        train.select(together.features),
        head,
        training,
        stage=stage,
        loss=partial(together.loss, head),
        until=measure if training.best else None,
    )
    together.unstack()
    if training.best:
        return found
    each = evaluate_together(together, validation, head, device)
    return [Trained(own, training.epochs) for own in each]


def evaluate_together(
    networks: Sequence[nn.Module] | Together,
    samples: FeatureSamples,
    head: TaskHead,
    device: torch.device,
) -> list[Evaluation]:
    """Return ``evaluate`` of each of ``networks``, which are computed together."""
    together = joined(networks, samples, 2, device)
    logits, labels = predict(together, together, samples.select(together.features), device)
    # Copies: one may be kept, and the others are not wanted then.
    return [Evaluation.of(own.clone(), labels, head) for own in logits.unbind(1)]


def joined(
    networks: Sequence[nn.Module] | Together,
    samples: FeatureSamples,
    batch_size: int,
    device: torch.device,
) -> Together:
    """Return ``networks`` together, for batches of ``samples``; what is so already is returned."""
    if isinstance(networks, Together):
        return networks
    few = samples.batch(torch.arange(min(batch_size, len(samples))), device)
    names = (*samples.names, *(name + MASK for name in samples.names if few.masks))
    pooled = dict(zip(names, (*few.inputs, *few.masks), strict=True))
    return Together(networks, pooled).to(device)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
