"""The element types that a tensor can have, by numpy's name as manifests hold it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

#: The name in the Open Inference Protocol, in requests and metadata.
PROTOCOL = {
    "bool": "BOOL",
    **{
        f"{kind}{bits}": f"{kind}{bits}".upper()
        for kind in ("uint", "int")
        for bits in (8, 16, 32, 64)
    },
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}
#: What stands for a type that a target does not take: TensorRT has no inputs of int16.
WIDER = {"int16": "int32"}
#: numpy's name by the one that onnxruntime gives: ``tensor(float)``.
BY_ONNX = {
    **{f"tensor({name})": name for name in PROTOCOL},
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}


@cache
def protocol_name(dtype: np.dtype[Any]) -> str:
    """Return the protocol's name of an array's type; numpy puts ``dtype.name`` together anew."""
    return PROTOCOL[dtype.name]
