"""Tensors in a safetensors file, with a description of them as JSON inside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bmnas.machine.errors import UserError, one_line
from bmnas.machine.files import atomic_path

_DESCRIPTION = "bmnas"  # one key alone: the order of several differs from file to file
_DIGEST = "sha256"  # in the description, of the tensors; files of earlier versions lack it


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over the names, types, shapes and bytes of ``tensors``."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes: NumPy does not know every type of torch, such as bfloat16.
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Write ``tensors`` and ``description``, plain JSON data with a ``format``, as safetensors.

    The file is whole or not at all, and equal for equal content. Tensors that share memory, of
    tied weights, are written once for each of their names.
    """
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = {**description, _DIGEST: tensors_hash(copies)}
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    with atomic_path(path) as aside:
        # Not save_file(), which tells of a full disk with an exception of its own.
        aside.write_bytes(save(copies, {_DESCRIPTION: text}))


def read_tensors(
    path: Path, *, described: str | None = None, tensors: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the tensors, if wanted, of a safetensors file.

    ``described`` is the format of what ``write_tensors`` wrote; without it any file of tensors
    will do, and the description is empty. Raises UserError, naming the file, when it is missing,
    damaged or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if tensors else ()
            found = {name: file.get_tensor(name) for name in names}
            text = (file.metadata() or {}).get(_DESCRIPTION)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(
            f"{path}: damaged, not a whole safetensors file: {one_line(error)}"
        ) from error
    if described is None:
        return {}, found
    if text is None:
        raise UserError(
            f"{path}: received plain weights, expected a file of format {described!r}, as bmnas "
            "train writes it"
        )
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its description is not JSON: {one_line(error, 200)}") from error
    received = description.get("format") if isinstance(description, dict) else None
    if received != described:
        raise UserError(
            f"{path}: received format {received!r}, expected {described!r}: train again"
        )
    digest = description.pop(_DIGEST, None)
    if tensors and digest is not None and digest != (actual := tensors_hash(found)):
        raise UserError(
            f"{path}: damaged: the sha256 of its {len(found)} tensors is {actual}, expected"
            f" {digest}: copy the file again, or train again"
        )
    return description, found
