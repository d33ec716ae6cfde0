"""The table of backbones by name; backbones from data, from descriptions and in files.

Files are safetensors with the description as JSON. Nothing is unpickled but tensors: ``.pt`` files
of pretrained weights are read with ``weights_only=True``.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn

from bmnas.backbones.base import FORMAT, Backbone
from bmnas.backbones.conv import ClipBackbone, ImageBackbone, SequenceBackbone, VectorBackbone
from bmnas.backbones.hcn import HCNBackbone
from bmnas.backbones.hf import HFBackbone
from bmnas.backbones.maxout import MaxoutBackbone
from bmnas.backbones.module import ModuleBackbone, user_module
from bmnas.backbones.regions import RegionsBackbone, WindowsBackbone
from bmnas.backbones.resnet3d import InflatedResNet50Backbone, ResNeXt3DBackbone
from bmnas.backbones.tap import Reader
from bmnas.backbones.vgg import VGG19Backbone
from bmnas.backbones.waveform import WaveformBackbone
from bmnas.backbones.words import EmbeddingBackbone, TextBackbone, TokenBackbone
from bmnas.machine.errors import UserError, at, close, few, one_line
from bmnas.machine.schema import OneOf, Range, read
from bmnas.machine.tensor_file import read_tensors, write_tensors
from bmnas.tasks.hub import PREFIX, model_folder
from bmnas.tasks.task import Array, Modality, ModalityType

#: Families that are built from rows alone; their names are what ``Modality.backbone`` may say. The
#: first of a type is its default.
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
        EmbeddingBackbone,
        VGG19Backbone,
        MaxoutBackbone,
        InflatedResNet50Backbone,
        HCNBackbone,
        ResNeXt3DBackbone,
        WindowsBackbone,
        RegionsBackbone,
    )
}

#: The name of the backbone that a modality of each type gets when it asks for none.
DEFAULT_BACKBONES: dict[ModalityType, str] = {
    type_: name for name, family in reversed(BACKBONES.items()) for type_ in family.types
}

_FAMILIES = {**BACKBONES, HFBackbone.family: HFBackbone, ModuleBackbone.family: ModuleBackbone}
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
_PREFIX = "module."  # left by nn.DataParallel
#: Left by torch.compile, by FSDP and by activation checkpointing, anywhere in a name.
_MARKS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def build_backbone(modality: Modality, *, classes: int, rows: Array) -> Backbone:
    """Build the backbone that ``modality`` asks for, or the default one of its type.

    ``rows`` (n, *axes) are train rows of the modality's array, all of them for texts and tokens
    (the vocabulary comes from them), a sample otherwise; ``check_task`` has seen them.
    ``modality.weights`` are not loaded: see ``load_weights``. A ready ``Backbone`` is returned as
    it is. Raises UserError for an unknown name, or one for another type.
    """
    if isinstance(modality.backbone, Backbone):
        backbone = modality.backbone
    else:
        with at(f"modality {modality.name}"):
            backbone = _built(modality, classes, rows)
    if modality.absent is not None:
        backbone.allow_absent()
    return backbone


def _built(modality: Modality, classes: int, rows: Array) -> Backbone:
    wanted = modality.backbone
    if wanted is None:
        wanted = DEFAULT_BACKBONES[modality.type]
    name = wanted if isinstance(wanted, str) else None
    if name is not None and re.match(r"timm[:/]", name):
        raise UserError(
            f"received backbone {name!r}: a model of timm is written as the hub has it, "
            f"'{PREFIX}timm/{name[len('timm/') :]}' with the name of its weights, such as "
            f"'{PREFIX}timm/resnet18.a1_in1k', or as a folder of it; it needs pip install timm "
            "torchvision"
        )
    if name is None or (":" in name and not name.startswith(PREFIX)):
        backbone = ModuleBackbone(
            network=user_module(wanted, classes),
            classes=classes,
            features=modality.features,
            reader=Reader.from_rows(modality, rows).config,
            target=name,
        )
        backbone.rehearse()
        return backbone
    if modality.features and not name.startswith(PREFIX):
        raise UserError(
            f"received features for backbone {name!r}, which has its own: expected them only for a "
            "network of yours, module:Class"
        )
    family = HFBackbone if name.startswith(PREFIX) else BACKBONES.get(name)
    if family is None:
        raise UserError(
            f"received backbone {name!r}, expected {', '.join(BACKBONES)}, hf:<folder> or "
            f"module:Class{close(name, list(BACKBONES))}"
        )
    if modality.type not in family.types:
        raise UserError(
            f"received backbone {name!r}, which reads {', '.join(family.types)}, expected one for "
            f"type {modality.type!r} such as {DEFAULT_BACKBONES[modality.type]!r}"
        )
    if family is HFBackbone:
        return HFBackbone.from_folder(modality, model_folder(name), classes=classes, rows=rows)
    return family.from_rows(modality, classes=classes, rows=rows)


@dataclass(frozen=True)
class _Description:
    """What ``Backbone.spec`` writes."""

    format: Annotated[str, OneOf([FORMAT])]
    name: Annotated[str, OneOf(_FAMILIES)]
    config: Mapping[str, Any]
    stages: Annotated[int, Range(1)]
    head: bool
    optional: bool = False


def backbone_from_spec(spec: Any, module: object = None) -> Backbone:
    """Build again what ``Backbone.spec`` described, truncated as it was, without its weights.

    A user's own module is not imported on a file's word: ``module`` must be what the modality
    names as its ``backbone``, ``"module:Class"``, the class or an object like the one described;
    other families do not look at it. Raises UserError when the description is malformed.
    """
    description = read(_Description, spec, "the description of a backbone")
    name, config = description.name, dict(description.config)
    if name == ModuleBackbone.family and module is None:
        described = config.get("target") or "given as an object"
        raise UserError(
            f"this backbone is a user's own module ({described}), and a file's word does not "
            "import code: give the modality's backbone as module"
        )
    try:
        if name == ModuleBackbone.family:
            config["network"] = user_module(module, int(config["classes"]))
        backbone: Backbone = cast(Any, _FAMILIES[name])(**config)
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        reason = one_line(error, 200)
        raise UserError(f"the description of a backbone {name!r} is malformed: {reason}") from error
    stages, head, most = description.stages, description.head, len(backbone.feature_names)
    if stages > most or (head and stages < most):
        raise UserError(
            f"the description of a backbone {name!r} keeps {stages} stages and head {head}, "
            f"expected 1 to {most} stages, and a head only after all"
        )
    if description.optional:
        backbone.allow_absent()
    if not head:
        backbone.truncate(stages)
    return backbone


def save_backbone(path: Path, backbone: Backbone, extra: Mapping[str, Any]) -> None:
    """Write ``backbone``, truncated or not, and ``extra``, plain JSON data, to ``path``.

    The file is whole or not at all, and equal for equal content.
    """
    description = {"format": FORMAT, "spec": backbone.spec(), "extra": dict(extra)}
    write_tensors(path, backbone.state_dict(), description)


def load_backbone(path: Path, module: object = None) -> tuple[Backbone, dict[str, Any]]:
    """Read what ``save_backbone`` wrote: the backbone, in eval mode, and ``extra``.

    ``module`` is the modality's ``backbone``, which a user's own module needs, see
    ``backbone_from_spec``. Raises UserError, naming the file, when it is missing, damaged, or
    of another format, or when its tensors are not those of its description.
    """
    description, tensors = read_tensors(path, described=FORMAT)
    if not isinstance(description.get("extra"), dict):
        raise UserError(f"{path}: its description has no extra, expected an object")
    with at(path):
        backbone = backbone_from_spec(description.get("spec"), module=module)
    _load_state(backbone, tensors, path)
    return backbone.eval(), description["extra"]


def load_weights(backbone: Backbone, path: Path) -> tuple[bool, tuple[str, ...]]:
    """Load pretrained weights into ``backbone``, for a user's own module into that module.

    Return whether its head is among them, and what of file and head was left out, a line each. A
    network of a paper takes published files as well, with their names and forms, and whatever their
    head; of a module of one's own, and of a network of ours, a head of another size is left out,
    and a new one stands there.

    For backbone ``embedding`` it may be a ``.txt`` file of vectors, like GloVe's.

    ``path`` is a ``.safetensors`` file or a ``state_dict`` saved by torch, by itself or inside one
    of ``_WRAPPERS``, its names with or without what nn.DataParallel, Lightning, torch.compile and
    FSDP put in front of them. Raises UserError when the file is missing, damaged, holds anything
    but tensors, when names or shapes differ from the backbone's, and for numbers that are none.
    """
    if path.suffix == ".txt" and isinstance(backbone, EmbeddingBackbone):
        backbone.take_vectors(path)
        return False, ()
    state = read_tensors(path)[1] if path.suffix == ".safetensors" else torch_state(path)
    for mark in _MARKS:
        state = {name.replace(mark, ""): tensor for name, tensor in state.items()}
    module = backbone.weights_module()
    # Published files have names of their own.
    state, beside = _without_prefix(state, {} if backbone.published else module.state_dict())
    adopted, whole = backbone.adopt(state)
    beyond = frozenset() if backbone.published else backbone.beyond_features()
    left_out = _load_state(module, adopted, path, backbone.published, beyond)
    check_finite(module, path)
    if left_out:
        backbone.renew_head()
    return whole and not left_out, (*left_out, *beside)


def check_finite(module: nn.Module, place: object) -> None:
    """Raise UserError, naming ``place``, for weights that are not finite, and buffers of NaN."""
    wrong: dict[str, Tensor] = {
        n: x for n, x in module.named_parameters() if not bool(x.isfinite().all())
    }
    # A mask may well be minus infinity.
    wrong |= {n: x for n, x in module.named_buffers() if bool(x.isnan().any())}
    if wrong:
        count = sum(int((~x.isfinite()).sum()) for x in wrong.values())
        raise UserError(
            f"{place}: received {count} weights that are NaN or infinite, in {few(wrong)}, "
            "expected finite numbers: its training has failed; take an earlier checkpoint"
        )


def _without_prefix(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors under the prefix with most of the names in ``own``, and a line on others.

    nn.DataParallel writes ``module.``, Lightning the name of a module's member, such as ``model.``,
    with those of losses and metrics beside it.
    """
    prefixes = {""} | {name[: place + 1] for name in state for place in _dots(name)}
    found = {
        prefix: sum(name.startswith(prefix) and name[len(prefix) :] in own for name in state)
        for prefix in prefixes
    }
    best = max(sorted(prefixes, key=len), key=lambda prefix: found[prefix])
    if not found[best] and all(name.startswith(_PREFIX) for name in state):
        best = _PREFIX
    if not best:
        return dict(state), ()
    beside = [name for name in state if not name.startswith(best)]
    kept = {name[len(best) :]: x for name, x in state.items() if name.startswith(best)}
    told = f"{len(beside)} tensors beside {best.rstrip('.')} ({few(beside)})"
    return kept, (told,) if beside else ()


def _dots(name: str) -> list[int]:
    return [place for place, character in enumerate(name) if character == "."]


def torch_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that torch.save wrote."""
    try:
        with warnings.catch_warnings():
            # About pickle protocols that it may not read: it refuses those by itself.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: received a file that is damaged or holds more than tensors, which is not "
            "loaded as it could run code: save model.state_dict(), or a .safetensors file"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = one_line(error, 200)
        raise UserError(f"{path}: not a file that torch.save wrote: {reason}") from error
    state = content
    while isinstance(state, dict) and not all(isinstance(x, Tensor) for x in state.values()):
        inner = [state[name] for name in _WRAPPERS if isinstance(state.get(name), dict)]
        if not inner:
            break
        state = inner[0]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        found = f"the keys {few(state)}" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise UserError(
            f"{path}: received {found}, expected a state_dict of tensors, by itself or under "
            f"{', '.join(_WRAPPERS)}"
        )
    return {str(name): tensor for name, tensor in state.items()}


def _load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    published: str = "",
    beyond: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    """Load ``state`` into ``module``; return what was left out of it, as lines.

    ``beyond`` names tensors of ``module`` that may be of another size than in the file, or lack
    there, if the file has others.
    """
    own = module.state_dict()
    misshaped = {
        name: f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    }
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    wrong = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": list(misshaped.values()),
    }
    found = [f"{len(names)} {what} ({few(names)})" for what, names in wrong.items() if names]
    other = {**misshaped, **{name: f"{name}, which it lacks" for name in missing}}
    if other and not unexpected and len(other) < len(own) and other.keys() <= beyond:
        module.load_state_dict({**state, **{name: own[name] for name in other}})
        return tuple(other.values())
    if found:
        expected = f"; expected weights of {published}, or saved by bmnas" if published else ""
        raise UserError(
            f"{path}: received weights that do not fit this backbone's {len(own)} tensors: "
            + "; ".join(found)
            + expected
        )
    module.load_state_dict(state)
    return ()
