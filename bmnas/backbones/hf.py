"""Pretrained networks from a folder in the format of Hugging Face transformers.

Legend: B batch, T tokens or time, H height, W width, C channels, K classes. The package is
imported only when such a backbone is built. No code of the folder is run, and nothing but tensors
is unpickled. What its processor does to pictures and sounds is a part of the network, so that
whoever serves it needs neither transformers nor torch.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bmnas.backbones.base import PooledHead, has_colour
from bmnas.backbones.hf_inputs import PlannedPixels, TokenReader, ends, imported, sound_module
from bmnas.backbones.tap import Reader, TappedBackbone, evaluating, first_tensor
from bmnas.backbones.texts import text_length
from bmnas.backbones.words import MaskedHead, PaddedBackbone
from bmnas.machine.errors import UserError, one_line
from bmnas.machine.files import read_json
from bmnas.machine.runtime import in_full_precision
from bmnas.tasks.pictures import PROCESSORS, PicturePlan
from bmnas.tasks.task import Array, Modality, ModalityType

_FEATURES = 4
_MOST_TOKENS = 512  # where a model has no limit of its own
#: Other kernels of attention do not all export.
_LOADING: dict[str, Any] = {"trust_remote_code": False, "attn_implementation": "eager"}
#: What drops layers or stretches of the input in training: features would be missing.
_STEADY = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "apply_spec_augment": False}
_NOT_PORTABLE = ("_name_or_path", "auto_map", "transformers_version")
_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
_VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model",
    "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
#: The part of a model of two that reads a type.
_HALVES: dict[ModalityType, str] = {
    "text": "text_model",
    "image": "vision_model",
    "clip": "vision_model",
    "waveform": "audio_model",
}
_FEATURE = re.compile(r"(?:layer|stage)([1-9][0-9]*)(?:\.(cls|mean))?")


class HFBackbone(TappedBackbone, PaddedBackbone):
    """A network of transformers for texts, images, clips or waveforms.

    ``model`` is its configuration, ``reader`` how the modality is read, ``processor`` what stands
    before the network: a ``PicturePlan``, the configuration of a feature extractor, or of a
    tokenizer what fills up (``fill``, ``pad``: None where it counts like any token). ``network``
    is the model, None for one without weights yet.

    ``features`` name layers, or the stages of a hierarchical network: ``layer6``, its class token
    ``layer6.cls`` (B, C) or its mean ``layer6.mean`` (B, C). Without them there are up to four
    evenly spaced ones, called "1", "2", …. The last layer's is the last hidden state, with the norm
    that follows it. Features are (B, C, T), zero at padding, or maps (B, C, H', W') and
    (B, C, T', H', W') without special tokens.

    Raises UserError when transformers is not installed or the model is of another kind.
    """

    family: ClassVar[str] = "hf"
    types: ClassVar[tuple[ModalityType, ...]] = ("text", "image", "clip", "waveform")

    def __init__(
        self,
        *,
        classes: int,
        model: Mapping[str, Any],
        reader: Mapping[str, Any],
        processor: Mapping[str, Any],
        features: Sequence[str] = (),
        network: nn.Module | None = None,
    ) -> None:
        processor = dict(processor)
        super().__init__(
            TokenReader(reader, processor["fill"]) if "fill" in processor else Reader(reader),
            classes=classes,
            model=dict(model),
            reader=dict(reader),
            processor=processor,
            features=list(features),
        )
        self.processor = processor
        self.pad = processor.get("pad")
        self.prepare, self.size = self._prepares()
        if network is None:
            transformers = imported("transformers")
            empty = transformers.AutoConfig.for_model(**model)
            network = _part(transformers.AutoModel.from_config(empty, **_LOADING), self.reader.type)
        self.network = network
        layers = _layers(network, model)
        self.pooled = _wanted(features, len(layers))
        with evaluating(self):
            modules = [*layers[:-1], self._last(layers[-1])]
        self.tap(network, {name: modules[n - 1] for name, (n, _) in self.pooled.items()})
        self.feature_names = tuple(self.pooled)
        with evaluating(self):
            found = self.features(self.example())
        self.feature_channels = tuple(feature.shape[1] for feature in found)
        width, flat = self.feature_channels[-1], found[-1].dim() != 3
        masked = not flat and (self.reader.type == "text" or self._has_frames())
        self.head = MaskedHead(width, classes, 0.1) if masked else PooledHead(width, classes)
        # A pooler is no part of any feature.
        self.prune()

    @classmethod
    def from_folder(cls, modality: Modality, folder: Path, *, classes: int, rows: Array) -> Self:
        """Load the model in ``folder`` for K ``classes`` and the train ``rows`` of ``modality``.

        Raises UserError when the package, the folder or one of its files is missing or damaged.
        """
        network, model, missing = _pretrained(folder, modality.type)
        try:
            reader = Reader.from_rows(modality, rows).config if modality.type != "text" else {}
            if modality.type == "text":
                reader, processor = _text_reader(modality, rows, folder, network)
            elif modality.type == "waveform":
                processor = _extractor(folder)
            else:
                size = getattr(network.config, "image_size", None)
                processor = PicturePlan.of_folder(folder, size).to_dict()
                files = (modality.source or {}).get("files") or {}
                if files.get("resize"):  # done when the files were read
                    processor |= {"size": None, "crop": None}
            backbone = cls(
                classes=classes,
                model=model,
                reader=reader,
                processor=processor,
                features=modality.features,
                network=network,
            )
        except UserError as error:
            place = str(error) if str(folder) in str(error) else f"{folder}: {error}"
            raise UserError(place) from error
        used = {id(tensor) for tensor in backbone.network.parameters()}
        lacking = sorted(name for name, tensor in missing.items() if id(tensor) in used)
        if lacking:
            raise UserError(
                f"{folder}: its weights lack {len(lacking)} of the model's tensors "
                f"({', '.join(lacking[:3])}), expected all"
            )
        return backbone

    def _prepares(self) -> tuple[nn.Module, tuple[int, ...]]:
        """Return what makes the network's input, and the sizes of its positions, if known."""
        type_, shape, dtype = self.reader.type, self.reader.shape, self.reader.dtype
        if type_ == "text":
            return nn.Identity(), ()
        if type_ == "waveform":
            module, rate = sound_module(self.processor, dtype)
            given = self.reader.config.get("sample_rate")
            if given != rate:
                raise UserError(
                    f"received sounds of {given} samples per second, expected {rate}, as its "
                    "feature extractor says: resample them"
                )
            return module, ()
        plan = PicturePlan(**self.processor)
        colour = has_colour(type_, shape)
        frames = shape[:-3] if colour else shape[:-2]
        height, width = shape[len(frames) : len(frames) + 2]
        module = PlannedPixels(plan, (height, width), colour=colour, dtype=dtype)
        return module, (*frames, *plan.output(height, width))

    def run(self, x: Tensor) -> object:
        """Return what the network makes of the raw input ``x`` (B, *shape)."""
        if self.reader.type == "text":
            tokens = {} if self.pad is None else {"attention_mask": (x != self.pad).long()}
            return self.network(input_ids=x.clamp(min=0), **tokens)
        prepared = in_full_precision(self.prepare, x)
        if self.reader.type == "clip":
            count = int(getattr(self.network.config, "num_frames", prepared.shape[1]))
            if count != prepared.shape[1]:
                # The middle ones of equally long parts.
                places = (torch.arange(count, device=x.device) + 0.5) * prepared.shape[1] / count
                prepared = prepared.index_select(1, places.long())
        if self._has_frames():
            samples = torch.arange(x.shape[1], device=x.device) < ends(x)
            return self.network(prepared, attention_mask=samples.long())
        return self.network(prepared)

    def checkpoint_gradients(self) -> bool:
        """Keep the inputs of layers alone, and compute these again, as transformers does it."""
        network: Any = self.network
        if not network.supports_gradient_checkpointing:
            return False
        # The second is its name in earlier versions.
        enable = getattr(network, "activation_checkpointing_enable", None)
        (enable or network.gradient_checkpointing_enable)({"use_reentrant": False})
        # The pass ends with an exception at the last feature, which earlier versions raise inside
        # what is computed again.
        number, _ = self.pooled[self.feature_names[-1]]
        last: Any = _layers(network, self.config["model"])[number - 1]
        last.gradient_checkpointing = False
        return True

    def _has_frames(self) -> bool:
        """Tell whether the network is told which frames of a waveform are its padding."""
        wave = "conv_kernel" in self.config["model"]
        return wave and bool(self.processor.get("return_attention_mask"))

    def mask(self, x: Tensor) -> Tensor | None:
        """Return which tokens or frames (B, T) of ``x`` are content; None: all."""
        if self.reader.type != "waveform":
            return super().mask(x)
        if not self._has_frames():
            return None
        count, length = torch.tensor(x.shape[1], device=x.device), ends(x)
        model = self.config["model"]
        for kernel, stride in zip(model["conv_kernel"], model["conv_stride"], strict=True):
            count, length = ((n - kernel) // stride + 1 for n in (count, length))
        return torch.arange(int(count), device=x.device) < length.clamp(min=1)

    def arrange(self, name: str, output: Tensor, x: Tensor) -> Tensor:
        """Return hidden states as a feature (B, C_raw, *rest), pooled where that is asked for."""
        pooling = self.pooled[name][1]
        timm = getattr(self.network, "timm_model", None)
        if output.dim() == 4 and str(getattr(timm, "output_fmt", "")).endswith("NHWC"):
            output = output.permute(0, 3, 1, 2)
        if output.dim() == 4 and pooling != "cls":
            return output.mean((2, 3)) if pooling == "mean" else output
        grid = self._grid(output.shape[1]) if output.dim() == 3 else ()
        special = output.shape[1] - torch.Size(grid).numel() if grid else 0
        if pooling == "cls":
            if not (special or self.processor.get("cls")):
                raise UserError(
                    f"received feature {name!r}, but {type(self.network).__name__} has no class "
                    f"token: expected {name.replace('cls', 'mean')}"
                )
            return output[:, 0]
        hidden = output[:, special:].transpose(1, 2)
        if not grid and (self.reader.type == "text" or self._has_frames()):
            content = self.content(x, hidden.dtype)
            hidden = hidden * content
            if pooling == "mean":
                return hidden.sum(2) / content.sum(2).clamp(min=1)
        if pooling == "mean":
            return hidden.mean(2)
        maps = hidden.unflatten(2, grid) if grid else hidden
        # Bands come first in AST; elsewhere here it is time.
        return maps.transpose(2, 3) if "frequency_stride" in self.config["model"] else maps

    def _grid(self, tokens: int) -> tuple[int, ...]:
        """Return how many patches there are along each axis, () where there are none.

        Special tokens stand in front of them. Later stages of a hierarchical network have half as
        many along each axis as the stage before.
        """
        config: Any = self.network.config
        embedding = getattr(getattr(self.network, "timm_model", config), "patch_embed", config)
        patch: Any = getattr(embedding, "patch_size", None)
        if self.reader.type == "waveform" and hasattr(config, "frequency_stride"):
            strides = (config.frequency_stride, config.time_stride)
            sizes = (config.num_mel_bins, config.max_length)
            return tuple((n - patch) // s + 1 for n, s in zip(sizes, strides, strict=True))
        if patch is None or not self.size:
            return ()
        down, across = patch if isinstance(patch, list | tuple) else (patch, patch)
        *_, height, width = self.size
        grid = height // down, width // across
        if self.reader.type == "clip":
            return (config.num_frames // config.tubelet_size, *grid)
        while grid[0] * grid[1] > tokens:
            grid = -(-grid[0] // 2), -(-grid[1] // 2)
        return grid

    def _last(self, layer: nn.Module) -> nn.Module:
        """Return the module whose output is the last hidden state: ``layer`` or a norm after it."""
        made: list[tuple[nn.Module, Tensor]] = []

        def note(module: nn.Module, inputs: object, output: object) -> None:
            tensor = first_tensor(output)
            if tensor is not None and (made or module is layer):
                made.append((module, tensor))

        hooks = [part.register_forward_hook(note) for part in self.network.modules()]
        try:
            last = first_tensor(self.run(self.example()))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"{type(self.network).__name__} cannot take what its processor makes of rows of "
                f"shape {self.reader.shape}: {one_line(error, 200)}"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        for module, tensor in made:
            if last is None or tensor.numel() != last.numel() or tensor.dim() < 3:
                continue
            if tensor.data_ptr() == last.data_ptr():
                return module
        return layer

    def longer(self, rows: Array) -> int:
        """Count the texts in ``rows`` (n,) that are cut."""
        return self.reader.longer(rows) if isinstance(self.reader, TokenReader) else 0

    def example(self, count: int = 2) -> Tensor:
        """Return raw inputs (count, *shape): zeros, or a token that is not padding."""
        return super().example(count) + int(self.pad == 0)


def _wanted(features: Sequence[str], layers: int) -> dict[str, tuple[int, str]]:
    """Return the layer, and how it is pooled, of each feature by its name, the earliest first."""
    if not features:
        count = min(_FEATURES, layers)
        return {str(n + 1): ((n + 1) * layers // count, "") for n in range(count)}
    found = {}
    for name in features:
        match = _FEATURE.fullmatch(name)
        number = int(match[1]) if match else 0
        if match is None or number > layers:
            raise UserError(
                f"received feature {name!r}, expected layer1 to layer{layers}, as it is, or its "
                f"class token (layer{layers}.cls) or mean (layer{layers}.mean)"
            )
        found[name] = number, match[2] or ""
    return dict(sorted(found.items(), key=lambda item: item[1][0]))


def _text_reader(
    modality: Modality, rows: Array, folder: Path, network: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how texts are read, as long as the longest of the train ``rows``, and filled up."""
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise UserError(f"{folder}: lacks {', '.join(_VOCABULARIES[:4])}, expected one of them")
    try:
        tokenizer = imported("transformers").AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        content = json.loads(tokenizer.backend_tokenizer.to_str())
    except UserError:
        raise
    except Exception as error:  # tokenizers raises plain exceptions for malformed content
        raise UserError(f"its tokenizer cannot be read: {one_line(error, 200)}") from error
    pad, config = tokenizer.pad_token_id, network.config
    masked = "attention_mask" in tokenizer.model_input_names
    content_ids = {tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id}
    if masked and (pad is None or pad in content_ids):
        pad = -1  # what ends a text is a part of it
    if pad is None:
        raise UserError("its tokenizer has no pad token, expected one")
    positions = getattr(config, "max_position_embeddings", None) or _MOST_TOKENS
    limit = int(tokenizer.model_max_length)
    if limit > positions:
        limit = max(1, positions - 2)  # some models count positions from two on
    processor = {"pad": pad if masked else None, "fill": pad}
    processor["cls"] = tokenizer.cls_token_id is not None
    reader = {"type": "text", "shape": [limit], "dtype": "int64", "tokenizer": content}
    if masked:
        used = (TokenReader(reader, -1).encode(rows) >= 0).sum(1)
        reader["shape"] = [min(limit, text_length(used.tolist(), modality.length))]
    elif modality.length not in (None, limit):
        raise UserError(
            f"received length = {modality.length}, but its tokenizer gives no attention mask: its "
            f"texts are filled up to {limit} tokens, as in its training: leave length out"
        )
    encoded = TokenReader(reader, -1).encode(rows[:8])
    for row, text in zip(encoded, rows[:8], strict=True):
        expected = tokenizer(str(text), truncation=True, max_length=len(row)).input_ids
        if row[row >= 0].tolist() != expected:
            raise UserError(
                f"{type(tokenizer).__name__} does more than its file says: of {str(text)[:40]!r} "
                f"it makes {expected[:8]}, the file {row[:8].tolist()}"
            )
    return reader, processor


def _extractor(folder: Path) -> dict[str, Any]:
    """Return the configuration of the feature extractor in ``folder``."""
    for name in PROCESSORS:
        if (folder / name).is_file():
            content = read_json(folder / name)
            if isinstance(content, dict):
                content = content.get("feature_extractor", content)
                # Whisper's has thousands of numbers that follow from the others.
                return {k: v for k, v in content.items() if k != "mel_filters"}
    raise UserError(f"{folder}: lacks {' and '.join(PROCESSORS)}, expected one of them")


def _pretrained(folder: Path, type_: ModalityType) -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
    """Return the model in ``folder``, its configuration, and the tensors that its files lack.

    Of a model of several parts it is the one that reads ``type_``, of encoder and decoder the
    encoder. The configuration is without what is the folder's own.
    """
    weights = [name for name in _WEIGHTS if (folder / name).is_file()]
    if not (folder / "config.json").is_file() or not weights:
        lacks = _WEIGHTS[0] if (folder / "config.json").is_file() else "config.json"
        why = f"lacks {lacks}" if folder.is_dir() else "there is no such folder"
        raise UserError(
            f"backbone hf:{folder}: {why}, expected config.json, {_WEIGHTS[0]} (or its shards, or "
            "pytorch_model.bin) and a tokenizer or processor, as save_pretrained writes them"
        )
    content = read_json(folder / "config.json")
    if not isinstance(content, dict):
        raise UserError(
            f"{folder / 'config.json'}: received a {type(content).__name__}, expected an object"
        )
    if "pretrained_cfg" in content or content.get("model_type") == "timm_wrapper":
        imported_timm(folder)
    transformers = imported("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        for part in (config, *(getattr(config, f"{n}_config", None) for n in ("text", "audio"))):
            for name, value in _STEADY.items():
                if hasattr(part, name):
                    setattr(part, name, value)
        with _without_bars(transformers.utils.logging):
            network, loading = transformers.AutoModel.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=weights[0].startswith("model"),
                output_loading_info=True,
                dtype=torch.float32,
                weights_only=True,
                **_LOADING,
            )
    except (
        OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError,
        SafetensorError, pickle.UnpicklingError,
    ) as error:  # fmt: skip
        raise UserError(
            f"{folder}: cannot be loaded by transformers: {one_line(error, 200)}"
        ) from error
    tensors = dict(network.named_parameters(remove_duplicate=False))
    missing = {name: tensors[name] for name in loading["missing_keys"] if name in tensors}
    plain = json.loads(network.config.to_json_string(use_diff=False))
    model = {key: value for key, value in plain.items() if key not in _NOT_PORTABLE}
    return _part(network, type_), model, missing


@contextmanager
def _without_bars(logging: Any) -> Iterator[None]:
    """Have transformers draw no progress bars: a small network is loaded dozens of times."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def imported_timm(folder: Path) -> None:
    """Raise UserError where timm, or torchvision, which it needs, is not installed."""
    for package in ("torchvision", "timm"):
        try:
            imported(package)
        except UserError as error:
            raise UserError(
                f"{folder}: a model of timm, which needs the packages timm and torchvision: "
                f"{package} is not installed: pip install timm torchvision"
            ) from error


def _part(network: Any, type_: ModalityType) -> nn.Module:
    """Return the part of a model that reads ``type_``: one of two, an encoder, or all of it."""
    half = getattr(network, _HALVES[type_], None)
    if isinstance(half, nn.Module):
        return half
    if getattr(network.config, "is_encoder_decoder", False):
        encoder: nn.Module = network.get_encoder()
        return encoder
    whole: nn.Module = network
    return whole


def _layers(network: Any, model: Mapping[str, Any]) -> nn.ModuleList:
    """Return the layers, or stages, of a network: the largest list of as many as it says it has.

    A model of timm names those whose outputs are features.
    """
    timm: Any = getattr(network, "timm_model", None)
    if named := getattr(timm, "feature_info", None):
        return nn.ModuleList(timm.get_submodule(info["module"]) for info in named)
    config = network.config
    counts = {getattr(config, name, None) for name in ("num_hidden_layers", "num_stages")}
    counts.add(len(getattr(config, "depths", None) or ()))
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    # Networks such as MobileNet do not say it.
    found = [layers for layers in lists if len(layers) in counts] or lists
    if not found:
        raise UserError(
            f"received a model of type {model.get('model_type')!r}, expected one with a list of "
            "layers or stages, such as BERT, ViT or ResNet"
        )
    return max(found, key=lambda layers: sum(p.numel() for p in layers.parameters()))
