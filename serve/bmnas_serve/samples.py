"""The test samples in a bundle: to start with, and for what is left out of a request."""

from __future__ import annotations

import hashlib
import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from bmnas_serve.errors import BundleError
from bmnas_serve.files import read_regular, reading
from bmnas_serve.manifest import Manifest
from bmnas_serve.media import decoder
from bmnas_serve.raw import RawInput
from bmnas_serve.sources import fields_of

SAMPLES_FILE = "samples.safetensors"
_PREFIX = "inputs."


def member(folder: Path, manifest: Manifest, name: str) -> bytes | None:
    """Return a file of a bundle as the manifest lists it, None where it lists none.

    Raises BundleError where it has changed since.
    """
    if name not in manifest.files:
        return None
    with reading(folder / name):
        content = read_regular(folder / name)
    if hashlib.sha256(content).hexdigest() != manifest.files[name]:
        raise BundleError(f"{name}: changed since the bundle was opened: load it again")
    return content


def read_samples(content: bytes, inputs: dict[str, RawInput]) -> dict[str, NDArray[Any]]:
    """Return the rows (n, *shape) of each input; raises BundleError for a malformed file."""
    try:
        found = load(content)
    except SafetensorError as error:
        raise BundleError(f"{SAMPLES_FILE}: {error}") from error
    rows = {name: found.get(_PREFIX + name) for name in inputs}
    wrong = [
        name
        for name, array in rows.items()
        if array is None or array.shape[1:] != inputs[name].shape or not len(array)
    ]
    if wrong or len({len(array) for array in rows.values() if array is not None}) > 1:
        raise BundleError(f"{SAMPLES_FILE}: does not hold rows of {', '.join(wrong or rows)}")
    return {
        name: array.astype(inputs[name].spec.dtype)
        for name, array in rows.items()
        if array is not None
    }


def usual(one: RawInput, rows: NDArray[Any] | None) -> NDArray[Any] | None:
    """Return what stands for an input that is left out: an empty text, or the mean of ``rows``.

    None where there is neither: of token numbers and of booleans there is no mean.
    """
    if (empty := one.nothing()) is not None:
        return empty
    kind = one.spec.preprocessing.get("type")
    if rows is None or rows.dtype.kind == "b" or kind == "tokens":
        return None
    mean = rows.mean(0, dtype=np.float64)
    whole = rows.dtype.kind in "iu"
    return np.asarray(mean.round() if whole else mean).astype(rows.dtype)


def shown(one: RawInput, row: NDArray[Any]) -> tuple[str, bytes]:
    """Return the media type and content by which a person sees or hears a row."""
    match one.kind:
        case "image":
            return "image/png", _png(one, row)
        case "video":
            return "image/png", _png(one, row[len(row) // 2])
        case "sound":
            return "audio/wav", _wav(one, row)
        case "text":
            assert one.texts is not None
            return "text/plain", one.texts.decode(row).encode("utf-8", "replace")
        case "fields":
            return "application/json", json.dumps(fields_of(one.vector, row)).encode()
    return "application/json", json.dumps(row.tolist()).encode()


def _png(one: RawInput, row: NDArray[Any]) -> bytes:
    low, high = one.spec.range or (0, 255)
    if not one.fitted:
        low, high = 0, 255
    grey = (row.astype(np.float64) - low) * (255 / ((high - low) or 1))
    pixels = grey.round().clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    decoder("PIL.Image").fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _wav(one: RawInput, row: NDArray[Any]) -> bytes:
    rate = getattr(one.files, "sample_rate", 0)
    values = row.astype(np.float64) / (1 if row.dtype.kind == "f" else np.iinfo(row.dtype).max)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((values.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
    return out.getvalue()
