from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bmnas.backbones import Backbone, build_backbone, hf_inputs, load_backbone, save_backbone
from bmnas.backbones.hf_inputs import unicode_rule
from bmnas.machine.errors import UserError
from bmnas.tasks.task import Modality

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TEXTS = np.array(["a red cat", "the dog is blue", "a cat", "unheard of"])
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
SMALL = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=12, **SMALL)
    transformers.BertModel(config).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "the", "red", "blue", "cat", "dog", "is"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_channels=3, **SMALL)
    transformers.ViTModel(config).save_pretrained(folder)
    note = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(note), encoding="utf-8")
    return folder


def text_modality(folder: Path) -> Modality:
    return Modality("t", "text", TEXTS, backbone=f"hf:{folder}")


def built(part: Modality) -> Backbone:
    return build_backbone(part, classes=3, rows=part.data).eval()


def test_a_network_is_loaded_without_a_word(bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    built(text_modality(bert))
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()


def reference(folder: Path) -> torch.nn.Module:
    network: torch.nn.Module = transformers.AutoModel.from_pretrained(
        folder, local_files_only=True, attn_implementation="eager"
    )
    return network.eval()


def test_texts_give_evenly_spaced_hidden_states(bert: Path) -> None:
    backbone = built(text_modality(bert))
    ids = torch.from_numpy(backbone.encode(TEXTS))
    assert ids.tolist()[2] == [2, 4, 8, 3, 0, 0]
    assert ids.tolist()[3] == [2, 1, 1, 3, 0, 0]
    mask = (ids != 0).long()
    states = reference(bert)(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    features = backbone.features(ids)
    assert backbone.feature_channels == (16,) * 4
    for feature, layer in zip(features, (1, 3, 4, 6), strict=True):
        expected = (states[layer] * mask[:, :, None]).transpose(1, 2)
        assert torch.allclose(feature, expected, atol=1e-5)
    assert backbone(ids).shape == (4, 3)


def test_images_are_normalised_inside_and_give_maps(vit: Path) -> None:
    part = Modality("i", "image", IMAGES, backbone=f"hf:{vit}")
    backbone = built(part)
    x = torch.from_numpy(backbone.encode(IMAGES))
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    pixels = ((x / 255 - mean) / std).permute(0, 3, 1, 2)
    states = reference(vit)(pixels, output_hidden_states=True).hidden_states
    feature = backbone.features(x)[1]
    assert feature.shape == (4, 16, 4, 4)
    expected = states[3][:, 1:].transpose(1, 2).reshape(4, 16, 4, 4)
    assert torch.allclose(feature, expected, atol=1e-5)
    assert backbone(x).shape == (4, 3)


@pytest.mark.parametrize("shape", [(16, 16), (24, 20, 3)])
def test_images_of_another_size_or_without_colour_are_taken(
    vit: Path, shape: tuple[int, ...]
) -> None:
    rows = np.random.default_rng(0).random((3, *shape))
    backbone = built(Modality("i", "image", rows, backbone=f"hf:{vit}"))
    assert backbone.features(torch.from_numpy(backbone.encode(rows)))[0].shape == (3, 16, 4, 4)


def test_padding_does_not_change_the_tokens(bert: Path) -> None:
    backbone = built(text_modality(bert))
    ids = torch.from_numpy(backbone.encode(TEXTS))[2:3]
    shorter = backbone.features(ids[:, :4])
    for long, short in zip(backbone.features(ids), shorter, strict=True):
        assert torch.allclose(long[:, :, :4], short, atol=1e-5)
        assert long[:, :, 4:].abs().max() == 0


@pytest.mark.parametrize("stages", [None, 2])
def test_a_saved_transformer_needs_its_folder_no_more(
    bert: Path, tmp_path: Path, stages: int | None
) -> None:
    backbone = built(text_modality(bert))
    ids = torch.from_numpy(backbone.encode(TEXTS))
    full = backbone.features(ids)
    assert not any("pooler" in name for name in backbone.state_dict())
    if stages is not None:
        backbone.truncate(stages)
        assert not any("layer.5" in name for name in backbone.state_dict())
    save_backbone(tmp_path / "b", backbone, {})
    assert str(bert).encode() not in (tmp_path / "b").read_bytes()
    again, _ = load_backbone(tmp_path / "b")
    np.testing.assert_array_equal(again.encode(TEXTS), ids.numpy())
    for left, right in zip(again.features(ids), full, strict=False):
        assert torch.allclose(left, right, atol=1e-6)
    assert again.input_spec == backbone.input_spec


def test_texts_are_cut_at_the_positions_of_the_model(bert: Path) -> None:
    rows = np.array(["cat " * 100])
    backbone = built(Modality("t", "text", rows, backbone=f"hf:{bert}"))
    found = backbone.encode(rows)
    assert found.shape == (1, 10)
    # By the rule in the manifest alone, the end mark stays.
    rule = backbone.input_spec.preprocessing
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(rule["tokenizer"]))
    tokenizer.enable_truncation(rule["length"])
    assert found[0].tolist() == tokenizer.encode("cat " * 100).ids
    assert (found[0, 0], found[0, -1]) == (2, 3)


def test_the_rule_of_texts_is_told_in_the_terms_of_unicode(bert: Path) -> None:
    rule = built(text_modality(bert)).input_spec.preprocessing["unicode"]
    # That of BertTokenizer, as which transformers opens the folder.
    assert rule == (
        "controls (Cc, Cf, Co, Cn) are left out, blanks become spaces; CJK ideographs stand by"
        " themselves; Unicode NFD without nonspacing marks (Mn); lower case letter by letter, by"
        " the full mapping without final sigma; cut at blanks (White_Space), each sign (P* and"
        " those of ASCII) by itself; pieces of the vocabulary by WordPiece"
    )
    n, p = tokenizers.normalizers, tokenizers.pre_tokenizers
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = n.Sequence(
        [n.NFC(), n.Replace(tokenizers.Regex(r"\s+"), " "), n.BertNormalizer(lowercase=False)]
    )
    tokenizer.pre_tokenizer = p.Sequence([p.Split("-", "isolated"), p.ByteLevel()])
    assert unicode_rule(json.loads(tokenizer.to_str())).split("; ") == [
        "Unicode NFC",
        r"/\s+/ becomes ' '",
        "controls (Cc, Cf, Co, Cn) are left out, blanks become spaces",
        "CJK ideographs stand by themselves",
        "cut by '-', Isolated",
        "cut by the pattern of GPT-2: runs of letters (L*), of numbers (N*), of other signs",
        "bytes of UTF-8, one character each",
        "pieces of the vocabulary by BPE",
    ]
    # What is said of accents and capitals is what the package does.
    assert n.BertNormalizer().normalize_str("Éक्षः\u200dΣΑΣ") == "eकषःσασ"


def test_every_part_of_a_tokenizer_has_a_meaning() -> None:
    bases = {"Normalizer", "PreTokenizer", "Sequence", "BertNormalizer"}
    for module in (tokenizers.normalizers, tokenizers.pre_tokenizers):
        parts = {name for name, found in vars(module).items() if isinstance(found, type)}
        assert parts - bases <= {*hf_inputs._MEANINGS}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"[1]"])
def test_missing_and_damaged_files_get_one_line(
    bert: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path)) as caught:
        built(text_modality(tmp_path))
    assert "\n" not in str(caught.value)


def test_lacking_tensors_are_not_filled_at_random(bert: Path, tmp_path: Path) -> None:
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"lack 16 of the model's tensors"):
        built(text_modality(tmp_path))


def test_wrong_use_gets_one_line(bert: Path, vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        built(Modality("t", "text", TEXTS, backbone="hf:/no/such/folder"))
    with pytest.raises(UserError, match="which reads text, image, clip, waveform, expected"):
        built(Modality("v", "vector", np.zeros((2, 2)), backbone=f"hf:{bert}"))
    with pytest.raises(UserError, match=r"lacks tokenizer\.json"):
        built(text_modality(vit))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'bmnas\[hf\]'"):
        built(text_modality(bert))
