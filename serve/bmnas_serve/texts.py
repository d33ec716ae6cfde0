"""Texts as token numbers, by the rule in the manifest of a bundle. Legend: n texts, T tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.errors import DataError, one_line
from bmnas_serve.media import decoder


class TextRule:
    """How texts become numbers, and back; raises DataError for a rule of another form."""

    def __init__(self, rule: Mapping[str, Any]) -> None:
        try:
            self.length, self.pad = int(rule["length"]), int(rule["pad"])
            content = json.dumps(rule["tokenizer"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError("its texts are not read by a tokenizer: export again") from error
        package = decoder("tokenizers")
        try:
            self._tokenizer = package.Tokenizer.from_str(content)
        except Exception as error:  # the package raises plain exceptions for malformed content
            raise DataError(f"the tokenizer is malformed: {one_line(error, 200)}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.length)

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return token numbers (n, T) of ``texts``."""
        rows = np.full((len(texts), self.length), self.pad, np.int64)
        for row, found in zip(rows, self._tokenizer.encode_batch(list(texts)), strict=True):
            row[: len(found.ids)] = found.ids
        return rows

    def decode(self, row: NDArray[np.int64]) -> str:
        """Return the text of token numbers (T,), as far as a tokenizer keeps it."""
        numbers = [number for number in row.tolist() if number != self.pad]
        text: str = self._tokenizer.decode(numbers)
        return text
