"""Known sequences of MMnas on the features of a task."""

from __future__ import annotations

from pathlib import Path

from bmnas.pipeline.config import Config
from bmnas.pipeline.context import worded
from bmnas.pipeline.unimodal import feature_names
from bmnas.spaces.mmnas.genotype import MMnasGenotype
from bmnas.spaces.mmnas.official import read_arch
from bmnas.spaces.mmnas.space import MMnasSpace
from bmnas.tasks.task import Task


def sequence_for(task: Task, config: Config, name: str) -> MMnasGenotype:
    """Return the sequence ``name``, or that of a file ``arch/*.json``, on the features of ``task``.

    One that is known by name has the width that section ``[mmnas]`` trains in the end; MCAN, and
    what is made of its operations, its lengths too. Raises UserError for an unknown name and for
    features that it cannot have.
    """
    task = worded(task, MMnasSpace)
    types = {modality.name: modality.type for modality in task.modalities}
    settings = {**vars(config.strategies["mmnas"]), "types": types}
    space = MMnasSpace.of(feature_names(task), settings)
    if name.endswith(".json"):
        return read_arch(Path(name), space.features)
    return space.final(space.known(name))
