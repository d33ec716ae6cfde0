"""From a trained network to a bundle that ``bmnas_serve`` serves: one ONNX graph and its manifest.

The exporter writes the manifest that ``bmnas_serve.manifest`` defines and compares the graph with
torch through ``bmnas_serve.session``, so that the checked path is the served path.
"""

import bmnas_serve.runner  # noqa: F401  (complains of two builds of onnxruntime before one loads)

from bmnas_export.benchmark import benchmark_bundle
from bmnas_export.bundle import Bundle, export_bundle
from bmnas_export.errors import ExportError, ParityError, PrecisionError
from bmnas_export.measure import BatchParity, ParityReport
from bmnas_export.targets import TARGETS, Exported, Target
from bmnas_export.timing import time_module

__all__ = [
    "TARGETS",
    "BatchParity",
    "Bundle",
    "ExportError",
    "Exported",
    "ParityError",
    "ParityReport",
    "PrecisionError",
    "Target",
    "benchmark_bundle",
    "export_bundle",
    "time_module",
]
