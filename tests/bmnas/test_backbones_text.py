from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_cases import modality

from bmnas.backbones import backbone_from_spec, build_backbone, load_weights
from bmnas.backbones.words import EmbeddingBackbone, TextBackbone, Vocabulary, words_of
from bmnas.machine.errors import UserError
from bmnas.tasks.task import Modality
from bmnas.tasks.words import WORD

TRAIN = ["The cat.", "the DOG, the end", "Ähre & cafe\u0301", ""]


def text_backbone(texts: list[str]) -> TextBackbone:
    rows = np.array(texts)
    torch.manual_seed(0)
    backbone = build_backbone(Modality("t", "text", rows), classes=2, rows=rows)
    assert isinstance(backbone, TextBackbone)
    return backbone.eval()


def test_words_are_lower_case_unicode_and_normalised() -> None:
    assert words_of("The ﬁrst CAFE\u0301, don't 42!") == ["the", "first", "café", "don", "t", "42"]


def test_the_vocabulary_is_ranked_by_frequency_then_alphabet() -> None:
    vocabulary = Vocabulary.from_texts(TRAIN)
    assert vocabulary.words[:3] == ["<pad>", "<unk>", "the"]
    assert vocabulary.words[3:] == sorted(["cat", "dog", "end", "ähre", "café"])
    assert vocabulary.length == 4
    assert Vocabulary.from_texts(TRAIN, limit=2).words[2:] == ["the", "café"]
    assert Vocabulary.from_texts(["a " * 500]).length == 128


def test_encoding_fills_up_cuts_and_marks_the_unknown() -> None:
    vocabulary = Vocabulary(["<pad>", "<unk>", "a", "b"], 3)
    rows = vocabulary.encode(["a b", "b c a b", "", "c"])
    assert rows.dtype == np.int64
    assert rows.tolist() == [[2, 3, 0], [3, 1, 2], [0, 0, 0], [1, 0, 0]]


def test_the_written_rule_is_enough_to_encode() -> None:
    backbone = text_backbone(TRAIN)
    rule = backbone.input_spec.preprocessing
    ids = {word: number for number, word in enumerate(rule["vocabulary"])}
    found = [ids.get(w, rule["unknown"]) for w in re.findall(rule["pattern"], "the new dog")]
    row = (found + [rule["pad"]] * rule["length"])[: rule["length"]]
    assert backbone.encode(np.array(["The new dog"])).tolist() == [row]
    assert backbone.unreadable(np.array(["new", "the new"])) == 1


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
    path.write_text(f"2 300\ncat {numbers}\nzebra {numbers}\n", encoding="utf-8")
    assert not load_weights(backbone, path)
    after, cat = backbone.get_parameter("stem.weight"), backbone.vocabulary.ids["cat"]
    assert after[cat].tolist() == [0.5] * 300
    others = [n for n in range(len(after)) if n != cat]
    assert torch.equal(after[others], before[others])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("zebra 1.0\n", "has none of the 8 words of train"),
        ("zebra 1.0\ncat 1.0 2.0\n", "line 2: received 2 numbers, expected 300"),
        ("cat" + " x" * 300, "cannot be read as vectors of words: could not convert"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "glove.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        load_weights(embedding(), path)
    assert str(raised.value).startswith(str(path))


def test_the_rule_says_what_a_word_is_in_the_terms_of_unicode() -> None:
    for character in map(chr, range(0x30000)):
        is_word = unicodedata.category(character).startswith("L") or character.isnumeric()
        assert bool(WORD.fullmatch(character)) == (is_word or character == "_")
    # A vowel sign of Devanagari is a combining mark; the last sigma of a word is another letter.
    assert words_of("\u0915\u093f\u0924") == ["\u0915", "\u0924"]
    assert words_of("\u039f\u0394\u039f\u03a3") == ["\u03bf\u03b4\u03bf\u03c2"]
    rule = Vocabulary(["<pad>", "<unk>"], 3).rule()
    assert str(rule["unicode"]).startswith(f"Unicode {unicodedata.unidata_version}; lower case")
