"""The space of fusion trees (DC-NAS, Liang et al., AAAI 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, ClassVar

from bmnas.machine.errors import UserError
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.description import Description, Node, leaf_nodes
from bmnas.spaces.space import Encoded, SearchSpace
from bmnas.spaces.trees.fusion_tree import FusionTree
from bmnas.spaces.trees.tree import (
    OPERATIONS,
    Tree,
    crossover,
    grafted,
    leaves,
    modalities,
    mutated,
    normal,
    pruned,
    random_tree,
    text,
    to_nodes,
    usable,
)

if TYPE_CHECKING:
    from bmnas.spaces.fusion import Fusion


@dataclass(frozen=True)
class TreeSpace(SearchSpace[FusionTree]):
    """Trees over ``features`` of two modalities or more, of vectors of ``width``, in normal form.

    Raises UserError where there is one modality.
    """

    NAME: ClassVar[str] = "trees"
    GENOTYPE: ClassVar[type[Architecture]] = FusionTree
    READS_MEANS: ClassVar[bool] = True

    features: tuple[str, ...]
    width: int = 32
    length: int = 8

    def __post_init__(self) -> None:
        if len(modalities(self.features)) < 2:
            raise UserError(
                f"space trees: received {', '.join(self.features)}, expected features of two "
                "modalities or more"
            )

    @classmethod
    def build(
        cls, genotype: FusionTree, channels_raw: Mapping[str, int], *, classes: int, dropout: float
    ) -> Fusion:
        """Return the network of the tree."""
        from bmnas.spaces.trees.network import TreeFusion

        return TreeFusion(genotype, channels_raw, classes=classes, dropout=dropout)

    @classmethod
    def describe(cls, genotype: FusionTree) -> Description:
        """Return the leaves, the operations from the leaves up, and the classifier."""
        nodes = leaf_nodes(leaves(genotype.tokens))
        for number, (op, inputs) in enumerate(to_nodes(genotype.tokens), start=1):
            dense = op == "concat_dense"
            note = f"linear {2 * genotype.width} → {genotype.width}" if dense else ""
            label = "concat + dense" if dense else op
            nodes.append(Node(f"node{number}", label, note, reads=inputs))
        head = Node("classifier", "Classifier", "linear", "output", reads=(nodes[-1].name,))
        return Description(genotype.summary(), genotype.features, (*nodes, head))

    @classmethod
    def canonical(cls, genotype: FusionTree) -> str:
        """Return the formula of the normal form, such as add(mul(image.2, audio.1), image.1)."""
        return text(normal(genotype.tokens, genotype.features))

    def sample(self, draw: Random) -> FusionTree:
        """Return a tree over two to all features, each number of leaves as likely."""
        return self._made(random_tree(self.features, draw))

    def neighbours(self, genotype: FusionTree) -> list[FusionTree]:
        """Return the trees with another operation, another feature, or a leaf less or more."""
        tree = genotype.tokens
        unread = [name for name in self.features if name not in tree]
        changed: list[Tree] = []
        for place, token in enumerate(tree):
            others = OPERATIONS if token in OPERATIONS else unread
            changed += [(*tree[:place], o, *tree[place + 1 :]) for o in others if o != token]
            if token not in OPERATIONS:
                changed.append(pruned(tree, token.__ne__))
                changed += [grafted(tree, place, (token, n, o)) for n in unread for o in OPERATIONS]
        found = dict.fromkeys(normal(t, self.features) for t in changed if usable(t))
        return [self._made(t) for t in found if t != tree]

    def encode(self, genotype: FusionTree) -> Encoded:
        """Return a row a token, in postfix order: which feature or operation it is."""
        tokens = [*self.features, *OPERATIONS]
        return tuple((tokens.index(token),) for token in genotype.tokens)

    def mutated(self, genotype: FusionTree, draw: Random) -> FusionTree:
        """Return a tree with a branch of a new random tree in the place of one of its own."""
        return self._made(mutated(genotype.tokens, self.features, draw))

    def crossed(
        self, first: FusionTree, second: FusionTree, draw: Random
    ) -> tuple[FusionTree, FusionTree]:
        """Return both after they have exchanged a branch each."""
        one, other = crossover(first.tokens, second.tokens, self.features, draw)
        return self._made(one), self._made(other)

    def _made(self, tree: Sequence[str]) -> FusionTree:
        return FusionTree(self.features, self.width, self.length, tuple(tree))
