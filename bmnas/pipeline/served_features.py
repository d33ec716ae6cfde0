"""Does the served network compute the features in the cache, which fusion learned from?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from bmnas.features.cache import FeatureCache, Folds
from bmnas.features.samples import RawInput
from bmnas.machine.errors import UserError
from bmnas.pipeline.multimodal import MultimodalNetwork

_ROWS = 4
#: Of the largest number: other batches are summed in another order, and short numbers rounded.
_APART, _APART_ROUNDED = 1e-3, 2e-2


@torch.no_grad()
def check_served_features(
    network: MultimodalNetwork, cache: FeatureCache, folds: Mapping[str, Folds]
) -> None:
    """Raise UserError where ``network`` computes other features than ``cache`` holds.

    A few rows of each modality are read again. Rows that a backbone of ``folds`` was asked for are
    passed over: the network's own has learned from them.
    """
    network.eval()
    device = next(network.parameters()).device
    for name in network.modalities:
        rows = cache.rows[name]
        places = np.arange(len(rows))
        if name in folds:
            places = places[folds[name].of_row[rows] == -1]
        places = places[np.linspace(0, max(len(places) - 1, 0), _ROWS).astype(int)[: len(places)]]
        if not len(places):
            continue
        modality = replace(cache.task.modality(name), index=None)
        source = RawInput(modality, network.backbone(name), rows[places])
        found, _ = network.read_one(name, source.batch(torch.arange(len(places))).to(device))
        for feature in set(found) & set(network.features):
            kept = cache.arrays[feature][torch.from_numpy(places)].to(device)
            scale = float(kept.float().abs().max()) or 1.0
            apart = float((found[feature].float() - kept.float()).abs().max()) / scale
            allowed = _APART if kept.dtype == torch.float32 else _APART_ROUNDED
            if not apart <= allowed:  # a NaN is no agreement
                raise UserError(
                    f"{feature}: the network that is served computes other features than those "
                    f"that it was trained with, apart by {apart:.2g} of the largest, expected "
                    f"{allowed:g} at most: its backbone must give the same for the same input, "
                    "alone and in a batch, in every pass"
                )
