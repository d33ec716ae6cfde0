"""Texts and tokens: an embedding, then convolutions that do not see the padding.

Legend: B batch, T positions, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from bmnas.backbones.bag import BagOfWords
from bmnas.backbones.base import Backbone, InputSpec
from bmnas.backbones.texts import PAD, UNKNOWN, TextTokenizer, text_encoder
from bmnas.machine.errors import UserError, one_line
from bmnas.tasks.task import Array, Modality, ModalityType

#: C of new embeddings, and of those in files that do not say theirs.
_EMBEDDING, _EARLIER_EMBEDDING = 128, 64
_WIDTH = 96
_KERNELS = (1, 3, 5)  # a word by itself, with its neighbours, in its phrase
_HIDDEN_WORDS = 0.1


class MaskedConvStage(nn.Module):
    """Convolution, LayerNorm over channels, ReLU, dropout, shortcut; zero where it is padded."""

    def __init__(self, channels_in: int, channels: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels_in, channels, kernel, padding=kernel // 2)
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.residual = channels_in == channels

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return (B, C, T), not negative, from ``x`` (B, C_in, T) and ``mask`` (B, 1, T)."""
        y = self.norm(self.convolution(x).transpose(1, 2)).relu().transpose(1, 2)
        y = self.dropout(y)
        out: Tensor = (x + y if self.residual else y) * mask
        return out


class MaskedHead(nn.Module):
    """Average and maximum over the positions that are not padding, then a linear layer."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B, K) from ``x`` (B, C, T), zero at padding, and ``mask`` (B, 1, T)."""
        mean = x.sum(-1) / mask.sum(-1).clamp(min=1)
        logits: Tensor = self.linear(self.dropout(torch.cat([mean, x.amax(-1)], dim=1)))
        return logits


class PaddedBackbone(Backbone):
    """A backbone for integers (B, T). ``pad`` fills up short rows; None: no row is filled up."""

    pad: int | None

    def mask(self, x: Tensor) -> Tensor | None:
        """Return which integers of ``x`` (B, T) are content and not padding."""
        return None if self.pad is None else x != self.pad

    def content(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``mask`` as zeros and ones (B, 1, T)."""
        mask = self.mask(x)
        content = torch.ones_like(x) if mask is None else mask
        return content.to(dtype).unsqueeze(1)

    def classify(self, feature: Tensor, x: Tensor) -> Tensor:
        """Return the head's logits (B, K) from the last feature and integers ``x`` (B, T)."""
        if not isinstance(self.head, MaskedHead):
            return super().classify(feature, x)
        logits: Tensor = self.head(feature, self.content(x, self.head.linear.weight.dtype))
        return logits


class WordConvBackbone(PaddedBackbone):
    """Rows of integers (B, T), int64, through an embedding and three convolutional stages.

    ``entries`` is the size of the embedding; integers outside it count as ``unknown``. In
    training one position in ten is shown as unknown, so that its embedding is trained.
    Features are three sequences (B, C_raw, T), zero where the row is padded. With ``bag`` in the
    configuration the logits of a linear model of the words are added to the head's.
    """

    bag: BagOfWords | None

    def __init__(
        self, input_spec: InputSpec, entries: int, unknown: int, pad: int | None, /, **config: Any
    ) -> None:
        super().__init__(input_spec, **config)
        self.entries, self.unknown, self.pad = entries, unknown, pad
        dropout = config["dropout"]
        stem = nn.Embedding(entries, config["embedding"], padding_idx=pad)
        # Unit variance, the default, would drown the gradient of rare words.
        with torch.no_grad():
            stem.weight.mul_(0.2)
        stages, widths = self.stages_on(stem.embedding_dim, dropout)
        head = MaskedHead(widths[-1], config["classes"], dropout)
        self.set_stages(stem, stages, widths, head)
        self.bag = BagOfWords(entries, config["classes"]) if config["bag"] else None

    def take_bag(self, bag: BagOfWords) -> None:
        """Add the logits of ``bag`` to the head's from now on."""
        self.bag = bag
        self.config["bag"] = True

    def stages_on(self, width: int, dropout: float) -> tuple[list[nn.Module], list[int]]:
        """Return the stages on an embedding of ``width`` channels, and C_raw of each."""
        widths = (width, *[_WIDTH] * len(_KERNELS))
        stages: list[nn.Module] = [
            MaskedConvStage(width_in, width, kernel, dropout)
            for width_in, width, kernel in zip(widths[:-1], widths[1:], _KERNELS, strict=True)
        ]
        return stages, [*widths[1:]]

    def known(self, x: Tensor) -> Tensor:
        """Return integers ``x`` (B, T) with the unknown one for those outside the embedding."""
        return torch.where((x >= 0) & (x < self.entries), x, self.unknown)

    def classify(self, feature: Tensor, x: Tensor) -> Tensor:
        """Return the head's logits (B, K), and those of the linear model if there is one."""
        logits = super().classify(feature, x)
        if self.bag is None:
            return logits
        words: Tensor = self.bag(self.known(x), self.content(x, logits.dtype).squeeze(1))
        return logits + words

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` stages only, and drop head and linear model."""
        super().truncate(count)
        self.bag = None

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the features (B, C_raw, T) of integers ``x`` (B, T)."""
        ids = self.known(x)
        mask = self.content(x, cast(nn.Embedding, self.stem).weight.dtype)
        if self.training:
            hidden = torch.rand(ids.shape, device=ids.device) < _HIDDEN_WORDS
            # Padding is masked anyway: hiding it changes nothing.
            ids = torch.where(hidden, self.unknown, ids)
        y = self.stem(ids).transpose(1, 2) * mask
        outputs = []
        for stage in self.stages:
            y = stage(y, mask)
            outputs.append(y)
        return outputs


class TextBackbone(WordConvBackbone):
    """A convolutional network for texts, given as token numbers (B, T), int64.

    ``tokenizer`` is the content of a tokenizer.json, ``length`` is T; files of earlier versions
    have ``words`` instead. Features are three sequences (B, C_raw, T).
    """

    family: ClassVar[str] = "text_conv"
    #: C of the embedding of a new one.
    new_width: ClassVar[int] = _EMBEDDING
    types: ClassVar[tuple[ModalityType, ...]] = ("text",)

    def __init__(
        self,
        *,
        classes: int,
        length: int,
        words: Sequence[str] | None = None,
        tokenizer: Mapping[str, Any] | None = None,
        dropout: float = 0.2,
        embedding: int = _EARLIER_EMBEDDING,
        bag: bool = False,
    ) -> None:
        vocabulary = text_encoder(length, words, tokenizer)
        meaning = f"one text as the numbers of its first {length} tokens"
        spec = InputSpec((length,), "int64", meaning, vocabulary.rule())
        config = {
            "classes": classes,
            **vocabulary.config(),
            "dropout": dropout,
            "embedding": embedding,
            "bag": bag,
        }
        super().__init__(spec, len(vocabulary.ids), UNKNOWN, PAD, **config)
        self.vocabulary = vocabulary

    @classmethod
    def from_rows(cls, modality: Modality, *, classes: int, rows: Array) -> Self:
        """Build for K ``classes`` and the vocabulary of the train texts ``rows`` (n,)."""
        vocabulary = TextTokenizer.from_texts(rows, length=modality.length)
        return cls(classes=classes, embedding=cls.new_width, **vocabulary.config())

    def encode(self, rows: Array) -> Array:
        """Return token numbers int64 (n, T) for texts ``rows`` (n,)."""
        return self.vocabulary.encode(rows)

    def nothing(self) -> Array:
        """Return the token numbers (T,) of an empty text."""
        row: Array = self.encode(np.array([""]))[0]
        return row

    def unreadable(self, rows: Array) -> int:
        """Count the texts in ``rows`` (n,) that have no known word at all."""
        return int((self.encode(rows) <= UNKNOWN).all(axis=1).sum())

    def longer(self, rows: Array) -> int:
        """Count the texts in ``rows`` (n,) that are cut."""
        return self.vocabulary.longer(rows)


class Unchanged(nn.Module):
    """A stage that does nothing."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return ``x`` (B, C, T)."""
        return x


class EmbeddingBackbone(TextBackbone):
    """The embedding of words alone, as MMnas reads texts: its one feature is (B, 300, T)."""

    family: ClassVar[str] = "embedding"
    new_width = 300

    def stages_on(self, width: int, dropout: float) -> tuple[list[nn.Module], list[int]]:
        """Return a stage that does nothing, and the width."""
        return [Unchanged()], [width]

    @torch.no_grad()
    def take_vectors(self, path: Path) -> None:
        """Take the vectors of known words from a text file like GloVe's: a word and its numbers.

        Words that it does not have keep theirs. Raises UserError, naming the file, where it has
        none of them, or other lines.
        """
        weight, found = cast(nn.Embedding, self.stem).weight, 0
        try:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    word, *values = line.rstrip().split(" ")
                    place = self.vocabulary.ids.get(word)
                    if place is None:
                        continue
                    surplus = len(values) - weight.shape[1]
                    if surplus > 0 and not values[0].lstrip("-")[:1].isdigit():
                        continue  # a word that holds blanks, as some of GloVe's largest file do
                    if surplus:
                        raise UserError(
                            f"{path}: line {number}: received {len(values)} numbers, expected "
                            f"{weight.shape[1]}"
                        )
                    weight[place] = torch.tensor([float(value) for value in values])
                    found += 1
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be read as vectors of words: {one_line(error)}"
            ) from error
        if not found:
            raise UserError(f"{path}: has none of the {len(self.vocabulary.ids)} words of train")


class TokenBackbone(WordConvBackbone):
    """A convolutional network for token numbers (B, T), int64.

    ``tokens`` is one more than the largest number of the train rows; larger and negative ones
    count as unknown. ``padded`` says that 0 is padding. Features are three sequences
    (B, C_raw, T).
    """

    family: ClassVar[str] = "token_conv"
    types: ClassVar[tuple[ModalityType, ...]] = ("tokens",)

    def __init__(
        self,
        *,
        classes: int,
        tokens: int,
        length: int,
        padded: bool,
        dropout: float = 0.2,
        embedding: int = _EARLIER_EMBEDDING,
        bag: bool = False,
    ) -> None:
        pad = 0 if padded else None
        note = {
            "tokens": tokens,
            "unknown": "numbers outside [0, tokens) count as unknown",
            "pad": pad,
            "length": length,
        }
        meaning = f"one row of {length} token numbers, filled up at the end"
        spec = InputSpec((length,), "int64", meaning, note)
        config = {
            "tokens": tokens,
            "length": length,
            "padded": padded,
            "dropout": dropout,
            "embedding": embedding,
            "bag": bag,
        }
        super().__init__(spec, tokens + 1, tokens, pad, classes=classes, **config)

    @classmethod
    def from_rows(cls, modality: Modality, *, classes: int, rows: Array) -> Self:
        """Build for K ``classes`` from train tokens ``rows`` (n, T).

        0 is taken for padding where nothing but 0 ever follows it.
        """
        padded = not bool(np.any((rows[:, :-1] == 0) & (rows[:, 1:] != 0)))
        return cls(
            classes=classes,
            tokens=int(rows.max()) + 1,
            length=rows.shape[1],
            padded=padded,
            embedding=_EMBEDDING,
        )
