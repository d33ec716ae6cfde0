"""Everything that a run can choose; ``presets/*.toml`` are instances of it.

Configuration stays at the edge: a builder joins it with plain arguments, modules never see it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError, at, close
from bmnas.machine.files import read_toml
from bmnas.machine.schema import Problem, SchemaError, plain, read
from bmnas.spaces.cells.space import CellSpace
from bmnas.spaces.space import SearchSpace
from bmnas.strategies import settings_of_strategies, strategy_named
from bmnas.strategies.settings import SearchConfig
from bmnas.tasks.kinds import task_kind
from bmnas.tasks.task import Task
from bmnas.training.settings import TrainConfig, UnimodalConfig

#: The preset whose settings follow from the task.
DEFAULT = "default"

_LARGE = 4000
_FOLDS = 3
_ENSEMBLE = 3  # as many as the last comparison of the search trains
_UNIMODAL_STEPS, _SEARCH_STEPS, _CANDIDATE_STEPS, _TRAIN_STEPS = 800, 500, 250, 2000
_DROPOUT, _RATE, _DECAY = 0.3, 2e-3, 1e-4
#: Networks of tokens add up what modalities say each for some hundred steps before they do more.
_TOKEN_SEARCH_STEPS, _TOKEN_CANDIDATE_STEPS = 1500, 800
_TOKEN_RATE, _WARMUP = 1e-3, 50

_FOLDER = resources.files("bmnas.pipeline") / "presets"


@dataclass(frozen=True)
class Config:
    """The settings of every stage; ``promise`` says what a preset is for.

    ``strategies`` are the settings of strategies that have some of their own, each a section of
    the strategy's name. ``preset`` is the name or file that the settings come from, None for
    settings of one's own.
    """

    unimodal: UnimodalConfig = field(default_factory=UnimodalConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    strategies: Mapping[str, Any] = field(
        default_factory=lambda: {name: kind() for name, kind in settings_of_strategies().items()}
    )
    promise: Mapping[str, str] = field(default_factory=dict)
    preset: str | None = None

    def override(self, section: str, **values: Any) -> Config:
        """Return a copy with ``values`` in ``section``; a None leaves the value as it is.

        Raises UserError that lists every value out of range, by the option that gives it.
        """
        given = {name: value for name, value in values.items() if value is not None}
        data = self.to_dict()
        try:
            config = Config.from_dict({**data, section: {**data[section], **given}})
        except SchemaError as error:
            told = [_by_option(problem, section, given) for problem in error.problems]
            raise SchemaError(told) from error
        return dataclasses.replace(config, promise=self.promise, preset=self.preset)

    def as_in_the_paper(self, strategy: str = "bmnas") -> Config:
        """Return a copy without what the default adds to the method of the strategy's paper."""
        config = self.override("unimodal", folds=0, early_stopping=False, linear=False)
        for section, values in strategy_named(strategy).PAPER.items():
            config = config.override(section, **values)
        return config.override("train", unimodal_logits=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready plain data, the promise left out."""
        stages = {"unimodal": self.unimodal, "search": self.search, "train": self.train}
        return {name: plain(section) for name, section in {**stages, **self.strategies}.items()}

    def to_toml(self) -> str:
        """Return the text of a file that ``load_preset`` reads as these settings."""
        promise = {"promise": self.promise} if self.promise else {}
        # Numbers, flags and strings are written as in JSON; only keys and tables differ.
        return "\n".join(
            f"[{name}]\n"
            + "".join(
                f"{k} = {json.dumps(v, ensure_ascii=False)}\n"
                for k, v in table.items()
                if v is not None  # TOML has none: what is missing takes its default
            )
            for name, table in {**promise, **self.to_dict()}.items()
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "") -> Config:
        """Build a configuration from plain data; what is missing takes its default.

        Raises UserError that lists every unknown key, wrong type and value out of range.
        """
        stages = {"unimodal": UnimodalConfig, "search": SearchConfig, "train": TrainConfig}
        strategies = settings_of_strategies()
        sections = [
            *((n, kind, field(default_factory=kind)) for n, kind in (stages | strategies).items()),
            ("promise", Mapping[str, str], field(default_factory=dict)),
        ]
        found: Any = read(dataclasses.make_dataclass("Sections", sections), data, source)
        values = {name: getattr(found, name) for name, *_ in sections}
        own = {name: values.pop(name) for name in strategies}
        return cls(**values, strategies=own)


def load_preset(name: str) -> Config:
    """Return the preset called ``name``, or the settings in a file whose name ends in ``.toml``.

    Raises UserError that lists the names there are, or every problem of the file.
    """
    source = name if name.endswith(".toml") else f"preset {name}"
    return dataclasses.replace(Config.from_dict(read_preset(name), source), preset=name)


def config_for(
    task: Task, preset: str | None = None, space: type[SearchSpace[Any]] = CellSpace
) -> Config:
    """Return the settings in ``preset``, by default those of the preset that ``task`` names.

    Preset ``default`` is no file: its settings follow from the task, see ``fitted_config``, and
    suit networks of ``space``: those of Cells do not suit MMnas, whose space has to be given.
    """
    if follows_from_data(task, preset):
        return fitted_config(task, space=space)
    if preset is not None:
        return load_preset(preset)
    with at(f"task {task.name}"):
        return load_preset(task.preset)


def follows_from_data(task: Task, preset: str | None = None) -> bool:
    """Tell whether the settings are those of ``fitted_config`` and not a preset's."""
    return (preset or task.preset) == DEFAULT


def fitted_config(
    task: Task, effort: float = 1.0, space: type[SearchSpace[Any]] = CellSpace
) -> Config:
    """Return settings that suit the number of samples of ``task`` and networks of ``space``.

    Every training takes about as many steps whatever the number is: an epoch of a thousand samples
    is a few steps and teaches little, one of thirty thousand is most of a training. ``effort``
    multiplies the steps of all trainings.
    """
    tokens = space.READS_TOKENS
    search, candidate, final, rate = _SEARCH_STEPS, _CANDIDATE_STEPS, _TRAIN_STEPS, _RATE
    dropout, decay, warmup_steps = _DROPOUT, _DECAY, 0
    if tokens:
        search, candidate, rate = _TOKEN_SEARCH_STEPS, _TOKEN_CANDIDATE_STEPS, _TOKEN_RATE
        dropout, decay, warmup_steps = 0.0, 0.0, _WARMUP
        if task_kind(task.kind).PAIRS:
            # Three pairs for each sample; with more steps validation of icons gained nothing.
            search, candidate, final = search // 3, candidate // 3, final // 3
    train = len(task.samples("train"))
    whole = len(task.samples("train", "validation"))
    batch = 64 if train < _LARGE else 128

    def epochs(steps: int, samples: int, least: int) -> int:
        # Of no samples at all the check of the task tells.
        return max(least, math.ceil(effort * steps * min(batch, samples) / max(1, samples)))

    return Config(
        unimodal=UnimodalConfig(
            epochs=epochs(_UNIMODAL_STEPS, train, 3),
            batch_size=batch,
            folds=_FOLDS,
            early_stopping=True,
            linear=True,
        ),
        search=SearchConfig(
            epochs=epochs(search, train, 3),
            batch_size=batch,
            dropout=dropout,
            max_lr=rate,
            weight_decay=decay,
            warmup_steps=warmup_steps,
            rerank=4,
            candidate_epochs=epochs(candidate, train, 2),
            rivals=not tokens,
            ensemble=1 if tokens else _ENSEMBLE,
        ),
        train=TrainConfig(
            epochs=epochs(final, whole, 4),
            batch_size=batch,
            dropout=dropout,
            max_lr=rate,
            weight_decay=decay,
            warmup_steps=warmup_steps,
            freeze_backbones=True,
            unimodal_logits=True,
        ),
        preset=DEFAULT,
    )


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    files = [file.name for file in _FOLDER.iterdir()]
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def read_preset(name: str) -> dict[str, Any]:
    """Return the content of the preset called ``name``, or of a file that ends in ``.toml``.

    Raises UserError that lists the names there are.
    """
    if name.endswith(".toml"):
        return read_toml(Path(name))
    known = preset_names()
    if name not in known:
        raise UserError(
            f"received preset {name!r}, expected one of {', '.join(known)}, or a .toml file"
            f"{close(name, known)}"
        )
    with resources.as_file(_FOLDER / f"{name}.toml") as path:
        return read_toml(path)


def _by_option(problem: Problem, section: str, given: Mapping[str, Any]) -> Problem:
    """Return ``problem`` with the option's name, where an option gave the value."""
    option = problem.path[-1]
    if problem.path == (section, option) and option in given:
        return Problem((f"--{str(option).replace('_', '-')}",), problem.text)
    return problem
