"""How a form of the network in fewer bits answers validation samples, beside the float32 graph.

Legend: n samples, K outputs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bmnas_serve.manifest import Manifest
from bmnas_serve.runner import OnnxRunner
from bmnas_serve.session import Session

from bmnas.tasks.kinds import LabelScale, task_kind
from bmnas.training.heads import TaskHead, head_for
from bmnas_export.errors import PrecisionError
from bmnas_export.measure import SampleInputs, session_logits

_PAIRS = 512  # of a gallery every pair is a sample: millions


def head_of_manifest(manifest: Manifest) -> TaskHead:
    """Return the head of a bundle's task; raises UserError for a kind that is not registered."""
    scale = None if manifest.scale is None else LabelScale(**manifest.scale)
    return head_for(manifest.task.kind, manifest.threshold, names=manifest.class_names, scale=scale)


@dataclass(frozen=True)
class Agreement:
    """Score on validation, and that of the float32 graph, ``reference``.

    ``agree`` counts the samples that are decided the same, ``max_scaled_difference`` is the largest
    one of logits, those of the float32 graph being scaled to a maximum of one.
    """

    score: float
    reference: float
    samples: int
    agree: int
    max_scaled_difference: float

    @property
    def lost(self) -> float:
        """The points, hundredths of the score, that are lost."""
        return 100 * (self.reference - self.score)

    @property
    def chance(self) -> float:
        """The points that it may lose by chance, where so many samples are decided otherwise."""
        return 100 * math.sqrt(self.samples - self.agree) / self.samples

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-ready plain data."""
        return asdict(self)


class Judge:
    """Compares model files with the one in ``session`` on the validation part of ``inputs``.

    ``manifest`` is the session's. Of pairs, 512 are taken, and the score is the share of
    them that is decided rightly.
    """

    def __init__(self, session: Session, inputs: SampleInputs) -> None:
        assert session.manifest is not None
        self.manifest: Manifest = session.manifest
        self._inputs, self._labels = inputs, inputs.labels
        self._head = inputs.info.head
        self._chosen = torch.arange(len(inputs))
        if task_kind(inputs.task.kind).PAIRS:
            self._chosen = torch.linspace(0, len(inputs) - 1, min(len(inputs), _PAIRS)).long()
            self._labels = self._labels[self._chosen]
            self._labels[:, 1:] = -1
        self._expected = session_logits(session, inputs, self._chosen)
        self.reference = self._head.score(self._expected, self._labels)

    def __len__(self) -> int:
        """Return the number of samples compared."""
        return len(self._chosen)

    def __call__(self, model: Path) -> Agreement:
        """Return how the file ``model`` answers.

        Raises BundleError when it cannot be opened, PrecisionError where it answers no number.
        """
        logits = session_logits(self.open(model), self._inputs, self._chosen)
        expected = self._expected
        if not logits.isfinite().all():
            wrong = int((~logits.isfinite()).flatten(1).any(1).sum())
            raise PrecisionError(
                f"{model.name}: of {len(self):,} validation samples {wrong:,} get logits that are"
                " NaN or infinite: leave this target out"
            )
        same = self._head.decide(logits) == self._head.decide(expected)
        scale = float(expected.abs().max()) or 1.0
        return Agreement(
            score=self._head.score(logits, self._labels),
            reference=self.reference,
            samples=len(self),
            agree=int(same.all(dim=1).sum()),
            max_scaled_difference=float((logits - expected).abs().max()) / scale,
        )

    def accept(self, model: Path, points: float) -> dict[str, Any]:
        """Return the figures of ``model``; raises PrecisionError when it loses more points."""
        found = self(model)
        if not found.lost <= points:
            raise PrecisionError(
                f"{model.name}: scores {100 * found.score:.2f} on {found.samples:,} validation"
                f" samples, in float32 {100 * found.reference:.2f}, expected to lose at most"
                f" {points:g} points; {found.agree:,} are decided the same, logits are"
                f" {found.max_scaled_difference:.2g} of the largest apart: leave this target out"
            )
        return found.to_dict()

    def open(self, model: Path) -> Session:
        """Return a session of the file ``model``, which has the manifest's inputs and outputs."""
        return Session.of_bundle(OnnxRunner.open(model), self.manifest, model)
