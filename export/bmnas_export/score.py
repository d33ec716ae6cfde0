"""The exported network's score on the test part, beside that of the network that was trained.

Legend: B batch, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from bmnas_serve.session import Session
from numpy.typing import NDArray

from bmnas.machine.runtime import Runtime
from bmnas.pipeline.multimodal import MultimodalNetwork, evaluate_fusion
from bmnas.tasks.kinds import task_kind
from bmnas.training.heads import TaskHead
from bmnas_export.errors import ExportError
from bmnas_export.measure import SampleInputs, session_logits

#: How far a score may be from the trained network's: that may have been measured in another
#: precision or on another device.
TOLERANCE = 0.002


def measure_score(
    session: Session,
    reference: MultimodalNetwork,
    inputs: SampleInputs,
    head: TaskHead,
    served: NDArray[Any],
) -> dict[str, Any]:
    """Return score, number of samples and who computed them, of the whole test part.

    ``served`` (B, K) is what ``session`` said of the samples ``inputs.spread(B)``. A gallery of
    pairs is ranked by torch: onnxruntime would read both rows of every pair anew.
    """
    if task_kind(inputs.task.kind).PAIRS:
        device = Runtime(torch.device("cpu"), compile=False)
        score = evaluate_fusion(inputs.task, reference, "test", head, device).score
        return {"score": score, "samples": len(inputs), "by": "torch"}
    known, rest = inputs.spread(len(served)), torch.ones(len(inputs), dtype=torch.bool)
    rest[known] = False
    logits = torch.empty(len(inputs), served.shape[1])
    logits[known] = torch.from_numpy(served)
    if rest.any():
        logits[rest] = session_logits(session, inputs, rest.nonzero().flatten())
    score = head.score(logits, inputs.labels)
    return {"score": score, "samples": len(inputs), "by": "onnxruntime"}


def check_score(measured: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Raise ExportError when ``measured`` is another score than the trained network had.

    ``recorded`` is the section ``test`` of metrics.json. Scores of other numbers of samples are of
    other data, and are not compared; those of earlier versions do not say how many.
    """
    samples, score = measured["samples"], recorded.get("score")
    if score is None or recorded.get("samples", samples) != samples:
        return
    # One decision may fall otherwise in another precision.
    apart, allowed = abs(measured["score"] - score), max(TOLERANCE, 1.01 / samples)
    if not apart <= allowed:
        raise ExportError(
            f"the network scores {measured['score']:.4f} on {samples:,} test samples, but scored"
            f" {score:.4f} when it was trained, expected at most {allowed:.4f} between them: its"
            " weights are damaged, or the test data is another; train again"
        )
