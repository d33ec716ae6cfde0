"""What a search has to work through: samples, features, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bmnas.backbones import Backbone
from bmnas.features.cache import cache_bytes
from bmnas.machine.errors import UserError
from bmnas.pipeline.config import Config
from bmnas.pipeline.joint import channels_of
from bmnas.strategies.settings import SearchConfig
from bmnas.tasks.kinds import Multiclass, task_kind
from bmnas.tasks.task import Task

_CLASSES = 60  # where no task says how many; they hardly matter
_LARGEST = 65536  # as many channels as a genotype's file may have


@dataclass(frozen=True)
class Workload:
    """The data and the settings of a search.

    ``channels`` is C_raw of every feature by its name, ``<modality>.<feature>``; ``rows`` how many
    rows of each modality train and validation use, ``seeds`` how many searches run at once.
    """

    channels: Mapping[str, int]
    rows: Mapping[str, int]
    train: int
    validation: int
    classes: int
    kind: str
    search: SearchConfig
    seeds: int = 1

    @property
    def outputs(self) -> int:
        """How many numbers a network gives for a sample."""
        return task_kind(self.kind).outputs(self.classes)

    @property
    def cache_bytes(self) -> int:
        """The size of the feature cache on disk."""
        length, dtype = self.search.length, self.search.cache_dtype
        return sum(
            cache_bytes(self.rows[name.partition(".")[0]], length, channels, dtype)
            for name, channels in self.channels.items()
        )

    @property
    def sample_bytes(self) -> int:
        """The size of one sample's features."""
        length, dtype = self.search.length, self.search.cache_dtype
        return sum(cache_bytes(1, length, c, dtype) for c in self.channels.values())


def task_workload(task: Task, backbones: Mapping[str, Backbone], config: SearchConfig) -> Workload:
    """Return the workload of a search for ``task`` with ``backbones``."""
    used = task.samples("train", "validation")
    return Workload(
        channels=channels_of(backbones),
        rows={m.name: len(np.unique(m.rows_of(used))) for m in task.modalities},
        train=len(task.samples("train")),
        validation=len(task.samples("validation")),
        classes=task.classes,
        kind=task.kind,
        search=config,
    )


def features_workload(
    channels: Sequence[int], samples: int, validation: float, config: SearchConfig
) -> Workload:
    """Return the workload of a search over ``channels``, where there are no data yet.

    ``samples`` are train and validation together, ``validation`` the latter's fraction. Raises
    UserError when there are too few of them.
    """
    if not 0 < validation < 1:
        raise UserError(f"--validation: received {validation}, expected between 0 and 1")
    held_out = round(samples * validation)
    if held_out < 2 or samples - held_out < 2:
        raise UserError(
            f"--samples: received {samples}, of which {held_out} for validation; expected at least "
            "2 for each part"
        )
    return Workload(
        channels={f"m.{number}": count for number, count in enumerate(channels, 1)},
        rows={"m": samples},
        train=samples - held_out,
        validation=held_out,
        classes=_CLASSES,
        kind=Multiclass.name,
        search=config,
    )


def feature_channels(given: str | None, config: Config) -> list[int]:
    """Return the channels in the text ``given``, else those that the preset is for.

    Raises UserError for another text, and for a preset that says none.
    """
    text = config.promise.get("features") if given is None else given
    if text is None:
        raise UserError(
            f"preset {config.preset} is for no features in particular: give the channels of yours "
            "with --features 512,1024,…, or a task with --task"
        )
    try:
        channels = [int(part) for part in text.split(",")]
    except ValueError:
        channels = []
    if len(channels) < 2 or not all(1 <= count <= _LARGEST for count in channels):
        raise UserError(
            f"--features: received {text!r}, expected the channels of two features or more, each "
            f"from 1 to {_LARGEST}, as 512,1024,…"
        )
    return channels
