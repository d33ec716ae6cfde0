"""Backbones in files: safetensors with the description as JSON; pretrained weights of others.

Nothing is unpickled but tensors: ``.pt`` files are read with ``weights_only=True``.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bmnas.backbones.base import FORMAT, Backbone
from bmnas.backbones.registry import backbone_from_spec
from bmnas.machine.errors import UserError, few, one_line
from bmnas.machine.tensor_file import read_tensors, write_tensors

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIX = "module."  # left by nn.DataParallel


def save_backbone(path: Path, backbone: Backbone, extra: Mapping[str, Any]) -> None:
    """Write ``backbone``, truncated or not, and ``extra``, plain JSON data, to ``path``.

    The file is whole or not at all, and equal for equal content.
    """
    description = {"format": FORMAT, "spec": backbone.spec(), "extra": dict(extra)}
    write_tensors(path, backbone.state_dict(), description)


def load_backbone(path: Path, module: object = None) -> tuple[Backbone, dict[str, Any]]:
    """Read what ``save_backbone`` wrote: the backbone, in eval mode, and ``extra``.

    ``module`` is the modality's ``backbone``, which a user's own module needs, see
    ``backbone_from_spec``. Raises UserError, naming the file, when it is missing, damaged, or
    of another format, or when its tensors are not those of its description.
    """
    description, tensors = read_tensors(path, described=FORMAT)
    if not isinstance(description.get("extra"), dict):
        raise UserError(f"{path}: its description has no extra, expected an object")
    try:
        backbone = backbone_from_spec(description.get("spec"), module=module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    _load_state(backbone, tensors, path)
    return backbone.eval(), description["extra"]


def load_weights(backbone: Backbone, path: Path) -> None:
    """Load pretrained weights into ``backbone``, for a user's own module into that module.

    ``path`` is a ``.safetensors`` file or a ``state_dict`` saved by torch, by itself or under
    ``state_dict``, ``model_state_dict`` or ``model``, its names with or without ``module.``.
    Raises UserError when the file is missing, damaged, holds anything but tensors, or when
    names or shapes differ from the backbone's.
    """
    if path.suffix == ".safetensors":
        _, state = read_tensors(path)
    else:
        state = _state_dict_of(_read_torch(path), path)
    if state and all(name.startswith(_PREFIX) for name in state):
        state = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
    _load_state(backbone.weights_module(), state, path)


def _read_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            # About pickle protocols that it may not read: it refuses those by itself.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: received a file that is damaged or holds more than tensors, which is not "
            "loaded as it could run code: save model.state_dict(), or a .safetensors file"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = one_line(error, 200)
        raise UserError(f"{path}: not a file that torch.save wrote: {reason}") from error


def _state_dict_of(content: object, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        found = (
            f"the keys {few(content)}"
            if isinstance(content, dict)
            else f"a {type(content).__name__}"
        )
        raise UserError(
            f"{path}: received {found}, expected a state_dict of tensors, by itself or under "
            f"{', '.join(_WRAPPERS)}"
        )
    return {str(name): tensor for name, tensor in content.items()}


def _load_state(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    misshaped = [
        f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    found = [f"{len(names)} {what} ({few(names)})" for what, names in wrong.items() if names]
    if found:
        raise UserError(
            f"{path}: received weights that do not fit this backbone's {len(own)} tensors: "
            + "; ".join(found)
        )
    module.load_state_dict(state)
