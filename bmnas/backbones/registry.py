"""The table of backbones by name, and how one is built from data or from its description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

from torch import nn

from bmnas.backbones.base import FORMAT, Backbone
from bmnas.backbones.hf import HFBackbone
from bmnas.backbones.measurements import SequenceBackbone, VectorBackbone
from bmnas.backbones.module import ModuleBackbone, made_module, module_from_target
from bmnas.backbones.pixels import ClipBackbone, ImageBackbone
from bmnas.backbones.waveform import WaveformBackbone
from bmnas.backbones.words import TextBackbone, TokenBackbone
from bmnas.machine.errors import UserError, close, one_line
from bmnas.machine.schema import OneOf, Range, read
from bmnas.tasks.task import Array, Modality, ModalityType

#: Families that are built from rows alone; their names are what ``Modality.backbone`` may say.
BACKBONES: dict[str, type[Backbone]] = {
    family.family: family
    for family in (
        ImageBackbone,
        ClipBackbone,
        WaveformBackbone,
        SequenceBackbone,
        VectorBackbone,
        TextBackbone,
        TokenBackbone,
    )
}

#: The name of the backbone that a modality of each type gets when it asks for none.
DEFAULT_BACKBONES: dict[ModalityType, str] = {
    type_: name for name, family in BACKBONES.items() for type_ in family.types
}

_HF = "hf:"


def build_backbone(modality: Modality, *, classes: int, rows: Array) -> Backbone:
    """Build the backbone that ``modality`` asks for, or the default one of its type.

    ``rows`` (n, *axes) are train rows of the modality's array, all of them for texts and tokens
    (the vocabulary comes from them), a sample otherwise. ``modality.weights`` are not loaded:
    see ``load_weights``. A ready ``Backbone`` is returned as it is. Raises UserError for an
    unknown name, or rows that do not fit it.
    """
    wanted = modality.backbone
    if wanted is None:
        wanted = DEFAULT_BACKBONES[modality.type]
    ours = isinstance(wanted, str) and (":" not in wanted or wanted.startswith(_HF))
    if modality.features and ours:
        raise UserError(
            f"modality {modality.name}: received features for backbone {wanted!r}, which has its "
            "own: expected them only for a network of yours, module:Class"
        )
    if isinstance(wanted, str) and wanted.startswith(_HF):
        folder = wanted.removeprefix(_HF)
        return HFBackbone.from_folder(modality, folder, classes=classes, rows=rows)
    if isinstance(wanted, str) and ":" not in wanted:
        family = BACKBONES.get(wanted)
        if family is None:
            raise UserError(
                f"modality {modality.name}: received backbone {wanted!r}, expected "
                f"{', '.join(BACKBONES)}, hf:<folder> or module:Class"
                f"{close(wanted, list(BACKBONES))}"
            )
        if modality.type not in family.types:
            raise UserError(
                f"modality {modality.name}: received backbone {wanted!r}, which reads "
                f"{', '.join(family.types)}, expected one for type {modality.type!r} such as "
                f"{DEFAULT_BACKBONES[modality.type]!r}"
            )
        return family.from_rows(modality, classes=classes, rows=rows)
    if isinstance(wanted, Backbone):
        return wanted
    target = wanted if isinstance(wanted, str) else None
    network = _user_module(wanted, classes)
    return ModuleBackbone.from_module(modality, network, classes=classes, rows=rows, target=target)


def backbone_from_spec(spec: Any, module: object = None) -> Backbone:
    """Build again what ``Backbone.spec`` described, truncated as it was, without its weights.

    A user's own module is not imported on a file's word: ``module`` must be what the modality
    names as its ``backbone``, ``"module:Class"``, the class or an object like the one described;
    other families do not look at it. Raises UserError when the description is malformed.
    """
    description = read(_Description, spec, "the description of a backbone")
    name, config = description.name, dict(description.config)
    try:
        if name == ModuleBackbone.family:
            config["network"] = _described_module(config, module)
        backbone: Backbone = cast(Any, _families()[name])(**config)
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        reason = one_line(error, 200)
        raise UserError(f"the description of a backbone {name!r} is malformed: {reason}") from error
    stages, head, most = description.stages, description.head, len(backbone.feature_names)
    if stages > most or (head and stages < most):
        raise UserError(
            f"the description of a backbone {name!r} keeps {stages} stages and head {head}, "
            f"expected 1 to {most} stages, and a head only after all"
        )
    if not head:
        backbone.truncate(stages)
    return backbone


def _families() -> dict[str, type[Backbone]]:
    return {**BACKBONES, HFBackbone.family: HFBackbone, ModuleBackbone.family: ModuleBackbone}


@dataclass(frozen=True)
class _Description:
    """What ``Backbone.spec`` writes."""

    format: Annotated[str, OneOf([FORMAT])]
    name: Annotated[str, OneOf(_families)]
    config: Mapping[str, Any]
    stages: Annotated[int, Range(1)]
    head: bool


def _described_module(config: dict[str, Any], module: object) -> nn.Module:
    if module is None:
        described = config.get("target") or "given as an object"
        raise UserError(
            f"this backbone is a user's own module ({described}), and a file's word does not "
            "import code: give the modality's backbone as module"
        )
    return _user_module(module, int(config["classes"]))


def _user_module(wanted: object, classes: int) -> nn.Module:
    if isinstance(wanted, nn.Module):
        return wanted
    if isinstance(wanted, str):
        return module_from_target(wanted, classes)
    return made_module(getattr(wanted, "__name__", str(wanted)), wanted, classes)
