"""The pool of primitive operations (BM-NAS, Eq. 4 to 8): one table, which everything else reads.

The supernet, genotype files, derivation, canonical names, random draws, tables of networks and
drawings know an operation from its entry here and in no other way. ``register`` adds another one:

    class Product(nn.Module):
        def __init__(self, channels, length, dropout): ...
        def forward(self, x, y): return x * y  # (B, L, C) each

    register(Operation("product", label="Product", formula="{0} * {1}", module=Product,
                       symmetric=True))

Standard library only: the modules behind the entries are imported when one is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bmnas.machine.errors import UserError

if TYPE_CHECKING:
    from torch import nn

#: Builds the module of an operation for C channels, length L and a dropout probability. It maps
#: x and y, (B, L, C) each, to (B, L, C).
Factory = Callable[[int, int, float], "nn.Module"]


@dataclass(frozen=True)
class Operation:
    """A primitive operation z = f(x, y): its name in files, and all that others ask about it.

    ``label`` is what drawings call it and ``formula`` how it computes, ``{0}`` being x and ``{1}``
    y. A ``symmetric`` one computes the same of swapped operands, the rows of its weights swapped
    too. Without a ``module`` the output is zero, and the step is dropped from the network. A module
    may have a form of its own in the supernet, see ``primitives.SharedInput``.
    """

    name: str
    label: str
    formula: str
    module: Factory | None
    symmetric: bool = False

    @property
    def is_zero(self) -> bool:
        """Tell whether a step with this operation is dropped from the network."""
        return self.module is None

    def build(self, channels: int, length: int, dropout: float) -> nn.Module:
        """Return a new module; raises ValueError for an operation that computes nothing."""
        if self.module is None:
            raise ValueError(f"operation {self.name} has no module: its steps are dropped")
        return self.module(channels, length, dropout)


def _primitive(name: str) -> Factory:
    """Return the factory of a class in ``primitives``, which is imported when it builds."""

    def build(channels: int, length: int, dropout: float) -> nn.Module:
        primitives = importlib.import_module("bmnas.spaces.cells.primitives")
        module: nn.Module = getattr(primitives, name)(channels, length, dropout)
        return module

    return build


#: The pool by name, in the order of the gamma logits.
OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation("zero", "Zero", "dropped", None),
        Operation("sum", "Sum", "{0} + {1}", _primitive("Sum"), True),
        Operation("attention", "Attention", "query {0}; key, value {1}", _primitive("Attention")),
        Operation(
            "linear_glu",
            "Linear GLU",
            "linear({0}) * sigmoid(linear({1}))",
            _primitive("LinearGLU"),
        ),
        Operation(
            "concat_fc",
            "Concat FC",
            "ReLU(linear(concat({0}, {1})))",
            _primitive("ConcatFC"),
            symmetric=True,
        ),
    )
}

#: The names of the paper's pool, in the paper's order.
PAPER = tuple(OPERATIONS)


def register(operation: Operation) -> None:
    """Add ``operation`` at the end of the pool; raises UserError where its name cannot be used."""
    name = operation.name
    if not name.isidentifier() or name != name.lower():
        raise UserError(
            f"received operation {name!r}, expected a name of lower-case letters, digits and _"
        )
    if name in OPERATIONS:
        raise UserError(f"received operation {name!r}, which is registered already: rename it")
    OPERATIONS[name] = operation


def added_operations() -> tuple[Operation, ...]:
    """Return the operations that were registered, for a process that does not know them."""
    return tuple(operation for name, operation in OPERATIONS.items() if name not in PAPER)


def register_all(operations: Iterable[Operation]) -> None:
    """Add what ``added_operations`` returned in another process."""
    OPERATIONS.update({operation.name: operation for operation in operations})


def operation_names() -> tuple[str, ...]:
    """Return the names of all operations, in the order of the gamma logits."""
    return tuple(OPERATIONS)
