"""What the feature cache holds is what the network that is served computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_tasks import CONFIG, tiny_task

from bmnas.machine.errors import UserError
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.multimodal import MultimodalNetwork, channels_of
from bmnas.pipeline.run_folder import Run
from bmnas.pipeline.served_features import check_served_features
from bmnas.pipeline.unimodal import folds_of, unimodal_networks
from bmnas.spaces.fusions.space import NamedFusion
from bmnas.spaces.registry import build_fusion


@pytest.mark.parametrize(("folds", "dtype"), [(0, "float32"), (2, "bfloat16")])
def test_features_that_are_not_those_of_the_network_are_told(
    folds: int, dtype: str, tmp_path: Path
) -> None:
    config = CONFIG.override("unimodal", folds=folds)
    context = RunContext(Run(tmp_path), tiny_task(), config, 0)
    networks = unimodal_networks(context)
    backbones = {name: found.backbone for name, found in networks.items()}
    own = folds_of(networks)
    cache = context.features(backbones, ("train", "validation"), 4, folds=own, dtype=dtype)
    channels = channels_of(backbones)
    fusion = build_fusion(NamedFusion("concat", 8, 4), channels, classes=3, dropout=0.0)
    network = MultimodalNetwork(backbones, fusion)
    check_served_features(network, cache, own)
    with torch.no_grad():
        for parameter in network.backbone(network.modalities[1]).parameters():
            parameter.mul_(1.5)
    with pytest.raises(
        UserError, match=rf"^{network.modalities[1]}\..*: the network that is served"
    ):
        check_served_features(network, cache, own)
