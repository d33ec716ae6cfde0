"""Frozen backbones to pooled features on disk, and batches of them."""
