"""Networks of MMnas: sizes of the known ones, masks, and what a genotype may say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from command_line import bmnas_command

from bmnas.features.reshape import MASK
from bmnas.machine.costs import count_parameters
from bmnas.machine.errors import UserError
from bmnas.spaces.architecture import GenotypeError
from bmnas.spaces.mmnas.genotype import MMnasGenotype
from bmnas.spaces.mmnas.known import SEQUENCES, known_sequence
from bmnas.spaces.mmnas.network import EncoderDecoder, MMnasNetwork
from bmnas.spaces.mmnas.space import MMnasSpace
from bmnas.spaces.registry import architecture_from_dict, space_of
from bmnas.tasks.kinds import REGIONWISE
from bmnas.training.together import Together

FEATURES = ("question.1", "image.regions")
CHAINS = ("encoder", "decoder")
RAW = {"question.1": 300, "image.regions": 2048 + 4}
SMALL = {"question.1": 6, "image.regions": 5 + 4}

#: Of the blocks, and of the whole network without word embedding, with so many answers. The order
#: of operations changes nothing.
PUBLISHED = {
    "vqa": (46_205_984, 3129, 53_708_699),
    "itm": (40_950_304, 1, 45_246_819),
    "vgd": (43_053_096, REGIONWISE, 47_090_542),
    "mcan": (44_101_632, None, None),
    "mcan_rsa": (44_104_752, None, None),
    "guided": (44_101_632, None, None),
    "guided_rsa": (44_104_752, None, None),
}


def build(found: MMnasGenotype, raw: dict[str, int] = SMALL, classes: int = 3) -> EncoderDecoder:
    made = MMnasSpace.build(found, raw, classes=classes, dropout=0.1)
    assert isinstance(made, EncoderDecoder)
    return made.eval()


@pytest.mark.parametrize("name", SEQUENCES)
def test_known_networks_have_the_published_sizes(name: str) -> None:
    blocks, answers, whole = PUBLISHED[name]
    with torch.device("meta"):
        network = build(known_sequence(name, FEATURES), RAW, 1 if answers is None else answers)
    assert count_parameters(network.encoder) + count_parameters(network.decoder) == blocks
    if whole is not None:
        assert count_parameters(network) == whole
    assert count_parameters(network.sequence) == 1_667_072
    assert count_parameters(network.project) == 1_049_088
    assert {count_parameters(each) for each in network.summaries} == {788_481}
    assert (network.relations is None) == (name in ("mcan", "guided"))


def small(name: str = "vqa", **sizes: Any) -> MMnasGenotype:
    return known_sequence(name, FEATURES, width=8, head=4, **sizes)


def inputs(rows: int = 3) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    torch.manual_seed(1)
    first = torch.randint(0, 20, (rows, 5, 2)).float()
    boxes = torch.cat([first, first + torch.randint(1, 9, (rows, 5, 2))], -1)
    tokens = [torch.randn(rows, 4, 6), torch.cat([torch.randn(rows, 5, 5), boxes], -1)]
    masks = [torch.arange(4) < torch.tensor([[4], [2], [1]]), torch.ones(rows, 5) > 0]
    return tokens, masks


@pytest.mark.parametrize("norm", ["layer", "official"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_what_does_not_count_changes_nothing(name: str, norm: str) -> None:
    torch.manual_seed(0)
    network, (tokens, masks) = build(small(name, norm=norm)), inputs()
    # A box without area is padding too.
    tokens[1][1, 3:, 5:] = 0
    first = network(tokens, masks)
    with_other_padding = [x.clone() for x in tokens]
    with_other_padding[0][1, 2:] = 9.0
    with_other_padding[0][2, 1:] = -9.0
    with_other_padding[1][1, 3:, :5] = 7.0
    torch.testing.assert_close(network(with_other_padding, masks), first)
    shorter = [tokens[0][1:2, :2], tokens[1][1:2, :3]]
    torch.testing.assert_close(network(shorter), first[1:2], atol=1e-5, rtol=1e-4)
    with_other_padding[0][0, 0] = 9.0
    assert not torch.allclose(network(with_other_padding, masks)[0], first[0])


def test_guided_attention_reads_the_end_of_the_encoder() -> None:
    network, (tokens, masks) = build(small("mcan")), inputs()
    read = network.read(tokens, masks)
    encoded, whole = network.encode(read), network(tokens, masks)
    torch.testing.assert_close(network.decode(encoded, read), whole)
    assert not torch.allclose(network.decode(read.x, read), whole)
    texts_alone = dataclasses.replace(read, y=read.y + 1)
    torch.testing.assert_close(network.encode(texts_alone), encoded)


def test_the_space_draws_changes_and_encodes() -> None:
    space, draw = MMnasSpace.of(["image.1", "image.regions", "question.1"], TYPES), Random(0)
    assert space.features == FEATURES
    drawn = [space.sample(draw) for _ in range(100)]
    assert {op for genotype in drawn for op in genotype.decoder} == {"sa", "rsa", "ga", "ffn"}
    others = space.neighbours(drawn[0])
    assert len(others) == len({*map(space.canonical, others)}) == 4 + 6 * 3
    rows = [space.encode(genotype) for genotype in (drawn[0], *others)]
    assert len({*rows}) == len(rows)
    assert {len(row) for each in rows for row in each} == {2}
    assert space_of(drawn[0]) is MMnasSpace
    assert space.start().decoder == ("rsa", "ga", "ffn") * 2


TYPES = {"types": {"image": "image", "question": "text"}}


def test_without_boxes_there_are_no_relations() -> None:
    space, draw = MMnasSpace.of(["image.1", "image.2", "question.1"], TYPES), Random(0)
    assert space.features == ("question.1", "image.2")
    assert all("rsa" not in space.sample(draw).decoder for _ in range(50))
    assert space.start().decoder == ("sa", "ga", "ffn") * 2
    with pytest.raises(
        GenotypeError, match=r"decoder\[6\]: received 'rsa', .*image.2 has no boxes"
    ):
        known_sequence("vqa", space.features)
    with pytest.raises(UserError, match="the modality image alone, expected two"):
        MMnasSpace.of(["image.1"], TYPES)


GOOD = small("mcan").to_dict()
ENDLESS = "expected from 1 to 200"
NEEDED = ("format", "features", "width", "head", "encoder", "decoder")
MISSING = [({key: None}, key) for key in NEEDED]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *MISSING,
        ({"format": "bmnas.mmnas/2"}, "format: received 'bmnas.mmnas/2', expected"),
        ({"depth": 3}, "depth"),
        ({"features": "question.1"}, "features: received 'question.1', expected a list"),
        ({"features": ["question.1", 1]}, r"features\[1\]: received 1, expected a string"),
        ({"features": ["question.1"]}, "features: received"),
        ({"features": ["question.1"] * 2}, "features: received .* expected names that differ"),
        (
            {"features": ["question", "image.1"]},
            r"features\[0\]: received 'question', expected a na",
        ),
        (
            {"features": ["question.1", "../a.1"]},
            r"features\[1\]: received '../a.1', expected a na",
        ),
        ({"features": ["question.1", "question.2"]}, "expected two, of two modalities"),
        ({"features": ["question.1", "image.regions", "a.1"]}, "expected two, of two modalities"),
        ({"width": 0}, "width: received 0, expected from 1 to 65536"),
        ({"width": 65540}, "width: received 65540, expected from 1 to 65536"),
        ({"width": 8.5}, r"width: received 8.5, expected an integer"),
        ({"width": True}, "width: received True, expected an integer"),
        ({"head": 3}, "width: received 8, expected a multiple of head, 3"),
        ({"head": 16}, "width: received 8, expected a multiple of head, 16"),
        ({"head": 0}, "head: received 0"),
        ({"head": [4]}, r"head: received \[4\], expected an integer"),
        ({"hidden": "4"}, "hidden: received '4', expected an integer"),
        ({"hidden": -1}, "hidden: received -1, expected from 1"),
        ({"norm": "batch"}, "norm: received 'batch', expected one of layer, official"),
        ({"norm": 1}, "norm: received 1, expected one of layer, official"),
        *(({chain: []}, f"{chain}: received '0 operations', {ENDLESS}") for chain in CHAINS),
        *(({chain: ["sa"] * 201}, f"{chain}: received '201 ope.*{ENDLESS}") for chain in CHAINS),
        *(({chain: "sa"}, f"{chain}: received 'sa', expected a list") for chain in CHAINS),
        *(({chain: ["sa", 3]}, rf"{chain}\[1\]: received 3") for chain in CHAINS),
        ({"encoder": ["ga"]}, r"encoder\[0\]: received 'ga', expected one of sa, ffn"),
        ({"encoder": ["sa", "rsa"]}, r"encoder\[1\]: received 'rsa', expected one of sa, ffn"),
        ({"decoder": ["SA"]}, r"decoder\[0\]: received 'SA', expected one of sa, rsa, ga, ffn"),
        ({"decoder": [["sa"]]}, r"decoder\[0\]: received \['sa'\]"),
        (
            {"features": ["question.1", "image.1"], "decoder": ["sa", "rsa"]},
            r"decoder\[1\]: received 'rsa', .* image.1 has no boxes to relate",
        ),
        ({"provenance": "run"}, "provenance: received 'run', expected a table"),
        # Two problems are told in the same line.
        ({"head": 0, "norm": "batch"}, "head: received 0.*norm: received 'batch'"),
    ],
)
def test_a_malformed_genotype_is_refused_in_a_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "genotype.json"
    changed = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    path.write_text(json.dumps(changed))
    with pytest.raises(GenotypeError, match=message) as raised:
        MMnasGenotype.load(path)
    assert str(raised.value).startswith(str(path))
    printed = bmnas_command("show", path)
    assert printed.status == 2
    assert len(printed.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{", "", "not a JSON file"),
        ('"width": 8', '"width": NaN', "received NaN, expected a finite number"),
        ('"width": 8', '"width": 1e999', "width: received inf, expected an integer"),
        ('"provenance": {', '"provenance": {"score": 1e999, ', "provenance: received inf"),
    ],
)
def test_a_file_that_is_no_genotype_is_refused_in_a_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "genotype.json"
    text = json.dumps(GOOD)
    assert old in text
    path.write_text(text.replace(old, new, 1))
    printed = bmnas_command("show", path)
    assert (printed.status, len(printed.err.strip().splitlines())) == (2, 1)
    assert str(path) in printed.err
    assert message in printed.err


def test_a_file_gives_the_genotype_again(tmp_path: Path) -> None:
    found = small("itm", norm="official", hidden=2)
    found.save(tmp_path / "genotype.json")
    assert MMnasGenotype.load(tmp_path / "genotype.json") == found
    assert architecture_from_dict(found.to_dict()) == found
    assert isinstance(MMnasNetwork(found, SMALL, classes=2, dropout=0.0), torch.nn.Module)
    printed = bmnas_command("show", tmp_path / "genotype.json")
    assert printed.status == 0
    assert "MMnas: encoder of 12 and decoder of 18 operations" in printed.out


def test_an_unknown_sequence_is_refused() -> None:
    with pytest.raises(UserError, match=r"received sequence 'mcam', expected one of mcan, .*mean"):
        known_sequence("mcam", FEATURES)


def test_networks_that_are_computed_together_are_those_alone() -> None:
    torch.manual_seed(0)
    space, draw = MMnasSpace(FEATURES, 2, 3, 8, 4, 2), Random(0)
    networks = [build(space.sample(draw)) for _ in range(3)]
    tokens, masks = inputs()
    names = (*FEATURES, *(name + MASK for name in FEATURES))
    together = Together(networks, dict(zip(names, (*tokens, *masks), strict=True))).eval()
    wanted = [network(tokens, masks) for network in networks]
    torch.testing.assert_close(together(tokens, masks), torch.stack(wanted, dim=1))
    # An LSTM cannot be recorded: they are called one by one.
    assert [*together.alone] == networks
