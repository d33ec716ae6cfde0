"""Configuration as frozen dataclasses; ``presets/*.toml`` are instances of them.

Configuration stays at the edge: a builder joins it with plain arguments, modules never see it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError, close
from bmnas.machine.files import read_toml
from bmnas.spaces.mfas.settings import MFASConfig
from bmnas.spaces.trees.settings import EvolutionConfig


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

    ``candidates`` is the budget of strategies that train candidates, ``rerank`` how many genotypes
    Algorithm 1's own result is compared with in the end (0: the paper's method); each is trained
    for ``candidate_epochs``, and before them the supernet as single networks. ``cache_dtype`` is
    the type of the feature cache, ``precision`` that of the matrix products of Algorithm 1.
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
    rerank: int = 0
    cache_dtype: str = "float32"
    precision: str = "float32"


@dataclass(frozen=True)
class TrainConfig:
    """The evaluation stage: fixed epochs on train + validation (spec section 7).

    ``backbone_lr`` is the peak learning rate of the backbones, ``max_lr`` of everything else.
    ``threshold`` turns probabilities into labels in multilabel tasks. ``freeze_backbones`` trains
    on the feature cache and leaves the backbones as they are. ``unimodal_logits`` adds the
    logits of the unimodal networks to those of what a search found.
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
    unimodal_logits: bool = False


@dataclass(frozen=True)
class Config:
    """Everything that a run can choose; ``promise`` says what a preset is for.

    A strategy with settings of its own has a section of its name. ``preset`` is the name or file
    that the settings come from, None for settings of one's own.
    """

    unimodal: UnimodalConfig = field(default_factory=UnimodalConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mfas: MFASConfig = field(default_factory=MFASConfig)
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)
    promise: Mapping[str, str] = field(default_factory=dict)
    preset: str | None = None

    def override(self, section: str, **values: Any) -> Config:
        """Return a copy with ``values`` in ``section``; a None leaves the value as it is.

        Raises UserError that lists every value out of range, by the option that gives it.
        """
        given = {name: value for name, value in values.items() if value is not None}
        changed = dataclasses.replace(getattr(self, section), **given)
        config = dataclasses.replace(self, **{section: changed})
        problems = [
            f"--{name.replace('_', '-')}: {problem}"
            if where == section and name in given
            else f"[{where}] {name}: {problem}"
            for where, name, problem in _problems(config)
        ]
        if problems:
            raise UserError("; ".join(problems))
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready plain data, the promise left out."""
        return {name: dataclasses.asdict(getattr(self, name)) for name in _SECTIONS}

    def to_toml(self) -> str:
        """Return the text of a file that ``load_preset`` reads as these settings."""
        sections: dict[str, Mapping[str, Any]] = {**self.to_dict()}
        if self.promise:
            sections = {"promise": self.promise, **sections}
        return "\n".join(
            f"[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())
            for name, table in sections.items()
        )

    def of_strategy(self, strategy: str) -> dict[str, Any]:
        """Return the settings in the section of ``strategy``, none where it has no section."""
        return dataclasses.asdict(getattr(self, strategy)) if strategy in _STRATEGIES else {}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str) -> Config:
        """Build a configuration from plain data; what is missing takes its default.

        Raises UserError that lists every unknown key, wrong type and value out of range.
        """
        problems: list[str] = []
        sections: dict[str, Any] = {}
        tables = {name: data.get(name, {}) for name in (*_SECTIONS, "promise")}
        for name, table in tables.items():
            if not isinstance(table, Mapping):
                problems.append(f"{name}: received {table!r}, expected a table [{name}]")
                tables[name] = {}
        for name, kind in _SECTIONS.items():
            known = {f.name: f for f in dataclasses.fields(kind)}
            values: dict[str, Any] = {}
            for key, value in tables[name].items():
                wanted = known[key].type if key in known else None
                if wanted is None:
                    problems.append(f"[{name}] received {key!r}, expected {', '.join(known)}")
                elif not _fits(value, str(wanted)):
                    problems.append(f"[{name}] {key}: received {value!r}, expected {wanted}")
                else:
                    values[key] = float(value) if wanted == "float" else value
            sections[name] = kind(**values)
        problems.extend(
            f"[promise] {key}: received {text!r}, expected a string"
            for key, text in tables["promise"].items()
            if not isinstance(text, str)
        )
        unknown = [k for k in data if k not in (*_SECTIONS, "promise")]
        problems.extend(f"received {k!r}, expected {', '.join(_SECTIONS)}" for k in unknown)
        if problems:
            raise UserError(f"{source}: {'; '.join(problems)}")
        config = cls(**sections, promise=tables["promise"])
        _check(config, source)
        return config


_STAGES: dict[str, type[UnimodalConfig | SearchConfig | TrainConfig]] = {
    "unimodal": UnimodalConfig,
    "search": SearchConfig,
    "train": TrainConfig,
}
#: Sections of strategies, which check themselves.
_STRATEGIES: dict[str, type[MFASConfig | EvolutionConfig]] = {
    "mfas": MFASConfig,
    "evolution": EvolutionConfig,
}
_SECTIONS: dict[
    str, type[UnimodalConfig | SearchConfig | TrainConfig | MFASConfig | EvolutionConfig]
] = {
    **_STAGES,
    **_STRATEGIES,
}

_AT_LEAST_ONE = {"cells", "steps", "epochs", "candidates", "candidate_epochs"}
_AT_LEAST_TWO = {"batch_size"}  # BatchNorm has no statistics of one sample
_SIZES = {"channels", "length"}
_LARGEST = 65536  # as in a genotype's file
_FLAGS = {"freeze_backbones", "unimodal_logits"}
_BELOW_ONE = {"dropout"}
_INSIDE_ZERO_ONE = {"threshold"}
_ONE_OF = {
    "cache_dtype": ("float32", "float16", "bfloat16"),
    "precision": ("float32", "bfloat16"),
}


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    folder = resources.files("bmnas.pipeline") / "presets"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def load_preset(name: str) -> Config:
    """Return the preset called ``name``, or the settings in a file whose name ends in ``.toml``.

    Raises UserError that lists the names there are, or every problem of the file.
    """
    if name.endswith(".toml"):
        config = Config.from_dict(read_toml(Path(name)), name)
        return dataclasses.replace(config, preset=name)
    if name not in preset_names():
        known = preset_names()
        raise UserError(
            f"received preset {name!r}, expected one of {', '.join(known)}, or a .toml file"
            f"{close(name, known)}"
        )
    with resources.as_file(resources.files("bmnas.pipeline") / "presets" / f"{name}.toml") as path:
        return dataclasses.replace(Config.from_dict(read_toml(path), f"preset {name}"), preset=name)


def _toml(value: Any) -> str:
    # Numbers, flags and strings are written as in JSON; only keys and tables differ.
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _fits(value: Any, wanted: str) -> bool:
    if isinstance(value, bool) or wanted == "bool":
        return isinstance(value, bool) and wanted == "bool"
    if wanted == "str":
        return isinstance(value, str)
    if wanted == "float":
        # A longer integer would not fit a float.
        return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 53)
    return isinstance(value, int)


def _check(config: Config, source: str) -> None:
    problems = [f"[{section}] {name}: {problem}" for section, name, problem in _problems(config)]
    if problems:
        raise UserError(f"{source}: {'; '.join(problems)}")


def _problems(config: Config) -> list[tuple[str, str, str]]:
    """Return section, name and what is wrong of every value out of range."""
    problems = [
        (section, *problem)
        for section in _STRATEGIES
        for problem in getattr(config, section).problems()
    ]
    for section in _STAGES:
        for name, value in dataclasses.asdict(getattr(config, section)).items():
            if name in _FLAGS:
                continue
            if name in _ONE_OF:
                good, wanted = value in _ONE_OF[name], f"one of {', '.join(_ONE_OF[name])}"
            elif name in _AT_LEAST_ONE:
                good, wanted = value >= 1, "at least 1"
            elif name in _AT_LEAST_TWO:
                good, wanted = value >= 2, "at least 2"
            elif name in _SIZES:
                good, wanted = 1 <= value <= _LARGEST, f"from 1 to {_LARGEST}"
            elif name in _BELOW_ONE:
                good, wanted = 0 <= value < 1, "from 0 to below 1"
            elif name in _INSIDE_ZERO_ONE:
                good, wanted = 0 < value < 1, "between 0 and 1"
            else:
                good, wanted = 0 <= value < float("inf"), "0 or more"
            if not good:
                problems.append((section, name, f"received {value}, expected {wanted}"))
    return problems
