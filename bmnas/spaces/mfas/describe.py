"""MFAS's chain of fusion layers as a drawing shows it, each with its features."""

from __future__ import annotations

from bmnas.spaces.description import Description, Node, leaf_nodes
from bmnas.spaces.mfas.genotype import MFASGenotype

_LABELS = {"relu": "ReLU", "sigmoid": "sigmoid"}


def describe_mfas(genotype: MFASGenotype) -> Description:
    """Return a feature node for each input of a layer and of a head, the layers, and the heads."""
    read = [name for layer in genotype.layers for name in layer.inputs]
    leaves = leaf_nodes((*read, *genotype.last_features()))
    names = iter([leaf.name for leaf in leaves])
    fusions: list[Node] = []
    below: tuple[str, ...] = ()
    for number, layer in enumerate(genotype.layers, start=1):
        name, note = f"fusion {number}", f"linear → {_LABELS[layer.activation]}"
        own = tuple(next(names) for _ in layer.inputs)
        fusions.append(Node(name, name, note, reads=(*own, *below)))
        below = (name,)
    classifier = Node(
        "classifier", "Classifier", "sum of linear heads", "output", reads=(*names, *below)
    )
    return Description(genotype.summary(), genotype.features, (*leaves, *fusions, classifier))
