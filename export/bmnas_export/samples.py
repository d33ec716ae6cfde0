"""Real samples of a task's test part, as the inputs of a network.

Legend: n samples.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bmnas.features.samples import RawInput
from bmnas.machine.errors import UserError, few
from bmnas.pipeline.multimodal import MultimodalNetwork
from bmnas.pipeline.trained import TaskInfo
from bmnas.tasks import check_task, check_test
from bmnas.tasks.task import Task


class SampleInputs:
    """The encoded test samples that a network can be tried with.

    Raises UserError when the task is not the one that the network was trained for, when its test
    data is malformed, or when it has no test sample.
    """

    def __init__(self, task: Task, info: TaskInfo, network: MultimodalNetwork) -> None:
        check_task(task)
        check_test(task)
        _check_fit(task, info)
        self._samples = task.samples("test")
        if not len(self._samples):
            raise UserError(
                f"task {task.name}: received no test sample, expected at least one to compare the"
                " exported network with torch"
            )
        self._inputs = {}
        for name in network.modalities:
            backbone = network.backbone(name)
            self._inputs[name] = RawInput(task.modality(name), backbone, self._samples)

    def __len__(self) -> int:
        """Return the number of test samples."""
        return len(self._samples)

    def batch(self, size: int) -> dict[str, Tensor]:
        """Return ``size`` samples spread evenly over the test part, (size, *shape) by modality.

        Where there are fewer, samples are repeated.
        """
        chosen = np.linspace(0, len(self) - 1, size).round().astype(np.int64)
        return {name: rows.batch(torch.from_numpy(chosen)) for name, rows in self._inputs.items()}


def _check_fit(task: Task, info: TaskInfo) -> None:
    received = (task.kind, tuple(task.class_names))
    wanted = (info.kind, info.class_names)
    if received != wanted:
        found, trained = (
            f"{kind} with {len(n)} classes ({few(n)})" for kind, n in (received, wanted)
        )
        raise UserError(
            f"task {task.name}: received {found}, but the network was trained on {info.name}:"
            f" {trained}; give its task with --task"
        )
