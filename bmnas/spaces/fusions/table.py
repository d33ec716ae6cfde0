"""What a found network is compared with: hand-made fusions of the features that it could use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.central_difference import CentralDifferenceFusion
from bmnas.spaces.fusions.centralnet import CentralNet
from bmnas.spaces.fusions.concat import ConcatFusion
from bmnas.spaces.fusions.gmu import GMUFusion
from bmnas.spaces.fusions.late_fusion import LateFusion, WeightedLateFusion
from bmnas.spaces.fusions.mmtm import MMTMFusion
from bmnas.spaces.fusions.mtut import MTUTFusion

_Builder = Callable[[Mapping[str, int], int, int, int, float], Fusion]

#: How to build each fusion from C_raw by feature, channels C, length L, classes K and dropout.
FUSIONS: Mapping[str, _Builder] = {
    "two_stream": lambda raw, channels, length, classes, dropout: LateFusion(
        raw, length=length, classes=classes
    ),
    "weighted_two_stream": lambda raw, channels, length, classes, dropout: WeightedLateFusion(
        raw, length=length, classes=classes
    ),
    "concat": lambda raw, channels, length, classes, dropout: ConcatFusion(
        raw, channels=channels, length=length, classes=classes, dropout=dropout
    ),
    "gmu": lambda raw, channels, length, classes, dropout: GMUFusion(
        raw, channels=channels, length=length, classes=classes, dropout=dropout
    ),
    "centralnet": lambda raw, channels, length, classes, dropout: CentralNet(
        raw, channels=channels, length=length, classes=classes, dropout=dropout
    ),
    "mmtm": lambda raw, channels, length, classes, dropout: MMTMFusion(
        raw, length=length, classes=classes
    ),
    "mtut": lambda raw, channels, length, classes, dropout: MTUTFusion(
        raw, channels=channels, length=length, classes=classes, dropout=dropout
    ),
    "cdc_t": lambda raw, channels, length, classes, dropout: CentralDifferenceFusion(
        raw, channels=channels, length=length, classes=classes, dropout=dropout
    ),
}
