"""Many networks as one: what they do alike is computed at once, whatever their search spaces.

A small network takes longer to call than to compute. ``Together`` records what each of N networks
does (``recording``) and merges the calls that differ in their tensors alone (``merging``). As no
network reads the weights of another, the sum of their losses gives each the gradients of its own.

Legend: N networks, n samples, B batch, L length, C_raw channels of a raw feature, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from bmnas.features.samples import FeatureSamples
from bmnas.machine.distributed import broadcast_buffers
from bmnas.machine.progress import Progress
from bmnas.training.fit import Group, Recipe, fit, require_finite_loss
from bmnas.training.heads import TaskHead
from bmnas.training.merging import Program
from bmnas.training.metrics import Evaluation, Output, evaluate_several
from bmnas.training.recording import ApartError, Recorder, Weight


class Together(nn.Module):
    """N networks of any search spaces as one, with the weights that they have.

    ``pooled`` is a batch of every feature that one of them reads, of which shape, type and device
    matter; ``features`` are these features, in the order in which ``forward`` takes them. In
    training all networks see the same dropout masks, as they see the same batches: what becomes of
    one does not depend on those beside it.

    What cannot be merged is computed one by one: functions that torch cannot batch, and whole
    networks that ask for the value of a tensor, change a tensor in place (BatchNorm apart), or have
    a backward pass of their own. Networks that are so in training are ``alone``, with weights of
    their own. So is a single network, as it takes less time by itself.
    """

    def __init__(self, networks: Sequence[nn.Module], pooled: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._networks: Sequence[Any] = tuple(networks)
        self.features = tuple(dict.fromkeys(f for n in self._networks for f in n.features))
        self._steps, self._extra = 0, list[int]()
        self._tensors = [_tensors(network) for network in networks]
        self._places: dict[Weight, tuple[str, int]] = {}
        self._programs: dict[Any, tuple[Program, list[int]]] = {}
        inputs = [pooled[name] for name in self.features]
        self._device = inputs[0].device
        self._apart = {mode: {0} if len(networks) == 1 else set() for mode in (True, False)}
        self._programs[self._key(inputs)] = self._program(inputs)
        self.alone = nn.ModuleDict({str(number): networks[number] for number in self._apart[True]})
        self._apart[False].update(self._apart[True])

    def forward(self, pooled: Sequence[Tensor]) -> Output:
        """Return logits (B, N, K) of all networks from the pooled ``features``, (B, L, C_raw) each.

        In training what networks give besides their logits follows, for ``loss``.
        """
        key = self._key(pooled)
        if key not in self._programs:
            self._programs[key] = self._program(pooled)
        program, extra = self._programs[key]
        named = dict(zip(self.features, pooled, strict=True))
        seed = int(torch.randint(2**62, ())) if self.training else 0
        given = {**self._parameters, **self._buffers, **named}
        found = program(cast(Mapping[str, Tensor], given), seed, self._device)
        self._steps += self.training
        self._extra = extra
        if len(extra) == len(self._networks) and not any(extra):
            return found[0].transpose(0, 1)
        logits = [own for merged in found[: min(1, len(extra))] for own in merged]
        rest = iter(found[1:])
        more = [[next(rest)[0] for _ in range(count)] for count in extra]
        for number in sorted(self._apart[self.training]):
            network = self._networks[number].train(self.training)
            if str(number) not in self.alone:
                self.unstack()
            own = network([named[name] for name in network.features])
            first, *others = own if isinstance(own, tuple) else (own,)
            logits.insert(number, first)
            more.insert(number, others)
        self._extra = [len(each) for each in more]
        every = torch.stack(logits, dim=1)
        return (every, *(x for each in more for x in each)) if any(more) else every

    def loss(self, head: TaskHead, output: Output, labels: Tensor) -> Tensor:
        """Return the sum of the networks' losses of what ``forward`` gave in training."""
        logits, *rest = (output,) if isinstance(output, Tensor) else output
        if not any(network.has_own_loss for network in self._networks):
            return head.network_losses(logits, labels).sum()
        losses = []
        for own, count, network in zip(logits.unbind(1), self._extra, self._networks, strict=True):
            more, rest = rest[:count], rest[count:]
            losses.append(network.loss(head, (own, *more) if more else own, labels))
        return torch.stack(losses).sum()

    @torch.no_grad()
    def unstack(self) -> None:
        """Give every network the weights and the statistics that it has here."""
        for weight, (name, row) in self._places.items():
            weight.of(self._tensors[weight.network][weight.name]).copy_(getattr(self, name)[row])
        for number, network in enumerate(self._networks):
            for name, buffer in network.named_buffers():
                if name.endswith("num_batches_tracked") and str(number) not in self.alone:
                    buffer += self._steps
        self._steps = 0

    def _key(self, pooled: Sequence[Tensor]) -> Any:
        return self.training, *((x.shape, x.dtype) for x in pooled)

    def _program(self, pooled: Sequence[Tensor]) -> tuple[Program, list[int]]:
        """Return a program of the networks, and how much each of them gives after its logits."""
        recorder = Recorder(dict(zip(self.features, pooled, strict=True)))
        results = []
        for number, network in enumerate(self._networks):
            if number not in self._apart[self.training]:
                try:
                    network.train(self.training)
                    results.append(recorder.record(number, network, network.features))
                except ApartError:
                    if self.training and self._programs:
                        raise  # its weights are merged already
                    self._apart[self.training].add(number)
        rest = [[value] for each in results for value in each[1:]]
        wanted = [[each[0] for each in results], *rest] if results else []
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
    recipe: Recipe,
    *,
    max_lr: float,
    device: torch.device,
    stage: str,
    progress: Progress | None = None,
    patience: int | None = None,
    keep: Literal["best", "last"] = "best",
    tell: Callable[[int, int], None] | None = None,
) -> list[Trained]:
    """Train ``networks`` on the same batches and return how each does on ``validation``.

    They may be given as ``joined``, to be used further, and end with the weights of the last epoch.
    Of each the best epoch counts, of equal ones the earliest; all are measured. With ``keep``
    "last" the last one counts, and no other is measured. With ``patience`` a network that has not
    risen for so many epochs has ended; it is computed on until all have. ``tell`` is called after
    an epoch with its number and how many networks had not ended before it. Draws from torch's
    global generator. Raises UserError when a loss is no longer finite.
    """
    together = joined(networks, train, recipe.batch_size, device)
    found: list[Trained] = []

    def measure() -> bool:
        broadcast_buffers(together)
        each = evaluate_together(together, validation, head, device)
        running = [n for n in range(len(each)) if not found or found[n].waited != patience]
        for n in running:
            require_finite_loss(each[n].loss, stage, found[n].epochs + 1 if found else 1)
        if found:
            for n in running:
                found[n].see(each[n])
        else:
            found.extend(map(Trained, each))
        if tell is not None:
            tell(max(own.epochs for own in found), len(running))
        return all(own.waited == patience for own in found)

    fit(
        together,
        together,
        [Group(list(together.parameters()), max_lr)],
        train.select(together.features),
        head,
        recipe,
        device=device,
        checkpoint=None,
        progress=progress or Progress(),
        stage=stage,
        loss=partial(together.loss, head),
        until=measure if keep == "best" else None,
    )
    together.unstack()
    if keep == "last":
        each = evaluate_together(together, validation, head, device)
        found = [Trained(own, recipe.epochs) for own in each]
    return found


def evaluate_together(
    networks: Sequence[nn.Module] | Together,
    samples: FeatureSamples,
    head: TaskHead,
    device: torch.device,
) -> list[Evaluation]:
    """Return ``evaluate`` of each of ``networks``, which are computed together."""
    together = joined(networks, samples, 2, device)
    return evaluate_several(together, together, samples.select(together.features), head, device)


def joined(
    networks: Sequence[nn.Module] | Together,
    samples: FeatureSamples,
    batch_size: int,
    device: torch.device,
) -> Together:
    """Return ``networks`` together, for batches of ``samples``; what is so already is returned."""
    if isinstance(networks, Together):
        return networks
    few = samples.batch(torch.arange(min(batch_size, len(samples)))).inputs
    pooled = {name: x.to(device) for name, x in zip(samples.names, few, strict=True)}
    return Together(networks, pooled).to(device)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
