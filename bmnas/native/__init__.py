"""The supernet's passes on a CPU, in C: built once with the compiler of the machine.

``bmnas.fused`` says the same in PyTorch and is what runs everywhere else; the two are tested
against each other.
"""

from bmnas.native.build import describe, kernels
from bmnas.native.passes import cell_output, relaxed_step, reshape_and_mix

__all__ = ["cell_output", "describe", "kernels", "relaxed_step", "reshape_and_mix"]
