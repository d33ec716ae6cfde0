"""Gradients over several processes: torch's DistributedDataParallel around a loop's forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bmnas.machine.distribution import ranks

Forward = Callable[[list[Tensor]], Any]


def data_parallel(parameters: Sequence[nn.Parameter], forward: Forward) -> Forward:
    """Return ``forward`` such that backward leaves in ``parameters`` gradients averaged over ranks.

    ``parameters``, which must want gradients now, start everywhere as they are at the writer.
    With one process ``forward`` comes back. One network may have several optimisers, each with
    parameters and a result of its own: what is not among them is not touched.
    """
    if ranks.size() == 1:
        return forward
    # A static graph may leave out parameters, and finds out once which.
    return DistributedDataParallel(_Call(parameters, forward), static_graph=True)


class _Call(nn.Module):
    """A loop's forward as a module that owns the given parameters and nothing else.

    No buffers: they agree as they are, because norms update theirs from all ranks' statistics.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], forward: Forward) -> None:
        super().__init__()
        self.parameters_of_loop = nn.ParameterList(parameters)
        # In a tuple: a module in an attribute would bring its other parameters along.
        self._call = (forward,)

    def forward(self, inputs: list[Tensor]) -> Any:
        return self._call[0](inputs)
