"""Unimodal networks: built from data or from a description, kept in files, see ``base``."""

from bmnas.backbones.base import Backbone, InputSpec, PooledHead
from bmnas.backbones.registry import (
    BACKBONES,
    DEFAULT_BACKBONES,
    backbone_from_spec,
    build_backbone,
    check_finite,
    load_backbone,
    load_weights,
    save_backbone,
)

__all__ = [
    "BACKBONES",
    "DEFAULT_BACKBONES",
    "Backbone",
    "InputSpec",
    "PooledHead",
    "backbone_from_spec",
    "build_backbone",
    "check_finite",
    "load_backbone",
    "load_weights",
    "save_backbone",
]
