"""What torch's exporter gathers anew at each export, gathered once: that is half of a small one."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch._export.utils as export_utils
from torch.onnx._internal.exporter._registration import ONNXRegistry


@pytest.fixture(autouse=True, scope="session")
def one_registry() -> Iterator[None]:
    """Share the table of ONNX functions and the walk over torch's operators among all exports.

    Nothing here registers a function or an operator of its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        registry = functools.cache(ONNXRegistry.from_torchlib)
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(registry))
        walk = functools.cache(export_utils._materialize_cpp_cia_ops)
        patch.setattr(export_utils, "_materialize_cpp_cia_ops", walk)
        yield
