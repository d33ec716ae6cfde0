"""Several supernets of one shape, the members, trained as one program.

Legend: S members, B batch, L length, C channels, K classes.

Every parameter and buffer of the members is one tensor with an axis S, so that an optimiser sees it
once and one product serves all members where their input is the same. The sum over the members of
each one's loss has as its gradients each member's own. Where the kernels of ``native`` are
not available the members run one after another, which gives the same up to rounding and no gain.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bmnas.spaces.cells import native
from bmnas.spaces.cells.native.masks import in_turn
from bmnas.spaces.cells.supernet import Supernet, has_kernels

# Side by side with those of the other members: a feature meets all of them in one product.
_SIDE_BY_SIDE = re.compile(r"projections\.\d+\.weight")


class Supernets(nn.Module):
    """``members``, which must be alike in everything but their values, as one module.

    ``stacked`` has the parameters and buffers of a supernet with a leading axis S; the weights of
    its projections are (C_raw, S, C). It holds them, and cannot be called.
    """

    def __init__(self, members: Sequence[Supernet]) -> None:
        super().__init__()
        self.count = len(members)
        self.stacked = copy.deepcopy(members[0])
        states = [member.state_dict() for member in members]
        for path, module in self.stacked.named_modules():
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            for name, value in own:
                whole = f"{path}.{name}".removeprefix(".")
                tensor = torch.stack([state[whole] for state in states], _axis(whole))
                is_parameter = isinstance(value, nn.Parameter)
                setattr(module, name, nn.Parameter(tensor) if is_parameter else tensor)
        self.stacked.forget_weights()
        # In a tuple, so that its parameters are not among this module's.
        self._form = (copy.deepcopy(members[0]),)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (S, B, K) from the pooled features, (B, L, C_raw) each."""
        if self.training and has_kernels(features[0]):
            return native.members_logits(self.stacked, features, *self.stacked.probabilities())
        form, states = self._form[0].train(self.training), self._states()
        numbers = in_turn(features[0], self.count)
        return torch.stack([functional_call(form, states[s], (features,)) for s in numbers])

    def member(self, number: int) -> Supernet:
        """Return an ordinary supernet with a copy of the values of member ``number``, from 0."""
        supernet = copy.deepcopy(self._form[0]).train(self.training)
        supernet.load_state_dict(self._states()[number])
        return supernet

    def architecture_parameters(self) -> list[nn.Parameter]:
        """Return alpha, beta and gamma of all members."""
        return self.stacked.architecture_parameters()

    def weight_parameters(self) -> list[nn.Parameter]:
        """Return every parameter that is not an architecture parameter."""
        return self.stacked.weight_parameters()

    def _states(self) -> list[dict[str, Tensor]]:
        """Return views of every member's parameters and buffers, under a supernet's own names."""
        tensors = dict(self.stacked.named_parameters()) | dict(self.stacked.named_buffers())
        parts = {name: tensor.unbind(_axis(name)) for name, tensor in tensors.items()}
        return [{name: part[s] for name, part in parts.items()} for s in range(self.count)]


def _axis(name: str) -> int:
    return 1 if _SIDE_BY_SIDE.fullmatch(name) else 0
