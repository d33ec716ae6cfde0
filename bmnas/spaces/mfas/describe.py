"""MFAS's chain of fusion layers as a drawing shows it, each with its features."""

from __future__ import annotations

from bmnas.spaces.description import Description, Node, leaf_nodes
from bmnas.spaces.mfas.genotype import MFASGenotype

_LABELS = {"relu": "ReLU", "sigmoid": "sigmoid"}


def describe_mfas(genotype: MFASGenotype) -> Description:
    """Return a feature node for each input of a layer, the layers, and the classifier."""
    leaves = leaf_nodes(name for layer in genotype.layers for name in layer.inputs)
    fusions: list[Node] = []
    below: tuple[str, ...] = ()
    count = len(genotype.layers[0].inputs)
    for n, layer in enumerate(genotype.layers):
        own = tuple(leaf.name for leaf in leaves[n * count : (n + 1) * count])
        note = f"linear → {_LABELS[layer.activation]}"
        name = f"fusion {n + 1}"
        fusions.append(Node(name, name, note, reads=(*own, *below)))
        below = (name,)
    head = Node("classifier", "Classifier", "linear", "output", reads=below)
    return Description(genotype.summary(), genotype.features, (*leaves, *fusions, head))
