"""Files of the official program (MILVLG/mmnas): sequences in ``arch/*.json``, and checkpoints.

Its LayerNorm is not torch's: a network that takes its weights has ``norm = "official"``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from bmnas.machine.errors import UserError, few
from bmnas.machine.files import read_json
from bmnas.machine.schema import NotEmpty, OneOf, read
from bmnas.spaces.mmnas.genotype import MMnasGenotype

if TYPE_CHECKING:
    from torch import Tensor

    from bmnas.spaces.mmnas.network import EncoderDecoder

_LIMIT = 1_000_000  # bytes; a search of a hundred epochs leaves less
_NAMES = {
    "self_att_64": "sa",
    "rel_self_att_64": "rsa",
    "guided_att_64": "ga",
    "feed_forward": "ffn",
}

_Name = Annotated[str, OneOf(_NAMES)]
_Chain = Annotated[tuple[tuple[_Name, ...], ...], NotEmpty()]


@dataclass(frozen=True)
class _Sequence:
    """What the file says of an epoch: the names of the operations of each block."""

    enc: _Chain
    dec: _Chain


def read_arch(
    path: Path,
    features: Sequence[str],
    *,
    epoch: int | None = None,
    width: int = 512,
    norm: str = "official",
) -> MMnasGenotype:
    """Return the sequence of ``epoch`` in a file ``arch/*.json``, by default the last one's.

    Heads have 64 channels. Raises UserError, one line naming the file, where it has another form,
    and GenotypeError for ``features`` that the sequence cannot have.
    """
    data = read_json(path, limit=_LIMIT)
    if not isinstance(data, dict) or not data:
        raise UserError(f"{path}: expected an object with a sequence for each epoch")
    name = list(data)[-1] if epoch is None else f"epoch{epoch}"
    if name not in data:
        raise UserError(f"{path}: received epoch {epoch}, expected one of {few(data)}")
    found = read(_Sequence, data[name], f"{path}: {name}")
    chains = {}
    for key, blocks in (("encoder", found.enc), ("decoder", found.dec)):
        for number, names in enumerate(blocks):
            if len(names) != 1:
                raise UserError(
                    f"{path}: {name}: {key} block {number}: received {len(names)} operations, "
                    "expected one"
                )
        chains[key] = [_NAMES[block[0]] for block in blocks]
    genotype: dict[str, Any] = {
        "format": MMnasGenotype.FORMAT,
        "features": list(features),
        "width": width,
        "head": 64,
        "norm": norm,
        **chains,
        "provenance": {"file": path.name, "epoch": name},
    }
    return MMnasGenotype.from_dict(genotype, str(path))


#: Names of the official program's tensors, and ours.
_RENAMED = [
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"backnone\.cells_enc\.0\.dag\.(\d+)\.0\.", r"encoder.\1."),
        (r"backnone\.cells_dec\.0\.dag\.(\d+)\.0\.", r"decoder.\1."),
        (r"^lstm\.", "sequence."),
        (r"^imgfeat_linear\.", "project."),
        (r"^linear_y_rel\.", "relations.linear."),
        (r"^attflat_x\.", "summaries.0."),
        (r"^attflat_y\.", "summaries.1."),
        (r"^(summaries\.\d\.)mlp\.fc\.linear\.", r"\1hidden."),
        (r"^(summaries\.\d\.)mlp\.linear\.", r"\1weigh."),
        (r"^(summaries\.\d\.)linear_merge\.", r"\1merge."),
        (r"^attfc_y\.", "place."),
        (r"^proj_norm\.", "norm."),
        (r"^proj\.", "output."),
        (r"\.mhatt\.linear_q\.", ".operation.query."),
        (r"\.mhatt\.linear_k\.", ".operation.key."),
        (r"\.mhatt\.linear_v\.", ".operation.value."),
        (r"\.mhatt\.linear_r\.", ".operation.relation."),
        (r"\.mhatt\.linear_merge\.", ".operation.merge."),
        (r"\.mlp\.fc\.linear\.", ".operation.first."),
        (r"\.mlp\.linear\.", ".operation.second."),
        (r"\.ln\.", ".norm."),
        (r"norm\.a_2$", "norm.weight"),
        (r"norm\.b_2$", "norm.bias"),
    )
]
#: What its networks have and no output of theirs depends on.
_UNREAD = re.compile(r"^linear_x_rel\.")
_EMBEDDING = "embedding.weight"


def converted(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the tensors of a network under our names, and the vectors of its words (V, 300).

    ``state`` is a state dict of the official program, with or without ``module.`` in front.
    """
    import torch

    found: dict[str, Tensor] = {}
    words = None
    for name, tensor in state.items():
        plain = name.removeprefix("module.")
        if plain == _EMBEDDING:
            words = tensor
        elif not _UNREAD.match(plain):
            for pattern, ours in _RENAMED:
                plain = pattern.sub(ours, plain)
            found[plain] = tensor
    for part in ("weight", "bias") if "proj_scores.weight" in found else ():
        # Of grounding: a score and four deltas for each region, in one layer here.
        both = [found.pop(f"{layer}.{part}") for layer in ("proj_scores", "proj_reg")]
        found[f"output.{part}"] = torch.cat(both)
    return found, words


def load_official(network: EncoderDecoder, path: Path) -> Tensor | None:
    """Load a checkpoint of the official program into ``network``; return its words' vectors.

    Raises UserError where it is none, or that of another network.
    """
    from bmnas.backbones.registry import torch_state
    from bmnas.spaces.mmnas.operations import OfficialNorm

    if not isinstance(network.norm, OfficialNorm):
        raise UserError(f'{path}: its weights need a network of norm "official"')
    state, words = converted(torch_state(path))
    if network.relations is None:
        # The program has them in every network.
        state = {n: tensor for n, tensor in state.items() if not n.startswith("relations.")}
    own = network.state_dict()
    differing = [
        name
        for name in {**own, **state}
        if name not in own or name not in state or own[name].shape != state[name].shape
    ]
    if differing:
        raise UserError(
            f"{path}: received weights of another network, expected those of its genotype: "
            f"{len(differing)} of {len(own)} tensors differ ({few(differing)})"
        )
    network.load_state_dict(state)
    return words
