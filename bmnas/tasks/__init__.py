"""Tasks: labelled samples of several modalities, by name, from files, or built in Python."""

from __future__ import annotations

from bmnas.tasks.array import load_task_file
from bmnas.tasks.check import check_task, check_test
from bmnas.tasks.load import load_task, reload_task, reloadable
from bmnas.tasks.registry import REGISTERED, RegisteredTask
from bmnas.tasks.task import Modality, Task

__all__ = [
    "REGISTERED",
    "Modality",
    "RegisteredTask",
    "Task",
    "check_task",
    "check_test",
    "load_task",
    "load_task_file",
    "reload_task",
    "reloadable",
]
