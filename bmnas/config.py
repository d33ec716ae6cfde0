"""Configuration as frozen dataclasses; ``presets/*.toml`` are instances of them.

Configuration stays at the edge: a builder joins it with plain arguments, modules never see it.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from bmnas.errors import UserError


@dataclass(frozen=True)
class UnimodalConfig:
    """How a backbone without weights is trained: AdamW, one cosine cycle, fixed epochs."""

    epochs: int = 8
    batch_size: int = 96
    max_lr: float = 2e-3
    min_lr: float = 1e-6
    weight_decay: float = 1e-2


@dataclass(frozen=True)
class SearchConfig:
    """The supernet's shape and Algorithm 1's settings (spec section 6; BM-NAS, Table 8).

    ``candidates`` and ``candidate_epochs`` are the budget of strategies that train candidates.
    """

    cells: int = 2
    steps: int = 2
    channels: int = 64
    length: int = 8
    epochs: int = 20
    batch_size: int = 96
    dropout: float = 0.1
    max_lr: float = 1e-3
    min_lr: float = 1e-6
    weight_decay: float = 1e-4
    arch_lr: float = 3e-4
    arch_weight_decay: float = 1e-3
    candidates: int = 16
    candidate_epochs: int = 3


@dataclass(frozen=True)
class TrainConfig:
    """The evaluation stage: fixed epochs on train + validation (spec section 7).

    ``backbone_lr`` is the peak learning rate of the backbones, ``max_lr`` of everything else.
    ``threshold`` turns probabilities into labels in multilabel tasks. ``freeze_backbones`` trains
    on the feature cache and leaves the backbones as they are.
    """

    epochs: int = 20
    batch_size: int = 96
    dropout: float = 0.1
    max_lr: float = 1e-3
    backbone_lr: float = 1e-4
    min_lr: float = 1e-6
    weight_decay: float = 1e-4
    threshold: float = 0.5
    freeze_backbones: bool = False


@dataclass(frozen=True)
class Config:
    """Everything that a run can choose; ``promise`` says what a preset is for."""

    unimodal: UnimodalConfig = field(default_factory=UnimodalConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    promise: Mapping[str, str] = field(default_factory=dict)

    def override(self, section: str, **values: Any) -> Config:
        """Return a copy with ``values`` in ``section``; a None leaves the value as it is.

        Raises UserError that lists every value out of range.
        """
        given = {name: value for name, value in values.items() if value is not None}
        changed = dataclasses.replace(getattr(self, section), **given)
        config = dataclasses.replace(self, **{section: changed})
        _check(config, "options")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready plain data, the promise left out."""
        return {
            "unimodal": dataclasses.asdict(self.unimodal),
            "search": dataclasses.asdict(self.search),
            "train": dataclasses.asdict(self.train),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str) -> Config:
        """Build a configuration from plain data; what is missing takes its default.

        Raises UserError that lists every unknown key, wrong type and value out of range.
        """
        problems: list[str] = []
        sections: dict[str, Any] = {}
        for name, kind in _SECTIONS.items():
            table = data.get(name, {})
            known = {f.name: f for f in dataclasses.fields(kind)}
            values: dict[str, Any] = {}
            for key, value in table.items():
                wanted = known[key].type if key in known else None
                if wanted is None:
                    problems.append(f"[{name}] received {key!r}, expected {', '.join(known)}")
                elif not _fits(value, str(wanted)):
                    problems.append(f"[{name}] {key}: received {value!r}, expected {wanted}")
                else:
                    values[key] = float(value) if wanted == "float" else value
            sections[name] = kind(**values)
        unknown = [k for k in data if k not in (*_SECTIONS, "promise")]
        problems.extend(f"received {k!r}, expected {', '.join(_SECTIONS)}" for k in unknown)
        if problems:
            raise UserError(f"{source}: {'; '.join(problems)}")
        config = cls(**sections, promise=data.get("promise", {}))
        _check(config, source)
        return config


_SECTIONS: dict[str, type[UnimodalConfig | SearchConfig | TrainConfig]] = {
    "unimodal": UnimodalConfig,
    "search": SearchConfig,
    "train": TrainConfig,
}

_AT_LEAST_ONE = {
    "cells", "steps", "channels", "length", "epochs", "batch_size", "candidates",
    "candidate_epochs",
}  # fmt: skip
_FLAGS = {"freeze_backbones"}
_BELOW_ONE = {"dropout"}
_INSIDE_ZERO_ONE = {"threshold"}


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    folder = resources.files("bmnas") / "presets"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def load_preset(name: str) -> Config:
    """Return the preset called ``name``; raises UserError that lists the names there are."""
    if name not in preset_names():
        known = ", ".join(preset_names())
        raise UserError(f"received preset {name!r}, expected one of {known}")
    text = (resources.files("bmnas") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return Config.from_dict(tomllib.loads(text), f"preset {name}")


def _fits(value: Any, wanted: str) -> bool:
    if isinstance(value, bool) or wanted == "bool":
        return isinstance(value, bool) and wanted == "bool"
    return isinstance(value, int) or (wanted == "float" and isinstance(value, float))


def _check(config: Config, source: str) -> None:
    problems = []
    for section in _SECTIONS:
        for name, value in dataclasses.asdict(getattr(config, section)).items():
            if name in _FLAGS:
                continue
            if name in _AT_LEAST_ONE:
                good, wanted = value >= 1, "at least 1"
            elif name in _BELOW_ONE:
                good, wanted = 0 <= value < 1, "from 0 to below 1"
            elif name in _INSIDE_ZERO_ONE:
                good, wanted = 0 < value < 1, "between 0 and 1"
            else:
                good, wanted = 0 <= value < float("inf"), "0 or more"
            if not good:
                problems.append(f"[{section}] {name}: received {value}, expected {wanted}")
    if problems:
        raise UserError(f"{source}: {'; '.join(problems)}")
