"""Pretrained transformers from a local folder in the format of Hugging Face transformers.

Legend: B batch, T tokens, H height, W width, C channels, K classes. The package is imported only
when such a backbone is built. Nothing is downloaded, and no code of the folder is run: weights
come from safetensors, configuration and tokenizer from JSON.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from bmnas.backbones.base import InputSpec, PooledHead
from bmnas.backbones.conv import Pixels
from bmnas.backbones.tap import Reader, TappedBackbone
from bmnas.backbones.words import MaskedHead, PaddedBackbone
from bmnas.machine.errors import UserError, one_line
from bmnas.machine.files import read_json
from bmnas.tasks.task import Array, Modality, ModalityType

_FEATURES = 4
_LONGEST = 128  # tokens
#: Other kernels of attention do not all export.
_LOADING: dict[str, Any] = {"trust_remote_code": False, "attn_implementation": "eager"}
_NOT_PORTABLE = ("_name_or_path", "auto_map", "transformers_version")


class HFBackbone(TappedBackbone, PaddedBackbone):
    """A transformer of transformers: BERT-like for texts, ViT-like for images.

    ``model`` is its configuration, ``reader`` how the modality is read (a ``Reader``'s for
    images, ``shape``, ``dtype`` and ``tokenizer`` for texts), ``pixels`` the normalisation of
    images. ``network`` is the model, None for one without weights yet. Features are the outputs
    of up to four evenly spaced layers: (B, C, T), zero at padding, or maps (B, C, H', W').

    Raises UserError when transformers is not installed or the model is of another kind.
    """

    family: ClassVar[str] = "hf"
    types: ClassVar[tuple[ModalityType, ...]] = ("text", "image")

    def __init__(
        self,
        *,
        classes: int,
        model: Mapping[str, Any],
        reader: Mapping[str, Any],
        pixels: Mapping[str, Any] | None = None,
        network: nn.Module | None = None,
    ) -> None:
        pad = int(model["pad_token_id"]) if pixels is None else None
        super().__init__(
            Reader(reader) if pad is None else TokenReader(reader, pad),
            classes=classes,
            model=dict(model),
            reader=dict(reader),
            pixels=None if pixels is None else dict(pixels),
        )
        self.pad = pad
        self.prepare: nn.Module = nn.Identity()
        if pixels is not None:
            self.prepare = ModelPixels(self.reader.shape, self.reader.dtype, **pixels)
        if network is None:
            transformers = _imported("transformers")
            empty = transformers.AutoConfig.for_model(**model)
            network = transformers.AutoModel.from_config(empty, **_LOADING)
        layers = _layers(network, model)
        count = min(_FEATURES, len(layers))
        self.feature_names = tuple(str(number + 1) for number in range(count))
        picked = [layers[(number + 1) * len(layers) // count - 1] for number in range(count)]
        self.tap(network, dict(zip(self.feature_names, picked, strict=True)))
        width = int(network.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.feature_channels = (width,) * count
        self.head = PooledHead(width, classes) if pad is None else MaskedHead(width, classes, 0.1)
        # A pooler or a last norm is no part of any feature.
        self.prune()

    @classmethod
    def from_folder(cls, modality: Modality, folder: Path, *, classes: int, rows: Array) -> Self:
        """Load the model in ``folder`` for K ``classes`` and the train ``rows`` of ``modality``.

        Raises UserError when the package, the folder or one of its files is missing or damaged.
        """
        is_text = modality.type == "text"
        other = "tokenizer.json" if is_text else "preprocessor_config.json"
        names = ("config.json", "model.safetensors", other)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            why = f"lacks {', '.join(missing)}" if folder.is_dir() else "there is no such folder"
            raise UserError(
                f"backbone hf:{folder}: {why}, expected {', '.join(names)}, as save_pretrained "
                "writes them; nothing is downloaded"
            )
        network, model = _pretrained(folder)
        content = read_json(folder / other)
        if not isinstance(content, dict):
            raise UserError(
                f"{folder / other}: received a {type(content).__name__}, expected an object"
            )
        pixels: dict[str, Any] | None = None
        try:
            if is_text:
                reader = _text_reader(rows, model, content)
            else:
                reader = Reader.from_rows(modality, rows).config
                pixels = _pixels(content, model)
            return cls(classes=classes, model=model, reader=reader, pixels=pixels, network=network)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error

    def run(self, x: Tensor) -> object:
        """Return what the transformer makes of token numbers (B, T) or pixels (B, *shape)."""
        if self.pad is None:
            return self.network(pixel_values=self.prepare(x))
        return self.network(input_ids=x, attention_mask=(x != self.pad).long())

    def arrange(self, name: str, output: Tensor, x: Tensor) -> Tensor:
        """Return hidden states (B, T, C) as (B, C, T), or as a map without special tokens."""
        hidden = output.transpose(1, 2)
        if self.pad is not None:
            return hidden * self.content(x, hidden.dtype)
        height, width = self.grid()
        # Class token and registers stand in front of the patches.
        patches = hidden[:, :, hidden.shape[2] - height * width :]
        return patches.reshape(*patches.shape[:2], height, width)

    def grid(self) -> tuple[int, int]:
        """Return how many patches an image has, down and across."""
        patch = self.config["model"]["patch_size"]
        down, across = patch if isinstance(patch, list | tuple) else (patch, patch)
        height, width = self.config["pixels"]["size"]
        return height // down, width // across

    def example(self, count: int = 2) -> Tensor:
        """Return raw inputs (count, *shape): zeros, or a token that is not padding."""
        return super().example(count) + int(self.pad == 0)


class ModelPixels(nn.Module):
    """Raw pixels to what a vision transformer expects: three colours, its size, its scale."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        dtype: str,
        *,
        scale: float,
        mean: Sequence[float],
        std: Sequence[float],
        size: Sequence[int],
    ) -> None:
        super().__init__()
        self.pixels = Pixels(colour=len(shape) == 3, dtype=dtype)
        self.scale = scale
        self.size = tuple(size)
        self.resized = tuple(shape[:2]) != self.size
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 (B, C, H', W'), resized bilinearly where the size differs."""
        x = self.pixels(x) * self.scale
        if self.resized:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False)
        # Broadcasting gives a grey image its colours.
        return (x - self.mean) / self.std


class TokenReader(Reader):
    """Texts to token numbers (n, T), int64, filled up with ``pad``, by the model's tokenizer."""

    def __init__(self, config: Mapping[str, Any], pad: int) -> None:
        super().__init__(config)
        self.pad = pad
        tokenizers = _imported("tokenizers")
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(config["tokenizer"]))
        except Exception as error:  # the package raises plain exceptions for malformed content
            raise UserError(f"the tokenizer is malformed: {one_line(error, 200)}") from error
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.shape[0])

    def encode(self, rows: Array) -> Array:
        """Return the token numbers (n, T) of the texts ``rows`` (n,)."""
        encoded = np.full((len(rows), *self.shape), self.pad, dtype=np.int64)
        texts = self.tokenizer.encode_batch([str(text) for text in rows])
        for row, found in zip(encoded, texts, strict=True):
            row[: len(found.ids)] = found.ids
        return encoded

    def input_spec(self) -> InputSpec:
        """Return what the graph expects: token numbers by the tokenizer."""
        note = {
            "steps": ["tokenise, special tokens added", "cut at the length", "fill up with pad"],
            "length": self.shape[0],
            "pad": self.pad,
            "tokenizer": self.config["tokenizer"],
        }
        meaning = f"one text as {self.shape[0]} token numbers of its tokenizer"
        return InputSpec(self.shape, "int64", meaning, note)


def _text_reader(
    rows: Array, model: Mapping[str, Any], tokenizer: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the configuration of a reader as long as the longest of the train texts ``rows``."""
    if model.get("pad_token_id") is None:
        raise UserError("its config.json has no pad_token_id, expected a number")
    # Some models count positions from two on.
    positions = int(model.get("max_position_embeddings") or _LONGEST + 2) - 2
    shape = [max(1, min(_LONGEST, positions))]
    config = {"type": "text", "shape": shape, "dtype": "int64", "tokenizer": tokenizer}
    used = (TokenReader(config, pad=-1).encode(rows) >= 0).sum(1)
    return {**config, "shape": [max(1, int(used.max()))]}


def _pixels(processor: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of ``ModelPixels`` from preprocessor_config.json and config.json."""
    try:
        colours = int(model.get("num_channels", 3))
        normalised = bool(processor.get("do_normalize", True))
        mean = processor["image_mean"] if normalised else [0.0] * colours
        std = processor["image_std"] if normalised else [1.0] * colours
        factor = float(processor.get("rescale_factor", 1 / 255))
        scale = 255 * factor if processor.get("do_rescale", True) else 255.0
        if len(mean) != colours or len(std) != colours or 0 in std:
            raise ValueError(f"image_mean {mean} and image_std {std} for {colours} colours")
        size = model["image_size"]
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {
            "scale": scale,
            "mean": [float(value) for value in mean],
            "std": [float(value) for value in std],
            "size": [int(height), int(width)],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{error!r}, expected image_mean and image_std in preprocessor_config.json, and "
            "image_size and patch_size in config.json"
        ) from error


def _pretrained(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model in ``folder``, and its configuration without what is the folder's own."""
    transformers = _imported("transformers")
    try:
        network, loading = transformers.AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **_LOADING,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{folder}: cannot be loaded by transformers: {one_line(error, 200)}"
        ) from error
    missing = sorted(key for key in loading["missing_keys"] if "pooler" not in key)
    if missing:
        raise UserError(
            f"{folder}: model.safetensors lacks {len(missing)} of the model's tensors "
            f"({', '.join(missing[:3])}), expected all"
        )
    config = json.loads(network.config.to_json_string(use_diff=False))
    return network, {key: value for key, value in config.items() if key not in _NOT_PORTABLE}


def _layers(network: nn.Module, model: Mapping[str, Any]) -> nn.ModuleList:
    count = getattr(getattr(network, "config", None), "num_hidden_layers", None)
    for module in network.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(
        f"received a model of type {model.get('model_type')!r}, expected a transformer with a "
        "list of num_hidden_layers layers, such as BERT or ViT"
    )


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UserError(
            f"a backbone hf:<folder> needs the package {package}: pip install 'bmnas[hf]'"
        ) from error
