"""Files of the official program of MMnas: its sequences, and checkpoints of its layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import bmnas_command
from tiny_tasks import write_tiny_task

from bmnas.machine.errors import UserError
from bmnas.spaces.architecture import GenotypeError
from bmnas.spaces.mmnas.genotype import MMnasGenotype
from bmnas.spaces.mmnas.known import known_sequence
from bmnas.spaces.mmnas.network import MMnasNetwork
from bmnas.spaces.mmnas.official import converted, load_official, read_arch
from bmnas.tasks.kinds import REGIONWISE

FEATURES, RAW = ("question.1", "image.regions"), {"question.1": 6, "image.regions": 5 + 4}
ENCODER = ["self_att_64", "feed_forward"]
DECODER = ["self_att_64", "rel_self_att_64", "guided_att_64", "feed_forward"]
ARCH = {
    "epoch0": {"enc": [["feed_forward"]] * 2, "dec": [["guided_att_64"]]},
    "epoch1": {"enc": [[name] for name in ENCODER], "dec": [[name] for name in DECODER]},
}


def arch(folder: Path, content: Any = ARCH) -> Path:
    path = folder / "train_vqa.json"
    path.write_text(json.dumps(content))
    return path


def test_a_sequence_is_read(tmp_path: Path) -> None:
    last = read_arch(arch(tmp_path), FEATURES)
    assert (last.encoder, last.decoder) == (("sa", "ffn"), ("sa", "rsa", "ga", "ffn"))
    assert (last.width, last.head, last.norm) == (512, 64, "official")
    first = read_arch(arch(tmp_path), FEATURES, epoch=0, width=128, norm="layer")
    assert (first.encoder, first.decoder, first.width) == (("ffn", "ffn"), ("ga",), 128)
    long = {"S": "self_att_64", "R": "rel_self_att_64", "G": "guided_att_64", "F": "feed_forward"}
    published = {
        "enc": [[long[letter]] for letter in "SSSSFFFFSFFF"],
        "dec": [[long[letter]] for letter in "GGFFGFRGFGRFRSFRGF"],
    }
    found = read_arch(arch(tmp_path, {"epoch0": published}), FEATURES)
    assert found == known_sequence("vqa", FEATURES, norm="official")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected an object with a sequence for each epoch"),
        ({}, "expected an object with a sequence for each epoch"),
        ({"epoch0": {"enc": [["self_att_64"]]}}, "epoch0: .*dec"),
        ({"epoch0": {"enc": [["glu"]], "dec": [["feed_forward"]]}}, "received 'glu', expected one"),
        (
            {"epoch0": {"enc": [["feed_forward"] * 2], "dec": [["feed_forward"]]}},
            "encoder block 0: received 2 operations, expected one",
        ),
        ({"epoch0": {"enc": [["guided_att_64"]], "dec": [["feed_forward"]]}}, r"encoder\[0\]"),
    ],
)
def test_another_file_is_refused_in_a_line(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read_arch(arch(tmp_path, content), FEATURES)
    assert "\n" not in str(raised.value)
    assert "train_vqa.json" in str(raised.value)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="received epoch 7, expected one of epoch0, epoch1"):
        read_arch(arch(tmp_path), FEATURES, epoch=7)
    with pytest.raises(GenotypeError, match=r"image\.3 has no boxes"):
        read_arch(arch(tmp_path), ("question.1", "image.3"))


def test_the_command_line_takes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_task(tmp_path)
    chains = {"enc": [["self_att_64"]], "dec": [["guided_att_64"], ["feed_forward"]]}
    path = arch(tmp_path, {"epoch0": chains})
    printed = bmnas_command("genotype", path, "--task", "task.toml")
    assert printed.status == 0, printed.err
    found = MMnasGenotype.load(tmp_path / "runs" / "tiny-train_vqa" / "genotype.json")
    assert found == MMnasGenotype(
        ("m0.3", "m1.3"), 512, 64, ("sa",), ("ga", "ffn"), norm="official"
    )
    refused = bmnas_command("genotype", arch(tmp_path), "--task", "task.toml")
    assert (refused.status, len(refused.err.strip().splitlines())) == (2, 1)
    assert "m1.3 has no boxes" in refused.err


WIDTH, ANSWERS, WORDS = 128, 3, 11


def official_state(*, grounding: bool = False) -> dict[str, torch.Tensor]:
    """A state dict of the layout of the official program, for the last sequence of ``ARCH``."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (WORDS, 6)}

    def linear(name: str, size_in: int, size_out: int, *, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (size_out, size_in)
        if bias:
            shapes[f"{name}.bias"] = (size_out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.a_2"] = shapes[f"{name}.b_2"] = (width,)

    for kind, size in (("ih", 6), ("hh", WIDTH)):
        shapes[f"lstm.weight_{kind}_l0"] = (4 * WIDTH, size)
        shapes[f"lstm.bias_{kind}_l0"] = (4 * WIDTH,)
    linear("imgfeat_linear", 5, WIDTH)
    for chain, names in (("cells_enc", ENCODER), ("cells_dec", DECODER)):
        for number, name in enumerate(names):
            place = f"backnone.{chain}.0.dag.{number}.0"
            if name == "feed_forward":
                linear(f"{place}.mlp.fc.linear", WIDTH, 4 * WIDTH)
                linear(f"{place}.mlp.linear", 4 * WIDTH, WIDTH)
            else:
                for part in ("v", "k", "q", "merge"):
                    linear(f"{place}.mhatt.linear_{part}", WIDTH, WIDTH, bias=False)
            if name == "rel_self_att_64":
                linear(f"{place}.mhatt.linear_r", 64, WIDTH // 64)
            norm(f"{place}.ln", WIDTH)
    for side in "x" if grounding else "xy":
        linear(f"attflat_{side}.mlp.fc.linear", WIDTH, WIDTH)
        linear(f"attflat_{side}.mlp.linear", WIDTH, 1)
        linear(f"attflat_{side}.linear_merge", WIDTH, 2 * WIDTH)
    for side in "xy":
        linear(f"linear_{side}_rel", 3 if side == "x" else 4, 64)
    norm("proj_norm", 2 * WIDTH)
    if grounding:
        linear("attfc_y", WIDTH, 2 * WIDTH)
        linear("proj_scores", 2 * WIDTH, 1)
        linear("proj_reg", 2 * WIDTH, 4)
    else:
        linear("proj", 2 * WIDTH, ANSWERS)
    return {name: torch.randn(shape) / 8 for name, shape in shapes.items()}


def network(classes: int = ANSWERS, **changes: Any) -> MMnasNetwork:
    found = known_sequence("mcan", FEATURES, width=WIDTH, head=64)
    parts = {"encoder": ("sa", "ffn"), "decoder": ("sa", "rsa", "ga", "ffn"), "norm": "official"}
    genotype = type(found).from_dict({**found.to_dict(), **parts, **changes})
    return MMnasNetwork(genotype, RAW, classes=classes, dropout=0.1).eval()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_the_official_layout_are_taken(tmp_path: Path, prefix: str) -> None:
    state, net = official_state(), network()
    path = tmp_path / "epoch13.pkl"
    torch.save({"state_dict": {prefix + n: x for n, x in state.items()}, "lr_base": 1e-4}, path)
    words = load_official(net, path)
    assert words is not None
    assert torch.equal(words, state["embedding.weight"])
    own = net.state_dict()
    for name, theirs in {
        "encoder.1.operation.first.weight": "backnone.cells_enc.0.dag.1.0.mlp.fc.linear.weight",
        "encoder.1.operation.second.bias": "backnone.cells_enc.0.dag.1.0.mlp.linear.bias",
        "decoder.1.operation.relation.bias": "backnone.cells_dec.0.dag.1.0.mhatt.linear_r.bias",
        "decoder.2.operation.query.weight": "backnone.cells_dec.0.dag.2.0.mhatt.linear_q.weight",
        "decoder.2.operation.key.weight": "backnone.cells_dec.0.dag.2.0.mhatt.linear_k.weight",
        "decoder.2.operation.value.weight": "backnone.cells_dec.0.dag.2.0.mhatt.linear_v.weight",
        "decoder.3.norm.weight": "backnone.cells_dec.0.dag.3.0.ln.a_2",
        "decoder.3.norm.bias": "backnone.cells_dec.0.dag.3.0.ln.b_2",
        "relations.linear.weight": "linear_y_rel.weight",
        "summaries.1.weigh.weight": "attflat_y.mlp.linear.weight",
        "summaries.0.merge.bias": "attflat_x.linear_merge.bias",
        "norm.weight": "proj_norm.a_2",
        "output.weight": "proj.weight",
        "sequence.weight_hh_l0": "lstm.weight_hh_l0",
        "project.weight": "imgfeat_linear.weight",
    }.items():
        assert torch.equal(own[name], state[theirs]), name
    assert set(converted(state)[0]) == set(own)


def test_weights_for_grounding_are_taken(tmp_path: Path) -> None:
    state, net = official_state(grounding=True), network(REGIONWISE)
    torch.save({"state_dict": state}, tmp_path / "epoch13.pkl")
    load_official(net, tmp_path / "epoch13.pkl")
    assert torch.equal(net.output.weight[0], state["proj_scores.weight"][0])
    assert torch.equal(net.output.bias[1:], state["proj_reg.bias"])
    assert torch.equal(net.get_parameter("place.weight"), state["attfc_y.weight"])


def test_other_weights_and_other_norms_are_refused(tmp_path: Path) -> None:
    path, state = tmp_path / "epoch13.pkl", official_state()
    torch.save(state, path)
    with pytest.raises(UserError, match=r'epoch13.pkl: its weights need a network of norm "off'):
        load_official(network(norm="layer"), path)
    with pytest.raises(UserError, match=r"epoch13.pkl: received weights of another network.*deco"):
        load_official(network(decoder=["sa", "rsa", "ga"]), path)
    with pytest.raises(UserError, match="received weights of another network"):
        load_official(network(width=64), path)
    # Without relations their layer is left out.
    without = {n: x for n, x in state.items() if ".dag.1.0." not in n or "enc" in n}
    for number in (2, 3):
        for name in [n for n in without if f"cells_dec.0.dag.{number}." in n]:
            without[name.replace(f"dag.{number}.", f"dag.{number - 1}.")] = without.pop(name)
    torch.save(without, path)
    load_official(network(decoder=["sa", "ga", "ffn"]), path)
