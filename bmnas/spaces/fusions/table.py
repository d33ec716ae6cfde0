"""What a found network is compared with: hand-made fusions of the features that it could use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.attention import MulTFusion, NonLocalGate
from bmnas.spaces.fusions.central_difference import CentralDifferenceFusion
from bmnas.spaces.fusions.centralnet import CentralNet
from bmnas.spaces.fusions.dot_product import DotProductFusion
from bmnas.spaces.fusions.features import Sizes
from bmnas.spaces.fusions.gmu import GMUFusion
from bmnas.spaces.fusions.late_fusion import (
    ConcatFusion,
    LateFusion,
    WeightedLateFusion,
)
from bmnas.spaces.fusions.mmtm import MMTMFusion
from bmnas.spaces.fusions.mtut import MTUTFusion
from bmnas.spaces.fusions.tensor_fusion import (
    LowRankFusion,
    MultiplicativeFusion,
    TensorFusion,
)

#: How to build each fusion from C_raw of all features, each modality's in their order, and sizes.
FUSIONS: Mapping[str, Callable[[Mapping[str, int], Sizes], Fusion]] = {
    "two_stream": LateFusion,
    "weighted_two_stream": WeightedLateFusion,
    "concat": ConcatFusion,
    "gmu": GMUFusion,
    "centralnet": CentralNet,
    "mmtm": MMTMFusion,
    "mtut": MTUTFusion,
    "cdc_t": CentralDifferenceFusion,
    "tensor": TensorFusion,
    "lmf": LowRankFusion,
    "mi_matrix": MultiplicativeFusion,
    "non_local_gate": NonLocalGate,
    "mult": MulTFusion,
}

#: Those that only say whether two things belong together.
OF_PAIRS: Mapping[str, Callable[[Mapping[str, int], Sizes], Fusion]] = {
    "dot_product": DotProductFusion,
}
