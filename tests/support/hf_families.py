"""Tiny models of transformers with random weights, saved as their authors save them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from bmnas.tasks.task import Array, ModalityType

Config = dict[str, Any]

_SMALL: Config = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
}
_VIT: Config = {**_SMALL, "image_size": 32, "patch_size": 8}
_SQUARE = {"height": 32, "width": 32}
_SHORTEST = {"size": {"shortest_edge": 36}, "crop_size": _SQUARE}
_CLIP_TEXT: Config = {**_SMALL, "vocab_size": 300, "max_position_embeddings": 24}
_SPEECH: Config = {
    **_SMALL,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
_WORDS = "the quick brown fox jumps over a lazy dog, packs my box with five dozen liquor jugs!"
TEXTS = np.array(["The quick red fox", "jumps!", "over 5 lazy dogs, my box: jugs", "a é — fox"])
RATE = 16000


def _image(config: str, processor: str, keywords: Config, **sizes: Any) -> tuple[Any, ...]:
    return "image", config, keywords, processor, sizes


def _text(config: str, tokenizer: str, **keywords: Any) -> tuple[Any, ...]:
    return "text", config, {"vocab_size": 300, **keywords}, tokenizer, {}


def _sound(config: str, extractor: str, keywords: Config, **sizes: Any) -> tuple[Any, ...]:
    return "waveform", config, keywords, extractor, sizes


def _clip(name: str, **vision: Any) -> Config:
    text = _CLIP_TEXT if name == "CLIP" else {**_CLIP_TEXT, "max_position_embeddings": 16}
    return {"vision_config": {**_VIT, **vision}, "text_config": text, "projection_dim": 16}


_STAGES: Config = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1]}
_SPM = "T5Tokenizer"

#: By name: type of the modality, class and keywords of the configuration, class and keywords of
#: what prepares its input.
FAMILIES: dict[str, tuple[Any, ...]] = {
    "vit": _image("ViTConfig", "ViTImageProcessor", _VIT, size=_SQUARE),
    "deit": _image("DeiTConfig", "DeiTImageProcessor", _VIT, size=36, crop_size=_SQUARE),
    "beit": _image("BeitConfig", "BeitImageProcessor", _VIT, size=_SQUARE),
    "dinov2": _image("Dinov2Config", "BitImageProcessor", _VIT, **_SHORTEST),
    "dinov2 registers": _image(
        "Dinov2WithRegistersConfig", "BitImageProcessor", _VIT, **_SHORTEST
    ),
    "dinov3": _image(
        "DINOv3ViTConfig", "DINOv3ViTImageProcessor", {**_VIT, "num_register_tokens": 2},
        size=_SQUARE,
    ),
    "dinov3 convnext": _image(
        "DINOv3ConvNextConfig", "DINOv3ViTImageProcessor", _STAGES, size=_SQUARE
    ),
    "clip": _image("CLIPConfig", "CLIPImageProcessor", _clip("CLIP"), **_SHORTEST),
    "clip vision": _image("CLIPVisionConfig", "CLIPImageProcessor", _VIT, **_SHORTEST),
    "siglip": _image("SiglipConfig", "SiglipImageProcessor", _clip("Siglip"), size=_SQUARE),
    "swin": _image(
        "SwinConfig", "ViTImageProcessor",
        {
            "image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2, 1],
            "num_heads": [1, 2, 2], "window_size": 4,
        },
        size=_SQUARE,
    ),
    "convnext": _image(
        "ConvNextConfig", "ConvNextImageProcessor", _STAGES, size={"shortest_edge": 32}
    ),
    "convnext warped": _image(
        "ConvNextConfig", "ConvNextImageProcessor", _STAGES, size={"shortest_edge": 384}
    ),
    "resnet": _image(
        "ResNetConfig", "ConvNextImageProcessor",
        {**_STAGES, "embedding_size": 8, "hidden_sizes": [8, 16, 16, 32]},
        size={"shortest_edge": 32}, crop_pct=0.95,
    ),
    "mobilenet v1": _image(
        "MobileNetV1Config", "MobileNetV1ImageProcessor", {"depth_multiplier": 0.25}, **_SHORTEST
    ),
    "mobilenet v2": _image(
        "MobileNetV2Config", "MobileNetV2ImageProcessor", {"depth_multiplier": 0.25}, **_SHORTEST
    ),
    "bert": _text("BertConfig", "BertTokenizer", **_SMALL),
    "roberta": _text("RobertaConfig", "RobertaTokenizer", **_SMALL, max_position_embeddings=40),
    "xlm-roberta": _text(
        "XLMRobertaConfig", "XLMRobertaTokenizer", **_SMALL, max_position_embeddings=40
    ),
    "distilbert": _text(
        "DistilBertConfig", "BertTokenizer", dim=16, n_layers=2, n_heads=2, hidden_dim=32
    ),
    "deberta": _text("DebertaConfig", "DebertaTokenizer", **_SMALL),
    "deberta v2": _text(
        "DebertaV2Config", "DebertaV2Tokenizer", **_SMALL, relative_attention=True,
        pos_att_type=["p2c", "c2p"], position_buckets=16, share_att_key=True,
        norm_rel_ebd="layer_norm",
    ),
    "modernbert": _text(
        "ModernBertConfig", "BertTokenizer", **{**_SMALL, "num_hidden_layers": 4},
        local_attention=8, global_attn_every_n_layers=2, pad_token_id=0,
    ),
    "t5": _text("T5Config", _SPM, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2),
    "gpt2": _text("GPT2Config", "GPT2Tokenizer", n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "clip text": ("text", "CLIPConfig", _clip("CLIP"), "CLIPTokenizer", {"model_max_length": 24}),
    "siglip text": (
        "text", "SiglipConfig", _clip("Siglip"), _SPM,
        {"model_max_length": 16, "model_input_names": ["input_ids"], "pad_token": "</s>"},
    ),
    "wav2vec2": _sound("Wav2Vec2Config", "Wav2Vec2FeatureExtractor", _SPEECH),
    "wav2vec2 masked": _sound(
        "Wav2Vec2Config", "Wav2Vec2FeatureExtractor",
        {**_SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
        return_attention_mask=True,
    ),
    "hubert": _sound("HubertConfig", "Wav2Vec2FeatureExtractor", _SPEECH, do_normalize=True),
    "wavlm": _sound("WavLMConfig", "Wav2Vec2FeatureExtractor", _SPEECH, do_normalize=False),
    "whisper": _sound(
        "WhisperConfig", "WhisperFeatureExtractor",
        {
            "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "decoder_layers": 1,
            "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_attention_heads": 2,
            "vocab_size": 60, "max_source_positions": 50, "num_mel_bins": 20, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3,
        },
        feature_size=20, chunk_length=1,
    ),
    "ast": _sound(
        "ASTConfig", "ASTFeatureExtractor",
        {**_SMALL, "num_mel_bins": 32, "max_length": 96},
        num_mel_bins=32, max_length=96,
    ),
    "videomae": (
        "clip", "VideoMAEConfig", {**_VIT, "num_frames": 4}, "VideoMAEImageProcessor", _SHORTEST
    ),
}  # fmt: skip


def save_family(name: str, folder: Path, **saving: Any) -> ModalityType:
    """Write the model and what prepares its input to ``folder``; return the modality's type."""
    type_, config_class, keywords, processor, sizes = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**keywords)
    network = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:  # initial weights are so small that inputs hardly matter
                parameter.normal_(std=0.5 / max(1, parameter[0].numel()) ** 0.5 + 0.1)
    network.save_pretrained(folder, **saving)
    if type_ == "text":
        tokenizer = getattr(transformers, processor)().train_new_from_iterator([_WORDS] * 9, 300)
        tokenizer.save_pretrained(folder)
        file = folder / "tokenizer_config.json"
        written = json.loads(file.read_text(encoding="utf-8")) | sizes
        file.write_text(json.dumps(written), encoding="utf-8")
    else:
        prepares(name).save_pretrained(folder)
    modality: ModalityType = type_
    return modality


def prepares(name: str) -> Any:
    """Return the image processor or feature extractor of a family."""
    type_, _, _, processor, sizes = FAMILIES[name]
    if processor == "DINOv3ViTImageProcessor":
        return _DINOv3(**sizes)
    found = getattr(transformers, processor + ("Pil" if type_ in ("image", "clip") else ""))
    return found(**sizes)


class _DINOv3(transformers.ViTImageProcessorPil):
    """Its own class needs torchvision: the same steps in torch."""

    image_mean, image_std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

    def to_dict(self) -> Config:
        return {**super().to_dict(), "image_processor_type": "DINOv3ViTImageProcessorFast"}

    def __call__(self, images: Array, return_tensors: str) -> dict[str, Tensor]:
        x = torch.from_numpy(images).movedim(-1, 0).float()[None] / 255
        size = (self.size["height"], self.size["width"])
        x = nn.functional.interpolate(x, size, mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.image_mean, self.image_std))
        return {"pixel_values": (x - mean) / std}


def rows_of(type_: ModalityType) -> Array:
    """Return noisy rows of odd sizes."""
    draw = np.random.default_rng(0)
    match type_:
        case "text":
            return TEXTS
        case "image":
            return draw.integers(0, 256, (3, 53, 71, 3), dtype=np.uint8)
        case "clip":
            return draw.integers(0, 256, (2, 4, 45, 39, 3), dtype=np.uint8)
    return (draw.normal(size=(3, 10007)) * 0.1).astype(np.float32)


def hidden_states(name: str, folder: Path, row: Any) -> tuple[Tensor, ...]:
    """Return the hidden states of one row as transformers itself computes them."""
    type_ = FAMILIES[name][0]
    network = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    part: Callable[..., Any] = network
    config = network.config
    if hasattr(config, "vision_config"):
        part = network.text_model if type_ == "text" else network.vision_model
    elif config.is_encoder_decoder:
        part = network.get_encoder()
    match type_:
        case "text":
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            padding = "attention_mask" not in tokenizer.model_input_names
            inputs = tokenizer(
                str(row),
                return_tensors="pt",
                padding="max_length" if padding else False,
                truncation=padding,
            )
            inputs.pop("token_type_ids", None)
        case "image":
            inputs = prepares(name)(row, return_tensors="pt")
        case "clip":
            inputs = prepares(name)(list(row), return_tensors="pt")
        case _:
            inputs = prepares(name)(row, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        found = part(**inputs, output_hidden_states=True)
    return (*found.hidden_states[:-1], found.last_hidden_state)
