"""The element types that a tensor can have, under the three names that they go by.

numpy's name stands in manifests, the Open Inference Protocol's in requests and metadata, and
onnxruntime's is what a session reports about a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Datatype:
    """One element type: ``numpy`` (``float32``), ``protocol`` (``FP32``), ``onnx`` (``float``)."""

    numpy: str
    protocol: str
    onnx: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the numpy dtype."""
        return np.dtype(self.numpy)


DATATYPES = (
    Datatype("bool", "BOOL", "bool"),
    Datatype("uint8", "UINT8", "uint8"),
    Datatype("uint16", "UINT16", "uint16"),
    Datatype("uint32", "UINT32", "uint32"),
    Datatype("uint64", "UINT64", "uint64"),
    Datatype("int8", "INT8", "int8"),
    Datatype("int16", "INT16", "int16"),
    Datatype("int32", "INT32", "int32"),
    Datatype("int64", "INT64", "int64"),
    Datatype("float16", "FP16", "float16"),
    Datatype("float32", "FP32", "float"),
    Datatype("float64", "FP64", "double"),
)

BY_NUMPY = {datatype.numpy: datatype for datatype in DATATYPES}
BY_PROTOCOL = {datatype.protocol: datatype for datatype in DATATYPES}
#: Keys as onnxruntime writes them: ``tensor(float)``.
BY_ONNX = {f"tensor({datatype.onnx})": datatype for datatype in DATATYPES}
