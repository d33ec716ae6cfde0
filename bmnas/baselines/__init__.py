"""What a found network is compared with."""

from bmnas.baselines.late_fusion import LateFusion

__all__ = ["LateFusion"]
