"""Tensors in a safetensors file, with a description of them as JSON inside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bmnas.machine.errors import UserError, one_line
from bmnas.machine.files import atomic_path

_KEY = "bmnas"  # one key alone: the order of several differs from file to file


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Write ``tensors`` and ``description``, plain JSON data with a ``format``, to ``path``.

    The file is whole or not at all, and equal for equal content. Tensors that share memory, of
    tied weights, are written once for each of their names.
    """
    text = json.dumps(description, sort_keys=True, allow_nan=False)
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as aside:
        # Not save_file(), which tells of a full disk with an exception of its own.
        aside.write_bytes(save(copies, {_KEY: text}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of any safetensors file; UserError when it is missing or damaged."""
    return _read(path, tensors=True)[1]


def read_described(
    path: Path, format_: str, *, tensors: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what ``write_tensors`` wrote: a description of ``format_``, and tensors if wanted.

    Raises UserError, naming the file, when it is missing, damaged or of another format.
    """
    metadata, found = _read(path, tensors=tensors)
    if _KEY not in metadata:
        raise UserError(
            f"{path}: received plain weights, expected a file of format {format_!r}, as bmnas train"
            " writes it"
        )
    try:
        description = json.loads(metadata[_KEY])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its description is not JSON: {one_line(error, 200)}") from error
    received = description.get("format") if isinstance(description, dict) else None
    if received != format_:
        raise UserError(f"{path}: received format {received!r}, expected {format_!r}: train again")
    return description, found


def _read(path: Path, *, tensors: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if tensors else ()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(
            f"{path}: damaged, not a whole safetensors file: {one_line(error)}"
        ) from error
