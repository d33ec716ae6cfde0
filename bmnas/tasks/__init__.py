"""Tasks: labelled samples of several modalities, by name, from files, or built in Python."""

from __future__ import annotations

from bmnas.tasks.check import check_task, check_test, notes
from bmnas.tasks.load import FOLDER_TASKS, REGISTERED, load_task, reload_task, reloadable
from bmnas.tasks.rows import Rows
from bmnas.tasks.task import Modality, Task
from bmnas.tasks.task_file import load_task_file

__all__ = [
    "FOLDER_TASKS",
    "REGISTERED",
    "Modality",
    "Rows",
    "Task",
    "check_task",
    "check_test",
    "load_task",
    "load_task_file",
    "notes",
    "reload_task",
    "reloadable",
]
