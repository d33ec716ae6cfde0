"""Many fusion trees as one network: the numbers of each alone, in a few large products.

Legend: B batch, L length, P trees, N nodes, M merges, W width of a tree, C_raw channels of a raw
feature, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.spaces.trees.network import Leaf, TreeFusion, joined, l2_normalised, signed_sqrt
from bmnas.spaces.trees.tree import OPERATIONS, Tree
from bmnas.training.metrics import Output

#: The number of a tree, and that of a token in it.
_Place = tuple[int, int]


class Leaves(nn.Module):
    """One feature at the leaves of P trees, see ``Leaf``; there is no dropout.

    They see the same batches, so they share the statistics of their BatchNorm. Its scale and
    shift, which they do not share, are folded into the linear layers.
    """

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(leaves[0].norm.num_features, affine=False)
        self.scale = _stacked([leaf.norm.weight for leaf in leaves])
        self.shift = _stacked([leaf.norm.bias for leaf in leaves])
        self.weight = _stacked([leaf.dense.weight for leaf in leaves])
        self.bias = _stacked([leaf.dense.bias for leaf in leaves])

    def forward(self, x: Tensor) -> Tensor:
        """Return the leaves (P, B, W) of a vector (B, C_raw)."""
        weight = self.weight * self.scale.unsqueeze(1)
        bias = self.bias + (self.weight @ self.shift.unsqueeze(2)).squeeze(2)
        # One product for all trees.
        h = F.linear(self.norm(x), weight.flatten(0, 1), bias.flatten())
        leaves: Tensor = h.relu().view(-1, *bias.shape).transpose(0, 1)
        return leaves


class Merges(nn.Module):
    """The linear layers of M nodes ``concat_dense``, each with its own input."""

    def __init__(self, merges: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = _stacked([merge.weight for merge in merges])
        self.bias = _stacked([merge.bias for merge in merges])

    def forward(self, x: Tensor) -> Tensor:
        """Return (M, B, W) from (M, B, 2 W)."""
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.transpose(1, 2))


@dataclass(frozen=True)
class Level:
    """Nodes of all trees that can be computed at once.

    ``operations`` says which there are and where their nodes are. ``order`` brings the outputs
    that nothing has read yet into the order: left operands of the first operation's nodes, right
    ones, those of the next operation, and so on, then what is read later.
    """

    operations: tuple[tuple[str, tuple[_Place, ...]], ...]
    order: tuple[int, ...]


class Forest(nn.Module):
    """The networks of P trees of one width, with the weights that they have, without dropout.

    Statistics of their BatchNorms begin anew. ``features`` are those that a tree reads, in the
    order of ``names``.
    """

    def __init__(self, networks: Sequence[TreeFusion], names: Sequence[str]) -> None:
        super().__init__()
        self.features = tuple(n for n in names if any(n in each.features for each in networks))
        self.leaves = nn.ModuleList(
            Leaves([each.leaf(name) for each in networks if name in each.features])
            for name in self.features
        )
        trees = [network.tokens for network in networks]
        levels, roots = arranged(trees, self.features)
        self.operations = [
            [(operation, len(places)) for operation, places in level.operations] for level in levels
        ]
        self.merges = nn.ModuleList(
            Merges([networks[tree].merge(token) for tree, token in places])
            for level in levels
            for operation, places in level.operations
            if operation == "concat_dense"
        )
        for number, level in enumerate(levels):
            self.register_buffer(f"order{number}", torch.tensor(level.order), persistent=False)
        self.register_buffer("roots", torch.tensor(roots), persistent=False)
        self.norm = nn.BatchNorm1d(len(networks) * networks[0].norm.num_features)
        with torch.no_grad():
            self.norm.weight.copy_(torch.cat([network.norm.weight for network in networks]))
            self.norm.bias.copy_(torch.cat([network.norm.bias for network in networks]))
        self.weight = _stacked([network.output.weight for network in networks])
        self.bias = _stacked([network.output.bias for network in networks])

    def forward(self, pooled: Sequence[Tensor]) -> Output:
        """Return logits (B, P, K) from the pooled ``features``, (B, L, C_raw) each.

        In training their mean (B, K) comes first, all that a loop has to keep of a batch.
        """
        vectors = [
            leaves(feature.mean(1)) for leaves, feature in zip(self.leaves, pooled, strict=True)
        ]
        unread = torch.cat(vectors)
        merges = iter(self.merges)
        for number, operations in enumerate(self.operations):
            unread = unread.index_select(0, self.get_buffer(f"order{number}"))
            sizes = [size for _, count in operations for size in (count, count)]
            *operands, later = unread.split([*sizes, len(unread) - sum(sizes)])
            outputs = []
            for (operation, _), x, y in zip(operations, operands[::2], operands[1::2], strict=True):
                merge = next(merges) if operation == "concat_dense" else None
                outputs.append(joined(operation, x, y, merge))
            unread = torch.cat([*outputs, later])
        roots = unread.index_select(0, self.get_buffer("roots")).transpose(0, 1)
        normal = self.norm(roots.flatten(1)).view(roots.shape).transpose(0, 1)
        unit = l2_normalised(signed_sqrt(normal))
        logits = torch.baddbmm(self.bias.unsqueeze(1), unit, self.weight.transpose(1, 2))
        logits = logits.transpose(0, 1)
        return (logits.mean(1), logits) if self.training else logits


def arranged(trees: Sequence[Tree], features: Sequence[str]) -> tuple[list[Level], list[int]]:
    """Return the levels of ``trees`` from the leaves up, and where their roots are in the end.

    At first there are the leaves of the first of ``features``, tree by tree, then of the next.
    """
    waiting, unread, roots = _places(trees, features)
    levels = []
    while waiting:
        ready = [place for place, operands in waiting.items() if set(operands) <= set(unread)]
        groups = {
            operation: tuple(p for p in ready if trees[p[0]][p[1]] == operation)
            for operation in OPERATIONS
        }
        operations = tuple((operation, group) for operation, group in groups.items() if group)
        read = [waiting[p][side] for _, group in operations for side in (0, 1) for p in group]
        later = [place for place in unread if place not in set(read)]
        position = {place: number for number, place in enumerate(unread)}
        levels.append(Level(operations, tuple(position[place] for place in (*read, *later))))
        unread = [*(place for _, group in operations for place in group), *later]
        for place in ready:
            del waiting[place]
    return levels, [unread.index(root) for root in roots]


def _places(
    trees: Sequence[Tree], features: Sequence[str]
) -> tuple[dict[_Place, tuple[_Place, _Place]], list[_Place], list[_Place]]:
    """Return the operands of every inner node, the leaves, and the roots."""
    operands: dict[_Place, tuple[_Place, _Place]] = {}
    for number, tree in enumerate(trees):
        stack: list[_Place] = []
        for position, token in enumerate(tree):
            if token in OPERATIONS:
                right, left = stack.pop(), stack.pop()
                operands[number, position] = left, right
            stack.append((number, position))
    leaves = [
        (number, tree.index(name))
        for name in features
        for number, tree in enumerate(trees)
        if name in tree
    ]
    return operands, leaves, [(number, len(tree) - 1) for number, tree in enumerate(trees)]


def _stacked(weights: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.stack([weight.detach() for weight in weights]))
