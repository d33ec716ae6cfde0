"""What a backbone is: stages with named features, a unimodal head, a description of itself.

Legend: B batch, T time, H height, W width, D input channels, C_raw channels of a feature,
K classes. Feature maps are channels-first here, (B, C_raw, *rest), as the convolutions of
torch expect; fusion turns them into (B, L, C_raw).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from bmnas.machine.errors import UserError
from bmnas.tasks.task import Array, Modality, ModalityType

FORMAT = "bmnas.backbone/1"

#: In what dtype networks take the rows of a type; where the rows have another, float32.
_KEPT = {"image": "uint8", "clip": "uint8", "waveform": "int16", "text": "int64", "tokens": "int64"}


@dataclass(frozen=True)
class InputSpec:
    """What a network expects as one input; written to the manifest of a bundle.

    ``shape`` leaves the batch axis out. ``meaning`` is one sentence for the person who
    writes a client; ``preprocessing`` is plain JSON data with everything that must happen
    before the tensor is sent (the vocabulary of a text, the sample rate of a waveform).
    """

    shape: tuple[int, ...]
    dtype: str
    meaning: str
    preprocessing: dict[str, Any] = field(default_factory=dict)


class Backbone(nn.Module):
    """A unimodal network: ``stem``, a list of ``stages``, a ``head``.

    Feature f is the output of stage f, (B, C_raw, *rest); ``feature_names`` are "1", "2", …
    and ``feature_channels`` their C_raw. ``family`` is the name in the table of backbones,
    ``types`` the modalities that it reads. Subclasses hand on ``input_spec`` and their own keywords
    as ``config``, plain JSON data, and call ``set_stages``. Where samples may lack the modality,
    ``absent`` is the raw input that stands for that, (*shape) or one number for all, see
    ``allow_absent``.
    """

    family: ClassVar[str]
    types: ClassVar[tuple[ModalityType, ...]]
    #: Whose files of weights it takes, beside its own.
    published: ClassVar[str] = ""
    feature_names: tuple[str, ...]
    feature_channels: tuple[int, ...]
    stem: nn.Module
    stages: nn.ModuleList
    head: nn.Module | None
    absent: Tensor | None

    def __init__(self, input_spec: InputSpec, /, **config: Any) -> None:
        super().__init__()
        self.input_spec = input_spec
        self.config = config
        self.absent = None

    def set_stages(
        self, stem: nn.Module, stages: Iterable[nn.Module], channels: Sequence[int], head: nn.Module
    ) -> None:
        """Set stem, stages and head; ``channels`` are C_raw of each stage."""
        self.stem, self.stages, self.head = stem, nn.ModuleList(stages), head
        self.feature_names = tuple(str(number) for number in range(1, len(channels) + 1))
        self.feature_channels = tuple(channels)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the feature of every stage that is kept, the earliest first.

        ``x`` is the raw input (B, *input_spec.shape); feature f is (B, C_raw, *rest).
        """
        x = self.stem(x)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the unimodal logits (B, K) of the raw input ``x``."""
        return self.features_and_logits(x)[1]

    def features_and_logits(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return what ``features`` and ``forward`` do, in one pass."""
        if self.head is None:
            raise RuntimeError("this backbone was truncated: it has no head of its own")
        features = self.features(x)
        return features, self.classify(features[-1], x)

    def classify(self, feature: Tensor, x: Tensor) -> Tensor:
        """Return the head's logits (B, K) from the last feature and the raw input ``x``."""
        assert self.head is not None
        logits: Tensor = self.head(feature)
        return logits

    def mask(self, x: Tensor) -> Tensor | None:
        """Return which positions (B, T) of each feature of ``x`` are not padding; None: all."""
        return None

    def allow_absent(self) -> None:
        """Let samples lack the modality from now on: a raw input of nothing then says so."""
        nothing = torch.from_numpy(self.nothing())
        # One zero does for a row of them, of which a picture has many thousands.
        del self.absent
        kept = nothing if nothing.any() else nothing.new_zeros(())
        self.register_buffer("absent", kept, persistent=False)

    def nothing(self) -> Array:
        """Return the raw input (*shape) of no content: zeros, or that of an empty text."""
        return np.zeros(self.input_spec.shape, self.input_spec.dtype)

    def given(self, x: Tensor) -> Tensor | None:
        """Return which samples (B,) of ``x`` (B, *shape) have the modality; None: all."""
        if self.absent is None:
            return None
        # In 32 bits: TensorRT compares no integers of 8 or 16.
        narrow = x.dtype in (torch.uint8, torch.int16)
        x, absent = (x.int(), self.absent.int()) if narrow else (x, self.absent)
        return (x != absent).flatten(1).any(1)

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` stages only, and drop the head: nothing needs the rest."""
        self.stages = self.stages[:count]
        self.feature_names = self.feature_names[:count]
        self.feature_channels = self.feature_channels[:count]
        self.head = None

    def drop_unused(self) -> None:
        """Drop what neither the features nor the head need."""

    @classmethod
    def from_rows(cls, modality: Modality, *, classes: int, rows: Array) -> Self:
        """Build for K ``classes`` from the train ``rows`` (n, *axes) of ``modality``."""
        made: Any = cls  # each family has its own keywords
        backbone: Self = made(classes=classes, shape=list(rows.shape[1:]))
        return backbone

    def encode(self, rows: Array) -> Array:
        """Turn rows of the modality's array into what the network takes, (n, *shape).

        Raises UserError when the rows have another shape than those the backbone was built for.
        """
        return cast_rows(rows, self.input_spec.shape, self.input_spec.dtype)

    def longer(self, rows: Array) -> int:
        """Count the texts in ``rows`` (n,) that are cut; of other modalities nothing is."""
        return 0

    def weights_module(self) -> nn.Module:
        """Return the module whose ``state_dict`` a file of pretrained weights holds."""
        return self

    def beyond_features(self) -> frozenset[str]:
        """Return the names in ``weights_module`` of tensors that no feature needs: the head's."""
        return frozenset(name for name in self.state_dict() if name.startswith("head."))

    def checkpoint_gradients(self) -> bool:
        """Keep less of a forward pass in training, and compute it again; tell whether it can."""
        return False

    def renew_head(self) -> None:
        """Do what is needed where the weights of the head were left out: it is new as it stands."""

    def adopt(self, state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], bool]:
        """Return the tensors of a file of weights under the names of those of ``weights_module``.

        Also tell whether all of this backbone is among them, the head included.
        """
        return state, self.weights_module() is self

    def spec(self) -> dict[str, Any]:
        """Return plain JSON data from which ``backbone_from_spec`` builds this again.

        ``stages`` and ``head`` say what ``truncate`` has left.
        """
        optional = {} if self.absent is None else {"optional": True}
        return {
            "format": FORMAT,
            "name": self.family,
            "config": self.config,
            "stages": len(self.feature_names),
            "head": self.head is not None,
            **optional,
        }


def row_dtype(type_: ModalityType, rows: Array) -> str:
    """Return the dtype in which a network takes ``rows`` of a modality of ``type_``."""
    kept = _KEPT.get(type_, "float32")
    return kept if kept in ("int64", rows.dtype.name) else "float32"


def has_colour(type_: ModalityType, axes: tuple[int, ...]) -> bool:
    """Tell whether the last of a row's ``axes`` is colour."""
    return (type_, len(axes)) in (("image", 3), ("clip", 4))


def cast_rows(rows: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """Return ``rows`` (n, *shape) as a contiguous array of ``dtype``.

    Raises UserError when the rows have another shape, or floats where integers are expected.
    """
    rows = np.asarray(rows)
    if rows.shape[1:] != shape or rows.ndim == 0:
        raise UserError(f"received rows of shape {rows.shape[1:]}, expected {shape}")
    native = rows.dtype.newbyteorder("=")
    of_dtype = rows.dtype.kind in "iu" if dtype == "int64" else native == np.dtype(dtype)
    if dtype != "float32" and not of_dtype:
        raise UserError(f"received rows of dtype {rows.dtype}, expected {dtype}")
    # A double beyond float32 becomes infinity, which ``check_task`` reports.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(rows, dtype=dtype)


class PooledHead(nn.Module):
    """Average over all positions, dropout, a linear layer: (B, C_raw, *rest) to (B, K)."""

    def __init__(self, channels: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K)."""
        pooled = x if x.dim() == 2 else torch.flatten(x, 2).mean(-1)
        logits: Tensor = self.linear(self.dropout(pooled))
        return logits
