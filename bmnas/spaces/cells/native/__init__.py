"""The supernet's training step on a CPU, in C: built once with the compiler of the machine.

``supernet`` says the same in PyTorch and is what runs everywhere else; the two are tested against
each other.
"""

from bmnas.spaces.cells.native.build import describe, kernels

__all__ = ["describe", "kernels"]
