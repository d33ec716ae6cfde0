from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bmnas.report.picture import draw_genotype
from bmnas.report.style import figure_svg
from bmnas.report.text import genotype_text
from bmnas.spaces.cells.genotype import GenotypeError
from bmnas.spaces.mfas.genotype import Layer, Layers, MFASGenotype, layer_choices
from bmnas.spaces.mfas.space import MFASSpace
from bmnas.spaces.registry import load_architecture

FEATURES = tuple(f"{modality}.{n}" for modality in ("image", "audio") for n in (1, 2, 3, 4))
CHOICES = layer_choices(FEATURES)
#: The paper's configuration for NTU: [[3, 0, 0], [1, 3, 0], [1, 1, 1], [3, 3, 0]].
NTU = (
    Layer(("image.4", "audio.1"), "relu"),
    Layer(("image.2", "audio.4"), "relu"),
    Layer(("image.2", "audio.2"), "sigmoid"),
    Layer(("image.4", "audio.4"), "relu"),
)
GENOTYPE = MFASGenotype(FEATURES, 8, 256, NTU)


def unfold(kept: list[Layers], level: int) -> list[Layers]:
    genotypes = [MFASGenotype(FEATURES, 8, 16, layers) for layers in kept]
    return [genotype.layers for genotype in MFASSpace(FEATURES).unfold(genotypes, level)]


def plain(**changes: Any) -> dict[str, Any]:
    return {**GENOTYPE.to_dict(), **changes}


def test_a_layer_takes_one_feature_of_each_modality() -> None:
    assert len(CHOICES) == len(set(CHOICES)) == 4 * 4 * 2
    assert CHOICES[:3] == [
        Layer(("image.1", "audio.1"), "relu"),
        Layer(("image.1", "audio.1"), "sigmoid"),
        Layer(("image.1", "audio.2"), "relu"),
    ]
    three = layer_choices(["a.1", "a.2", "b.1", "c.1", "c.2", "c.3"])
    assert len(three) == 2 * 1 * 3 * 2
    assert three[-1] == Layer(("a.2", "b.1", "c.3"), "sigmoid")


def test_unfolding_appends_then_replaces() -> None:
    first = unfold([], 0)
    assert first == [(choice,) for choice in CHOICES]
    kept = first[:15]
    second = unfold(kept, 1)
    assert len(second) == 480
    assert second[33] == (CHOICES[1], CHOICES[1])
    third = unfold(second[-15:], 2)
    assert (len(third), len(third[0])) == (480, 3)
    # A later sweep: layer 1 of three is another one, the others stay.
    again = unfold([third[0]], 0)
    assert [layers[0] for layers in again] == CHOICES
    assert {layers[1:] for layers in again} == {third[0][1:]}


def test_architectures_that_come_out_alike_are_one() -> None:
    a, b, c = CHOICES[:3]
    assert unfold([(a, c), (b, c)], 0) == [(choice, c) for choice in CHOICES]


def test_the_surrogate_reads_numbers_of_features_and_activations() -> None:
    assert MFASSpace(FEATURES).encode(GENOTYPE) == ((3, 0, 0), (1, 3, 0), (1, 1, 1), (3, 3, 0))


def test_a_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "genotype.json"
    GENOTYPE.with_provenance({"task": "ntu"}).save(path)
    assert load_architecture(path) == MFASGenotype.load(path) == GENOTYPE
    data = json.loads(path.read_text())
    assert data["format"] == "bmnas.mfas/1"
    assert data["layers"][2] == {"inputs": ["image.2", "audio.2"], "activation": "sigmoid"}
    assert (data["length"], data["inner_size"], data["scalars"]) == (8, 256, False)


def test_it_reads_what_layers_and_heads_read() -> None:
    one = MFASGenotype(FEATURES, 8, 4, NTU[1:2])
    # The heads read the last features of both modalities.
    assert one.live_features() == ("image.2", "image.4", "audio.4")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"inner_size": 0}, "inner_size: received 0, expected from 1 to 65536"),
        ({"inner_size": 1.5}, r"inner_size: received 1\.5, expected an integer"),
        ({"length": True}, "length: received True, expected an integer"),
        ({"scalars": 1}, "scalars: received 1, expected true or false"),
        ({"layers": []}, r"layers: received \[\], expected at least one layer"),
        (
            {"layers": [{"inputs": ["image.1", "audio.1"], "activation": "relu"}] * 201},
            "layers: received '201 layers', expected at most 200",
        ),
        ({"layers": {}}, r"layers: received {}, expected a list"),
        ({"layers": [3]}, r"layers\[0\]: received 3, expected a table"),
        (
            {"layers": [{"inputs": ["image.1", "audio.1"], "activation": "tanh"}]},
            r"layers\[0\]\.activation: received 'tanh', expected one of relu, sigmoid",
        ),
        (
            {"layers": [{"inputs": ["image.1", "audio.1"], "activation": ["relu"]}]},
            r"layers\[0\]\.activation: received \['relu'\]",
        ),
        (
            {"layers": [{"inputs": ["image.1"], "activation": "relu"}]},
            r"layers\[0\]\.inputs: received \['image\.1'\], expected one feature of each of image,",
        ),
        (
            {"layers": [{"inputs": ["audio.1", "image.1"], "activation": "relu"}]},
            r"layers\[0\]\.inputs\[0\]: received 'audio\.1', expected one of image\.1, image\.2",
        ),
        (
            {"layers": [{"inputs": ["image.1", 2], "activation": "relu"}]},
            r"layers\[0\]\.inputs\[1\]: received 2, expected a string",
        ),
        ({"features": ["image.1", "image.2"]}, "expected features of two or more modalities"),
        ({"features": ["image.1", "image"]}, r"features\[1\]: received 'image', expected a name"),
        ({"extra": 1}, "received key 'extra', expected only features, length"),
        ({"provenance": {"best_val": float("inf")}}, "provenance: received inf, expected finite"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    path = tmp_path / "genotype.json"
    path.write_text(json.dumps(plain(**changes)).replace("Infinity", "1e999"))
    with pytest.raises(GenotypeError, match=match) as caught:
        load_architecture(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    data = plain()
    del data["inner_size"]
    with pytest.raises(GenotypeError, match="expected the key 'inner_size', which is missing"):
        MFASGenotype.from_dict(data)
    with pytest.raises(GenotypeError, match=r"received 'bmnas\.genotype/1', expected 'bmnas\.mfas"):
        MFASGenotype.from_dict(plain(format="bmnas.genotype/1"))


def test_text_and_picture_show_the_chain() -> None:
    genotype = MFASGenotype(FEATURES, 8, 256, NTU[1:3])
    assert genotype_text(genotype).splitlines()[-9:] == [
        "Classifier  sum of linear heads → logits",
        "├─ image.4",
        "├─ audio.4",
        "└─ fusion 2  linear → sigmoid",
        "   ├─ image.2",
        "   ├─ audio.2",
        "   └─ fusion 1  linear → ReLU",
        "      ├─ image.2",
        "      └─ audio.4",
    ]
    assert figure_svg(draw_genotype(genotype)).count(">image.2<") == 2
