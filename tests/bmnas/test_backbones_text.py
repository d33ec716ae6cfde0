from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from backbone_cases import modality

from bmnas.backbones import backbone_from_spec, build_backbone, load_weights
from bmnas.backbones.tap import Reader
from bmnas.backbones.texts import TextTokenizer, Vocabulary, text_length
from bmnas.backbones.words import EmbeddingBackbone, TextBackbone
from bmnas.machine.errors import UserError
from bmnas.tasks.task import Modality
from bmnas.tasks.words import word_splitter, words_of

TRAIN = ["The cat.", "the DOG, the end", "Ähre & cafe\u0301", ""]


def text_backbone(texts: list[str]) -> TextBackbone:
    rows = np.array(texts)
    torch.manual_seed(0)
    backbone = build_backbone(Modality("t", "text", rows), classes=2, rows=rows)
    assert isinstance(backbone, TextBackbone)
    return backbone.eval()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (
            "The \ufb01rst CAFE\u0301, don't 42!",
            ["the", "first", "caf\u00e9", ",", *["don", "'", "t", "42", "!"]],
        ),
        (
            "\u0926\u093f\u0928 \u0926\u0940\u0928",
            ["\u0926\u093f\u0928", "\u0926\u0940\u0928"],
        ),  # Hindi
        ("\u6211\u559c\u6b22\u5929,", ["\u6211", "\u559c", "\u6b22", "\u5929", ","]),  # Chinese
        ("\u30b3\u30fc\u30d2\u30fc", ["\u30b3", "\u30fc", "\u30d2", "\u30fc"]),  # Japanese
        ("\u0e14\u0e35 \u0e44\u0e17\u0e22", ["\u0e14\u0e35", "\u0e44", "\u0e17", "\u0e22"]),  # Thai
        (
            "\uace0\uc591\uc774\uac00 \uc88b\uc544",
            ["\uace0\uc591\uc774\uac00", "\uc88b\uc544"],
        ),  # Korean
        (
            "\u0645\u06cc\u200c\u0631\u0648\u0645",
            ["\u0645\u06cc\u200c\u0631\u0648\u0645"],
        ),  # Persian
        ("C++, C# a_b 3.14", [*["c", "+", "+", ",", "c", "#", "a_b", "3", ".", "14"]]),
        (
            ":) \U0001f44d\U0001f3fd\U0001f1e9\U0001f1ea",
            [":", ")", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea"],
        ),
        ("a\u200bb \ufeff\t\n", ["a", "b"]),
        ("<pad>", ["<", "pad", ">"]),
        ("", []),
    ],
)
def test_texts_of_any_language_become_tokens(text: str, tokens: list[str]) -> None:
    assert word_splitter().words(text) == tokens


def test_words_that_name_something_are_no_punctuation() -> None:
    assert words_of("Is it, C++ \u2764?") == ["is", "it", "c", "+", "+", "\u2764"]


def test_the_vocabulary_is_ranked_by_frequency_then_code_point() -> None:
    tokenizer = TextTokenizer.from_texts(TRAIN)
    ranked = sorted(tokenizer.ids, key=lambda word: tokenizer.ids[word])
    assert ranked[:3] == ["<pad>", "<unk>", "the"]
    assert ranked[3:] == sorted(["cat", "dog", "end", "\u00e4hre", "caf\u00e9", ".", ",", "&"])
    assert tokenizer.length == 5
    assert TextTokenizer.from_texts(TRAIN, limit=2).ids.keys() == {"<pad>", "<unk>", "the", "&"}


@pytest.mark.parametrize(
    ("counts", "wanted", "length"),
    [
        ([3, 171, 8], None, 171),  # of few texts the longest
        ([8] * 995 + [100] * 5, None, 100),
        ([200] * 995 + [300] * 5, None, 200),  # one in a hundred may be cut
        ([8] * 995 + [300] * 5, None, 128),
        ([100_000] * 9, None, 512),
        ([3, 4], 100, 100),
        ([900], 700, 700),
        ([0], None, 1),
        ([], None, 1),
    ],
)
def test_the_length_follows_from_the_texts(
    counts: list[int], wanted: int | None, length: int
) -> None:
    assert text_length(counts, wanted) == length


def test_a_modality_may_say_its_length() -> None:
    rows = np.array(["a b c d", "a"])
    built = build_backbone(Modality("t", "text", rows, length=2), classes=2, rows=rows)
    assert built.encode(rows).tolist() == [[2, 3], [2, 0]]
    assert built.longer(rows) == 1


def test_encoding_fills_up_cuts_and_marks_the_unknown() -> None:
    for encoder in (
        Vocabulary(["<pad>", "<unk>", "a", "b"], 3),
        TextTokenizer.from_texts(["a a", "b"], length=3),
    ):
        rows = encoder.encode(["a b", "b c a b", "", "c"])
        assert rows.dtype == np.int64
        assert rows.tolist() == [[2, 3, 0], [3, 1, 2], [0, 0, 0], [1, 0, 0]]
        assert encoder.longer(["a b", "b c a b", "", "c"]) == 1


def test_the_written_rule_is_enough_to_encode() -> None:
    backbone = text_backbone(TRAIN)
    rule = json.loads(json.dumps(backbone.input_spec.preprocessing))
    found = tokenizers.Tokenizer.from_str(json.dumps(rule["tokenizer"])).encode("The new dog").ids
    row = (found + [rule["pad"]] * rule["length"])[: rule["length"]]
    assert backbone.encode(np.array(["The new dog"])).tolist() == [row]
    assert row.count(rule["unknown"]) == 1
    assert backbone.unreadable(np.array(["new", "the new"])) == 1


def test_networks_of_earlier_versions_read_texts_as_they_did() -> None:
    words = ["<pad>", "<unk>", "the", "\u0926", "\u0928"]
    config = {"classes": 2, "words": words, "length": 4, "dropout": 0.2}
    config |= {"embedding": 8, "bag": False}
    parts = {"stages": 3, "head": True}
    spec = {"format": "bmnas.backbone/1", "name": "text_conv", "config": config, **parts}
    backbone = backbone_from_spec(spec)
    # A combining mark ended a word, and signs were left out.
    assert backbone.encode(np.array(["The? \u0926\u0940\u0928"])).tolist() == [[2, 3, 4, 0]]
    assert backbone.spec() == spec
    assert backbone.input_spec.preprocessing["pattern"] == r"\w+"
    reader = Reader({"type": "text", "dtype": "int64", "shape": [2], "words": words})
    assert reader.encode(np.array(["the c++"])).tolist() == [[2, 1]]


def test_a_tokenizer_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="the tokenizer is malformed"):
        TextTokenizer({"model": "none"}, 3)
    other = word_splitter().content(["a", "b"])
    with pytest.raises(ValueError, match="a tokenizer starts with"):
        TextTokenizer(other, 3)


@pytest.mark.parametrize("words", [["a", "b"], ["<pad>", "<unk>", "a", "a"]])
def test_a_vocabulary_that_is_none_is_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        Vocabulary(words, 3)


def test_padding_does_not_change_what_is_seen() -> None:
    backbone = text_backbone(["one two three", "one two three four five six seven eight"])
    ids = torch.from_numpy(backbone.encode(np.array(["one two three"])))
    assert ids.shape == (1, 8)
    longer = torch.nn.functional.pad(ids, (0, 5))
    assert torch.allclose(backbone(ids), backbone(longer), atol=1e-6)
    for feature in backbone.features(ids):
        assert feature[:, :, 3:].abs().max() == 0
        assert feature[:, :, :3].abs().max() > 0


def test_an_empty_text_gives_finite_logits() -> None:
    backbone = text_backbone(TRAIN)
    assert backbone(torch.zeros(1, 4, dtype=torch.int64)).isfinite().all()


def test_numbers_outside_the_vocabulary_count_as_unknown() -> None:
    backbone = text_backbone(TRAIN)
    logits = backbone(torch.tensor([[2, 1, 3, 0], [2, 10**9, 3, 0], [2, -5, 3, 0]]))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_training_also_trains_the_unknown_word() -> None:
    backbone = text_backbone(TRAIN).train()
    ids = torch.from_numpy(backbone.encode(np.array(["the cat the dog"] * 64)))
    torch.manual_seed(0)
    backbone(ids).sum().backward()
    gradient = backbone.stem.weight.grad  # type: ignore[union-attr]
    assert isinstance(gradient, torch.Tensor)
    assert gradient[1].abs().sum() > 0
    assert gradient[0].abs().sum() == 0


@pytest.mark.parametrize(
    ("rows", "pad"), [([[3, 1, 0], [2, 0, 0]], 0), ([[3, 0, 1], [2, 2, 0]], None)]
)
def test_zero_is_padding_only_where_it_always_ends_the_row(
    rows: list[list[int]], pad: int | None
) -> None:
    data = np.array(rows)
    backbone = build_backbone(Modality("t", "tokens", data), classes=2, rows=data)
    assert backbone.input_spec.preprocessing["pad"] == pad


def test_tokens_beyond_the_train_rows_are_unknown() -> None:
    part = modality("tokens")
    backbone = build_backbone(part, classes=2, rows=part.data).eval()
    highest = int(part.data.max())
    rows = np.array([[highest + 1] * 12, [highest + 1000] * 12, [-1] * 12])
    logits = backbone(torch.from_numpy(backbone.encode(rows)))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def embedding() -> EmbeddingBackbone:
    rows = np.array(TRAIN)
    torch.manual_seed(0)
    wanted = Modality("t", "text", rows, backbone="embedding")
    backbone = build_backbone(wanted, classes=2, rows=rows)
    assert isinstance(backbone, EmbeddingBackbone)
    return backbone.eval()


def test_an_embedding_gives_the_vectors_of_the_words() -> None:
    backbone = embedding()
    ids = torch.tensor([[2, 4, 0, 0]])
    (feature,) = backbone.features(ids)
    assert (backbone.feature_names, backbone.feature_channels) == (("1",), (300,))
    weight = backbone.get_parameter("stem.weight")
    torch.testing.assert_close(
        feature, torch.stack([*weight[[2, 4]], *torch.zeros(2, 300)]).T[None]
    )
    mask = backbone.mask(ids)
    assert mask is not None
    assert mask.tolist() == [[True, True, False, False]]
    assert backbone(ids).shape == (1, 2)
    again = backbone_from_spec(backbone.spec())
    again.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(again.eval()(ids), backbone(ids))


def test_an_embedding_takes_vectors_from_a_text_file(tmp_path: Path) -> None:
    backbone, path = embedding(), tmp_path / "glove.txt"
    before = backbone.get_parameter("stem.weight").detach().clone()
    numbers = " ".join(["0.5"] * 300)
    lines = ("2 300", f"cat {numbers}", f"zebra {numbers}", f"cat a@b.com {numbers}")
    path.write_text("\n".join(lines), encoding="utf-8")
    assert not load_weights(backbone, path)[0]
    after, cat = backbone.get_parameter("stem.weight"), backbone.vocabulary.ids["cat"]
    assert after[cat].tolist() == [0.5] * 300
    others = [n for n in range(len(after)) if n != cat]
    assert torch.equal(after[others], before[others])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("zebra 1.0\n", "has none of the 11 words of train"),
        ("zebra 1.0\ncat 1.0 2.0\n", "line 2: received 2 numbers, expected 300"),
        ("cat" + " 1" * 301, "line 1: received 301 numbers, expected 300"),
        ("cat" + " x" * 300, "cannot be read as vectors of words: could not convert"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "glove.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        load_weights(embedding(), path)
    assert str(raised.value).startswith(str(path))
