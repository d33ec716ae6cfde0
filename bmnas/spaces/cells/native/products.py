"""Matrix products in float32, or in bfloat16 where half the digits will do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Products:
    """Products of matrices that are rounded to ``dtype`` first.

    The sums inside a product are float32 with either type. The result is rounded to ``dtype``
    too, and handed on as float32.
    """

    dtype: torch.dtype = torch.float32

    def rounded(self, x: Tensor) -> Tensor:
        """Return ``x`` as products read it: what several of them read is rounded once."""
        return x.to(self.dtype)

    def mm(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the product of two matrices."""
        return torch.mm(a.to(self.dtype), b.to(self.dtype)).float()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return x weight^T + bias for rows ``x``."""
        return F.linear(x.to(self.dtype), weight.to(self.dtype), bias.to(self.dtype)).float()


FULL = Products()
LOW = Products(torch.bfloat16)
