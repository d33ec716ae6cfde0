"""The supernet's passes on a CPU, in C: built once with the compiler of the machine.

``fused`` says the same in PyTorch and is what runs everywhere else; the two are tested against each
other.
"""

from bmnas.spaces.cells.native.build import describe, kernels
from bmnas.spaces.cells.native.members_network import members_logits
from bmnas.spaces.cells.native.network import supernet_logits

__all__ = ["describe", "kernels", "members_logits", "supernet_logits"]
