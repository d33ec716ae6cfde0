"""A network whose blocks have all operations of their pools, of which one is drawn at a time.

Legend: B batch, T tokens, d width, n operations of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmnas.machine.distributed import broadcast
from bmnas.spaces.mmnas.network import EncoderDecoder, block_of
from bmnas.spaces.mmnas.operations import Around, Block
from bmnas.spaces.mmnas.space import MMnasSpace


class Choice(nn.Module):
    """A block of n operations, of which it computes one: the one that is ``chosen``.

    ``alpha`` (n) says how likely each is to be drawn. With ``gated`` all are computed, and the
    gates of ProxylessNAS (Cai et al., ICLR 2019) hand alpha the gradient of the loss: the output is
    the sum of g_j o_j, g is one at the chosen operation, which alone passes a gradient on, and dL /
    dalpha_i = sum over j of dL / dg_j p_j ([i = j] - p_i), p = softmax(alpha).
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.alpha = nn.Parameter(torch.zeros(len(blocks)))
        self.chosen, self.gated = 0, False

    def forward(self, x: Tensor, around: Around) -> Tensor:
        """Return (B, T, d) from ``x`` (B, T, d)."""
        z: Tensor = self.blocks[self.chosen](x, around)
        if not self.gated:
            return z
        outputs = []
        for place, block in enumerate(self.blocks):
            with torch.no_grad():
                outputs.append(z if place == self.chosen else block(x, around))
        p = self.alpha.softmax(0)
        # One and zeros, with the gradient of the probabilities.
        gates = torch.eye(len(outputs), device=p.device)[self.chosen] + (p - p.detach())
        return torch.stack([g * o for g, o in zip(gates, outputs, strict=True)]).sum(0)


class Supernet(EncoderDecoder):
    """All networks of ``space`` in one, with shared weights; it computes one of them at a time."""

    #: Each step has gradients of other weights: for ``data_parallel``.
    single_path = True

    def __init__(
        self, space: MMnasSpace, channels_raw: Mapping[str, int], *, classes: int, dropout: float
    ) -> None:
        block, pools = block_of(space, dropout), space.pools
        choices = [Choice([block(operation) for operation in pool]) for pool in pools]
        super().__init__(
            space,
            channels_raw,
            encoder=choices[: space.encoder],
            decoder=choices[space.encoder :],
            relates=any("rsa" in pool for pool in pools),
            classes=classes,
            dropout=dropout,
        )
        self.pools = pools

    @property
    def choices(self) -> list[Choice]:
        """The blocks, the encoder's first."""
        return [c for c in (*self.encoder, *self.decoder) if isinstance(c, Choice)]

    def architecture_parameters(self) -> list[nn.Parameter]:
        """Return alpha of every block."""
        return [choice.alpha for choice in self.choices]

    def weight_parameters(self) -> list[nn.Parameter]:
        """Return all other parameters."""
        own = {id(alpha) for alpha in self.architecture_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]

    def probabilities(self) -> list[list[float]]:
        """Return softmax(alpha) of every block."""
        return [alpha.detach().softmax(0).tolist() for alpha in self.architecture_parameters()]

    @torch.no_grad()
    def begin_at(self, operations: Sequence[str]) -> None:
        """Set alpha to 1 for these ``operations``, one a block, and to -1 for all others."""
        for choice, pool, own in zip(self.choices, self.pools, operations, strict=True):
            choice.alpha.copy_(torch.tensor([1.0 if name == own else -1.0 for name in pool]))

    def choose(self, operations: Sequence[str]) -> None:
        """Compute the network of these ``operations``, one a block."""
        for choice, pool, own in zip(self.choices, self.pools, operations, strict=True):
            choice.chosen, choice.gated = pool.index(own), False

    @torch.no_grad()
    def draw(self, *, gated: bool = False) -> None:
        """Compute the network of an operation for each block, drawn by softmax(alpha).

        Draws from torch's global generator; all ranks compute what rank zero has drawn.
        """
        drawn = broadcast([int(alpha.softmax(0).multinomial(1)) for alpha in self._alphas()])
        for choice, place in zip(self.choices, drawn, strict=True):
            choice.chosen, choice.gated = place, gated

    def likeliest(self) -> list[str]:
        """Return the operation with the largest alpha of each block, of equals the first."""
        pairs = zip(self.pools, self._alphas(), strict=True)
        return [pool[int(alpha.argmax())] for pool, alpha in pairs]

    def _alphas(self) -> list[Tensor]:
        # On the CPU, where the same seed draws the same on every machine.
        return [alpha.detach().cpu() for alpha in self.architecture_parameters()]
